// Launches as spans and metrics of OpenTelemetry.
//
// A subscriber of the package's diagnostics channels, and no more: what is not instrumented pays nothing. The user's own copy
// of `@opentelemetry/api` is loaded by the first call, so that the package can be installed and used without it; where that
// has no SDK behind it, its calls do nothing.

import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type * as Api from '@opentelemetry/api'
import * as z from 'zod'

import type { ExitEvent, LaunchEvent } from '../diagnostics.ts'
import { NestboxError } from '../errors.ts'
import { demand, type Tied } from '../validate.ts'
import { Metrics } from './metrics.ts'
import { Spans } from './spans.ts'

/** What {@link instrument} takes. */
export interface InstrumentOptions {
  /**
   * A span for each launch, below the active one, with spans for its queueing, its set-up and its run.
   *
   * @defaultValue `true`
   */
  traces?: boolean | undefined
  /** @defaultValue `true` */
  metrics?: boolean | undefined
  /**
   * Put the arguments of programs into spans. They may hold secrets.
   *
   * @defaultValue `false`
   */
  args?: boolean | undefined
}

/** Launches are being watched, until this is stopped. */
export interface Instrumentation extends Disposable {
  /** Watches no more. Spans of launches in flight end here. Idempotent. */
  stop(): void
}

const OptionsSchema = z.strictObject({
  traces: z.boolean().optional(),
  metrics: z.boolean().optional(),
  args: z.boolean().optional(),
})

/** The schema says what the hand-written type says; a difference is a compile error here. */
export const tied: Tied<z.input<typeof OptionsSchema>, InstrumentOptions> = true

const loadApi = async (): Promise<typeof Api> => {
  try {
    return await import('@opentelemetry/api')
  } catch (cause) {
    throw new NestboxError(
      'ERR_NESTBOX_OPENTELEMETRY',
      'nestbox/opentelemetry needs the package @opentelemetry/api, which could not be loaded: ' +
        'install it, and an SDK of OpenTelemetry, with your application.',
      { cause },
    )
  }
}

/**
 * Records every launch of this process with OpenTelemetry, until it is stopped. To be called once, after the SDK is set up:
 * each call records for itself.
 *
 * @throws `RequestError`; `NestboxError` with the code `ERR_NESTBOX_OPENTELEMETRY` if `@opentelemetry/api` is missing
 */
export const instrument = async (options: InstrumentOptions = {}): Promise<Instrumentation> => {
  const {
    traces = true,
    metrics = true,
    args = false,
  } = demand(OptionsSchema, options, "instrument() was asked for something that can't be")
  const api = await loadApi()
  const watchers = [...(traces ? [new Spans(api, args)] : []), ...(metrics ? [new Metrics(api)] : [])]
  const onLaunch = (event: unknown): void => {
    for (const watcher of watchers) watcher.launched(event as LaunchEvent)
  }
  const onExit = (event: unknown): void => {
    for (const watcher of watchers) watcher.exited(event as ExitEvent)
  }
  subscribe('nestbox:launch', onLaunch)
  subscribe('nestbox:exit', onExit)
  const stop = (): void => {
    unsubscribe('nestbox:launch', onLaunch)
    unsubscribe('nestbox:exit', onExit)
    for (const watcher of watchers) watcher.stopped()
  }
  return { stop, [Symbol.dispose]: stop }
}
