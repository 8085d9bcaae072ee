// Builds the package: the static fork server, the addon that embeds it, and the TypeScript. Steps whose inputs have not
// changed are skipped, so `npm test` and `npm run demo` call this every time.

import { rmSync } from 'node:fs'
import path from 'node:path'

import { bin, buildStatic, ensureDependencies, fail, have, hostTriple, root, run, rustInputs, step } from './common.mjs'

const buildNative = () => {
  if (!have('cargo') || !have('rustc')) {
    fail('building needs a Rust toolchain (1.88 or newer), and `cargo` is not on the PATH: see https://rustup.rs.')
  }
  const triple = hostTriple()
  const helper = buildStatic('nestbox-forkserver', 'helper')

  const addon = `nestbox.${addonTuple(triple)}.node`
  const addonArgs = ['build', '--platform', '--esm', '--release', '--manifest-path', 'crates/node/Cargo.toml']
  addonArgs.push('--output-dir', '.', '--js', 'binding.js', '--dts', 'binding.d.ts')
  const inputs = [...rustInputs, path.relative(root, helper)]
  step('addon', { inputs, outputs: [addon, 'binding.js', 'binding.d.ts'], command: addonArgs }, () =>
    run(bin('napi'), addonArgs, { env: { NESTBOX_FORKSERVER_IMAGE: helper } }),
  )
}

/** `x86_64-unknown-linux-gnu` is `linux-x64-gnu` in the names of addons. */
const addonTuple = (triple) => {
  const [machine, , , libc] = triple.split('-')
  return `linux-${{ x86_64: 'x64', aarch64: 'arm64' }[machine] ?? machine}-${libc}`
}

const buildTypeScript = () => {
  const inputs = ['index.ts', 'lib', 'binding.d.ts', 'tsconfig.json', 'tsconfig.build.json', 'package-lock.json']
  const args = ['-p', 'tsconfig.build.json']
  step('typescript', { inputs, outputs: ['dist/index.js', 'dist/index.d.ts'], command: args }, () => {
    // What was compiled from a file that is gone must not be published.
    rmSync(path.join(root, 'dist'), { recursive: true, force: true })
    run(bin('tsc'), args)
  })
}

ensureDependencies()
if (process.platform === 'linux') {
  buildNative()
} else {
  process.stderr.write('nestbox: the native part is for Linux; compiling the TypeScript alone.\n')
}
buildTypeScript()
