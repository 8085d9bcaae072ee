// The plots of a run as SVG, drawn without a browser. The page may be light or dark, so the background is transparent and
// every colour is one that can be seen on both.

import * as vega from 'vega'
import { compile, type TopLevelSpec } from 'vega-lite'

import { label, SWEEPS } from './report.ts'
import type { Run, SampleRecord, StepsRecord, ThroughputRecord } from './samples.ts'
import { IN_ALL } from './scenarios/steps.ts'
import { median, quantile } from './stats.ts'

const GREY = '#808080'
const OURS = '#d9730d'
const THEIRS = '#4c8bd6'

const CONFIG = {
  background: 'transparent',
  font: 'system-ui, sans-serif',
  view: { stroke: null },
  axis: {
    labelColor: GREY,
    titleColor: GREY,
    domainColor: GREY,
    tickColor: GREY,
    gridColor: GREY,
    gridOpacity: 0.25,
    labelFontSize: 12,
    titleFontSize: 12,
    titleFontWeight: 'normal',
    labelLimit: 300,
  },
  legend: { labelColor: GREY, titleColor: GREY, labelFontSize: 12, labelLimit: 300, orient: 'top', title: null },
  title: { color: GREY, fontSize: 13, fontWeight: 'normal', anchor: 'start' },
} as const

const WIDTH = 560

/** Whose a mode is: that decides its colour. */
type Kind = 'ours' | 'floor' | 'theirs'

const kindOf = (mode: string): Kind => {
  if (mode.startsWith('floor-')) return 'floor'
  return mode.startsWith('nestbox') || mode.startsWith('sandbox2') || mode === 'unsandboxed' ? 'ours' : 'theirs'
}

const svg = (spec: object): Promise<string> => {
  const compiled = compile({ ...spec, config: CONFIG } as unknown as TopLevelSpec)
  return new vega.View(vega.parse(compiled.spec), { renderer: 'none' }).toSVG()
}

const samplesIn = (run: Run, scenario: string): SampleRecord[] =>
  run.records.filter((record): record is SampleRecord => record.type === 'samples' && record.scenario === scenario)

/** From p50 to p99 on a logarithmic axis: a dot, a tick at p90, and a line. */
const spread = (title: string, rows: readonly { name: string; kind: Kind; us: readonly number[] }[]): object => ({
  width: WIDTH,
  height: { step: 26 },
  title,
  data: {
    values: rows.map(({ name, kind, us }) => ({
      name,
      kind,
      p50: quantile(us, 0.5) / 1000,
      p90: quantile(us, 0.9) / 1000,
      p99: quantile(us, 0.99) / 1000,
      text: `${(quantile(us, 0.5) / 1000).toFixed(2)} ms`,
    })),
  },
  encoding: {
    y: { field: 'name', type: 'nominal', sort: null, axis: { title: null, grid: false, ticks: false, domain: false } },
    color: {
      field: 'kind',
      type: 'nominal',
      scale: { domain: ['ours', 'floor', 'theirs'], range: [OURS, GREY, THEIRS] },
      legend: null,
    },
  },
  layer: [
    {
      mark: { type: 'rule', strokeWidth: 2, opacity: 0.5 },
      encoding: { x: { field: 'p50', type: 'quantitative' }, x2: { field: 'p99' } },
    },
    {
      mark: { type: 'tick', thickness: 2, size: 12 },
      encoding: { x: { field: 'p90', type: 'quantitative' } },
    },
    {
      mark: { type: 'point', filled: true, size: 90, opacity: 1 },
      encoding: {
        x: {
          field: 'p50',
          type: 'quantitative',
          scale: { type: 'log', nice: false, padding: 24 },
          axis: { title: 'milliseconds: p50 (dot), p90 (tick), p99 (end of the line)', tickCount: 6 },
        },
      },
    },
    {
      mark: { type: 'text', dy: -10, fontSize: 11 },
      encoding: { x: { field: 'p50', type: 'quantitative' }, text: { field: 'text' } },
    },
  ],
})

const spreadOf = (run: Run, scenario: string, title: string): object | undefined => {
  const rows = samplesIn(run, scenario).map(({ mode, variant, us }) => ({
    name: variant === '' ? label(mode) : `${label(mode)}, ${variant}`,
    kind: kindOf(mode),
    us,
  }))
  return rows.length === 0 ? undefined : spread(title, rows)
}

/** Lines: what is ours is warm, and the floor is grey. */
const LINES: readonly (readonly [prefix: string, colour: string])[] = [
  ['nestbox-cold-shared', '#a05a2c'],
  ['nestbox-cold', '#c09a20'],
  ['nestbox', OURS],
  ['unsandboxed', '#b0607a'],
  ['sandbox2-nested', '#b0607a'],
  ['sandbox2-direct', '#8a5fbf'],
  ['floor-bare', '#a0a0a0'],
  ['floor', GREY],
  ['spawn', THEIRS],
  ['bwrap', '#4c9a6a'],
]

const colourOf = (mode: string): string => LINES.find(([prefix]) => mode.startsWith(prefix))?.[1] ?? GREY

/** The median of each mode at each point of a sweep. */
const sweep = (run: Run, scenario: string, title: string): object | undefined => {
  const records = samplesIn(run, scenario)
  if (records.length === 0) return undefined
  const modes = [...new Set(records.map(({ mode }) => mode))]
  return {
    width: WIDTH,
    height: 220,
    title: `${title.charAt(0).toLowerCase()}${title.slice(1)}: p50, ms`,
    data: {
      values: records.map(({ mode, variant, us }) => ({ mode: label(mode), point: variant, ms: median(us) / 1000 })),
    },
    mark: { type: 'line', point: { size: 60 }, strokeWidth: 2 },
    encoding: {
      x: { field: 'point', type: 'ordinal', sort: null, axis: { title: null, labelAngle: 0 } },
      y: { field: 'ms', type: 'quantitative', scale: { type: 'log', nice: false, padding: 12 }, axis: { title: null } },
      color: {
        field: 'mode',
        type: 'nominal',
        scale: { domain: modes.map(label), range: modes.map(colourOf) },
      },
    },
  }
}

const throughput = (run: Run): object | undefined => {
  const records = run.records.filter((record): record is ThroughputRecord => record.type === 'throughput')
  if (records.length === 0) return undefined
  const values = records.map(({ mode, inFlight, perSecond }) => ({
    mode: label(mode),
    inFlight,
    perSecond: median(perSecond),
  }))
  const modes = [...new Set(records.map(({ mode }) => mode))]
  return {
    width: WIDTH,
    height: 240,
    title: 'launches a second',
    data: { values },
    mark: { type: 'line', point: { size: 60 }, strokeWidth: 2 },
    encoding: {
      x: {
        field: 'inFlight',
        type: 'quantitative',
        scale: { type: 'log', base: 2 },
        axis: { title: 'in flight', values: [...new Set(records.map(({ inFlight }) => inFlight))] },
      },
      y: { field: 'perSecond', type: 'quantitative', axis: { title: null } },
      color: {
        field: 'mode',
        type: 'nominal',
        scale: { domain: modes.map(label), range: modes.map(colourOf) },
      },
    },
  }
}

/** Each step begins where the one before it ended. */
const steps = (run: Run): object | undefined => {
  const record = run.records.find((found): found is StepsRecord => found.type === 'steps')
  if (record === undefined) return undefined
  let at = 0
  const values = record.steps
    .filter(({ step }) => step !== IN_ALL)
    .map(({ step, us }) => {
      const from = at
      at += median(us)
      return { step, from, to: at, text: Math.round(median(us)).toString() }
    })
  return {
    width: WIDTH,
    height: { step: 20 },
    title: `one ${label(record.mode)}, p50 of each step, µs`,
    data: { values },
    encoding: {
      y: { field: 'step', type: 'nominal', sort: null, axis: { title: null, grid: false, ticks: false } },
      x: { field: 'from', type: 'quantitative', axis: { title: 'microseconds, one after the other' } },
    },
    layer: [
      { mark: { type: 'bar', color: OURS, height: 12 }, encoding: { x2: { field: 'to' } } },
      {
        mark: { type: 'text', align: 'left', dx: 4, color: GREY, fontSize: 11 },
        encoding: { x: { field: 'to', type: 'quantitative' }, text: { field: 'text' } },
      },
    ],
  }
}

/** All plots that the run has samples for, by name. */
export const plots = async (run: Run): Promise<Map<string, string>> => {
  const specs: readonly (readonly [string, object | undefined])[] = [
    ['latency', spreadOf(run, 'ignore', 'a trivial static program, stdio ignored')],
    ['capture', spreadOf(run, 'capture', 'a trivial static program, its output captured')],
    ['heap', spreadOf(run, 'heap', 'a host with a big heap')],
    ['threads', spreadOf(run, 'threads', 'a machine full of threads')],
    ['mounts', spreadOf(run, 'mounts', 'a host with many mounts')],
    ['throughput', throughput(run)],
    ['steps', steps(run)],
    ...SWEEPS.map(([scenario, title]) => [scenario, sweep(run, scenario, title)] as const),
  ]
  const drawn = new Map<string, string>()
  for (const [name, spec] of specs) {
    if (spec !== undefined) drawn.set(name, `${await svg(spec)}\n`)
  }
  return drawn
}
