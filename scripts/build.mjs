// Builds the package: the static fork server, the addon that embeds it, and the TypeScript. Steps whose inputs have not
// changed are skipped, so `npm test` and `npm run demo` call this every time.
//
//   --target TRIPLE   build the addon for this target instead of the machine's own (releases; see release.yml)
//   --no-native       only the TypeScript: the addon is there already, or not needed

import { rmSync, writeFileSync } from 'node:fs'
import { execFileSync } from 'node:child_process'
import path from 'node:path'
import { parseArgs } from 'node:util'

import { addCommonJS } from './commonjs.mjs'
import { bin, buildStatic, ensureDependencies, fail, have, hostTriple, root, run, rustInputs, step } from './common.mjs'

const options = { target: { type: 'string' }, 'no-native': { type: 'boolean' } }
const { target, 'no-native': noNative } = parseArgs({ options }).values

/**
 * How the addon is cross-compiled: for gnu by napi's toolchain, so that it runs with every glibc from 2.17 on, for musl by
 * zig.
 */
const crossFlags = () => {
  if (target === undefined) return []
  return ['--target', target, target.endsWith('-musl') ? '--cross-compile' : '--use-napi-cross']
}

const buildNative = () => {
  if (!have('cargo') || !have('rustc')) {
    fail('building needs a Rust toolchain (1.88 or newer), and `cargo` is not on the PATH: see https://rustup.rs.')
  }
  // Static, the fork server for gnu runs on musl systems as well: a release has one for each architecture.
  const triple = target?.replace(/-musl$/, '-gnu') ?? hostTriple()
  const helper = buildStatic('nestbox-forkserver', 'helper', { triple })
  const symbolizer = buildStatic('nestbox-symbolize', 'symbolizer', { triple })

  const addon = `nestbox.${addonTuple(target ?? triple)}.node`
  const addonArgs = ['build', '--platform', '--esm', '--release', '--manifest-path', 'crates/node/Cargo.toml']
  addonArgs.push('--output-dir', '.', '--js', 'binding.js', '--dts', 'binding.d.ts', ...crossFlags())
  const inputs = [...rustInputs, path.relative(root, helper), path.relative(root, symbolizer)]
  step('addon', { inputs, outputs: [addon, 'binding.js', 'binding.d.ts'], command: addonArgs }, () =>
    run(bin('napi'), addonArgs, { env: { NESTBOX_FORKSERVER_IMAGE: helper, NESTBOX_SYMBOLIZER_IMAGE: symbolizer } }),
  )
}

/** `x86_64-unknown-linux-gnu` is `linux-x64-gnu` in the names of addons. */
const addonTuple = (triple) => {
  const [machine, , , libc] = triple.split('-')
  return `linux-${{ x86_64: 'x64', aarch64: 'arm64' }[machine] ?? machine}-${libc}`
}

const buildTypeScript = () => {
  const inputs = ['index.ts', 'lib', 'binding.d.ts', 'tsconfig.json', 'tsconfig.build.json', 'package-lock.json']
  inputs.push('package.json', 'scripts/commonjs.mjs')
  const args = ['-p', 'tsconfig.build.json']
  const outputs = ['dist/index.js', 'dist/index.cjs', 'binding.d.cts', 'policy.schema.json']
  step('typescript', { inputs, outputs, command: args }, () => {
    // What was compiled from a file that is gone must not be published.
    rmSync(path.join(root, 'dist'), { recursive: true, force: true })
    run(bin('tsc'), args)
    addCommonJS()
    const schema = execFileSync(process.execPath, [path.join(root, 'dist', 'lib', 'cli', 'main.js'), 'schema'])
    writeFileSync(path.join(root, 'policy.schema.json'), schema)
  })
}

ensureDependencies()
if (process.platform === 'linux') {
  if (!noNative) buildNative()
} else {
  process.stderr.write('nestbox: the native part is for Linux; compiling the TypeScript alone.\n')
}
buildTypeScript()
