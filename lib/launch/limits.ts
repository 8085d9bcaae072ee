// The limits of a running launch: what is in force, what the host may change, and the changes that init has not confirmed yet.

import type { NativeLimits } from '#binding'

import { describeIssues, type Issue, NestboxError, RequestError } from '../errors.ts'
import { LimitsSchema } from '../policy/schema.ts'
import type { LimitName, LimitsJSON } from '../policy/types.ts'
import { check } from '../validate.ts'
import { type LaunchRequest, NEEDS_SANDBOX } from './request.ts'

type MutableLimits = { -readonly [K in LimitName]: LimitsJSON[K] }

/** Those of the whole nest, which may be raised again: init and the host keep account of them. */
const RAISABLE: ReadonlySet<LimitName> = new Set(['wallTime', 'cpuTime', 'output'])

/** A change that is known to be right. */
export interface LimitChange {
  /** The limits that change; null: none any more. */
  readonly limits: Partial<LimitsJSON>
  /** The time that the program has begins anew. */
  readonly restartClock: boolean
}

interface Waiting {
  readonly change: LimitChange
  resolve(): void
  reject(error: Error): void
}

/** The limits of one launch while it runs. */
export class RunningLimits {
  readonly #request: LaunchRequest
  readonly #current: MutableLimits
  #inForce: LimitsJSON
  readonly #waiting: Waiting[] = []

  constructor(request: LaunchRequest) {
    this.#request = request
    this.#inForce = request.limits
    this.#current = { ...request.limits }
  }

  /** What is in force: the launch's, and each change that was confirmed. */
  get inForce(): LimitsJSON {
    return this.#inForce
  }

  /**
   * Checks a change.
   *
   * @throws `RequestError`
   */
  check(input: unknown, restartClock: boolean): LimitChange {
    const checked = check(LimitsSchema, input)
    if (!checked.ok) throw invalid(checked.error.issues)
    const limits: Partial<MutableLimits> = {}
    const issues: Issue[] = []
    for (const name of Object.keys(checked.value) as LimitName[]) {
      const value = checked.value[name]
      if (value === undefined) continue
      const message = this.#objection(name, value)
      if (message !== undefined) issues.push({ path: [name], message })
      else limits[name] = value === Infinity ? null : value
    }
    if (issues.length > 0) throw invalid(issues)
    return { limits, restartClock }
  }

  #objection(name: LimitName, value: number): string | undefined {
    const { context } = this.#request
    const current = this.#current[name] ?? Infinity
    if (name === 'disk') {
      if (!context.isolated) return NEEDS_SANDBOX
      return value === current ? undefined : 'The size of a tmpfs is set when the nest is made, and stays'
    }
    if (!RAISABLE.has(name)) {
      if (value <= current) return undefined
      return `It can only be tightened while the program runs: ${value} is above ${current}`
    }
    const ceiling = context.isolated ? (context.limits[name] ?? Infinity) : Infinity
    return value <= ceiling ? undefined : `It can't be raised above the policy's: ${value} is above ${ceiling}`
  }

  /** What init is asked for; undefined if it has nothing to do with the change. */
  native({ limits, restartClock }: LimitChange): NativeLimits | undefined {
    const message: NativeLimits = {}
    for (const name of Object.keys(limits) as LimitName[]) {
      const value = limits[name] ?? Infinity
      // What lifts a limit that was none before is nothing to do.
      if (name === 'output' || name === 'disk' || (value === Infinity && !RAISABLE.has(name))) continue
      message[name] = name === 'wallTime' ? this.#hardWallTime(value) : value
    }
    return restartClock || Object.keys(message).length > 0 ? message : undefined
  }

  /** With a `killSignal`, the clock of the host sends it, and init's ends the grace; at the policy's limit at the latest. */
  #hardWallTime(value: number): number {
    const { killSignal, forceKillAfterDelay, context } = this.#request
    if (killSignal === 'SIGKILL') return value
    return Math.min(value + forceKillAfterDelay, context.limits.wallTime ?? Infinity)
  }

  /** Waits for init's answer to a change that it was asked for; answers come in order. */
  wait(change: LimitChange): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ change, resolve, reject })
    })
  }

  /** Init has answered. The change that holds now, if it does. */
  answered(error: Error | undefined): LimitChange | undefined {
    const waiting = this.#waiting.shift()
    if (waiting === undefined) return undefined
    if (error === undefined) {
      this.confirm(waiting.change)
      waiting.resolve()
      return waiting.change
    }
    waiting.reject(error)
    return undefined
  }

  /** A change holds. */
  confirm({ limits }: LimitChange): void {
    const put = <K extends LimitName>(name: K, value: LimitsJSON[K] | undefined): void => {
      if (value === undefined) return
      const current = this.#current[name]
      // Of two changes at the same time the tighter one holds, whichever was the later.
      const tighter = RAISABLE.has(name) || current === null || (value !== null && value < current)
      if (tighter) this.#current[name] = value
    }
    for (const name of Object.keys(limits) as LimitName[]) put(name, limits[name])
    this.#inForce = Object.freeze({ ...this.#current })
  }

  /** The launch is over: nothing is answered any more. */
  end(cause: Error | undefined): void {
    for (const { reject } of this.#waiting.splice(0)) reject(over(cause))
  }
}

/** The error of a change that comes too late. */
export const over = (cause?: Error): NestboxError =>
  new NestboxError('ERR_NESTBOX_ENDED', 'The launch is over, so its limits can no longer be changed.', { cause })

const invalid = (issues: readonly Issue[]): RequestError =>
  new RequestError(describeIssues("setLimits() was asked for something that can't be", issues), issues)
