// `npm test`: installs and builds what is missing, then runs the Rust tests and the ava suite.
//
//   --both   as root: run ava once more as an unprivileged user (what `.ci/run` does)
//   --ava    only ava; what follows goes to it, e.g. `npm test -- --ava __test__/policy.spec.ts`
//
// Ends with one line, `N passed, N failed`, over all of them. A suite that could not run counts as one failure.

import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { spawnSync } from 'node:child_process'

import { attackTable } from './attacks.mjs'
import { bootstrap, have, helperPath, hostTriple, root, tee } from './common.mjs'

const flags = process.argv.slice(2)
const take = (flag) => {
  const at = flags.indexOf(flag)
  if (at !== -1) flags.splice(at, 1)
  return at !== -1
}
const both = take('--both')
const avaOnly = take('--ava')

/** The user `nobody`, who owns nothing. */
const NOBODY = 65534
const isRoot = process.getuid?.() === 0

/** Programs that tests run, and the Debian packages that have them. */
const PROGRAMS = [
  { isThere: () => have('busybox'), packages: ['busybox-static'] },
  { isThere: () => have('python3'), packages: ['python3'] },
  { isThere: () => have('strace'), packages: ['strace'] },
  { isThere: () => have('gcc'), packages: ['gcc', 'libc6-dev'] },
  { isThere: () => have('g++'), packages: ['g++'] },
  { isThere: () => ['magick', 'convert'].some((name) => existsSync(`/usr/bin/${name}`)), packages: ['imagemagick'] },
  {
    isThere: () => ['chromium-headless-shell', 'chromium', 'google-chrome'].some((name) => have(name)),
    packages: ['chromium-headless-shell'],
  },
]

const missing = () => PROGRAMS.filter(({ isThere }) => !isThere())

/** The end-to-end tests run real programs; a container rarely has them all. Tests skip what is missing in the end. */
const installPrograms = () => {
  if (!isRoot || !have('apt-get')) return
  if (missing().length === 0) return
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
  const apt = (...args) => spawnSync('apt-get', args, { env, stdio: 'ignore', timeout: 180_000 }).status === 0
  const install = (programs) =>
    apt('install', '-y', '--no-install-recommends', ...programs.flatMap(({ packages }) => packages))
  if (install(missing())) return
  apt('update')
  // One that can't be had must not keep the others.
  if (!install(missing())) for (const program of missing()) install([program])
  const names = missing().flatMap(({ packages }) => packages)
  if (names.length > 0) {
    process.stderr.write(`nestbox: could not install ${names.join(', ')}; tests that need them are skipped.\n`)
  }
}

const total = { passed: 0, failed: 0 }
const count = (suite, { passed, failed }, code) => {
  total.passed += passed
  // A suite that fails without naming a test (a compile error, a crash) must not look green.
  total.failed += failed === 0 && code !== 0 ? 1 : failed
  if (passed + failed === 0 && code === 0) {
    process.stderr.write(`nestbox: ${suite} ran no test.\n`)
    total.failed += 1
  }
}

const sum = (text, pattern) => [...text.matchAll(pattern)].reduce((all, match) => all + Number(match[1]), 0)

const runRust = async () => {
  const helper = helperPath(hostTriple())
  const env = existsSync(helper) ? { NESTBOX_FORKSERVER: helper } : {}
  const { status, text } = await tee('cargo', ['test', '--workspace', '--no-fail-fast'], { env })
  const passed = sum(text, /^test result: .*?(\d+) passed/gm)
  const failed = sum(text, /^test result: .*?(\d+) failed/gm)
  count('cargo test', { passed, failed }, status)
}

// The escape sequences that ava prints where it thinks that a terminal reads.
// oxlint-disable-next-line no-control-regex
const ANSI = /\u001B\[[0-9;]*m/g

const countAva = (suite, { status, text }) => {
  const plain = text.replaceAll(ANSI, '')
  // Its summary names those that passed only if all did.
  const passed = [...plain.matchAll(/^\s*✔ /gm)].length
  const failed = sum(
    plain,
    /^\s*(\d+) (?:tests? failed|hooks? failed|uncaught exceptions?|unhandled rejections?|test files? (?:failed|did not|could not).*)/gm,
  )
  count(suite, { passed, failed }, status)
  // A run of some files tried what it tried.
  if (flags.length === 0) process.stdout.write(`\n${attackTable(plain).join('\n')}\n`)
}

const ava = (cwd) => [path.join(cwd, 'node_modules', 'ava', 'entrypoints', 'cli.mjs'), ...flags]

const runAva = async () => countAva('ava', await tee(process.execPath, ava(root)))

/** The same suite as `nobody`, from where that user can read it, with a home of its own. */
const runAvaUnprivileged = async () => {
  const setpriv = [`--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups']
  const scratch = mkdtempSync(path.join(tmpdir(), 'nestbox-nobody-'))
  try {
    const readable = spawnSync('setpriv', [...setpriv, 'test', '-r', path.join(root, 'package.json')]).status === 0
    const tree = readable ? root : copyTree(path.join(scratch, 'tree'))
    const home = path.join(scratch, 'home')
    mkdirSync(home)
    spawnSync('chown', ['-R', `${NOBODY}:${NOBODY}`, scratch])
    const env = { HOME: home, TMPDIR: home, XDG_CACHE_HOME: path.join(home, '.cache'), USER: 'nobody' }
    process.stdout.write('\nThe same as an unprivileged user:\n')
    const args = [...setpriv, process.execPath, ...ava(tree)]
    countAva('ava (unprivileged)', await tee('setpriv', args, { env, cwd: tree }))
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

const copyTree = (to) => {
  mkdirSync(to)
  for (const name of readdirSync(root)) {
    if (name === 'target' || name === '.git') continue
    cpSync(path.join(root, name), path.join(to, name), { recursive: true, verbatimSymlinks: true })
  }
  return to
}

process.on('exit', () => {
  process.stdout.write(`\n${total.passed} passed, ${total.failed} failed\n`)
})
// Until the suites have run, the honest count is one failure: a build that fails ends the process right here.
total.failed = 1
installPrograms()
bootstrap()
total.failed = 0
if (!avaOnly) await runRust()
await runAva()
if (both && isRoot) {
  if (have('setpriv')) await runAvaUnprivileged()
  else process.stderr.write('nestbox: `setpriv` is missing; the unprivileged run is skipped.\n')
}
process.exitCode = total.failed === 0 ? 0 : 1
