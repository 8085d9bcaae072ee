// Every system call that our own processes make on the way to a running program is refused in turn, with each of five errors:
// from the first on, and each single one of those that a launch makes. Whatever happens then, the launch fails with a record of
// why, or the program runs in exactly the sandbox that it would have had: as the host sees it in proc, field by field. What of
// it is left afterwards is nothing. Single refusals with the step they have to name are in `../invariants/death.spec.ts`.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

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
import { constants } from 'node:os'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

import test, { type ExecutionContext } from 'ava'

import { ForkServer, NestboxError, type LaunchOptions, policy, Sandbox, type SpawnError } from '../../index.ts'
import { have, until } from '../helpers.ts'
import { family, fixture, forkServerFile, processTable, workshop } from '../invariants/support.ts'
import { program } from './support.ts'

const x64 = process.arch === 'x64' && have('gcc') ? test.serial : test.serial.skip

/** Numbers on x86-64: what strace shows of all our processes, from the fork server's start to a program's exec. */
const CALLS: Readonly<Record<string, number>> = {
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

const ERRORS = ['EPERM', 'ENOMEM', 'EAGAIN', 'ENOSPC', 'EMFILE'] as const

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
      .map((line) => line.replace(/^\d+ \d+ \d+:\d+ /, '').replace(/ master:\d+/, ''))
      .toSorted(),
    shared: PR_NAMES.filter(
      (name) => readlinkSync(`/proc/${pid}/ns/${name}`) === readlinkSync(`/proc/self/ns/${name}`),
    ),
    descriptors: readdirSync(`/proc/${pid}/fd`).length,
    root: readdirSync(`/proc/${pid}/root`).toSorted(),
  }
}

const shown = () =>
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

const launchOptions = { binds: { '/point': '/usr/lib' }, files: { '/tmp/a/b': 'x' }, cwd: '/tmp' }

interface Trial {
  readonly error?: unknown
  readonly found?: Readonly<Record<string, unknown>>
  /** It ended before it was looked at: the refusal is the program's own, too. */
  readonly over?: boolean
  readonly server: number
}

/** The last launch found its nest warm. */
let wasWarm = false

/** How one launch is confined, as long as it lives. */
const look = async (
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
    wasWarm = result?.timings.warm === true
  }
}

/**
 * Two launches on a fork server of its own, for which what the settings say is refused: one that prepares its nest with
 * all that there is to prepare, and one in a nest that was kept warm, if that could be had.
 */
const attempt = async (): Promise<Trial> => {
  let pid = 0
  try {
    await using server = await ForkServer.start()
    pid = server.pid
    await using sandbox = await Sandbox.create(shown(), { server })
    const cold = await look(sandbox, launchOptions)
    await sandbox.warm(1)
    const warm = await look(sandbox, {})
    const found = cold !== undefined && warm !== undefined ? { cold, warm } : undefined
    return found === undefined ? { over: true, server: pid } : { found, server: pid }
  } catch (error) {
    return { error, server: pid }
  }
}

const before = process.env['NESTBOX_FORKSERVER']

/** A fork server for which calls are refused. */
interface Refusing {
  /** These from the first on; or, with `skip`, one after so many. */
  refuse(number: number, errno: number, skip?: number): void
  /** Whether the one call was made. */
  wasMade(): boolean
}

const refusing = (t: ExecutionContext): Refusing => {
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
    refuse(number, errno, skip) {
      rmSync(hit, { force: true })
      writeFileSync(settings, `${number} ${errno}${skip === undefined ? '' : ` 0 0 0 ${skip}`}\n`)
    },
    wasMade: () => existsSync(hit),
  }
}

/** No call has this number. */
const NONE = 4095

/** What became of a launch, in words; a failure has its record, and nothing is left of anything. */
const judged = async (t: ExecutionContext, what: string, trial: Trial, whole: Trial['found']): Promise<string> => {
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

const nothingLeft = async (t: ExecutionContext): Promise<void> => {
  t.true(
    await until(() =>
      processTable().every(({ parent, name }) => parent !== process.pid || !name.startsWith('nestbox')),
    ),
  )
}

x64('every refused call makes the launch fail with a reason, or changes nothing of the sandbox', async (t) => {
  t.timeout(600_000)
  const { refuse } = refusing(t)
  refuse(NONE, 1)
  const { found: whole, error: none } = await attempt()
  t.is(none, undefined)
  t.true(wasWarm)
  t.like(whole, { cold: { shared: [] }, warm: { shared: [] } })
  const told: string[] = []
  for (const [name, number] of Object.entries(CALLS)) {
    for (const errnoName of ERRORS) {
      const what = `${name} ${errnoName}`
      refuse(number, constants.errno[errnoName])
      told.push(`${what}: ${await judged(t, what, await attempt(), whole)}`)
    }
  }
  t.log(told.join('\n'))
  t.true(told.filter((line) => !/: (?:over|whole)$/.test(line)).length > 20 * ERRORS.length, 'most are needed')
  refuse(NONE, 1)
  t.deepEqual((await attempt()).found, whole)
  await nothingLeft(t)
})

/** Steps of a launch that finds nothing ready: each of them fails by itself. */
const STEPS = [
  'start-forkserver',
  'create-initial-namespaces',
  'join-initial-namespaces',
  'fork-template',
  'mount-root',
  'create-directory',
  'open-bind-source',
  'verify-bind-source',
  'set-bind-attributes',
  'attach-bind',
  'write-file',
  'create-symlink',
  'enter-root',
  'detach-old-root',
  'seal-root',
  'mount-template-proc',
  'clone-init',
  'prepare-init',
  'mount-proc',
  'mask-proc',
  'mount-tmpfs',
  'mount-devpts',
  'attach-launch-bind',
  'write-launch-file',
  'set-hostname',
  'clone-sandboxee',
  'create-session',
  'map-fds',
  'create-user-namespace',
  'write-id-maps',
  'set-limits',
  'change-directory',
  'reset-signals',
  'drop-bounding-set',
  'set-no-new-privs',
  'install-filter',
  'exec',
]

/**
 * One launch on a fork server of its own that makes all of its nest, and its template: one with a root that is written to is for
 * one launch only. What else is made ahead of a launch (the initial namespaces, networks) is tried again for it.
 */
const attemptCold = async (): Promise<Trial> => {
  let pid = 0
  try {
    await using server = await ForkServer.start()
    pid = server.pid
    await using sandbox = await Sandbox.create(shown().rootWritable(), { server, warm: 0 })
    const cold = await look(sandbox, launchOptions)
    return cold === undefined ? { over: true, server: pid } : { found: { cold }, server: pid }
  } catch (error) {
    return { error, server: pid }
  }
}

x64(
  'every single call that is refused makes the launch fail at its step, or changes nothing of the sandbox',
  async (t) => {
    t.timeout(600_000)
    const { refuse, wasMade } = refusing(t)
    refuse(NONE, 1)
    const { found: whole, error: none } = await attemptCold()
    t.is(none, undefined)
    const told: string[] = []
    let index = 0
    const sweep = async (): Promise<void> => {
      for (const [name, number] of Object.entries(CALLS)) {
        // Not every launch makes as many: some is work in the background.
        for (let skip = 0, misses = 0; misses < 4; skip += 1) {
          const errnoName = ERRORS[index++ % ERRORS.length] ?? 'EPERM'
          const what = `${name} ${skip} ${errnoName}`
          refuse(number, constants.errno[errnoName], skip)
          const trial = await attemptCold()
          misses = wasMade() ? 0 : misses + 1
          if (misses === 0) told.push(`${what}: ${await judged(t, what, trial, whole)}`)
        }
      }
    }
    const missed = (): string[] => {
      const failed = new Set(told.map((line) => /: (\S+) /.exec(line)?.[1]))
      return STEPS.filter((step) => !failed.has(step))
    }
    await sweep()
    // On a machine that is busy the work in the background may hide a step: what was missed gets another chance.
    if (missed().length > 0) await sweep()
    t.log(told.join('\n'))
    t.deepEqual(missed(), [])
    await nothingLeft(t)
  },
)
