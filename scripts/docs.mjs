// `npm run docs`: writes the API reference (docs/api) from the documentation comments. `--check` writes nothing and fails if
// it is not what the comments say.
//
// It reads the declarations that are published, one page for each entry of the package, by TypeScript's own API: the tools
// that are made for this ask for a TypeScript older than ours. That API is called unstable, so the version of TypeScript is
// pinned, and a test looks at what comes out.

import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { isTypeAliasDeclaration, isVariableDeclaration, SyntaxKind } from 'typescript/unstable/ast'
import { API, SymbolFlags } from 'typescript/unstable/sync'

import { fail, root } from './common.mjs'

/** The entries that have types, with the file that declares each. */
const entries = () => {
  const { name, exports } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  return Object.entries(exports)
    .map(([key, target]) => ({
      name: key === '.' ? name : `${name}${key.slice(1)}`,
      page: key === '.' ? name : path.basename(key),
      file: target.types ?? target.import?.types,
    }))
    .filter(({ file }) => file !== undefined)
    .map(({ name: entry, page, file }) => ({ name: entry, page, file: path.join(root, file) }))
}

const withoutComments = (text) => text.replaceAll(/^[ \t]*\/\*\*[\s\S]*?\*\/\n?/gm, '').replaceAll(/\n\s*\n/g, '\n')

/** Below a list item. */
const indented = (text) => text.replaceAll(/^(?=.)/gm, '  ')

/** A number with the kernel's name: needs no words of ours. */
const isConstant = ({ name }) => /^[A-Z][A-Z0-9_]+$/.test(name)

const links = (exported) => exported.map(({ name }) => `[${name}](#${name.toLowerCase()})`).join(', ')

class Page {
  constructor(project, entry) {
    this.project = project
    this.checker = project.checker
    this.entry = entry
    const module = this.checker.getSymbolAtLocation(project.program.getSourceFile(entry.file))
    this.exported = this.checker.getExportsOfModule(module).map((symbol) => ({
      name: symbol.name,
      symbol: symbol.flags & SymbolFlags.Alias ? this.checker.getAliasedSymbol(symbol) : symbol,
    }))
  }

  /** What a symbol's comment says, with its tags. */
  comment(symbol) {
    const text = this.checker.getDocumentationCommentOfSymbol(symbol).trim()
    const tags = this.checker.getJsDocTagsOfSymbol(symbol).map(({ name, text: said = '' }) => {
      const words = said.trim()
      if (name === 'param') {
        const [, parameter, rest] = /^(\S+)\s*-?\s*([\s\S]*)$/.exec(words) ?? [undefined, words, '']
        return `\`${parameter}\`: ${rest}`
      }
      if (name === 'example') return words
      return `${{ throws: 'Throws', returns: 'Returns', defaultValue: 'Default:' }[name] ?? `${name}:`} ${words}`
    })
    return [text, ...tags].filter((part) => part !== '').join('\n\n')
  }

  /** The members that a declaration lists; those of a value with its name before them. */
  members(node, prefix = '') {
    const lines = []
    for (const member of node.members ?? []) {
      const isPrivate = member.name?.kind === SyntaxKind.PrivateIdentifier
      if (isPrivate || member.kind === SyntaxKind.Constructor) continue
      const signature = withoutComments(member.getText()).replaceAll(/\s+/g, ' ').replace(/;$/, '')
      const named = member.name ?? member
      const symbol = this.checker.getSymbolAtLocation(named)
      const comment = symbol === undefined || member.name === undefined ? '' : this.comment(symbol)
      lines.push(`- \`\`${prefix}${signature}\`\`${comment === '' ? '' : `\n\n${indented(comment)}\n`}`)
    }
    return lines.join('\n')
  }

  /** A declaration as it is written, without what its members say. */
  declaration(node) {
    if (isVariableDeclaration(node)) {
      const literal = node.type?.members === undefined ? undefined : node.type
      if (literal !== undefined) return { code: undefined, members: this.members(literal, `${node.name.getText()}.`) }
      return { code: `const ${withoutComments(node.getText())}`, members: '' }
    }
    if (isTypeAliasDeclaration(node)) {
      // A type that only gives another name to one that is not exported itself.
      const target = node.type.typeName === undefined ? undefined : this.checker.getSymbolAtLocation(node.type.typeName)
      const aliased =
        target !== undefined && target.flags & SymbolFlags.Alias ? this.checker.getAliasedSymbol(target) : target
      const meant = aliased?.declarations?.[0]?.resolve(this.project)
      if (meant?.kind === SyntaxKind.InterfaceDeclaration && node.type.typeArguments === undefined) {
        return { ...this.declaration(meant), symbol: aliased }
      }
      return { code: withoutComments(node.getText()).replace(/^export /, ''), members: '' }
    }
    if (node.members !== undefined) {
      const [head] = withoutComments(node.getText()).split('{\n')
      const code = (head ?? '').replace(/^export (?:declare )?/, '').trim()
      return { code: code.endsWith('}') ? code : `${code} { ... }`, members: this.members(node) }
    }
    return { code: withoutComments(node.getText()).replace(/^export (?:declare )?/, ''), members: '' }
  }

  section({ name, symbol }) {
    const parts = [`## ${name}`]
    // The comment of an alias is in short what that of its target is.
    let comment = this.comment(symbol)
    for (const handle of symbol.declarations) {
      const node = handle.resolve(this.project)
      if (node === undefined) continue
      const { code, members, symbol: meant } = this.declaration(node)
      if (meant !== undefined) {
        const [, ...others] = comment.split('\n')
        comment = [this.comment(meant), ...others].join('\n\n')
      }
      if (code !== undefined) parts.push(`\`\`\`ts\n${code}\n\`\`\``)
      if (members !== '') parts.push(members)
    }
    if (comment !== '') parts.splice(1, 0, comment)
    return parts.join('\n\n')
  }

  /** Names of exports that say nothing about themselves. */
  undocumented() {
    return this.exported
      .filter((exported) => !isConstant(exported) && this.comment(exported.symbol) === '')
      .map(({ name }) => name)
  }

  /** The numbers, in one section. */
  constants() {
    const texts = this.exported.filter(isConstant).map(({ symbol: { declarations } }) => {
      const [handle] = declarations
      return `\`${handle.resolve(this.project).getText()}\``
    })
    return texts.length === 0 ? [] : [`## Constants\n\n${texts.join(', ')}`]
  }

  render() {
    const named = this.exported.filter((exported) => !isConstant(exported))
    const values = named.filter(({ symbol }) => (symbol.flags & SymbolFlags.Value) !== 0)
    const types = named.filter(({ symbol }) => (symbol.flags & SymbolFlags.Value) === 0)
    return [
      `# ${this.entry.name}`,
      'Made by `npm run docs` from the documentation comments; do not edit.',
      ...(values.length > 0 ? [`Values: ${links(values)}`] : []),
      ...(types.length > 0 ? [`Types: ${links(types)}`] : []),
      ...[...values, ...types].map((exported) => this.section(exported)),
      ...this.constants(),
      '',
    ]
      .join('\n\n')
      .replaceAll(/\n{3,}/g, '\n\n')
      .replace(/\n+$/, '\n')
  }
}

/** Calls `work` with a page for each entry. */
const withPages = (work) => {
  const all = entries()
  // Elsewhere, for not everybody who runs the tests may write here.
  const directory = mkdtempSync(path.join(tmpdir(), 'nestbox-docs-'))
  const config = path.join(directory, 'tsconfig.json')
  const typeRoots = [path.join(root, 'node_modules', '@types')]
  const options = { rootDir: root, rewriteRelativeImportExtensions: false, typeRoots }
  const files = all.map(({ file }) => file)
  writeFileSync(
    config,
    JSON.stringify({ extends: path.join(root, 'tsconfig.json'), compilerOptions: options, files, include: [] }),
  )
  const api = new API({ cwd: root })
  try {
    const [project] = api.updateSnapshot({ openProjects: [config] }).getProjects()
    return work(all.map((entry) => new Page(project, entry)))
  } finally {
    api.close()
    rmSync(directory, { recursive: true, force: true })
  }
}

/** The text of each file, by its path below the root. */
export const render = () =>
  withPages((pages) => {
    const list = pages.map(({ entry: { name, page } }) => `- [\`${name}\`](${page}.md)`).join('\n')
    return new Map([
      ['docs/api/README.md', `# API\n\nOne page for each entry of the package.\n\n${list}\n`],
      ...pages.map((page) => [`docs/api/${page.entry.page}.md`, page.render()]),
    ])
  })

/** Exports without a documentation comment, as `entry: name`. */
export const undocumented = () =>
  withPages((pages) => pages.flatMap((page) => page.undocumented().map((name) => `${page.entry.name}: ${name}`)))

const main = (check) => {
  const stale = []
  for (const [name, text] of render()) {
    const file = path.join(root, name)
    if (existsSync(file) && readFileSync(file, 'utf8') === text) continue
    stale.push(name)
    if (check) continue
    mkdirSync(path.dirname(file), { recursive: true })
    writeFileSync(file, text)
  }
  if (check && stale.length > 0)
    fail(`${stale.join(', ')} is not what the documentation comments say: \`npm run docs\`.`)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) main(process.argv.includes('--check'))
