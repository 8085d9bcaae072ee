// Crash reports: what is in them, that they change nothing but themselves, and that no program gets more by them than a report.

import { execFileSync } from 'node:child_process'
import { chmodSync, copyFileSync, readFileSync } from 'node:fs'
import path from 'node:path'

import test, { type ExecutionContext } from 'ava'

import {
  type CrashFrame,
  type CrashReport,
  policy,
  type PolicyBuilder,
  type Result,
  Sandbox,
  syscallFilter,
  unsandboxed,
} from '../index.ts'
import { crashReport } from '../lib/launch/crash.ts'
import { BOUNDED, delay, openDescriptors, scratch, until } from './helpers.ts'

const SOURCE = path.join(import.meta.dirname, 'fixtures', 'crash.c')

/** Builds the program in a directory that is bound at `/t`. */
const build = (t: ExecutionContext, ...flags: string[]): PolicyBuilder => {
  const directory = scratch(t)
  const to = path.join(directory, 'crash')
  const plain = ['-g', '-O1', '-fno-optimize-sibling-calls', '-fno-inline', '-w', '-pthread', '-o', to, SOURCE]
  execFileSync('gcc', [...plain, ...flags], { stdio: ['ignore', 'ignore', 'inherit'] })
  chmodSync(to, 0o755)
  return policy('host-system').bind(directory, '/t').limits({ processes: 300 })
}

const sandbox = async (t: ExecutionContext, from: PolicyBuilder, crash = true): Promise<Sandbox> => {
  const made = await Sandbox.create(from, { crashReport: crash })
  t.teardown(() => made.destroy())
  return made
}

const crashed = (report: CrashReport | undefined): readonly CrashFrame[] =>
  report?.threads.find((thread) => thread.crashed)?.frames ?? []

const crashOf = (result: Result): CrashReport | undefined =>
  result.status === 'signaled' || result.status === 'violation' ? result.crash : undefined

const symbols = (frames: readonly CrashFrame[]): (string | undefined)[] => frames.map(({ symbol }) => symbol)

/** The report of a program that was hit by a signal. */
const report = async (t: ExecutionContext, from: Sandbox, ...args: string[]): Promise<CrashReport> => {
  const result = await from.run('/t/crash', args)
  if (result.status !== 'signaled' || result.crash === undefined) {
    t.log(result)
    throw new Error(`no crash report of ${args.join(' ')}: ${result.status}`)
  }
  t.is(result.crash.signal, result.signal)
  t.deepEqual(JSON.parse(JSON.stringify(result.crash)), result.crash)
  return result.crash
}

const LINE =
  readFileSync(SOURCE, 'utf8')
    .split('\n')
    .findIndex((line) => line.includes('*where = 42')) + 1

for (const [name, flags] of [
  ['dynamic', []],
  ['static', ['-static']],
  ['with compressed debug information', ['-gz']],
] as const) {
  test(`a segfault in a ${name} program has its address, functions and lines`, async (t) => {
    const crash = await report(t, await sandbox(t, build(t, ...flags)), 'segfault')
    t.is(crash.signal, 'SIGSEGV')
    t.is(crash.faultAddress, '0x1234')
    t.is(crash.code, 1)
    t.is(crash.problem, undefined)
    const frames = crashed(crash)
    t.deepEqual(symbols(frames).slice(0, 3), ['writes_here', 'calls_writer', 'main'])
    const [innermost] = frames
    t.is(innermost?.module, '/t/crash')
    t.is(innermost?.line, LINE)
    t.true(innermost?.file?.endsWith('crash.c'))
    const code = crash.maps.find(({ path: of, permissions }) => of === '/t/crash' && permissions === 'r-xp')
    const counter = crash.threads[0]?.registers[crash.arch === 'x64' ? 'rip' : 'pc']
    t.is(counter, innermost?.address)
    t.true(BigInt(counter ?? 0) >= BigInt(code?.start ?? 0) && BigInt(counter ?? 0) < BigInt(code?.end ?? 0))
    t.false(Object.values(crash.truncated).includes(true))
  })
}

test('a stripped program has addresses that its unstripped twin explains', async (t) => {
  const from = build(t)
  const bound = from.build().mounts.find((mount) => mount.type === 'bind' && mount.path === '/t')
  const program = path.join(bound?.type === 'bind' ? bound.source : '', 'crash')
  const twin = path.join(scratch(t), 'twin')
  copyFileSync(program, twin)
  execFileSync('strip', [program])
  const crash = await report(t, await sandbox(t, from), 'segfault')
  const frames = crashed(crash).filter(({ module }) => module === '/t/crash')
  t.true(frames.length >= 3, JSON.stringify(frames))
  t.is(frames[0]?.symbol, undefined)
  const found = execFileSync('addr2line', ['-f', '-e', twin, ...frames.slice(0, 1).map(({ offset }) => offset ?? '')])
  t.regex(found.toString(), /^writes_here\n/)
})

test('each thread has its stack', async (t) => {
  const crash = await report(t, await sandbox(t, build(t)), 'thread-aborts')
  t.is(crash.signal, 'SIGABRT')
  t.is(crash.threads.length, 5)
  t.is(crash.threads.filter((thread) => thread.crashed).length, 1)
  t.true(crash.threads[0]?.crashed)
  t.true(symbols(crashed(crash)).includes('aborts_here'))
  t.true(symbols(crashed(crash)).includes('aborts_later'))
  const sleepers = crash.threads.filter(({ frames }) => symbols(frames).includes('sleeps_here'))
  t.deepEqual(
    sleepers.map((thread) => thread.name),
    ['a\nsleeper', 'a\nsleeper', 'a\nsleeper'],
  )
  t.true(crash.threads.some(({ frames }) => symbols(frames).includes('main')))
})

test('a stack that overflowed is looked at from its end', async (t) => {
  const crash = await report(t, await sandbox(t, build(t)), 'overflow')
  const frames = crashed(crash)
  t.is(frames.length, 256)
  t.deepEqual(new Set(symbols(frames)), new Set(['recurses']))
  t.true(crash.truncated.frames)
  t.true(crash.truncated.stacks)
})

test('a call to nowhere shows who made it', async (t) => {
  const crash = await report(t, await sandbox(t, build(t)), 'nowhere')
  t.is(crash.faultAddress, '0x42')
  t.deepEqual(symbols(crashed(crash)).slice(0, 2), [undefined, 'main'])
})

test('more threads than a report has: the one that was hit is among them', async (t) => {
  const crash = await report(t, await sandbox(t, build(t)), 'many-threads')
  t.true(crash.threads.length >= 63 && crash.threads.length <= 64, String(crash.threads.length))
  t.true(crash.truncated.threads)
  t.true(symbols(crashed(crash)).includes('aborts_here'))
})

test('the main thread may be gone', async (t) => {
  const crash = await report(t, await sandbox(t, build(t)), 'main-exits')
  t.true(symbols(crashed(crash)).includes('aborts_here'))
})

for (const action of ['kill', 'report'] as const) {
  test(`a call that the filter answers with ${action} shows where it was made`, async (t) => {
    const threads = ['clone', 'clone3', 'mmap', 'munmap', 'mprotect', 'madvise', 'prctl', 'pause', 'futex', 'write']
    const signals = ['rt_sigprocmask', 'rt_sigaction', 'nanosleep', 'clock_nanosleep', 'rseq', 'exit_group']
    const startup = syscallFilter().allowStaticStartup().allowSystemMalloc()
    const filter = startup.allow(...threads, ...signals).otherwise(action)
    const from = await sandbox(t, build(t, '-static').syscalls(filter))
    const result = await from.run('/t/crash', ['refused'])
    t.is(result.status, 'violation')
    const crash = crashOf(result)
    t.is(crash?.signal, action === 'kill' ? 'SIGSYS' : 'SIGKILL')
    t.is(crash?.threads.length, 4)
    t.true(symbols(crashed(crash)).includes('main'), JSON.stringify(crash?.threads))
    t.is((await from.run('/t/crash', ['exit'])).status, 'exited')
  })
}

test('a program that is in the nest alone has names, too', async (t) => {
  const from = build(t, '-static')
  const bound = from.build().mounts.find((mount) => mount.type === 'bind' && mount.path === '/t')
  const content = readFileSync(path.join(bound?.type === 'bind' ? bound.source : '', 'crash'))
  const own = await sandbox(t, policy().tmpfs('/tmp'), false)
  const files = { '/tmp/program': { content, mode: 0o755 } }
  const result = await own.run('/tmp/program', ['segfault'], { files, crashReport: true })
  t.is(result.status, 'signaled')
  t.deepEqual(symbols(crashed(crashOf(result))).slice(0, 1), ['writes_here'])
})

// ---- what programs may try ---------------------------------------------------------------------------------------------

test('stack pointers that lead nowhere, to code or through nonsense end in a report', async (t) => {
  const from = await sandbox(t, build(t))
  const hows = process.arch === 'x64' ? ['wild-stack', 'code-stack', 'random-stack'] : ['random-stack']
  for (const how of hows) {
    // oxlint-disable-next-line no-await-in-loop
    const crash = await report(t, from, how)
    t.is(crash.problem, undefined, how)
    t.is(crash.threads[0]?.frames[0]?.module, '/t/crash', how)
    t.true((crash.threads[0]?.frames.length ?? 999) <= 256, how)
  }
})

test('names with newlines forge no lines', async (t) => {
  const crash = await report(t, await sandbox(t, build(t)), 'newlines')
  t.is(crash.threads[0]?.name, 'a\n) b\n{"')
  t.deepEqual(
    crash.maps.filter((map) => map.path.includes('passwd')).map((map) => map.path),
    ['/tmp/a\n00400000-00500000 r-xp 00000000 00:00 0 passwd\nb'],
  )
  t.true(symbols(crashed(crash)).includes('aborts_here'))
})

test('a file that is gone has addresses', async (t) => {
  const crash = await report(t, await sandbox(t, build(t)), 'deleted')
  const frames = crashed(crash).filter(({ module }) => module === '/tmp/copy (deleted)')
  t.true(frames.length > 0)
  t.deepEqual(new Set(symbols(frames)), new Set([undefined]))
})

test('where memory could stall who reads it, no stack is read', async (t) => {
  const crash = await report(t, await sandbox(t, build(t).syscalls('unfiltered')), 'segfault')
  t.is(crash.faultAddress, '0x1234')
  t.deepEqual(symbols(crashed(crash)), ['writes_here'])
  t.true(crash.truncated.stacks)
})

test('a storm of signals keeps nobody from the limit', async (t) => {
  const from = await sandbox(t, build(t))
  const began = performance.now()
  const result = await from.run('/t/crash', ['storm'], { timeout: 500 })
  t.is(result.status, 'limit-exceeded')
  t.true(performance.now() - began < BOUNDED, String(performance.now() - began))
})

test('what the symboliser says is checked', (t) => {
  const good = {
    signal: 11,
    arch: 'x64',
    threads: [],
    maps: [],
    truncated: { threads: false, stacks: false, frames: false, maps: false, modules: false },
  }
  const of = (...lines: unknown[]): Buffer =>
    Buffer.from(lines.map((line) => (typeof line === 'string' ? line : JSON.stringify(line))).join('\n'))
  const problem = 'the symboliser was killed by signal 9'
  const better = { ...good, faultAddress: '0x2' }
  t.is(crashReport({ report: of(good, better, '') }, 11).faultAddress, '0x2')
  t.is(crashReport({ report: of(good, better, '') }, 11).problem, undefined)
  // It died over the second line: the first stands.
  const cut = crashReport({ report: of(good, '{"signal":11,"arc'), problem }, 11)
  t.deepEqual([cut.problem, cut.arch, cut.signal], [problem, 'x64', 'SIGSEGV'])
  // It was taken over: what it says about the signal does not count, and what is no report is none.
  t.is(crashReport({ report: of({ ...good, signal: 9 }) }, 11).signal, 'SIGSEGV')
  const evil = [
    { ...good, extra: 1 },
    { ...good, faultAddress: '<script>' },
    { ...good, maps: [{ start: '0x1' }] },
    { ...good, threads: [{ tid: 1, name: 'x'.repeat(5000), crashed: true, registers: {}, frames: [] }] },
    { ...good, threads: [{ tid: 1, name: '', crashed: true, registers: { __proto__x: '0x1' }, frames: [] }] },
    'null',
    '[]',
    '\u0000',
  ]
  for (const line of evil) {
    const empty = crashReport({ report: of(line) }, 11)
    t.deepEqual(
      [empty.threads, empty.problem],
      [[], 'the symboliser said nothing that makes sense'],
      JSON.stringify(line),
    )
  }
})

test('a report leaves no descriptor behind', async (t) => {
  const from = await sandbox(t, build(t))
  await report(t, from, 'segfault')
  const before = [...openDescriptors().keys()]
  await report(t, from, 'segfault')
  const same = await until(() => [...openDescriptors().keys()].length <= before.length)
  t.true(same, JSON.stringify([...openDescriptors().entries()].filter(([fd]) => !before.includes(fd))))
})

// ---- what a report must not change -------------------------------------------------------------------------------------

test('programs end as they end untraced', async (t) => {
  const from = build(t)
  const [traced, untraced] = [await sandbox(t, from), await sandbox(t, from, false)]
  const hows = 'exit,kill,term,segfault,thread-aborts,main-exits,thread-executes,forks,clones,timer,clones too'.split(
    ',',
  )
  for (const how of hows) {
    const args = how.split(' ')
    // oxlint-disable-next-line no-await-in-loop
    const [left, right] = await Promise.all([traced.run('/t/crash', args), untraced.run('/t/crash', args)])
    const ending = (of: typeof left): unknown[] => [
      of.status,
      of.stdout,
      of.limitsHit,
      'exitCode' in of && of.exitCode,
      'signal' in of && of.signal,
    ]
    t.deepEqual(ending(left), ending(right), how)
    t.false('crash' in right, how)
    // SIGKILL has nothing to say, and children are not looked at.
    t.is('crash' in left, ['term', 'segfault', 'thread-aborts', 'main-exits'].includes(how), how)
  }
})

test('limits and the host end it as ever, without a report', async (t) => {
  const from = await sandbox(t, build(t))
  const timed = await from.run('/t/crash', ['spin'], { timeout: 100 })
  t.deepEqual([timed.status, 'crash' in timed], ['limit-exceeded', false])
  const cpu = await from.run('/t/crash', ['spin'], { limits: { cpuTime: 100 } })
  t.deepEqual([cpu.status, 'crash' in cpu], ['limit-exceeded', false])
  const waiting = await from.spawn('/t/crash', ['wait'])
  waiting.kill()
  const killed = await waiting.result
  t.deepEqual([killed.status, 'crash' in killed], ['killed', false])
})

test('what was stopped stays stopped until it is continued', async (t) => {
  const from = await sandbox(t, build(t))
  const stopped = await from.spawn('/t/crash', ['stops'])
  const state = (): string => /^State:\s+(\S)/m.exec(readFileSync(`/proc/${stopped.pid}/status`, 'latin1'))?.[1] ?? ''
  // A traced process that is stopped shows as such; but so it does at its exec. It says when it is about to stop itself.
  const lines = stopped.lines()[Symbol.asyncIterator]()
  t.is((await lines.next()).value, 'stops')
  t.true(await until(() => 'Tt'.includes(state())))
  await delay(50)
  t.true('Tt'.includes(state()))
  stopped.kill('SIGCONT')
  t.is((await lines.next()).value, 'goes on')
  t.true((await lines.next()).done)
  const result = await stopped.result
  t.is(result.status === 'exited' && result.exitCode, 3)
})

test('warm nests serve such launches', async (t) => {
  const from = await sandbox(t, build(t))
  await from.warm(1)
  const result = await from.run('/t/crash', ['segfault'])
  t.true(result.timings.warm)
  t.is(result.status, 'signaled')
  t.is(symbols(crashed(crashOf(result)))[0], 'writes_here')
})

test('without isolation there is none', async (t) => {
  const error = await t.throwsAsync(unsandboxed.run('/bin/true', [], { env: {}, crashReport: true }))
  t.is((error as { code?: string } | undefined)?.code, 'ERR_NESTBOX_REQUEST')
})
