// Every code block of the README and the guides is a program that works: its types are right, it runs, and it gives what the
// page says. The conventions are in `docs/blocks.ts`.

import { execFile, spawn } from 'node:child_process'
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'

import test from 'ava'

import { policy } from '../index.ts'
import { parseRun } from '../lib/cli/options.ts'
import { type Block, blocksOf, pages, type Program, programsOf, ROOT } from './docs/blocks.ts'
import type { Outcome } from './docs/run.ts'

/** What readers have in `node_modules` who follow the pages. */
const PACKAGES = ['@opentelemetry/api', '@oxc-node/core', '@types/node', 'execa']

const programs = pages().flatMap((page) => programsOf(page))
const blocks = pages().flatMap((page) => blocksOf(page))

const isThere = ({ needs }: Program): boolean => needs.every((file) => existsSync(file))

const fileOf = (below: string, { name }: Program): string =>
  path.join(below, `${name.replaceAll(/[^a-z0-9]+/gi, '-')}.ts`)

/** A reader's project: the fixtures, the packages, and each program in a file. */
const project = (below: string): void => {
  cpSync(path.join(ROOT, '__test__', 'fixtures', 'docs'), below, { recursive: true })
  const modules = path.join(below, 'node_modules')
  for (const name of PACKAGES) {
    mkdirSync(path.join(modules, path.dirname(name)), { recursive: true })
    symlinkSync(path.join(ROOT, 'node_modules', name), path.join(modules, name))
  }
  symlinkSync(ROOT, path.join(modules, 'nestbox'))
  symlinkSync(path.join(ROOT, 'examples'), path.join(below, 'examples'))
  // What `npx nestbox` is to who has it installed.
  mkdirSync(path.join(below, 'bin'))
  const command = path.join(ROOT, 'dist', 'lib', 'cli', 'main.js')
  writeFileSync(path.join(below, 'bin', 'npx'), `#!/bin/sh\nshift\nexec '${process.execPath}' '${command}' "$@"\n`, {
    mode: 0o755,
  })
  for (const program of programs) writeFileSync(fileOf(below, program), program.text)
  writeFileSync(path.join(below, 'package.json'), '{ "type": "module" }\n')
}

let outcomes: Promise<Map<string, Outcome>> | undefined

/** Runs all programs in one process. */
const runAll = (): Promise<Map<string, Outcome>> =>
  new Promise((resolve, reject) => {
    const files = programs.filter(isThere).map((program) => fileOf(directory, program))
    const args = [...process.execArgv, path.join(ROOT, '__test__', 'docs', 'run.ts'), ...files]
    const child = spawn(process.execPath, args, { cwd: directory, stdio: ['ignore', 'inherit', 'inherit', 'pipe'] })
    let text = ''
    child.stdio[3]?.on('data', (chunk: Buffer) => {
      text += chunk.toString()
    })
    child.once('error', reject)
    child.once('close', () => {
      const lines = text.split('\n').filter((line) => line !== '')
      resolve(new Map(lines.map((line) => JSON.parse(line) as Outcome).map((outcome) => [outcome.file, outcome])))
    })
  })

/** Readable by all, for sandboxees have other ids. */
const directory = mkdtempSync(path.join(tmpdir(), 'nestbox-docs-'))

test.before(() => {
  chmodSync(directory, 0o755)
  project(directory)
})

test.after.always(() => rmSync(directory, { recursive: true, force: true }))

test('the types of the documentation are right', async (t) => {
  const config = {
    extends: path.join(ROOT, 'tsconfig.json'),
    compilerOptions: {
      rootDir: '/',
      allowImportingTsExtensions: true,
      rewriteRelativeImportExtensions: false,
      noUnusedLocals: false,
      noUnusedParameters: false,
      // The pages are about processes, not about what an index may miss.
      noPropertyAccessFromIndexSignature: false,
    },
    include: ['*.ts'],
  }
  writeFileSync(path.join(directory, 'tsconfig.json'), JSON.stringify(config))
  const tsc = path.join(ROOT, 'node_modules', '.bin', 'tsc')
  const { stdout } = await promisify(execFile)(tsc, ['-p', directory, '--noEmit']).catch(
    (error: { stdout: string }) => error,
  )
  t.is(stdout, '')
})

for (const program of programs) {
  const there = isThere(program) ? test : test.skip
  there(program.name, async (t) => {
    outcomes ??= runAll()
    const outcome = (await outcomes).get(fileOf(directory, program))
    t.truthy(outcome, 'the process that runs the pages ended early')
    t.is(outcome?.error, undefined)
    t.deepEqual(
      program.expected.filter((line) => outcome?.met.includes(line) !== true),
      [],
      'lines whose expectation was never looked at',
    )
  })
}

// ---- shell ------------------------------------------------------------------------------------------------------------------

for (const block of blocks.filter(({ language }) => language === 'sh')) {
  const there = block.needs === undefined || existsSync(block.needs) ? test : test.skip
  there(`${block.page}:${block.line}`, async (t) => {
    const PATH = `${path.join(directory, 'bin')}:${process.env['PATH']}`
    const options = { cwd: directory, timeout: 60_000, env: { ...process.env, PATH } }
    const { stdout } = await promisify(execFile)('sh', ['-ec', block.lines.join('\n')], options)
    const expected = block.lines.map((line) => /# => (.*)$/.exec(line)?.[1]).filter((text) => text !== undefined)
    let from = 0
    const printed = stdout.split('\n').map((line) => line.trim())
    for (const text of expected) {
      const at = printed.indexOf(text.trim(), from)
      t.true(at !== -1, `${text} is not printed: ${stdout}`)
      from = at + 1
    }
  })
}

const helpOf = async (command: string): Promise<string> => {
  const args = [path.join(ROOT, 'dist', 'lib', 'cli', 'main.js'), command, '--help']
  return (await promisify(execFile)(process.execPath, args)).stdout
}

test('transcripts name commands and options that there are', async (t) => {
  const { scripts } = JSON.parse(readFileSync(path.join(ROOT, 'package.json'), 'utf8')) as {
    scripts: Record<string, string>
  }
  const commands = blocks
    .filter(({ language }) => language === 'console')
    .flatMap(({ page, line, lines }) => lines.map((text, index) => ({ at: `${page}:${line + index}`, text })))
    .filter(({ text }) => text.startsWith('$ '))
  t.true(commands.length > 0)
  for (const { at, text } of commands) {
    const [program = '', ...args] = text.slice(2).split('#')[0]?.trim().split(/\s+/) ?? []
    if (program === 'npx') {
      t.is(args[0], 'nestbox', at)
      // oxlint-disable-next-line no-await-in-loop
      const help = await helpOf(args[1] ?? '')
      for (const option of args.filter((arg) => arg.startsWith('--'))) t.true(help.includes(option), `${at}: ${option}`)
    }
    if (program === 'npm' && args[0] === 'run') t.true((args[1] ?? '') in scripts, `${at}: npm run ${args[1]}`)
    const file = args.find((arg) => /^(?:examples|docs|bench|scripts)\//.test(arg) && !arg.includes('*'))
    if (file !== undefined) t.true(existsSync(path.join(ROOT, file)), `${at}: ${file}`)
  }
})

// ---- data -------------------------------------------------------------------------------------------------------------------

test('JSON in the documentation is JSON, and policies are policies', (t) => {
  const texts = blocks.filter(({ language }) => language === 'json')
  let policies = 0
  for (const { page, line, lines } of texts) {
    const at = `${page}:${line}`
    const file = path.join(directory, 'policy.json')
    writeFileSync(file, lines.join('\n'))
    t.notThrows(() => JSON.parse(lines.join('\n')) as unknown, at)
    if (!lines.join('\n').includes('"base"')) continue
    policies += 1
    // As the command reads it: with `$schema`.
    t.notThrows(() => policy.parse(parseRun(['--policy', file]).policy), at)
  }
  t.true(policies > 0)
})

test('nothing in the documentation is left out of these tests by mistake', (t) => {
  const known = new Set(['ts', 'js', 'sh', 'console', 'json', 'text', 'yaml', 'dockerfile'])
  const strays = (block: Block): boolean => !known.has(block.language)
  t.deepEqual(
    blocks.filter(strays).map(({ page, line, language }) => `${page}:${line}: ${language}`),
    [],
  )
})

/** What GitHub makes of a heading. */
const anchorOf = (heading: string): string =>
  heading
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N}_ -]/gu, '')
    .replaceAll(' ', '-')

const anchorsOf = (file: string): Set<string> => {
  const text = readFileSync(file, 'utf8').replaceAll(/^```.*?^```$/gms, '')
  return new Set([...text.matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) => anchorOf(heading)))
}

/** Every page of the repository. */
const allPages = (): string[] => [
  'README.md',
  'CHANGELOG.md',
  'examples/README.md',
  'fuzz/README.md',
  '__test__/attacks/README.md',
  ...readdirSync(path.join(ROOT, 'docs'), { recursive: true })
    .map((name) => path.join('docs', String(name)))
    .filter((name) => name.endsWith('.md')),
]

test('links within the repository lead somewhere', (t) => {
  for (const page of allPages()) {
    const text = readFileSync(path.join(ROOT, page), 'utf8').replaceAll(/^```.*?^```$/gms, '')
    for (const [, link = ''] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^https?:/.test(link)) continue
      const [to = '', anchor] = link.split('#')
      const file = to === '' ? path.join(ROOT, page) : path.join(ROOT, path.dirname(page), to)
      t.true(existsSync(file), `${page}: ${link}`)
      if (anchor !== undefined) t.true(anchorsOf(file).has(anchor), `${page}: ${link}`)
    }
  }
})
