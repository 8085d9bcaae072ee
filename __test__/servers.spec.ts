// Fork servers over their lives: several at once, killed, closed, forbidden; and from worker threads.

import { existsSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { Worker } from 'node:worker_threads'

import test from 'ava'

import { ForkServer, ForkServerError, NestboxError, policy, RequestError, run, Sandbox } from '../index.ts'
import { nativePolicy } from '../lib/policy/policy.ts'
import type { RunningForkServer } from '../lib/server.ts'
import { delay, runs, isRoot, scratch, until } from './helpers.ts'
import { firstLine, statusOf } from './inside.ts'
import { descriptors } from './invariants/support.ts'

const env = { PATH: '/usr/bin:/bin' }

test('several fork servers, each with its own namespaces', async (t) => {
  const servers = await Promise.all([ForkServer.start(), ForkServer.start(), ForkServer.start()])
  t.is(new Set(servers.map(({ pid }) => pid)).size, 3)
  const shared = policy('host-system').network('shared-loopback')
  const holders = await Promise.all(
    servers.map(async (server) => {
      const sandbox = await Sandbox.create(shared, { server })
      return sandbox.spawn('sh', ['-c', 'readlink /proc/self/ns/net; cat'], { stdin: 'pipe' })
    }),
  )
  const networks = await Promise.all(holders.map((holder) => firstLine(holder)))
  t.is(new Set(networks).size, 3)
  await servers[0]?.destroy()
  t.like(await holders[0]?.result, { status: 'killed' })
  t.true(runs(holders[1]?.pid ?? 0))
  await Promise.all(servers.map((server) => server.destroy()))
  for (const holder of holders) t.false(runs(holder.pid))
  t.true(await until(() => servers.every(({ pid }) => pid === 0)))
})

test('a fork server has nothing of the host: environment, terminal, session, descriptors', async (t) => {
  await using server = await ForkServer.start()
  await server.unsandboxed.run('true', [], { env })
  const stat = readFileSync(`/proc/${server.pid}/stat`, 'latin1')
  const [, parent, group, session] = stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number)
  t.is(session, server.pid)
  t.is(group, server.pid)
  t.truthy(parent)
  const status = statusOf(readFileSync(`/proc/${server.pid}/status`, 'utf8'))
  t.is(status['Threads'], '1')
  if (isRoot) t.is(readFileSync(`/proc/${server.pid}/environ`, 'utf8'), '')
})

test.serial("the host's heap is nothing to a launch: neither the fork server nor a program carries it", async (t) => {
  const MiB = 1024 ** 2
  const heap = Buffer.alloc(300 * MiB, 1)
  await using server = await ForkServer.start()
  const sandbox = await Sandbox.create(policy('host-system'), { server })
  const isolated = await sandbox.run('true')
  const bare = await server.unsandboxed.run('true', [], { env })
  const rss = Number.parseInt(statusOf(readFileSync(`/proc/${server.pid}/status`, 'utf8'))['VmHWM'] ?? '', 10)
  t.true(rss * 1024 < 16 * MiB, `${rss} KiB`)
  for (const { resourceUsage } of [isolated, bare]) {
    t.true(resourceUsage.peakMemoryBytes < 16 * MiB, String(resourceUsage.peakMemoryBytes))
  }
  t.is(heap[heap.length - 1], 1)
})

test('killed: what it ran is lost and dead, the next call starts a new one', async (t) => {
  await using server = await ForkServer.start()
  const sandbox = await Sandbox.create(policy('host-system').network('shared-loopback'), { server })
  const first = server.pid
  const running = await sandbox.spawn('sleep', ['60'])
  const bare = await server.unsandboxed.spawn('sleep', ['60'], { env })
  process.kill(first, 'SIGKILL')
  const error = await t.throwsAsync(running.result, { instanceOf: ForkServerError, code: 'ERR_NESTBOX_FORKSERVER' })
  // It is not its start that failed.
  t.regex(error?.message ?? '', /^The fork server died\. .*; the next call starts a new one\.$/)
  t.is(error?.step, undefined)
  await t.throwsAsync(bare.result, { instanceOf: ForkServerError })
  t.true(await until(() => !runs(running.pid) && !runs(bare.pid)))
  t.false(running.kill())
  t.is((await sandbox.run('echo', ['again'])).stdout, 'again')
  t.not(server.pid, first)
  t.true(runs(server.pid))
  t.is(server.stats().starts, 2)
})

test('killed again and again, at any moment', async (t) => {
  await using server = await ForkServer.start()
  const sandbox = await Sandbox.create(policy('host-system'), { server })
  for (let turn = 0; turn < 8; turn += 1) {
    const launches = Array.from({ length: 6 }, () => sandbox.run('echo', ['x']))
    // oxlint-disable-next-line no-await-in-loop
    await new Promise((resolve) => {
      setTimeout(resolve, turn / 2)
    })
    const { pid } = server
    if (pid > 0) process.kill(pid, 'SIGKILL')
    // oxlint-disable-next-line no-await-in-loop
    for (const outcome of await Promise.allSettled(launches)) {
      if (outcome.status === 'fulfilled') t.is(outcome.value.stdout, 'x')
      else t.true(outcome.reason instanceof ForkServerError, String(outcome.reason))
    }
    // A launch that is handed to a dying one is lost as well.
    // oxlint-disable-next-line no-await-in-loop
    t.true(await until(() => pid === 0 || server.pid !== pid))
    // oxlint-disable-next-line no-await-in-loop
    t.is((await sandbox.run('echo', ['next'])).stdout, 'next')
  }
})

test('killed while a sandbox is being made: nobody is left waiting, and its launches start a new one', async (t) => {
  const server = (await ForkServer.start()) as RunningForkServer
  t.teardown(() => server.destroy())
  const connection = server.connection()
  process.kill(server.pid, 'SIGKILL')
  t.true(await until(() => connection.lost !== undefined))
  const native = nativePolicy(policy('host-system').build())
  // Who got hold of it before and asks now is told, not left waiting.
  await t.throwsAsync(connection.prepare(native), { instanceOf: ForkServerError })
  await t.throwsAsync(connection.warm(native, 1, undefined), { instanceOf: ForkServerError })
  // One after the other: each has a server of its own to kill.
  /* oxlint-disable no-await-in-loop */
  for (let turn = 0; turn < 10; turn += 1) {
    await server.unsandboxed.run('true', [], { env })
    const made = Sandbox.create(policy('host-system').hostname(`turn-${turn}`), { server })
    await delay(turn / 2)
    const running = server.connection()
    const killed = server.pid > 0 && process.kill(server.pid, 'SIGKILL')
    const sandbox = await made
    const hostname = async (): Promise<string> => {
      try {
        return (await sandbox.run('hostname')).stdout
      } catch (error) {
        t.true(error instanceof ForkServerError, String(error))
        return 'lost'
      }
    }
    t.true(await until(async () => (await hostname()) === `turn-${turn}`))
    // A template outlives its fork server by a moment, and may have served that launch; the next turn begins with another one.
    t.true(!killed || (await until(() => running.lost !== undefined)))
  }
  /* oxlint-enable no-await-in-loop */
})

test('close() waits for what runs; destroy() does not', async (t) => {
  const server = await ForkServer.start()
  const result = server.unsandboxed.run('sleep', ['0.1'], { env })
  const { pid } = server
  await server.close()
  t.is((await result).status, 'exited')
  t.true(await until(() => !runs(pid)))
  const refused = await t.throwsAsync(server.unsandboxed.run('true', [], { env }), { instanceOf: NestboxError })
  t.is(refused?.code, 'ERR_NESTBOX_CLOSED')
  const other = await ForkServer.start()
  const sandbox = await Sandbox.create(policy('host-system'), { server: other })
  const program = await sandbox.spawn('sleep', ['60'])
  await other.destroy()
  t.false(runs(program.pid))
  t.is((await program.result).status, 'killed')
  await other.destroy()
  await server.destroy()
  await server[Symbol.asyncDispose]()
})

test('close() waits for what still opens its files', async (t) => {
  const file = path.join(scratch(t), 'out')
  const server = await ForkServer.start()
  const opening = server.unsandboxed.run('echo', ['x'], { env, stdout: { file } })
  opening.catch(() => {})
  t.is(server.stats().running, 1)
  await server.close()
  t.is(server.stats().running, 0)
  t.is((await opening).status, 'exited')
  t.is(readFileSync(file, 'utf8'), 'x\n')
})

test('destroy() turns away what still opens its files, and leaves these alone', async (t) => {
  const directory = scratch(t)
  const [file, ran, never] = ['out', 'ran', 'never'].map((name) => path.join(directory, name)) as [
    string,
    string,
    string,
  ]
  writeFileSync(file, 'kept')
  const server = await ForkServer.start()
  // Its end is waited for: time enough to open files.
  await server.unsandboxed.spawn('sleep', ['60'], { env })
  const opening = server.unsandboxed.run('touch', [ran], { env, stdout: { file }, stderr: { file: never } })
  opening.catch(() => {})
  await server.destroy()
  const error = await t.throwsAsync(opening, { instanceOf: ForkServerError })
  t.is(error?.code, 'ERR_NESTBOX_CLOSED')
  t.is(readFileSync(file, 'utf8'), 'kept')
  t.false(existsSync(ran))
  t.false(existsSync(never))
})

test('options that make no sense', async (t) => {
  for (const options of [
    { hostIds: { uid: 0, gid: 1 } },
    { hostIds: { uid: 2 ** 32 - 3, gid: 1, count: 3 } },
    { maxTemplates: 0 },
    { nope: 1 },
  ]) {
    // oxlint-disable-next-line no-await-in-loop
    await t.throwsAsync(ForkServer.start(options as {}), { instanceOf: RequestError })
  }
})

test("hostIds: who a root host's sandboxees are, outside", async (t) => {
  await using server = await ForkServer.start({ hostIds: { uid: 54_321, gid: 54_322 } })
  const sandbox = await Sandbox.create(policy('host-system'), { server })
  await using program = await sandbox.spawn('sh', ['-c', 'id -u; cat'], { stdin: 'pipe' })
  t.is(await firstLine(program), '1000')
  const { Uid, Gid } = statusOf(readFileSync(`/proc/${program.pid}/status`, 'utf8'))
  const [uid, gid] = isRoot ? [54_321, 54_322] : [process.getuid?.(), process.getgid?.()]
  t.is(Uid?.split('\t')[0], String(uid))
  t.is(Gid?.split('\t')[0], String(gid))
})

test('hostIds with a count: each running nest has ids of its own', async (t) => {
  await using server = await ForkServer.start({ hostIds: { uid: 54_400, gid: 54_400, count: 4 } })
  const sandbox = await Sandbox.create(policy('host-system'), { server })
  const programs = await Promise.all([1, 2, 3].map(() => sandbox.spawn('sleep', ['60'])))
  const uids = programs.map(({ pid }) =>
    Number(statusOf(readFileSync(`/proc/${pid}/status`, 'utf8'))['Uid']?.split('\t')[0]),
  )
  if (isRoot) {
    t.is(new Set(uids).size, 3)
    for (const uid of uids) t.true(uid >= 54_400 && uid < 54_404, String(uid))
  } else {
    t.deepEqual(new Set(uids), new Set([process.getuid?.()]))
  }
  await sandbox.destroy()
})

// ---- forbidden ----------------------------------------------------------------------------------------------------------

for (const name of ['NESTBOX_NOFORKSERVER', 'SANDBOX2_NOFORKSERVER']) {
  test.serial(`${name}: none is started`, async (t) => {
    process.env[name] = '1'
    t.teardown(() => {
      delete process.env[name]
    })
    const error = await t.throwsAsync(ForkServer.start(), { instanceOf: ForkServerError })
    t.is(error?.code, 'ERR_NESTBOX_FORKSERVER_DISABLED')
    t.true(error?.message.includes(name))
  })
}

// ---- worker threads -----------------------------------------------------------------------------------------------------

/** Runs one of the parts of fixtures/worker.ts. */
const inWorker = (part: string): Worker =>
  new Worker(new URL('fixtures/worker.ts', import.meta.url), { argv: [part], execArgv: process.execArgv })

const message = (worker: Worker): Promise<unknown> =>
  new Promise((resolve, reject) => {
    worker.once('message', resolve)
    worker.once('error', reject)
  })

test('a worker thread has its own, and launches beside the others', async (t) => {
  const workers = [1, 2].map(() => inWorker('run'))
  t.deepEqual(await Promise.all(workers.map(message)), ['from a worker', 'from a worker'])
  t.is((await run('echo', ['from here'])).stdout, 'from here')
  await Promise.all(workers.map((worker) => worker.terminate()))
})

test('a worker that is terminated leaves no sandboxee, and harms nobody', async (t) => {
  const worker = inWorker('spawn')
  const pids = (await message(worker)) as number[]
  const here = await (await Sandbox.create()).spawn('cat', [], { stdin: 'pipe' })
  for (const pid of pids) t.true(runs(pid))
  await worker.terminate()
  t.true(await until(() => pids.every((pid) => !runs(pid))))
  here.stdin.end('alive\n')
  t.is(await firstLine(here), 'alive')
})

test.serial('a worker that has programs started ahead leaves none of their descriptors', async (t) => {
  // The host's ends of their stdout and stderr.
  const pipes = (): number => descriptors('self').filter((open) => open.includes(' pipe:')).length
  const before = pipes()
  const worker = inWorker('prewarm')
  t.is(await message(worker), 'up')
  t.true(pipes() >= before + 6)
  await worker.terminate()
  t.true(await until(() => pipes() <= before), `${pipes()} pipes, and ${before} before`)
})

test('in a worker, programs started ahead end without a warning', async (t) => {
  const worker = inWorker('destroyPrewarmed')
  t.deepEqual(await message(worker), [])
  await worker.terminate()
})

test('a worker that is terminated in the middle of launches', async (t) => {
  for (const ms of [0, 3, 10, 30]) {
    const worker = inWorker('loop')
    // oxlint-disable-next-line no-await-in-loop
    t.is(await message(worker), 'up')
    // oxlint-disable-next-line no-await-in-loop
    await new Promise((resolve) => {
      setTimeout(resolve, ms)
    })
    // oxlint-disable-next-line no-await-in-loop
    await worker.terminate()
  }
  t.is((await run('echo', ['fine'])).stdout, 'fine')
})

test('an idle fork server does not keep the host alive', async (t) => {
  const { execFileSync } = await import('node:child_process')
  const source = `import(${JSON.stringify(new URL('../index.ts', import.meta.url).href)}).then(async ({ run }) => {
    console.log((await run('echo', ['done'])).stdout)
  })`
  const text = execFileSync(process.execPath, [...process.execArgv, '-e', source], {
    encoding: 'utf8',
    timeout: 20_000,
  })
  t.is(text, 'done\n')
})

test('what is shared is shared: run() uses one server', async (t) => {
  const both = await Promise.all([run('readlink', ['/proc/self/ns/net']), run('true')])
  t.true(both.every(({ status }) => status === 'exited'))
  t.not(both[0].stdout, readlinkSync('/proc/self/ns/net'))
})
