// `run` and `spawn`: what all launchers do, whoever decides when a launch may start.

import { launchEvent } from './diagnostics.ts'
import { asError } from './errors.ts'
import type { LaunchContext } from './launch/context.ts'
import { abortedBefore, Flight, type Ledger, mustGiveInput } from './launch/flight.ts'
import { type Kind, makeRequest } from './launch/request.ts'
import type { AnyResult } from './launch/result.ts'
import type { RunningSandboxee } from './launch/sandboxee.ts'
import { discardInputOf } from './launch/streams.ts'
import type { Launcher } from './launch/types.ts'

/** Lets launches start. */
export interface Gate extends Ledger {
  /** Starts a launch now or later, or turns it away. Never throws. */
  admit(flight: Flight): void
}

/** A call that makes no launch. */
const refused = (error: unknown, options: unknown): Promise<never> => {
  discardInputOf(options)
  return Promise.reject(asError(error))
}

/** A launcher over a context and a gate. Its functions can be used by themselves. */
export const makeLauncher = (context: () => LaunchContext, gate: Gate): Launcher => {
  const prepare = (kind: Kind, file: unknown, args: unknown, options: unknown): Flight => {
    const request = makeRequest(context(), kind, file, args, options)
    // Not even queued: an aborted signal does not fire again.
    if (request.signal?.aborted === true) throw abortedBefore(request)
    if (request.inputStream !== undefined) mustGiveInput(request.inputStream)
    const flight = new Flight(request, gate)
    launchEvent(flight)
    return flight
  }

  // Not async functions: what they await would cost two more promises on the way of every launch.
  const run = (file: unknown, args?: unknown, options?: unknown): Promise<AnyResult> => {
    try {
      const flight = prepare('run', file, args, options)
      gate.admit(flight)
      return flight.result
    } catch (error) {
      return refused(error, options)
    }
  }
  const spawn = (file: unknown, args?: unknown, options?: unknown): Promise<RunningSandboxee> => {
    try {
      const flight = prepare('spawn', file, args, options)
      const spawned = flight.spawned()
      gate.admit(flight)
      return spawned
    } catch (error) {
      return refused(error, options)
    }
  }
  // The types are determined by the options, which only the caller's compiler knows.
  return Object.freeze({ run, spawn }) as Launcher
}
