// What the scripts of this directory share: where things are, how a step is run, and how a fresh clone gets its
// dependencies. Node's own modules only: these scripts run before `node_modules` exists.

import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

/** The top of the repository. */
export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..')

/** Ends the process with one sentence about what is wrong, and no stack. */
export const fail = (sentence) => {
  process.stderr.write(`nestbox: ${sentence}\n`)
  process.exit(1)
}

/** The shell's convention for how a child ended. */
const exitStatus = (code, signal) => code ?? 128 + (constants.signals[signal] ?? 0)

/** Runs one program to its end with our stdio; returns its exit status. */
export const status = (file, args, { env = {}, cwd = root } = {}) => {
  const result = spawnSync(file, args, { cwd, stdio: 'inherit', env: { ...process.env, ...env } })
  if (result.error) fail(`could not run \`${file}\`: ${result.error.message}`)
  return exitStatus(result.status, result.signal)
}

/** Runs one program and ends this process with its status if it fails. */
export const run = (file, args, options) => {
  const code = status(file, args, options)
  if (code !== 0) process.exit(code)
}

/** Runs one program with its output both shown and returned. */
export const tee = (file, args, { env = {}, cwd = root } = {}) =>
  new Promise((resolve) => {
    const child = spawn(file, args, { cwd, stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...env } })
    let text = ''
    const collect = (from, to) => {
      from.setEncoding('utf8')
      from.on('data', (chunk) => {
        text += chunk
        to.write(chunk)
      })
    }
    collect(child.stdout, process.stdout)
    collect(child.stderr, process.stderr)
    child.on('error', (error) => resolve({ status: 127, text: `${text}${error.message}\n` }))
    child.on('close', (code, signal) => resolve({ status: exitStatus(code, signal), text }))
  })

/** Is there such a program on the PATH? */
export const have = (name) =>
  (process.env.PATH ?? '').split(':').some((directory) => directory !== '' && existsSync(path.join(directory, name)))

/** A program that an npm package brought. */
export const bin = (name) => path.join(root, 'node_modules', '.bin', name)

/** The triple that cargo builds for here, such as `x86_64-unknown-linux-gnu`. */
export const hostTriple = () => {
  const text = execFileSync('rustc', ['-vV'], { encoding: 'utf8', cwd: root })
  const triple = /^host: (.+)$/m.exec(text)?.[1]
  return triple ?? fail('`rustc -vV` did not name its host.')
}

/** A static program that {@link buildStatic} makes. */
const staticPath = (triple, program) => path.join(root, 'target', triple, 'helper', program)

/** The fork server that `scripts/build.mjs` makes. */
export const helperPath = (triple) => staticPath(triple, 'nestbox-forkserver')

/** What every Rust program is made of. */
export const rustInputs = ['Cargo.toml', 'Cargo.lock', 'crates', 'proto', 'rust-toolchain.toml', '.cargo']

/**
 * Builds a program as the fork server is built; its path.
 *
 * Static, because clone and exit from a static process cost 70 µs where a dynamically linked one takes 180, and so that one
 * binary serves gnu and musl systems; position-independent, because it is what every sandboxee starts from. The flags go
 * into the variable of this one target: RUSTFLAGS would reach build scripts and proc macros as well.
 */
export const buildStatic = (program, name, { inputs = [], triple = hostTriple() } = {}) => {
  const to = staticPath(triple, program)
  const flags = `CARGO_TARGET_${triple.toUpperCase().replaceAll('-', '_')}_RUSTFLAGS`
  const command = ['build', '-p', program, '--profile', 'helper', '--target', triple]
  step(name, { inputs: [...rustInputs, ...inputs], outputs: [to], command }, () =>
    run('cargo', command, { env: { [flags]: '-C target-feature=+crt-static -C relocation-model=pie' } }),
  )
  return to
}

/** Every file below the given files and directories, in a stable order. */
const filesBelow = (names) => {
  const found = []
  const visit = (name) => {
    const stat = lstatSync(name, { throwIfNoEntry: false })
    if (stat === undefined) return
    if (!stat.isDirectory()) {
      found.push(name)
      return
    }
    for (const entry of readdirSync(name).toSorted()) visit(path.join(name, entry))
  }
  for (const name of names) visit(path.join(root, name))
  return found
}

/**
 * A step of the build that is skipped while nothing it reads has changed: name, size and modification time of every
 * input and the command itself are compared with those of the last success. Taken before the step runs, so that an edit
 * made meanwhile is not lost.
 */
export const step = (name, { inputs, outputs, command }, work) => {
  const stamps = path.join(root, 'target', 'nestbox-build')
  const stamp = path.join(stamps, name)
  const hash = createHash('sha256').update(JSON.stringify(command))
  for (const file of filesBelow(inputs)) {
    const { size, mtimeMs } = statSync(file)
    hash.update(`${file}\0${size}\0${mtimeMs}\n`)
  }
  const fingerprint = hash.digest('hex')
  const done = outputs.every((file) => existsSync(path.resolve(root, file)))
  if (done && existsSync(stamp) && readFileSync(stamp, 'utf8') === fingerprint) return false
  work()
  mkdirSync(stamps, { recursive: true })
  writeFileSync(stamp, fingerprint)
  return true
}

/** Installs what package-lock.json names, if `node_modules` is missing or older than the lock. */
export const ensureDependencies = () => {
  const marker = path.join(root, 'node_modules', '.package-lock.json')
  const lock = path.join(root, 'package-lock.json')
  if (existsSync(marker) && statSync(marker).mtimeMs >= statSync(lock).mtimeMs) return
  // A lock that was only touched (a checkout does that) names the same packages as the marker.
  if (existsSync(marker) && samePackages(lock, marker)) return
  run('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error'])
}

const samePackages = (lock, marker) => {
  const wanted = JSON.parse(readFileSync(lock, 'utf8')).packages
  const installed = JSON.parse(readFileSync(marker, 'utf8')).packages
  return Object.entries(wanted).every(
    ([name, entry]) => name === '' || entry.optional === true || installed[name]?.version === entry.version,
  )
}

/** Dependencies, then everything that is out of date. */
export const bootstrap = () => {
  ensureDependencies()
  run(process.execPath, [path.join(root, 'scripts', 'build.mjs')])
}

/** Node's arguments for running TypeScript as it is. */
export const typescript = ['--import', '@oxc-node/core/register']
