// Launches as spans on a time line, in the JSON that ui.perfetto.dev and chrome://tracing open.
//
// A recorder stands before a launcher and notes when each launch was asked for and when its result was there; what happened
// between the two comes from the result's own account (`timings`). It changes nothing about the launches. Launches that
// overlap are put in lanes of their own, for spans of one lane must lie within each other.

import path from 'node:path'

import { ProcessError } from './errors.ts'
import type { Launcher, Sandboxee, Timings } from './launch/types.ts'

/** An entry of the JSON that {@link Trace.toJSON} gives: the "trace event format" of Chrome. */
export interface TraceEvent {
  readonly name: string
  /** `'X'`: a span. `'M'`: the name of a process or a lane. */
  readonly ph: 'X' | 'M'
  readonly cat?: string
  /** The host's process id. */
  readonly pid: number
  /** The lane. Launches that ran at the same time are in different ones. */
  readonly tid: number
  /** When it begins, in microseconds of `performance.now()`. */
  readonly ts?: number
  /** How long it lasts, in microseconds. */
  readonly dur?: number
  readonly args?: Readonly<Record<string, unknown>>
}

/** A recorder of launches. Keeps every one until {@link Trace.clear}: it is for looking at some, not for leaving it on. */
export interface Trace {
  /** Launches recorded, and not cleared. */
  readonly size: number
  /**
   * A launcher that does what `launcher` does (a sandbox, `server.unsandboxed`, ...) and has each launch recorded when it is
   * over.
   */
  record(launcher: Launcher): Launcher
  /** Forgets what was recorded. */
  clear(): void
  /** What to write into a file: `JSON.stringify(trace)` calls it. */
  toJSON(): { readonly traceEvents: readonly TraceEvent[]; readonly displayTimeUnit: 'ms' }
}

/** A launch that is over. Milliseconds of `performance.now()`. */
interface Recorded {
  readonly name: string
  readonly asked: number
  /** When the call that asked for it came back, without the result. */
  readonly called: number
  readonly known: number
  readonly timings: Timings | undefined
  readonly args: Readonly<Record<string, unknown>>
}

/** What is looked at in a result. */
interface Outcome {
  readonly status: string
  readonly command: string
  readonly pid: number
  readonly exitCode?: number
  readonly signal?: string
  readonly limit?: string
  readonly timings: Timings
  readonly resourceUsage: { readonly userCpuMs: number; readonly systemCpuMs: number; readonly peakMemoryBytes: number }
}

class Recorder implements Trace {
  #launches: Recorded[] = []

  get size(): number {
    return this.#launches.length
  }

  record(launcher: Launcher): Launcher {
    const run = async (file: string, args?: readonly string[], options?: object): Promise<unknown> => {
      const asked = performance.now()
      const running = launcher.run(file, args, options)
      const called = performance.now()
      try {
        const result = await running
        this.#add(file, asked, called, result)
        return result
      } catch (error) {
        this.#add(file, asked, called, error)
        throw error
      }
    }
    const spawn = async (file: string, args?: readonly string[], options?: object): Promise<unknown> => {
      const asked = performance.now()
      const spawning = launcher.spawn(file, args, options)
      const called = performance.now()
      let sandboxee: Sandboxee
      try {
        sandboxee = await spawning
      } catch (error) {
        this.#add(file, asked, called, error)
        throw error
      }
      const add = (outcome: unknown): void => this.#add(file, asked, called, outcome)
      void sandboxee.result.then(add, add)
      return sandboxee
    }
    // What comes back depends on options that only the launcher understands; it is passed on as it is.
    return { run: run as Launcher['run'], spawn: spawn as Launcher['spawn'] }
  }

  clear(): void {
    this.#launches = []
  }

  toJSON(): { traceEvents: TraceEvent[]; displayTimeUnit: 'ms' } {
    const lanes: number[] = []
    const events: TraceEvent[] = []
    for (const launch of this.#launches.toSorted((a, b) => a.asked - b.asked)) {
      let lane = lanes.findIndex((free) => free <= launch.asked)
      if (lane === -1) lane = lanes.length
      lanes[lane] = launch.known
      events.push(...spans(launch, lane + 1))
    }
    const names = lanes.map((_, lane) => named('thread_name', lane + 1, `launches, lane ${lane + 1}`))
    return { traceEvents: [named('process_name', 0, 'nestbox'), ...names, ...events], displayTimeUnit: 'ms' }
  }

  /** `outcome` is a result, or what the launch was rejected with. */
  #add(file: string, asked: number, called: number, outcome: unknown): void {
    const known = performance.now()
    const result = (outcome instanceof ProcessError ? outcome.result : outcome) as Partial<Outcome> | undefined
    const name = path.posix.basename(file)
    if (result?.timings === undefined) {
      const { code, message } = outcome as NodeJS.ErrnoException
      this.#launches.push({ name, asked, called, known, timings: undefined, args: { file, code, message } })
      return
    }
    const { command, pid, status, exitCode, signal, limit, resourceUsage, timings } = result as Outcome
    const { userCpuMs, systemCpuMs, peakMemoryBytes } = resourceUsage
    const args = { command, pid, status, exitCode, signal, limit, warm: timings.warm, prewarmed: timings.prewarmed }
    const used = { userCpuMs, systemCpuMs, peakMemoryBytes }
    this.#launches.push({ name, asked, called, known, timings, args: { ...args, ...used } })
  }
}

/** Names a process or a lane. */
const named = (name: string, tid: number, value: string): TraceEvent => ({
  name,
  ph: 'M',
  pid: process.pid,
  tid,
  args: { name: value },
})

/** One launch: the whole, and in it what the core tells of it. */
const spans = ({ name, asked, called, known, timings, args }: Recorded, tid: number): TraceEvent[] => {
  const events: TraceEvent[] = []
  const span = (title: string, cat: string, from: number, ms: number, more?: TraceEvent['args']): void => {
    const event: TraceEvent = { name: title, ph: 'X', cat, pid: process.pid, tid, ts: from * 1000, dur: ms * 1000 }
    events.push(more === undefined ? event : { ...event, args: more })
  }
  span(name, 'launch', asked, known - asked, args)
  if (timings === undefined) return events
  const { queueMs, setupMs, execMs, steps } = timings
  // The core tells how long each part took, and not when it began. The host had the launch before and after: before no longer
  // than the call took, after the rest.
  const slack = Math.max(known - asked - queueMs - setupMs - execMs, 0)
  let at = asked + Math.min(slack, called - asked)
  const stage = (title: string, ms: number): void => {
    const length = Math.min(ms, known - at)
    span(title, 'stage', at, length)
    at += length
  }
  stage('queue', queueMs)
  const begin = at
  stage('set-up', setupMs)
  let step = begin
  for (const { step: title, ms } of steps) {
    // The clocks are one, but what each rounds to is not.
    const length = Math.min(ms, at - step)
    if (length > 0) span(title, 'step', step, length)
    step += length
  }
  stage('program', execMs)
  return events
}

/**
 * Starts to record launches, to look at them instead of reading numbers.
 *
 * @example
 * ```ts
 * const recorder = trace()
 * const traced = recorder.record(sandbox)
 * await Promise.all([traced.run('true'), traced.run('date')])
 * await writeFile('launches.json', JSON.stringify(recorder)) // open it in https://ui.perfetto.dev
 * ```
 */
export const trace = (): Trace => new Recorder()
