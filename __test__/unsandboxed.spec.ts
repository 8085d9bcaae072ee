// Launches without isolation: the host's world, but not its heap, its environment or its descriptors.

import { execFileSync } from 'node:child_process'
import { realpathSync, readlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import { ExecError, RequestError, SpawnError, unsandboxed } from '../index.ts'
import { isRoot, runs, scratch } from './helpers.ts'
import { firstLine, probe, statusOf } from './inside.ts'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..')

const env = { PATH: process.env['PATH'] ?? '/usr/bin:/bin' }

test('it is where the host is, as who the host is', async (t) => {
  const { stdout } = await unsandboxed.run(
    'sh',
    ['-c', 'pwd; id -u; id -g; readlink /proc/self/ns/mnt /proc/self/ns/pid /proc/self/root'],
    {
      env,
      lines: true,
    },
  )
  t.deepEqual(stdout, [
    realpathSync(process.cwd()),
    String(process.getuid?.()),
    String(process.getgid?.()),
    readlinkSync('/proc/self/ns/mnt'),
    readlinkSync('/proc/self/ns/pid'),
    '/',
  ])
})

test("groups and powers are the host's", async (t) => {
  const { stdout } = await unsandboxed.run('cat', ['/proc/self/status'], { env })
  const { Groups, CapEff, NoNewPrivs, Seccomp } = statusOf(stdout)
  const { readFileSync } = await import('node:fs')
  const here = statusOf(readFileSync('/proc/self/status', 'utf8'))
  t.deepEqual(
    { Groups, CapEff, NoNewPrivs, Seccomp },
    {
      Groups: here['Groups'],
      CapEff: here['CapEff'],
      NoNewPrivs: here['NoNewPrivs'],
      Seccomp: here['Seccomp'],
    },
  )
})

test('the environment must be given, and is all there is', async (t) => {
  const error = await t.throwsAsync(unsandboxed.run('true'), { instanceOf: RequestError })
  t.deepEqual(error?.issues[0]?.path, ['env'])
  const { stdout } = await unsandboxed.run(probe(), ['env'], { env: { A: '1' } })
  t.deepEqual(stdout.split('\0').filter(Boolean), ['A=1', 'SANDBOX2_NOFORKSERVER=1'])
})

test('cwd, relative or not', async (t) => {
  const directory = realpathSync(scratch(t))
  t.is((await unsandboxed.run('pwd', [], { env, cwd: directory })).stdout, directory)
  t.is((await unsandboxed.run('pwd', [], { env, cwd: '..' })).stdout, path.dirname(process.cwd()))
  const error = await t.throwsAsync(unsandboxed.run('pwd', [], { env, cwd: path.join(directory, 'none') }), {
    instanceOf: SpawnError,
  })
  t.like(error, { errnoName: 'ENOENT', step: 'change-directory', path: path.join(directory, 'none') })
  t.is(error?.hint, `there is no directory ${path.join(directory, 'none')} on the host: correct cwd`)
  const file = path.join(directory, 'file')
  writeFileSync(file, '')
  const other = await t.throwsAsync(unsandboxed.run('pwd', [], { env, cwd: file }), { instanceOf: SpawnError })
  t.like(other, { errnoName: 'ENOTDIR', hint: `there is no directory ${file} on the host: correct cwd` })
})

test('only its own descriptors', async (t) => {
  t.is((await unsandboxed.run(probe(), ['open-fds'], { env })).stdout, '0,1,2')
})

test('ends: exit codes, signals, time, output', async (t) => {
  t.like(await unsandboxed.run('sh', ['-c', 'exit 9'], { env }), { status: 'exited', exitCode: 9 })
  t.like(await unsandboxed.run('sh', ['-c', 'kill -USR1 $$'], { env }), { status: 'signaled', signal: 'SIGUSR1' })
  t.like(await unsandboxed.run('sleep', ['60'], { env, timeout: 50 }), { status: 'limit-exceeded', limit: 'wallTime' })
  const limits = { output: 1000 }
  t.like(await unsandboxed.run('yes', [], { env, limits }), { status: 'limit-exceeded', limit: 'output' })
})

test('what can not be executed', async (t) => {
  const file = path.join(scratch(t), 'text')
  writeFileSync(file, 'x')
  for (const [name, errnoName] of [
    [file, 'EACCES'],
    [`${file}.none`, 'ENOENT'],
    ['no-such-program', 'ENOENT'],
  ] as const) {
    // Not the host's PATH, in which there may be directories that the host can't enter: EACCES, as of execvp(3).
    const launched = unsandboxed.run(name, [], { env: { PATH: '/usr/bin:/bin' } })
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(launched, { instanceOf: ExecError })
    t.is(error?.errnoName, errnoName)
  }
})

test('what needs a sandbox is refused', async (t) => {
  for (const options of [
    { files: { '/tmp/a': '' } },
    { binds: { '/a': '/b' } },
    { outputs: { a: { path: '/a', maxBytes: 1 } } },
    { limits: { disk: 1_000_000 } },
  ]) {
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(unsandboxed.run('true', [], { ...options, env }), { instanceOf: RequestError })
    t.regex(error?.message ?? '', /needs a sandbox/)
  }
})

test('streams and signals', async (t) => {
  const cat = await unsandboxed.spawn('cat', [], { env, stdin: 'pipe' })
  cat.stdin.write('x\n')
  t.is(await firstLine(cat), 'x')
  t.true(runs(cat.pid))
  t.true(cat.kill('SIGTERM'))
  t.like(await cat.result, { status: 'killed', signal: 'SIGTERM' })
})

test('what the program leaves behind is killed with it', async (t) => {
  const { stdout } = await unsandboxed.run('sh', ['-c', 'sleep 60 > /dev/null 2>&1 & echo $!'], { env })
  t.false(runs(Number(stdout)))
})

test('limits of the process', async (t) => {
  const { stdout } = await unsandboxed.run('sh', ['-c', 'ulimit -n; ulimit -c'], {
    env,
    limits: { openFiles: 50, core: 0 },
  })
  t.is(stdout, '50\n0')
})

/** Whether a fork past the limit was refused, and what the result says of that limit. */
interface Counted {
  readonly refused: boolean
  readonly processes: number | null
  readonly skipped: readonly string[]
}

const COUNTED = `
  import { unsandboxed } from './dist/index.js'
  const options = { env: { PATH: '/usr/bin:/bin' }, limits: { processes: 1 } }
  const { stdout, isolation } = await unsandboxed.run('sh', ['-c', '(echo forked) 2> /dev/null'], options)
  const { limits, skipped } = isolation
  console.log(JSON.stringify({ refused: stdout === '', processes: limits.processes ?? null, skipped }))`

const counted = (...before: string[]): Counted => {
  const [file, ...args] = [...before, process.execPath, '--input-type=module', '--eval', COUNTED]
  return JSON.parse(execFileSync(file, args, { cwd: root, encoding: 'utf8' })) as Counted
}

test('a limit of processes is told as what it is: the kernel does not count those of root', (t) => {
  const ignored: Counted = { refused: false, processes: null, skipped: ['limits.processes'] }
  const enforced: Counted = { refused: true, processes: 1, skipped: [] }
  // In a namespace there is a root by name, who is whoever made it.
  for (const before of [[], ['unshare', '--user', '--map-root-user']]) {
    const told = counted(...before)
    t.deepEqual(told, told.refused ? enforced : ignored)
    if (!isRoot) t.true(told.refused)
  }
})
