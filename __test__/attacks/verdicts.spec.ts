// Real programs of several languages at their limits: each ends in its own way, and the result tells the ways apart.

import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import path from 'node:path'

import test from 'ava'

import { type Launcher, type Limits, policy, type PolicyBuilder, Sandbox, unsandboxed } from '../../index.ts'
import { have, scratch } from '../helpers.ts'

const base = (): PolicyBuilder => policy('host-system')

const needs = (program: string) => (have(program) ? test : test.skip)

/** Inside its own PATH: a version manager's shims are no programs of the system. */
const system = (name: string): boolean =>
  ['/usr/bin', '/bin', '/usr/local/bin'].some((directory) => {
    try {
      execFileSync('test', ['-x', path.join(directory, name)])
      return true
    } catch {
      return false
    }
  })

const python = system('python3') ? test : test.skip

python('Python says MemoryError: its own exit, and no limit ended it', async (t) => {
  await using sandbox = await Sandbox.create(base().limits({ addressSpacePerProcess: '256MiB' }))
  const result = await sandbox.run('python3', ['-c', 'bytearray(2 ** 30)'])
  t.like(result, { status: 'exited', exitCode: 1, failed: true, timedOut: false })
  t.regex(result.stderr, /MemoryError/)
  const caught = 'try:\n bytearray(2**30)\nexcept MemoryError:\n print("caught")'
  t.like(await sandbox.run('python3', ['-c', caught]), { status: 'exited', exitCode: 0, stdout: 'caught' })
  t.is((await sandbox.run('python3', ['-c', 'print(len(bytearray(2 ** 20)))'])).stdout, '1048576')
})

python('Python at each limit: every verdict is another', async (t) => {
  const limits: Limits = {
    cpuTime: 400,
    wallTime: 5000,
    fileSize: '64KiB',
    processes: 8,
    openFiles: 32,
    disk: '1MiB',
    output: 5000,
  }
  await using sandbox = await Sandbox.create(base().limits(limits))
  const run = (code: string) => sandbox.run('python3', ['-c', code])
  const [spins, sleeps, writes, forks, opens, fills, prints, exits, aborts] = await Promise.all([
    run('while True: pass'),
    sandbox.run('python3', ['-c', 'import time; time.sleep(60)'], { timeout: 300 }),
    run('import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL); open("/tmp/x", "wb").write(b"x" * 10**6)'),
    run(
      'import threading, time\nfor i in range(50): threading.Thread(target=time.sleep, args=(1,), daemon=True).start()',
    ),
    run('a = [open("/dev/null") for i in range(50)]'),
    run('import os\nfor i in range(40): open(f"/tmp/{i}", "wb").write(b"x" * 60000)'),
    run('print("x" * 100000)'),
    run('import sys; sys.exit(9)'),
    run('import os; os.abort()'),
  ])
  t.like(spins, { status: 'limit-exceeded', limit: 'cpuTime' })
  t.like(sleeps, { status: 'limit-exceeded', limit: 'wallTime', timedOut: true })
  t.like(writes, { status: 'limit-exceeded', limit: 'fileSize', signal: 'SIGXFSZ' })
  t.like(forks, { status: 'exited', exitCode: 1 })
  t.regex(forks.stderr, /can't start new thread/)
  t.like(opens, { status: 'exited', exitCode: 1 })
  t.regex(opens.stderr, /Too many open files/)
  t.like(fills, { status: 'exited', exitCode: 1, limitsHit: ['disk'] })
  t.regex(fills.stderr, /No space left/)
  t.like(prints, { status: 'limit-exceeded', limit: 'output', isMaxBuffer: true })
  t.like(exits, { status: 'exited', exitCode: 9 })
  t.like(aborts, { status: 'signaled', signal: 'SIGABRT' })
})

/** Three children that use a second of CPU time each, one after the other or together. */
const threeSeconds = (together: boolean): string => `
import os, time
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        while time.process_time() < 1: pass
        os._exit(0)
    children.append(child)
    if not ${together ? 'True' : 'False'}: os.waitpid(children.pop(), 0)
for child in children: os.waitpid(child, 0)`

python('three children that use one second each are three seconds of cpuTime', async (t) => {
  for (const proc of ['fresh', 'none'] as const) {
    // oxlint-disable-next-line no-await-in-loop
    await using sandbox = await Sandbox.create(base().proc(proc).limits({ cpuTime: 60_000 }))
    const without: Launcher = unsandboxed
    for (const launcher of proc === 'fresh' ? [sandbox, without] : [sandbox]) {
      const env = { PATH: '/usr/bin:/bin' }
      for (const together of [true, false]) {
        const run = (cpuTime: number) =>
          launcher.run('/usr/bin/python3', ['-c', threeSeconds(together)], { env, limits: { cpuTime } })
        // Each of them alone, and any two, use less.
        // oxlint-disable-next-line no-await-in-loop
        const over = await run(2600)
        t.like(over, { status: 'limit-exceeded', limit: 'cpuTime', timedOut: false }, `${proc} ${together}`)
        const { userCpuMs, systemCpuMs } = over.resourceUsage
        t.true(userCpuMs + systemCpuMs >= 2500, String(userCpuMs + systemCpuMs))
        // Had it been noticed at the end only, all three would have ended.
        t.is(over.status === 'limit-exceeded' && over.signal, 'SIGKILL', `${proc} ${together}`)
      }
      // oxlint-disable-next-line no-await-in-loop
      const within = await launcher.run('/usr/bin/python3', ['-c', threeSeconds(true)], {
        env,
        limits: { cpuTime: 9000 },
      })
      t.like(within, { status: 'exited', exitCode: 0 })
      t.true(within.resourceUsage.userCpuMs + within.resourceUsage.systemCpuMs >= 3000)
    }
  }
})

needs('g++')('C++ says bad_alloc: caught, or aborted by its runtime', async (t) => {
  const directory = scratch(t)
  const source = `
    #include <new>
    #include <cstdio>
    #include <vector>
    int main(int argc, char **) {
      auto take = [] { std::vector<char> all(1UL << 30, 1); std::printf("%zu\\n", all.size()); };
      if (argc == 1) { take(); return 0; }
      try { take(); } catch (const std::bad_alloc &) { std::puts("caught"); }
    }`
  const built = path.join(directory, 'program')
  execFileSync('g++', ['-O1', '-static', '-x', 'c++', '-o', built, '-'], { input: source })
  await using sandbox = await Sandbox.create(
    policy().bind(built, '/program').limits({ addressSpacePerProcess: '128MiB' }),
  )
  const result = await sandbox.run('/program')
  t.like(result, { status: 'signaled', signal: 'SIGABRT' })
  t.regex(result.stderr, /bad_alloc/)
  t.like(await sandbox.run('/program', ['catch']), { status: 'exited', exitCode: 0, stdout: 'caught' })
})

needs('gcc')('gcc says that it is out of memory, or ends at the limit of its time', async (t) => {
  await using sandbox = await Sandbox.create(base().limits({ addressSpacePerProcess: '512MiB', cpuTime: 1500 }))
  const compile = (source: string) =>
    sandbox.run('gcc', ['-O0', '-c', '-o', '/tmp/out.o', '/tmp/main.c'], { files: { '/tmp/main.c': source } })
  t.like(await compile('int main(void) { return 0; }'), { status: 'exited', exitCode: 0 })
  // A gigabyte of initialised data.
  const greedy = await compile('char all[1UL << 30] = {1}; int main(void) { return 0; }')
  t.true(greedy.failed)
  if (greedy.status === 'exited') t.regex(greedy.stderr, /memory|No space left|fatal|File too large|too big|error/i)
  else t.true(['limit-exceeded', 'signaled'].includes(greedy.status), greedy.status)
  // Every macro is two of the one before.
  const doubling = Array.from({ length: 40 }, (_, at) => `#define M${at + 1} M${at} M${at}`).join('\n')
  const endless = await compile(`#define M0 0+\n${doubling}\nint x = M40 0;`)
  t.true(endless.failed)
  t.true(
    endless.status === 'limit-exceeded' || /memory|fatal|virtual/i.test(endless.stderr),
    `${endless.status} ${endless.stderr}`,
  )
})

const node = path.dirname(process.execPath) === '/usr/bin' ? test : test.skip

node(
  'Node refuses on its own: a heap that is too small aborts, a limit on address space keeps it from starting',
  async (t) => {
    await using sandbox = await Sandbox.create(base().limits({ processes: 64, wallTime: 30_000 }))
    const greedy = ['--max-old-space-size=24', '-e', 'const all = []; for (;;) all.push(new Array(1000).fill({}))']
    const result = await sandbox.run('node', greedy)
    t.like(result, { status: 'signaled', signal: 'SIGABRT', timedOut: false })
    t.regex(result.stderr, /heap out of memory/)
    t.like(await sandbox.run('node', ['-p', '6 * 7']), { status: 'exited', stdout: '42' })
    // It reserves far more than it uses.
    await using tight = await Sandbox.create(base().limits({ processes: 64, addressSpacePerProcess: '256MiB' }))
    const started = await tight.run('node', ['-p', '6 * 7'])
    t.true(started.failed)
    t.true(['signaled', 'exited'].includes(started.status))
  },
)

/** The Go compiler, which its own installer puts where no PATH leads. */
const goTool = have('go') ? 'go' : '/usr/local/go/bin/go'
const go = goTool === 'go' || existsSync(goTool) ? test : test.skip
/** The top of an installation of Go, whose own tools are Go programs. */
const goRoot = go === test ? execFileSync(goTool, ['env', 'GOROOT'], { encoding: 'utf8' }).trim() : ''

go('a Go runtime that gets no memory aborts with a message of its own', async (t) => {
  const shown = policy().bind(path.join(goRoot, 'bin', 'gofmt'), '/gofmt')
  const source = { input: 'package  x' }
  await using sandbox = await Sandbox.create(shown)
  t.like(await sandbox.run('/gofmt', [], source), { status: 'exited', stdout: 'package x' })
  await using tight = await Sandbox.create(shown.limits({ addressSpacePerProcess: '48MiB' }))
  const result = await tight.run('/gofmt', [], source)
  t.like(result, { status: 'exited', exitCode: 2, timedOut: false })
  t.regex(result.stderr, /out of memory|cannot allocate|failed to reserve/)
})

needs('java')('a JVM with a heap that is too small throws, and exits on its own', async (t) => {
  const directory = scratch(t)
  await using sandbox = await Sandbox.create(
    base().bind(directory, '/data').limits({ processes: 128, wallTime: 30_000, disk: '64MiB' }),
  )
  const code =
    'class Main { public static void main(String[] a) { byte[][] all = new byte[1000][]; for (int i = 0; i < 1000; i++) all[i] = new byte[1 << 20]; } }'
  const result = await sandbox.run('java', ['-Xmx24m', '-XX:TieredStopAtLevel=1', '/tmp/Main.java'], {
    files: { '/tmp/Main.java': code },
  })
  t.like(result, { status: 'exited', exitCode: 1 })
  t.regex(result.stderr, /OutOfMemoryError/)
})
