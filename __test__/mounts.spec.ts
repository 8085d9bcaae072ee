// What a policy mounts: binds and what their mounts may do, tmpfs and their bounds, files, links, libraries.

import { execFileSync } from 'node:child_process'
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import { ExecError, type Launcher, policy, type PolicyBuilder, Sandbox } from '../index.ts'
import { isRoot, scratch } from './helpers.ts'
import { type Mount, mountAt, mountsOf, probe, sh, shout, withProbe } from './inside.ts'

const mounts = async (launcher: Pick<Launcher, 'run'>): Promise<Mount[]> =>
  mountsOf((await launcher.run('cat', ['/proc/self/mountinfo'])).stdout)

/** A directory with a file and a directory with a file, which anybody may write to. */
const tree = (t: Parameters<typeof scratch>[0]): string => {
  const directory = path.join(scratch(t), 'tree')
  mkdirSync(path.join(directory, 'sub'), { recursive: true })
  writeFileSync(path.join(directory, 'file'), 'content\n')
  writeFileSync(path.join(directory, 'sub', 'file'), 'deeper\n')
  // So that only the mount speaks against writing.
  for (const name of ['', 'sub']) chmodSync(path.join(directory, name), 0o777)
  for (const name of ['file', 'sub/file']) chmodSync(path.join(directory, name), 0o666)
  return directory
}

// ---- binds --------------------------------------------------------------------------------------------------------------

test('a bind is read-only', async (t) => {
  const directory = tree(t)
  const sandbox = await Sandbox.create(withProbe(policy('host-system')).bind(directory, '/data'))
  t.is(await shout(sandbox, 'cat /data/file /data/sub/file'), 'content\ndeeper')
  for (const [what, at] of [
    ['write', '/data/file'],
    ['create', '/data/new'],
    ['create', '/data/sub/new'],
  ] as const) {
    // oxlint-disable-next-line no-await-in-loop
    t.is((await sandbox.run('/probe', [what, at])).stdout, 'EROFS', at)
  }
  const remains = await sh(sandbox, 'rm -rf /data/*; mv /data/file /data/x; ln /data/file /tmp/x; ls /data')
  t.is(remains.stdout, 'file\nsub')
  t.is(readFileSync(path.join(directory, 'file'), 'utf8'), 'content\n')
})

test('a writable bind can be written to, and what is written stays', async (t) => {
  const directory = tree(t)
  const sandbox = await Sandbox.create(policy('host-system').bind(directory, '/data', { writable: true }))
  await shout(sandbox, 'echo new > /data/sub/new; rm /data/file')
  t.is(await shout(sandbox, 'ls /data; cat /data/sub/new'), 'sub\nnew')
  t.is(readFileSync(path.join(directory, 'sub', 'new'), 'utf8'), 'new\n')
})

test('a file can be bound by itself, anywhere', async (t) => {
  const directory = tree(t)
  const file = path.join(directory, 'file')
  const sandbox = await Sandbox.create(policy('host-system').bind(file, '/some/where/else.txt').bind(file))
  t.is(
    await shout(sandbox, `cat /some/where/else.txt ${file}; ls /some/where; ls ${directory}`),
    'content\ncontent\nelse.txt\nfile',
  )
})

test('a bind below a bind', async (t) => {
  const directory = tree(t)
  const other = tree(t)
  writeFileSync(path.join(other, 'file'), 'other\n')
  const sandbox = await Sandbox.create(
    policy('host-system').bind(directory, '/data').bind(other, '/data/sub', { writable: true }),
  )
  t.is(await shout(sandbox, 'cat /data/file /data/sub/file; touch /data/sub/new'), 'content\nother')
  t.not((await sh(sandbox, 'touch /data/new')).stderr, '')
})

test('the last call for a path wins', async (t) => {
  const directory = tree(t)
  const file = path.join(directory, 'file')
  const first = policy('host-system').bind(directory, '/data', { writable: true })
  const sandbox = await Sandbox.create(first.bind(path.join(directory, 'sub'), '/data'))
  t.is(await shout(sandbox, 'cat /data/file'), 'deeper')
  t.not((await sh(sandbox, 'touch /data/new')).stderr, '')
  t.is(readFileSync(file, 'utf8'), 'content\n')
})

test('a part of the base can be replaced', async (t) => {
  const sandbox = await Sandbox.create(
    policy('host-system').file('/etc/hosts', 'mine\n').tmpfs('/tmp', { size: '1MiB' }),
  )
  t.is(await shout(sandbox, 'cat /etc/hosts; df -k --output=size /tmp | tail -1 | tr -d " "'), 'mine\n1024')
})

test('everything is nosuid, nodev but for devices; writable binds are noexec unless asked for', async (t) => {
  const directory = tree(t)
  const built = policy('host-system')
    .bind(directory, '/ro')
    .bind(directory, '/rw', { writable: true })
    .bind(directory, '/rwx', { writable: true, exec: true })
    .bind(directory, '/r', { exec: false })
    .tmpfs('/scratch')
    .file('/file', '')
  const all = await mounts(await Sandbox.create(built))
  for (const { point, options, type } of all) {
    t.true(options.includes('nosuid'), `${point}: ${options.join()}`)
    const device =
      type === 'devpts' || (point.startsWith('/dev/') && point !== '/dev/shm') || point.startsWith('/proc/')
    t.true(device || options.includes('nodev'), `${point}: ${options.join()}`)
  }
  const has = (point: string, yes: string[], no: string[]): void => {
    const { options } = mountAt(all, point)
    for (const option of yes) t.true(options.includes(option), `${point} ${option}: ${options.join()}`)
    for (const option of no) t.false(options.includes(option), `${point} ${option}: ${options.join()}`)
  }
  has('/', ['ro', 'nodev'], [])
  has('/usr', ['ro', 'nodev'], ['noexec'])
  has('/ro', ['ro', 'nodev'], ['noexec'])
  has('/r', ['ro', 'noexec'], [])
  has('/rw', ['rw', 'noexec'], [])
  has('/rwx', ['rw'], ['noexec'])
  has('/tmp', ['rw', 'nodev'], ['noexec'])
  has('/scratch', ['rw', 'nodev'], ['noexec'])
  has('/dev/shm', ['rw', 'noexec', 'nodev'], [])
  has('/proc', ['nosuid', 'nodev', 'noexec'], [])
})

test("the sandboxee's mounts are of the policy alone: nothing of the host's table shows", async (t) => {
  const allowed = /^\/(?:$|usr|bin|sbin|lib|etc|tmp|dev|proc)/
  for (const { point } of await mounts(await Sandbox.create())) t.regex(point, allowed)
  // Without /dev, too, which the masks of /proc would otherwise come from.
  const few = await Sandbox.create(withProbe(policy()).proc('fresh'))
  const { stdout } = await few.run('/probe', ['cat', '/proc/self/mountinfo'])
  for (const { point } of mountsOf(stdout)) t.regex(point, /^\/(?:$|probe$|proc)/)
  const listed = await few.run('/probe', ['list', '/'], { lines: true })
  t.deepEqual(listed.stdout.toSorted(), ['- /probe', 'd /', 'd /proc'])
  for (const file of ['/proc/kcore', '/proc/keys', '/proc/timer_list']) {
    // oxlint-disable-next-line no-await-in-loop
    t.true(['', 'EACCES', 'ENOENT'].includes((await few.run('/probe', ['cat', file])).stdout), file)
  }
  const written = (await few.run('/probe', ['write', '/proc/sysrq-trigger'])).stdout
  t.true(['EROFS', 'EACCES', 'ENOENT'].includes(written), written)
})

test('programs: not from writable places, unless asked for', async (t) => {
  const directory = tree(t)
  const program = path.join(directory, 'program')
  writeFileSync(program, '#!/bin/sh\necho ran\n')
  chmodSync(program, 0o755)
  const run = async (built: PolicyBuilder) => (await Sandbox.create(built)).run('/data/program')
  t.is((await run(policy('host-system').bind(directory, '/data'))).stdout, 'ran')
  t.is((await run(policy('host-system').bind(directory, '/data', { writable: true, exec: true }))).stdout, 'ran')
  for (const options of [{ writable: true }, { exec: false }]) {
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(run(policy('host-system').bind(directory, '/data', options)), {
      instanceOf: ExecError,
    })
    t.is(error?.errnoName, 'EACCES')
  }
})

test('what is mounted below a source comes along, as read-only as the rest', (t) => {
  const directory = tree(t)
  const script = fileURLToPath(new URL('fixtures/submount.ts', import.meta.url))
  // A mount namespace of its own, so that nothing happens to the host: root has one for the asking, others need to be
  // mighty in a user namespace for a moment.
  const unshare = isRoot ? ['-m'] : ['-U', '-m', '--map-current-user', '--keep-caps']
  const command = [
    probe(),
    'with-submount',
    path.join(directory, 'sub'),
    process.execPath,
    ...process.execArgv,
    script,
    directory,
  ]
  const seen: unknown = JSON.parse(execFileSync('unshare', [...unshare, ...command], { encoding: 'utf8' }))
  t.deepEqual(seen, {
    readOnly: { content: 'below', write: 'EROFS', create: 'EROFS', options: ['ro', 'nosuid', 'nodev'] },
    writable: { content: 'below', write: 'ok', create: 'ok', options: ['rw', 'nosuid', 'nodev', 'noexec'] },
  })
})

// ---- tmpfs --------------------------------------------------------------------------------------------------------------

test('a tmpfs has its size, and no more', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system').tmpfs('/small', { size: '1MiB' }))
  const { stdout, stderr, limitsHit } = await sh(
    sandbox,
    'head -c 900K /dev/zero > /small/a && echo fits; head -c 900K /dev/zero > /small/b || echo full; stat -c %s /small/b',
  )
  const [fits, full, size] = stdout.split('\n')
  t.deepEqual([fits, full], ['fits', 'full'])
  t.true(Number(size) <= 124 * 1024)
  t.regex(stderr, /No space left/)
  t.deepEqual(limitsHit, ['disk'])
})

test('the default size is the limit disk, which a launch tightens', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system').limits({ disk: '4MiB' }).tmpfs('/large', { size: '8MiB' }))
  const sizes = "df -k --output=size /tmp /dev/shm /large | tail -3 | tr -d ' '"
  t.is((await sh(sandbox, sizes, { limits: { disk: '1MiB' } })).stdout, '1024\n1024\n1024')
  const [tmp, shm] = (await shout(sandbox, sizes)).split('\n')
  t.deepEqual([tmp, shm], ['4096', '4096'])
})

test('a tmpfs has its inodes, and no more', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system').tmpfs('/few', { inodes: 10 }))
  const { stdout, stderr } = await sh(
    sandbox,
    'for i in 1 2 3 4 5 6 7 8 9 10 11 12; do touch /few/$i; done; ls /few | wc -l',
  )
  t.true(Number(stdout) <= 10 && Number(stdout) >= 8, stdout)
  t.regex(stderr, /No space left/)
})

test('a tmpfs has its mode', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system').tmpfs('/closed', { mode: 0o700 }).tmpfs('/open'))
  t.is(await shout(sandbox, "stat -c '%a %u' /closed /open; touch /closed/mine"), '700 1000\n1777 1000')
})

// ---- files and links ----------------------------------------------------------------------------------------------------

test('files from memory', async (t) => {
  const bytes = Uint8Array.from({ length: 256 }, (_, index) => index)
  const sandbox = await Sandbox.create(
    policy('host-system')
      .file('/a/b/text', 'grüße\n')
      .file('/a/bytes', bytes)
      .file('/a/empty', '')
      .file('/script', '#!/bin/sh\necho ran\n', { mode: 0o755 })
      .file('/large', 'x'.repeat(3_000_000)),
  )
  t.is(await shout(sandbox, 'cat /a/b/text; stat -c %a /a/b/text /script; wc -c < /large'), 'grüße\n644\n755\n3000000')
  const { stdout } = await sandbox.run('cat', ['/a/bytes'], { encoding: 'buffer' })
  t.deepEqual(stdout, bytes)
  t.is((await sandbox.run('cat', ['/a/empty'])).stdout, '')
  const refused = await sh(sandbox, 'echo x > /a/empty; rm -f /a/empty; ls /a')
  t.is(refused.stdout, 'b\nbytes\nempty')
})

test('a file in a tmpfs of the policy is there again for each launch', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system').tmpfs('/work').file('/work/data/file', 'fresh\n'))
  t.is(await shout(sandbox, 'cat /work/data/file; touch /work/other; ls /work'), 'fresh\ndata\nother')
  t.is(await shout(sandbox, 'cat /work/data/file; ls /work'), 'fresh\ndata')
})

test('symbolic links, wherever they point', async (t) => {
  const sandbox = await Sandbox.create(
    policy('host-system')
      .file('/real', 'x\n')
      .symlink('/links/absolute', '/real')
      .symlink('/links/relative', '../real')
      .symlink('/dangling', 'no such thing'),
  )
  t.is(await shout(sandbox, 'cat /links/absolute /links/relative; readlink /dangling'), 'x\nx\nno such thing')
})

// ---- libraries ----------------------------------------------------------------------------------------------------------

test('librariesFor: what a dynamic program needs, and nothing else', async (t) => {
  const program = execFileSync('sh', ['-c', 'readlink -f "$(command -v cat)"'], { encoding: 'utf8' }).trim()
  const bare = policy().bind(program, '/cat').file('/hello', 'hello\n')
  const error = await t.throwsAsync((await Sandbox.create(bare)).run('/cat', ['/hello']), { instanceOf: ExecError })
  t.is(error?.errnoName, 'ENOENT')
  t.regex(error?.hint ?? '', /librariesFor/)

  const sandbox = await Sandbox.create(withProbe(bare).librariesFor(program))
  t.is((await sandbox.run('/cat', ['/hello'])).stdout, 'hello')
  const seen = (await sandbox.run('/probe', ['list', '/'], { lines: true })).stdout
  const files = seen.filter((line) => line.startsWith('-')).map((line) => line.slice(2))
  t.true(files.length > 4, seen.join())
  for (const file of files) t.regex(file, /^\/(?:cat|hello|probe|.*\.so(?:\.\d+)*|etc\/ld\.so\..*)$/)
})
