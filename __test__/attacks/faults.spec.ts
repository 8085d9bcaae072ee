// Every system call that our own processes make on the way to a running program is refused in turn. Whatever happens
// then, the launch fails with a record of why, or the program runs in exactly the sandbox that it would have had: as the
// host sees it in proc, field by field. Single refusals with the step they have to name are in
// `../invariants/death.spec.ts`.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { copyFileSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import path from 'node:path'

import test from 'ava'

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
    if (/^(?:ENOENT|ESRCH)$/.test(String((error as NodeJS.ErrnoException).code))) return undefined
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

x64('every refused call makes the launch fail with a reason, or changes nothing of the sandbox', async (t) => {
  t.timeout(120_000)
  const directory = mkdtempSync(path.join(workshop(), 'faults-'))
  copyFileSync(fixture('inject'), path.join(directory, 'inject'))
  copyFileSync(forkServerFile(), path.join(directory, 'nestbox-forkserver'))
  process.env['NESTBOX_FORKSERVER'] = path.join(directory, 'inject')
  t.teardown(() => {
    if (before === undefined) delete process.env['NESTBOX_FORKSERVER']
    else process.env['NESTBOX_FORKSERVER'] = before
  })
  const refuse = (number: number, errno: number): void =>
    writeFileSync(path.join(directory, 'inject.conf'), `${number} ${errno}\n`)

  // No call has this number.
  refuse(4095, 1)
  const { found: whole, error: none } = await attempt()
  t.is(none, undefined)
  t.true(wasWarm)
  t.like(whole, { cold: { shared: [] }, warm: { shared: [] } })
  const told: string[] = []
  let index = 0
  for (const [name, number] of Object.entries(CALLS)) {
    const errnoName = ERRORS[index++ % ERRORS.length] ?? 'EPERM'
    const what = `${name} ${errnoName}`
    refuse(number, constants.errno[errnoName])
    const { error, found, over, server } = await attempt()
    if (error === undefined) {
      if (over !== true) t.deepEqual(found, whole, what)
      told.push(`${what}: ${over === true ? 'over' : 'whole'}`)
    } else {
      if (!(error instanceof NestboxError)) throw error
      const { step, syscall, errno } = error as SpawnError
      t.true(typeof step === 'string' && step !== '', `${what}: ${error.message}`)
      told.push(`${what}: ${step} ${syscall} ${errno}`)
    }
    // Nothing half-made is left of it.
    if (server !== 0) t.true(await until(() => family(server).length === 0), what)
  }
  t.log(told.join('\n'))
  t.true(told.filter((line) => !/: (?:over|whole)$/.test(line)).length > 20, 'most are needed')
  refuse(4095, 1)
  t.deepEqual((await attempt()).found, whole)
  t.true(
    await until(() =>
      processTable().every(({ parent, name }) => parent !== process.pid || !name.startsWith('nestbox')),
    ),
  )
})
