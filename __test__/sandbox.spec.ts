// A sandbox over many launches: its queue, its ends, its accounts, policies as data.

import path from 'node:path'

import test from 'ava'

import {
  ForkServer,
  NestboxError,
  policy,
  PolicyError,
  QueueFullError,
  RequestError,
  Sandbox,
  SpawnError,
} from '../index.ts'
import { runs, scratch } from './helpers.ts'
import { firstLine } from './inside.ts'

// ---- queue --------------------------------------------------------------------------------------------------------------

test('maxConcurrency: no more run at a time, first come first served', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system'), { maxConcurrency: 2 })
  const started: number[] = []
  const launches = [0, 1, 2, 3, 4, 5].map(async (index) => {
    const program = await sandbox.spawn('cat', [], { stdin: 'pipe' })
    started.push(index)
    return program
  })
  t.like(sandbox.stats(), { running: 2, queued: 4 })
  const queueMs: number[] = []
  for (const [index, launch] of launches.entries()) {
    // Nobody ends by itself: whoever starts next has waited for this one.
    // oxlint-disable-next-line no-await-in-loop
    await launches[index + 1]
    t.like(sandbox.stats(), { running: Math.min(2, 6 - index), queued: Math.max(4 - index, 0) })
    // oxlint-disable-next-line no-await-in-loop
    const program = await launch
    program.stdin.end()
    // oxlint-disable-next-line no-await-in-loop
    queueMs.push((await program.result).timings.queueMs)
  }
  t.deepEqual(
    started.slice(0, 2).toSorted((one, other) => one - other),
    [0, 1],
  )
  t.deepEqual(started.slice(2), [2, 3, 4, 5])
  // All came at the same moment.
  t.true((queueMs[1] ?? Infinity) < (queueMs[2] ?? 0))
  t.deepEqual(
    queueMs.slice(2),
    queueMs.slice(2).toSorted((one, other) => one - other),
  )
  t.like(sandbox.stats(), { running: 0, queued: 0, launched: 6, completed: 6, errored: 0, rejected: 0 })
})

test('maxQueue: one more is turned away at once', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system'), { maxConcurrency: 1, maxQueue: 1 })
  const first = sandbox.run('sleep', ['0.2'])
  const second = sandbox.run('true')
  const error = await t.throwsAsync(sandbox.run('true'), { instanceOf: QueueFullError })
  t.is(error?.code, 'ERR_NESTBOX_QUEUE_FULL')
  t.is(sandbox.stats().rejected, 1)
  t.deepEqual(
    (await Promise.all([first, second])).map(({ status }) => status),
    ['exited', 'exited'],
  )
  t.is((await sandbox.run('true')).status, 'exited')
})

test('queueTimeout', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system'), { maxConcurrency: 1, queueTimeout: 40 })
  const first = sandbox.run('sleep', ['0.3'])
  const error = await t.throwsAsync(sandbox.run('true'), { instanceOf: QueueFullError })
  t.is(error?.code, 'ERR_NESTBOX_QUEUE_TIMEOUT')
  await first
})

test('an aborted launch leaves the queue', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system'), { maxConcurrency: 1 })
  const first = sandbox.run('sleep', ['0.2'])
  const controller = new AbortController()
  const second = sandbox.run('true', [], { signal: controller.signal })
  t.is(sandbox.stats().queued, 1)
  controller.abort()
  await t.throwsAsync(second, { name: 'AbortError' })
  t.is(sandbox.stats().queued, 0)
  await first
  t.is(sandbox.stats().launched, 1)
})

test('a launch that fails makes room for the next', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system'), { maxConcurrency: 1 })
  const failing = Promise.allSettled(Array.from({ length: 5 }, () => sandbox.run('/none')))
  t.is((await sandbox.run('echo', ['x'])).stdout, 'x')
  t.true((await failing).every(({ status }) => status === 'rejected'))
  t.like(sandbox.stats(), { running: 0, errored: 5, completed: 1 })
})

test('options that make no sense', async (t) => {
  for (const options of [
    { maxConcurrency: 0 },
    { maxQueue: -1 },
    { warm: -1 },
    { warm: 1.5 },
    { warm: 1e6 },
    { warmIdle: -1 },
    { server: {} },
  ]) {
    // oxlint-disable-next-line no-await-in-loop
    await t.throwsAsync(Sandbox.create(policy('host-system'), options as {}), { instanceOf: RequestError })
  }
})

// ---- ends ---------------------------------------------------------------------------------------------------------------

test('close() lets what runs and waits end, and takes no more', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system'), { maxConcurrency: 1 })
  const launches = [sandbox.run('sleep', ['0.1']), sandbox.run('echo', ['queued'])] as const
  const closing = sandbox.close()
  const refused = await t.throwsAsync(sandbox.run('true'), { instanceOf: NestboxError })
  t.is(refused?.code, 'ERR_NESTBOX_CLOSED')
  await closing
  t.is(sandbox.stats().running, 0)
  t.is((await launches[0]).status, 'exited')
  t.is((await launches[1]).stdout, 'queued')
  await sandbox.close()
})

test("destroy() kills its own launches, turns away those that wait, and no one else's", async (t) => {
  const sandbox = await Sandbox.create(policy('host-system'), { maxConcurrency: 1 })
  const other = await Sandbox.create(policy('host-system'))
  await using bystander = await other.spawn('cat', [], { stdin: 'pipe' })
  const running = await sandbox.spawn('sleep', ['60'])
  const queued = sandbox.run('true')
  queued.catch(() => {})
  await sandbox.destroy()
  t.false(runs(running.pid))
  t.like(await running.result, { status: 'killed', signal: 'SIGKILL' })
  t.is((await t.throwsAsync(queued, { instanceOf: NestboxError }))?.code, 'ERR_NESTBOX_CLOSED')
  bystander.stdin.write('alive\n')
  t.is(await firstLine(bystander), 'alive')
  await sandbox.destroy()
  await sandbox[Symbol.asyncDispose]()
  t.is((await other.run('echo', ['x'])).stdout, 'x')
})

test('destroy() turns away what still opens its files', async (t) => {
  const file = path.join(scratch(t), 'out')
  const sandbox = await Sandbox.create()
  const opening = sandbox.run('sleep', ['60'], { stdout: { file } })
  opening.catch(() => {})
  await sandbox.destroy()
  t.is((await t.throwsAsync(opening, { instanceOf: NestboxError }))?.code, 'ERR_NESTBOX_CLOSED')
  t.like(sandbox.stats(), { running: 0, launched: 1, errored: 1 })
})

test('await using', async (t) => {
  let pid = 0
  {
    await using sandbox = await Sandbox.create()
    ;({ pid } = await sandbox.spawn('sleep', ['60']))
    t.true(runs(pid))
  }
  t.false(runs(pid))
})

// ---- accounts -----------------------------------------------------------------------------------------------------------

test('a launch that rejects is errored, also where its program ran', async (t) => {
  const sandbox = await Sandbox.create()
  const controller = new AbortController()
  const sleep = await sandbox.spawn('sleep', ['60'], { signal: controller.signal })
  controller.abort()
  await t.throwsAsync(sleep.result, { name: 'AbortError' })
  await t.throwsAsync(sandbox.run('false', [], { reject: true }), { name: 'ProcessError' })
  t.like(await sandbox.run('false'), { status: 'exited', exitCode: 1 })
  t.like(sandbox.stats(), { launched: 3, completed: 1, errored: 2, latency: { total: { count: 3 } } })
})

test('percentiles of where the time went', async (t) => {
  const sandbox = await Sandbox.create()
  t.deepEqual(sandbox.stats().latency.total, { count: 0, mean: 0, min: 0, p50: 0, p90: 0, p99: 0, p999: 0, max: 0 })
  const results = await Promise.all(Array.from({ length: 10 }, () => sandbox.run('true')))
  const { setup, total } = sandbox.stats().latency
  t.is(setup.count, 10)
  for (const { min, p50, p90, p99, p999, max } of [setup, total]) {
    const ordered = [min, p50, p90, p99, p999, max]
    t.true(min > 0)
    t.deepEqual(
      ordered,
      ordered.toSorted((a, b) => a - b),
    )
  }
  const longest = Math.max(...results.map(({ durationMs }) => durationMs))
  t.true(Math.abs(total.max - longest) < longest * 0.01 + 0.01)
})

// ---- templates ----------------------------------------------------------------------------------------------------------

test('concurrent first uses of one policy build one template', async (t) => {
  await using server = await ForkServer.start()
  const made = () => policy('host-system').tmpfs('/only-here').build()
  const sandboxes = await Promise.all(Array.from({ length: 6 }, () => Sandbox.create(made(), { server })))
  const results = await Promise.all(sandboxes.flatMap((sandbox) => [sandbox.run('true'), sandbox.run('true')]))
  t.true(results.every(({ status }) => status === 'exited'))
  t.like(server.stats(), { templates: 1, launched: 12, running: 0, starts: 1 })
  const other = await Sandbox.create(policy('host-system').tmpfs('/elsewhere'), { server })
  await other.run('true')
  t.is(server.stats().templates, 2)
})

test('what differs only in what a launch says needs no template of its own', async (t) => {
  await using server = await ForkServer.start()
  const base = policy('host-system').tmpfs('/only-here')
  const first = await Sandbox.create(base.env({ A: '1' }), { server })
  const second = await Sandbox.create(base.limits({ wallTime: 5000 }), { server })
  t.is((await first.run('printenv', ['A'])).stdout, '1')
  t.true((await second.run('printenv', ['A'])).failed)
  t.true(server.stats().templates >= 1)
})

test('maxTemplates: the least recently used goes, and comes back when it is wanted', async (t) => {
  await using server = await ForkServer.start({ maxTemplates: 2 })
  const sandboxes = await Promise.all(
    [1, 2, 3, 4].map((index) => Sandbox.create(policy('host-system').file('/number', String(index)), { server })),
  )
  for (const round of [1, 2]) {
    for (const [index, sandbox] of sandboxes.entries()) {
      // oxlint-disable-next-line no-await-in-loop
      t.is((await sandbox.run('cat', ['/number'])).stdout, String(index + 1), `round ${round}`)
    }
  }
  t.true(server.stats().templates <= 2)
})

test('a template that is evicted while a launch of it runs does not take it along', async (t) => {
  await using server = await ForkServer.start({ maxTemplates: 1 })
  const first = await Sandbox.create(policy('host-system').file('/number', '1'), { server })
  const program = await first.spawn('cat', [], { stdin: 'pipe' })
  const second = await Sandbox.create(policy('host-system').file('/number', '2'), { server })
  t.is((await second.run('cat', ['/number'])).stdout, '2')
  program.stdin.end('still here\n')
  t.is(await firstLine(program), 'still here')
  t.like(await program.result, { status: 'exited', exitCode: 0 })
})

// ---- policies as data ---------------------------------------------------------------------------------------------------

test('a policy that went through JSON is the same policy', async (t) => {
  await using server = await ForkServer.start()
  const built = policy('host-system')
    .tmpfs('/w')
    .file('/f', Uint8Array.of(1, 2, 255))
    .limits({ processes: 9 })
    .build()
  const read = policy.parse(JSON.stringify(built))
  t.deepEqual(read.toJSON(), built.toJSON())
  t.is(policy.hash(read), policy.hash(built))
  t.regex(policy.hash(built), /^[0-9a-f]{32,}$/)
  for (const each of [built, read, JSON.parse(JSON.stringify(built)) as typeof built]) {
    // oxlint-disable-next-line no-await-in-loop
    const sandbox = await Sandbox.create(each, { server })
    // oxlint-disable-next-line no-await-in-loop
    const result = await sandbox.run('od', ['-An', '-tx1', '/f'])
    t.is(result.stdout, ' 01 02 ff')
    t.is(result.isolation.limits.processes, 9)
  }
  t.is(server.stats().templates, 1)
})

test('the hash tells policies apart, and is never read from input', (t) => {
  const base = policy('host-system')
  const hashes = [base, base.tmpfs('/a'), base.file('/a', 'x'), base.file('/a', 'y'), base.hostname('h')].map((each) =>
    policy.hash(each),
  )
  t.is(new Set(hashes).size, hashes.length)
  t.is(policy.hash(base), policy.hash(policy('host-system').build()))
  t.throws(() => policy.parse({ ...base.build(), hash: hashes[1] }), { instanceOf: PolicyError })
  t.throws(() => policy.hash(base.bind('/no/such/source')), { instanceOf: SpawnError })
})

test('a policy that was edited is what it says now', async (t) => {
  const built = policy('host-system').build()
  const sandbox = await Sandbox.create({ ...built, hostname: 'edited' })
  t.is((await sandbox.run('uname', ['-n'])).stdout, 'edited')
  await t.throwsAsync(Sandbox.create({ ...built, hostname: 'a/b' }), { instanceOf: PolicyError })
})

/* oxlint-disable no-await-in-loop */
test('a protection that can not be had makes launches fail', async (t) => {
  // On a machine without SMT, or a kernel without core scheduling, that is one; elsewhere it is had.
  const sandbox = await Sandbox.create(policy('host-system').coreScheduling())
  for (const warm of [false, true]) {
    try {
      const { isolation, failed, timings } = await sandbox.run('true')
      t.like({ failed, isolation }, { failed: false, isolation: { coreScheduling: true } })
      if (warm) t.true(timings.warm)
      await sandbox.warm(1)
    } catch (error) {
      if (!(error instanceof SpawnError)) throw error
      t.like(error, { step: 'schedule-cores', syscall: 'prctl', path: 'PR_SCHED_CORE' })
      t.true(['ENODEV', 'EINVAL'].includes(error.errnoName), error.errnoName)
      t.regex(error.hint ?? '', /SMT/)
    }
  }
  const { isolation } = await (await Sandbox.create(policy('host-system'))).run('true')
  t.false(isolation.coreScheduling)
})

test('a sandbox that floods the fork server does not hold up another', async (t) => {
  const server = await ForkServer.start()
  t.teardown(() => server.destroy())
  const flooded = await Sandbox.create(policy('host-system').hostname('flooded'), { server, warm: 0 })
  const other = await Sandbox.create(policy('host-system').hostname('other'), { server, warm: 0 })
  let done = 0
  const flood = Array.from({ length: 200 }, async () => {
    const { failed } = await flooded.run('true')
    done += 1
    return failed
  })
  t.false((await other.run('true')).failed)
  t.true(done < 100, `${done} of the 200 that were asked for first came first`)
  t.deepEqual(new Set(await Promise.all(flood)), new Set([false]))
})

test('programs that run are no reason for others to wait', async (t) => {
  await using sandbox = await Sandbox.create(undefined, { warm: 0 })
  const running = await Promise.all(Array.from({ length: 64 }, () => sandbox.spawn('sleep', ['60'])))
  t.is(sandbox.stats().running, 64)
  t.false((await sandbox.run('true')).failed)
  for (const sandboxee of running) sandboxee.kill()
  const ended = await Promise.all(running.map(({ result }) => result))
  t.true(ended.every(({ status }) => status === 'killed'))
})
