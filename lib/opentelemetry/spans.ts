// A span for each launch, and below it where the time went.
//
// The account comes with the result: so the inner spans are made when it is over, with their times given. Our times are of a
// monotonic clock and the span's of the wall; the launch's end is where the two are put together.

import path from 'node:path'
import type * as Api from '@opentelemetry/api'

import type { ExitEvent, LaunchEvent } from '../diagnostics.ts'
import type { Result } from '../launch/types.ts'

/** What is recorded of a result, in the words of OpenTelemetry where it has some. */
const resultAttributes = (result: Result): Api.Attributes => ({
  'process.pid': result.pid,
  'nestbox.status': result.status,
  'nestbox.warm': result.timings.warm,
  'nestbox.prewarmed': result.timings.prewarmed,
  'nestbox.output.bytes': result.stdoutBytes + result.stderrBytes,
  'nestbox.memory.peak': result.resourceUsage.peakMemoryBytes,
  'nestbox.cpu.time': (result.resourceUsage.userCpuMs + result.resourceUsage.systemCpuMs) / 1000,
  ...(result.status === 'exited' ? { 'process.exit.code': result.exitCode } : undefined),
  ...(result.status === 'limit-exceeded' ? { 'nestbox.limit': result.limit } : undefined),
  ...('signal' in result && result.signal !== undefined ? { 'nestbox.signal': result.signal } : undefined),
})

/** Makes spans of events. */
export class Spans {
  readonly #api: typeof Api
  readonly #tracer: Api.Tracer
  readonly #withArgs: boolean
  readonly #open = new Map<LaunchEvent, { span: Api.Span; context: Api.Context }>()

  constructor(api: typeof Api, withArgs: boolean) {
    this.#api = api
    this.#tracer = api.trace.getTracer('nestbox')
    this.#withArgs = withArgs
  }

  launched(launch: LaunchEvent): void {
    const { context, trace } = this.#api
    const parent = context.active()
    const attributes: Api.Attributes = {
      'process.executable.name': path.basename(launch.file),
      'process.executable.path': launch.file,
      'nestbox.isolated': launch.isolated,
      ...(this.#withArgs ? { 'process.command_args': [launch.file, ...launch.args] } : undefined),
    }
    const span = this.#tracer.startSpan(`nestbox.${launch.method}`, { attributes }, parent)
    this.#open.set(launch, { span, context: trace.setSpan(parent, span) })
  }

  exited({ launch, result, error }: ExitEvent): void {
    const open = this.#open.get(launch)
    // It began before anybody watched.
    if (open === undefined) return
    this.#open.delete(launch)
    const end = Date.now()
    const { span, context } = open
    const ERROR = this.#api.SpanStatusCode.ERROR
    if (result !== undefined) {
      span.setAttributes(resultAttributes(result))
      if (result.failed) span.setStatus({ code: ERROR, message: result.status })
      if (span.isRecording()) this.#account(result, end, context)
    }
    if (error !== undefined) {
      const type = 'code' in error && typeof error.code === 'string' ? error.code : error.name
      span.setAttribute('error.type', type)
      span.recordException(error, end)
      span.setStatus({ code: ERROR, message: type })
    }
    span.end(end)
  }

  stopped(): void {
    for (const { span } of this.#open.values()) span.end()
    this.#open.clear()
  }

  /** The spans below: queue, set-up, run. */
  #account({ timings, durationMs }: Result, end: number, context: Api.Context): void {
    const { queueMs, setupMs, execMs, steps } = timings
    const left = end - durationMs
    const exec = left + setupMs
    if (queueMs > 0) this.#span('nestbox.queue', left - queueMs, left, context)
    const setup = this.#tracer.startSpan('nestbox.setup', { startTime: left }, context)
    let at = left
    for (const { step, ms } of steps) {
      at += ms
      if (at <= exec) setup.addEvent(step, {}, at)
    }
    setup.end(exec)
    this.#span('nestbox.exec', exec, exec + execMs, context)
  }

  #span(name: string, startTime: number, endTime: number, context: Api.Context): void {
    this.#tracer.startSpan(name, { startTime }, context).end(endTime)
  }
}
