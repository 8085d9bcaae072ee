// What the attack suite shares: the program that attacks (`src/`), how it is run inside and outside of a sandbox, what it
// prints, and a look at the parts of the machine that no sandboxee may change.

import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { constants, hostname, tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'

import test, { type ExecutionContext } from 'ava'

import { ForkServer, type Launcher, type LaunchOptions, policy, type PolicyBuilder } from '../../index.ts'
import { have } from '../helpers.ts'
import { fixture, forkServerFile, workshop } from '../invariants/support.ts'

/** With the filter, and with nothing but the namespaces. */
export const filters = ['default', 'unfiltered'] as const

export type Filter = (typeof filters)[number]

/** A test that needs the program; without a compiler it is skipped, and its title says why. */
export const attack = (title: string, body: (t: ExecutionContext) => Promise<void>): void => {
  if (have('gcc')) test(title, body)
  else test.skip(`${title} (skipped: gcc is needed to compile the attacks)`, body)
}

let built: string | undefined

/** The host path of the program: compiled once per test file, gone when its process ends. */
export const program = (): string => {
  if (built !== undefined) return built
  const directory = mkdtempSync(path.join(tmpdir(), 'nestbox-attacks-'))
  process.on('exit', () => rmSync(directory, { recursive: true, force: true }))
  const to = path.join(directory, 'attack')
  const from = path.join(import.meta.dirname, 'src')
  const sources = readdirSync(from)
    .filter((name) => name.endsWith('.c'))
    .map((name) => path.join(from, name))
  const flags = ['-O1', '-Wall', '-static', '-o', to, ...sources]
  execFileSync('gcc', flags, { stdio: ['ignore', 'ignore', 'inherit'] })
  chmodSync(directory, 0o755)
  chmodSync(to, 0o755)
  built = to
  return to
}

/** The host's system and the program, at `/attack`. */
export const attackable = (filter: Filter = 'default'): PolicyBuilder =>
  policy('host-system').bind(program(), '/attack').syscalls(filter)

/** Their numbers, on every architecture. */
export const LANDLOCK = { landlock_create_ruleset: 444, landlock_add_rule: 445, landlock_restrict_self: 446 }

/**
 * A fork server for which a call fails, where an argument, masked, has a value if that is said. It is named by the
 * environment, which is everybody's: for tests that run one after the other.
 */
export const refusing = async (
  t: ExecutionContext,
  number: number,
  errno: number,
  ...argument: readonly number[]
): Promise<ForkServer> => {
  const directory = mkdtempSync(path.join(workshop(), 'refusing-'))
  chmodSync(directory, 0o755)
  copyFileSync(fixture('inject'), path.join(directory, 'inject'))
  copyFileSync(forkServerFile(), path.join(directory, 'nestbox-forkserver'))
  writeFileSync(path.join(directory, 'inject.conf'), `${[number, errno, ...argument].join(' ')}\n`)
  process.env['NESTBOX_FORKSERVER'] = path.join(directory, 'inject')
  try {
    const server = await ForkServer.start()
    t.teardown(() => server.destroy())
    return server
  } finally {
    delete process.env['NESTBOX_FORKSERVER']
  }
}

/** A fork server on a kernel without Landlock, as far as it can tell: whose nests rest on the namespaces alone. */
export const withoutLandlock = (t: ExecutionContext): Promise<ForkServer> =>
  refusing(t, LANDLOCK.landlock_create_ruleset, constants.errno.ENOSYS)

/** What an attack printed: outcome by attempt, in order. */
export type Outcomes = ReadonlyMap<string, string>

const outcomes = (text: string): Outcomes =>
  new Map(
    text
      .trim()
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => [line.slice(0, line.lastIndexOf(' ')), line.slice(line.lastIndexOf(' ') + 1)]),
  )

/** The attempts that succeeded. */
export const done = (found: Outcomes): string[] =>
  [...found].filter(([, outcome]) => outcome === 'done').map(([what]) => what)

/** Runs an attack in a sandbox, to its end. */
export const inside = async (
  launcher: Pick<Launcher, 'run'>,
  args: readonly string[],
  options: LaunchOptions = {},
): Promise<Outcomes> => {
  const result = await launcher.run('/attack', args, { ...options, buffer: true, encoding: 'utf8' })
  if (result.status !== 'exited' || result.exitCode !== 0) {
    throw new Error(`${args.join(' ')}: ${JSON.stringify(result)}`)
  }
  return outcomes(String(result.stdout))
}

/** Runs it on the host, as the user that the tests run as, or as another. */
export const outside = async (args: readonly string[], uid?: number): Promise<Outcomes> => {
  const ids = uid === undefined ? {} : { uid, gid: uid }
  const { stdout } = await promisify(execFile)(program(), args, { ...ids, timeout: 30_000, maxBuffer: 64 << 20 })
  return outcomes(stdout)
}

/** A process of the host, to be attacked: sleeps until it is killed. With a channel to us, if asked, as descriptor 3. */
export const victim = async (t: ExecutionContext, channel = false): Promise<ChildProcess> => {
  const stdio = ['ignore', 'pipe', 'ignore', channel ? 'pipe' : 'ignore'] as const
  const child = spawn(program(), ['processes', 'victim'], { stdio: [...stdio] })
  t.teardown(() => child.kill('SIGKILL'))
  for await (const line of createInterface({ input: child.stdout as NodeJS.ReadableStream }))
    if (line.startsWith('victim')) break
  return child
}

export const alive = (child: ChildProcess): boolean => child.exitCode === null && child.signalCode === null

const readable = (file: string): string => {
  try {
    return readFileSync(file, 'latin1').trim()
  } catch {
    return ''
  }
}

/** What of the machine is nobody's to change from a sandbox. */
export const machine = (): Readonly<Record<string, string>> => ({
  hostname: hostname(),
  domain: readable('/proc/sys/kernel/domainname'),
  boot: readable('/proc/sys/kernel/random/boot_id'),
  swaps: readable('/proc/swaps').replaceAll(/\d+/g, ''),
  modules: existsSync('/proc/modules') ? readable('/proc/modules').replaceAll(/ .*/g, '') : '',
  mounts: readable('/proc/self/mountinfo'),
  core: readable('/proc/sys/kernel/core_pattern'),
  modprobe: readable('/proc/sys/kernel/modprobe'),
  // To the nearest ten seconds: a clock that is being steered moves by milliseconds.
  clock: String(Math.round((Date.now() - performance.timeOrigin - performance.now()) / 10_000)),
})
