// Bind sources over time: mount points that launches fill, sources that are missing, of the wrong type, replaced; and that
// the host's own files are the same afterwards, but for what was written to writable binds.

import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'

import { ForkServer, policy, RequestError, Sandbox, SpawnError } from '../index.ts'
import { isRoot, scratch } from './helpers.ts'
import { shout, withProbe } from './inside.ts'

const directoryWith = (t: ExecutionContext, content: string): string => {
  const directory = path.join(scratch(t), 'directory')
  mkdirSync(directory)
  writeFileSync(path.join(directory, 'file'), content)
  // So that only the mount speaks against writing.
  chmodSync(path.join(directory, 'file'), 0o666)
  return directory
}

/** Every path below a directory with all that could have changed. */
const inventory = (directory: string): string[] => {
  const found: string[] = []
  const visit = (at: string): void => {
    const { ino, mode, uid, gid, size, mtimeNs, ctimeNs } = lstatSync(at, { bigint: true })
    found.push([at, ino, mode, uid, gid, size, mtimeNs, ctimeNs].join(' '))
    if (lstatSync(at).isDirectory()) for (const name of readdirSync(at).toSorted()) visit(path.join(at, name))
  }
  visit(directory)
  return found
}

// ---- mount points -------------------------------------------------------------------------------------------------------

test('a launch fills a mount point, with a directory or a file', async (t) => {
  const first = directoryWith(t, 'first\n')
  const second = directoryWith(t, 'second\n')
  const sandbox = await Sandbox.create(withProbe(policy('host-system')).mountPoint('/in/put'))
  for (const [source, content] of [
    [first, 'first'],
    [second, 'second'],
  ] as const) {
    const binds = { '/in/put': source }
    // oxlint-disable-next-line no-await-in-loop
    t.is((await sandbox.run('cat', ['/in/put/file'], { binds })).stdout, content)
    // oxlint-disable-next-line no-await-in-loop
    t.is((await sandbox.run('/probe', ['create', '/in/put/new'], { binds })).stdout, 'EROFS')
  }
  const file = path.join(first, 'file')
  t.is((await sandbox.run('cat', ['/in/put'], { binds: { '/in/put': file } })).stdout, 'first')
  t.is((await sandbox.run('/probe', ['write', '/in/put'], { binds: { '/in/put': file } })).stdout, 'EROFS')
})

test('a mount point that is not filled is empty', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system').mountPoint('/in'))
  t.is(await shout(sandbox, 'ls -A /in 2> /dev/null || true'), '')
})

test('several, filled at once, some writable', async (t) => {
  const input = directoryWith(t, 'input\n')
  const output = directoryWith(t, 'output\n')
  const sandbox = await Sandbox.create(
    withProbe(policy('host-system')).mountPoint('/in').mountPoint('/out', { writable: true }),
  )
  const result = await sandbox.run('cp', ['/in/file', '/out/copy'], { binds: { '/in': input, '/out': output } })
  t.is(result.stderr, '')
  t.is(readFileSync(path.join(output, 'copy'), 'utf8'), 'input\n')
})

test('nothing else may be bound by a launch', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system').mountPoint('/in'))
  const error = await t.throwsAsync(sandbox.run('true', [], { binds: { '/etc': '/root', '/in/x': '/' } }), {
    instanceOf: RequestError,
  })
  t.deepEqual(
    error?.issues.map((issue) => issue.path),
    [
      ['binds', '/etc'],
      ['binds', '/in/x'],
    ],
  )
})

test('the source of a launch bind must be there', async (t) => {
  const missing = path.join(scratch(t), 'missing')
  const sandbox = await Sandbox.create(policy('host-system').mountPoint('/in'))
  const error = await t.throwsAsync(sandbox.run('true', [], { binds: { '/in': missing } }), { instanceOf: SpawnError })
  t.like(error, { errnoName: 'ENOENT', step: 'open-bind-source', path: missing })
  t.regex(error?.hint ?? '', /not there on the host/)
  t.is((await sandbox.run('echo', ['still'])).stdout, 'still')
})

test('launches with binds run at once, each with its own', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system').mountPoint('/in'))
  const sources = Array.from({ length: 12 }, (_, index) => directoryWith(t, `number ${index}\n`))
  const seen = await Promise.all(
    sources.map(async (source) => (await sandbox.run('cat', ['/in/file'], { binds: { '/in': source } })).stdout),
  )
  t.deepEqual(
    seen,
    sources.map((_, index) => `number ${index}`),
  )
})

// ---- sources ------------------------------------------------------------------------------------------------------------

test('a missing source makes launches fail, and says what to do', async (t) => {
  const missing = path.join(scratch(t), 'missing')
  const sandbox = await Sandbox.create(policy('host-system').bind(missing, '/data'))
  const error = await t.throwsAsync(sandbox.run('true'), { instanceOf: SpawnError })
  t.like(error, { code: 'ERR_NESTBOX_SPAWN', errnoName: 'ENOENT', errno: 2, step: 'open-bind-source', path: missing })
  t.regex(error?.hint ?? '', /optional/)
  t.regex(error?.message ?? '', /missing/)
  // Once it is there, it works.
  mkdirSync(missing)
  t.is((await sandbox.run('ls', ['/data'])).stdout, '')
})

test("a launch's bind of a missing source is not told to be optional, which it can't be", async (t) => {
  const missing = path.join(scratch(t), 'missing')
  const sandbox = await Sandbox.create(policy('host-system').mountPoint('/in'))
  const error = await t.throwsAsync(sandbox.run('true', [], { binds: { '/in': missing } }), { instanceOf: SpawnError })
  t.like(error, { errnoName: 'ENOENT', step: 'open-bind-source', path: missing })
  t.regex(error?.hint ?? '', /correct the launch's binds/)
  t.notRegex(error?.hint ?? '', /optional/)
})

test('an optional one is left out, and the result says so', async (t) => {
  const missing = path.join(scratch(t), 'missing')
  const sandbox = await Sandbox.create(policy('host-system').bind(missing, '/data', { optional: true }))
  const { stdout, isolation } = await sandbox.run('ls', ['/'])
  t.notRegex(stdout, /^data$/m)
  t.deepEqual(isolation.skipped, ['/data'])
  mkdirSync(missing)
  writeFileSync(path.join(missing, 'file'), 'there\n')
  const later = await sandbox.run('cat', ['/data/file'])
  t.is(later.stdout, 'there')
  t.deepEqual(later.isolation.skipped, [])
})

test('a file can not be bound over a directory of another bind', async (t) => {
  const directory = directoryWith(t, 'x')
  mkdirSync(path.join(directory, 'sub'))
  const sandbox = await Sandbox.create(
    policy('host-system').bind(directory, '/data').bind(path.join(directory, 'file'), '/data/sub'),
  )
  const error = await t.throwsAsync(sandbox.run('true'), { instanceOf: SpawnError })
  t.regex(error?.errnoName ?? '', /ENOTDIR|EISDIR|EINVAL/)
  t.is(error?.path, '/data/sub')
  t.regex(error?.hint ?? '', /file where a directory is expected/)
})

test('a bind to where a bound directory has nothing fails, and makes nothing there', async (t) => {
  const directory = directoryWith(t, 'x')
  const before = inventory(directory)
  const sandbox = await Sandbox.create(
    policy('host-system').bind(directory, '/data', { writable: true }).bind(directory, '/data/none'),
  )
  await t.throwsAsync(sandbox.run('true'), { instanceOf: SpawnError })
  t.deepEqual(inventory(directory), before)
})

test('a source that is a link is what it points to, and followed anew when it changes', async (t) => {
  const link = path.join(scratch(t), 'link')
  symlinkSync(directoryWith(t, 'one\n'), link)
  const sandbox = await Sandbox.create(policy('host-system').bind(link, '/data'))
  t.is((await sandbox.run('cat', ['/data/file'])).stdout, 'one')
  rmSync(link)
  symlinkSync(directoryWith(t, 'two\n'), link)
  t.is((await sandbox.run('cat', ['/data/file'])).stdout, 'two')
})

test('a source that is replaced is seen as it is now', async (t) => {
  const directory = directoryWith(t, 'old\n')
  await using server = await ForkServer.start()
  const sandbox = await Sandbox.create(policy('host-system').bind(directory, '/data'), { server })
  t.is((await sandbox.run('cat', ['/data/file'])).stdout, 'old')
  renameSync(directory, `${directory}.old`)
  mkdirSync(directory)
  writeFileSync(path.join(directory, 'file'), 'new\n')
  t.is((await sandbox.run('cat', ['/data/file'])).stdout, 'new')
  rmSync(directory, { recursive: true })
  await t.throwsAsync(sandbox.run('cat', ['/data/file']), { instanceOf: SpawnError })
  renameSync(`${directory}.old`, directory)
  t.is((await sandbox.run('cat', ['/data/file'])).stdout, 'old')
})

test('a file of the base that is replaced is seen by the next launch, one that is written into by the one after', (t) => {
  const etc = directoryWith(t, '')
  writeFileSync(path.join(etc, 'magic.nestbox'), 'as it was')
  chmodSync(etc, 0o755)
  const script = fileURLToPath(new URL('fixtures/base-changes.ts', import.meta.url))
  const command = [
    'sh',
    '-ec',
    'mount --bind "$0" /etc && exec "$@"',
    etc,
    process.execPath,
    ...process.execArgv,
    script,
  ]
  const seen = execFileSync('unshare', [...(isRoot ? ['-m'] : ['-U', '-m', '-r']), ...command], { encoding: 'utf8' })
  t.deepEqual(JSON.parse(seen), ['as it was', 'replaced', 'written'])
})

test('a change within the source needs no new template', async (t) => {
  const directory = directoryWith(t, 'old\n')
  await using server = await ForkServer.start()
  const sandbox = await Sandbox.create(policy('host-system').bind(directory, '/data'), { server })
  t.is((await sandbox.run('cat', ['/data/file'])).stdout, 'old')
  writeFileSync(path.join(directory, 'file'), 'new\n')
  t.is((await sandbox.run('cat', ['/data/file'])).stdout, 'new')
  t.is(server.stats().templates, 1)
})

test('a directory below the source that becomes a link leads nowhere outside', async (t) => {
  const secret = directoryWith(t, 'secret\n')
  const directory = directoryWith(t, 'harmless\n')
  mkdirSync(path.join(directory, 'sub'))
  const sandbox = await Sandbox.create(policy('host-system').bind(directory, '/data').bind(secret, '/data/sub/x'))
  rmSync(path.join(directory, 'sub'), { recursive: true })
  symlinkSync(secret, path.join(directory, 'sub'))
  const plain = await Sandbox.create(policy('host-system').bind(directory, '/data'))
  const { stdout, failed } = await plain.run('cat', ['/data/sub/file'])
  t.true(failed)
  t.is(stdout, '')
  // Nor does what is to be mounted there.
  const before = inventory(secret)
  await t.throwsAsync(sandbox.run('true'), { instanceOf: SpawnError })
  t.deepEqual(inventory(secret), before)
})

test('a link in a bind does not lead the target of another bind elsewhere; one of the base does', async (t) => {
  const directory = directoryWith(t, 'here\n')
  const other = directoryWith(t, 'other\n')
  mkdirSync(path.join(directory, 'real'))
  for (const [name, to] of [
    ['away', '/usr/local'],
    ['near', 'real'],
    ['up', '../etc'],
  ] as const) {
    symlinkSync(to, path.join(directory, name))
    // oxlint-disable-next-line no-await-in-loop
    const sandbox = await Sandbox.create(policy('host-system').bind(directory, '/data').bind(other, `/data/${name}`))
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(sandbox.run('true'), { instanceOf: SpawnError })
    t.like(error, { step: 'attach-bind', errnoName: 'ELOOP' })
    t.regex(error?.message ?? '', /no link is followed/)
  }
  const plain = await Sandbox.create(policy('host-system').bind(directory, '/data').bind(other, '/data/real'))
  t.is((await plain.run('cat', ['/data/real/file'])).stdout, 'other')
  // /bin is a link of the tree's own where the host has it so.
  const replaced = policy('host-system').bind(path.join(other, 'file'), '/bin/true')
  t.is((await (await Sandbox.create(replaced)).run('cat', ['/bin/true'])).stdout, 'other')
})

test('a source that is swapped for a link, again and again, is the one or the other or is refused', async (t) => {
  const top = scratch(t)
  const [real, secret, source] = ['real', 'secret', 'source'].map((name) => path.join(top, name)) as [
    string,
    string,
    string,
  ]
  for (const [directory, content] of [
    [real, 'real\n'],
    [secret, 'secret\n'],
  ] as const) {
    mkdirSync(directory)
    writeFileSync(path.join(directory, 'file'), content)
  }
  renameSync(real, source)
  const sandbox = await Sandbox.create(policy('host-system').mountPoint('/in'))
  const stop = new AbortController()
  const swapped = (async () => {
    while (!stop.signal.aborted) {
      renameSync(source, real)
      symlinkSync(secret, source)
      // oxlint-disable-next-line no-await-in-loop
      await new Promise(setImmediate)
      rmSync(source)
      renameSync(real, source)
      // oxlint-disable-next-line no-await-in-loop
      await new Promise(setImmediate)
    }
  })()
  for (let turn = 0; turn < 60; turn += 1) {
    try {
      // oxlint-disable-next-line no-await-in-loop
      const { stdout } = await sandbox.run('cat', ['/in/file'], { binds: { '/in': source } })
      // What the name leads to is the caller's affair; that it is looked at once, and never half, is ours.
      t.true(['real', 'secret'].includes(stdout), stdout)
    } catch (error) {
      t.true(error instanceof SpawnError, String(error))
    }
  }
  stop.abort()
  await swapped
  t.is((await sandbox.run('cat', ['/in/file'], { binds: { '/in': source } })).stdout, 'real')
})

// ---- what is left -------------------------------------------------------------------------------------------------------

/** The host's. */
const ids = () => ({ uid: process.getuid?.() ?? -1, gid: process.getgid?.() ?? -1 })

test('files written to a writable bind belong to the caller, inside they are of the program', async (t) => {
  const directory = directoryWith(t, 'x')
  const sandbox = await Sandbox.create(policy('host-system').bind(directory, '/data', { writable: true }))
  t.is(
    await shout(sandbox, "mkdir /data/sub; echo y > /data/sub/new; stat -c '%u %g' /data /data/file /data/sub/new"),
    '1000 1000\n1000 1000\n1000 1000',
  )
  const { uid, gid } = statSync(path.join(directory, 'sub', 'new'))
  t.deepEqual({ uid, gid }, ids())
  t.is(readFileSync(path.join(directory, 'sub', 'new'), 'utf8'), 'y\n')
})

test("a launch's writable bind as well", async (t) => {
  const directory = directoryWith(t, 'x')
  const sandbox = await Sandbox.create(policy('host-system').mountPoint('/out', { writable: true }))
  const { stderr } = await sandbox.run('touch', ['/out/new'], { binds: { '/out': directory } })
  t.is(stderr, '')
  const { uid, gid } = statSync(path.join(directory, 'new'))
  t.deepEqual({ uid, gid }, ids())
})

test("the host's files are untouched: no target made, nothing left, no time changed", async (t) => {
  const home = scratch(t)
  for (const name of ['a', 'b/c', 'b/d']) mkdirSync(path.join(home, name), { recursive: true })
  writeFileSync(path.join(home, 'b', 'file'), 'x')
  symlinkSync('b', path.join(home, 'link'))
  const before = inventory(home)
  const sandbox = await Sandbox.create(
    policy('host-system')
      .bind(home, '/home/user')
      .bind(path.join(home, 'a'), '/somewhere/new/a', { writable: true })
      .tmpfs('/home/user/b/c')
      .tmpfs('/work')
      .mountPoint('/in')
      .file('/generated/file', 'x'),
  )
  for (let turn = 0; turn < 3; turn += 1) {
    // oxlint-disable-next-line no-await-in-loop
    const result = await sandbox.run(
      'sh',
      ['-c', 'touch /home/user/b/c/x /work/y /tmp/z; ls -R /home/user /somewhere'],
      {
        binds: { '/in': path.join(home, 'b') },
        files: { '/tmp/deep/file': 'x' },
        outputs: { y: { path: '/work/y', maxBytes: 10 } },
      },
    )
    t.is(result.stderr, '')
  }
  await sandbox.run('sh', ['-c', 'kill -9 $$'])
  await t.throwsAsync(sandbox.run('/nonexistent'))
  await sandbox.destroy()
  t.deepEqual(inventory(home), before)
})
