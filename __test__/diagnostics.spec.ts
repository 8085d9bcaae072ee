// What those who watch get to see: the diagnostics channels and the debug log.

import { AsyncLocalStorage } from 'node:async_hooks'
import { execFile } from 'node:child_process'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import test, { type ExecutionContext } from 'ava'

import {
  type ExitEvent,
  type LaunchEvent,
  policy,
  ProcessError,
  QueueFullError,
  run,
  Sandbox,
  unsandboxed,
} from '../index.ts'

/** All that is published until the test is over. Tests are serial here: the channels are the process's. */
const listen = (t: ExecutionContext): { launches: LaunchEvent[]; exits: ExitEvent[]; stop: () => void } => {
  const stop = (): void => {
    unsubscribe('nestbox:launch', onLaunch)
    unsubscribe('nestbox:exit', onExit)
  }
  const heard = { launches: [] as LaunchEvent[], exits: [] as ExitEvent[], stop }
  const onLaunch = (event: unknown): unknown => heard.launches.push(event as LaunchEvent)
  const onExit = (event: unknown): unknown => heard.exits.push(event as ExitEvent)
  subscribe('nestbox:launch', onLaunch)
  subscribe('nestbox:exit', onExit)
  t.teardown(stop)
  return heard
}

test.serial('a launch is announced by the call, and its end has the result', async (t) => {
  const { launches, exits } = listen(t)
  const running = run('sh', ['-c', 'exit 3'])
  t.is(launches.length, 1)
  t.like(launches[0], { method: 'run', isolated: true, file: 'sh', args: ['-c', 'exit 3'] })
  t.is(exits.length, 0)
  const result = await running
  t.is(exits.length, 1)
  t.is(exits[0]?.launch, launches[0])
  t.is(exits[0]?.result, result)
  t.is(exits[0]?.error, undefined)
})

test.serial('what is rejected ends as well: once, with its error', async (t) => {
  const { launches, exits } = listen(t)
  const missing = await t.throwsAsync(run('/no/such/program'))
  const failed = await t.throwsAsync(run('false', [], { reject: true }), { instanceOf: ProcessError })
  t.is(launches.length, 2)
  t.deepEqual(
    exits.map(({ launch, error, result }) => [launch, error, result?.status]),
    [
      [launches[0], missing, undefined],
      [launches[1], failed, 'exited'],
    ],
  )
})

test.serial('a request that is refused is no launch', async (t) => {
  const { launches, exits } = listen(t)
  await t.throwsAsync(run('true', [], { timeout: -1 }))
  await t.throwsAsync(run('true', [], { signal: AbortSignal.abort() }))
  t.deepEqual([launches.length, exits.length], [0, 0])
})

test.serial('launches that are spawned, queued, turned away, or not isolated', async (t) => {
  const { launches, exits } = listen(t)
  await using sandbox = await Sandbox.create(policy('host-system'), { maxConcurrency: 1, maxQueue: 0 })
  {
    await using sandboxee = await sandbox.spawn('cat', [], { stdin: 'pipe' })
    t.is(launches.length, 1)
    t.true(sandboxee.pid > 0)
    await t.throwsAsync(sandbox.run('true'), { instanceOf: QueueFullError })
    t.is(exits.length, 1)
    t.true(exits[0]?.error instanceof QueueFullError)
  }
  await unsandboxed.run('/bin/true', [], { env: {} })
  t.deepEqual(
    launches.map(({ method, isolated }) => [method, isolated]),
    [
      ['spawn', true],
      ['run', true],
      ['run', false],
    ],
  )
  t.deepEqual(
    exits.map(({ launch }) => launch.method),
    ['run', 'spawn', 'run'],
  )
  t.is(new Set(launches.map(({ id }) => id)).size, 3)
})

test.serial("a launch is announced in its caller's asynchronous context, also if it waits in the queue", async (t) => {
  const storage = new AsyncLocalStorage<string>()
  const seen: (string | undefined)[] = []
  const onLaunch = (): unknown => seen.push(storage.getStore())
  subscribe('nestbox:launch', onLaunch)
  t.teardown(() => unsubscribe('nestbox:launch', onLaunch))
  await using sandbox = await Sandbox.create(policy('host-system'), { maxConcurrency: 1 })
  await Promise.all(['one', 'two', 'three'].map((name) => storage.run(name, () => sandbox.run('true'))))
  t.deepEqual(seen, ['one', 'two', 'three'])
})

test.serial('who comes late hears the end', async (t) => {
  const running = run('true')
  const { launches, exits } = listen(t)
  await running
  t.is(launches.length, 0)
  t.is(exits[0]?.launch.file, 'true')
})

test.serial('for nobody no event is made', async (t) => {
  const first = listen(t)
  await run('true')
  first.stop()
  for (let round = 0; round < 3; round += 1) {
    // oxlint-disable-next-line no-await-in-loop
    await run('true')
  }
  const second = listen(t)
  await run('true')
  t.is(second.launches[0]?.id, (first.launches[0]?.id ?? 0) + 1)
})

// ---- the debug log ------------------------------------------------------------------------------------------------------

const PROGRAM = `
import { ForkServer, Sandbox, policy, run } from 'nestbox'
const server = await ForkServer.start()
const sandbox = await Sandbox.create(policy('host-system').file('/etc/x', 'SECRET-content').env({ A: 'SECRET-policy' }), { server })
await sandbox.run('sh', ['-c', 'exit 4 # SECRET-argument'], { env: { B: 'SECRET-env' }, input: 'SECRET-input' })
await sandbox.run('/no/such/program').catch(() => {})
await server.close()
`

const runWith = async (NODE_DEBUG: string): Promise<string> => {
  const cwd = fileURLToPath(new URL('..', import.meta.url))
  const args = ['--input-type=module', '-e', PROGRAM]
  const { stderr } = await promisify(execFile)(process.execPath, args, { cwd, env: { ...process.env, NODE_DEBUG } })
  return stderr
}

test('NODE_DEBUG=nestbox tells what happens, and no secrets', async (t) => {
  const text = await runWith('nestbox')
  for (const expected of [
    /^NESTBOX \d+: fork server: starting$/m,
    /fork server: ready, pid \d+$/m,
    /template: building one, 1 kept$/m,
    /launch \d+: sh, 3 arguments, in a sandbox$/m,
    /launch \d+: ended, pid \d+ exited 4 after [\d.]+ ms$/m,
    /launch \d+: failed, ERR_NESTBOX_EXEC: .*no\/such\/program/m,
    /fork server: gone \(ERR_NESTBOX_CLOSED\)/m,
  ])
    t.regex(text, expected)
  t.false(text.includes('SECRET'), text)
})

test('without it nothing is printed', async (t) => {
  t.is(await runWith('http'), '')
})
