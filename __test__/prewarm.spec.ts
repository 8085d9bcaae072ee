// Programs that are started ahead: what one does with its work is what a program does that the launch starts itself, but for
// when it was started.

import test, { type ExecutionContext } from 'ava'
import { execFile } from 'node:child_process'
import { chmodSync, closeSync, existsSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import { setTimeout as after } from 'node:timers/promises'

import {
  ForkServer,
  policy,
  type PolicyBuilder,
  type Prewarm,
  RequestError,
  Sandbox,
  type SandboxOptions,
  SpawnError,
  syscallFilter,
} from '../index.ts'
import { runs, scratch, until } from './helpers.ts'
import { descriptors, family, processTable, statusLine } from './invariants/support.ts'

/** Reads its work to the end, and says it in brackets. */
const ECHO: Prewarm = { file: 'bash', args: ['-c', 'echo "[$(cat <&1023)]"'] }

/** A sandbox that keeps a program started, on a fork server of its own; and whether there are as many as there shall be. */
const prewarmed = async (
  t: ExecutionContext,
  prewarm: Prewarm,
  from: PolicyBuilder = policy('host-system'),
  options: SandboxOptions = {},
): Promise<{ server: ForkServer; sandbox: Sandbox; ready: () => Promise<boolean> }> => {
  const server = await ForkServer.start()
  t.teardown(() => server.destroy())
  const sandbox = await Sandbox.create(from, { server, prewarm, ...options })
  const ready = (): Promise<boolean> => until(() => sandbox.stats().prewarm.ready === (prewarm.count ?? 1))
  return { server, sandbox, ready }
}

/** The programs of this name that nests of a fork server were started for; not what those started. */
const named = (server: ForkServer, program: string): number[] =>
  family(server.pid)
    .filter(({ name, pid }) => name === program && /\s2$/.test(statusLine(pid, 'NSpid')))
    .map(({ pid }) => pid)

/** What a process was executed with; nothing, if it is gone. */
const commandLine = (pid: number): string => {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'latin1')
  } catch {
    return ''
  }
}

test('what can’t be is refused', async (t) => {
  const wrong = [
    { prewarm: {} },
    { prewarm: { file: '' } },
    { prewarm: { file: 'cat', count: 0 } },
    { prewarm: { file: 'cat', cwd: 'relative' } },
    { prewarm: { file: 'cat', stdin: 'pipe' } },
    { prewarm: { file: 'cat', outputs: { x: { path: '/tmp/x', maxBytes: 1, to: '/tmp/y' } } } },
  ]
  for (const options of wrong) {
    // oxlint-disable-next-line no-await-in-loop
    await t.throwsAsync(Sandbox.create(policy('host-system'), options as never), { instanceOf: RequestError })
  }
})

/** How many pipes this process has open. */
const openPipes = (): number => descriptors('self').filter((open) => open.includes(' pipe:')).length

// ---- slow starters -----------------------------------------------------------------------------------------------------------

/** Says where it is in a directory of the host's, and when it was there (the clock is the host's): a slow starter. */
const PYTHON = `
import time
def now(): return str(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
began = now()
import ast, decimal, email.message, http.client, json, sqlite3, unittest, xml.dom.minidom
loaded = now()
open('/mark/loaded', 'w').close()
with open(1023, 'rb') as channel: work = channel.read()
print(began, loaded, now(), work.decode()[::-1])
`

const NODE = `
import { createReadStream, writeFileSync } from 'node:fs'
import { text } from 'node:stream/consumers'
import 'node:http'; import 'node:zlib'
const now = () => process.hrtime.bigint()
const began = now() - BigInt(Math.round(process.uptime() * 1e9)), loaded = now()
writeFileSync('/mark/loaded', '')
const work = await text(new (await import('node:net')).Socket({ fd: 1023 }))
console.log([began, loaded, now(), [...work].reverse().join('')].join(' '))
`

/** A directory that programs leave their marks in, and a policy that shows it to them. */
const marked = (t: ExecutionContext): { mark: string; from: PolicyBuilder } => {
  const mark = scratch(t)
  chmodSync(mark, 0o777)
  const from = policy('host-system').bind(mark, '/mark', { writable: true }).bind(process.execPath, '/opt/node')
  return { mark, from }
}

for (const [name, prewarm] of [
  ['python', { file: '/usr/bin/python3', args: ['-c', PYTHON] }],
  ['node', { file: '/opt/node', args: ['--input-type=module', '-e', NODE] }],
] as const) {
  test(`${name}: it has loaded all before it is given its work, and does the same as a cold one`, async (t) => {
    const { mark, from } = marked(t)
    const { sandbox } = await prewarmed(t, prewarm, from)
    t.true(await until(() => existsSync(path.join(mark, 'loaded')), 30_000))
    const asked = process.hrtime.bigint()
    const warm = await sandbox.run(prewarm.file, prewarm.args, { work: 'work' })
    const known = process.hrtime.bigint()
    t.is(warm.stderr, '')
    const [began, loaded, got] = warm.stdout.split(' ').slice(0, 3).map(BigInt) as [bigint, bigint, bigint]
    t.true(began < loaded && loaded < asked && asked < got && got < known, warm.stdout)
    t.like(warm.timings, { prewarmed: true, warm: true, queueMs: warm.timings.queueMs })
    t.deepEqual(
      warm.timings.steps.map(({ step }) => step),
      ['hand-over'],
    )

    const cold = await Sandbox.create(from, { warm: 0 })
    const other = await cold.run(prewarm.file, prewarm.args, { work: 'work' })
    t.false(other.timings.prewarmed)
    t.deepEqual(
      [warm, other].map(({ stdout }) => stdout.split(' ')[3]),
      ['krow', 'krow'],
    )
    t.deepEqual(warm.isolation, other.isolation)
    t.deepEqual(Object.keys(warm).toSorted(), Object.keys(other).toSorted())
    t.like(warm, { status: other.status, exitCode: 0, file: other.file, args: other.args, command: other.command })
  })
}

// ---- taken once, and replaced --------------------------------------------------------------------------------------------------

test('each is used once and replaced; none is a launch before it is taken', async (t) => {
  const script = 'echo $RANDOM >> /tmp/used; cat <&1023 > /dev/null; wc -l < /tmp/used; readlink /proc/self/ns/mnt'
  const prewarm = { file: 'bash', args: ['-c', script], count: 2 }
  const { server, sandbox, ready } = await prewarmed(t, prewarm, policy('host-system'), { maxConcurrency: 1 })
  t.deepEqual(sandbox.stats().prewarm, { ready: 2, taken: 0, died: 0 })
  t.like(sandbox.stats(), { running: 0, launched: 0 })
  t.like(server.stats(), { running: 0, launched: 0 })
  const results = []
  for (let round = 0; round < 4; round += 1) {
    // oxlint-disable-next-line no-await-in-loop
    t.true(await ready())
    // oxlint-disable-next-line no-await-in-loop
    results.push(await sandbox.run(prewarm.file, prewarm.args, { work: '' }))
  }
  t.deepEqual(
    results.map(({ timings, stdout }) => [timings.prewarmed, stdout.split('\n')[0]]),
    Array.from({ length: 4 }, () => [true, '1']),
  )
  t.like(sandbox.stats(), { launched: 4, completed: 4, errored: 0, prewarm: { taken: 4, died: 0 } })
  t.like(server.stats(), { running: 0, launched: 4 })
  // More at once than there are: the rest start cold.
  t.true(await ready())
  const wide = await prewarmed(t, prewarm)
  const burst = await Promise.all(
    [1, 2, 3, 4, 5].map(() => wide.sandbox.run(prewarm.file, prewarm.args, { work: 'x' })),
  )
  t.is(burst.filter(({ timings }) => timings.prewarmed).length, 2)
  t.true(burst.every(({ failed, stdout }) => !failed && stdout.startsWith('1\n')))
})

test('spawn takes one, with or without work', async (t) => {
  const prewarm = { file: 'bash', args: ['-c', 'read line <&1023; echo "$$ $line" >&1023; read line <&1023; exit 7'] }
  const { sandbox, ready } = await prewarmed(t, prewarm)
  const talking = await sandbox.spawn(prewarm.file, prewarm.args, { comms: true })
  t.true(runs(talking.pid))
  talking.comms.write('hello\n')
  const answer = await new Promise((resolve) => {
    talking.comms.once('data', (data: Buffer) => resolve(data.toString()))
  })
  t.is(answer, '2 hello\n')
  talking.comms.end()
  const result = await talking.result
  t.like(result, { status: 'exited', exitCode: 7, pid: talking.pid })
  t.true(result.timings.prewarmed)
  await ready()
  const killed = await sandbox.spawn(prewarm.file, prewarm.args, { work: 'hello\n', comms: true })
  killed.kill('SIGTERM')
  const ended = await killed.result
  t.like(ended, { status: 'killed', signal: 'SIGTERM' })
  t.true(ended.timings.prewarmed)
})

test('what the program could have seen otherwise starts cold', async (t) => {
  const directory = scratch(t)
  const nowhere = openSync('/dev/null', 'r')
  t.teardown(() => closeSync(nowhere))
  const from = policy('host-system').mountPoint('/in')
  const prewarm = { ...ECHO, env: { GIVEN: 'value' }, cwd: '/usr', outputs: { o: { path: '/tmp/o', maxBytes: 9 } } }
  const { sandbox, ready } = await prewarmed(t, prewarm, from)
  const { file, args = [], env, cwd, outputs } = prewarm
  const same = { env, cwd, work: 'x', outputs }
  const others = [
    [file, [...args, 'more'], same],
    ['/bin/bash', args, same],
    [file, args, { ...same, env: {} }],
    [file, args, { ...same, cwd: '/' }],
    [file, args, { ...same, argv0: 'other' }],
    [file, args, { ...same, stdin: 'pipe', input: 'x' }],
    [file, args, { ...same, stderr: 'stdout' }],
    [file, args, { ...same, stdout: 'ignore' }],
    [file, args, { ...same, stdio: ['ignore', 'pipe', 'pipe', { fd: nowhere }] }],
    [file, args, { ...same, files: { '/tmp/f': '' } }],
    [file, args, { ...same, binds: { '/in': directory } }],
    [file, args, { ...same, limits: { openFiles: 1023 } }],
    [file, args, { ...same, crashReport: true }],
    [file, args, { ...same, outputs: {} }],
  ] as const
  for (const [program, given, options] of others) {
    // oxlint-disable-next-line no-await-in-loop
    const { timings } = await sandbox.run(program, given, options as never)
    t.false(timings.prewarmed, JSON.stringify(options))
  }
  // A program without a channel is another one, too.
  t.false((await sandbox.run(file, ['-c', 'true'], { env, cwd })).timings.prewarmed)
  t.like(sandbox.stats().prewarm, { ready: 1, taken: 0 })
  t.true(await ready())
  const taken = await sandbox.run(file, args, {
    ...same,
    limits: { wallTime: 5000, output: 1000 },
    outputs: { other: { path: '/tmp/o', maxBytes: 9, optional: true } },
  })
  t.deepEqual([taken.timings.prewarmed, taken.failed, taken.outputErrors], [true, false, undefined])
})

test('what a launch can say of itself holds for one that was started ahead', async (t) => {
  const script = 'echo early; work=$(cat <&1023); eval "$work"'
  const prewarm = { file: 'bash', args: ['-c', script], outputs: { made: { path: '/tmp/made', maxBytes: 100 } } }
  const { sandbox, ready } = await prewarmed(t, prewarm)
  const { file, args } = prewarm
  const launch = async <const O extends object>(work: string, options: O) => {
    t.true(await ready())
    return sandbox.run(file, args, { outputs: prewarm.outputs, work, ...options })
  }
  const all = await launch('echo late; echo problem >&2; echo file > /tmp/made', { lines: true })
  t.deepEqual([all.stdout as unknown, all.stderr as unknown], [['early', 'late'], ['problem']])
  t.is(Buffer.from(all.outputs.made).toString(), 'file\n')
  t.like(all, { exitCode: 0, stdoutBytes: 11, stderrBytes: 8, failed: false })

  const bytes = await launch('echo -e "a\\n"; echo > /tmp/made', { encoding: 'buffer' })
  t.deepEqual(bytes.stdout as unknown, new Uint8Array(Buffer.from('early\na\n\n')))

  const missing = await launch('exit 3', {})
  t.like(missing, { exitCode: 3, failed: true, outputErrors: { made: { errnoName: 'ENOENT' } } })
  await t.throwsAsync(launch('exit 3', { reject: true }), { code: 'ERR_NESTBOX_PROCESS' })

  const head = await launch('head -c 100000 /dev/zero', { limits: { output: 10 }, onOverflow: 'keep-head' })
  t.like(head, { stdout: 'early\n\0\0\0\0', isMaxBuffer: true, exitCode: 0, limitsHit: ['output'] })
  const tail = await launch('head -c 100000 /dev/zero; echo end', { limits: { output: 6 }, onOverflow: 'keep-tail' })
  t.like(tail, { stdout: '\0\0end', isMaxBuffer: true, exitCode: 0 })
  const killed = await launch('while :; do echo more; done', { limits: { output: 100 } })
  t.like(killed, { status: 'limit-exceeded', limit: 'output', signal: 'SIGKILL' })
  const unkept = await launch('echo much', { buffer: false })
  t.like(unkept, { stdout: undefined, stdoutBytes: 11 })

  const timed = await launch('sleep 30', { timeout: 80 })
  t.like(timed, { status: 'limit-exceeded', limit: 'wallTime', timedOut: true })
  // Time enough for the trap to be set, on a machine that does much else, too.
  const soft = await launch('trap "echo asked; exit 4" TERM; sleep 30 & wait', {
    timeout: 2000,
    killSignal: 'SIGTERM',
  })
  t.like(soft, { status: 'limit-exceeded', timedOut: true, stdout: 'early\nasked' })

  const controller = new AbortController()
  const aborted = launch('sleep 30', { signal: controller.signal })
  t.true(await until(() => sandbox.stats().running === 1))
  controller.abort('enough')
  await t.throwsAsync(aborted, { name: 'AbortError' })
  for (const result of [all, bytes, missing, head, tail, killed, unkept, timed, soft]) t.true(result.timings.prewarmed)
})

// ---- the clocks ----------------------------------------------------------------------------------------------------------------

test('the wall clock begins with the work', async (t) => {
  const script = 'eval "$(cat <&1023)"'
  const prewarm = { file: 'bash', args: ['-c', script] }
  const { server, sandbox, ready } = await prewarmed(t, prewarm, policy('host-system').limits({ wallTime: 1500 }))
  const [pid = 0] = named(server, 'bash')
  // Longer than the policy lets a launch run.
  await after(2000)
  t.true(runs(pid))
  t.like(sandbox.stats().prewarm, { ready: 1, died: 0 })
  const within = await sandbox.run('bash', prewarm.args, { work: 'sleep 0.1; echo done' })
  t.like(within, { exitCode: 0, stdout: 'done', pid })
  // What it waited is in neither.
  t.true(within.timings.execMs < 2000 && within.durationMs < 2000)
  t.true(await ready())
  await after(1000)
  const beyond = await sandbox.run('bash', prewarm.args, { work: 'sleep 30' })
  t.like(beyond, { status: 'limit-exceeded', limit: 'wallTime' })
  t.true(beyond.timings.prewarmed && beyond.durationMs >= 1500)
  t.true(await ready())
  // A launch's own is tighter; with a signal that asks first, the policy's comes after it.
  const own = await sandbox.run('bash', prewarm.args, { work: 'sleep 30', limits: { wallTime: 100 } })
  t.like(own, { status: 'limit-exceeded', limit: 'wallTime' })
  t.true(own.timings.prewarmed && own.durationMs >= 100)
})

test('CPU time counts from the work on', async (t) => {
  const script = `
import time
while time.process_time() < 0.3: pass
open('/mark/spent', 'w').close()
exec(open(1023).read())`
  const prewarm = { file: '/usr/bin/python3', args: ['-c', script] }
  const { mark, from } = marked(t)
  const { sandbox, ready } = await prewarmed(t, prewarm, from.limits({ cpuTime: 2000 }))
  t.true(await until(() => existsSync(path.join(mark, 'spent')), 30_000))
  // It has used more than this launch may.
  const fine = await sandbox.run(prewarm.file, prewarm.args, { work: 'print("done")', limits: { cpuTime: 200 } })
  t.like(fine, { exitCode: 0, stdout: 'done' })
  t.true(fine.timings.prewarmed && fine.resourceUsage.userCpuMs + fine.resourceUsage.systemCpuMs > 200)
  t.true(await ready())
  const busy = await sandbox.run(prewarm.file, prewarm.args, { work: 'while True: pass', limits: { cpuTime: 200 } })
  t.like(busy, { status: 'limit-exceeded', limit: 'cpuTime' })
  t.true(busy.timings.prewarmed)
})

// ---- programs that mean no good --------------------------------------------------------------------------------------------------

test('one that floods its output stops at full pipes; its launch gets it all', async (t) => {
  const prewarm = { file: 'bash', args: ['-c', 'yes & yes >&2 & cat <&1023; kill $!; kill %1; wait; echo end'] }
  const { server, sandbox } = await prewarmed(t, prewarm)
  t.true(await until(() => family(server.pid).filter(({ name }) => name === 'yes').length === 2))
  const before = process.memoryUsage().rss
  await after(500)
  t.true(process.memoryUsage().rss - before < 32 * 1024 * 1024)
  t.like(sandbox.stats().prewarm, { ready: 1, died: 0 })
  const result = await sandbox.run('bash', prewarm.args, { work: 'work', limits: { output: 100_000 } })
  t.true(result.timings.prewarmed)
  t.like(result, { status: 'limit-exceeded', limit: 'output' })
  t.true(result.stdoutBytes + result.stderrBytes > 100_000)
})

test('one that dies is replaced more and more slowly, and the launch that finds none tells why', async (t) => {
  const prewarm = { file: 'bash', args: ['-c', 'echo broken >&2; exit 9'] }
  const { server, sandbox } = await prewarmed(t, prewarm)
  await after(1000)
  // At 0, 100, 300, 700 ms.
  const { died } = sandbox.stats().prewarm
  t.true(died >= 1 && died <= 4, String(died))
  t.true(await until(() => sandbox.stats().prewarm.ready === 0))
  const result = await sandbox.run('bash', prewarm.args, { work: 'x' })
  t.like(result, { exitCode: 9, stderr: 'broken' })
  t.like(server.stats(), { launched: 1, running: 0 })
  await sandbox.close()
  const { died: atClose } = sandbox.stats().prewarm
  await after(300)
  t.is(sandbox.stats().prewarm.died, atClose)

  const nothing = await prewarmed(t, { file: 'no-such-program' })
  await t.throwsAsync(nothing.sandbox.run('no-such-program', [], { work: 'x' }), { code: 'ERR_NESTBOX_EXEC' })
  t.true(nothing.sandbox.stats().prewarm.died > 0)
})

// By itself, for it counts what this process has open.
test.serial('one that died a moment ago is taken by nobody', async (t) => {
  const { server, sandbox } = await prewarmed(t, { ...ECHO, count: 3 }, undefined, { warm: 0 })
  const before = openPipes()
  for (const pid of named(server, 'bash')) process.kill(pid, 'SIGKILL')
  // Dead by now, all of them; the host has not been told yet.
  const end = performance.now() + 100
  while (performance.now() < end);
  const results = await Promise.all([1, 2, 3].map(() => sandbox.run('bash', ECHO.args, { work: 'x' })))
  t.deepEqual(
    results.map(({ stdout, timings }) => [stdout, timings.prewarmed]),
    Array.from({ length: 3 }, () => ['[x]', false]),
  )
  t.is(sandbox.stats().prewarm.died, 3)
  t.true(await until(() => sandbox.stats().prewarm.ready === 3))
  t.true(await until(() => openPipes() === before))
})

test('one that closes its channel, or becomes another program, gets no further than it would', async (t) => {
  const { mark, from } = marked(t)
  const waiting = 'while [ ! -e /mark/go ]; do sleep 0.02; done'
  const closed = { file: 'bash', args: ['-c', `exec 1023>&-; ${waiting}; echo deaf`] }
  const first = await prewarmed(t, closed, from)
  const launched = first.sandbox.run('bash', closed.args, { work: new Uint8Array(1_000_000) })
  writeFileSync(path.join(mark, 'go'), '')
  const deaf = await launched
  t.like(deaf, { exitCode: 0, stdout: 'deaf' })
  t.true(deaf.timings.prewarmed)

  const changing = { file: 'bash', args: ['-c', 'exec sed s/o/0/ <&1023'] }
  const second = await prewarmed(t, changing)
  t.true(await until(() => named(second.server, 'sed').length === 1))
  const other = await second.sandbox.run('bash', changing.args, { work: 'foo\n' })
  t.like(other, { exitCode: 0, stdout: 'f0o' })
  t.true(other.timings.prewarmed)
})

test('one that forks for all it may holds nobody up, and is dead when its launch is over', async (t) => {
  const bomb = 'b() { b | b & }; b; while :; do :; done'
  const prewarm = { file: 'bash', args: ['-c', bomb] }
  const { server, sandbox } = await prewarmed(t, prewarm, policy('host-system').limits({ processes: 24 }))
  t.true(await until(() => family(server.pid).filter(({ name }) => name === 'bash').length >= 20))
  const launched = sandbox.run('bash', prewarm.args, { work: 'x', limits: { wallTime: 200 } })
  // Where its processes can't be told apart any more, its time can't be limited, and it is killed for that.
  const result = await launched.catch((error: unknown) => error as SpawnError)
  if (result instanceof SpawnError) t.is(result.step, 'set-limits')
  else t.like(result, { status: 'limit-exceeded', limit: 'wallTime' })
  await sandbox.close()
  t.is(family(server.pid).filter(({ name }) => name === 'bash').length, 0)
})

test('a handler is asked about the calls that one makes while it waits', async (t) => {
  const asked: string[] = []
  const script = 'mkdir -m 700 /tmp/before; cat <&1023; mkdir -m 700 /tmp/after; ls /tmp'
  const from = policy('host-system').syscalls(syscallFilter().report('mkdir', 'mkdirat').preset('default'))
  const prewarm = { file: 'bash', args: ['-c', script] }
  const { sandbox } = await prewarmed(t, prewarm, from, {
    onSyscall: ({ path: at }) => {
      asked.push(String(at))
      return 'allow'
    },
  })
  t.true(await until(() => asked.length === 1))
  t.true(await until(() => sandbox.stats().prewarm.ready === 1))
  const result = await sandbox.run('bash', prewarm.args, { work: 'x' })
  t.is(result.stdout, 'xafter\nbefore')
  t.true(result.timings.prewarmed)
})

// ---- nothing stays -----------------------------------------------------------------------------------------------------------

// As above.
test.serial('what waits ends with its sandbox', async (t) => {
  for (const end of ['close', 'destroy'] as const) {
    // oxlint-disable-next-line no-await-in-loop
    const { server, sandbox } = await prewarmed(t, { ...ECHO, count: 3 }, undefined, { warm: 0 })
    const pids = named(server, 'bash')
    t.is(pids.length, 3)
    const before = openPipes()
    // oxlint-disable-next-line no-await-in-loop
    await sandbox[end]()
    t.deepEqual(pids.filter(runs), [], end)
    t.is(sandbox.stats().prewarm.ready, 0)
    // The host's ends of three programs' stdout and stderr.
    // oxlint-disable-next-line no-await-in-loop
    t.true(await until(() => openPipes() === before - 6), end)
  }
})

test('what waits does not keep the host alive, and dies with it', async (t) => {
  const source = `
    import { Sandbox } from ${JSON.stringify(new URL('../index.ts', import.meta.url).href)}
    const sandbox = await Sandbox.create(undefined, { prewarm: ${JSON.stringify({ ...ECHO, count: 2 })} })
    const first = await sandbox.run('bash', ${JSON.stringify(ECHO.args)}, { work: 'work' })
    const again = await Sandbox.create(undefined, { prewarm: ${JSON.stringify({ file: 'sleep', args: ['987654'] })} })
    console.log(JSON.stringify([first.stdout, first.timings.prewarmed, again.stats().prewarm.ready]))`
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [...process.execArgv, '--input-type=module', '-e', source],
    { timeout: 30_000 },
  )
  t.deepEqual(JSON.parse(stdout), ['[work]', true, 1])
  const sleeps = (): boolean => processTable().some(({ pid }) => commandLine(pid).includes('987654'))
  t.true(await until(() => !sleeps()))
})

test('a fork server that is closed does not wait for what waits', async (t) => {
  const { server, sandbox } = await prewarmed(t, { ...ECHO, count: 2 })
  const pids = named(server, 'bash')
  t.is(pids.length, 2)
  await server.close()
  t.true(await until(() => !pids.some(runs)))
  await t.throwsAsync(sandbox.run('bash', ECHO.args, { work: 'x' }), { code: 'ERR_NESTBOX_CLOSED' })
  await sandbox.close()
})

test('a fork server that dies takes them along; the next launch brings others', async (t) => {
  const { server, sandbox, ready } = await prewarmed(t, ECHO)
  const pids = named(server, 'bash')
  process.kill(server.pid, 'SIGKILL')
  t.true(await until(() => !pids.some(runs)))
  t.true(await until(() => sandbox.stats().prewarm.ready === 0))
  t.is((await sandbox.run('bash', ECHO.args, { work: 'cold' })).stdout, '[cold]')
  t.true(await ready())
  const again = await sandbox.run('bash', ECHO.args, { work: 'again' })
  t.is(again.stdout, '[again]')
  t.true(again.timings.prewarmed)
})
