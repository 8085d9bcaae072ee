// Warm nests: made before their launch is known, and in nothing else different from those that are not.

import test from 'ava'
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import type { Duplex } from 'node:stream'

import { ExecError, ForkServer, policy, type PolicyBuilder, RequestError, Sandbox, SpawnError } from '../index.ts'
import { isRoot, runs, scratch, until } from './helpers.ts'
import { family, survivors } from './invariants/support.ts'

/** A sandbox with warm nests, on a fork server of its own. */
const warmed = async (
  t: { teardown(work: () => Promise<void>): void },
  { from = policy('host-system'), warm = 1, ...rest }: { from?: PolicyBuilder; warm?: number; warmIdle?: number } = {},
): Promise<{ server: ForkServer; sandbox: Sandbox; ready: () => Promise<void> }> => {
  const server = await ForkServer.start()
  t.teardown(() => server.destroy())
  const sandbox = await Sandbox.create(from, { server, warm, ...rest })
  const ready = async (): Promise<void> => {
    await until(() => server.stats().warmNests >= warm)
  }
  return { server, sandbox, ready }
}

// ---- the same as every launch --------------------------------------------------------------------------------------------

const SELF = `
  echo $$ $PPID; id -u; id -g; hostname; pwd; umask; ulimit -n; ulimit -p; echo "$GIVEN"
  grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|SigBlk|SigIgn|SigCgt)' /proc/self/status
  cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; cut -d' ' -f 4-6 /proc/self/mountinfo
  ls /proc/self/fd; ls -A /tmp /dev/shm; cat /proc/net/dev | cut -d: -f1; ls /proc | grep -E '^[12]$'`

test('a warm launch sees what a cold one sees', async (t) => {
  const { sandbox } = await warmed(t)
  const cold = await Sandbox.create(policy('host-system'), { warm: 0 })
  const options = { env: { GIVEN: 'value' }, cwd: '/usr', limits: { openFiles: 77, processes: 33 } }
  const results = await Promise.all([sandbox, cold].map((box) => box.run('sh', ['-c', SELF], options)))
  t.deepEqual(
    results.map(({ timings }) => timings.warm),
    [true, false],
  )
  const [first, second] = results
  t.is(first?.stdout, second?.stdout)
  t.true(first?.stdout.includes('nestbox\n/usr\n0022\n77\n33\nvalue\n'), first?.stdout)
  t.deepEqual(first?.isolation, second?.isolation)
})

test('its result is complete', async (t) => {
  const { sandbox } = await warmed(t)
  const result = await sandbox.run('sh', ['-c', 'echo out; echo err >&2; exit 3'], { outputs: {} })
  t.like(result, { status: 'exited', exitCode: 3, stdout: 'out', stderr: 'err' })
  t.true(result.timings.warm)
  t.true(result.pid > 0)
  t.deepEqual(
    result.timings.steps.map(({ step }) => step),
    ['receive-request', 'decode-request', 'install-filter', 'exec'],
  )
  t.true(result.resourceUsage.userCpuMs + result.resourceUsage.systemCpuMs > 0)
})

test('spawn: the pid is that of the running program', async (t) => {
  const { sandbox } = await warmed(t)
  const sandboxee = await sandbox.spawn('sleep', ['30'])
  t.is(readFileSync(`/proc/${sandboxee.pid}/comm`, 'latin1'), 'sleep\n')
  sandboxee.kill('SIGTERM')
  const result = await sandboxee.result
  t.like(result, { status: 'killed', signal: 'SIGTERM' })
  t.true(result.timings.warm)
})

test('binds, files, input, outputs and passed descriptors of a launch', async (t) => {
  const directory = scratch(t)
  writeFileSync(path.join(directory, 'file'), 'bound')
  const { server, sandbox, ready } = await warmed(t, { from: policy('host-system').mountPoint('/in') })
  const result = await sandbox.run(
    'sh',
    ['-c', 'echo $$ $(cat /in/file) $(cat /tmp/a/b) $(cat) $(wc -c < /tmp/large) > /tmp/out; cat /tmp/out'],
    {
      binds: { '/in': directory },
      files: { '/tmp/a/b': 'written', '/tmp/large': 'x'.repeat(100_000) },
      input: 'typed',
      outputs: { out: { path: '/tmp/out', maxBytes: 100 } },
    },
  )
  t.is(result.stdout, '2 bound written typed 100000')
  t.is(Buffer.from(result.outputs.out).toString(), '2 bound written typed 100000\n')
  t.true(result.timings.warm)
  t.true(result.pid > 0 && !runs(result.pid))

  await ready()
  const streams = await sandbox.spawn('sh', ['-c', 'read line <&5; echo "got $line" >&5'], {
    stdio: ['ignore', 'ignore', 'ignore', 'ignore', 'ignore', 'pipe'],
  })
  const stream = streams.stdio[5] as Duplex | undefined
  stream?.write('line\n')
  const answer = await new Promise((resolve) => {
    stream?.once('data', (data: Buffer) => resolve(data.toString()))
  })
  t.is(answer, 'got line\n')
  t.true((await streams.result).timings.warm)
  t.is(server.stats().templates, 1)
})

test('a launch larger than a packet', async (t) => {
  const { sandbox, ready } = await warmed(t)
  for (const size of [10_000, 20_000, 120_000]) {
    // oxlint-disable-next-line no-await-in-loop
    await ready()
    // oxlint-disable-next-line no-await-in-loop
    const { stdout, timings } = await sandbox.run('sh', ['-c', 'echo $$ ${#1}', 'sh', 'x'.repeat(size)])
    t.deepEqual([stdout, timings.warm], [`2 ${size}`, true])
  }
})

test('what can not be executed is told as ever', async (t) => {
  const { sandbox, ready } = await warmed(t)
  const missing = await t.throwsAsync(sandbox.run('no-such-program'), { instanceOf: ExecError })
  t.is(missing?.errnoName, 'ENOENT')
  await ready()
  const nowhere = await t.throwsAsync(sandbox.run('true', [], { cwd: '/nowhere' }), { instanceOf: SpawnError })
  t.is(nowhere?.step, 'change-directory')
  t.is((await sandbox.run('true')).status, 'exited')
})

test('limits of a launch hold in a warm nest', async (t) => {
  const { sandbox, ready } = await warmed(t)
  const slow = await sandbox.run('sleep', ['30'], { limits: { wallTime: 80 } })
  t.like(slow, { status: 'limit-exceeded', limit: 'wallTime' })
  await ready()
  const busy = await sandbox.run('sh', ['-c', 'while :; do :; done'], { limits: { cpuTime: 100 } })
  t.like(busy, { status: 'limit-exceeded', limit: 'cpuTime' })
  t.true(slow.timings.warm && busy.timings.warm)
  await ready()
  // The size of its file systems was settled when it was made: this launch gets a nest of its own.
  const small = await sandbox.run('dd', ['if=/dev/zero', 'of=/tmp/f', 'bs=1M', 'count=4'], { limits: { disk: '1MiB' } })
  t.like(small, { status: 'exited', exitCode: 1, limitsHit: ['disk'] })
  t.false(small.timings.warm)
})

test('two launches share nothing', async (t) => {
  const { sandbox, ready } = await warmed(t)
  const write = 'ls -A /tmp /dev/shm; echo x > /tmp/x; echo x > /dev/shm/x; readlink /proc/self/ns/*'
  const results = []
  for (let round = 0; round < 3; round += 1) {
    // oxlint-disable-next-line no-await-in-loop
    await ready()
    // oxlint-disable-next-line no-await-in-loop
    results.push(await sandbox.run('sh', ['-c', write]))
  }
  t.true(results.every(({ timings }) => timings.warm))
  const seen = results.map(({ stdout }) => stdout.split('\n'))
  for (const lines of seen) t.false(lines.includes('x'))
  const own = (kind: string): number =>
    new Set(seen.map((lines) => lines.find((line) => line.startsWith(`${kind}:`)))).size
  // The kernel may give the inode of a namespace that is gone to the next one, but these nests were alive together.
  t.true(['mnt', 'pid', 'user'].some((kind) => own(kind) > 1))
})

// ---- how many there are ------------------------------------------------------------------------------------------------------

test('one is kept from the first launch on, and goes when nobody needs it', async (t) => {
  const server = await ForkServer.start()
  t.teardown(() => server.destroy())
  const sandbox = await Sandbox.create(policy('host-system'), { server, warmIdle: 700 })
  t.is(server.stats().warmNests, 0)
  t.false((await sandbox.run('true')).timings.warm)
  t.true(await until(() => server.stats().warmNests === 1))
  t.true((await sandbox.run('true')).timings.warm)
  t.true(await until(() => server.stats().warmNests === 1))
  t.true(await until(() => server.stats().warmNests === 0))
  t.is((await sandbox.run('true')).status, 'exited')
})

test('as many as were asked for, replaced when they are taken', async (t) => {
  const { server, sandbox } = await warmed(t, { warm: 3 })
  t.is(server.stats().warmNests, 3)
  // None is blocked (state D): that counts as load, and monitors of the host would see it.
  t.true(await until(() => family(server.pid).every(({ state }) => state !== 'D')))
  const results = await Promise.all([1, 2, 3, 4, 5].map(() => sandbox.run('sleep', ['0.05'])))
  t.true(results.filter(({ timings }) => timings.warm).length >= 3)
  t.true(await until(() => server.stats().warmNests === 3))
  await sandbox.warm(5)
  t.is(server.stats().warmNests, 5)
  await sandbox.warm(0)
  t.is(server.stats().warmNests, 0)
  t.false((await sandbox.run('true')).timings.warm)
  await t.throwsAsync(sandbox.warm(-1), { instanceOf: RequestError })
  await sandbox.destroy()
  await t.throwsAsync(sandbox.warm(1), { code: 'ERR_NESTBOX_CLOSED' })
})

test('who waits for several gets them, whatever other sandboxes of the policy launch meanwhile', async (t) => {
  const server = await ForkServer.start()
  t.teardown(() => server.destroy())
  const busy = await Sandbox.create(policy('host-system'), { server })
  await busy.run('true')
  const waiting = new AbortController()
  // They share the nests, and each of these launches takes one.
  const launching = (async (): Promise<void> => {
    // oxlint-disable-next-line no-await-in-loop
    while (!waiting.signal.aborted) await busy.run('true')
  })()
  const patient = await Sandbox.create(policy('host-system'), { server, warm: 4 })
  waiting.abort()
  await launching
  t.like(await patient.run('true'), { status: 'exited', exitCode: 0 })
})

test('a sandbox that is to have none takes none of another', async (t) => {
  const { server, ready } = await warmed(t, { warm: 2 })
  const cold = await Sandbox.create(policy('host-system'), { server, warm: 0 })
  await ready()
  const { status, timings } = await cold.run('true')
  t.deepEqual([status, timings.warm, server.stats().warmNests], ['exited', false, 2])
  await cold.warm(2)
  t.true((await cold.run('true')).timings.warm, 'now it is to have some')
})

test('nests are made however many sandboxees are alive', async (t) => {
  const { sandbox, ready } = await warmed(t)
  const alive = await Promise.all(Array.from({ length: 12 }, () => sandbox.spawn('cat', [], { stdin: 'pipe' })))
  await ready()
  for (const wanted of ['first', 'second']) {
    // oxlint-disable no-await-in-loop
    const { stdout, timings } = await sandbox.run('echo', [wanted])
    t.deepEqual([stdout, timings.warm], [wanted, true])
    await ready()
    // oxlint-enable no-await-in-loop
  }
  for (const { stdin } of alive) stdin?.end()
  t.true((await Promise.all(alive.map(({ result }) => result))).every(({ failed }) => !failed))
})

test('a sandbox that is closed takes its warm nests along', async (t) => {
  const { server, sandbox } = await warmed(t, { warm: 2 })
  const before = family(server.pid).length
  await sandbox.close()
  t.is(server.stats().warmNests, 0)
  t.true(await until(() => family(server.pid).length === before - 4), 'an init and a parked process each')
})

test('every network', async (t) => {
  for (const network of ['none', 'shared-loopback', 'host'] as const) {
    // oxlint-disable-next-line no-await-in-loop
    const { sandbox } = await warmed(t, { from: policy('host-system').network(network), warm: 2 })
    // oxlint-disable-next-line no-await-in-loop
    const { stdout, timings, isolation } = await sandbox.run('sh', ['-c', 'tail -n +3 /proc/net/dev | cut -d: -f1'])
    t.true(timings.warm, network)
    t.is(isolation.network, network)
    if (network !== 'host') t.is(stdout.trim(), 'lo')
  }
})

test('ids of its own for each nest', async (t) => {
  if (!isRoot) {
    t.pass('an unprivileged host has one id')
    return
  }
  const server = await ForkServer.start({ hostIds: { uid: 200_000, gid: 200_000, count: 3 } })
  t.teardown(() => server.destroy())
  const sandbox = await Sandbox.create(policy('host-system'), { server, warm: 2 })
  // None ends before all three run: then each must have ids of its own.
  let running = 0
  const ids = async (): Promise<string> => {
    const sandboxee = await sandbox.spawn('sh', ['-c', 'echo x > /dev/stdout; read line'], { stdin: 'pipe' })
    const uid = /^Uid:\s+(\d+)/m.exec(statusOf(sandboxee.pid))?.[1] ?? ''
    running += 1
    await until(() => running === 3)
    sandboxee.stdin?.end('line\n')
    t.like(await sandboxee.result, { status: 'exited', exitCode: 0 })
    return uid
  }
  const seen = await Promise.all([ids(), ids(), ids()])
  t.deepEqual(seen.toSorted(), ['200000', '200001', '200002'])
})

// ---- when something dies -----------------------------------------------------------------------------------------------------

test('a warm nest that died is not launched in', async (t) => {
  const { server, sandbox } = await warmed(t, { warm: 2 })
  const parked = family(server.pid).filter(({ pid }) => /^NSpid:\s.*\s2$/m.test(statusOf(pid)))
  t.is(parked.length, 2)
  for (const { pid } of parked) process.kill(pid, 'SIGKILL')
  t.true(await until(() => server.stats().warmNests === 0))
  const results = await Promise.all([1, 2, 3].map(() => sandbox.run('echo', ['fine'])))
  t.deepEqual(
    results.map(({ stdout }) => stdout),
    ['fine', 'fine', 'fine'],
  )
})

test('a template that died takes its warm nests along, and the next launch has another', async (t) => {
  const { server, sandbox } = await warmed(t, { warm: 2 })
  const template = family(server.pid).find(({ name }) => name === 'nestbox-templat')
  t.truthy(template)
  if (template !== undefined) {
    process.kill(template.pid, 'SIGKILL')
    // Without a turn for the event loop: the launch is to find out. What is launched before it has died dies with it.
    const end = Date.now() + 20_000
    while (survivors([template]).length > 0 && Date.now() < end);
  }
  t.is((await sandbox.run('echo', ['fine'])).stdout, 'fine')
  t.true(await until(async () => (await sandbox.run('true')).timings.warm))
})

test('a fork server that died takes them along', async (t) => {
  const { server, sandbox } = await warmed(t, { warm: 2 })
  const members = family(server.pid)
  process.kill(server.pid, 'SIGKILL')
  t.true(await until(() => members.every(({ pid }) => !runs(pid))))
  t.true(await until(() => server.stats().warmNests === 0))
  t.is((await sandbox.run('echo', ['fine'])).stdout, 'fine')
})

test('what keeps a nest from being made is told to who asks for it, and to launches', async (t) => {
  const from = policy('host-system').tmpfs('/gone').limits({ wallTime: 1000 })
  const server = await ForkServer.start()
  t.teardown(() => server.destroy())
  const directory = scratch(t)
  const sandbox = await Sandbox.create(from.bind(path.join(directory, 'missing'), '/missing'), { server, warm: 1 })
  await t.throwsAsync(sandbox.warm(1), { instanceOf: SpawnError })
  await t.throwsAsync(sandbox.run('true'), { instanceOf: SpawnError })
})

const statusOf = (pid: number): string => {
  try {
    return readFileSync(`/proc/${pid}/status`, 'latin1')
  } catch {
    return ''
  }
}
