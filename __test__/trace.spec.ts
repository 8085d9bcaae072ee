// Launches as spans: what a trace viewer needs to draw them.

import test from 'ava'

import { ExecError, ProcessError, Sandbox, trace, type TraceEvent } from '../index.ts'
import { until } from './helpers.ts'

/** The spans of a trace as a viewer reads them: after a trip through JSON. */
const spansOf = (recorder: object): Required<TraceEvent>[] => {
  const { traceEvents } = JSON.parse(JSON.stringify(recorder)) as { traceEvents: Required<TraceEvent>[] }
  return traceEvents.filter(({ ph }) => ph === 'X')
}

/** Do the spans of each lane lie within each other or apart? Viewers draw nothing sensible otherwise. */
const areNested = (spans: readonly Required<TraceEvent>[]): boolean => {
  const close = 0.01
  return spans.every((a) =>
    spans.every((b) => {
      if (a === b || a.tid !== b.tid) return true
      const apart = a.ts + a.dur <= b.ts + close || b.ts + b.dur <= a.ts + close
      const within = (inner: typeof a, outer: typeof a): boolean =>
        inner.ts >= outer.ts - close && inner.ts + inner.dur <= outer.ts + outer.dur + close
      return apart || within(a, b) || within(b, a)
    }),
  )
}

test('a launch is a span with its stages and steps in it', async (t) => {
  await using sandbox = await Sandbox.create(undefined, { warm: 0 })
  const recorder = trace()
  const before = performance.now() * 1000
  const result = await recorder.record(sandbox).run('true')
  const after = performance.now() * 1000
  t.is(recorder.size, 1)
  const spans = spansOf(recorder)
  const [whole] = spans
  t.is(whole?.name, 'true')
  t.true(whole !== undefined && whole.ts >= before && whole.ts + whole.dur <= after)
  t.like(whole?.args, { command: 'true', status: 'exited', exitCode: 0, warm: false, pid: result.pid })
  t.deepEqual(
    spans.filter(({ cat }) => cat === 'stage').map(({ name }) => name),
    ['queue', 'set-up', 'program'],
  )
  const steps = spans.filter(({ cat }) => cat === 'step')
  t.true(steps.some(({ name }) => name === 'clone-init') && steps.some(({ name }) => name === 'exec'))
  t.true(areNested(spans))
})

test('a program that was started ahead shows when it was handed over', async (t) => {
  const args = ['-c', 'import os; os.read(1023, 4)']
  await using sandbox = await Sandbox.create(undefined, { prewarm: { file: '/usr/bin/python3', args } })
  t.true(await until(() => sandbox.stats().prewarm.ready === 1, 30_000))
  const recorder = trace()
  const traced = recorder.record(sandbox)
  await traced.run('/usr/bin/python3', args, { work: 'work' })
  await traced.run('true')
  const spans = spansOf(recorder)
  const launches = spans.filter(({ cat }) => cat === 'launch')
  t.deepEqual(
    launches.map((launch) => launch.args?.['prewarmed']),
    [true, false],
  )
  const handedOver = spans.filter(({ cat, tid }) => cat === 'step' && tid === launches[0]?.tid)
  t.true(handedOver.some(({ name }) => name === 'hand-over'))
})

test('launches that overlap have lanes of their own, and one that waits shows its queue', async (t) => {
  await using sandbox = await Sandbox.create(undefined, { maxConcurrency: 2 })
  const recorder = trace()
  const traced = recorder.record(sandbox)
  await Promise.all([1, 2, 3, 4].map(() => traced.run('sleep', ['0.05'])))
  await traced.run('true')
  const spans = spansOf(recorder)
  const lanes = spans.filter(({ cat }) => cat === 'launch').map(({ tid }) => tid)
  t.deepEqual(lanes, [1, 2, 3, 4, 1], 'a lane that is free is used again')
  const waited = spans.filter(({ name, dur }) => name === 'queue' && dur > 40_000)
  t.deepEqual(
    waited.map(({ tid }) => tid).toSorted((a, b) => a - b),
    [3, 4],
  )
  t.true(areNested(spans))
  recorder.clear()
  t.is(recorder.size, 0)
  t.deepEqual(spansOf(recorder), [])
})

test('what is launched is launched as ever: results, types, sandboxees and errors', async (t) => {
  await using sandbox = await Sandbox.create()
  const recorder = trace()
  const traced = recorder.record(sandbox)
  const { stdout } = await traced.run('echo', ['hello'], { lines: true })
  const lines: readonly string[] = stdout
  t.deepEqual(lines, ['hello'])

  await using sandboxee = await traced.spawn('cat', [], { stdin: 'pipe' })
  sandboxee.stdin.end()
  t.is((await sandboxee.result).status, 'exited')

  const failed = await t.throwsAsync(traced.run('sh', ['-c', 'exit 3'], { reject: true }), { instanceOf: ProcessError })
  t.is(failed?.result.failed, true)
  await t.throwsAsync(traced.run('/no/such/program'), { instanceOf: ExecError })
  await t.throwsAsync(traced.spawn('/no/such/program'), { instanceOf: ExecError })

  const wholes = spansOf(recorder).filter(({ cat }) => cat === 'launch')
  t.is(wholes.length, 5)
  t.like(wholes[2]?.args, { status: 'exited', exitCode: 3 })
  t.like(wholes[3]?.args, { file: '/no/such/program', code: 'ERR_NESTBOX_EXEC' })
})
