// One run of a fork server, and the launches in flight on it.
//
// The core reports events, each with the token of its launch; here each finds its listener. Every launch gets
// exactly one last event, also when the fork server is lost: what had ended before, but for outputs that are still being read,
// then still gives its result.

import type {
  NativeAsked,
  NativeEnded,
  NativeEvent,
  NativeExtras,
  NativeFailure,
  NativeLaunched,
  NativeLimits,
  NativePolicy,
  Server,
  ServerOptions,
} from '#binding'

import { native } from './binding.ts'
import { debug, isDebugging } from './diagnostics.ts'
import { ForkServerError, fromFailure } from './errors.ts'

/** Whoever waits for what becomes of one token. The last call is one of `ended`, `failed` and `lost`. */
export interface Listener {
  /** Init runs. */
  placed?(pid: number): void
  /** The program runs; or what was asked to be prepared is. */
  started(pid: number): void
  /** A call waits for the host's decision. */
  asked?(asked: NativeAsked): void
  /** Other limits hold, or could not be set. */
  limited?(failure: NativeFailure | undefined): void
  ended(ended: NativeEnded): void
  failed(failure: NativeFailure): void
  lost(error: ForkServerError): void
}

/** A launch as the core takes it. Numbers and one text, because each property of an object that is passed costs a call. */
export interface LaunchMessage {
  /** Undefined: without isolation. */
  policy: NativePolicy | undefined
  /** The file, the working directory, the search path, `argc` arguments, the environment; joined by NUL. */
  readonly text: string
  readonly argc: number
  /** Descriptors of the host, or what `lib/launch/request.ts` has negative numbers for. */
  stdin: number
  stdout: number
  stderr: number
  /** Bytes; -1: none. */
  readonly outputLimit: number
  readonly onOverflow: number
  readonly checkFds: boolean
  readonly comms: boolean
  readonly reportStart: boolean
  readonly crashReport: boolean
  /** It waits for a launch: no wall-clock limit runs. */
  readonly standby: boolean
  readonly warm: number
  /** Milliseconds; undefined: for ever. */
  readonly warmIdle: number | undefined
  /** What few launches have. */
  extras: NativeExtras | undefined
}

/** A launch that still waits for something, its files for one, before the core is asked for it. */
export interface Boarding {
  turnAway(error: Error): void
}

/** A running fork server. */
export class Connection {
  readonly #server: Server
  /** Where the core reads the numbers of a launch, in the order of `crates/node/src/request.rs`. */
  readonly #numbers: Float64Array
  readonly #listeners = new Map<number, Listener>()
  /** In flight as well, though the core does not know them yet. */
  readonly #boarding = new Set<Boarding>()
  /** Those of the listeners that stand by for a launch; true: they run, and nobody waits for what becomes of them. */
  readonly #standing = new Map<number, boolean>()
  /** How many of these run, so that nothing is expected of them. */
  #resting = 0
  /** Programs that stood by, and no launch took them. */
  #untaken = 0
  /** Called whenever nothing is in flight any more. */
  readonly #idle = new Set<() => void>()
  #closed = false
  #hasRun = false
  /** Why it is gone, once it is. */
  lost: ForkServerError | undefined
  /** Settles once it is known whether the fork server runs. */
  readonly ready: Promise<void>
  #settleReady: { resolve: () => void; reject: (error: ForkServerError) => void }

  constructor(options: ServerOptions) {
    const settle: { resolve?: () => void; reject?: (error: ForkServerError) => void } = {}
    this.ready = new Promise((resolve, reject) => {
      settle.resolve = resolve
      settle.reject = reject
    })
    this.#settleReady = settle as { resolve: () => void; reject: (error: ForkServerError) => void }
    // Most callers don't wait for it: their launch tells them.
    this.ready.catch(() => {})
    debug(() => 'fork server: starting')
    this.#server = new (native().Server)(options, (event) => this.#receive(event))
    this.#numbers = this.#server.numbers
  }

  get pid(): number {
    return this.lost === undefined && !this.#closed ? this.#server.pid : 0
  }

  /** The core's side, for requests that this class has no word for. */
  get server(): Server {
    return this.#server
  }

  /** Asks the core for a launch. */
  launch(message: LaunchMessage): NativeLaunched {
    const numbers = this.#numbers
    numbers[0] = message.stdin
    numbers[1] = message.stdout
    numbers[2] = message.stderr
    numbers[3] = message.outputLimit
    numbers[4] = message.onOverflow
    numbers[5] =
      (message.comms ? 1 : 0) |
      (message.checkFds ? 2 : 0) |
      (message.reportStart ? 4 : 0) |
      (message.crashReport ? 8 : 0) |
      (message.standby ? 16 : 0)
    numbers[6] = message.argc
    numbers[7] = message.warm
    numbers[8] = message.warmIdle ?? -1
    const launched = this.#building(() => this.#server.launch(message.policy, message.text, message.extras))
    const named = typeof launched === 'number' ? { token: launched } : launched
    debug(() => describe(message, named))
    return named
  }

  /** Counts a launch in that is not asked for yet, until {@link leave}. */
  board(launch: Boarding): void {
    this.#boarding.add(launch)
  }

  /** It was asked for, or never will be. */
  leave(launch: Boarding): void {
    this.#boarding.delete(launch)
    this.#becomeIdle()
  }

  /** Registers a launch that the core has taken. */
  listen(launched: NativeLaunched, listener: Listener): void {
    this.#listeners.set(launched.token, listener)
  }

  /** Registers a program that stands by for a launch. {@link idle} does not wait for it, and the host only until it runs. */
  standBy(launched: NativeLaunched, listener: Listener): void {
    this.#listeners.set(launched.token, listener)
    this.#standing.set(launched.token, false)
    this.#untaken += 1
  }

  /**
   * Makes a program that stands by a launch: its clocks and limits begin now. `Listener.limited` tells that they do.
   *
   * @returns false if it is over
   */
  handOver(token: number, limits: NativeLimits, listener: Listener): boolean {
    if (!this.#standing.has(token) || this.limit(token, limits, true) !== undefined) return false
    this.#untaken -= 1
    this.#listeners.set(token, listener)
    this.recall(token)
    return true
  }

  /** From now on somebody waits for what becomes of it. */
  recall(token: number): void {
    const rests = this.#standing.get(token)
    if (rests === undefined) return
    this.#standing.delete(token)
    if (rests) this.#rest(-1)
  }

  #rest(change: 1 | -1): void {
    this.#resting += change
    if (!this.#closed) this.#server.background(this.#resting)
  }

  /** Builds the template of a policy ahead of its first launch. */
  prepare(policy: NativePolicy): Promise<void> {
    return this.#prepared(() => this.#building(() => this.#server.prepare(policy)))
  }

  /** Makes so many warm nests of a policy, which wait for `idle` milliseconds, or for ever. */
  warm(policy: NativePolicy, count: number, idle: number | undefined): Promise<void> {
    debug(() => `template: to keep ${count} warm`)
    return this.#prepared(() => this.#building(() => this.#server.warm(policy, count, idle)))
  }

  /** Does what may build a template, and tells whoever debugs whether it did. */
  #building<T>(work: () => T): T {
    if (!isDebugging()) return work()
    const before = this.#server.stats().templates
    const done = work()
    const { templates } = this.#server.stats()
    if (templates > before) debug(() => `template: building one, ${templates} kept`)
    return done
  }

  #prepared(ask: () => number): Promise<void> {
    return new Promise((resolve, reject) => {
      // It may have died while the caller waited for something else. From then on no event comes of it.
      if (this.lost !== undefined) throw this.lost
      this.#listeners.set(ask(), {
        started: () => resolve(),
        ended: () => resolve(),
        failed: (failure) => reject(fromFailure(failure)),
        lost: reject,
      })
    })
  }

  kill(token: number, signal: number): boolean {
    return this.#listeners.has(token) && this.#server.kill(token, signal)
  }

  /** Asks for other limits of a launch; `Listener.limited` tells what became of it, if nothing is wrong here. */
  limit(token: number, limits: NativeLimits, restartClock: boolean): NativeFailure | undefined {
    return this.#server.limit(token, limits, restartClock) ?? undefined
  }

  stats(): ReturnType<Server['stats']> {
    const stats = this.#server.stats()
    // What stands by is no launch yet, and what boards is one.
    const running = stats.running - this.#standing.size + this.#boarding.size
    return { ...stats, running, launched: stats.launched - this.#untaken }
  }

  /** Resolves when nothing is in flight. */
  idle(): Promise<void> {
    if (this.#isIdle) return Promise.resolve()
    return new Promise((resolve) => {
      this.#idle.add(resolve)
    })
  }

  get #isIdle(): boolean {
    return this.#listeners.size === this.#standing.size && this.#boarding.size === 0
  }

  /** Kills everything in flight, and nothing that comes later. What boards is turned away: it would start afterwards. */
  killAll(signal: number): void {
    for (const token of this.#listeners.keys()) this.#server.kill(token, signal)
    for (const launch of this.#boarding) launch.turnAway(closed())
  }

  /** Ends the fork server and all that it runs. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#server.close()
    // It may have died before.
    const why = this.#lose(closed())
    // No event comes from a server that was closed.
    const listeners = [...this.#listeners.values()]
    const boarding = [...this.#boarding]
    this.#listeners.clear()
    this.#standing.clear()
    this.#boarding.clear()
    this.#resting = 0
    for (const listener of listeners) listener.lost(why)
    for (const launch of boarding) launch.turnAway(why)
    this.#becomeIdle()
  }

  #receive(event: NativeEvent): void {
    if (event.kind === 'server-ready') this.#ready()
    else if (event.kind === 'server-lost') this.#lose(this.#lostError(event.failure))
    else this.#dispatch(event)
    if (this.#listeners.size > this.#standing.size) return
    // Lets go of what the core still holds of a fork server that died.
    if (this.lost !== undefined) this.close()
    this.#becomeIdle()
  }

  #dispatch(event: NativeEvent): void {
    const { kind, token, pid = 0, failure, asked, ended } = event
    debug(() => `launch ${token}: ${kind}${detail(event)}`)
    const listener = this.#listeners.get(token)
    if (listener === undefined) return
    if (kind === 'placed') {
      listener.placed?.(pid)
    } else if (kind === 'asked') {
      if (asked !== undefined) listener.asked?.(asked)
    } else if (kind === 'limited') {
      listener.limited?.(failure)
    } else if (kind === 'started') {
      if (this.#standing.get(token) === false) {
        this.#standing.set(token, true)
        this.#rest(1)
      }
      listener.started(pid)
    } else {
      this.#listeners.delete(token)
      this.recall(token)
      if (kind === 'prepared') listener.started(pid)
      else if (kind === 'ended' && ended !== undefined) listener.ended(ended)
      else if (kind === 'failed' && failure !== undefined) listener.failed(failure)
      else listener.lost(this.lost ?? this.#lostError(failure))
    }
  }

  #lostError(failure: NativeFailure | undefined): ForkServerError {
    // The core sees the end of a socket, whatever it waited for there: with a server that ran, that was not its start.
    if (failure === undefined || (this.#hasRun && DIED.test(failure.message))) return diedError()
    const error = fromFailure(failure)
    return error instanceof ForkServerError ? error : new ForkServerError(error.message, { failure })
  }

  #ready(): void {
    this.#hasRun = true
    debug(() => `fork server: ready, pid ${this.pid}`)
    this.#settleReady.resolve()
  }

  /** Why it is gone: this, unless it was gone already. */
  #lose(error: ForkServerError): ForkServerError {
    if (this.lost === undefined) debug(() => `fork server: gone (${error.code}): ${error.message}`)
    this.lost ??= error
    this.#settleReady.reject(error)
    return this.lost
  }

  #becomeIdle(): void {
    if (this.#idle.size === 0 || !this.#isIdle) return
    const waiting = [...this.#idle]
    this.#idle.clear()
    for (const resolve of waiting) resolve()
  }
}

const closed = (): ForkServerError => new ForkServerError('The fork server was closed.', { code: 'ERR_NESTBOX_CLOSED' })

/** A launch for the debug log: neither its arguments nor its environment. */
const describe = ({ policy, text, argc }: LaunchMessage, { token, failure }: NativeLaunched): string => {
  const file = text.slice(0, text.indexOf('\0'))
  const how = policy === undefined ? 'without isolation' : 'in a sandbox'
  const refused = failure === undefined ? '' : `, refused: ${failure.message}`
  return `launch ${token}: ${file}, ${argc} arguments, ${how}${refused}`
}

/** What an event says, for the debug log. */
const detail = ({ pid, failure, ended }: NativeEvent): string => {
  if (failure !== undefined) return `, ${failure.code}: ${failure.message}`
  if (ended === undefined) return pid === undefined || pid === 0 ? '' : `, pid ${pid}`
  const ms = ((ended.endedNs - ended.submittedNs) / 1e6).toFixed(2)
  return `, pid ${ended.pid} ${ended.ending} ${ended.status}${ended.limit === undefined ? '' : ` (${ended.limit})`} after ${ms} ms`
}

/** What the core says of a socket that ended without a word. */
const DIED = /the fork server (?:has )?died$/

const diedError = (): ForkServerError =>
  new ForkServerError(
    'The fork server died. What it ran is lost, and so is what it was asked for until its death was seen; the next call ' +
      'starts a new one.',
  )
