// The handle of a running program.

import type { Duplex, Readable, Writable } from 'node:stream'

import { describeIssues, RequestError, requestError } from '../errors.ts'
import { signalNumber } from '../signals.ts'
import { check, demand } from '../validate.ts'
import type { Limits } from '../policy/types.ts'
import type { Flight } from './flight.ts'
import { LineSplitter, MAX_LINE } from './lines.ts'
import { LinesOptionsSchema, SignalNameSchema } from './schema.ts'
import type { LinesOptions, Sandboxee } from './types.ts'

const flights = new WeakMap<object, Flight>()

/** The launch behind a sandboxee of ours; undefined for a stub. */
export const flightOf = (sandboxee: object): Flight | undefined => flights.get(sandboxee)

/** A running program. Its type says which streams there are; here there may be any. */
export class RunningSandboxee implements Sandboxee<never> {
  readonly pid: number
  readonly stdin: never
  readonly stdout: never
  readonly stderr: never
  readonly comms: never
  readonly stdio: readonly (Readable | Writable | Duplex | undefined)[]
  readonly result: Promise<never>
  readonly #flight: Flight
  readonly #splitters = new Map<Readable, LineSplitter>()

  constructor(flight: Flight) {
    this.#flight = flight
    this.pid = flight.pid
    const { stdin, stdout, stderr, comms, result, request } = flight
    // A stdin that is fed from `input` is nobody else's.
    const input = request.inputStream === undefined && request.inputBytes === undefined ? stdin : undefined
    this.stdin = input as never
    this.stdout = stdout as never
    this.stderr = stderr as never
    // Nor is a channel that only its work went over.
    this.comms = (request.talks ? comms : undefined) as never
    this.result = result as Promise<never>
    const stdio: (Readable | Writable | Duplex | undefined)[] = [input, stdout, stderr]
    for (const [index, number] of request.extraStreams.entries()) stdio[number] = flight.extra[index]
    // No holes: a reader of the array sees `undefined` for what is closed.
    this.stdio = Object.freeze(Array.from(stdio))
    flights.set(this, flight)
  }

  kill(signal: NodeJS.Signals = 'SIGKILL'): boolean {
    const name = demand(SignalNameSchema, signal, "kill() was asked for something that can't be")
    return this.#flight.kill(signalNumber(name))
  }

  async setLimits(limits: Limits): Promise<void> {
    await this.#flight.setLimits(limits)
  }

  lines(options: LinesOptions = {}): AsyncIterable<string> {
    const what = "lines() was asked for something that can't be"
    const checked = check(LinesOptionsSchema, options)
    if (!checked.ok) throw new RequestError(describeIssues(what, checked.error.issues), checked.error.issues)
    const { from = 'stdout', maxLength = MAX_LINE } = checked.value
    const stream = this.#flight[from]
    if (stream === undefined) throw requestError(what, ['from'], `The sandboxee's ${from} is no stream of the host`)
    let splitter = this.#splitters.get(stream)
    if (splitter === undefined) {
      splitter = new LineSplitter(stream)
      this.#splitters.set(stream, splitter)
    }
    return splitter.lines(maxLength)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#flight.kill(signalNumber('SIGKILL'))
    try {
      await this.#flight.result
    } catch {
      // It is over, which is all that disposal is about.
    }
    this.#flight.stdout?.destroy()
    this.#flight.stderr?.destroy()
    this.#flight.comms?.destroy()
    for (const stream of this.#flight.extra) stream.destroy()
  }
}
