// Limits, one by one: what happens at each, and that a launch can only tighten them.

import path from 'node:path'

import test from 'ava'

import { type Launcher, type LaunchOptions, policy, RequestError, run, Sandbox, unsandboxed } from '../index.ts'
import { runs, scratch } from './helpers.ts'
import { sh, withProbe } from './inside.ts'

const base = () => withProbe(policy('host-system'))

const MiB = 1024 ** 2

// ---- time ---------------------------------------------------------------------------------------------------------------

test('wallTime: the whole nest is killed when it is over', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ wallTime: 200 }))
  const result = await sh(sandbox, 'trap "" TERM INT; sleep 60 & echo before; sleep 60')
  t.like(result, {
    status: 'limit-exceeded',
    limit: 'wallTime',
    signal: 'SIGKILL',
    timedOut: true,
    failed: true,
    stdout: 'before',
  })
  t.true(result.durationMs >= 200)
  t.is(result.isolation.limits.wallTime, 200)
  t.false(runs(result.pid))
})

test('timeout is the same', async (t) => {
  const result = await run('sleep', ['60'], { timeout: 100 })
  t.like(result, { status: 'limit-exceeded', limit: 'wallTime', timedOut: true, isCanceled: false })
})

test('a blocked event loop does not stretch wallTime', async (t) => {
  const sandbox = await Sandbox.create(base())
  const program = await sandbox.spawn('sh', ['-c', 'trap "" TERM; sleep 60'], { limits: { wallTime: 100 } })
  const end = Date.now() + 400
  while (Date.now() < end);
  // Not a moment for any timer of the host's has passed.
  t.false(runs(program.pid))
  const result = await program.result
  t.like(result, { status: 'limit-exceeded', limit: 'wallTime' })
})

test('cpuTime: summed over processes', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ cpuTime: 300 }))
  const result = await sandbox.run('/probe', ['burn', '3'])
  t.like(result, { status: 'limit-exceeded', limit: 'cpuTime', signal: 'SIGKILL', timedOut: false })
  const { userCpuMs, systemCpuMs } = result.resourceUsage
  // No process alone used as much; and it was not let run on for long.
  t.true(userCpuMs + systemCpuMs >= 250, String(userCpuMs + systemCpuMs))
  t.true(userCpuMs + systemCpuMs < 2000, String(userCpuMs + systemCpuMs))
})

test('cpuTime: of children that are gone counts as well', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ cpuTime: 300 }))
  const script = 'while :; do sh -c "i=0; while [ \\$i -lt 20000 ]; do i=\\$((i+1)); done"; done'
  t.like(await sh(sandbox, script), { status: 'limit-exceeded', limit: 'cpuTime' })
})

test('sleeping costs no cpuTime', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ cpuTime: 200 }))
  t.like(await sandbox.run('sleep', ['0.4']), { status: 'exited', exitCode: 0 })
})

// ---- counts -------------------------------------------------------------------------------------------------------------

test('processes: a fork beyond is refused, the program goes on', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ processes: 10 }))
  const result = await sandbox.run('/probe', ['forks', '50'])
  t.is(result.stdout, '9 EAGAIN')
  t.is(result.status, 'exited')
  t.is((await sandbox.run('/probe', ['threads', '50'])).stdout, '9 EAGAIN')
})

test('processes: of this nest, not of all that run at the time', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ processes: 10 }))
  const running = await Promise.all(Array.from({ length: 5 }, () => sandbox.run('/probe', ['forks', '9'])))
  t.deepEqual(
    running.map(({ stdout }) => stdout),
    Array.from({ length: 5 }, () => '9 ok'),
  )
})

test('a fork bomb is contained, and gone when it is over', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ processes: 30 }))
  const result = await sh(sandbox, 'bomb() { bomb | bomb & }; bomb; sleep 60', { timeout: 300, stderr: 'ignore' })
  t.like(result, { status: 'limit-exceeded', limit: 'wallTime' })
  t.is((await sandbox.run('echo', ['fine'])).stdout, 'fine')
})

test('openFiles', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ openFiles: 20 }))
  t.is((await sandbox.run('/probe', ['fds', '100'])).stdout, '19 EMFILE')
})

test('the clock runs from the exec, also where init has to wait for a processor then', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ wallTime: 20_000 }))
  const busy = await Promise.all(
    Array.from({ length: 16 }, () => sandbox.spawn('sh', ['-c', 'while :; do :; done'], { stdio: 'ignore' })),
  )
  const sleeps = await Promise.all(Array.from({ length: 24 }, () => sandbox.run('sleep', ['0.2'])))
  for (const { timings } of sleeps) t.true(timings.execMs >= 199, `${timings.execMs} ms`)
  await Promise.all(busy.map((program) => program[Symbol.asyncDispose]()))
})

// ---- sizes --------------------------------------------------------------------------------------------------------------

test('fileSize: beyond it the program is ended by the kernel, and the limit is named', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ fileSize: '64KiB' }))
  const result = await sandbox.run('dd', ['if=/dev/zero', 'of=/tmp/a', 'bs=4k', 'count=100'], {
    outputs: { a: { path: '/tmp/a', maxBytes: '1MiB' } },
  })
  t.like(result, { status: 'limit-exceeded', limit: 'fileSize', signal: 'SIGXFSZ' })
  t.is(result.outputs.a.length, 65_536)
})

test('signals that tell of a limit tell of none where it was not reached', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ fileSize: Infinity, cpuTime: 10_000 }))
  for (const signal of ['SIGXFSZ', 'SIGXCPU'] as const) {
    // oxlint-disable-next-line no-await-in-loop
    const result = await sh(sandbox, `kill -${signal.slice(3)} $$`)
    t.like(result, { status: 'signaled', signal, limitsHit: [] })
  }
})

test('disk: a full tmpfs is ENOSPC, and a limit that was hit', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ disk: '1MiB' }))
  const result = await sh(sandbox, 'head -c 2M /dev/zero > /tmp/a || echo refused')
  t.like(result, { status: 'exited', stdout: 'refused', limitsHit: ['disk'] })
  t.deepEqual((await sh(sandbox, 'head -c 500K /dev/zero > /tmp/a')).limitsHit, [])
})

test('addressSpacePerProcess', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ addressSpacePerProcess: '256MiB' }))
  t.is((await sandbox.run('/probe', ['map', String(512 * MiB)])).stdout, 'ENOMEM')
  t.is((await sandbox.run('/probe', ['map', String(64 * MiB)])).stdout, 'ok')
})

test('core: no core file by default', async (t) => {
  const result = await sh(
    { run },
    'ulimit -c; ulimit -c unlimited 2> /dev/null || echo refused; sh -c "kill -ABRT \\$\\$"; ls /tmp',
  )
  t.regex(result.stdout, /^0\nrefused/)
  t.notRegex(result.stdout, /core$/)
})

// ---- output -------------------------------------------------------------------------------------------------------------

const flood = ['flood', '1', '3000000', 'x']

test('output: past it the nest is killed', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ output: '1MiB' }))
  const result = await sandbox.run('sh', ['-c', '/probe flood 1 3000000 x; sleep 60'])
  t.like(result, { status: 'limit-exceeded', limit: 'output', isMaxBuffer: true, timedOut: false })
  t.true(result.stdout.length <= MiB)
  t.true(result.stdoutBytes > MiB)
  t.is((await sandbox.run('/probe', ['flood', '1', String(MiB), 'x'])).status, 'exited')
})

test('output: both streams count together', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ output: 1000 }))
  const fits = await sh(sandbox, '/probe flood 1 500 x; /probe flood 2 500 y')
  t.like(fits, { status: 'exited', stdout: 'x'.repeat(500), stderr: 'y'.repeat(500), limitsHit: [] })
  const not = await sh(sandbox, '/probe flood 1 500 x; /probe flood 2 501 y; sleep 60')
  t.like(not, { status: 'limit-exceeded', limit: 'output' })
})

test('output: keep-head keeps the first bytes, and counts all', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ output: 1000 }))
  const script = '/probe flood 1 900 a; /probe flood 1 900 b; /probe flood 1 2000000 c'
  const result = await sh(sandbox, script, { onOverflow: 'keep-head' })
  t.like(result, { status: 'exited', exitCode: 0, failed: false, isMaxBuffer: true })
  t.is(result.stdout, 'a'.repeat(900) + 'b'.repeat(100))
  t.is(result.stdoutBytes, 2_001_800)
  t.deepEqual(result.limitsHit, ['output'])
})

test('output: keep-tail keeps the last bytes, and counts all', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ output: 1000 }))
  const script = '/probe flood 1 2000000 a; /probe flood 1 900 b; /probe flood 1 300 c'
  const result = await sh(sandbox, script, { onOverflow: 'keep-tail' })
  t.like(result, { status: 'exited', exitCode: 0, isMaxBuffer: true })
  t.is(result.stdout, 'b'.repeat(700) + 'c'.repeat(300))
  t.is(result.stdoutBytes, 2_001_200)
})

test('output: counts when it is streamed, too', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ output: '100KiB' }))
  const program = await sandbox.spawn('sh', ['-c', '/probe flood 1 3000000 x; sleep 60'])
  let bytes = 0
  for await (const chunk of program.stdout) bytes += (chunk as Buffer).length
  const result = await program.result
  t.like(result, { status: 'limit-exceeded', limit: 'output', isMaxBuffer: true })
  t.true(bytes <= 102_400, String(bytes))
  const head = await sandbox.spawn('/probe', flood, { onOverflow: 'keep-head' })
  bytes = 0
  for await (const chunk of head.stdout) bytes += (chunk as Buffer).length
  t.is(bytes, 102_400)
  t.like(await head.result, { status: 'exited', stdoutBytes: 3_000_000, isMaxBuffer: true })
})

test.serial('output: a flood is bounded in the host', async (t) => {
  const before = process.memoryUsage.rss()
  const result = await sh({ run }, 'exec /usr/bin/yes', {
    timeout: 2000,
    onOverflow: 'keep-tail',
    limits: { output: '64KiB' },
  })
  t.is(result.status, 'limit-exceeded')
  t.is(result.stdout.length, 65_535, 'the last newline is stripped')
  t.true(result.stdoutBytes > 10 * MiB)
  t.true(process.memoryUsage.rss() - before < 150 * MiB)
})

test.serial('output: what nobody reads of a stream is bounded in the host, too', async (t) => {
  const sandbox = await Sandbox.create(base())
  const limits = { output: '64KiB' } as const
  const script = ['-c', 'yes | head -c 300000000; echo end']
  const unread = await sandbox.spawn('sh', script, { buffer: true, onOverflow: 'keep-tail', limits })
  const result = await unread.result
  t.like(result, { status: 'exited', stdoutBytes: 300_000_004, isMaxBuffer: true })
  t.is(result.stdout.length, 65_535, 'the last newline is stripped')
  t.true(result.stdout.endsWith('y\nend'))
  t.true(unread.stdout.readableLength <= MiB, String(unread.stdout.readableLength))

  // Whoever keeps up gets all of it.
  const read = await sandbox.spawn('sh', script, { buffer: true, onOverflow: 'keep-tail', limits })
  let bytes = 0
  for await (const chunk of read.stdout) bytes += (chunk as Buffer).length
  t.is(bytes, 300_000_004)
  t.true((await read.result).stdout.endsWith('y\nend'))
})

test('output: is in force where a stream comes through the host', async (t) => {
  const sandbox = await Sandbox.create(base())
  const file = path.join(scratch(t), 'file')
  const reported = async (launcher: Launcher, options: LaunchOptions): Promise<boolean> =>
    'output' in (await launcher.run('/bin/true', [], options)).isolation.limits
  for (const stdout of ['ignore', 'inherit', { file }, { fd: 1, unsafe: true }] as const) {
    /* oxlint-disable no-await-in-loop -- the one after the other, for what is reported is remembered */
    t.false(await reported(sandbox, { stdout, stderr: 'ignore' }), JSON.stringify(stdout))
    t.false(await reported(sandbox, { stdout, stderr: 'stdout' }), JSON.stringify(stdout))
    t.true(await reported(sandbox, { stdout }), JSON.stringify(stdout))
    t.true(await reported(sandbox, { stdout: 'pipe', stderr: 'ignore', buffer: false }))
    /* oxlint-enable no-await-in-loop */
  }
  t.false(await reported(unsandboxed, { stdio: 'ignore', env: {} }))
  t.true(await reported(unsandboxed, { env: {} }))
  const program = await sandbox.spawn('true', [], { stdin: 'pipe', stderr: 'ignore' })
  t.is((await program.result).isolation.limits.output, 10 * MiB)
})

// ---- tightening ---------------------------------------------------------------------------------------------------------

test('a launch may only tighten', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ wallTime: 20_000, output: 1000, processes: 10 }))
  const tight = await sandbox.run('/probe', ['forks', '50'], { limits: { processes: 5, wallTime: 10_000 } })
  t.is(tight.stdout, '4 EAGAIN')
  t.like(tight.isolation.limits, { processes: 5, wallTime: 10_000, output: 1000 })
  for (const limits of [{ wallTime: 20_001 }, { output: '2KiB' }, { processes: Infinity }] as const) {
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(sandbox.run('true', [], { limits }), { instanceOf: RequestError })
    t.regex(error?.message ?? '', /only tighten/)
  }
  await t.throwsAsync(sandbox.run('true', [], { timeout: 30_000 }), { instanceOf: RequestError })
})

test('limits that are lifted are not there', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ wallTime: Infinity, processes: Infinity, output: Infinity }))
  const result = await sandbox.run('/probe', ['flood', '1', String(12 * MiB), 'x'])
  t.like(result, { status: 'exited', stdoutBytes: 12 * MiB })
  for (const name of ['wallTime', 'processes', 'output'] as const) t.false(name in result.isolation.limits, name)
})
