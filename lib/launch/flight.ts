// One launch, from the moment it may start until its result: opens what must be opened, hands the request to the core,
// makes the streams, listens to the abort signal, and settles its promises exactly once, when the nest is dead.

import type { Socket } from 'node:net'
import type { Readable } from 'node:stream'
import type { NativeAsked, NativeEnded, NativeFailure, NativeLaunched, NativeLearned } from '#binding'

import type { Boarding, Connection, LaunchMessage, Listener } from '../connection.ts'
import { exitEvent, violationEvent } from '../diagnostics.ts'
import {
  AbortError,
  asError,
  type ForkServerError,
  fromFailure,
  fromLimitsFailure,
  RequestError,
  requestError,
} from '../errors.ts'
import { signalNumber } from '../signals.ts'
import { decide, handlerFailure } from '../supervision/handler.ts'
import type { SyscallHandler } from '../supervision/types.ts'
import { toCall } from '../supervision/violation.ts'
import { mustBeSafe } from './descriptors.ts'
import { HostFiles } from './host-files.ts'
import { type LimitChange, over, RunningLimits } from './limits.ts'
import type { LaunchRequest } from './request.ts'
import { type AnyResult, type Handover, makeResult, processError, type Streamed } from './result.ts'
import { RunningSandboxee } from './sandboxee.ts'
import {
  discardInput,
  duplexStream,
  feed,
  handOver,
  inputProblem,
  inputStream,
  OutputMeter,
  OutputStream,
  releaseDuplex,
} from './streams.ts'

const SIGKILL = 9

/**
 * How long a result waits for a pipe to be empty. The writers are dead, so there is nothing to wait for; unless the program
 * has managed to leave its end of the pipe to somebody, who must not delay the result for ever.
 */
const PATIENCE = 1000

/** A timer's largest delay; what is longer than 24 days is left to the core's own limit. */
const TIMER_MAX = 0x7f_ff_ff_ff

/** Whoever keeps account of launches. */
export interface Ledger {
  /** The launch is over; its result, if there is one, and what it rejects with, if it does. */
  over(flight: Flight, result: AnyResult | undefined, error: Error | undefined): void
}

/** Gives the connection to launch on, starting the fork server if there is none. */
export type Connect = () => Connection

/** One launch. */
export class Flight implements Listener, Boarding {
  readonly request: LaunchRequest
  /** The sandboxee's streams; there once it runs. */
  stdin: Socket | undefined
  stdout: OutputStream | undefined
  stderr: OutputStream | undefined
  comms: Socket | undefined
  /** The number of the host's end of the comms channel; a zygote is spoken to through it. */
  commsFd: number | undefined
  extra: Socket[] = []
  pid = 0
  /** How the launch ended. */
  readonly result: Promise<AnyResult>

  readonly #ledger: Ledger
  #resolve!: (result: AnyResult) => void
  #reject!: (error: Error) => void
  #spawned: { resolve: (sandboxee: RunningSandboxee) => void; reject: (error: Error) => void } | undefined
  #connection: Connection | undefined
  #token = 0
  readonly #files = new HostFiles()
  /** They are being opened: a thread may use their numbers. */
  #boards = false
  /** Since when it has had to wait for its turn. */
  #waitingSince: number | undefined
  #queueMs = 0
  /** When it was given its work, if its program was started ahead. */
  #handover: Handover | undefined
  /** Its limits of time are not known to hold yet. */
  #handingOver = false
  /** Why they do not. */
  #limitsError: Error | undefined
  /** The signals that the host sent, in order. */
  readonly #sent: number[] = []
  #canceled = false
  #timedOut = false
  #settled = false
  /** What the caller's input stream failed with. */
  #inputError: Error | undefined
  /** What `onSyscall` failed with. */
  #handlerError: Error | undefined
  /** What was learned. */
  learned: NativeLearned | undefined
  #meter: OutputMeter | undefined
  #timers: NodeJS.Timeout[] = []
  /** The one that sends `killSignal` when the time is over. */
  #softTimer: NodeJS.Timeout | undefined
  /** When the program's time began. */
  #clockStart = 0
  /** Made when they are first changed. */
  #limits: RunningLimits | undefined
  readonly #onAbort = (): void => this.#abort()
  readonly #onInput = (error?: unknown): void => this.#inputGone(error)

  constructor(request: LaunchRequest, ledger: Ledger) {
    this.request = request
    this.#ledger = ledger
    this.result = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    request.signal?.addEventListener('abort', this.#onAbort, { once: true })
    // It may be long until the launch reads it, and an error that nobody listens for ends the host.
    request.inputStream?.on('error', this.#onInput).once('close', this.#onInput)
  }

  /** The running program. Call it before the launch. */
  spawned(): Promise<RunningSandboxee> {
    // Whether anybody looks at the result of a sandboxee is the caller's affair.
    this.result.catch(() => {})
    return new Promise((resolve, reject) => {
      this.#spawned = { resolve, reject }
    })
  }

  wait(): void {
    this.#waitingSince = performance.now()
  }

  /** Takes off. Never throws. */
  begin(connect: Connect): void {
    if (this.#settled) return
    if (this.#waitingSince !== undefined) this.#queueMs = performance.now() - this.#waitingSince
    const { context, late, message } = this.request
    try {
      // Only what works over its channel can have been started ahead.
      if (message.comms && this.#takeOver()) return
      const connection = connect()
      const prepared = context.prepared()
      if (late.length === 0 && prepared === undefined) this.#launch(connection, message)
      else void this.#board(connection, prepared)
    } catch (error) {
      this.turnAway(asError(error))
    }
  }

  /** Ends it before anything was launched. */
  turnAway(error: Error): void {
    this.#fail(error)
  }

  /** SIGKILL takes the nest, anything else goes to the program. */
  kill(signal: number): boolean {
    if (this.#connection === undefined || this.#settled) return false
    const sent = this.#connection.kill(this.#token, signal)
    if (sent) this.#sent.push(signal)
    return sent
  }

  /** Has other limits for the running program; with `restartClock`, its time begins anew. Never throws. */
  async setLimits(limits: unknown, restartClock = false): Promise<void> {
    const running = (this.#limits ??= new RunningLimits(this.request))
    const change = running.check(limits, restartClock)
    const connection = this.#connection
    if (connection === undefined || this.#settled) throw over()
    const message = running.native(change)
    if (message === undefined) {
      running.confirm(change)
      this.#limitsHold(change)
      return
    }
    const failure = connection.limit(this.#token, message, restartClock)
    if (failure === undefined) await running.wait(change)
    else throw failure.code === 'ERR_NESTBOX_REQUEST' ? over() : fromLimitsFailure(failure)
  }

  limited(failure: NativeFailure | undefined): void {
    // The answers come in order, and this one was asked for first.
    if (this.#handingOver) {
      this.#handingOver = false
      if (failure === undefined) return
      // Without the limits that it should have it must not run.
      this.#limitsError = fromLimitsFailure(failure)
      this.kill(SIGKILL)
      return
    }
    const change = this.#limits?.answered(failure === undefined ? undefined : fromLimitsFailure(failure))
    if (change !== undefined) this.#limitsHold(change)
  }

  /** What the host itself keeps of limits that have changed. */
  #limitsHold({ limits: { output, wallTime }, restartClock }: LimitChange): void {
    if (output !== undefined) {
      this.#connection?.server.limitOutput(this.#token, output ?? -1)
      this.#meter?.limit(output)
      for (const stream of [this.stdout, this.stderr]) stream?.keep(output ?? Infinity)
    }
    if (restartClock) this.#clockStart = performance.now()
    const { softTimeout, killSignal } = this.request
    // What is not given stays; and without a time of the launch's own, the policy's has no grace.
    const soft = wallTime === undefined ? (this.#limits?.inForce.wallTime ?? null) : wallTime
    const changes = wallTime !== undefined || (restartClock && softTimeout !== undefined)
    if (changes && killSignal !== 'SIGKILL') this.#armSoftTimeout(soft ?? Infinity)
  }

  /** What it was launched on; undefined before it is. */
  get connection(): Connection | undefined {
    return this.#connection
  }

  // ---- launching --------------------------------------------------------------------------------------------------------

  /** Launches when all is there that it needs. It may be ended at any moment of that. */
  async #board(connection: Connection, prepared: Promise<unknown> | undefined): Promise<void> {
    connection.board(this)
    this.#boards = true
    try {
      await prepared
      await this.#files.open(this.request.late, () => this.#settled)
      if (!this.#settled) this.#launch(connection, this.#withDescriptors())
    } catch (error) {
      this.turnAway(asError(error))
    } finally {
      this.#boards = false
      if (this.#settled) this.#closeFiles()
      connection.leave(this)
    }
  }

  /** The message with what was opened, and with the numbers that file handles have now. */
  #withDescriptors(): LaunchMessage {
    const message = { ...this.request.message }
    for (const { targets, source } of this.request.late) {
      const fd = 'file' in source ? this.#files.number(source) : source.fd
      if (fd < 0) throw requestError('The launch passes a FileHandle', ['stdio', targets[0] ?? 0], 'It is closed')
      for (const target of targets) putDescriptor(message, target, fd)
      // A file handle is passed as any open descriptor.
      if (!this.request.message.checkFds) mustBeSafe(fd, targets[0] ?? 0)
    }
    return message
  }

  #launch(connection: Connection, message: LaunchMessage): void {
    const { context, checkHere, inputStream: input } = this.request
    // It may have died while files were opened.
    if (connection.lost !== undefined) throw connection.lost
    for (const fd of checkHere) mustBeSafe(fd, fd)
    if (input !== undefined) mustGiveInput(input)
    message.policy = context.native()
    const launched = connection.launch(message)
    if (launched.failure !== undefined) {
      this.#fail(fromFailure(launched.failure, placeOf(this.request, launched.failure)))
      return
    }
    this.#connection = connection
    this.#token = launched.token
    connection.listen(launched, this)
    this.#attach(launched)
    if (input !== undefined && this.stdin !== undefined) {
      feed(input, this.stdin, (error) => {
        this.#inputError ??= error
        this.kill(SIGKILL)
      })
    }
  }

  /** Takes a program that was started ahead, if there is one for this launch. */
  #takeOver(): boolean {
    const beganNs = nanoseconds()
    const taken = this.request.context.prewarmer?.take(this.request, this)
    if (taken === undefined) return false
    const { connection, launched, pid } = taken
    this.#connection = connection
    this.#token = launched.token
    this.#attach(launched)
    this.#handover = { beganNs, doneNs: nanoseconds() }
    this.#handingOver = true
    this.started(pid)
    return true
  }

  /** Makes streams of the descriptors that came back. */
  #attach({ stdin, stdout, stderr, comms, extra }: NativeLaunched): void {
    const { inputBytes, onOverflow, kind, buffer, limits, work, talks } = this.request
    if (stdin !== undefined) {
      this.stdin = inputStream(stdin)
      if (inputBytes !== undefined) this.stdin.end(inputBytes)
    }
    if (stdout !== undefined || stderr !== undefined) {
      const meter = new OutputMeter(limits.output, onOverflow, () => this.kill(SIGKILL))
      const keep = buffer ? (limits.output ?? Infinity) : undefined
      if (stdout !== undefined) this.stdout = new OutputStream(stdout, meter, keep)
      if (stderr !== undefined) this.stderr = new OutputStream(stderr, meter, keep)
      this.#meter = meter
      // What `run` keeps is in the result, and nobody can read the rest.
      if (kind === 'run') {
        this.stdout?.discard()
        this.stderr?.discard()
      }
    }
    if (comms !== undefined) {
      this.commsFd = comms
      this.comms = duplexStream(comms)
      handOver(this.comms, work, talks)
    }
    if (extra !== undefined) this.extra = extra.map(duplexStream)
  }

  // ---- what becomes of it -----------------------------------------------------------------------------------------------

  started(pid: number): void {
    if (this.#settled || this.pid !== 0) return
    this.pid = pid
    this.#closeFiles()
    this.#clockStart = performance.now()
    const { softTimeout } = this.request
    if (softTimeout !== undefined) this.#armSoftTimeout(softTimeout)
    this.#deliver()
  }

  asked(asked: NativeAsked): void {
    const { onSyscall } = this.request.context
    if (onSyscall !== undefined && !this.#settled) void this.#decide(onSyscall, asked)
  }

  async #decide(handler: SyscallHandler, { id, call }: NativeAsked): Promise<void> {
    const { file, args } = this.request
    const { answer, error } = await decide(handler, toCall(call), { file, args, pid: this.pid })
    if (error !== undefined) this.#handlerError ??= error
    // It may be over by now, and its server with it.
    if (!this.#settled) this.#connection?.server.answer(this.#token, id, answer)
  }

  ended(ended: NativeEnded): void {
    this.pid = ended.pid
    if (this.stdout === undefined && this.stderr === undefined) {
      this.#finish(ended)
      return
    }
    const streams = [this.stdout, this.stderr].filter((stream) => stream !== undefined)
    for (const stream of streams) stream.drain()
    void this.#finishDrained(ended, streams)
  }

  async #finishDrained(ended: NativeEnded, streams: readonly OutputStream[]): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    const patience = new Promise<void>((resolve) => {
      // Where the event loop was held up for that long, timers come before what could be read all the time.
      timer = setTimeout(() => setImmediate(() => setImmediate(resolve)), PATIENCE)
    })
    await Promise.race([Promise.all(streams.map((stream) => stream.ended)), patience])
    clearTimeout(timer)
    this.#finish(ended)
  }

  failed(failure: NativeFailure): void {
    this.#fail(this.#ownReason() ?? fromFailure(failure, placeOf(this.request, failure)))
  }

  lost(error: ForkServerError): void {
    this.#fail(this.#ownReason() ?? error)
  }

  /** Why it was killed before there was a result, if that was the host's doing. */
  #ownReason(): Error | undefined {
    if (this.#canceled) return this.#abortError(undefined)
    if (this.#handlerError !== undefined) return handlerFailure(this.#handlerError)
    return this.#inputError === undefined ? this.#limitsError : inputFailure(this.#inputError)
  }

  #finish(ended: NativeEnded): void {
    if (this.#settled) return
    const { request } = this
    const result = makeResult(request, ended, {
      queueMs: this.#queueMs,
      handover: this.#handover,
      canceled: this.#canceled,
      timedOut: this.#timedOut,
      sent: this.#sent,
      stdout: streamed(this.stdout),
      stderr: streamed(this.stderr),
      overflowed: this.#meter?.overflowed ?? false,
      limits: this.#limits?.inForce ?? request.limits,
    })
    this.learned = ended.learned
    if (result.status === 'violation') violationEvent(this, result.pid, result.violation)
    // It ran, however short: whoever spawned it gets to know it before its result.
    this.#deliver()
    if (this.#canceled) this.#fail(this.#abortError(result), result)
    else if (this.#inputError !== undefined) this.#fail(inputFailure(this.#inputError), result)
    else if (this.#handlerError !== undefined) this.#fail(handlerFailure(this.#handlerError), result)
    else if (this.#limitsError !== undefined) this.#fail(this.#limitsError, result)
    else if (request.reject && result.failed)
      this.#fail(processError(result, this.#limits?.inForce ?? request.limits), result)
    else {
      this.#settle(result, undefined)
      this.#resolve(result)
    }
  }

  /** Hands the sandboxee to whoever spawned it; unless it was aborted, for then there is nothing to be had. */
  #deliver(): void {
    if (this.#spawned === undefined || this.#canceled) return
    const { resolve } = this.#spawned
    this.#spawned = undefined
    resolve(new RunningSandboxee(this))
  }

  #fail(error: Error, result?: AnyResult): void {
    if (this.#settled) return
    this.#settle(result, error)
    this.#spawned?.reject(error)
    // Otherwise the one who spawned it has been told already.
    this.#reject(error)
  }

  #settle(result: AnyResult | undefined, error: Error | undefined): void {
    this.#settled = true
    this.request.signal?.removeEventListener('abort', this.#onAbort)
    for (const timer of this.#timers) clearTimeout(timer)
    clearTimeout(this.#softTimer)
    this.#limits?.end(error)
    this.#closeFiles()
    this.stdin?.destroy()
    // What was launched has a pipeline that does so.
    if (this.#connection === undefined && this.request.inputStream !== undefined) discardInput(this.request.inputStream)
    if (this.comms !== undefined) releaseDuplex(this.comms)
    for (const stream of this.extra) releaseDuplex(stream)
    if (result === undefined) {
      this.stdout?.destroy()
      this.stderr?.destroy()
    }
    exitEvent(this, result, error)
    this.#ledger.over(this, result, error)
  }

  // ---- ending it early --------------------------------------------------------------------------------------------------

  #abort(): void {
    if (this.#settled || this.#canceled) return
    this.#canceled = true
    // Not launched yet, and never will be.
    if (this.#connection === undefined) this.#fail(this.#abortError(undefined))
    else this.#terminate()
  }

  /** The caller's stream has failed, or is closed. */
  #inputGone(error: unknown): void {
    const { inputStream: input } = this.request
    // Once it is launched its pipeline sees to that.
    if (this.#settled || this.#connection !== undefined || input === undefined) return
    const problem = error === undefined ? inputProblem(input) : asError(error)
    if (problem !== undefined) this.turnAway(inputFailure(problem, false))
  }

  /** `killSignal`, and SIGKILL if that does not help. */
  #terminate(): void {
    const { killSignal, forceKillAfterDelay } = this.request
    this.kill(signalNumber(killSignal))
    if (killSignal !== 'SIGKILL') this.#after(forceKillAfterDelay, () => this.kill(SIGKILL))
  }

  /** Sends `killSignal` when the program has had so many milliseconds. */
  #armSoftTimeout(ms: number): void {
    clearTimeout(this.#softTimer)
    const left = Math.max(this.#clockStart + ms - performance.now(), 0)
    if (left > TIMER_MAX) return
    this.#softTimer = setTimeout(() => {
      this.#timedOut = true
      this.#terminate()
    }, left)
  }

  #after(ms: number, work: () => void): void {
    if (ms <= TIMER_MAX) this.#timers.push(setTimeout(work, ms))
  }

  #abortError(result: AnyResult | undefined): AbortError {
    if (result === undefined) return abortedBefore(this.request)
    const message = `The launch of ${this.request.file} was aborted, and all of its processes are dead.`
    return new AbortError(message, { cause: this.request.signal?.reason, result })
  }

  #closeFiles(): void {
    if (!this.#boards) this.#files.close()
  }
}

/** The error of a launch that was aborted before its program ran. */
export const abortedBefore = ({ file, signal }: LaunchRequest): AbortError =>
  new AbortError(`The launch of ${file} was aborted before the program ran.`, { cause: signal?.reason })

/** Which of the options the core objects to: it alone knows what of the policy's tree is a tmpfs. */
const placeOf = ({ message: { extras } }: LaunchRequest, { path }: NativeFailure): PropertyKey[] =>
  path !== undefined && extras?.files?.some((file) => file.path === path) === true ? ['files', path] : []

/** Of the clock that the core's times are of. */
const nanoseconds = (): number => Number(process.hrtime.bigint())

const streamed = (stream: OutputStream | undefined): Streamed | undefined =>
  stream === undefined ? undefined : { bytes: stream.bytes, kept: stream.collected() }

const putDescriptor = (message: LaunchMessage, target: number, fd: number): void => {
  if (target === 0) message.stdin = fd
  else if (target === 1) message.stdout = fd
  else if (target === 2) message.stderr = fd
  else {
    const extra = message.extras?.extraFds ?? []
    const at = extra.findIndex((number, index) => index % 2 === 0 && number === target)
    message.extras = { ...message.extras, extraFds: at === -1 ? [...extra, target, fd] : extra.with(at + 1, fd) }
  }
}

/** @throws `RequestError`, if the whole of a caller's stream can't be had from it */
export const mustGiveInput = (input: Readable): void => {
  const problem = inputProblem(input)
  if (problem !== undefined) throw inputFailure(problem, false)
}

const inputFailure = (cause: Error, launched = true): RequestError => {
  const issues = [{ path: ['input'], message: cause.message }]
  const outcome = launched ? 'the program was killed' : 'nothing was launched'
  const message = `The stream given as input failed, so ${outcome}: ${cause.message}`
  return new RequestError(message, issues, { cause, code: 'ERR_NESTBOX_INPUT' })
}
