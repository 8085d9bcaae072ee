// What a launch hands over: program, arguments, environment, directory, files. Exactly, whatever is in it.

import { createHash } from 'node:crypto'
import { chmodSync, readdirSync } from 'node:fs'

import test from 'ava'

import { ExecError, policy, RequestError, run, Sandbox, SpawnError } from '../index.ts'
import { scratch } from './helpers.ts'
import { sh, shout, withProbe } from './inside.ts'

const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/** A list as the probe prints it. */
const listOf = (text: string): string[] => text.split('\0').slice(0, -1)

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

const probed = () => Sandbox.create(withProbe(policy('host-system')))

test('the one line of the README', async (t) => {
  const result = await run('python3', ['-c', 'print(6 * 7)'])
  const text: string = result.stdout
  t.is(text, '42')
  t.like(result, {
    status: 'exited',
    exitCode: 0,
    failed: false,
    stderr: '',
    file: 'python3',
    command: "python3 -c 'print(6 * 7)'",
  })
})

// ---- arguments ----------------------------------------------------------------------------------------------------------

const HOSTILE = [
  '',
  ' ',
  '--bind',
  '-',
  '--',
  ';rm -rf /',
  '$(id)',
  '`id`',
  '"\'\\',
  'a=b',
  'new\nline',
  '\r\t\u0001\u001B[31m',
  'ünïcödé 🙂',
  '\uFEFF\u202E\u2028',
  '../../etc/passwd',
  '%s%n{}*?[]~!#&|<>',
  '__proto__',
]

test('hostile arguments arrive byte by byte', async (t) => {
  const { stdout } = await (await probed()).run('/probe', ['args', ...HOSTILE])
  t.deepEqual(listOf(stdout), ['/probe', 'args', ...HOSTILE])
})

test('argv0 is what is asked for, the program is what is run', async (t) => {
  const sandbox = await probed()
  for (const argv0 of ['other name', '', '-sh', '/bin/true']) {
    // oxlint-disable-next-line no-await-in-loop
    const { stdout, file } = await sandbox.run('/probe', ['args'], { argv0 })
    t.deepEqual(listOf(stdout), [argv0, 'args'])
    t.is(file, '/probe')
  }
})

test('the longest argument that the kernel takes', async (t) => {
  const sandbox = await probed()
  // MAX_ARG_STRLEN, with the byte at its end.
  const longest = 'x'.repeat(131_071)
  const { stdoutBytes } = await sandbox.run('/probe', ['args', longest])
  t.is(stdoutBytes, '/probe'.length + 'args'.length + longest.length + 3)
  const error = await t.throwsAsync(sandbox.run('/probe', ['args', `${longest}x`]), { instanceOf: ExecError })
  t.is(error?.errnoName, 'E2BIG')
  t.regex(error?.message ?? '', /one argument or variable.*128 KiB/)
  const variable = await t.throwsAsync(sandbox.run('/probe', ['args'], { env: { LONG: longest } }))
  t.regex(variable?.message ?? '', /one argument or variable.*128 KiB/)
  // None of which is too long, and all of them are.
  const many = Array.from({ length: 100 }, () => longest)
  const together = await t.throwsAsync(sandbox.run('/probe', ['args', ...many]), { instanceOf: ExecError })
  t.is(together?.errnoName, 'E2BIG')
  t.regex(together?.hint ?? '', /together are larger than the kernel takes/)
})

test('arguments and environment of more than a megabyte', async (t) => {
  const sandbox = await probed()
  const args = Array.from({ length: 12 }, (_, index) => `${index}:${'y'.repeat(100_000)}`)
  const env = Object.fromEntries(args.slice(0, 3).map((value, index) => [`LONG_${index}`, value]))
  const { stdout } = await sandbox.run('/probe', ['args', ...args], { env })
  t.deepEqual(listOf(stdout).slice(2), args)
  const many = Array.from({ length: 20_000 }, (_, index) => String(index))
  t.deepEqual(listOf((await sandbox.run('/probe', ['args', ...many])).stdout).slice(2), many)
})

// ---- environment --------------------------------------------------------------------------------------------------------

const environment = async (sandbox: Sandbox, env?: Record<string, string | undefined>) =>
  listOf((await sandbox.run('/probe', ['env'], { env })).stdout).toSorted()

test.serial("the environment is exactly what was asked for, and none of it the host's", async (t) => {
  process.env['NESTBOX_TEST_SECRET'] = 'canary'
  process.env['LD_PRELOAD_FOR_TEST'] = '/nonexistent'
  t.teardown(() => {
    delete process.env['NESTBOX_TEST_SECRET']
    delete process.env['LD_PRELOAD_FOR_TEST']
  })
  const sandbox = await probed()
  t.deepEqual(await environment(sandbox), ['HOME=/tmp', `PATH=${DEFAULT_PATH}`, 'SANDBOX2_NOFORKSERVER=1'])
  t.deepEqual(await environment(sandbox, { PATH: undefined, HOME: undefined }), ['SANDBOX2_NOFORKSERVER=1'])
})

test("the launch's over the policy's over the default", async (t) => {
  const sandbox = await Sandbox.create(withProbe(policy('host-system')).env({ A: 'policy', B: 'policy', HOME: '/' }))
  t.deepEqual(await environment(sandbox, { B: 'launch', C: 'launch', PATH: undefined }), [
    'A=policy',
    'B=launch',
    'C=launch',
    'HOME=/',
    'SANDBOX2_NOFORKSERVER=1',
  ])
})

test('hostile values arrive byte by byte', async (t) => {
  const env = Object.fromEntries(HOSTILE.map((value, index) => [`NAME_${index} ü`, `${value}=${value}`]))
  const expected = Object.entries(env).map(([name, value]) => `${name}=${value}`)
  const seen = await environment(await probed(), env)
  for (const entry of expected) t.true(seen.includes(entry), JSON.stringify(entry))
  t.is(seen.length, expected.length + 3)
})

// ---- the program --------------------------------------------------------------------------------------------------------

test("a bare name is looked up in the sandbox's PATH and tree", async (t) => {
  const base = policy('host-system')
    .file('/first/tool', '#!/bin/sh\necho first\n', { mode: 0o755 })
    .file('/second/tool', '#!/bin/sh\necho second\n', { mode: 0o755 })
    .file('/none/tool', 'not executable')
  const sandbox = await Sandbox.create(base.env({ PATH: '/missing:/none:/first:/second' }))
  t.is((await sandbox.run('tool')).stdout, 'first')
  t.is((await sandbox.run('tool', [], { env: { PATH: '/second:/first' } })).stdout, 'second')
  t.is((await sandbox.run('/second/tool')).stdout, 'second')
  const elsewhere = await t.throwsAsync(sandbox.run('ls'), { instanceOf: ExecError })
  t.is(elsewhere?.errnoName, 'ENOENT')
  const refused = await t.throwsAsync(sandbox.run('tool', [], { env: { PATH: '/none' } }), { instanceOf: ExecError })
  t.is(refused?.errnoName, 'EACCES')
  // Without a PATH, as execvp(3) does.
  t.is((await sandbox.run('echo', ['x'], { env: { PATH: undefined } })).stdout, 'x')
})

test('a name with a slash is a path from the working directory', async (t) => {
  const sandbox = await Sandbox.create(
    policy('host-system').file('/tools/tool', '#!/bin/sh\necho here\n', { mode: 0o755 }),
  )
  t.is((await sandbox.run('./tool', [], { cwd: '/tools' })).stdout, 'here')
  await t.throwsAsync(sandbox.run('./tool'), { instanceOf: ExecError })
})

test('scripts know their interpreter', async (t) => {
  const sandbox = await Sandbox.create(
    policy('host-system')
      .file('/script', '#!/bin/sh -e\necho "$0 $1"\n', { mode: 0o755 })
      .file('/broken', '#!/no/such/interpreter\n', { mode: 0o755 })
      .file('/garbage', 'neither ELF nor script', { mode: 0o755 }),
  )
  t.is((await sandbox.run('/script', ['argument'])).stdout, '/script argument')
  const broken = await t.throwsAsync(sandbox.run('/broken'), { instanceOf: ExecError })
  t.like(broken, { errnoName: 'ENOENT', step: 'exec', code: 'ERR_NESTBOX_EXEC', path: '/broken' })
  t.regex(broken?.hint ?? '', /interpreter/)
  const garbage = await t.throwsAsync(sandbox.run('/garbage'), { instanceOf: ExecError })
  t.is(garbage?.errnoName, 'ENOEXEC')
  t.regex(garbage?.hint ?? '', /#!/)
})

test('what can not be executed is an error of its own, and no result', async (t) => {
  for (const [file, errnoName] of [
    ['/no/such/file', 'ENOENT'],
    ['no-such-program-anywhere', 'ENOENT'],
    ['/etc/hosts', 'EACCES'],
    ['/usr', 'EACCES'],
    ['/usr/bin/env/x', 'ENOTDIR'],
  ] as const) {
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(run(file), { instanceOf: ExecError })
    t.true(error instanceof SpawnError)
    t.true([errnoName, 'ENOENT'].includes(error?.errnoName ?? ''), `${file}: ${error?.errnoName}`)
    t.is(error?.step, 'exec')
    t.true((error?.message ?? '').includes(file))
  }
})

// ---- working directory --------------------------------------------------------------------------------------------------

test('cwd', async (t) => {
  t.is(await shout({ run }, 'pwd'), '/tmp')
  t.is((await run('pwd', [], { cwd: '/usr/bin/' })).stdout, '/usr/bin')
  const empty = await Sandbox.create(policy().bind('/usr').symlink('/lib', 'usr/lib').symlink('/lib64', 'usr/lib64'))
  t.is((await empty.run('/usr/bin/pwd')).stdout, '/')
})

test('a cwd that is not there, or is none', async (t) => {
  for (const [cwd, errnoName] of [
    ['/no/such/directory', 'ENOENT'],
    ['/etc/hosts', 'ENOTDIR'],
  ] as const) {
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(run('pwd', [], { cwd }), { instanceOf: SpawnError })
    t.like(error, { errnoName, step: 'change-directory', syscall: 'chdir', path: cwd })
    t.regex(error?.hint ?? '', /path inside/)
    t.false(error instanceof ExecError)
  }
  // The next one works.
  t.is((await run('pwd')).stdout, '/tmp')
})

// ---- files --------------------------------------------------------------------------------------------------------------

test('files are private copies with a mode, directories are made for them', async (t) => {
  const bytes = Uint8Array.of(0, 255, 10, 13)
  const files = {
    '/tmp/a.txt': 'text\n',
    '/tmp/some/where/b.bin': bytes,
    '/tmp/script': { content: 'x', mode: 0o750 },
    '/dev/shm/large': 'z'.repeat(2_000_000),
    '/tmp/ünï "cödé"': '',
  }
  const script = `stat -c '%a %u:%g %s %n' /tmp/a.txt /tmp/some /tmp/some/where/b.bin /tmp/script /dev/shm/large /tmp/ü*
    od -An -tx1 /tmp/some/where/b.bin; echo more >> /tmp/a.txt; touch /tmp/some/where/else; cat /tmp/a.txt`
  const { stdout, stderr } = await sh({ run }, script, { files, lines: true })
  t.is(stderr.length, 0, stderr.join())
  t.regex(stdout[1] ?? '', /^755 1000:1000 \d+ \/tmp\/some$/)
  t.deepEqual(
    [stdout[0], ...stdout.slice(2)],
    [
      '644 1000:1000 5 /tmp/a.txt',
      '644 1000:1000 4 /tmp/some/where/b.bin',
      '750 1000:1000 1 /tmp/script',
      '644 1000:1000 2000000 /dev/shm/large',
      '644 1000:1000 0 /tmp/ünï "cödé"',
      ' 00 ff 0a 0d',
      'text',
      'more',
    ],
  )
  t.is(await shout({ run }, 'ls -A /tmp /dev/shm'), '/dev/shm:\n\n/tmp:')
})

test('files can only be put where the nest has its own file system', async (t) => {
  for (const at of ['/usr/file', '/file', '/etc/hosts']) {
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(run('true', [], { files: { [at]: 'x' } }))
    t.regex((error as { code?: string }).code ?? '', /^ERR_NESTBOX_(?:SPAWN|REQUEST)$/)
    t.true(error?.message.includes(at), error?.message)
  }
  const refused = await t.throwsAsync(run('true', [], { files: { '/tmp/a': 'x', '/usr/./file': 'x' } }), {
    instanceOf: RequestError,
  })
  t.deepEqual(
    refused?.issues.map((issue) => issue.path),
    [['files', '/usr/file']],
  )
})

test("a file below a link of the policy's makes nothing where that leads", async (t) => {
  const directory = scratch(t)
  chmodSync(directory, 0o777)
  const linking = policy('host-system').tmpfs('/work').symlink('/work/link', '/data')
  const sandbox = await Sandbox.create(linking.bind(directory, '/data', { writable: true }))
  t.like(await sandbox.run('mkdir', ['/work/link/by-the-program']), { exitCode: 0 })
  t.deepEqual(readdirSync(directory), ['by-the-program'], 'a program may')
  const error = await t.throwsAsync(sandbox.run('true', [], { files: { '/work/link/by-the-launch/file': 'x' } }))
  t.like(error, { errnoName: 'ELOOP', step: 'write-launch-file', path: '/work/link/by-the-launch/file' })
  t.deepEqual(readdirSync(directory), ['by-the-program'])
})

test('a file that is in the way of another, or of the policy, is refused', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system').tmpfs('/work').file('/work/there', 'policy\n'))
  await t.throwsAsync(sandbox.run('true', [], { files: { '/work/there': 'launch' } }))
  await t.throwsAsync(sandbox.run('true', [], { files: { '/work/a': 'x', '/work/a/b': 'y' } }))
  t.is((await sandbox.run('cat', ['/work/there'])).stdout, 'policy')
})

test('files of any size and number arrive whole', async (t) => {
  const content = (index: number): Buffer => Buffer.alloc(index % 3 === 0 ? index : 65_535 + index, `${index} `)
  const names = Array.from({ length: 260 }, (_, index) => `/tmp/${index}`)
  const files = Object.fromEntries(names.map((name, index) => [name, content(index)]))
  const large = Buffer.alloc(40 * 1024 * 1024, 'a line of it\n')
  const sums = [...names.map((_, index) => content(index)), large].map(sha256)
  const sandbox = await Sandbox.create(policy('host-system').limits({ disk: '128MiB' }))
  const { stdout } = await sh(sandbox, 'cd /tmp; sha256sum $(ls | sort -n) | cut -d" " -f1; ls /proc/self/fd | wc -l', {
    files: { ...files, '/tmp/1000': large },
    lines: true,
  })
  t.deepEqual(stdout, [...sums, '4'])
})

test('a file larger than the disk does not fit, and says so', async (t) => {
  for (const [size, syscall] of [
    [60_000, 'write'],
    [200_000, 'sendfile'],
  ] as const) {
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(
      run('true', [], { files: { '/tmp/x': new Uint8Array(size) }, limits: { disk: '32KiB' } }),
      { instanceOf: SpawnError },
    )
    t.like(error, { errnoName: 'ENOSPC', syscall, step: 'write-launch-file', path: '/tmp/x' })
    t.regex(error?.hint ?? '', /limits\.disk/)
  }
})

test('files of a writable bind are not touched by launch files', async (t) => {
  const directory = scratch(t)
  const sandbox = await Sandbox.create(policy('host-system').bind(directory, '/data', { writable: true }))
  await t.throwsAsync(sandbox.run('true', [], { files: { '/data/x': 'y' } }))
  t.is((await sandbox.run('ls', ['/data'])).stdout, '')
})
