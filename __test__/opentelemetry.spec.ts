// Spans and metrics, through the real `@opentelemetry/api`, whose providers here note what they are told.

import { AsyncLocalStorage } from 'node:async_hooks'
import { execFile } from 'node:child_process'
import { cpSync, mkdirSync, symlinkSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import * as api from '@opentelemetry/api'
import test, { type ExecutionContext } from 'ava'

import { policy, RequestError, run, Sandbox } from '../index.ts'
import { instrument } from '../lib/opentelemetry/index.ts'
import { scratch } from './helpers.ts'

const { trace } = api

/** A span that notes what happens to it. */
class Noted implements api.Span {
  readonly name: string
  readonly parent: api.Span | undefined
  readonly start: number
  attributes: api.Attributes
  events: { name: string; time: number }[] = []
  status: api.SpanStatus | undefined
  exceptions: unknown[] = []
  end_: number | undefined

  constructor(name: string, options: api.SpanOptions, context: api.Context) {
    this.name = name
    this.parent = trace.getSpan(context)
    this.start = (options.startTime as number | undefined) ?? Date.now()
    this.attributes = { ...options.attributes }
  }
  spanContext(): api.SpanContext {
    return { traceId: '1'.repeat(32), spanId: '2'.repeat(16), traceFlags: 1 }
  }
  setAttribute(key: string, value: api.AttributeValue): this {
    this.attributes[key] = value
    return this
  }
  setAttributes(attributes: api.Attributes): this {
    Object.assign(this.attributes, attributes)
    return this
  }
  addEvent(name: string, _attributes?: unknown, time?: unknown): this {
    this.events.push({ name, time: time as number })
    return this
  }
  addLink(): this {
    return this
  }
  addLinks(): this {
    return this
  }
  setStatus(status: api.SpanStatus): this {
    this.status = status
    return this
  }
  updateName(): this {
    return this
  }
  end(time?: api.TimeInput): void {
    this.end_ = (time as number | undefined) ?? Date.now()
  }
  isRecording(): boolean {
    return true
  }
  recordException(exception: unknown): void {
    this.exceptions.push(exception)
  }
}

const spans: Noted[] = []
const points: { name: string; value: number; attributes: api.Attributes }[] = []

class Contexts implements api.ContextManager {
  readonly #storage = new AsyncLocalStorage<api.Context>()
  active(): api.Context {
    return this.#storage.getStore() ?? api.ROOT_CONTEXT
  }
  with<A extends unknown[], F extends (...args: A) => ReturnType<F>>(
    context: api.Context,
    work: F,
    _this?: ThisParameterType<F>,
    ...args: A
  ): ReturnType<F> {
    return this.#storage.run(context, work, ...args)
  }
  bind<T>(_context: api.Context, target: T): T {
    return target
  }
  enable(): this {
    return this
  }
  disable(): this {
    return this
  }
}

const startSpan = (name: string, options: api.SpanOptions = {}, context = api.context.active()): api.Span => {
  const span = new Noted(name, options, context)
  spans.push(span)
  return span
}

const instrumentOf = (name: string) => {
  const note = (value: number, attributes: api.Attributes = {}): unknown => points.push({ name, value, attributes })
  return { add: note, record: note }
}

test.before(() => {
  api.context.setGlobalContextManager(new Contexts())
  trace.setGlobalTracerProvider({ getTracer: () => ({ startSpan, startActiveSpan: () => undefined as never }) })
  api.metrics.setGlobalMeterProvider({
    getMeter: () =>
      ({
        createHistogram: instrumentOf,
        createCounter: instrumentOf,
        createUpDownCounter: instrumentOf,
      }) as unknown as api.Meter,
  })
})

const watched = async (t: ExecutionContext, options?: Parameters<typeof instrument>[0]): Promise<void> => {
  spans.length = 0
  points.length = 0
  const instrumentation = await instrument(options)
  t.teardown(() => instrumentation.stop())
}

const named = (name: string): Noted => {
  const found = spans.find((span) => span.name === name)
  if (found === undefined) throw new Error(`no span ${name} among ${spans.map((span) => span.name).join()}`)
  return found
}

const values = (name: string): number[] => points.filter((point) => point.name === name).map(({ value }) => value)

test.serial('a launch is a span below the active one, with spans for where its time went', async (t) => {
  await watched(t)
  const outer = startSpan('outer')
  const work = (): Promise<unknown> => run('sh', ['-c', 'exit 3'])
  await api.context.with(trace.setSpan(api.context.active(), outer), work)
  const span = named('nestbox.run')
  t.is(span.parent, outer)
  t.like(span.attributes, {
    'process.executable.name': 'sh',
    'nestbox.status': 'exited',
    'process.exit.code': 3,
    'nestbox.isolated': true,
    'nestbox.prewarmed': false,
  })
  t.false('process.command_args' in span.attributes)
  t.deepEqual(span.status, { code: api.SpanStatusCode.ERROR, message: 'exited' })
  const setup = named('nestbox.setup')
  const exec = named('nestbox.exec')
  t.is(setup.parent, span)
  t.is(exec.parent, span)
  t.true(setup.start <= (setup.end_ ?? 0) && setup.end_ === exec.start && exec.start < (exec.end_ ?? 0))
  t.true(setup.events.length > 0)
  t.true(setup.events.every(({ time }) => time >= setup.start && time <= (setup.end_ ?? 0) + 0.001))
  t.true(Math.abs((exec.end_ ?? 0) - (span.end_ ?? 0)) < 50)
})

test.serial('what waited has a span for that, what could not be launched has the error', async (t) => {
  await watched(t, { args: true, metrics: false })
  await using sandbox = await Sandbox.create(policy('host-system'), { maxConcurrency: 1 })
  await Promise.all([sandbox.run('sleep', ['0.5']), sandbox.run('true')])
  // From when it was asked for: a host that has to wait for its processor asks for the second one later than for the first.
  const queue = spans.findLast(({ name }) => name === 'nestbox.queue')
  t.true(queue !== undefined && (queue.end_ ?? 0) - queue.start > 40)
  t.deepEqual(named('nestbox.run').attributes['process.command_args'], ['sleep', '0.5'])
  const error = await t.throwsAsync(sandbox.run('/no/such/program'))
  const failed = spans.at(-1)
  t.deepEqual(failed?.exceptions, [error])
  t.is(failed?.attributes['error.type'], 'ERR_NESTBOX_EXEC')
  t.is(failed?.status?.code, api.SpanStatusCode.ERROR)
  t.true(spans.every(({ end_ }) => end_ !== undefined))
  t.is(points.length, 0)
})

test.serial('metrics', async (t) => {
  await watched(t, { traces: false })
  await run('true')
  await run('sleep', ['9'], { timeout: 30 })
  await t.throwsAsync(run('/no/such/program'))
  t.is(spans.length, 0)
  t.deepEqual(values('nestbox.launch.active'), [1, -1, 1, -1, 1, -1])
  t.deepEqual(
    points.filter(({ name }) => name === 'nestbox.launch.count').map(({ attributes }) => attributes),
    [
      { 'nestbox.isolated': true, 'nestbox.status': 'exited' },
      { 'nestbox.isolated': true, 'nestbox.status': 'limit-exceeded' },
      { 'nestbox.isolated': true, 'error.type': 'ERR_NESTBOX_EXEC' },
    ],
  )
  const durations = values('nestbox.launch.duration')
  t.is(durations.length, 2)
  t.true((durations[1] ?? 0) >= 0.03 && (durations[1] ?? 0) < 5, 'seconds')
  t.true(values('nestbox.launch.memory.peak').every((bytes) => bytes > 100_000 && bytes < 1e9))
})

test.serial('what was stopped records no more, and leaves nothing open', async (t) => {
  await watched(t)
  using instrumentation = await instrument()
  const running = run('true')
  instrumentation.stop()
  await running
  const [mine, stopped] = spans.filter(({ name }) => name === 'nestbox.run')
  t.true(mine?.end_ !== undefined && stopped?.end_ !== undefined)
  t.true('nestbox.status' in (mine?.attributes ?? {}) !== 'nestbox.status' in (stopped?.attributes ?? {}))
  t.is(
    values('nestbox.launch.active').reduce((sum, value) => sum + value, 0),
    0,
  )
})

test.serial('options are checked', async (t) => {
  await t.throwsAsync(instrument({ tracing: true } as never), { instanceOf: RequestError, message: /tracing/ })
})

test('without the package the rest works, and instrument() says what is missing', async (t) => {
  const root = fileURLToPath(new URL('..', import.meta.url))
  const copy = path.join(scratch(t), 'node_modules', 'nestbox')
  mkdirSync(copy, { recursive: true })
  for (const name of ['package.json', 'dist']) cpSync(path.join(root, name), path.join(copy, name), { recursive: true })
  symlinkSync(path.join(root, 'node_modules', 'zod'), path.join(copy, '..', 'zod'))
  const program = `
    import 'nestbox'
    import { instrument } from 'nestbox/opentelemetry'
    await instrument().catch((error) => console.log(error.code, error.message))
  `
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program], {
    cwd: path.join(copy, '..', '..'),
  })
  t.regex(stdout, /^ERR_NESTBOX_OPENTELEMETRY .*install it/)
})
