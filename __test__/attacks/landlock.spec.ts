// What Landlock adds to the namespaces. Each attack works in a nest of a fork server to which the kernel refuses it, as it
// does where there is none, and fails in another of the same policy: cold and warm, with the filter and without.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { chmodSync, closeSync, mkdtempSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import path from 'node:path'

import test, { type ExecutionContext } from 'ava'

import {
  type LaunchOptions,
  policy,
  type PolicyBuilder,
  Sandbox,
  type SandboxOptions,
  SpawnError,
} from '../../index.ts'
import { have, isRoot, scratch } from '../helpers.ts'
import { fixture } from '../invariants/support.ts'
import { attackable, done, filters, inside, LANDLOCK, refusing, withoutLandlock } from './support.ts'

const sandboxOf = async (t: ExecutionContext, of: PolicyBuilder, options: SandboxOptions = {}): Promise<Sandbox> => {
  const sandbox = await Sandbox.create(of, options)
  t.teardown(() => sandbox.destroy())
  return sandbox
}

/** The kernel of this machine enforces it. */
const here = async (): Promise<boolean> => {
  await using sandbox = await Sandbox.create(policy('host-system'))
  return (await sandbox.run('true')).isolation.landlock !== undefined
}

const serially = have('gcc') && process.arch === 'x64' && (await here()) ? test.serial : test.serial.skip

/** Tries an attack without Landlock, cold, and with it: cold, warm, and in a nest whose program init starts anew. */
const compare = async (
  t: ExecutionContext,
  of: PolicyBuilder,
  args: readonly string[],
  options: () => LaunchOptions,
): Promise<{ free: string[]; held: string[][] }> => {
  const open = await sandboxOf(t, of, { server: await withoutLandlock(t) })
  const free = done(await inside(open, args, options()))
  const closed = await sandboxOf(t, of)
  const held = [done(await inside(closed, args, options()))]
  for (const more of [{}, { files: { '/tmp/private': 'x' } }, { crashReport: true }]) {
    await closed.warm(1)
    held.push(done(await inside(closed, args, { ...options(), ...more })))
  }
  return { free, held }
}

for (const filter of filters) {
  serially(`a file that is passed for reading can not be opened again for writing: ${filter}`, async (t) => {
    const file = path.join(scratch(t), 'input')
    writeFileSync(file, 'precious')
    chmodSync(file, 0o666)
    const options = () => ({ stdin: { file } })
    const args = ['files', 'overwrite', '/proc/self/fd/0', '/tmp/link']
    const { free, held } = await compare(t, attackable(filter).tmpfs('/tmp'), args, options)
    t.true(free.includes('write') && free.includes('truncate'), 'its permissions are all that is asked for')
    t.is(readFileSync(file, 'utf8'), '')
    for (const found of held) {
      for (const what of ['write', 'truncate', 'append', 'reopen', 'resize']) t.false(found.includes(what), what)
    }
    // As what it was passed it can.
    writeFileSync(file, 'precious')
    const sandbox = await sandboxOf(t, policy('host-system').syscalls(filter))
    for (const warm of [false, true]) {
      if (warm) await sandbox.warm(1)
      const log = path.join(scratch(t), 'log')
      writeFileSync(log, '')
      chmodSync(log, 0o666)
      const script = 'cat /dev/stdin; echo told > /dev/stderr; cat /dev/stderr'
      const result = await sandbox.run('sh', ['-c', script], { ...options(), stderr: { file: log, append: true } })
      t.is(result.stdout, 'precious')
      t.regex(readFileSync(log, 'utf8'), /^told\ncat: .*Permission denied/)
      if (warm) t.true(result.timings.warm)
    }
  })

  serially(`a directory that is passed does not lead further up: ${filter}`, async (t) => {
    const top = scratch(t)
    const secret = path.join(top, 'secret')
    writeFileSync(secret, 'the-token')
    chmodSync(secret, 0o644)
    const directory = mkdtempSync(path.join(top, 'passed-'))
    chmodSync(directory, 0o755)
    writeFileSync(path.join(directory, 'shown'), 'the-token')
    const fd = openSync(directory, 'r')
    t.teardown(() => closeSync(fd))
    const options = () => ({ stdio: ['ignore', 'pipe', 'pipe', { fd, unsafe: true }] }) as const
    const args = ['files', 'paths', secret, 'the-token']
    const { free, held } = await compare(t, attackable(filter).tmpfs('/tmp'), args, options)
    for (const what of ['fd-3-chdir', 'fd-3-magic', 'fd-3-relative']) t.true(free.includes(what), what)
    t.deepEqual(held, [[], [], [], []])
    const sandbox = await sandboxOf(t, attackable(filter))
    const shown = await inside(sandbox, ['files', 'open', '/proc/self/fd/3/shown'], options())
    t.is(shown.get('open'), 'done', 'what is below it was meant')
  })

  serially(`no signal reaches init, and everybody else of the nest gets theirs: ${filter}`, async (t) => {
    const signals = ['signal-0', 'signal-URG', 'tgkill-URG', 'signal-KILL']
    const open = await sandboxOf(t, attackable(filter), { server: await withoutLandlock(t) })
    const closed = await sandboxOf(t, attackable(filter))
    const free = await inside(open, ['processes', 'reach', '1'])
    const held = await inside(closed, ['processes', 'reach', '1'])
    // Under a root host init has another id.
    for (const what of signals) {
      t.is(free.get(what), isRoot ? 'EPERM' : 'done', what)
      t.is(held.get(what), 'EPERM', what)
    }
    t.false((await closed.run('sh', ['-c', 'sleep 9 & kill $! && wait $!; test $? = 143'])).failed)
  })
}

serially('abstract sockets of other nests and of the host can not be connected to', async (t) => {
  const name = `@nestbox-landlock-${process.pid}`
  const names = ['sockets', 'unix', name]
  for (const network of ['shared-loopback', 'host'] as const) {
    const of = attackable('unfiltered').network(network).unixSockets('allow')
    for (const server of [await withoutLandlock(t), undefined]) {
      const sandbox = await sandboxOf(t, of, server === undefined ? {} : { server })
      const serving = await sandbox.spawn('/attack', ['sockets', 'serve', name])
      for await (const line of serving.lines()) if (line.startsWith('listen')) break
      const found = await inside(sandbox, names)
      t.is(found.get('stream'), server === undefined ? 'EPERM' : 'done', network)
      if (server === undefined) t.deepEqual(done(found), [])
      serving.kill()
      await serving.result
    }
  }
  // Of the nest's own it has the use.
  const sandbox = await sandboxOf(t, attackable().unixSockets('allow'))
  const script = `/attack sockets serve ${name} & sleep 0.3; /attack sockets unix ${name} | grep '^stream'; kill $!`
  t.regex((await sandbox.run('sh', ['-c', script])).stdout, /^stream done$/m)
})

serially(
  'in namespaces of its own a program can mount nothing, and without Landlock nothing that leads out',
  async (t) => {
    const data = scratch(t)
    const of = policy('host-system').bind(fixture('escape'), '/program').bind(data, '/data')
    const unfiltered = of.syscalls('unfiltered').unixSockets('allow')
    const free = await sandboxOf(t, unfiltered, { server: await withoutLandlock(t) })
    const { stdout } = await free.run('/program', ['namespace', '/data'])
    if (!stdout.includes('unshare done')) {
      t.log('skipped: a nested user namespace is refused')
      t.pass()
      return
    }
    const power = ['mount', 'mount-more', 'remount', 'umount', 'umount-tmp'].map((what) => `power-${what}`)
    const allowed = new Set(['unshare', 'uid-map', 'gid-map', 'pivot', ...power])
    const lines = stdout.trim().split('\n')
    for (const what of power) t.true(lines.includes(`${what} done`), stdout)
    t.deepEqual(
      lines.filter((line) => line.endsWith(' done') && !allowed.has(line.replace(/ done$/, ''))),
      [],
    )
    const held = await (await sandboxOf(t, unfiltered)).run('/program', ['namespace', '/data'])
    for (const what of power) t.regex(held.stdout, new RegExp(`^${what} (?:EPERM|EINVAL)$`, 'm'))
  },
)

serially('what a launch binds can be written to where its policy says so, and is read-only elsewhere', async (t) => {
  const directory = scratch(t)
  chmodSync(directory, 0o777)
  writeFileSync(path.join(directory, 'file'), 'before')
  chmodSync(path.join(directory, 'file'), 0o666)
  const of = policy('host-system')
    .bind(directory, '/fixed', { writable: true })
    .bind(directory, '/shown')
    .mountPoint('/data', { writable: true })
    .mountPoint('/file', { writable: true })
    .mountPoint('/seen')
    .tmpfs('/tmp')
  const sandbox = await sandboxOf(t, of)
  const binds = { '/data': directory, '/file': path.join(directory, 'file'), '/seen': directory }
  const script =
    'set -e; echo 1 > /data/a; mkdir /data/d; mv /data/a /data/d/b; ln /data/d/b /data/c; rm -r /data/d; ' +
    'mkfifo /fixed/p; rm /fixed/p /fixed/c; echo after > /file; cat /seen/file; ' +
    '! touch /seen/x 2> /dev/null; ! touch /shown/x 2> /dev/null; cp /bin/true /tmp/t; /tmp/t'
  for (const warm of [false, true]) {
    if (warm) await sandbox.warm(1)
    const result = await sandbox.run('sh', ['-c', script], { binds })
    t.like(result, { exitCode: 0, stdout: 'after' }, result.stderr)
    if (warm) t.true(result.timings.warm)
    t.is(result.isolation.landlock?.enforced[0], 'files')
  }
})

serially('it is reported as it is, and what is required and can not be had fails every launch', async (t) => {
  const required = policy('host-system').require('landlock')
  for (const of of [required, policy('host-system')]) {
    const sandbox = await sandboxOf(t, of)
    for (const warm of [false, true]) {
      if (warm) await sandbox.warm(1)
      const { isolation } = await sandbox.run('true')
      t.true((isolation.landlock?.abi ?? 0) >= 2)
      t.is(isolation.landlock?.enforced[0], 'files')
      t.deepEqual(isolation.skipped, [])
    }
  }
  for (const [call, number] of Object.entries(LANDLOCK)) {
    for (const errnoName of ['ENOSYS', 'EOPNOTSUPP', 'EPERM'] as const) {
      const what = `${call} ${errnoName}`
      const server = await refusing(t, number, constants.errno[errnoName])
      const sandbox = await sandboxOf(t, policy('host-system'), { server })
      const { isolation, failed } = await sandbox.run('true')
      t.false(failed, what)
      t.is(isolation.landlock, undefined, what)
      t.deepEqual(isolation.skipped, ['landlock'], what)
      const insisting = await sandboxOf(t, required, { server })
      for (let time = 0; time < 2; time++) {
        const error = await t.throwsAsync(insisting.run('true'), { instanceOf: SpawnError }, what)
        t.like(error, { step: 'make-ruleset', syscall: call, errnoName }, what)
        t.regex(error?.hint ?? '', /Landlock|seccomp/, what)
      }
      await server.destroy()
    }
  }
})

serially('what was found and then fails makes the launch fail', async (t) => {
  // Each call when it is not the probe's: a ruleset without flags, and one that has a number.
  const real = {
    landlock_create_ruleset: [2, 1, 0],
    landlock_add_rule: [0, 1 << 30, 0],
    landlock_restrict_self: [0, 1 << 30, 0],
  }
  for (const call of Object.keys(LANDLOCK) as (keyof typeof LANDLOCK)[]) {
    const server = await refusing(t, LANDLOCK[call], constants.errno.ENOMEM, ...real[call])
    const sandbox = await sandboxOf(t, policy('host-system'), { server })
    // A nest takes it on when its launch has come.
    if (call === 'landlock_restrict_self') await sandbox.warm(1)
    else await t.throwsAsync(sandbox.warm(1), { instanceOf: SpawnError }, call)
    const error = await t.throwsAsync(sandbox.run('true'), { instanceOf: SpawnError }, call)
    const step = call === 'landlock_restrict_self' ? 'enforce-ruleset' : 'make-ruleset'
    t.like(error, { step, syscall: call, errnoName: 'ENOMEM' })
    await server.destroy()
  }
})
