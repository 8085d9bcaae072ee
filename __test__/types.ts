// What the types promise, checked by `tsc -p tsconfig.json` and never run: the options of a launch determine its result.

import type { FileHandle } from 'node:fs/promises'
import type { Duplex, Readable, Writable } from 'node:stream'

import {
  AbortError,
  ForkServer,
  type Launcher,
  type LaunchOptions,
  learn,
  type LimitName,
  NestboxError,
  type Policy,
  policy,
  type PolicyBuilder,
  type PolicyJSON,
  ProcessError,
  RequestError,
  type Result,
  run,
  Sandbox,
  type Sandboxee,
  SpawnError,
  type SyscallFilter,
  syscallFilter,
  type SyscallHandler,
  unsandboxed,
  type Violation,
} from '../index.ts'
import { ForkClient, forkRequest, mountTree } from '../lib/sandbox2/index.ts'
import { AF_UNIX, arg } from '../lib/syscalls/index.ts'

/** `true` if the types are identical, `any` not being so to anything else. */
// oxlint-disable-next-line typescript/no-unnecessary-type-parameters -- only generic functions are compared for identity
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false

const same = <A, B>(identical: Same<A, B>): boolean => identical

// ---- results -----------------------------------------------------------------------------------------------------------------

export const results = async (): Promise<void> => {
  const plain = await run('a')
  same<typeof plain.stdout, string>(true)
  same<typeof plain.outputs, {}>(true)
  same<(typeof plain)['args'], readonly string[]>(true)

  const bytes = await run('a', [], { encoding: 'buffer' })
  same<typeof bytes.stdout, Uint8Array>(true)

  const lines = await run('a', [], { lines: true, stderr: 'ignore' })
  same<typeof lines.stdout, string[]>(true)
  same<typeof lines.stderr, undefined>(true)

  const merged = await run('a', [], { stderr: 'stdout' })
  same<typeof merged.stdout, string>(true)
  same<typeof merged.stderr, undefined>(true)

  const fed = await run('a', [], { input: 'b' })
  same<typeof fed.stdout, string>(true)

  const dropped = await run('a', [], { buffer: false })
  same<typeof dropped.stdout, undefined>(true)

  const array = await run('a', [], { stdio: ['ignore', 'ignore', undefined] })
  same<typeof array.stdout, undefined>(true)
  same<typeof array.stderr, string>(true)

  const all = await run('a', [], { stdio: 'inherit' })
  same<typeof all.stdout, undefined>(true)

  const files = await run('a', [], {
    outputs: {
      bytes: { path: '/a', maxBytes: '1MiB' },
      file: { path: '/b', maxBytes: 1, to: 'b' },
      maybe: { path: '/c', maxBytes: 1, optional: true },
    },
  })
  same<typeof files.outputs.bytes, Uint8Array>(true)
  same<typeof files.outputs.file, { readonly bytes: number }>(true)
  same<typeof files.outputs.maybe, Uint8Array | undefined>(true)
  // @ts-expect-error -- there is no such output
  void files.outputs.other
}

export const options = async (given: LaunchOptions): Promise<void> => {
  const result = await run('a', [], given)
  same<typeof result.stdout, string | string[] | Uint8Array | undefined>(true)
  const encoding = await run('a', [], { encoding: given.encoding })
  same<typeof encoding.stdout, string | Uint8Array>(true)
}

export const verdict = (result: Result): string => {
  switch (result.status) {
    case 'exited':
      same<typeof result.exitCode, number>(true)
      // @ts-expect-error -- it exited
      void result.signal
      return 'exited'
    case 'signaled':
    case 'killed':
      same<typeof result.signal, NodeJS.Signals>(true)
      return result.signal
    case 'limit-exceeded':
      same<typeof result.limit, LimitName>(true)
      return result.limit
    case 'violation':
      return result.violation?.syscall ?? ''
  }
}

export const common = (result: Result): void => {
  const flags: boolean[] = [result.failed, result.timedOut, result.isMaxBuffer, result.isCanceled]
  same<typeof result.resourceUsage.memorySource, 'cgroup' | 'max-rss'>(true)
  same<typeof result.limitsHit, readonly LimitName[]>(true)
  const skipped: readonly string[] = result.isolation.skipped
  const { queueMs, setupMs, execMs, warm, steps } = result.timings
  void [flags, skipped, queueMs, setupMs, execMs, warm, steps]
}

// ---- sandboxees ----------------------------------------------------------------------------------------------------------------

export const sandboxees = async (launcher: Launcher, { input }: LaunchOptions): Promise<void> => {
  await using plain = await launcher.spawn('a')
  same<typeof plain.stdin, undefined>(true)
  same<typeof plain.stdout, Readable>(true)
  same<typeof plain.comms, undefined>(true)
  for await (const line of plain.lines({ from: 'stderr', maxLength: 10 })) same<typeof line, string>(true)
  const result = await plain.result
  same<typeof result.stdout, undefined>(true)

  const fed = await launcher.spawn('a', [], { input: 'b' })
  same<typeof fed.stdin, undefined>(true)
  same<Awaited<typeof fed.result>['stdout'], undefined>(true)

  // What is fed is nobody else's, also where it is a pipe by name.
  const named = await launcher.spawn('a', [], { stdin: 'pipe', input: new Uint8Array() })
  same<typeof named.stdin, undefined>(true)
  const listed = await launcher.spawn('a', [], { stdio: ['pipe'], input: 'b' })
  same<typeof listed.stdin, undefined>(true)
  const without = await launcher.spawn('a', [], { stdin: 'pipe', input: undefined })
  same<typeof without.stdin, Writable>(true)
  const perhaps = await launcher.spawn('a', [], { stdin: 'pipe', input })
  same<typeof perhaps.stdin, Writable | undefined>(true)

  const full = await launcher.spawn('a', [], { stdin: 'pipe', stderr: 'stdout', comms: true, buffer: true })
  same<typeof full.stdin, Writable>(true)
  same<typeof full.stderr, undefined>(true)
  same<typeof full.comms, Duplex>(true)
  same<Awaited<typeof full.result>['stdout'], string>(true)
  const killed: boolean = full.kill('SIGTERM')

  const array = await launcher.spawn('a', [], { stdio: ['pipe', 'ignore', 'pipe', 'pipe'] })
  same<typeof array.stdin, Writable>(true)
  same<typeof array.stdout, undefined>(true)
  same<typeof array.stderr, Readable>(true)
  void [killed, array.stdio[3]]
  // @ts-expect-error -- not thenable
  void full.then
}

/** What holds a sandboxee names the options that its streams follow from, and no others. */
export const held = async (launcher: Launcher, unknown: LaunchOptions): Promise<void> => {
  const timed = await launcher.spawn('a', [], { timeout: 5, cwd: '/tmp', env: { A: '1' }, stdin: 'ignore' })
  const fed = await launcher.spawn('a', [], { stdin: 'pipe', cwd: '/tmp' })
  const talking = await launcher.spawn('a', [], { comms: true, limits: { wallTime: 5 } })
  const silent = await launcher.spawn('a', [], { stdio: 'ignore' })
  const kept = await launcher.spawn('a', [], {
    buffer: true,
    encoding: 'buffer',
    outputs: { a: { path: '/a', maxBytes: 1 } },
  })

  const plain: Sandboxee[] = [timed, await launcher.spawn('a')]
  const repl: Sandboxee<{ stdin: 'pipe' }> = fed
  const channel: Sandboxee<{ comms: true }> = talking
  const any: Sandboxee<LaunchOptions>[] = [...plain, timed, repl, channel, silent, kept]
  const given: Sandboxee<LaunchOptions> = await launcher.spawn('a', [], unknown)
  same<typeof given.stdin, Writable | undefined>(true)
  same<typeof given.stdout, Readable | undefined>(true)
  same<typeof given.comms, Duplex | undefined>(true)

  // @ts-expect-error -- it has a stdin
  plain.push(fed)
  // @ts-expect-error -- it has no stdout
  plain.push(silent)
  // @ts-expect-error -- its result has an output
  plain.push(kept)
  // @ts-expect-error -- it may have none
  plain.push(given)
  // @ts-expect-error -- it has no stdin
  const none: Sandboxee<{ stdin: 'pipe' }> = timed
  // @ts-expect-error -- it has no channel
  const mute: Sandboxee<{ comms: true }> = fed
  void [any, none, mute]
}

// ---- what is refused at compile time ------------------------------------------------------------------------------------------

export const refused = async (handle: FileHandle): Promise<void> => {
  await run('a', [], { stdin: handle, stdout: { file: 'x', append: true }, stderr: { fd: 2, unsafe: true } })
  // @ts-expect-error -- no such option
  await run('a', [], { shell: true })
  // @ts-expect-error -- no such unit
  await run('a', [], { limits: { output: '64MB' } })
  // @ts-expect-error -- left for later
  await run('a', [], { pty: { columns: 80, rows: 25 } })
  // @ts-expect-error -- arguments are strings
  await run('a', [1])
  // @ts-expect-error -- left for later
  policy().network({ allow: [] })
  // @ts-expect-error -- every output is bounded
  await run('a', [], { outputs: { a: { path: '/a' } } })
}

// ---- policies --------------------------------------------------------------------------------------------------------------------

export const policies = async (): Promise<void> => {
  const builder: PolicyBuilder = policy('host-system')
    .bind('/srv', '/data', { writable: true })
    .mountPoint('/in')
    .tmpfs('/tmp', { size: '64MiB' })
    .file('/a', new Uint8Array())
    .symlink('/b', 'a')
    .librariesFor('/bin/sh')
    .proc('fresh')
    .dev('none')
    .rootWritable()
    .hostname('box')
    .user({ uid: 1, gid: 1 })
    .env({ A: '1' })
    .network('none')
    .unixSockets('allow')
    .syscalls(
      syscallFilter()
        .allowRead()
        .when('socket', [arg(0).eq(AF_UNIX)], 'allow')
        .otherwise({ errno: 'EPERM' }),
    )
    .coreScheduling()
    .allowSpeculation()
    .limits({ wallTime: Infinity, disk: '1GiB' })
    .require('landlock')
  const built: Policy = builder.build()
  const json: PolicyJSON = built.toJSON()
  const record: { readonly version: 1; readonly [key: string]: unknown } = json
  const hash: string = policy.hash(built) + policy.hash(builder)
  const parsed: Policy = policy.parse(JSON.parse(JSON.stringify(built)))
  // @ts-expect-error -- frozen
  built.network = 'host'
  // @ts-expect-error -- a plain value is no policy
  const forged: Policy = json
  await using sandbox = await Sandbox.create(parsed, { maxConcurrency: 4, maxQueue: Infinity, queueTimeout: 1000 })
  await using other: Sandbox = await Sandbox.create(builder)
  const p99: number = sandbox.stats().latency.setup.p99
  const filter: SyscallFilter = syscallFilter().allowSystemMalloc().errno(['open', 'openat'], 'ENOENT').preset('strict')
  // @ts-expect-error -- a filter denies by default
  filter.otherwise('allow')
  // @ts-expect-error -- conditions are made by arg()
  filter.when('read', [{ arg: 0 }], 'allow')
  void [record, hash, forged, other.policy, p99]
}

// ---- servers ---------------------------------------------------------------------------------------------------------------------

export const servers = async (): Promise<void> => {
  await using server: ForkServer = await ForkServer.start({ hostIds: { uid: 1, gid: 1, count: 10 }, maxTemplates: 5 })
  const launcher: Launcher = server.unsandboxed
  await using sandbox = await Sandbox.create(undefined, { server })
  const stub: Launcher['run'] = run
  void [launcher, unsandboxed, sandbox, stub, server.pid, server.stats().templates]
}

/** Interfaces, so that a stub will do. */
export const stub = (sandboxee: Sandboxee): Launcher => ({
  run: () => Promise.reject(new Error('stub')),
  spawn: () => Promise.resolve(sandboxee as never),
})

// ---- supervision ------------------------------------------------------------------------------------------------------------------

export const handlers = (file: FileHandle): SyscallHandler[] => [
  (call, { file: name, args, pid }) => (call.path === name && args.length > pid ? 'allow' : { errno: 'EPERM' }),
  ({ address, memory }) => (address?.port === 80 && memory[0]?.kind === 'address' ? { value: 0n } : undefined),
  async () => ({ fd: await Promise.resolve(file), closeOnExec: false }),
  () => ({ fd: 3, unsafe: true }),
  () => 'kill',
  // It says nothing.
  () => {},
  // @ts-expect-error -- one decision at a time
  () => ({ errno: 'EPERM', value: 1 }),
  // @ts-expect-error -- no such decision
  () => 'deny',
]

export const violations = async (): Promise<void> => {
  const result = await run('a')
  if (result.status === 'violation') same<typeof result.violation, Violation | undefined>(true)
  const { filter, code, calls, warning, incomplete } = await learn('a', ['b'], { policy: policy(), input: 'c' })
  same<typeof filter, SyscallFilter>(true)
  void [code.length, calls[0]?.args[1], warning, incomplete]
}

// ---- errors ----------------------------------------------------------------------------------------------------------------------

export const errors = (error: unknown): string | undefined => {
  if (error instanceof AbortError) return error.result?.status
  if (error instanceof ProcessError) return error.result.command
  if (error instanceof RequestError) return error.issues.map((issue) => issue.path.join('.')).join()
  if (error instanceof SpawnError) return `${error.errno} ${error.syscall} ${error.step} ${error.path} ${error.hint}`
  return error instanceof NestboxError ? error.code : undefined
}

// ---- sandbox2 --------------------------------------------------------------------------------------------------------------------

export const sandbox2 = async (server: ForkServer, zygote: Sandboxee<{ comms: true }>): Promise<void> => {
  const request = forkRequest()
    .mode('fork-execve-sandbox')
    .args('/bin/cat', '/etc/hostname')
    .envs({ LANG: 'C' })
    .cloneFlags('newuser', 'newns', 'newpid')
    .mountTree(mountTree().addDirectory('/usr'))
    .hostname('box')
    .monitorType('unotify')
    .netnsMode('per-sandboxee')
    .pivot('nested')
    .build()
  await using reply = await new ForkClient(server).sendRequest(request, { execFd: 3, commsFd: 4, userNsFd: 5 })
  const { pid, initPid, exited } = reply
  const exit = await exited
  if (exit.status === 'exited') same<typeof exit.exitCode, number>(true)
  void [pid, initPid, new ForkClient(zygote)]
}
