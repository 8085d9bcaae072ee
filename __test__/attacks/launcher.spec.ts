// Attacks on what launches: rights that it should not have, a root that is not the machine's, executables that somebody
// replaced, descriptors that it keeps for later, and control groups that it should not lead out of.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { execFileSync } from 'node:child_process'
import {
  accessSync,
  chmodSync,
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'

import test, { type ExecutionContext } from 'ava'

import { ForkServer, type Network, Sandbox } from '../../index.ts'
import { ForkClient, forkRequest, mountTree } from '../../lib/sandbox2/index.ts'
import { delay, have, isRoot, scratch, until } from '../helpers.ts'
import { family, fixture, forkServerFile, Host, root, survivors } from '../invariants/support.ts'
import { attack, attackable, done, filters, inside, outside, program } from './support.ts'

/** Where a python lies itself: a wrapper of it, such as pyenv's, needs an environment. */
const python = (): string =>
  execFileSync('python3', ['-c', 'import sys; print(sys.executable)'], { encoding: 'utf8' }).trim()

/** For attacks that take a python to set up; and root, where it says so. */
const prepared = (title: string, needsRoot: boolean, body: (t: ExecutionContext) => Promise<void>): void => {
  if (!have('gcc') || !have('python3')) test.skip(`${title} (skipped: gcc and python3 are needed)`, body)
  else if (needsRoot && !isRoot) test.skip(`${title} (skipped: only root can give rights away)`, body)
  else test(title, body)
}

// ---- rights ------------------------------------------------------------------------------------------------------------

/** Real, effective and saved ids of user and group, and then what to execute. */
const WITH_IDS = `
import os, sys
ids = [int(word) for word in sys.argv[1:7]]
os.setgroups([])
os.setresgid(*ids[3:])
os.setresuid(*ids[:3])
os.execv(sys.argv[7], sys.argv[7:])
`

prepared('a host with rights that are not its own starts nothing', true, async (t) => {
  const binds = { '/program': program() }
  const start = (...ids: number[]): Promise<Host> =>
    Host.start({ binds, wrapper: [python(), '-c', WITH_IDS, ...ids.map(String)] })
  // Without such: root, and a user.
  for (const own of [
    [0, 0, 0, 0, 0, 0],
    [65534, 65534, 65534, 65534, 65534, 65534],
  ]) {
    await using host = await start(...own)
    t.like((await host.must('run', { args: ['files', 'ids'] })).result, { status: 'exited' })
  }
  // A set-user-ID program; a root that lowered itself for a while; the same of groups.
  for (const [what, ...ids] of [
    ['set-user-ID', 65534, 0, 0, 65534, 65534, 65534],
    ['lowered', 0, 65534, 0, 65534, 65534, 65534],
    ['set-group-ID', 65534, 65534, 65534, 65534, 0, 0],
    ['lowered group', 65534, 65534, 65534, 0, 65534, 65534],
  ] as const) {
    await using host = await start(...ids)
    for (const command of ['run', 'unsandboxed']) {
      const { error, result } = await host.ask(command, { args: ['files', 'ids'] })
      t.is(result, undefined, what)
      t.like(error, { name: 'ForkServerError', code: 'ERR_NESTBOX_FORKSERVER', step: 'start-forkserver' }, what)
      t.regex(error?.hint ?? '', /one user for good/, what)
    }
    t.deepEqual(
      family(host.pid).filter(({ name }) => name.startsWith('nestbox')),
      [],
      what,
    )
  }
})

/** Executes another program, as another user, in the place of the first. */
const AS_COPY = `
import os, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
os.execv(sys.argv[1], [sys.argv[1]] + sys.argv[3:])
`

prepared('who executes a host with more rights than their own does not choose its fork server', true, async (t) => {
  const node = path.join(scratch(t), 'node')
  copyFileSync(process.execPath, node)
  chmodSync(node, 0o755)
  const env = { NESTBOX_FORKSERVER: '/bin/true' }
  const start = (): Promise<Host> =>
    Host.start({ env, binds: { '/program': program() }, wrapper: [python(), '-c', AS_COPY, node] })
  {
    await using host = await start()
    t.like((await host.ask('run')).error, { name: 'ForkServerError' }, 'whose own rights these are does')
  }
  const endowed = (await outside(['files', 'endow', node])).get('endow')
  if (endowed !== 'done') {
    t.log(`skipped: this file system keeps no capabilities of files (${endowed})`)
    return
  }
  await using host = await start()
  t.like((await host.must('run', { args: ['files', 'ids'] })).result, { status: 'exited' })
})

// ---- a root that is not the machine's --------------------------------------------------------------------------------

/** A shell that shows all of the machine at a directory of its own mount namespace, and lives there. */
const elsewhere = (directory: string, last: string): string[] => [
  'unshare',
  isRoot ? '-m' : '-Urm',
  'sh',
  '-c',
  `mount --rbind / "$0" && cd / && ${last}`,
  directory,
]

attack('a host in a chroot is told so, and nothing runs; beside it, it does', async (t) => {
  const directory = scratch(t)
  const binds = { '/program': program() }
  const args = ['files', 'ids']
  {
    await using host = await Host.start({ binds, wrapper: elsewhere(directory, 'exec "$@"') })
    t.like((await host.must('run', { args })).result, { status: 'exited' })
  }
  await using host = await Host.start({ binds, wrapper: elsewhere(directory, 'exec chroot "$0" "$@"') })
  for (const _ of [1, 2]) {
    const { error, result } = await host.ask('run', { args })
    t.is(result, undefined)
    t.like(error, { name: 'SpawnError', step: 'create-initial-namespaces', syscall: 'unshare', errnoName: 'EPERM' })
    t.truthy(error?.hint)
  }
  const { pid = 0 } = await host.must('server')
  // Nothing half-made of the attempts is left.
  const half = () => family(pid).filter(({ name }) => !/^nestbox-(?:server|privil)/.test(name))
  t.true(await until(() => half().length === 0), JSON.stringify(half()))
})

attack('after the fork server was killed every mode works, and joins nothing of the one that is gone', async (t) => {
  await using server = await ForkServer.start()
  const launch = ['files', 'ids']
  const networks: readonly Network[] = ['none', 'shared-loopback', 'host']
  const sandboxes = await Promise.all(
    networks.map((network) => Sandbox.create(attackable().network(network), { server, warm: 1 })),
  )
  const client = new ForkClient(server)
  const request = forkRequest()
    .mode('fork-execve-sandbox')
    .args('/program', ...launch)
    .mountTree(mountTree().addFile(program(), '/program'))
  const requests = [request.pivot('nested'), request.pivot('direct'), request.netnsMode('shared-per-forkserver')]
  const pids = new Set<number>()
  for (let round = 0; round < 4; round += 1) {
    for (const sandbox of sandboxes) {
      t.is((await sandbox.run('/attack', launch)).status, 'exited', sandbox.policy.network)
    }
    for (const one of requests) {
      const reply = await client.sendRequest(one.build())
      t.like(await reply.exited, { status: 'exited', exitCode: 0 })
    }
    const outer = await server.unsandboxed.run(program(), launch, { env: {} })
    t.is(outer.status, 'exited')
    t.false(pids.has(server.pid), 'it is another each time')
    pids.add(server.pid)
    const before = family(server.pid).length
    t.true(before > 3)
    process.kill(server.pid, 'SIGKILL')
    // Until the host has heard of it: a launch that is handed to the dead one is lost, and says so.
    t.true(await until(() => server.pid === 0))
  }
  await Promise.all(sandboxes.map((sandbox) => sandbox.destroy()))
})

// ---- executables ---------------------------------------------------------------------------------------------------------

attack('the fork server is the one in the addon, and nobody can change it', async (t) => {
  await using server = await ForkServer.start()
  t.true(server.pid > 0)
  const held = readdirSync('/proc/self/fd').find((number) => {
    try {
      return readlinkSync(`/proc/self/fd/${number}`).startsWith('/memfd:nestbox-forkserver')
    } catch {
      // The one that the directory itself was read with.
      return false
    }
  })
  t.truthy(held)
  const original = readFileSync(forkServerFile())
  t.deepEqual(readFileSync(`/proc/self/fd/${held}`), original)
  t.deepEqual(done(await outside(['files', 'rewrite', 'own'])), ['write', 'map', 'punch', 'grow', 'shrink', 'seal'])
  const found = await outside(['files', 'rewrite', `/proc/${process.pid}/fd/${held}`])
  t.is(found.size, 6)
  t.deepEqual(done(found), [])
  t.deepEqual(readFileSync(`/proc/self/fd/${held}`), original)
  // Another process of it is made of the same bytes.
  await using again = await ForkServer.start()
  await using sandbox = await Sandbox.create(attackable(), { server: again })
  t.is((await sandbox.run('/attack', ['files', 'ids'])).status, 'exited')
})

attack('a program in the place of the fork server is found out, and nothing else steps in', async (t) => {
  const directory = scratch(t)
  const text = path.join(directory, 'text')
  writeFileSync(text, 'no program\n', { mode: 0o755 })
  const cut = path.join(directory, 'cut')
  writeFileSync(cut, readFileSync(forkServerFile()).subarray(0, 100_000), { mode: 0o755 })
  for (const file of ['/bin/true', '/bin/cat', text, cut, directory, path.join(directory, 'missing')]) {
    await using host = await Host.start({ env: { NESTBOX_FORKSERVER: file }, binds: { '/program': program() } })
    const { error, result } = await host.ask('run', { args: ['files', 'ids'] })
    t.is(result, undefined, file)
    t.is(error?.name, 'ForkServerError', file)
  }
  await using host = await Host.start({
    env: { NESTBOX_FORKSERVER: forkServerFile() },
    binds: { '/program': program() },
  })
  t.like((await host.must('run', { args: ['files', 'ids'] })).result, { status: 'exited' })
  // Whoever installs the package can tell who built it, and from what.
  const release = readFileSync(path.join(root, '.github', 'workflows', 'release.yml'), 'utf8')
  t.regex(release, /^ +id-token: write\b/m)
  t.regex(release, /^ +NPM_CONFIG_PROVENANCE: 'true'$/m)
})

// ---- descriptors -----------------------------------------------------------------------------------------------------------

/** A directory and a path of the host, from the first free number above 500 on, for whoever is executed. */
const INHERITING = `
import fcntl, os, sys
for flags in [os.O_RDONLY, os.O_PATH] * 20:
    fcntl.fcntl(os.open("/", flags), fcntl.F_DUPFD, 500)
os.execv(sys.argv[1], sys.argv[1:])
`

const canary = (t: ExecutionContext): string => {
  const file = path.join(scratch(t), 'canary')
  writeFileSync(file, 'the TOKEN of the host\n', { mode: 0o644 })
  return file
}

/** The descriptors that were tried. */
const tried = (lines: Iterable<string>): number[] => [
  ...new Set([...lines].flatMap((line) => /^fd-(\d+)-/.exec(line)?.[1] ?? []).map(Number)),
]

for (const filter of filters) {
  prepared(`a template and its warm nests keep nothing that the host has open: ${filter}`, false, async (t) => {
    const file = canary(t)
    const wrapper = [python(), '-c', INHERITING]
    const options = { binds: { '/program': program() }, base: 'host-system', syscalls: filter } as const
    await using host = await Host.start({ ...options, wrapper, warm: 2 })
    t.true(readdirSync(`/proc/${host.pid}/fd`).length > 40)
    const wanted = ['files', 'descriptors', file, 'TOKEN']
    // Whom the host starts the usual way has them.
    const free = String((await host.must('childProcess', { file: program(), args: wanted })).value)
    t.true(tried(free.split('\n')).length >= 40)
    t.regex(free, /^fd-5\d\d-relative done$/m)
    let warm = 0
    for (let round = 0; round < 10 || warm === 0; round += 1) {
      const { result } = await host.must('run', { args: wanted })
      const lines = String(result?.stdout).split('\n')
      t.deepEqual(tried(lines), [0, 1, 2])
      t.deepEqual(
        lines.filter((line) => line.endsWith(' done')),
        [],
      )
      warm += result?.timings.warm === true ? 1 : 0
      await delay(20)
    }
  })

  attack(`a zygote and a program started ahead keep nothing that the host has open: ${filter}`, async (t) => {
    const file = canary(t)
    // Marked close-on-exec, as everything is that Node opens: a fork alone would keep it.
    const opened = openSync('/', constants.O_RDONLY | constants.O_DIRECTORY)
    t.teardown(() => closeSync(opened))
    const wanted = ['descriptors', file, 'TOKEN']
    const from = attackable(filter).bind(fixture('zygote'), '/zygote').limits({ wallTime: Infinity })
    await using sandbox = await Sandbox.create(from, {
      prewarm: { file: '/attack', args: ['files', ...wanted], count: 1 },
    })
    const ahead = await sandbox.run('/attack', ['files', ...wanted], { work: 'work' })
    const lines = ahead.stdout.split('\n')
    t.deepEqual(tried(lines), [0, 1, 2, 1023])
    t.deepEqual(
      lines.filter((line) => line.endsWith(' done')),
      [],
    )

    await using zygote = await sandbox.spawn('/zygote', [], { comms: true })
    const forks = new ForkClient(zygote)
    for (let round = 0; round < 3; round += 1) {
      const to = path.join(scratch(t), 'stdout')
      const stdout = openSync(to, 'w')
      const reply = await forks.sendRequest(
        forkRequest()
          .mode('fork')
          .args(...wanted)
          .build(),
        { stdout },
      )
      t.like(await reply.exited, { status: 'exited', exitCode: 0 })
      closeSync(stdout)
      const forked = readFileSync(to, 'utf8').split('\n')
      t.true(tried(forked).includes(1), 'it did try')
      t.deepEqual(
        forked.filter((line) => line.endsWith(' done')),
        [],
      )
    }
    // What is passed on purpose is what leads there.
    const unsafe = { stdio: ['ignore', 'pipe', 'pipe', { fd: opened, unsafe: true }] } as const
    const bare = await inside(sandbox, ['files', ...wanted], unsafe)
    t.is(bare.has('fd-3-relative'), true)
  })
}

// ---- control groups ----------------------------------------------------------------------------------------------------------

const groupOf = (pid: number | 'self'): string => {
  try {
    return readFileSync(`/proc/${pid}/cgroup`, 'utf8')
  } catch {
    return ''
  }
}

/** A control group of our own that can count processes, if one can be made. */
const group = (t: ExecutionContext): string | undefined => {
  const parent = ['/sys/fs/cgroup/pids', '/sys/fs/cgroup'].find((directory) =>
    existsSync(path.join(directory, 'cgroup.procs')),
  )
  if (parent === undefined) return undefined
  const directory = path.join(parent, `nestbox-test-${process.pid}`)
  try {
    accessSync(parent, constants.W_OK)
    mkdirSync(directory)
    t.teardown(async () => {
      await until(() => {
        try {
          rmdirSync(directory)
          return true
        } catch {
          return false
        }
      })
    })
    writeFileSync(path.join(directory, 'pids.max'), '60')
    return directory
  } catch {
    return undefined
  }
}

/** No process below this one is in another group. One that is exiting seems to be in none, and is gone in a moment. */
const allIn = async (t: ExecutionContext, pid: number, own: string): Promise<void> => {
  for (let round = 0; round < 20; round += 1) {
    let others = family(pid).filter((one) => groupOf(one.pid) !== own)
    const gone = await until(() => {
      others = survivors(others).filter((one) => groupOf(one.pid) !== own)
      return others.length === 0
    })
    t.true(gone, JSON.stringify(others))
  }
}

attack('no process of a storm of forks is outside of the control group that the host is in', async (t) => {
  for (const filter of filters) {
    await using server = await ForkServer.start()
    await using sandbox = await Sandbox.create(attackable(filter).limits({ processes: 40 }), { server })
    const own = groupOf('self')
    const bomb = await sandbox.spawn('/attack', ['processes', 'bomb', 'patient'], {
      stdout: 'ignore',
      stderr: 'ignore',
    })
    t.true(await until(() => family(server.pid).length > 30), JSON.stringify(family(server.pid)))
    await allIn(t, server.pid, own)
    bomb.kill()
    await bomb.result
  }

  const directory = group(t)
  if (directory === undefined) {
    t.log('a control group of our own can not be made here')
    return
  }
  // What an administrator puts around a host holds its launches, from the first instruction on.
  const host = await Host.start({ binds: { '/program': program() } })
  t.teardown(() => host[Symbol.asyncDispose]())
  writeFileSync(path.join(directory, 'cgroup.procs'), String(host.pid))
  const { pids: [bomb = 0] = [] } = await host.must('spawn', { args: ['processes', 'bomb', 'patient'] })
  t.true(bomb > 0)
  const { pid: server = 0 } = await host.must('server')
  const refused = (): boolean => /[1-9]/.test(readFileSync(path.join(directory, 'pids.events'), 'utf8'))
  t.true(await until(refused))
  const inGroup = groupOf(host.pid)
  t.not(inGroup, groupOf('self'))
  await allIn(t, server, inGroup)
  await host.must('kill')
})
