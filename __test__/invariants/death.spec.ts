// Whoever dies, dies completely, and whoever can go on, goes on. No nest outlives its host by more than a second, however
// the host ends and whoever is stopped meanwhile; programs, their daemons, and whatever ignores signals included. When a
// level below the host dies, the host is told, and its next call works.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { readdirSync, readFileSync, statSync } from 'node:fs'
import { copyFileSync, mkdtempSync, writeFileSync } from 'node:fs'
import path from 'node:path'

import test, { type ExecutionContext } from 'ava'

import { delay, have, isRoot, until } from '../helpers.ts'
import {
  descriptors,
  family,
  familyOf,
  fixture,
  forkServerFile,
  Host,
  type HostOptions,
  type Process,
  processOf,
  processTable,
  statusLine,
  survivors,
  workshop,
} from './support.ts'

/** The bound of the invariant, in milliseconds. */
const SECOND = 1000

/** Nests alive in the largest test, each with init, a program, and a daemon of it. */
const MANY = 400

/** One after the other: each test kills hundreds of processes and looks at the clock. */
const compiled = have('gcc') ? test.serial : test.serial.skip

const start = async (t: ExecutionContext, options: HostOptions = {}): Promise<Host> => {
  const host = await Host.start({
    binds: { '/program': fixture('stubborn'), '/nothing': fixture('nothing') },
    ...options,
  })
  t.teardown(() => host[Symbol.asyncDispose]())
  return host
}

/** The processes of a fork server that the host does not count as launches: itself, its helpers, the template. */
const serverOf = async (host: Host): Promise<number> => {
  const { pid = 0 } = await host.must('server')
  return pid
}

/** A host with nests in which a program and its daemon live; all processes below the host that are ours. */
const inhabited = async (host: Host, nests: number): Promise<{ server: number; members: Process[] }> => {
  await host.must('build')
  const server = await serverOf(host)
  const before = family(server).length
  for (let left = nests; left > 0; left -= 100) {
    // In batches: the descriptors of a hundred launches are open at one time.
    await host.must('spawn', { count: Math.min(left, 100) })
  }
  const members = await familyOf(server, before + nests * 3)
  return { server, members }
}

const goneWithin = async (members: readonly Process[], limit: number): Promise<Process[]> => {
  await until(() => survivors(members).length === 0, limit)
  return survivors(members)
}

const named = (members: readonly Process[], name: RegExp): Process[] =>
  members.filter((member) => name.test(member.name))

// ---- the host dies -------------------------------------------------------------------------------------------------------------

/** How a host ends. Resolves when it has. */
const ways: Record<string, (host: Host) => Promise<unknown>> = {
  'it exits': async (host) => {
    void host.ask('exit', { code: 3 })
    return host.ended
  },
  'it is killed': async (host) => {
    host.kill('SIGKILL')
    return host.ended
  },
  'it is terminated': async (host) => {
    host.kill('SIGTERM')
    return host.ended
  },
  'it throws': async (host) => {
    void host.ask('throw')
    return host.ended
  },
  'it aborts': async (host) => {
    host.kill('SIGABRT')
    return host.ended
  },
}

for (const [way, end] of Object.entries(ways)) {
  compiled(`the host dies, and everything with it: ${way}`, async (t) => {
    const host = await start(t)
    const { members } = await inhabited(host, 20)
    t.true(members.length >= 60, `${members.length} processes`)
    t.deepEqual(
      members.filter(({ state }) => state === 'Z'),
      [],
      'no zombies',
    )
    await end(host)
    t.deepEqual(await goneWithin(members, SECOND), [])
  })
}

compiled(`the host is killed with ${MANY} nests alive`, async (t) => {
  const host = await start(t)
  const { members } = await inhabited(host, MANY)
  t.true(members.length >= MANY * 3, `${members.length} processes`)
  host.kill('SIGKILL')
  await host.ended
  t.deepEqual(await goneWithin(members, SECOND), [])
})

compiled('a worker that launched is terminated: nothing of it stays, and the main thread goes on', async (t) => {
  const host = await start(t, { worker: true })
  const { members } = await inhabited(host, 20)
  await host.must('terminate')
  t.deepEqual(await goneWithin(members, SECOND), [])
  t.not(processOf(host.pid), undefined, 'the process is still there')
})

for (const stopped of ['fork server', 'template', 'mounter', 'everything but the nests']) {
  compiled(`the host is killed while this is stopped: ${stopped}`, async (t) => {
    const host = await start(t)
    const { server, members } = await inhabited(host, 20)
    const victims = {
      'fork server': members.filter(({ pid }) => pid === server),
      template: named(members, /^nestbox-templat$/).filter(({ parent }) => parent === server),
      mounter: named(members, /^nestbox-mounter$/),
      'everything but the nests': members.filter(({ pid, parent }) => pid === server || parent === server),
    }[stopped]
    t.true(victims !== undefined && victims.length > 0)
    for (const { pid } of victims ?? []) process.kill(pid, 'SIGSTOP')
    await until(() => (victims ?? []).every(({ pid }) => processOf(pid)?.state === 'T'))
    host.kill('SIGKILL')
    await host.ended
    t.deepEqual(await goneWithin(members, SECOND), [])
  })
}

// ---- something below the host dies -------------------------------------------------------------------------------------------

compiled('the fork server is killed: what ran is lost, and the next call starts another', async (t) => {
  const host = await start(t)
  const { server, members } = await inhabited(host, 20)
  process.kill(server, 'SIGKILL')
  t.deepEqual(await goneWithin(members, SECOND), [])
  const { results = [] } = await host.must('results')
  t.is(results.length, 20)
  for (const { error } of results) t.like(error, { name: 'ForkServerError', code: 'ERR_NESTBOX_FORKSERVER' })
  const { result } = await host.must('run', { file: '/nothing' })
  t.is(result?.status, 'exited')
  t.not(await serverOf(host), server)
  t.deepEqual(
    (await host.must('kill')).value,
    Array.from({ length: 20 }, () => false),
  )
  // A stale process would stay as a zombie of the host's. The last launch's own is gone as soon as its init is.
  const zombies = (): object[] => family(host.pid).filter(({ state }) => state === 'Z')
  await until(() => zombies().length === 0)
  t.deepEqual(zombies(), [])
})

compiled('the fork server is killed again and again, at any moment', async (t) => {
  const host = await start(t)
  for (let round = 0; round < 12; round += 1) {
    const server = await serverOf(host)
    const pending = host.ask('spawn', { count: 4 })
    await delay(Math.random() * 12)
    const members = family(server)
    try {
      process.kill(server, 'SIGKILL')
    } catch {
      // It is the one of the round before, which is gone: the host has not been told yet.
    }
    const { error } = await pending
    if (error !== undefined) t.is(error.name, 'ForkServerError', JSON.stringify(error))
    t.deepEqual(await goneWithin(members, SECOND), [])
    t.is((await host.must('run', { file: '/nothing' })).result?.status, 'exited')
  }
})

compiled('a helper is killed: the next launch works', async (t) => {
  const host = await start(t)
  await host.must('run', { file: '/nothing' })
  for (const name of [/^nestbox-templat$/, /^nestbox-mounter$/, /^nestbox-network$/]) {
    const server = await serverOf(host)
    const [helper] = named(
      family(server).filter(({ parent }) => parent === server),
      name,
    )
    if (helper === undefined) {
      t.log(`there is no ${name.source}`)
      continue
    }
    process.kill(helper.pid, 'SIGKILL')
    await until(() => survivors([helper]).length === 0)
    const { result, error } = await host.ask('run', { file: '/nothing' })
    t.is(result?.status, 'exited', `${name.source}: ${JSON.stringify(error)}`)
  }
})

compiled('the template is killed: what it ran was killed, and the next launch works', async (t) => {
  const host = await start(t)
  const { server, members } = await inhabited(host, 10)
  const template = named(members, /^nestbox-templat$/).find(({ parent }) => parent === server)
  t.not(template, undefined)
  const nests = family(template?.pid ?? 0)
  t.true(nests.length >= 31)
  process.kill(template?.pid ?? 0, 'SIGKILL')
  t.deepEqual(await goneWithin(nests, SECOND), [])
  const { results = [] } = await host.must('results')
  for (const { result } of results) t.like(result, { status: 'killed', signal: 'SIGKILL', failed: true })
  t.is((await host.must('run', { file: '/nothing' })).result?.status, 'exited')
  t.is(await serverOf(host), server, 'the fork server is the same')
})

compiled('an init is killed from outside: that is a result', async (t) => {
  const host = await start(t)
  await host.must('build')
  const { pids = [] } = await host.must('spawn', { count: 1 })
  const init = processOf(pids[0] ?? 0)?.parent ?? 0
  t.true(init > 1)
  const nest = family(init)
  process.kill(init, 'SIGKILL')
  t.deepEqual(await goneWithin(nest, SECOND), [])
  const { results = [] } = await host.must('results')
  t.like(results[0]?.result, { status: 'killed', signal: 'SIGKILL' })
})

compiled('after the result nothing of a launch runs', async (t) => {
  const host = await start(t)
  const { server, members } = await inhabited(host, 30)
  await host.must('kill')
  const { results = [] } = await host.must('results')
  // No waiting here: that is the promise. Inits themselves end right behind their report.
  const left = survivors(members).filter(({ name }) => /program|stubborn/.test(name))
  t.deepEqual(left, [])
  for (const { result } of results) t.like(result, { status: 'killed', signal: 'SIGKILL' })
  await until(() => family(server).length <= 6)
  t.deepEqual(
    family(server).filter(({ state }) => state === 'Z'),
    [],
  )
  t.deepEqual(
    (await host.must('kill')).value,
    Array.from({ length: 30 }, () => false),
    'nobody left to signal',
  )
})

compiled("a signal to the host's process group reaches neither fork server nor nests", async (t) => {
  const host = await start(t, { detached: true })
  await host.must('stand')
  const { server, members } = await inhabited(host, 5)
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
    process.kill(-host.pid, signal)
    await delay(30)
  }
  t.is(survivors(members).length, members.length)
  t.is((await host.must('run', { file: '/nothing' })).result?.status, 'exited')
  t.is(await serverOf(host), server)
  // A signal to its own group does not either: nobody but us has a reason to send one.
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGALRM', 'SIGUSR1'] as const) process.kill(server, signal)
  await delay(30)
  t.is(survivors(members).length, members.length)
})

// ---- too little of something --------------------------------------------------------------------------------------------------

compiled('with descriptors running out launches fail clean, and later ones work', async (t) => {
  const host = await start(t)
  const outcomes: string[] = []
  for (let free = 0; free <= 14; free += 1) {
    const { results = [], value } = await host.must('starve', { file: '/nothing', free })
    const [starved, later] = results
    t.is(later?.result?.status, 'exited', `${free} free: ${JSON.stringify(later?.error)}`)
    if (starved?.error === undefined) {
      t.is(starved?.result?.status, 'exited')
      outcomes.push('works')
    } else {
      const { error } = starved
      t.like(
        error,
        { name: 'SpawnError', code: 'ERR_NESTBOX_SPAWN', errno: 24, errnoName: 'EMFILE' },
        JSON.stringify(error),
      )
      t.regex(error.hint ?? '', /open fds/)
      t.not(error.syscall, '')
      outcomes.push(error.syscall ?? '')
    }
    const { before, after } = value as { before: number; after: number }
    t.is(after, before, `${free} free: ${after - before} descriptors were left open\n${JSON.stringify(value)}`)
  }
  t.not(outcomes[0], 'works')
  t.is(outcomes.at(-1), 'works')
  t.log(outcomes.join(' '))
})

// ---- calls that the kernel refuses ---------------------------------------------------------------------------------------------

interface Refusal {
  /** The system call that fails: its number on x86-64, its errno, and for which argument. */
  readonly call: readonly [number: number, errno: number, argument?: number, mask?: number, value?: number]
  readonly step: string | RegExp
  readonly syscall: string
  readonly errnoName: string
  /** It breaks the start of the fork server itself. */
  readonly start?: boolean
}

const [EPERM, EAGAIN, ENOMEM, ENOSPC] = [1, 11, 12, 28]
const CLONE_VM = 0x1_00

/** One refusal for each kind of step on the way to a program that runs. */
const refusals: Record<string, Refusal> = {
  'clone3 without processes': { call: [435, EAGAIN], step: /clone|fork/, syscall: 'clone3', errnoName: 'EAGAIN' },
  'unshare without a right': {
    call: [272, EPERM],
    step: 'create-initial-namespaces',
    syscall: 'unshare',
    errnoName: 'EPERM',
  },
  'unshare at the limit': {
    call: [272, ENOSPC],
    step: 'create-initial-namespaces',
    syscall: 'unshare',
    errnoName: 'ENOSPC',
  },
  'setns without a right': { call: [308, EPERM], step: /join/, syscall: 'setns', errnoName: 'EPERM' },
  'pivot_root without a right': { call: [155, EPERM], step: 'pivot-root', syscall: 'pivot_root', errnoName: 'EPERM' },
  'mount without memory': { call: [165, ENOMEM], step: /mount/, syscall: 'mount', errnoName: 'ENOMEM' },
  'umount2 without a right': { call: [166, EPERM], step: 'detach-old-root', syscall: 'umount2', errnoName: 'EPERM' },
  'open_tree without a right': {
    call: [428, EPERM],
    step: 'open-bind-source',
    syscall: 'open_tree',
    errnoName: 'EPERM',
  },
  'mount_setattr without a right': {
    call: [442, EPERM],
    step: /attributes|seal/,
    syscall: 'mount_setattr',
    errnoName: 'EPERM',
  },
  'move_mount without a right': { call: [429, EPERM], step: 'attach-bind', syscall: 'move_mount', errnoName: 'EPERM' },
  'sethostname without a right': {
    call: [170, EPERM],
    step: 'set-hostname',
    syscall: 'sethostname',
    errnoName: 'EPERM',
  },
  // With CLONE_VM only: the launch child.
  'clone of the program': {
    call: [56, EAGAIN, 0, CLONE_VM, CLONE_VM],
    step: 'clone-sandboxee',
    syscall: 'clone',
    errnoName: 'EAGAIN',
  },
  'setsid without a right': { call: [112, EPERM], step: 'create-session', syscall: 'setsid', errnoName: 'EPERM' },
  // Without O_CLOEXEC only: what the program gets.
  'dup3 without memory': {
    call: [292, ENOMEM, 2, 0xff_ff_ff_ff, 0],
    step: 'map-fds',
    syscall: 'dup3',
    errnoName: 'ENOMEM',
  },
  'prlimit without a right': {
    call: [302, EPERM, 1, 0xff, 6],
    step: 'set-limits',
    syscall: 'prlimit',
    errnoName: 'EPERM',
  },
  'seccomp without memory': { call: [317, ENOMEM], step: /filter|guard/, syscall: 'seccomp', errnoName: 'ENOMEM' },
}

const x64 = process.arch === 'x64' ? compiled : test.serial.skip

for (const [title, { call, step, syscall, errnoName }] of Object.entries(refusals)) {
  x64(`refused, and told whole: ${title}`, async (t) => {
    const directory = mkdtempSync(path.join(workshop(), 'inject-'))
    copyFileSync(fixture('inject'), path.join(directory, 'inject'))
    copyFileSync(forkServerFile(), path.join(directory, 'nestbox-forkserver'))
    const settings = path.join(directory, 'inject.conf')
    const [number, errno, argument = 0, mask = 0, value = 0] = call
    writeFileSync(settings, `${number} ${errno} ${argument} ${mask} ${value}\n`)
    const host = await start(t, { env: { NESTBOX_FORKSERVER: path.join(directory, 'inject') } })
    const { error, result } = await host.ask('run', { file: '/nothing' })
    if (result !== undefined) {
      // The step is one that is passed over where the call does not exist; then nothing may have been lost but that.
      t.fail(`it ran without ${syscall}: ${JSON.stringify(result.isolation)}`)
      return
    }
    t.like(error, { errno, errnoName, syscall }, JSON.stringify(error))
    t.true(['SpawnError', 'ForkServerError'].includes(error?.name ?? ''), error?.name)
    t.regex(error?.step ?? '', step instanceof RegExp ? step : new RegExp(`^${step}$`), JSON.stringify(error))
    t.regex(error?.message ?? '', new RegExp(errnoName))

    // Nothing half-made is left of it, and a fork server that may do what it must works.
    // Of one that could not even start there is none.
    const { pid: server = 0 } = await host.ask('server')
    if (server !== 0) {
      await until(() => family(server).every(({ name }) => !/^(?:nothing|program)$/.test(name)))
      t.deepEqual(
        family(server).filter(({ state }) => state === 'Z'),
        [],
      )
      process.kill(server, 'SIGKILL')
      await until(() => processOf(server) === undefined)
    }
    // No system call has this number.
    writeFileSync(settings, '4095 1\n')
    await until(async () => (await host.ask('run', { file: '/nothing' })).result?.status === 'exited')
    t.is((await host.must('run', { file: '/nothing' })).result?.status, 'exited')
  })
}

// ---- what the fork server is made of -------------------------------------------------------------------------------------------

compiled('the fork server has nothing of the host', async (t) => {
  const host = await start(t, { env: { SECRET: 'SECRET-canary' }, wrapper: ['nice', '-n', '5'] })
  await host.must('run', { file: '/nothing' })
  const server = await serverOf(host)
  const own = processOf(server)
  t.is(own?.session, server, 'its own session')
  t.true(isRoot ? own?.nice === 0 : own?.nice === 5, 'the default priority, where it may be raised')
  t.is(processOf(host.pid)?.nice, 5)
  const members = family(server)
  for (const { pid, name } of members) {
    // The privileged helper of a root host has what maps and id-mapped mounts take; the template's are those of U0.
    if (name !== 'nestbox-server') continue
    t.regex(statusLine(pid, 'Threads'), /^1$/)
    t.regex(statusLine(pid, 'CapEff'), /^0+$/, name)
    t.regex(statusLine(pid, 'CapPrm'), /^0+$/, name)
    t.regex(statusLine(pid, 'CapInh'), /^0+$/, name)
    t.regex(statusLine(pid, 'CapAmb'), /^0+$/, name)
  }
  if (isRoot) {
    t.is(readFileSync(`/proc/${server}/environ`, 'latin1'), '')
    const open = descriptors(server)
    t.true(open.length <= 5, open.join('\n'))
    for (const line of open) t.regex(line, /^(?:[0-2] \/dev\/null|[34] socket:.*)$/)
  } else {
    // Not dumpable: what could be looked into belongs to root.
    t.is(statSync(`/proc/${server}/environ`).uid, 0)
    t.throws(() => readFileSync(`/proc/${server}/environ`), { code: 'EACCES' })
    t.throws(() => readdirSync(`/proc/${server}/fd`), { code: 'EACCES' })
  }
  for (const { pid } of members) {
    t.notRegex(readFileSync(`/proc/${pid}/cmdline`, 'latin1'), /canary/)
  }
})

compiled("the host's environment and arguments can be read nowhere inside", async (t) => {
  const host = await start(t, {
    base: 'host-system',
    syscalls: 'unfiltered',
    binds: { '/program': fixture('canary') },
    env: { SECRET: 'SECRET-in-the-environment' },
    args: ['SECRET-in-the-environment'],
  })
  // Outside, as the same user, the program finds it: in the environment and in the arguments of the host.
  const outside = await host.must('unsandboxed', { file: fixture('canary'), args: ['ECRET-in-the-environment'] })
  const found = outside.result?.stdout ?? ''
  t.regex(found, new RegExp(`^/proc/${host.pid}/environ$`, 'm'))
  t.regex(found, new RegExp(`^/proc/${host.pid}/cmdline$`, 'm'))
  t.notRegex(found, /own environment/)
  const inside = await host.must('run', { args: ['ECRET-in-the-environment'] })
  t.is(inside.result?.stdout, 'end')
})

compiled('one fork server serves several threads of its process, and each worker has its own', async (t) => {
  const host = await start(t)
  await host.must('run', { file: '/nothing' })
  const servers = processTable().filter(({ parent }) => parent === host.pid)
  t.is(servers.length, 1)
  t.is(servers[0]?.pid, await serverOf(host))
})
