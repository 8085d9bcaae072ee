// What the package tells those who watch it: `node:diagnostics_channel` for programs, `NODE_DEBUG=nestbox` for people.
//
// Nothing is made for nobody: without a subscriber an event costs one property read, and a line that is not printed is not
// put together. The channels are public (docs/guides/observability.md), their messages typed here. A line of the debug log never
// has an argument, a variable of the environment, or content in it: logs are kept longer and read by more people than the
// launch was meant for.

import { channel } from 'node:diagnostics_channel'
import { debuglog } from 'node:util'

import type { LaunchRequest } from './launch/request.ts'
import type { AnyResult } from './launch/result.ts'
import type { Result } from './launch/types.ts'
import type { Violation } from './supervision/types.ts'

/**
 * What is published on the channel `nestbox:launch` of `node:diagnostics_channel`: a launch was asked for and found right.
 * Published by the call of `run` or `spawn` itself, so an `AsyncLocalStorage` is the caller's. The same object comes with
 * the end.
 */
export interface LaunchEvent {
  /** Tells it from others of this thread. */
  readonly id: number
  readonly method: 'run' | 'spawn'
  /** False: it was launched through `unsandboxed`. */
  readonly isolated: boolean
  readonly file: string
  /** As they were given. They may hold secrets. */
  readonly args: readonly string[]
}

/** What is published on the channel `nestbox:exit`: a launch is over, and nothing of it runs any more. */
export interface ExitEvent {
  /** The object that was published on `nestbox:launch`, or would have been. */
  readonly launch: LaunchEvent
  /** How the program ended. Absent if there was no program to end. */
  readonly result?: Result
  /** What the launch rejected with, if it did. */
  readonly error?: Error
}

/** What is published on the channel `nestbox:violation`: a filter ended a launch, and nothing of it runs any more. */
export interface ViolationEvent {
  /** The object that was published on `nestbox:launch`, or would have been. */
  readonly launch: LaunchEvent
  readonly file: string
  readonly args: readonly string[]
  /** The program's process id, as the host saw it. */
  readonly pid: number
  /** Absent with the action `'kill'`. */
  readonly violation?: Violation
}

const launches = channel('nestbox:launch')
const violations = channel('nestbox:violation')
const exits = channel('nestbox:exit')

let lastId = 0

/** One launch. What it was asked for may be another's as well. */
interface Launched {
  readonly request: LaunchRequest
}

const known = new WeakMap<Launched, LaunchEvent>()

/** The event of a launch, the same one each time. */
const eventOf = (launched: Launched): LaunchEvent => {
  const made = known.get(launched)
  if (made !== undefined) return made
  lastId += 1
  const { kind, context, file, args } = launched.request
  const event: LaunchEvent = Object.freeze({ id: lastId, method: kind, isolated: context.isolated, file, args })
  known.set(launched, event)
  return event
}

/** A launch was asked for. Called before anything is done about it. */
export const launchEvent = (launched: Launched): void => {
  if (launches.hasSubscribers) launches.publish(eventOf(launched))
}

/** A launch is over. Called once for every one that {@link launchEvent} was called for, before its promises settle. */
export const exitEvent = (launched: Launched, result: AnyResult | undefined, error: Error | undefined): void => {
  if (!exits.hasSubscribers) return
  const event: ExitEvent = {
    launch: eventOf(launched),
    ...(result === undefined ? undefined : { result }),
    ...(error === undefined ? undefined : { error }),
  }
  exits.publish(event)
}

/** A filter ended a launch. Called before {@link exitEvent}. */
export const violationEvent = (launched: Launched, pid: number, violation: Violation | undefined): void => {
  if (!violations.hasSubscribers) return
  const { file, args } = launched.request
  const event: ViolationEvent = {
    launch: eventOf(launched),
    file,
    args,
    pid,
    ...(violation === undefined ? undefined : { violation }),
  }
  violations.publish(event)
}

const log = debuglog('nestbox')

/** Whether anybody reads what {@link debug} prints. */
export const isDebugging = (): boolean => log.enabled

/** Prints a line for `NODE_DEBUG=nestbox`, which is put together only if it is wanted. */
export const debug = (line: () => string): void => {
  if (log.enabled) log('%s', line())
}
