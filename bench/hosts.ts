// The benchmark's side of a host: starts the process, asks it, and takes it away. See ./host.mjs for why it is a process.

import { type ChildProcess, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

import type { Programs } from './programs.ts'
import { strangersTo } from './scenarios/processes.ts'

/** What a host says of one launch. */
export interface Sample {
  readonly us: number
  readonly syncUs?: number
  readonly busyUs?: number
  readonly preempted?: number
  readonly strangers?: number
  readonly collected?: number
}

/** One mode's turn. */
export interface Turn {
  readonly launches: number
  /** Milliseconds before each launch in which nothing happens; 0: back to back. */
  readonly pause: number
  /** What a sweep varies. */
  readonly size?: number | undefined
  /** Watch the event loop as well. */
  readonly watch?: boolean | undefined
}

/** What a host says of where the time of one launch went. */
export interface StepSample {
  readonly totalMs: number
  readonly timings: {
    readonly queueMs: number
    readonly setupMs: number
    readonly execMs: number
    readonly steps: readonly { readonly step: string; readonly ms: number }[]
  }
}

const HOST = fileURLToPath(new URL('host.mjs', import.meta.url))

type Answer = { readonly value: unknown } | { readonly error: string }

/** A host for one mode. It answers one question at a time. */
export class Host {
  readonly #child: ChildProcess
  #waiting: { resolve: (value: unknown) => void; reject: (error: Error) => void } | undefined
  #gone = false

  private constructor(command: readonly string[]) {
    const [file, args] =
      command[0] === undefined
        ? [process.execPath, [HOST]]
        : [command[0], [...command.slice(1), process.execPath, HOST]]
    // Not the loader that the benchmark itself runs under.
    const { NODE_OPTIONS: _, ...env } = process.env
    this.#child = spawn(file, args, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'], env })
    this.#child.on('message', (answer: Answer) => {
      if ('error' in answer) this.#settle((waiting) => waiting.reject(new Error(answer.error)))
      else this.#settle((waiting) => waiting.resolve(answer.value))
    })
    const gone = (why: string): void => {
      this.#gone = true
      this.#settle((waiting) => waiting.reject(new Error(`the host is gone: ${why}`)))
    }
    this.#child.on('error', (error) => gone(error.message))
    this.#child.on('exit', (code, signal) => gone(signal ?? `exit code ${code}`))
  }

  /**
   * A host with a mode that is ready to launch.
   *
   * @param command - what the host is started by; it must `exec` its arguments
   */
  static async open(mode: string, programs: Programs, command: readonly string[] = []): Promise<Host> {
    const host = new Host(command)
    try {
      const { remove: _, ...paths } = programs
      await host.#ask('open', { name: mode, programs: paths })
      return host
    } catch (error) {
      await host.close()
      throw error
    }
  }

  /** Launches one after the other, each after a pause: see {@link Turn}. */
  turn(turn: Turn): Promise<Sample[]> {
    return this.#ask('turn', turn)
  }

  /** Launches for so many milliseconds, each after a pause, which nobody measures. */
  async warmUp(ms: number, pause: number, size?: number): Promise<void> {
    await this.#ask('warmUp', { ms, pause, size })
  }

  /** Has launches that are watched say whether any stranger ran ({@link strangersTo}), after so many milliseconds of them. */
  async watch(ms: number): Promise<void> {
    await this.#ask('watch', { paths: strangersTo(this.#child.pid ?? 0), ms })
  }

  flood(launches: number, inFlight: number): Promise<number> {
    return this.#ask('flood', { launches, inFlight })
  }

  steps(launches: number, pause: number): Promise<StepSample[]> {
    return this.#ask('steps', { launches, pause })
  }

  trace(launches: number, inFlight: number, pause: number): Promise<object[]> {
    return this.#ask('trace', { launches, inFlight, pause })
  }

  crowd(count: number): Promise<void> {
    return this.#ask('crowd', { count })
  }

  grow(bytes: number): Promise<number> {
    return this.#ask('grow', { bytes })
  }

  server(): Promise<number> {
    return this.#ask('server', {})
  }

  /** Ends the host. Never fails. */
  async close(): Promise<void> {
    if (this.#gone) return
    const exited = new Promise<void>((resolve) => {
      this.#child.once('exit', () => resolve())
    })
    try {
      await this.#ask('close', {})
    } catch {
      // It is taken away all the same.
    }
    if (this.#gone) return
    this.#child.disconnect()
    await exited
  }

  #ask<T>(call: string, parameters: object): Promise<T> {
    return new Promise((resolve, reject) => {
      if (this.#gone) {
        reject(new Error('the host is gone'))
        return
      }
      this.#waiting = { resolve: resolve as (value: unknown) => void, reject }
      this.#child.send({ call, parameters })
    })
  }

  #settle(settle: (waiting: { resolve: (value: unknown) => void; reject: (error: Error) => void }) => void): void {
    const waiting = this.#waiting
    this.#waiting = undefined
    if (waiting !== undefined) settle(waiting)
  }
}
