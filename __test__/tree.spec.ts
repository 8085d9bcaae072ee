// The tree that a sandboxee sees: its root, /dev, /proc, and that there is nothing more.

import { readdirSync } from 'node:fs'

import test from 'ava'

import { type Launcher, policy, run, Sandbox } from '../index.ts'
import { sh, shout, withProbe } from './inside.ts'

const list = async (launcher: Pick<Launcher, 'run'>, directory: string): Promise<string[]> =>
  (await launcher.run('/probe', ['list', directory], { lines: true })).stdout.toSorted()

const DEV = [
  'c /dev/full',
  'c /dev/null',
  'c /dev/pts/ptmx',
  'c /dev/random',
  'c /dev/tty',
  'c /dev/urandom',
  'c /dev/zero',
  'd /dev',
  'd /dev/pts',
  'd /dev/shm',
  'l /dev/fd',
  'l /dev/ptmx',
  'l /dev/stderr',
  'l /dev/stdin',
  'l /dev/stdout',
]

// ---- what is there --------------------------------------------------------------------------------------------------

test('an empty policy shows what was bound, and nothing else', async (t) => {
  const sandbox = await Sandbox.create(withProbe(policy()))
  t.deepEqual(await list(sandbox, '/'), ['- /probe', 'd /'])
})

test('what is asked for is added', async (t) => {
  const sandbox = await Sandbox.create(
    withProbe(policy())
      .proc('fresh')
      .dev('minimal')
      .tmpfs('/tmp')
      .file('/etc/motd', 'hello')
      .symlink('/motd', 'etc/motd'),
  )
  const rest = ['- /etc/motd', '- /probe', 'd /', 'd /etc', 'd /proc', 'd /tmp', 'l /motd']
  t.deepEqual(await list(sandbox, '/'), [...DEV, ...rest].toSorted())
})

test('host-system: system directories, the harmless part of /etc, and nothing of anybody', async (t) => {
  const top = (await run('ls', ['-A', '/'], { lines: true })).stdout
  const known = /^(?:bin|dev|etc|lib|lib32|lib64|libx32|proc|run|sbin|tmp|usr|var)$/
  t.deepEqual(
    top.filter((name) => !known.test(name)),
    [],
  )
  for (const name of ['dev', 'etc', 'proc', 'tmp', 'usr']) t.true(top.includes(name), name)
  const etc = (await run('ls', ['-A', '/etc'], { lines: true })).stdout
  for (const name of ['shadow', 'gshadow', 'ssh', 'sudoers', 'machine-id', 'resolv.conf.d'])
    t.false(etc.includes(name), name)
  t.true(etc.length < readdirSync('/etc').length)
  t.is(await shout({ run }, 'ls -A /tmp /run; ls -A /var; readlink /var/tmp'), '/run:\n\n/tmp:\ntmp\n../tmp')
})

// ---- the root ---------------------------------------------------------------------------------------------------------

test('the root is read-only, /tmp is not', async (t) => {
  const sandbox = await Sandbox.create(withProbe(policy('host-system')))
  for (const path of ['/x', '/usr/x', '/etc/x', '/dev/x', '/proc/x']) {
    // oxlint-disable-next-line no-await-in-loop
    const { stdout } = await sandbox.run('/probe', ['create', path])
    t.true(['EROFS', 'EACCES', 'ENOENT'].includes(stdout), `${path}: ${stdout}`)
  }
  t.is((await sandbox.run('/probe', ['create', '/x'])).stdout, 'EROFS')
  t.is((await sandbox.run('/probe', ['create', '/tmp/x'])).stdout, 'ok')
  t.is((await sandbox.run('/probe', ['create', '/dev/shm/x'])).stdout, 'ok')
})

test('rootWritable: the root can be written to, and is new each time', async (t) => {
  const sandbox = await Sandbox.create(withProbe(policy('host-system').rootWritable()))
  const script =
    'ls -A / | wc -l; echo hello > /file && mkdir /directory && echo there > /directory/file && cat /file /directory/file'
  const first = await shout(sandbox, script)
  t.regex(first, /^\d+\nhello\nthere$/)
  t.is(await shout(sandbox, script), first)
  // Still not what is bound.
  t.is((await sandbox.run('/probe', ['create', '/usr/x'])).stdout, 'EROFS')
})

test('rootWritable in an empty policy', async (t) => {
  const sandbox = await Sandbox.create(withProbe(policy()).rootWritable())
  t.is((await sandbox.run('/probe', ['create', '/x'])).stdout, 'ok')
  t.deepEqual(await list(sandbox, '/'), ['- /probe', 'd /'])
})

test('what one launch wrote to /tmp and /dev/shm the next does not see', async (t) => {
  const script = 'ls -A /tmp /dev/shm; touch /tmp/a /dev/shm/a'
  const before = await shout({ run }, script)
  t.is(await shout({ run }, script), before)
  t.notRegex(before, /^a$/m)
})

// ---- /dev -------------------------------------------------------------------------------------------------------------

test('the devices work', async (t) => {
  t.is(await shout({ run }, 'head -c 3 /dev/zero | od -An -tx1'), ' 00 00 00')
  t.is(await shout({ run }, 'cat /dev/null; echo x > /dev/null; head -c 8 /dev/urandom | wc -c'), '8')
  t.is(await shout({ run }, 'head -c 8 /dev/random | wc -c'), '8')
  const full = await sh({ run }, 'head -c 1 /dev/zero > /dev/full')
  t.regex(full.stderr, /No space left/)
})

test('a terminal can be made', async (t) => {
  const python = 'import os; m, s = os.openpty(); os.write(s, b"hi"); print(os.ttyname(s), os.read(m, 2).decode())'
  t.is((await run('python3', ['-c', python])).stdout, '/dev/pts/0 hi')
})

for (const filter of ['default', 'unfiltered'] as const) {
  test(`no device can be made, nor one replaced (${filter})`, async (t) => {
    const sandbox = await Sandbox.create(withProbe(policy('host-system').syscalls(filter).rootWritable()))
    for (const path of ['/node', '/tmp/node', '/dev/node', '/dev/shm/node']) {
      // oxlint-disable-next-line no-await-in-loop
      const { stdout } = await sandbox.run('/probe', ['mknod', path])
      t.true(['EPERM', 'EACCES', 'EROFS'].includes(stdout), `${path}: ${stdout}`)
    }
    const replaced = await sh(sandbox, 'rm /dev/null || mv /dev/null /dev/x || chmod 0 /dev/null')
    t.true(replaced.failed)
  })
}

// ---- /proc ------------------------------------------------------------------------------------------------------------

for (const filter of ['default', 'unfiltered'] as const) {
  test(`the dangerous parts of /proc are masked (${filter})`, async (t) => {
    const sandbox = await Sandbox.create(withProbe(policy('host-system').syscalls(filter)))
    for (const path of [
      'sysrq-trigger',
      'sys/kernel/hostname',
      'sys/kernel/core_pattern',
      'sys/vm/drop_caches',
      'irq/default_smp_affinity',
    ]) {
      // oxlint-disable-next-line no-await-in-loop
      const { stdout } = await sandbox.run('/probe', ['write', `/proc/${path}`])
      if (stdout === 'ok') {
        // A mask of /dev/null takes writes, to nowhere.
        // oxlint-disable-next-line no-await-in-loop
        t.is(await shout(sandbox, `stat -Lc %t:%T /proc/${path}`), '1:3', path)
      } else {
        t.true(['EROFS', 'EACCES', 'ENOENT', 'EPERM'].includes(stdout), `${path}: ${stdout}`)
      }
    }
    for (const path of [
      'kcore',
      'keys',
      'timer_list',
      'sched_debug',
      'latency_stats',
      'kpagecount',
      'acpi',
      'scsi',
      'kallsyms',
    ]) {
      // oxlint-disable-next-line no-await-in-loop
      const { stdout } = await sh(
        sandbox,
        `cat /proc/${path} 2> /dev/null | head -c 64; ls -A /proc/${path}/ 2> /dev/null`,
      )
      // Kernel addresses are zeroes to who has no capability; the names are public.
      if (path === 'kallsyms') t.regex(stdout, /^(0{16} .*|)/)
      else t.is(stdout, '', path)
    }
  })
}

test('no /proc unless asked for', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system').proc('none'))
  t.is(await shout(sandbox, 'ls -A /proc 2> /dev/null || true'), '')
})

test('/proc/sys is read-only', async (t) => {
  const { stderr } = await sh({ run }, 'echo x > /proc/sys/kernel/shmmax')
  t.regex(stderr, /Read-only file system|Permission denied/)
  t.regex(await shout({ run }, 'cat /proc/sys/kernel/ostype'), /Linux/)
})
