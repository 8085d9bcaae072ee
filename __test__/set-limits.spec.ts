// Other limits for a program that runs: `sandboxee.setLimits()`.

import test, { type ExecutionContext } from 'ava'

import {
  type Launcher,
  type LaunchOptions,
  NestboxError,
  policy,
  RequestError,
  Sandbox,
  type Sandboxee,
  unsandboxed,
} from '../index.ts'
import { flightOf } from '../lib/launch/sandboxee.ts'
import { delay, runs } from './helpers.ts'
import { firstLine, withProbe } from './inside.ts'

const base = () => withProbe(policy('host-system'))

/** Limits under which a test may take its time. */
const roomy = () => base().limits({ wallTime: 60_000, cpuTime: 60_000 })

const python = <const O extends LaunchOptions = {}>(launcher: Pick<Launcher, 'spawn'>, code: string, options?: O) =>
  launcher.spawn('/usr/bin/python3', ['-c', code], options)

/** Restarts the clock of a launch, as whoever hands work to a program that was started ahead does. */
const restart = async (program: object, limits = {}): Promise<void> => flightOf(program)?.setLimits(limits, true)

const refused = async (
  t: ExecutionContext,
  program: Pick<Sandboxee, 'setLimits'>,
  limits: Parameters<Sandboxee['setLimits']>[0],
  path: string,
  message: RegExp,
) => {
  const error = await t.throwsAsync(program.setLimits(limits), { instanceOf: RequestError })
  t.deepEqual(error?.issues[0]?.path, [path])
  t.regex(error?.message ?? '', message)
}

// ---- wall time ----------------------------------------------------------------------------------------------------------

test('wallTime: one that has passed ends the program at once', async (t) => {
  const sandbox = await Sandbox.create(roomy())
  const program = await sandbox.spawn('sleep', ['60'])
  await delay(50)
  await program.setLimits({ wallTime: 1 })
  const result = await program.result
  t.like(result, { status: 'limit-exceeded', limit: 'wallTime', signal: 'SIGKILL', timedOut: true })
  t.is(result.isolation.limits.wallTime, 1)
  t.true(result.durationMs < 30_000)
  t.false(runs(program.pid))
})

test('wallTime: counts from exec, whenever it is set', async (t) => {
  const sandbox = await Sandbox.create(roomy())
  const program = await sandbox.spawn('sleep', ['60'])
  await delay(200)
  await program.setLimits({ wallTime: 500 })
  const { timings, ...result } = await program.result
  t.like(result, { status: 'limit-exceeded', limit: 'wallTime' })
  t.true(timings.execMs >= 500, String(timings.execMs))
  t.true(timings.execMs < 10_000, String(timings.execMs))
})

test("wallTime: can be raised, up to the policy's", async (t) => {
  const sandbox = await Sandbox.create(base().limits({ wallTime: 30_000 }))
  const program = await sandbox.spawn('sleep', ['1.2'], { timeout: 1000 })
  await program.setLimits({ wallTime: 20_000 })
  await refused(t, program, { wallTime: 30_001 }, 'wallTime', /30001 is above 30000/)
  await refused(t, program, { wallTime: Infinity }, 'wallTime', /above the policy's/)
  const result = await program.result
  t.like(result, { status: 'exited', exitCode: 0 })
  t.is(result.isolation.limits.wallTime, 20_000)
})

test('wallTime: is lifted where the policy has none', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ wallTime: Infinity }))
  const program = await sandbox.spawn('sleep', ['1.4'], { timeout: 1200 })
  await program.setLimits({ wallTime: Infinity })
  const result = await program.result
  t.is(result.status, 'exited')
  t.false('wallTime' in result.isolation.limits)
})

test('wallTime: a warm nest, one that makes way, with a filter and without, keep it alike', async (t) => {
  for (const syscalls of ['default', 'unfiltered'] as const) {
    // oxlint-disable-next-line no-await-in-loop
    await using sandbox = await Sandbox.create(roomy().hostname('warm').syscalls(syscalls), { warm: 2 })
    for (const launch of [{}, { files: { '/tmp/a': 'makes the nest make way' } }]) {
      // oxlint-disable-next-line no-await-in-loop
      await sandbox.warm(2)
      // oxlint-disable-next-line no-await-in-loop
      const program = await sandbox.spawn('sleep', ['60'], launch)
      // oxlint-disable-next-line no-await-in-loop
      await program.setLimits({ wallTime: 1 })
      // oxlint-disable-next-line no-await-in-loop
      t.like(await program.result, { status: 'limit-exceeded', limit: 'wallTime', timings: { warm: true } })
    }
  }
})

test('wallTime: with a killSignal, the grace moves along', async (t) => {
  const sandbox = await Sandbox.create(roomy())
  const script = 'trap "echo bye; exit 0" TERM; echo up; while :; do sleep 0.01; done'
  const program = await sandbox.spawn('sh', ['-c', script], { killSignal: 'SIGTERM', buffer: true, timeout: 30_000 })
  t.is(await firstLine(program), 'up')
  await program.setLimits({ wallTime: 5 })
  t.like(await program.result, { status: 'limit-exceeded', limit: 'wallTime', timedOut: true, stdout: 'up\nbye' })
  const later = await sandbox.spawn('sleep', ['2.5'], { killSignal: 'SIGTERM', timeout: 2000 })
  await later.setLimits({ wallTime: 20_000 })
  t.like(await later.result, { status: 'exited', exitCode: 0 })
})

test('the clock begins anew when work is handed over', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ wallTime: 3000 }))
  const program = await sandbox.spawn('sleep', ['60'])
  await delay(1000)
  await restart(program)
  const { timings, ...result } = await program.result
  t.like(result, { status: 'limit-exceeded', limit: 'wallTime' })
  t.true(timings.execMs >= 4000, String(timings.execMs))
})

// ---- CPU time -----------------------------------------------------------------------------------------------------------

const spin = (seconds: number) => `
import os, sys, time
print("up", flush=True)
while time.process_time() < ${seconds}: pass
print("done")`

test('cpuTime: one that is used up ends the nest', async (t) => {
  const sandbox = await Sandbox.create(roomy())
  const program = await python(sandbox, spin(60))
  t.is(await firstLine(program), 'up')
  await program.setLimits({ cpuTime: 1 })
  const result = await program.result
  t.like(result, { status: 'limit-exceeded', limit: 'cpuTime', signal: 'SIGKILL' })
  t.true(result.resourceUsage.userCpuMs + result.resourceUsage.systemCpuMs < 20_000)
})

test('cpuTime: can be given to a launch that had none', async (t) => {
  const sandbox = await Sandbox.create(base())
  const program = await python(sandbox, spin(60))
  t.is(await firstLine(program), 'up')
  await program.setLimits({ cpuTime: 200 })
  t.like(await program.result, { status: 'limit-exceeded', limit: 'cpuTime' })
})

test('cpuTime: can be raised, beyond what RLIMIT_CPU was, for all processes', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ cpuTime: 30_000 }))
  // A limit of 900 ms is RLIMIT_CPU of two seconds, of which each of both processes uses more.
  const code = `
import os, time, sys
child = os.fork()
print("up", flush=True)
sys.stdin.readline() if child else time.sleep(0.5)
while time.process_time() < 2.3: pass
if child: sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))`
  const program = await python(sandbox, code, { limits: { cpuTime: 900 }, stdin: 'pipe' })
  t.is(await firstLine(program), 'up')
  await program.setLimits({ cpuTime: 20_000 })
  program.stdin.end('go\n')
  const result = await program.result
  t.like(result, { status: 'exited', exitCode: 0 })
  t.is(result.isolation.limits.cpuTime, 20_000)
})

test('the CPU time begins anew when work is handed over', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ cpuTime: 1000 }))
  const code = `
import sys, time
while time.process_time() < 0.7: pass
print("warm", flush=True)
sys.stdin.readline()
while time.process_time() < ${0.7 + 0.6}: pass
print("worked", flush=True)
while True: pass`
  const program = await python(sandbox, code, { stdin: 'pipe', buffer: true })
  t.is(await firstLine(program), 'warm')
  await restart(program)
  program.stdin.end('go\n')
  const result = await program.result
  t.like(result, { status: 'limit-exceeded', limit: 'cpuTime', stdout: 'warm\nworked' })
  t.true(result.resourceUsage.userCpuMs + result.resourceUsage.systemCpuMs >= 1600)
})

// ---- errors -------------------------------------------------------------------------------------------------------------

test('what is no limit, or above the policy, is refused and changes nothing', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ wallTime: 30_000, output: 1000, openFiles: 100 }))
  const program = await sandbox.spawn('sleep', ['0.3'], { limits: { openFiles: 50 } })
  await refused(t, program, { output: 1001 }, 'output', /above the policy's/)
  await refused(t, program, { openFiles: 51 }, 'openFiles', /only be tightened while the program runs: 51 is above 50/)
  await refused(t, program, { disk: '1MiB' }, 'disk', /stays/)
  await refused(t, program, { wallTime: 0 }, 'wallTime', /.*/)
  const nonsense = program.setLimits({ walltime: 1 } as never)
  await t.throwsAsync(nonsense, { instanceOf: RequestError, message: /walltime/ })
  await t.throwsAsync(program.setLimits(undefined as never), { instanceOf: RequestError })
  const both = await t.throwsAsync(program.setLimits({ wallTime: 40_000, disk: 1e6 }), { instanceOf: RequestError })
  t.is(both?.issues.length, 2)
  await program.setLimits({})
  await program.setLimits({ wallTime: undefined })
  t.like(await program.result, { status: 'exited', isolation: { limits: { wallTime: 30_000, openFiles: 50 } } })
})

test('a launch that is over has no limits to change', async (t) => {
  const sandbox = await Sandbox.create(base())
  const program = await sandbox.spawn('true')
  await program.result
  await t.throwsAsync(program.setLimits({ wallTime: 1000 }), { instanceOf: NestboxError, code: 'ERR_NESTBOX_ENDED' })
  const dying = await sandbox.spawn('sleep', ['60'])
  dying.kill()
  const late = await dying.setLimits({ wallTime: 1000 }).then(
    () => undefined,
    (error: unknown) => error,
  )
  t.true(late instanceof NestboxError && late.code === 'ERR_NESTBOX_ENDED', String(late))
  t.is((await dying.result).status, 'killed')
})

test('many changes at once are answered in order, or refused', async (t) => {
  const sandbox = await Sandbox.create(roomy())
  const program = await sandbox.spawn('sleep', ['60'])
  const all = await Promise.allSettled(
    Array.from({ length: 40 }, (_, at) => program.setLimits({ wallTime: 50_000 - at })),
  )
  const done = all.filter(({ status }) => status === 'fulfilled').length
  t.true(done >= 16, String(done))
  for (const one of all) if (one.status === 'rejected') t.regex(String(one.reason), /EAGAIN/)
  await program.setLimits({ wallTime: 1 })
  t.like(await program.result, { status: 'limit-exceeded', limit: 'wallTime' })
})

// ---- without isolation --------------------------------------------------------------------------------------------------

test('without isolation: wallTime and cpuTime', async (t) => {
  const env = { PATH: '/usr/bin:/bin' }
  const sleeps = await unsandboxed.spawn('sleep', ['60'], { env, timeout: 50_000 })
  await sleeps.setLimits({ wallTime: Infinity })
  await sleeps.setLimits({ wallTime: 1 })
  t.like(await sleeps.result, { status: 'limit-exceeded', limit: 'wallTime' })
  const spins = await python(unsandboxed, spin(60), { env })
  t.is(await firstLine(spins), 'up')
  await spins.setLimits({ cpuTime: 100 })
  t.like(await spins.result, { status: 'limit-exceeded', limit: 'cpuTime' })
})

// ---- of each process ----------------------------------------------------------------------------------------------------

/** Prints the limits of itself and a child whenever it is asked. */
const tell = `
import os, resource, sys
names = ['RLIMIT_NPROC', 'RLIMIT_NOFILE', 'RLIMIT_FSIZE', 'RLIMIT_AS', 'RLIMIT_STACK', 'RLIMIT_CORE']
read, write = os.pipe()
answer, tell = os.pipe()
def limits(): return repr([resource.getrlimit(getattr(resource, name)) for name in names])
if os.fork() == 0:
    while os.read(read, 1): os.write(tell, limits().encode())
    os._exit(0)
print("up", flush=True)
for line in sys.stdin:
    os.write(write, b"x")
    print(limits() == os.read(answer, 4096).decode(), limits(), flush=True)`

test('limits of processes are tightened for all of them, for good', async (t) => {
  for (const proc of ['fresh', 'none'] as const) {
    // oxlint-disable-next-line no-await-in-loop
    await using sandbox = await Sandbox.create(roomy().proc(proc))
    // oxlint-disable-next-line no-await-in-loop
    const program = await python(sandbox, tell, { stdin: 'pipe' })
    const lines = program.lines()[Symbol.asyncIterator]()
    const next = async (): Promise<unknown> => (await lines.next()).value
    // oxlint-disable-next-line no-await-in-loop
    t.is(await next(), 'up')
    // oxlint-disable-next-line no-await-in-loop
    await program.setLimits({
      processes: 40,
      openFiles: 50,
      fileSize: '1MiB',
      addressSpacePerProcess: '4GiB',
      stack: '1MiB',
      core: 0,
    })
    program.stdin.write('?\n')
    const expected = '(40, 40), (50, 50), (1048576, 1048576), (4294967296, 4294967296), (1048576, 1048576), (1, 1)'
    // oxlint-disable-next-line no-await-in-loop
    t.is(await next(), `True [${expected}]`, proc)
    // oxlint-disable-next-line no-await-in-loop
    await refused(t, program, { openFiles: 51 }, 'openFiles', /51 is above 50/)
    // oxlint-disable-next-line no-await-in-loop
    await refused(t, program, { addressSpacePerProcess: Infinity }, 'addressSpacePerProcess', /only be tightened/)
    program.stdin.end()
    // oxlint-disable-next-line no-await-in-loop
    const { isolation, ...result } = await program.result
    t.like(result, { status: 'exited', exitCode: 0 })
    t.like(isolation.limits, { processes: 40, openFiles: 50, core: 0 })
  }
})

test('no fork escapes a tightening, however fast', async (t) => {
  const sandbox = await Sandbox.create(roomy())
  // Each process forks its successor and ends; a few of such chains at a time, one with a memory that takes long to copy.
  const chains = `
import os, resource, sys, time
if os.fork() == 0: ballast = bytearray(64 << 20)
for _ in range(3): os.fork()
while True:
    if os.fork(): os._exit(0) if os.getpid() != 2 else os.wait()
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if os.path.exists("/tmp/set") and soft != 50: os.write(1, b"escaped %d\\n" % soft)`
  const code = `
import os, sys
if os.fork() == 0:
    os.setsid()
    exec(${JSON.stringify(chains)})
print("up", flush=True)
sys.stdin.readline()
import time; time.sleep(1)
open("/tmp/set", "w").close()
time.sleep(0.4)`
  const program = await python(sandbox, code, { stdin: 'pipe', buffer: true })
  t.is(await firstLine(program), 'up')
  await delay(300)
  await program.setLimits({ openFiles: 50 })
  program.stdin.end('go\n')
  t.like(await program.result, { status: 'exited', exitCode: 0, stdout: 'up' })
})

test('output: is raised and lowered on the host', async (t) => {
  const sandbox = await Sandbox.create(base().limits({ output: 2000 }))
  const code = `
import sys
for line in sys.stdin: print("x" * 999, flush=True)`
  const program = await python(sandbox, code, { stdin: 'pipe', buffer: true, limits: { output: 1000 } })
  await program.setLimits({ output: 2000 })
  program.stdin.write('\n\n')
  const lines = program.lines()[Symbol.asyncIterator]()
  t.is(String((await lines.next()).value).length, 999)
  t.is(String((await lines.next()).value).length, 999)
  await refused(t, program, { output: 2001 }, 'output', /above the policy's/)
  // More than that has passed already.
  await program.setLimits({ output: 1500 })
  const result = await program.result
  t.like(result, { status: 'limit-exceeded', limit: 'output', isMaxBuffer: true, stdoutBytes: 2000 })
  t.is(result.isolation.limits.output, 1500)
  // Without a policy nothing is too much.
  const free = await unsandboxed.spawn('/usr/bin/head', ['-c', '3000', '/dev/zero'], {
    env: {},
    buffer: true,
    limits: { output: 5000 },
  })
  await free.setLimits({ output: Infinity })
  t.like(await free.result, { status: 'exited', stdoutBytes: 3000 })
})

test('without isolation: limits of processes', async (t) => {
  const program = await python(unsandboxed, tell, { env: {}, stdin: 'pipe' })
  const lines = program.lines()[Symbol.asyncIterator]()
  t.is((await lines.next()).value, 'up')
  await program.setLimits({ openFiles: 50, fileSize: 4096 })
  program.stdin.end('?\n')
  t.regex(String((await lines.next()).value), /^True \[\([^)]*\), \(50, 50\), \(4096, 4096\), /)
  t.like(await program.result, { status: 'exited', exitCode: 0 })
})
