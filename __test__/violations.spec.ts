// Calls that the filter reports: the first is recorded, and the nest is dead.

import { channel } from 'node:diagnostics_channel'
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'

import test from 'ava'

import {
  policy,
  type LaunchOptions,
  type PolicyBuilder,
  ProcessError,
  Sandbox,
  syscallFilter,
  type SyscallFilter,
  type Violation,
  type ViolationEvent,
} from '../index.ts'
import { verdict } from '../lib/launch/result.ts'
import { BOUNDED, have, isRoot, until } from './helpers.ts'
import { fixture } from './invariants/support.ts'

const gcc = have('gcc') ? test : test.skip
const program = have('gcc') ? fixture('supervised') : ''

/** The default preset, but for these calls. */
const reporting = (...names: string[]): SyscallFilter =>
  syscallFilter()
    .report(...names)
    .preset('default')

const shown = (): PolicyBuilder => policy().tmpfs('/tmp').proc('fresh').bind(program, '/program')

const boxed = (filter: SyscallFilter | 'unfiltered' | 'default', base = shown()): Promise<Sandbox> =>
  Sandbox.create(base.unixSockets('allow').syscalls(filter))

/** The violation of a launch that can be nothing else. */
const violationOf = async (sandbox: Sandbox, ...args: string[]): Promise<Violation> => {
  const result = await sandbox.run('/program', args, { timeout: 20_000 })
  if (result.status !== 'violation' || result.violation === undefined) throw new Error(JSON.stringify(result))
  return result.violation
}

gcc('a call that is reported is not made; without the filter it is', async (t) => {
  await using open = await boxed('unfiltered')
  t.like(await open.run('/program', ['make']), { status: 'exited', exitCode: 0, stdout: 'made' })
  await using box = await boxed(reporting('mkdir', 'mkdirat'))
  const result = await box.run('/program', ['make'])
  t.like(result, { status: 'violation', failed: true, stdout: '', timedOut: false, isCanceled: false })
  t.is(result.isolation.syscalls, 'custom')
  if (result.status !== 'violation' || result.violation === undefined) return t.fail()
  const { violation } = result
  t.is(violation.path, '/tmp/made')
  t.true(violation.syscall.startsWith('mkdir'))
  t.is(violation.arch, process.arch === 'x64' ? 'x86_64' : 'aarch64')
  t.is(violation.args.length, 6)
  for (const number of [...violation.args, violation.instructionPointer]) t.regex(number, /^0x[0-9a-f]{1,16}$/)
  t.is(violation.args[violation.syscall === 'mkdir' ? 1 : 2], '0x1c0')
  t.is(violation.pid, 2)
  t.is(violation.tid, 2)
  // A result is JSON.
  t.deepEqual(JSON.parse(JSON.stringify(violation)), violation)
})

gcc('the same in nests that were warm', async (t) => {
  await using box = await Sandbox.create(shown().syscalls(reporting('mkdir', 'mkdirat')), { warm: 2 })
  for (let index = 0; index < 4; index += 1) {
    // One after the other, so that each finds one.
    // oxlint-disable-next-line no-await-in-loop
    t.is((await violationOf(box, 'make')).path, '/tmp/made')
  }
  // The launch's own calls are no violations, whatever the policy makes of them.
  await using strict = await Sandbox.create(shown().syscalls('strict'), { warm: 1 })
  t.is((await violationOf(strict, 'make')).path, '/tmp/made')
})

gcc('nothing that the launch itself does is a violation, however it is launched', async (t) => {
  // Everything is reported: the program's first call is.
  const base = shown().mountPoint('/bound')
  await using warm = await Sandbox.create(base.syscalls(syscallFilter()), { warm: 2 })
  await using cold = await Sandbox.create(base.syscalls(syscallFilter()), { warm: 0 })
  const forms: LaunchOptions[] = [
    {},
    { files: { '/tmp/file': 'x' }, cwd: '/tmp' },
    { binds: { '/bound': path.dirname(program) } },
    { input: 'x', stderr: 'stdout', env: { A: 'x'.repeat(100_000) } },
    { stdio: ['ignore', 'pipe', 'pipe', 'ignore', 'ignore', 'inherit'], limits: { openFiles: 8, processes: 1 } },
  ]
  for (const box of [warm, cold]) {
    for (const options of forms) {
      // oxlint-disable-next-line no-await-in-loop
      const result = await box.run('/program', ['make'], { timeout: 10_000, ...options })
      if (result.status !== 'violation' || result.violation === undefined) return t.fail(JSON.stringify(result))
      t.is(result.violation.pid, 2)
      t.true(
        ['brk', 'arch_prctl', 'set_tid_address', 'prctl'].includes(result.violation.syscall),
        result.violation.syscall,
      )
    }
    // oxlint-disable-next-line no-await-in-loop
    await t.throwsAsync(box.run('/no-such-program'), { code: 'ERR_NESTBOX_EXEC' })
  }
})

test('a program has nothing of its supervisor', async (t) => {
  await using box = await Sandbox.create(policy('host-system').syscalls(reporting('mkdir', 'mkdirat')))
  for (let round = 0; round < 3; round += 1) {
    // oxlint-disable-next-line no-await-in-loop
    const result = await box.run('sh', ['-c', 'echo /proc/self/fd/*'], { stdio: ['ignore', 'pipe', 'pipe', 'inherit'] })
    t.is(result.stdout, '/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3 /proc/self/fd/4')
  }
})

gcc('paths and addresses are shown', async (t) => {
  await using box = await boxed(reporting('rename', 'renameat', 'renameat2', 'connect'))
  t.like(await violationOf(box, 'rename'), { path: '/tmp/from here', otherPath: '/tmp/to there' })
  const inet = { family: 'AF_INET', address: '192.0.2.7', port: 443 }
  t.deepEqual((await violationOf(box, 'connect', '192.0.2.7')).address, inet)
  const inet6 = { family: 'AF_INET6', address: '2001:db8::1', port: 53 }
  t.deepEqual((await violationOf(box, 'connect6', '2001:db8::1')).address, inet6)
  const unix = { family: 'AF_UNIX', path: '/run/docker.sock' }
  t.deepEqual((await violationOf(box, 'connect-unix', '/run/docker.sock')).address, unix)
})

gcc('threads and children are told apart', async (t) => {
  await using box = await boxed(reporting('mkdir', 'mkdirat'))
  t.like(await violationOf(box, 'thread'), { pid: 2, tid: 3 })
  t.like(await violationOf(box, 'child'), { pid: 3, tid: 3 })
  // Where there is no proc, the process of the program's own threads is not known.
  await using bare = await boxed(reporting('mkdir', 'mkdirat'), policy().tmpfs('/tmp').bind(program, '/program'))
  t.like(await violationOf(bare, 'make'), { pid: 2, tid: 2, path: '/tmp/made' })
  t.false('pid' in (await violationOf(bare, 'thread')))
})

gcc('what a program puts in the place of proc holds nobody up', async (t) => {
  const base = policy().tmpfs('/proc').bind(program, '/program')
  await using box = await boxed(reporting('rename', 'renameat', 'renameat2'), base)
  const result = await box.run('/program', ['trap'], { signal: AbortSignal.timeout(5000) })
  t.like(result, { status: 'violation', stdout: '' })
  t.false(result.status === 'violation' && 'pid' in (result.violation ?? {}))
  // Nor who sums up CPU time.
  await using timed = await boxed('default', base)
  const limits = { cpuTime: 100, wallTime: 400 }
  t.like(await timed.run('/program', ['trap'], { limits }), { status: 'limit-exceeded', limit: 'wallTime' })
})

gcc('what comes after the program is over is nobody’s violation', async (t) => {
  await using box = await boxed(reporting('mkdir', 'mkdirat'))
  t.like(await box.run('/program', ['orphan']), { status: 'exited', exitCode: 0 })
})

test('a violation goes before limits, kills and signals', (t) => {
  const ended = { ending: 'signaled', status: 9, limit: 'wallTime', killedByHost: true, filter: 'custom' } as const
  const host = { timedOut: true, sent: [9], overflowed: true }
  const call = { syscall: 'x', number: 1, args: [], arch: 'x86_64', instructionPointer: '0x1', tid: 2, memory: [] }
  const { memory, ...violation } = call
  t.is(memory.length, 0)
  t.deepEqual(verdict({ ...ended, violated: true, violation: call }, host, 'kill'), { status: 'violation', violation })
  t.deepEqual(verdict({ ...ended, violated: true }, host, 'kill'), { status: 'violation' })
  t.is(verdict({ ...ended, violated: false }, host, 'kill').status, 'limit-exceeded')
})

gcc('a launch that is over before its violation has none', async (t) => {
  await using box = await boxed(reporting('mkdir', 'mkdirat'))
  t.like(await box.run('/program', ['late'], { timeout: 30 }), { status: 'limit-exceeded', limit: 'wallTime' })
})

gcc('action kill says no more than that', async (t) => {
  await using box = await boxed(syscallFilter().kill('mkdir', 'mkdirat').preset('default'))
  const result = await box.run('/program', ['make'])
  t.like(result, { status: 'violation', failed: true, stdout: '' })
  t.false('violation' in result)
})

gcc('subscribers of the channel hear of it', async (t) => {
  await using box = await boxed(reporting('mkdir', 'mkdirat'))
  const heard: ViolationEvent[] = []
  const listener = (message: unknown): void => {
    const told = message as ViolationEvent
    if (told.args[1] === 'heard') heard.push(told)
  }
  channel('nestbox:violation').subscribe(listener)
  t.teardown(() => channel('nestbox:violation').unsubscribe(listener))
  const result = await box.run('/program', ['make', 'heard'])
  t.is(heard.length, 1)
  t.like(heard[0], { file: '/program', args: ['make', 'heard'], pid: result.pid })
  t.deepEqual(heard[0]?.violation, result.status === 'violation' ? result.violation : undefined)
})

gcc('reject: the error names the call', async (t) => {
  await using box = await boxed(reporting('mkdir', 'mkdirat'))
  const error = await t.throwsAsync(box.run('/program', ['make'], { reject: true }), { instanceOf: ProcessError })
  t.regex(error?.message ?? '', /^Command violated its syscall filter with mkdir(at)?: \/program make/)
})

gcc('a flood is one violation, at once, and nothing of it is let through', async (t) => {
  await using box = await boxed(reporting('mkdir', 'mkdirat'))
  for (const how of ['threads', 'forks', 'signals']) {
    const begun = performance.now()
    // oxlint-disable-next-line no-await-in-loop
    const result = await box.run('/program', ['flood', how], { timeout: 20_000 })
    t.is(result.status, 'violation', how)
    t.is(result.stdout, '', how)
    t.true(performance.now() - begun < BOUNDED, how)
  }
})

gcc('init keeps what it needs to look, and nothing else', async (t) => {
  const status = (pid: number): string => readFileSync(`/proc/${pid}/status`, 'latin1')
  await using late = await Sandbox.create(policy('host-system').syscalls(reporting('mkdir', 'mkdirat')))
  const sleeper = await late.spawn('sleep', ['20'])
  t.teardown(() => sleeper.kill())
  const init = Number(/^PPid:\s*(\d+)$/m.exec(status(sleeper.pid))?.[1])
  t.true(await until(() => /^Seccomp:\s*2$/m.test(status(init))))
  const CAP_KILL_SETGID_SETUID = 0xe0n
  const CAP_SYS_PTRACE_RESOURCE = (1n << 19n) | (1n << 24n)
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status(init))?.[1] ?? 'f'.repeat(16)}`)
  t.is(effective, isRoot ? CAP_KILL_SETGID_SETUID | CAP_SYS_PTRACE_RESOURCE : CAP_KILL_SETGID_SETUID)
})

gcc('a dead init allows nothing', async (t) => {
  await using box = await boxed(
    reporting('mkdir', 'mkdirat'),
    shown().bind('/usr', '/usr').symlink('/bin', 'usr/bin').symlink('/lib64', 'usr/lib64').symlink('/lib', 'usr/lib'),
  )
  const sandboxee = await box.spawn('sleep', ['20'])
  const init = Number(/^PPid:\s*(\d+)$/m.exec(readFileSync(`/proc/${sandboxee.pid}/status`, 'latin1'))?.[1])
  process.kill(init, 'SIGKILL')
  t.like(await sandboxee.result, { status: 'killed', signal: 'SIGKILL' })
  t.true(await until(() => !existsSync(`/proc/${sandboxee.pid}`)))
})
