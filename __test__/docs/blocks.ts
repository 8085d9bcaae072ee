// The code blocks of the documentation, and the programs they make.
//
// A page is Markdown that reads well, so what the tests need to know is in a few conventions:
//
//   ```ts                  a program of its own; ```js too
//   ```ts continued        goes on where the block before it ended
//   ```ts needs=/path      only where there is such a file
//   ```sh                  run by `sh -e`; `# => text` says what is printed
//   ```console             a transcript for the reader's own machine: its commands are looked at, not run
//
//   expression // => value              a value, compared as a JavaScript value; an object by the keys that are given
//   const name = ... // => value
//   console.log(...) // => text         what is printed; more lines of it in `// => ` comments below
//   await expression // throws Name     what is thrown, by the name of its class, or `Name: CODE`
//
// The programs keep the lines of their pages, so that whatever fails is found by its line.

import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export const ROOT = fileURLToPath(new URL('../..', import.meta.url))

/** A code block. */
export interface Block {
  readonly page: string
  /** Of its first line of code, from 1. */
  readonly line: number
  readonly language: string
  readonly continued: boolean
  /** A file that must be there. */
  readonly needs: string | undefined
  readonly lines: readonly string[]
}

/** A program in TypeScript: blocks that belong together. */
export interface Program {
  /** Page and line. */
  readonly name: string
  readonly needs: readonly string[]
  readonly text: string
  /** The lines with expectations. */
  readonly expected: readonly number[]
}

/** The pages whose code runs, relative to the root. */
export const pages = (): string[] => {
  const guides = readdirSync(path.join(ROOT, 'docs', 'guides')).filter((name) => name.endsWith('.md'))
  return ['README.md', 'examples/README.md', 'docs/migration.md', ...guides.map((name) => `docs/guides/${name}`)]
}

const FENCE = /^( *)```(\S*)(.*)$/

/** The blocks of a page. */
export const blocksOf = (page: string): Block[] => {
  const blocks: Block[] = []
  let open: { line: number; info: string; language: string; indent: string; lines: string[] } | undefined
  for (const [index, line] of readFileSync(path.join(ROOT, page), 'utf8').split('\n').entries()) {
    const fence = FENCE.exec(line)
    if (open === undefined && fence !== null) {
      const [, indent = '', language = '', info = ''] = fence
      open = { line: index + 2, info, language, indent, lines: [] }
    } else if (open !== undefined && line.trim() === '```') {
      const { line: first, info, lines } = open
      const words = info.split(' ').filter((word) => word !== '')
      const needs = words.find((word) => word.startsWith('needs='))?.slice('needs='.length)
      const unknown = words.filter((word) => word !== 'continued' && !word.startsWith('needs='))
      if (unknown.length > 0) throw new Error(`${page}:${open.line - 1}: what is "${unknown.join(' ')}"?`)
      blocks.push({ page, line: first, language: open.language, continued: words.includes('continued'), needs, lines })
      open = undefined
    } else if (open !== undefined) {
      open.lines.push(line.startsWith(open.indent) ? line.slice(open.indent.length) : line)
    }
  }
  if (open !== undefined) throw new Error(`${page}:${open.line - 1}: a block that does not end`)
  return blocks
}

const EXPECTS = /^(\s*)(.*?)\s*\/\/ => (.*)$/
const THROWS = /^(\s*)(?:await )?(.*?)\s*\/\/ throws (\w+)(?:: (\w+))?$/

/** A line of code with its expectation made a call; as it is if it has none. */
const checked = (line: string, number: number): string => {
  const throws = THROWS.exec(line)
  if (throws !== null) {
    const [, indent = '', code = '', name = '', errorCode] = throws
    return `${indent}await throws(${number}, async () => (${code}), '${name}', ${JSON.stringify(errorCode)})`
  }
  const expects = EXPECTS.exec(line)
  if (expects === null) return line
  const [, indent = '', code = '', value = ''] = expects
  if (code === '') return `${indent}printed(${number}, ${JSON.stringify(value)})`
  if (code.startsWith('console.log(')) return `${indent}${code}; printed(${number}, ${JSON.stringify(value)})`
  const declared = /^(?:const|let) (\w+)(?:: [^=]+)? = /.exec(code)?.[1]
  if (declared !== undefined) return `${indent}${code}; check(${number}, ${declared}, ${value})`
  return `${indent};check(${number}, (${code}), ${value})`
}

/** The programs of a page. */
export const programsOf = (page: string): Program[] => {
  const chains: Block[][] = []
  for (const block of blocksOf(page)) {
    if (block.language !== 'ts' && block.language !== 'js') continue
    const last = chains.at(-1)
    if (!block.continued) chains.push([block])
    else if (last === undefined) throw new Error(`${page}:${block.line}: it continues nothing`)
    else last.push(block)
  }
  return chains.map((chain) => {
    const lines = [
      `import { check, printed, throws } from ${JSON.stringify(path.join(ROOT, '__test__/docs/checks.ts'))}`,
    ]
    // So that it is a module's import also where nothing is expected.
    lines[0] += '; void [check, printed, throws]'
    const expected: number[] = []
    for (const block of chain) {
      while (lines.length < block.line - 1) lines.push('')
      for (const [index, line] of block.lines.entries()) {
        const made = checked(line, block.line + index)
        if (made !== line) expected.push(block.line + index)
        lines.push(made)
      }
    }
    const needs = chain.map((block) => block.needs).filter((file) => file !== undefined)
    return { name: `${page}:${chain[0]?.line}`, needs, text: `${lines.join('\n')}\n`, expected }
  })
}
