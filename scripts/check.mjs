// `npm run check`: everything that CI runs, in the order in which it fails fastest. `--lint` leaves the tests out.

import path from 'node:path'

import { bin, bootstrap, ensureDependencies, have, root, status } from './common.mjs'

ensureDependencies()
// The linters read the types of the addon, and generated files must be what the sources generate.
bootstrap()

const steps = [
  ['oxfmt', bin('oxfmt'), ['--check']],
  ['oxlint', bin('oxlint'), ['--deny-warnings']],
  ['tsc', bin('tsc'), ['-p', 'tsconfig.json']],
  ['api reference', process.execPath, [path.join(root, 'scripts', 'docs.mjs'), '--check']],
  ['rustfmt', 'cargo', ['fmt', '--all', '--check']],
  ['clippy', 'cargo', ['clippy', '--workspace', '--all-targets', '--', '-D', 'warnings']],
  // Run by a nightly compiler, but read by this one.
  ['fuzz targets', 'cargo', ['check', '--manifest-path', 'fuzz/Cargo.toml', '--target-dir', 'target']],
  [
    'rustdoc',
    'cargo',
    ['doc', '--workspace', '--no-deps', '--document-private-items'],
    { RUSTDOCFLAGS: '-D warnings' },
  ],
]
if (have('git')) {
  steps.push([
    'generated files',
    'git',
    ['diff', '--exit-code', '--', 'binding.js', 'binding.d.ts', 'policy.schema.json', 'package-lock.json'],
  ])
}
if (!process.argv.includes('--lint')) {
  steps.push(['tests', process.execPath, [path.join(root, 'scripts', 'test.mjs')]])
}

const failed = []
for (const [name, file, args, env] of steps) {
  process.stdout.write(`\n== ${name}\n`)
  if (status(file, args, { env }) !== 0) failed.push(name)
}
if (failed.length > 0) process.stderr.write(`\nnestbox: failed: ${failed.join(', ')}\n`)
process.exitCode = failed.length === 0 ? 0 : 1
