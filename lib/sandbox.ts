// A policy on a fork server, with its queue and its accounts.

import { createHistogram, type RecordableHistogram } from 'node:perf_hooks'
import * as z from 'zod'

import { NestboxError, type RequestError, requestError } from './errors.ts'
import { type LaunchContext, sandboxContext, type Warmth } from './launch/context.ts'
import type { Flight } from './launch/flight.ts'
import type { AnyResult } from './launch/result.ts'
import { Prewarmer } from './launch/prewarm.ts'
import { ArgsSchema, FileSchema, LaunchOptionsSchema, OutputFileSchema } from './launch/schema.ts'
import type { Launcher } from './launch/types.ts'
import { type Gate, makeLauncher } from './launcher.ts'
import { nativePolicy, policy as policyFactory, toPolicy } from './policy/policy.ts'
import type { Policy, PolicyBuilder, Syscalls } from './policy/types.ts'
import { Queue } from './queue.ts'
import type { SyscallHandler } from './supervision/types.ts'
import type { SyscallAction } from './syscalls/types.ts'
import { RunningForkServer, sharedServer } from './server.ts'
import type { ForkServer, Percentiles, Sandbox as SandboxType, SandboxOptions, SandboxStats } from './types.ts'
import { AbsolutePath, countSchema, demand, MillisecondsSchema, type Tied } from './validate.ts'

const ServerSchema = z.custom<ForkServer>(
  (server) => server instanceof RunningForkServer,
  'It must be what ForkServer.start() gave',
)

const HandlerSchema = z.custom<SyscallHandler>((handler) => typeof handler === 'function', 'It must be a function')

/** The core finds a nest among those of its policy by looking at each. */
const WarmSchema = countSchema(0).refine((count) => count <= 1024, 'It must be at most 1024')

/** How long the nest that is kept without being asked for waits, in milliseconds. */
const DEFAULT_WARM_IDLE = 10_000

const PrewarmSchema = z.strictObject({
  ...LaunchOptionsSchema.pick({ env: true, argv0: true }).shape,
  file: FileSchema,
  args: ArgsSchema.readonly().optional(),
  cwd: AbsolutePath.optional(),
  outputs: z.record(z.string(), OutputFileSchema.omit({ to: true })).optional(),
  count: countSchema(1)
    .refine((count) => count <= 1024, 'It must be at most 1024')
    .optional(),
})

const SandboxOptionsSchema = z.strictObject({
  maxConcurrency: countSchema(1).optional(),
  maxQueue: countSchema(0).optional(),
  queueTimeout: MillisecondsSchema.optional(),
  server: ServerSchema.optional(),
  onSyscall: HandlerSchema.optional(),
  warm: WarmSchema.optional(),
  warmIdle: MillisecondsSchema.optional(),
  prewarm: PrewarmSchema.optional(),
  crashReport: z.boolean().optional(),
})

/** The schema says what the hand-written type says; a difference is a compile error here. */
export const tied: Tied<z.input<typeof SandboxOptionsSchema>, SandboxOptions> = true

type CheckedOptions = z.output<typeof SandboxOptionsSchema>

const SIGKILL = 9

/** How many latencies are noted before they are put into the histogram: all at once 1 to 2 µs each, 0.15 ms for the three kinds. */
const NOTED = 32

/** Latencies, recorded in microseconds. */
class Latency {
  readonly #histogram: RecordableHistogram = createHistogram()
  /** Not in the histogram yet: that takes 10 µs each, which the caller of a launch would wait for. */
  #noted: number[] = []

  record(ms: number): void {
    if (this.#noted.push(ms) >= NOTED) this.#count()
  }

  #count(): void {
    for (const ms of this.#noted) this.#histogram.record(Math.max(Math.round(ms * 1000), 1))
    this.#noted = []
  }

  percentiles(): Percentiles {
    this.#count()
    const histogram = this.#histogram
    const { count } = histogram
    if (count === 0) return { count, mean: 0, min: 0, p50: 0, p90: 0, p99: 0, p999: 0, max: 0 }
    const at = (percentile: number): number => histogram.percentile(percentile) / 1000
    return {
      count,
      mean: histogram.mean / 1000,
      min: histogram.min / 1000,
      p50: at(50),
      p90: at(90),
      p99: at(99),
      p999: at(99.9),
      max: histogram.max / 1000,
    }
  }
}

class RunningSandbox implements SandboxType {
  readonly policy: Policy
  readonly run: Launcher['run']
  readonly spawn: Launcher['spawn']
  readonly #server: RunningForkServer
  readonly #queue: Queue<Flight>
  readonly #flights = new Set<Flight>()
  readonly #latency = { queue: new Latency(), setup: new Latency(), total: new Latency() }
  #launched = 0
  #completed = 0
  #errored = 0
  #closed = false
  #idle: (() => void)[] = []
  readonly #warmth: Warmth
  readonly #context: LaunchContext
  readonly #prewarmer: Prewarmer | undefined

  constructor(policy: Policy, server: RunningForkServer, options: CheckedOptions) {
    this.policy = policy
    this.#server = server
    const { maxConcurrency = Infinity, maxQueue = Infinity, queueTimeout = Infinity } = options
    const connect = (): ReturnType<RunningForkServer['connection']> => server.connection()
    this.#queue = new Queue(maxConcurrency, maxQueue, queueTimeout, (flight: Flight) => {
      this.#launched += 1
      this.#flights.add(flight)
      flight.begin(connect)
    })
    const gate: Gate = {
      admit: (flight) => {
        if (this.#closed) this.#queue.turnAway(flight, closed())
        else this.#queue.add(flight)
      },
      over: (flight, result, error) => this.#over(flight, result, error),
    }
    const { warm, warmIdle, onSyscall, prewarm } = options
    const idle = warmIdle ?? (warm === undefined ? DEFAULT_WARM_IDLE : Infinity)
    this.#warmth = { count: warm ?? 1, idle: Number.isFinite(idle) ? idle : undefined }
    const context = sandboxContext(policy, this.#warmth, { onSyscall }, options.crashReport)
    this.#context = context
    this.#prewarmer = prewarm === undefined ? undefined : new Prewarmer(context, prewarm, connect)
    context.prewarmer = this.#prewarmer
    const launcher = makeLauncher(() => context, gate)
    this.run = launcher.run
    this.spawn = launcher.spawn
  }

  /** Makes the first launch as fast as the others. What goes wrong is for the launches to report. */
  async prepare(warm: number): Promise<void> {
    try {
      const connection = this.#server.connection()
      const policy = nativePolicy(this.policy)
      await this.#context.prepared()
      await (warm > 0 ? connection.warm(policy, warm, this.#warmth.idle) : connection.prepare(policy))
      await this.#prewarmer?.fill()
    } catch {
      // The launch meets the same obstacle, or it is gone by then.
    }
  }

  async warm(count: number): Promise<void> {
    demand(WarmSchema, count, "Sandbox.warm() was asked for something that can't be")
    if (this.#closed) throw closed()
    this.#warmth.count = count
    // Whoever says a number means it, for as long as it takes.
    this.#warmth.idle = undefined
    const policy = nativePolicy(this.policy)
    if (count === 0) this.#cool()
    else await this.#server.connection().warm(policy, count, undefined)
  }

  stats(): SandboxStats {
    return {
      running: this.#queue.running,
      queued: this.#queue.waiting,
      launched: this.#launched,
      completed: this.#completed,
      errored: this.#errored,
      rejected: this.#queue.rejected,
      prewarm: this.#prewarmer?.counts() ?? { ready: 0, taken: 0, died: 0 },
      latency: {
        queue: this.#latency.queue.percentiles(),
        setup: this.#latency.setup.percentiles(),
        total: this.#latency.total.percentiles(),
      },
    }
  }

  async close(): Promise<void> {
    this.#closed = true
    this.#prewarmer?.retire()
    await this.#drained()
    await this.#prewarmer?.end()
    this.#cool()
  }

  async destroy(): Promise<void> {
    this.#closed = true
    this.#queue.clear(closed)
    for (const flight of this.#flights) {
      // One that still opens its files has nothing to kill, and would start afterwards.
      if (flight.connection === undefined) flight.turnAway(closed())
      else flight.kill(SIGKILL)
    }
    await Promise.all([this.#drained(), this.#prewarmer?.end()])
    this.#cool()
  }

  /** Nobody is going to use the warm nests. Another sandbox of the same policy makes its own. */
  #cool(): void {
    this.#server.current?.server.cool(nativePolicy(this.policy))
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.destroy()
  }

  #over(flight: Flight, result: AnyResult | undefined, error: Error | undefined): void {
    if (this.#flights.delete(flight)) {
      if (error === undefined) this.#completed += 1
      else this.#errored += 1
      // One that was aborted, for example, has rejected, and has taken its time nevertheless.
      if (result !== undefined) {
        this.#latency.queue.record(result.timings.queueMs)
        this.#latency.setup.record(result.timings.setupMs)
        this.#latency.total.record(result.durationMs)
      }
    }
    this.#prewarmer?.launchOver()
    this.#queue.remove(flight)
    if (this.#queue.running > 0 || this.#queue.waiting > 0) return
    const waiting = this.#idle
    this.#idle = []
    for (const resolve of waiting) resolve()
  }

  #drained(): Promise<void> {
    if (this.#queue.running === 0 && this.#queue.waiting === 0) return Promise.resolve()
    return new Promise((resolve) => {
      this.#idle.push(resolve)
    })
  }
}

const ASKED = "Sandbox.create() was asked for something that can't be"

/** What leaves a call to the supervisor. */
const leaves = (action: SyscallAction): boolean => action === 'report' || action === 'ask'

/** Whether a filter ever does. */
const asks = (syscalls: Syscalls): boolean => {
  if (typeof syscalls === 'string') return syscalls === 'strict'
  return leaves(syscalls.otherwise) || syscalls.rules.some(({ action }) => leaves(action))
}

const neverAsked = (syscalls: Syscalls): RequestError => {
  const filter = typeof syscalls === 'string' ? `The filter '${syscalls}'` : "The policy's filter"
  const message = `${filter} has no 'report' and no 'ask': it would never be called`
  return requestError(ASKED, ['onSyscall'], message)
}

const closed = (): NestboxError =>
  new NestboxError('ERR_NESTBOX_CLOSED', 'The sandbox was closed: it takes no more launches.')

let shared: RunningSandbox | undefined

/** The process-wide sandbox of `policy('host-system')`, on the process-wide fork server. It has no disposal. */
export const sharedSandbox = (): SandboxType =>
  (shared ??= new RunningSandbox(policyFactory('host-system').build(), sharedServer(), {}))

/** A policy on a fork server, with its queue. Disposing is `destroy`. */
export type Sandbox = SandboxType

/** Makes sandboxes. */
export const Sandbox: {
  /**
   * Makes a sandbox, and its policy ready for the first launch.
   *
   * What keeps the policy from being carried out on this host (a bind source that is missing, user namespaces that are
   * forbidden) is reported by the launches.
   *
   * @param policy - `policy('host-system')` by default
   * @throws `PolicyError`, `RequestError`, `UnsupportedPlatformError`
   */
  create(policy?: Policy | PolicyBuilder, options?: SandboxOptions): Promise<SandboxType>
} = Object.freeze({
  async create(policy?: Policy | PolicyBuilder, options: SandboxOptions = {}): Promise<SandboxType> {
    const checked = demand(SandboxOptionsSchema, options, ASKED)
    const finished = policy === undefined ? policyFactory('host-system').build() : toPolicy(policy)
    if (checked.onSyscall !== undefined && !asks(finished.syscalls)) throw neverAsked(finished.syscalls)
    const sandbox = new RunningSandbox(
      finished,
      (checked.server as RunningForkServer | undefined) ?? sharedServer(),
      checked,
    )
    await sandbox.prepare(checked.warm ?? 0)
    return sandbox
  },
})
