// Crash reports of what people write: C with handlers of its own, C++ with threads and exceptions, Rust; with symbols and
// without.

import { execFileSync } from 'node:child_process'
import { chmodSync } from 'node:fs'
import path from 'node:path'

import test, { type ExecutionContext } from 'ava'

import { type CrashReport, type CrashThread, policy, type PolicyBuilder, Sandbox, syscallFilter } from '../index.ts'
import { have, scratch } from './helpers.ts'

const fixtures = path.join(import.meta.dirname, 'fixtures')

/** Compiles a fixture in a directory that is bound at `/t`, where it is `crash`. */
const build = (t: ExecutionContext, compiler: string, source: string, ...flags: string[]): PolicyBuilder => {
  const directory = scratch(t)
  const to = path.join(directory, 'crash')
  execFileSync(compiler, ['-g', '-o', to, path.join(fixtures, source), ...flags], { stdio: 'ignore' })
  chmodSync(to, 0o755)
  return policy('host-system').bind(directory, '/t')
}

const CPP = ['-O0', '-w', '-pthread']
const RUST = ['-O', '-C', 'panic=abort']

/** How a program ends that is told to, and what is said of it. */
const crash = async (t: ExecutionContext, from: PolicyBuilder, how: string): Promise<CrashReport> => {
  await using sandbox = await Sandbox.create(from, { crashReport: true })
  const result = await sandbox.run('/t/crash', [how])
  if (result.status !== 'signaled' && result.status !== 'violation') throw new Error(`${how}: ${result.status}`)
  if (result.crash === undefined) throw new Error(`${how}: no report`)
  t.is(result.crash.problem, undefined)
  t.is(result.crash.threads.filter((thread) => thread.crashed).length, 1)
  return result.crash
}

/** Names of functions, innermost first; without arguments, which compilers write down differently. */
const names = (thread: CrashThread | undefined): string[] =>
  (thread?.frames ?? []).map(({ symbol }) => symbol?.replace(/\(.*$/, '') ?? '?')

/** The names are there in this order, whatever is between them. */
const inOrder = (t: ExecutionContext, found: readonly string[], ...wanted: string[]): void => {
  let at = -1
  for (const name of wanted) {
    at = found.findIndex((one, index) => index > at && one === name)
    t.true(at >= 0, `${name} in ${found.slice(0, 40).join(', ')}`)
  }
}

const waiting = (report: CrashReport, by: string): number =>
  report.threads.filter((thread) => names(thread).includes(by)).length

const cpp = have('g++') ? test : test.skip
const rust = have('rustc') ? test : test.skip
const c = have('gcc') ? test : test.skip

cpp('C++: a fault in a method of a template, in a thread', async (t) => {
  const report = await crash(t, build(t, 'g++', 'crash.cpp', ...CPP), 'segfault')
  t.like(report, { signal: 'SIGSEGV', faultAddress: '0x8' })
  const [hit] = report.threads
  t.is(names(hit)[0], 'shop::Basket::total')
  t.regex(names(hit)[1] ?? '', /\bshop::visit<shop::Basket>$/)
  t.true(hit?.frames[0]?.file?.endsWith('crash.cpp'))
  t.is(report.threads.length, 5)
  t.is(waiting(report, 'waits'), 3)
  t.is(waiting(report, 'main'), 1)
})

cpp('C++: an exception that nobody catches shows who threw it', async (t) => {
  const report = await crash(t, build(t, 'g++', 'crash.cpp', ...CPP), 'throw')
  t.is(report.signal, 'SIGABRT')
  inOrder(t, names(report.threads[0]), 'abort', 'std::terminate', '__cxa_throw', 'throws')
})

cpp('C++: a pure virtual call, and threads that were not joined', async (t) => {
  const from = build(t, 'g++', 'crash.cpp', ...CPP)
  const pure = await crash(t, from, 'pure')
  inOrder(t, names(pure.threads[0]), '__cxa_pure_virtual', 'shop::Shelf::stock', 'shop::Full::Full', 'main')
  const left = await crash(t, from, 'leave')
  inOrder(t, names(left.threads[0]), 'std::terminate', 'std::thread::~thread', 'main')
})

cpp('C++: the stack of a thread overflows, statically linked', async (t) => {
  const report = await crash(t, build(t, 'g++', 'crash.cpp', ...CPP, '-static'), 'overflow')
  t.is(report.signal, 'SIGSEGV')
  const found = names(report.threads[0])
  t.deepEqual([...new Set(found)], ['recurses'])
  t.is(found.length, 256)
  t.true(report.truncated.frames)
})

cpp('C++: a call that is forbidden, in a thread', async (t) => {
  const filter = syscallFilter()
    .allowDynamicStartup()
    .allowSystemMalloc()
    .allowThreads()
    .allowRead()
    .allowWrite()
    .allowHandleSignals()
    .allow('exit_group', 'fcntl', 'sched_yield')
  const from = build(t, 'g++', 'crash.cpp', ...CPP)
  const report = await crash(t, from.syscalls(filter), 'refused')
  inOrder(t, names(report.threads[0]), 'socket', 'refused')
  t.is(waiting(report, 'waits'), 3)
})

cpp('C++: stripped of all names it has those of its libraries, and places in the file', async (t) => {
  const report = await crash(t, build(t, 'g++', 'crash.cpp', ...CPP, '-s'), 'throw')
  inOrder(t, names(report.threads[0]), 'abort', 'std::terminate', '__cxa_throw', '?')
  const own = report.threads.flatMap(({ frames }) => frames).filter(({ module }) => module === '/t/crash')
  t.true(own.length >= 5)
  t.true(own.every(({ symbol, offset }) => symbol === undefined && /^0x[0-9a-f]+$/.test(offset ?? '')))
})

rust('Rust: a fault in a generic method, in a thread that has a name', async (t) => {
  const report = await crash(t, build(t, 'rustc', 'crash.rs', ...RUST), 'segfault')
  t.like(report, { signal: 'SIGSEGV', faultAddress: '0x10' })
  const [hit] = report.threads
  t.is(hit?.name, 'seller')
  const found = names(hit)
  t.true(found.indexOf('crash::writes_here') >= 0, found.join(', '))
  t.true(
    found.findIndex((name) => /Shop<.*>::sells$/.test(name)) > found.indexOf('crash::writes_here'),
    found.join(', '),
  )
  t.true(hit?.frames[0]?.inlined === true || found[0] === 'crash::writes_here')
})

rust('Rust: a panic that aborts shows where it was', async (t) => {
  const report = await crash(t, build(t, 'rustc', 'crash.rs', ...RUST), 'panic')
  t.is(report.signal, 'SIGABRT')
  inOrder(t, names(report.threads[0]), 'abort', 'crash::panics', 'crash::main')
})

// What a signal interrupts is found on x64 only: elsewhere its handler returns to code that is in no file.
if (process.arch === 'x64') {
  rust('Rust: a stack that overflowed is seen through the handler that found out', async (t) => {
    const report = await crash(t, build(t, 'rustc', 'crash.rs', ...RUST), 'overflow')
    t.is(report.signal, 'SIGABRT')
    const found = names(report.threads[0])
    inOrder(t, found, 'abort', 'crash::recurses')
    t.true(found.filter((name) => name === 'crash::recurses').length > 100)
  })

  for (const [title, flags] of [
    ['dynamic', []],
    ['static', ['-static']],
  ] as const) {
    c(`C, ${title}: a program that aborts in its handler shows what was interrupted`, async (t) => {
      const options = ['-O1', '-fno-optimize-sibling-calls', '-fno-inline', '-w', '-pthread', ...flags]
      const from = build(t, 'gcc', 'crash.c', ...options)
      for (const how of ['handled', 'handled-aside']) {
        // One after the other: two tests at a time are enough.
        // oxlint-disable-next-line no-await-in-loop
        const report = await crash(t, from, how)
        t.is(report.signal, 'SIGABRT')
        inOrder(t, names(report.threads[0]), 'abort', 'handles', 'writes_here', 'calls_writer', 'main')
        // Where it was, and not where something returns to.
        t.true(report.threads[0]?.frames.find(({ symbol }) => symbol === 'writes_here')?.file?.endsWith('crash.c'))
      }
      const report = await crash(t, from, 'handled-overflow')
      const found = names(report.threads[0])
      inOrder(t, found, 'abort', 'handles', 'recurses')
      t.true(found.filter((name) => name === 'recurses').length > 100)
      t.true(report.truncated.stacks)
    })
  }
}
