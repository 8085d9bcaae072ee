// The benchmark harness, in small: everything in it runs, and what it leaves behind is what the report is made from.

import { execFile } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import test from 'ava'

import { orders } from '../bench/measure.ts'
import { peersOf } from '../bench/peers.ts'
import { plots } from '../bench/plots.ts'
import { reportOf } from '../bench/report.ts'
import { readRun } from '../bench/samples.ts'
import { scenarios } from '../bench/scenarios/index.ts'
import { median, quantile, ratioOfMedians, ratioOfQuantiles } from '../bench/stats.ts'
import type { TraceEvent } from '../index.ts'
import { have, scratch } from './helpers.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))

const bench = (...args: string[]): Promise<{ stdout: string; stderr: string }> =>
  promisify(execFile)(process.execPath, [...process.execArgv, path.join(ROOT, 'bench', 'main.ts'), ...args])

/** One of each kind: all of them together start some eighty hosts, one after the other. */
const FEW = [
  'ignore',
  'capture',
  'filter',
  'violation',
  'prewarm',
  'heap',
  'memory',
  'throughput',
  'steps',
  'sweep-binds',
]

test('a quick run measures, and its samples make a report and plots', async (t) => {
  if (!have('cc') || !existsSync(path.join(ROOT, 'dist', 'index.js'))) return t.pass('there is no compiler or no build')
  t.timeout(180_000)
  for (const name of FEW)
    t.true(
      scenarios.some((scenario) => scenario.name === name),
      name,
    )
  const file = path.join(scratch(t), 'samples.jsonl')
  const { stdout, stderr } = await bench(...FEW, '--quick', '--out', file, '--peer', 'through-env=env {program}')
  t.is(stderr, '', 'progress is for terminals')
  t.true(stdout.includes('| measure | target | measured |'))
  t.true(stdout.includes('A quick run'))

  const run = readRun(file)
  t.true(run.run.quick)
  t.deepEqual(new Set(run.records.map(({ scenario }) => scenario)), new Set(FEW))
  t.deepEqual(
    run.records.filter((record) => record.type === 'missing' && record.fault),
    [],
  )
  for (const record of run.records) {
    if (record.type === 'samples') t.true(record.us.length >= 2 && record.us.every((us) => us > 0))
  }
  t.true(run.records.some((record) => record.type === 'samples' && record.mode === 'peer: through-env'))
  t.true(stdout.startsWith(reportOf(run, () => '')), 'the report is made from the samples alone')
  const drawn = await plots(run)
  t.deepEqual([...drawn.keys()], ['latency', 'capture', 'heap', 'throughput', 'steps', 'sweep-binds'])
  for (const svg of drawn.values()) t.true(svg.startsWith('<svg') && !svg.includes('NaN'))
  return undefined
})

test('an unknown scenario is refused, and the known ones are listed', async (t) => {
  await t.throwsAsync(bench('no-such-scenario'), { message: /there is no scenario "no-such-scenario"/ })
  const { stdout } = await bench('--list')
  for (const { name } of scenarios) t.true(stdout.includes(`${name} `))
})

test('some launches become a trace, of warm ones and of cold ones', async (t) => {
  if (!have('cc') || !existsSync(path.join(ROOT, 'dist', 'index.js'))) return t.pass('there is no compiler or no build')
  const file = path.join(scratch(t), 'trace.json')
  await bench('--quick', '--trace', file)
  const { traceEvents } = JSON.parse(readFileSync(file, 'utf8')) as { traceEvents: TraceEvent[] }
  const launches = traceEvents.filter(({ cat }) => cat === 'launch')
  t.deepEqual(new Set(launches.map(({ args }) => args?.['warm'])), new Set([true, false]))
  return undefined
})

test('a peer is a name and a command that launches the program', async (t) => {
  t.deepEqual(peersOf(['a=b  -c {program}', 'd=/e/{program}']), {
    'peer: a': ['b', '-c', '{program}'],
    'peer: d': ['/e/{program}'],
  })
  t.is(typeof peersOf(['b {program}']), 'string')
  t.is(typeof peersOf(['=b {program}']), 'string')
  t.is(typeof peersOf(['a=b']), 'string')
  await t.throwsAsync(bench('--peer', 'a=b'), { message: /launches no \{program\}/ })
})

test('quantiles are interpolated', (t) => {
  t.is(median([3, 1, 2]), 2)
  t.is(median([4, 1, 2, 3]), 2.5)
  t.is(quantile([0, 10], 0.9), 9)
  t.true(Number.isNaN(median([])))
})

test('a ratio comes with an interval that holds it, and is the same every time', (t) => {
  const series = (factor: number): number[] => Array.from({ length: 100 }, (_, at) => factor * (100 + ((at * 37) % 23)))
  const ratio = ratioOfMedians(series(1), series(2), 5)
  t.is(ratio.value, 0.5)
  t.true(ratio.low <= 0.5 && ratio.high >= 0.5 && ratio.high - ratio.low < 0.1)
  t.deepEqual(ratioOfMedians(series(1), series(2), 5), ratio)
  const values = series(1)
  const tail = ratioOfQuantiles({ values, q: 0.99 }, { values, q: 0.5 }, 5)
  t.true(tail.value > 1.05 && tail.value < 1.25 && tail.low <= tail.value && tail.high >= tail.value)
})

test('turns are taken in every order, by nobody twice in succession', (t) => {
  const rounds = orders(['a', 'b', 'c'])
  const taken = Array.from({ length: 600 }, () => rounds.next().value)
  for (const order of taken) t.deepEqual(order.toSorted(ascending), ['a', 'b', 'c'])
  const all = taken.flat()
  const after = new Map<string, number>()
  for (const [index, mode] of all.slice(1).entries()) {
    const pair = `${all[index]}${mode}`
    after.set(pair, (after.get(pair) ?? 0) + 1)
  }
  t.deepEqual([...after.keys()].toSorted(ascending), ['ab', 'ac', 'ba', 'bc', 'ca', 'cb'])
  for (const [pair, times] of after) t.true(times > 220 && times < 380, `${pair}: ${times}`)
  const two = orders([1, 2])
  const [first] = two.next().value
  for (let round = 0; round < 9; round += 1) t.is(two.next().value[0], first, 'of two, one always begins')
  t.deepEqual(orders([1]).next().value, [1])
})

const ascending = (one: string, other: string): number => one.localeCompare(other)
