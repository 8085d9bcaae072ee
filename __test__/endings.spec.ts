// How a launch ends, and how the caller hears of it: statuses, aborts, grace periods, rejections, and what the result says.

import { setTimeout as sleep } from 'node:timers/promises'

import test from 'ava'

import { AbortError, policy, ProcessError, run, Sandbox, SpawnError } from '../index.ts'
import { runs } from './helpers.ts'
import { firstLine, sh, withProbe } from './inside.ts'

// ---- by itself ----------------------------------------------------------------------------------------------------------

test('exit codes', async (t) => {
  for (const exitCode of [0, 1, 42, 255]) {
    // oxlint-disable-next-line no-await-in-loop
    const result = await sh({ run }, `exit ${exitCode}`)
    t.like(result, { status: 'exited', exitCode, failed: exitCode !== 0 })
    t.false('signal' in result)
  }
})

test('signals', async (t) => {
  for (const signal of ['SIGSEGV', 'SIGABRT', 'SIGTERM', 'SIGKILL', 'SIGUSR1'] as const) {
    // oxlint-disable-next-line no-await-in-loop
    const result = await sh({ run }, `kill -${signal.slice(3)} $$`)
    t.like(result, { status: 'signaled', signal, failed: true })
    t.false('exitCode' in result)
  }
})

test('the program counts, whatever its children do', async (t) => {
  const result = await sh({ run }, '(exit 9) & (kill -9 $(sh -c "echo \\$PPID")) & wait; exit 0')
  t.like(result, { status: 'exited', exitCode: 0 })
})

test('what is left behind is killed before the result is there', async (t) => {
  const sandbox = await Sandbox.create()
  const source = `
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        import signal
        for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)
        os.write(1, b"up\\n"); time.sleep(60)
    os._exit(0)
time.sleep(0.2)`
  const program = await sandbox.spawn('python3', ['-c', source])
  t.is(await firstLine(program), 'up')
  t.like(await program.result, { status: 'exited', exitCode: 0 })
  // Its pipe is at its end: nobody holds it any more.
  for await (const line of program.lines()) t.fail(line)
})

test('a call that the filter forbids by death is a violation; else it is an error inside', async (t) => {
  const sandbox = await Sandbox.create(withProbe(policy('host-system')))
  const refused = await sandbox.run('python3', [
    '-c',
    'import os; os.unshare(os.CLONE_NEWUSER) if hasattr(os, "unshare") else __import__("ctypes").CDLL(None, use_errno=True).unshare(0x10000000) and exit(7)',
  ])
  t.true(refused.failed)
  t.true(refused.status === 'violation' || (refused.status === 'exited' && refused.exitCode !== 0), refused.status)
})

const cold = () => Sandbox.create(policy('host-system'), { warm: 0 })

test('the result is JSON, and says what it was', async (t) => {
  const result = await sh(await cold(), 'head -c 30000000 /dev/zero | tail -c 1 > /dev/null')
  const copy = JSON.parse(JSON.stringify(result)) as Record<string, unknown>
  t.like(copy, { status: 'exited', file: 'sh', stdout: '', limitsHit: [], outputs: {} })
  t.deepEqual(copy['args'], ['-c', 'head -c 30000000 /dev/zero | tail -c 1 > /dev/null'])
  const { resourceUsage, durationMs, timings } = result
  t.true(resourceUsage.peakMemoryBytes > 100_000 && resourceUsage.peakMemoryBytes < 1024 ** 3)
  t.is(resourceUsage.memorySource, 'max-rss')
  t.true(resourceUsage.minorFaults > 0)
  t.true(durationMs > 0 && timings.setupMs > 0 && timings.execMs > 0)
  t.true(Math.abs(durationMs - timings.setupMs - timings.execMs) < 1)
  t.is(timings.warm, false)
})

test('memory and time of a program that uses some', async (t) => {
  const sandbox = await Sandbox.create(withProbe(policy('host-system')))
  const result = await sandbox.run('/probe', ['touch-memory', String(64 * 1024 ** 2)])
  t.true(result.resourceUsage.peakMemoryBytes > 64 * 1024 ** 2)
  t.true(result.resourceUsage.peakMemoryBytes < 80 * 1024 ** 2)
  t.true(result.resourceUsage.userCpuMs + result.resourceUsage.systemCpuMs > 0)
})

test('the steps of the set-up are named, in order, and add up', async (t) => {
  const { timings } = await (await cold()).run('true')
  const names = timings.steps.map(({ step }) => step)
  for (const step of ['clone-init', 'mount-proc', 'mount-tmpfs', 'exec'])
    t.true(names.includes(step), `${step}: ${names.join()}`)
  t.is(names.at(-1), 'exec')
  for (const { step, ms } of timings.steps) t.true(ms >= 0, step)
  const sum = timings.steps.reduce((all, { ms }) => all + ms, 0)
  t.true(Math.abs(sum - timings.setupMs) < 0.5, `${sum} of ${timings.setupMs}`)
})

// ---- aborted ------------------------------------------------------------------------------------------------------------

test('aborted before the launch: nothing is launched', async (t) => {
  const reason = new Error('no more')
  for (const launch of ['run', 'spawn'] as const) {
    // oxlint-disable-next-line no-await-in-loop
    const sandbox = await Sandbox.create()
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(sandbox[launch]('true', [], { signal: AbortSignal.abort(reason) }), {
      instanceOf: AbortError,
    })
    t.is(error?.cause, reason)
    t.is(error?.code, 'ABORT_ERR')
    t.is(error?.name, 'AbortError')
    t.is(error?.result, undefined)
    t.is(sandbox.stats().launched, 0)
  }
})

test('aborted while it runs: it is dead when the promise rejects', async (t) => {
  const sandbox = await Sandbox.create()
  const controller = new AbortController()
  const program = await sandbox.spawn('sh', ['-c', 'trap "" TERM; echo partial; sleep 60'], {
    signal: controller.signal,
    buffer: true,
  })
  t.is(await firstLine(program), 'partial')
  const reason = { any: 'thing' }
  controller.abort(reason)
  const error = await t.throwsAsync(program.result, { instanceOf: AbortError })
  t.is(error?.cause, reason)
  t.like(error?.result, { status: 'killed', signal: 'SIGKILL', isCanceled: true, failed: true, stdout: 'partial' })
  t.false(runs(program.pid))
})

test('aborted at any moment, the promise rejects and the next launch works', async (t) => {
  const sandbox = await Sandbox.create()
  await Promise.all(
    Array.from({ length: 40 }, async (_, index) => {
      const controller = new AbortController()
      const running = sandbox.run('sleep', ['60'], { signal: controller.signal })
      setTimeout(() => controller.abort(), index / 2)
      await t.throwsAsync(running, { instanceOf: AbortError })
    }),
  )
  t.is(sandbox.stats().running, 0)
  t.is((await sandbox.run('echo', ['fine'])).stdout, 'fine')
})

test('AbortSignal.timeout()', async (t) => {
  // The time is for the program: the fork server is started before.
  await run('true')
  const error = await t.throwsAsync(run('sleep', ['60'], { signal: AbortSignal.timeout(500) }), {
    instanceOf: AbortError,
  })
  t.like(error?.cause, { name: 'TimeoutError' })
  t.is(error?.result?.timedOut, false)
})

test('an abort that comes too late changes nothing', async (t) => {
  const controller = new AbortController()
  const result = await run('true', [], { signal: controller.signal })
  controller.abort()
  await sleep(10)
  t.like(result, { status: 'exited', isCanceled: false })
})

// ---- with grace ---------------------------------------------------------------------------------------------------------

test('killSignal lets the program clean up', async (t) => {
  const script = 'trap "echo cleaned > /tmp/log; exit 0" TERM; while :; do sleep 0.01; done'
  const result = await sh({ run }, script, {
    timeout: 2000,
    killSignal: 'SIGTERM',
    outputs: { log: { path: '/tmp/log', maxBytes: 100 } },
  })
  t.like(result, { status: 'limit-exceeded', limit: 'wallTime', timedOut: true, failed: true })
  t.is(Buffer.from(result.outputs.log).toString(), 'cleaned\n')
})

test('forceKillAfterDelay ends what does not listen', async (t) => {
  const result = await sh({ run }, 'trap "" TERM; while :; do sleep 0.01; done', {
    timeout: 50,
    killSignal: 'SIGTERM',
    forceKillAfterDelay: 50,
  })
  t.like(result, { status: 'limit-exceeded', limit: 'wallTime', signal: 'SIGKILL' })
})

test('killSignal and an abort', async (t) => {
  const controller = new AbortController()
  const sandbox = await Sandbox.create()
  const script = 'trap "exit 5" INT; echo up; while :; do sleep 0.01; done'
  const program = await sandbox.spawn('sh', ['-c', script], { signal: controller.signal, killSignal: 'SIGINT' })
  await firstLine(program)
  controller.abort()
  const error = await t.throwsAsync(program.result, { instanceOf: AbortError })
  t.like(error?.result, { status: 'exited', exitCode: 5, isCanceled: true })
})

// ---- rejecting ----------------------------------------------------------------------------------------------------------

test('reject: a failed program is a ProcessError', async (t) => {
  const error = await t.throwsAsync(sh({ run }, 'echo out; echo why >&2; exit 3', { reject: true }), {
    instanceOf: ProcessError,
  })
  t.is(error?.code, 'ERR_NESTBOX_PROCESS')
  t.like(error?.result, { status: 'exited', exitCode: 3, stdout: 'out' })
  t.regex(error?.message ?? '', /exit code 3/)
  t.regex(error?.message ?? '', /why/)
  t.is((await run('true', [], { reject: true })).failed, false)
})

test('reject: every way to fail', async (t) => {
  for (const [script, options, message] of [
    ['kill -SEGV $$', {}, /SIGSEGV/],
    ['sleep 60', { timeout: 30 }, /timed out after 30 milliseconds/],
    ['true', { outputs: { a: { path: '/tmp/a', maxBytes: 1 } } }, /outputs a/],
  ] as const) {
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(sh({ run }, script, { ...options, reject: true }), { instanceOf: ProcessError })
    t.regex(error?.message ?? '', message)
  }
})

test("reject does not make our failures the program's", async (t) => {
  const error = await t.throwsAsync(run('true', [], { cwd: '/none', reject: true }), { instanceOf: SpawnError })
  t.false(error instanceof ProcessError)
})
