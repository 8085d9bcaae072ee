// Programs that are started ahead, for those that are slow to start: each in a nest of its own, where it waits on its comms
// channel for the work that a launch brings.
//
// One is started by the same request as a launch that finds none, so it is in nothing different from that launch's own program. It
// is taken only by a launch that asks for the same in all that it can have seen, and once. Until then nobody reads what it writes:
// it comes to a halt at a full pipe, and the launch that takes it gets it all. What dies meanwhile is replaced, more and more
// slowly if that goes on; why, the next launch tells, which starts its own and meets the same.

import type { NativeAsked, NativeExtras, NativeLaunched, NativeLimits } from '#binding'

import type { Connection, LaunchMessage, Listener } from '../connection.ts'
import { debug } from '../diagnostics.ts'
import { decide } from '../supervision/handler.ts'
import { toCall } from '../supervision/violation.ts'
import type { Prewarm, SandboxStats } from '../types.ts'
import type { LaunchContext } from './context.ts'
import { CAPTURE, IGNORE, type LaunchRequest, makeRequest, STREAM } from './request.ts'
import { hold, release } from './streams.ts'

/** A program that waits, as a launch takes it. */
export interface Taken {
  readonly connection: Connection
  /** Its token, and the host's ends of its descriptors. */
  readonly launched: NativeLaunched
  readonly pid: number
}

/** When what was taken is replaced, in milliseconds after that, unless a launch ends before: its start would slow them down. */
const REFILL_AFTER = 100

/** What dies without having been taken is replaced after so many milliseconds, and after twice as many each time that goes on. */
const FIRST_PAUSE = 100
const LONGEST_PAUSE = 30_000

const SIGKILL = 9

/** The limits that begin with the work, and can be others than those it was started with. */
const LATE_LIMITS: ReadonlySet<string> = new Set(['wallTime', 'cpuTime'])

/** One program that waits. */
class Standby implements Listener, Taken {
  readonly connection: Connection
  readonly launched: NativeLaunched
  pid = 0
  /** Settles when it runs, or never will. */
  readonly settled: Promise<void>
  /** Settles when nothing of it is left, or it was taken. */
  readonly gone: Promise<void>
  readonly #request: LaunchRequest
  readonly #died: (standby: Standby, why: string) => void
  #settle!: () => void
  #leave!: () => void
  /** Calls of its that the host has not decided yet. */
  #undecided = 0

  constructor(
    connection: Connection,
    launched: NativeLaunched,
    request: LaunchRequest,
    died: (standby: Standby, why: string) => void,
  ) {
    this.connection = connection
    this.launched = launched
    this.#request = request
    this.#died = died
    this.settled = new Promise((resolve) => {
      this.#settle = resolve
    })
    this.gone = new Promise((resolve) => {
      this.#leave = resolve
    })
    hold(launched)
    connection.standBy(launched, this)
  }

  /** It runs, and nothing about it is open. */
  get ready(): boolean {
    return this.pid !== 0 && this.#undecided === 0
  }

  /** Gives it to a launch, which from now on is told what becomes of it. False: it is over. */
  give(limits: NativeLimits, to: Listener): boolean {
    if (!this.connection.handOver(this.launched.token, limits, to)) return false
    this.#leave()
    return true
  }

  /** Kills it, and has somebody wait for that. */
  end(): Promise<void> {
    this.connection.recall(this.launched.token)
    this.connection.kill(this.launched.token, SIGKILL)
    return this.gone
  }

  started(pid: number): void {
    this.pid = pid
    this.#settle()
  }

  asked(asked: NativeAsked): void {
    void this.#decide(asked)
  }

  async #decide({ id, call }: NativeAsked): Promise<void> {
    const { file, args, context } = this.#request
    if (context.onSyscall === undefined) return
    this.#undecided += 1
    const { answer } = await decide(context.onSyscall, toCall(call), { file, args, pid: this.pid })
    this.#undecided -= 1
    if (this.connection.lost === undefined) this.connection.server.answer(this.launched.token, id, answer)
  }

  ended({ ending, status }: { readonly ending: string; readonly status: number }): void {
    this.#over(`${ending} ${status}`)
  }

  failed({ message }: { readonly message: string }): void {
    this.#over(message)
  }

  lost({ message }: Error): void {
    this.#over(message)
  }

  #over(why: string): void {
    release(this.launched)
    this.pid = 0
    this.#settle()
    this.#leave()
    this.#died(this, why)
  }
}

/** Keeps programs started ahead for the launches of one sandbox. */
export class Prewarmer {
  readonly #connect: () => Connection
  readonly #request: LaunchRequest
  readonly #message: LaunchMessage
  readonly #count: number
  readonly #standing = new Set<Standby>()
  #taken = 0
  #died = 0
  /** How many died in a row. */
  #failures = 0
  /** What is due after a while. */
  #due: { readonly timer: NodeJS.Timeout; readonly refill: boolean } | undefined
  #retired = false

  /**
   * @param connect - gives what to launch on; may throw
   * @throws `RequestError`
   */
  constructor(context: LaunchContext, { file, args, count = 1, ...options }: Prewarm, connect: () => Connection) {
    this.#connect = connect
    this.#count = count
    this.#request = makeRequest(context, 'spawn', file, args, { ...options, comms: true })
    this.#message = { ...this.#request.message, standby: true }
  }

  /** Starts what is missing. Resolves when all that was started runs, or has failed. */
  async fill(): Promise<void> {
    const { context } = this.#request
    // No launch would be made.
    await context.prepared()
    const started: Promise<void>[] = []
    while (!this.#retired && this.#standing.size < this.#count) {
      const standby = this.#start()
      if (standby === undefined) break
      started.push(standby.settled)
    }
    await Promise.all(started)
  }

  /** One that such a launch can have; `listener` is then told what becomes of it. */
  take(request: LaunchRequest, listener: Listener): Taken | undefined {
    if (!this.#matches(request)) return undefined
    const limits = lateLimits(request)
    for (const standby of this.#standing) {
      if (!standby.ready || !standby.give(limits, listener)) continue
      this.#standing.delete(standby)
      this.#taken += 1
      this.#failures = 0
      this.#later(REFILL_AFTER, true)
      return standby
    }
    // Perhaps there is none because the fork server died, and with it all that it ran.
    this.#later(REFILL_AFTER, true)
    return undefined
  }

  /** A launch of the sandbox is over: there is time now to replace what was taken. */
  launchOver(): void {
    if (this.#due?.refill === true) this.#later(0, true)
  }

  counts(): SandboxStats['prewarm'] {
    let ready = 0
    for (const standby of this.#standing) if (standby.ready) ready += 1
    return { ready, taken: this.#taken, died: this.#died }
  }

  /** Nothing is started any more. */
  retire(): void {
    this.#retired = true
    clearTimeout(this.#due?.timer)
    this.#due = undefined
  }

  /** Ends all that wait. Resolves when nothing of them is left. */
  async end(): Promise<void> {
    this.retire()
    await Promise.all([...this.#standing].map((standby) => standby.end()))
  }

  #start(): Standby | undefined {
    const died = (standby: Standby | undefined, why: string): void => this.#hasDied(standby, why)
    try {
      const connection = this.#connect()
      this.#message.policy = this.#request.context.native()
      const launched = connection.launch(this.#message)
      if (launched.failure !== undefined) {
        died(undefined, launched.failure.message)
        return undefined
      }
      const standby = new Standby(connection, launched, this.#request, died)
      this.#standing.add(standby)
      return standby
    } catch (error) {
      died(undefined, String(error))
      return undefined
    }
  }

  #hasDied(standby: Standby | undefined, why: string): void {
    if (standby !== undefined) this.#standing.delete(standby)
    if (this.#retired) return
    debug(() => `prewarm: ${this.#request.file} is gone: ${why}`)
    this.#died += 1
    this.#failures += 1
    // Where the fork server died, the next launch starts another, and not what waits for launches.
    if (standby?.connection.lost !== undefined) return
    this.#later(Math.min(FIRST_PAUSE * 2 ** (this.#failures - 1), LONGEST_PAUSE), false)
  }

  /** Fills up after a while. A pause that what died made necessary is not cut short. */
  #later(ms: number, refill: boolean): void {
    if (this.#retired) return
    if (this.#due !== undefined) {
      if (refill && !this.#due.refill) return
      clearTimeout(this.#due.timer)
    }
    const timer = setTimeout(() => {
      this.#due = undefined
      void this.fill()
    }, ms)
    // Nobody waits for it.
    timer.unref()
    this.#due = { timer, refill }
  }

  #matches({ message, late, checkHere }: LaunchRequest): boolean {
    const own = this.#message
    return (
      message.text === own.text &&
      message.argc === own.argc &&
      message.crashReport === own.crashReport &&
      message.stdin === IGNORE &&
      isPipe(message.stdout) &&
      isPipe(message.stderr) &&
      late.length === 0 &&
      checkHere.length === 0 &&
      sameExtras(message.extras, own.extras)
    )
  }
}

/** What the program sees is the same, whoever reads the other end. */
const isPipe = (descriptor: number): boolean => descriptor === CAPTURE || descriptor === STREAM

const sameExtras = (launch: NativeExtras = {}, own: NativeExtras = {}): boolean => {
  const { limits, supervision, outputs, ...others } = launch
  return (
    Object.keys(limits ?? {}).every((name) => LATE_LIMITS.has(name)) &&
    supervision === own.supervision &&
    JSON.stringify(outputs) === JSON.stringify(own.outputs) &&
    // Files, binds, input, further descriptors: what only this launch has.
    Object.keys(others).length === 0
  )
}

/** Those that begin with the work; one that is missing is none. */
const lateLimits = ({ message, context: { limits } }: LaunchRequest): NativeLimits => {
  const { wallTime = limits.wallTime, cpuTime = limits.cpuTime } = message.extras?.limits ?? {}
  return {
    ...(wallTime === null ? undefined : { wallTime }),
    ...(cpuTime === null ? undefined : { cpuTime }),
  }
}
