// sandbox2's requests, carried out: every mode, with and without namespaces, and what sandbox2's own tests of its fork
// server, its descriptors and its mounts assert. The builders are tested in `sandbox2.spec.ts`.

/* oxlint-disable no-await-in-loop */

import { spawn } from 'node:child_process'
import {
  closeSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'

import test, { type ExecutionContext } from 'ava'

import {
  type Exit,
  ForkClient,
  type ForkReply,
  forkRequest,
  mountTree,
  type RequestDescriptors,
} from '../lib/sandbox2/index.ts'
import { ForkServer, policy, RequestError, Sandbox } from '../index.ts'
import { have, isRoot, runs, scratch, until } from './helpers.ts'
import { family, fixture, processOf } from './invariants/support.ts'

const compiled = have('gcc') ? test : test.skip

const serve = async (t: ExecutionContext): Promise<{ client: ForkClient; server: ForkServer }> => {
  const server = await ForkServer.start()
  t.teardown(() => server.destroy())
  return { client: new ForkClient(server), server }
}

interface Outcome {
  readonly reply: ForkReply
  readonly exit: Exit
  readonly stdout: string
}

/** Sends a request whose stdout goes to a file, and waits for its end. */
const carryOut = async (
  t: ExecutionContext,
  client: ForkClient,
  request: Parameters<ForkClient['sendRequest']>[0],
  descriptors: RequestDescriptors = {},
): Promise<Outcome> => {
  const file = path.join(scratch(t), 'stdout')
  const stdout = openSync(file, 'w')
  try {
    const reply = await client.sendRequest(request, { stdout, ...descriptors })
    const exit = await reply.exited
    return { reply, exit, stdout: readFileSync(file, 'utf8') }
  } finally {
    closeSync(stdout)
  }
}

/** What `fixtures/descriptors.c` says about itself. */
interface Report {
  readonly fds: string
  readonly pid: number
  readonly sid: number
  readonly uid: number
  readonly gid: number
  readonly host: string
  readonly env: readonly string[]
  readonly args: readonly string[]
  readonly namespaces: Readonly<Record<string, string>>
}

const parse = (stdout: string): Report => {
  const lines = stdout.split('\n')
  const starting = (word: string): string[] =>
    lines.filter((line) => line.startsWith(`${word} `)).map((line) => line.slice(word.length + 1))
  const number = (name: string): number => Number(new RegExp(`\\b${name}=(\\d+)`).exec(stdout)?.[1])
  return {
    fds: (lines[0] ?? '').trim(),
    pid: number('pid'),
    sid: number('sid'),
    uid: number('uid'),
    gid: number('gid'),
    host: /\bhost=(.*)$/m.exec(stdout)?.[1] ?? '',
    env: starting('env'),
    args: starting('arg'),
    namespaces: Object.fromEntries(starting('ns').map((name) => [name.split(':')[0], name])),
  }
}

const program = (): string => fixture('descriptors')
const tree = () => mountTree().addFile(program(), '/program')
const hostNamespace = (name: string): string => readlinkSync(`/proc/self/ns/${name}`)
const ALL = ['user', 'mnt', 'pid', 'ipc', 'uts', 'net', 'cgroup']

// ---- fork-execve-sandbox ----------------------------------------------------------------------------------------------------------

for (const pivot of ['nested', 'direct'] as const) {
  compiled(`fork-execve-sandbox, ${pivot}: namespaces, ids, hostname, environment`, async (t) => {
    const { client, server } = await serve(t)
    const request = forkRequest()
      .mode('fork-execve-sandbox')
      .args('/program', 'self', 'one', 'two words', '')
      .envs({ LANG: 'C', EMPTY: '' })
      .hostname('box')
      .mountTree(tree())
      .pivot(pivot)
      .build()
    const { exit, stdout, reply } = await carryOut(t, client, request)
    t.like(exit, { status: 'exited', exitCode: 0 })
    t.true(exit.resourceUsage.peakMemoryBytes > 0)
    const report = parse(stdout)
    t.like(report, { fds: '0 1 2', pid: 2, uid: 1000, gid: 1000, host: 'box' })
    t.is(report.sid, 2)
    t.deepEqual(report.args, ['one', 'two words', ''])
    t.deepEqual([...report.env].toSorted(), ['EMPTY=', 'LANG=C', 'SANDBOX2_NOFORKSERVER=1'])
    for (const name of ALL) t.not(report.namespaces[name], hostNamespace(name), name)
    // Both by the numbers that the host knows them by.
    t.true(reply.pid > 2 && reply.initPid > 2 && reply.pid !== reply.initPid)

    // Nothing is left: no zombie, no helper that the request had of its own.
    await until(() => family(server.pid).length <= (isRoot ? 4 : 3))
    t.deepEqual(
      family(server.pid).filter(({ state }) => state === 'Z'),
      [],
    )
    t.is(processOf(reply.pid), undefined)
    t.is(processOf(reply.initPid), undefined)
  })

  compiled(`fork-execve-sandbox, ${pivot}: mounts`, async (t) => {
    const { client } = await serve(t)
    const source = scratch(t)
    for (const name of ['read', 'write']) {
      mkdirSync(path.join(source, name), { mode: 0o777 })
      writeFileSync(path.join(source, name, 'file'), name)
    }
    if (!have('busybox')) {
      t.pass('needs busybox')
      return
    }
    const busybox = have('busybox') ? '/usr/bin/busybox' : ''
    const base = mountTree()
      .addFile(busybox, '/bin/busybox')
      .addDirectory(path.join(source, 'read'), '/read')
      .addDirectory(path.join(source, 'write'), '/write', { writable: true })
      .addFile(path.join(source, 'read', 'file'), '/deep/down/below/file')
      .addTmpfs('/tmp', { size: '1MiB' })
    const script = `
      cd / && for x in *; do echo $x; done
      cat /read/file /deep/down/below/file /write/file; echo
      for where in / /read /write /tmp /deep /deep/down; do
        (echo made > $where/made) 2>&- && echo "can write $where"
      done
      [ -e /etc/passwd ] || echo no passwd`
    const run = async (mounts: ReturnType<typeof mountTree>): Promise<string[]> => {
      const args = ['/bin/busybox', 'sh', '-c', script]
      const request = forkRequest()
        .mode('fork-execve-sandbox')
        .args(...args)
        .mountTree(mounts)
        .pivot(pivot)
        .build()
      const { stdout, exit } = await carryOut(t, client, request)
      t.is(exit.status, 'exited')
      return stdout.trim().split('\n')
    }
    const top = ['bin', 'deep', 'proc', 'read', 'tmp', 'write']
    t.deepEqual(await run(base), [...top, 'readreadwrite', 'can write /write', 'can write /tmp', 'no passwd'])
    t.is(readFileSync(path.join(source, 'write', 'made'), 'utf8'), 'made\n')
    // Nothing was made on the host but that.
    t.deepEqual(
      (await run(base.rootWritable())).filter((line) => line.startsWith('can')),
      ['can write /', 'can write /write', 'can write /tmp', 'can write /deep', 'can write /deep/down'],
    )
  })
}

compiled('namespaces that were not asked for are shared with the host', async (t) => {
  const { client } = await serve(t)
  const request = forkRequest()
    .mode('fork-execve-sandbox')
    .args('/program', 'self')
    .cloneFlags('newuser', 'newns', 'newpid')
    .mountTree(tree())
    .build()
  const report = parse((await carryOut(t, client, request)).stdout)
  for (const name of ['user', 'mnt', 'pid']) t.not(report.namespaces[name], hostNamespace(name), name)
  for (const name of ['ipc', 'uts', 'net', 'cgroup']) t.is(report.namespaces[name], hostNamespace(name), name)
  t.is(report.host, readFileSync('/proc/sys/kernel/hostname', 'utf8').trim())
})

compiled('without a pid namespace the pid is one of the host, and there is no init to reach', async (t) => {
  const { client } = await serve(t)
  const request = forkRequest()
    .mode('fork-execve-sandbox')
    .args(program(), 'self')
    .cloneFlags('newuser', 'newuts')
    .hostname('other')
    .build()
  const { stdout, reply } = await carryOut(t, client, request)
  const report = parse(stdout)
  t.is(report.pid, reply.pid)
  t.is(reply.initPid, 0)
  t.like(report, { uid: 1000, gid: 1000, host: 'other', fds: '0 1 2' })
  t.is(report.namespaces['mnt'], hostNamespace('mnt'))
  t.not(report.namespaces['user'], hostNamespace('user'))
})

compiled('a network namespace of the fork server is the same for all who share it', async (t) => {
  const { client, server } = await serve(t)
  const net = async (mode: 'per-sandboxee' | 'shared-per-forkserver' | 'none', to = client): Promise<string> => {
    const base = forkRequest().mode('fork-execve-sandbox').args('/program', 'self').mountTree(tree()).netnsMode(mode)
    const request = mode === 'none' ? base.cloneFlags('newuser', 'newns', 'newpid') : base
    return parse((await carryOut(t, to, request.build())).stdout).namespaces['net'] ?? ''
  }
  const shared = await net('shared-per-forkserver')
  t.is(await net('shared-per-forkserver'), shared)
  t.is(await net('none'), hostNamespace('net'))
  t.not(shared, hostNamespace('net'))
  const own = await net('per-sandboxee')
  t.not(own, shared)
  t.not(own, hostNamespace('net'))
  // After the fork server died nothing of the old one is used again, and everything works.
  const { pid } = server
  process.kill(pid, 'SIGKILL')
  await until(() => !runs(pid))
  await until(async () => {
    try {
      return (await net('shared-per-forkserver')) !== ''
    } catch {
      return false
    }
  })
  t.not(await net('shared-per-forkserver'), '')
  t.not(server.pid, pid)
})

// ---- fork-execve ---------------------------------------------------------------------------------------------------------------------

compiled('fork-execve without namespaces is a plain spawn', async (t) => {
  const { client, server } = await serve(t)
  const request = forkRequest().mode('fork-execve').args(program(), 'self', 'x').envs({ A: '1' }).build()
  const { stdout, reply, exit } = await carryOut(t, client, request)
  const report = parse(stdout)
  t.is(report.pid, reply.pid)
  t.is(reply.initPid, 0)
  t.like(report, { fds: '0 1 2', uid: process.getuid?.() ?? -1, gid: process.getgid?.() ?? -1 })
  t.deepEqual(report.env, ['A=1', 'SANDBOX2_NOFORKSERVER=1'])
  for (const name of ALL) t.is(report.namespaces[name], hostNamespace(name), name)
  t.like(exit, { status: 'exited', exitCode: 0 })
  // sandbox2: SimpleForkNoZombie.
  await until(() => family(server.pid).every(({ name }) => name !== 'descriptors'))
  t.is(processOf(reply.pid), undefined)
})

compiled('fork-execve with namespaces has no filter, fork-execve-sandbox has one', async (t) => {
  const { client } = await serve(t)
  if (!have('busybox')) {
    t.pass('needs busybox')
    return
  }
  const status = async (mode: 'fork-execve' | 'fork-execve-sandbox'): Promise<string> => {
    const request = forkRequest()
      .mode(mode)
      .args('/bin/busybox', 'cat', '/proc/self/status')
      .cloneFlags('newuser', 'newns', 'newpid', 'newipc', 'newuts', 'newnet')
      .mountTree(mountTree().addFile('/usr/bin/busybox', '/bin/busybox'))
      .build()
    return (await carryOut(t, client, request)).stdout
  }
  for (const [mode, filter] of [
    ['fork-execve', 0],
    ['fork-execve-sandbox', 2],
  ] as const) {
    const text = await status(mode)
    t.regex(text, new RegExp(`^Seccomp:\\s+${filter}$`, 'm'), mode)
    t.regex(text, /^NoNewPrivs:\s+1$/m, mode)
    for (const set of ['Inh', 'Prm', 'Eff', 'Bnd', 'Amb']) t.regex(text, new RegExp(`^Cap${set}:\\s+0+$`, 'm'), mode)
  }
})

compiled('what can not be executed is an ExecError, what can not be set up a SpawnError', async (t) => {
  const { client } = await serve(t)
  for (const pivot of ['nested', 'direct'] as const) {
    const base = forkRequest().mode('fork-execve-sandbox').args('/missing').pivot(pivot)
    await t.throwsAsync(client.sendRequest(base.mountTree(tree()).build()), { name: 'ExecError', message: /ENOENT/ })
    const missing = mountTree().addFile('/etc/passwd', '/x').addDirectory('/nonexistent/source', '/y')
    const error = await t.throwsAsync<Error & { step?: string; path?: string }>(
      client.sendRequest(base.mountTree(missing).build()),
      { name: 'SpawnError' },
    )
    t.is(error?.step, 'open-bind-source')
    t.is(error?.path, '/nonexistent/source')
  }
  t.is((await carryOut(t, client, forkRequest().mode('fork-execve').args(program()).build())).exit.status, 'exited')
})

compiled('a reply kills, and its disposal does', async (t) => {
  const { client } = await serve(t)
  const base = forkRequest()
    .args('/program')
    .mountTree(mountTree().addFile(fixture('stubborn'), '/program'))
  for (const mode of ['fork-execve-sandbox', 'fork-execve'] as const) {
    const plain = mode === 'fork-execve'
    const request = plain ? forkRequest().mode(mode).args(fixture('stubborn')).build() : base.mode(mode).build()
    const reply = await client.sendRequest(request)
    t.true(runs(reply.pid))
    t.true(reply.kill('SIGTERM'))
    t.true(runs(reply.pid), 'it ignores that')
    t.true(reply.kill())
    t.like(await reply.exited, { status: 'signaled', signal: 'SIGKILL' }, mode)
    t.false(runs(reply.pid))
    t.false(reply.kill())
    let pid = 0
    {
      await using disposed = await client.sendRequest(request)
      ;({ pid } = disposed)
    }
    t.false(runs(pid), mode)
  }
})

// ---- initialize ------------------------------------------------------------------------------------------------------------------------

test('initialize makes the shared namespaces ahead, once', async (t) => {
  const { client, server } = await serve(t)
  const helpers = (): string[] =>
    family(server.pid)
      .filter(({ parent }) => parent === server.pid)
      .map(({ name }) => name)
      .filter((name) => name !== 'nestbox-privil')
      .toSorted()
  t.deepEqual(helpers(), [])
  for (const [type, expected] of [
    ['initial-namespaces', ['nestbox-mounter']],
    ['initial-namespaces', ['nestbox-mounter']],
    ['network-namespaces', ['nestbox-mounter', 'nestbox-network']],
    ['ipc-namespace', ['nestbox-mounter', 'nestbox-network']],
  ] as const) {
    const reply = await client.sendRequest(forkRequest().mode('initialize').initializationType(type).build())
    t.is(reply.pid, 0, type)
    await until(() => helpers().length === expected.length)
    t.deepEqual(helpers(), [...expected], type)
  }
})

// ---- descriptors -----------------------------------------------------------------------------------------------------------------------

compiled('execFd: the program itself, by its descriptor', async (t) => {
  const { client } = await serve(t)
  const execFd = openSync(program(), 'r')
  t.teardown(() => closeSync(execFd))
  const base = forkRequest().args('a name of its own', 'self')
  for (const request of [
    base.mode('fork-execve'),
    base.mode('fork-execve-sandbox').mountTree(mountTree()),
    base.mode('fork-execve-sandbox').mountTree(mountTree()).pivot('direct'),
  ]) {
    const { stdout, exit } = await carryOut(t, client, request.build(), { execFd })
    t.like(exit, { status: 'exited', exitCode: 0 })
    t.is(parse(stdout).fds, '0 1 2', 'it is not left open')
  }
})

compiled('commsFd is 1023, and execFd does not get in its way', async (t) => {
  const { client } = await serve(t)
  const file = path.join(scratch(t), 'comms')
  writeFileSync(file, '')
  const commsFd = openSync(file, 'r+')
  const execFd = openSync(program(), 'r')
  t.teardown(() => [commsFd, execFd].forEach((fd) => closeSync(fd)))
  const base = forkRequest().args('/program', 'self')
  for (const [request, descriptors] of [
    [base.mode('fork-execve-sandbox').mountTree(tree()), { commsFd }],
    [base.mode('fork-execve-sandbox').mountTree(mountTree()), { commsFd, execFd }],
    [base.mode('fork-execve').args(program(), 'self'), { commsFd }],
  ] as const) {
    const { stdout } = await carryOut(t, client, request.build(), descriptors)
    t.is(parse(stdout).fds, '0 1 2 1023')
  }
  // The one that was passed is the one that arrives.
  if (have('busybox')) {
    const script = mountTree().addFile('/usr/bin/busybox', '/bin/busybox')
    const args = ['/bin/busybox', 'sh', '-c', 'echo written > /proc/self/fd/1023']
    const writer = forkRequest()
      .mode('fork-execve-sandbox')
      .args(...args)
      .mountTree(script)
      .user({ uid: 7, gid: 8 })
    const { exit } = await carryOut(t, client, writer.build(), { commsFd })
    t.is(exit.status, 'exited')
  }
  // Still ours.
  t.notThrows(() => writeFileSync(commsFd, 'host'))
})

compiled('descriptors can be mapped over 1022, and the comms channel sits at 1023', async (t) => {
  await using sandbox = await Sandbox.create(policy().bind(program(), '/program'))
  const stdio = ['ignore', 'pipe', 'ignore', ...Array.from({ length: 1019 }, () => 'ignore' as const), 'pipe'] as const
  const at1022 = await sandbox.spawn('/program', [], { stdio: stdio as never, comms: true, buffer: true })
  const result = await at1022.result
  t.is(String(result.stdout), '0 1 2 1022 1023 ')
  // Both want 1023.
  const both = [...stdio, 'pipe'] as never
  await t.throwsAsync(sandbox.spawn('/program', [], { stdio: both, comms: true }), { instanceOf: RequestError })
  const alone = await sandbox.spawn('/program', [], { stdio: both, buffer: true })
  t.is(String((await alone.result).stdout), '0 1 2 1022 1023 ')
})

compiled('userNsFd: another user namespace than the initial one', async (t) => {
  const holder = spawn('unshare', ['--user', '--map-root-user', 'sleep', '60'], { stdio: 'ignore' })
  t.teardown(() => holder.kill('SIGKILL'))
  const own = readlinkSync('/proc/self/ns/user')
  const made = await until(() => {
    try {
      const { pid } = holder
      return readlinkSync(`/proc/${pid}/ns/user`) !== own && readFileSync(`/proc/${pid}/uid_map`, 'utf8').trim() !== ''
    } catch {
      return false
    }
  })
  if (!made) {
    t.log('skipped: unshare(1) could not make one')
    t.pass()
    return
  }
  const userNsFd = openSync(`/proc/${holder.pid}/ns/user`, 'r')
  t.teardown(() => closeSync(userNsFd))
  const { client } = await serve(t)
  const request = forkRequest().mode('fork-execve-sandbox').args('/program', 'self').mountTree(tree()).build()
  const { stdout, exit } = await carryOut(t, client, request, { userNsFd })
  t.like(exit, { status: 'exited', exitCode: 0 })
  const report = parse(stdout)
  t.like(report, { pid: 2, uid: 1000, gid: 1000 })
  // Its own is nested in the one that was given.
  t.not(report.namespaces['user'], hostNamespace('user'))
  t.not(report.namespaces['user'], readlinkSync(`/proc/${holder.pid}/ns/user`))
})

// ---- zygotes -----------------------------------------------------------------------------------------------------------------------------

compiled('fork: a zygote forks sandboxees that have what it computed', async (t) => {
  const { client, server } = await serve(t)
  const start = forkRequest()
    .mode('fork-execve-sandbox')
    .args('/zygote')
    .mountTree(mountTree().addFile(fixture('zygote'), '/zygote'))
    .build()
  const zygote = await client.sendRequest(start, { zygote: true })
  const forks = new ForkClient(zygote)
  const seen = new Set<string>()
  for (let serial = 1; serial <= 5; serial += 1) {
    const request = forkRequest()
      .mode('fork')
      .args(`number ${serial}`, String(serial * 10))
      .envs({ SERIAL: `${serial}` })
    const { stdout, exit, reply } = await carryOut(t, forks, request.build())
    t.like(exit, { status: 'exited', exitCode: serial * 10 })
    t.regex(stdout, new RegExp(`serial=${serial} `))
    t.regex(stdout, new RegExp(`^arg number ${serial}$`, 'm'))
    t.regex(stdout, new RegExp(`^env SERIAL=${serial}$`, 'm'))
    seen.add(/computed=(\w+)/.exec(stdout)?.[1] ?? '')
    t.true(reply.pid > 0 && reply.pid !== zygote.pid, 'by the number that the host knows it by')
  }
  t.is(seen.size, 1, 'computed once, before the forks')
  t.regex([...seen].join(), /^[\da-f]{16}$/)
  const aborted = await carryOut(t, forks, forkRequest().mode('fork').args('abort').build())
  t.like(aborted.exit, { status: 'signaled', signal: 'SIGABRT' })

  // Another zygote computes something else.
  const other = await client.sendRequest(start, { zygote: true })
  const { stdout } = await carryOut(t, new ForkClient(other), forkRequest().mode('fork').args('0').build())
  t.false(seen.has(/computed=(\w+)/.exec(stdout)?.[1] ?? ''))

  // Modes and targets that do not belong together.
  await t.throwsAsync(forks.sendRequest(start), { instanceOf: RequestError })
  await t.throwsAsync(client.sendRequest(forkRequest().mode('fork').build()), { instanceOf: RequestError })

  zygote.kill()
  await zygote.exited
  const late = forks.sendRequest(forkRequest().mode('fork').args('0').build())
  const error = await t.throwsAsync<Error & { code?: string }>(late)
  t.regex(error?.code ?? '', /^ERR_NESTBOX_/)
  t.true(server.pid > 0)
})

compiled('fork: a sandboxee with comms can be a zygote, too', async (t) => {
  await using sandbox = await Sandbox.create(policy('host-system').bind(fixture('zygote'), '/zygote'))
  await using zygote = await sandbox.spawn('/zygote', [], { comms: true })
  const forks = new ForkClient(zygote)
  const { stdout, exit } = await carryOut(t, forks, forkRequest().mode('fork').args('hello', '3').build())
  t.regex(stdout, /^computed=\w+ serial=1 /)
  t.like(exit, { status: 'exited', exitCode: 3 })
})

// ---- what goes together in a mount tree --------------------------------------------------------------------------------------------------

test('the same target twice, from the same file by whatever name', (t) => {
  const directory = scratch(t)
  const at = (name: string): string => path.join(directory, name)
  writeFileSync(at('file'), '')
  writeFileSync(at('other'), '')
  mkdirSync(at('directory'))
  mkdirSync(at('elsewhere'))
  symlinkSync('file', at('link'))
  symlinkSync('directory', at('directory-link'))
  linkSync(at('file'), at('hardlink'))

  t.notThrows(() => mountTree().addFile(at('file'), '/f').addFile(at('link'), '/f').addFile(at('hardlink'), '/f'))
  t.notThrows(() => mountTree().addDirectory(at('directory'), '/d').addDirectory(at('directory-link'), '/d'))
  const upgraded = mountTree().addFile(at('file'), '/f').addFile(at('link'), '/f', { writable: true })
  t.deepEqual(
    upgraded.list().map(({ writable }) => writable),
    [true],
  )
  const kept = mountTree().addFile(at('file'), '/f', { writable: true }).addFile(at('link'), '/f')
  t.deepEqual(
    kept.list().map(({ writable }) => writable),
    [true],
  )

  const refused: readonly (readonly [string, () => unknown])[] = [
    ['another file', () => mountTree().addFile(at('file'), '/f').addFile(at('other'), '/f')],
    ['another directory', () => mountTree().addDirectory(at('directory'), '/d').addDirectory(at('elsewhere'), '/d')],
    ['a directory over a file', () => mountTree().addFile(at('file'), '/f').addDirectory(at('directory'), '/f')],
    ['a file over a directory', () => mountTree().addDirectory(at('directory'), '/d').addFile(at('file'), '/d')],
    ['a tmpfs over a file', () => mountTree().addFile(at('file'), '/f').addTmpfs('/f', { size: 4096 })],
    ['a file below a file', () => mountTree().addFile(at('file'), '/f').addFile(at('other'), '/f/g')],
    ['a directory below a file', () => mountTree().addFile(at('file'), '/f').addDirectory(at('directory'), '/f/g')],
    ['a tmpfs below a file', () => mountTree().addFile(at('file'), '/f').addTmpfs('/f/g', { size: 4096 })],
    ['a file over what has something below', () => mountTree().addFile(at('file'), '/a/b').addFile(at('other'), '/a')],
    ['NUL outside', () => mountTree().addFile(`${at('file')}\0`, '/f')],
    ['NUL inside', () => mountTree().addFile(at('file'), '/f\0')],
    ['NUL of a directory', () => mountTree().addDirectory('/usr', '/u\0sr')],
    ['NUL of a tmpfs', () => mountTree().addTmpfs('/t\0', { size: 4096 })],
    ['relative', () => mountTree().addFile(at('file'), 'f')],
    ['empty', () => mountTree().addFile(at('file'), '')],
    ['the root', () => mountTree().addDirectory(at('directory'), '/')],
    ['up', () => mountTree().addFile(at('file'), '/a/../../f')],
  ]
  for (const [what, add] of refused) t.throws(add, { instanceOf: RequestError }, what)

  // Below a directory anything goes.
  t.notThrows(() => mountTree().addDirectory(at('directory'), '/d').addFile(at('file'), '/d/f'))
  t.notThrows(() =>
    mountTree().addTmpfs('/t', { size: 4096 }).addFile(at('file'), '/t/f').addTmpfs('/t/u', { size: 1 }),
  )
})
