// What the tests of faults share: the calls that can fail, a fork server for which they do, a look at how a program is confined, and
// what may become of a launch then.

import {
  copyFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

import test, { type ExecutionContext } from 'ava'

import {
  ForkServer,
  type LaunchOptions,
  NestboxError,
  policy,
  type PolicyBuilder,
  Sandbox,
  type SandboxOptions,
  type SpawnError,
} from '../../index.ts'
import { have, until } from '../helpers.ts'
import { family, fixture, forkServerFile, processTable, workshop } from '../invariants/support.ts'
import { program } from './support.ts'

/** They name the fork server by the environment, which is everybody's. */
export const x64 = process.arch === 'x64' && have('gcc') ? test.serial : test.serial.skip

/** Numbers on x86-64: what strace shows of all our processes, from the fork server's start to a program's exec. */
export const CALLS: Readonly<Record<string, number>> = {
  poll: 7,
  rt_sigaction: 13,
  pread64: 17,
  getpid: 39,
  socket: 41,
  sendmsg: 46,
  socketpair: 53,
  setsockopt: 54,
  clone: 56,
  execve: 59,
  fcntl: 72,
  chdir: 80,
  fchdir: 81,
  mkdir: 83,
  fchmod: 91,
  fchown: 93,
  umask: 95,
  setresuid: 117,
  setresgid: 119,
  setgroups: 116,
  setsid: 112,
  capget: 125,
  capset: 126,
  personality: 135,
  statfs: 137,
  setpriority: 141,
  pivot_root: 155,
  prctl: 157,
  chroot: 161,
  mount: 165,
  umount2: 166,
  sethostname: 170,
  waitid: 247,
  keyctl: 250,
  openat: 257,
  mkdirat: 258,
  newfstatat: 262,
  symlinkat: 266,
  fchmodat: 268,
  ppoll: 271,
  unshare: 272,
  signalfd4: 289,
  dup3: 292,
  prlimit64: 302,
  setns: 308,
  seccomp: 317,
  getrandom: 318,
  memfd_create: 319,
  execveat: 322,
  statx: 332,
  open_tree: 428,
  move_mount: 429,
  fsopen: 430,
  pidfd_open: 434,
  clone3: 435,
  close_range: 436,
  openat2: 437,
  mount_setattr: 442,
  landlock_create_ruleset: 444,
  landlock_add_rule: 445,
  landlock_restrict_self: 446,
}

export const ERRORS = ['EPERM', 'ENOMEM', 'EAGAIN', 'ENOSPC', 'EMFILE'] as const

/** What of `/proc/PID/status` says how a process is confined. */
const FIELDS =
  /^(?:Umask|Uid|Gid|Groups|NSpid|NSpgid|NSsid|SigBlk|SigIgn|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Seccomp_filters|Speculation\w*):/

const PR_NAMES = ['user', 'mnt', 'pid', 'net', 'ipc', 'uts', 'cgroup'] as const

/** How a process is confined, as the host sees it. */
const confinement = (pid: number): Readonly<Record<string, unknown>> => {
  const read = (name: string): string[] => readFileSync(`/proc/${pid}/${name}`, 'latin1').trim().split('\n')
  return {
    status: read('status')
      .filter((line) => FIELDS.test(line))
      .map((line) => line.replace(/^(NS\w+:).*\t(\d+)$/, '$1 $2')),
    limits: read('limits'),
    // Without the numbers that are another's each time.
    mounts: read('mountinfo')
      // Below proc, where Landlock finds what its rule is about: without Landlock there is none, and nobody reaches it.
      .filter((line) => !line.includes(' - mqueue '))
      .map((line) => line.replace(/^\d+ \d+ \d+:\d+ /, '').replace(/ master:\d+/, ''))
      .toSorted(),
    shared: PR_NAMES.filter(
      (name) => readlinkSync(`/proc/${pid}/ns/${name}`) === readlinkSync(`/proc/self/ns/${name}`),
    ),
    descriptors: readdirSync(`/proc/${pid}/fd`).length,
    root: readdirSync(`/proc/${pid}/root`).toSorted(),
  }
}

export const shown = () =>
  policy()
    .bind(program(), '/attack')
    .bind('/usr/share', '/share')
    .tmpfs('/tmp')
    .file('/file', 'content')
    .symlink('/link', 'file')
    .mountPoint('/point')
    .proc('fresh')
    .dev('minimal')
    .hostname('sealed')
    // An init that can't wait for its socket has its clock.
    .limits({ wallTime: 1500 })

export interface Trial {
  readonly error?: unknown
  readonly found?: Readonly<Record<string, unknown>>
  /** It ended before it was looked at: the refusal is the program's own, too. */
  readonly over?: boolean
  readonly server: number
}

/** What `launches` finds on a fork server of its own, for which what the settings say is refused. */
export const trialOf = async (
  from: PolicyBuilder,
  options: SandboxOptions,
  launches: (sandbox: Sandbox) => Promise<Trial['found']>,
): Promise<Trial> => {
  let pid = 0
  try {
    await using server = await ForkServer.start()
    pid = server.pid
    await using sandbox = await Sandbox.create(from, { server, ...options })
    const found = await launches(sandbox)
    return found === undefined ? { over: true, server: pid } : { found, server: pid }
  } catch (error) {
    return { error, server: pid }
  }
}

/** What the last look was at: a nest that was found warm, or not, and what its result said was skipped. */
export const last = { warm: false, skipped: [] as readonly string[] }

/** How one launch is confined, as long as it lives. */
export const look = async (
  sandbox: Sandbox,
  options: LaunchOptions,
): Promise<Readonly<Record<string, unknown>> | undefined> => {
  const running = await sandbox.spawn('/attack', ['processes', 'victim'], { ...options, stdout: 'ignore' })
  try {
    return confinement(running.pid)
  } catch (error) {
    // What is exiting can't be looked at, and each of its files says so in its own way (ENOENT, ESRCH, EINVAL, EACCES). It is
    // over at once then, long before its limit of time.
    const over = running.result.then(
      () => true,
      () => true,
    )
    if (await Promise.race([over, delay(500, false)])) return undefined
    throw error
  } finally {
    running.kill()
    const result = await running.result.catch(() => undefined)
    last.warm = result?.timings.warm === true
    last.skipped = result?.isolation.skipped ?? []
  }
}

const before = process.env['NESTBOX_FORKSERVER']

/** A fork server for which calls are refused. */
export interface Refusing {
  /** These from the first on; or, with `skip`, one after so many. Only those, if that is said, whose argument is this. */
  refuse(number: number, errno: number, skip?: number, argument?: readonly [index: number, value: number]): void
  /** Whether the one call was made. */
  wasMade(): boolean
}

export const refusing = (t: ExecutionContext): Refusing => {
  const directory = mkdtempSync(path.join(workshop(), 'faults-'))
  copyFileSync(fixture('inject'), path.join(directory, 'inject'))
  copyFileSync(forkServerFile(), path.join(directory, 'nestbox-forkserver'))
  process.env['NESTBOX_FORKSERVER'] = path.join(directory, 'inject')
  t.teardown(() => {
    if (before === undefined) delete process.env['NESTBOX_FORKSERVER']
    else process.env['NESTBOX_FORKSERVER'] = before
  })
  const [settings, hit] = [path.join(directory, 'inject.conf'), path.join(directory, 'inject.hit')]
  return {
    refuse(number, errno, skip, argument) {
      rmSync(hit, { force: true })
      const [index, value] = argument ?? [0, 0]
      const words = [number, errno, index, argument === undefined ? 0 : 0xff_ff_ff_ff, value]
      writeFileSync(settings, `${[...words, ...(skip === undefined ? [] : [skip])].join(' ')}\n`)
    },
    wasMade: () => existsSync(hit),
  }
}

/** No call has this number. */
export const NONE = 4095

/** What became of a launch, in words; a failure has its record, and nothing is left of anything. */
export const judged = async (
  t: ExecutionContext,
  what: string,
  trial: Trial,
  whole: Trial['found'],
): Promise<string> => {
  const { error, found, over, server } = trial
  // Nothing half-made is left of it.
  if (server !== 0) t.true(await until(() => family(server).length === 0), what)
  if (error === undefined) {
    if (over !== true) t.deepEqual(found, whole, what)
    return over === true ? 'over' : 'whole'
  }
  if (!(error instanceof NestboxError)) throw error
  const { step, syscall, errnoName } = error as SpawnError
  t.true(typeof step === 'string' && step !== '', `${what}: ${error.message}`)
  return `${step} ${syscall} ${errnoName}`
}

export const nothingLeft = async (t: ExecutionContext): Promise<void> => {
  t.true(
    await until(() =>
      processTable().every(({ parent, name }) => parent !== process.pid || !name.startsWith('nestbox')),
    ),
  )
}
