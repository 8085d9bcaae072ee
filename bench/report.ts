// The report of a run as Markdown, made from its samples alone.

import type { QuietRecord, Run, SampleRecord, StepsRecord, ThroughputRecord } from './samples.ts'
import { IN_ALL } from './scenarios/steps.ts'
import { median, quantile } from './stats.ts'
import {
  memoryOf,
  MILLISECOND,
  nestsOf,
  outcomes,
  ratioBetween,
  samplesOf,
  showEstimate,
  splitBlocks,
} from './targets.ts'

/** What modes are called in tables and plots. */
export const LABELS: Readonly<Record<string, string>> = {
  nestbox: 'sandbox.run',
  'nestbox-warm-4': 'sandbox.run, warm: 4',
  'nestbox-cold': 'sandbox.run, warm: 0',
  'nestbox-cold-empty': 'sandbox.run, warm: 0, empty policy',
  'nestbox-cold-shared-loopback': 'sandbox.run, warm: 0, shared loopback',
  'nestbox-unfiltered': "sandbox.run, 'unfiltered'",
  'nestbox-report': "sandbox.run, otherwise 'report'",
  'nestbox-cold-unfiltered': "sandbox.run, warm: 0, 'unfiltered'",
  'nestbox-cold-report': "sandbox.run, warm: 0, otherwise 'report'",
  'nestbox-violation': "action 'report'",
  'nestbox-violation-kill': "action 'kill'",
  'nestbox-capture': 'sandbox.run',
  'nestbox-cold-capture': 'sandbox.run, warm: 0',
  'nestbox-output': 'sandbox.run',
  'nestbox-arguments': 'sandbox.run',
  'nestbox-binds': 'sandbox.run',
  'floor-bare': 'floor: vfork, exec, wait',
  'floor-warm': 'floor: warm nest',
  'floor-cold': 'floor: cold nest',
  'spawn-output': 'child_process.spawn',
  'spawn-arguments': 'child_process.spawn',
  'bwrap-binds': 'bwrap --unshare-all',
  'slow-nestbox': 'sandbox.run',
  'slow-prewarmed': 'sandbox.run, prewarmed',
  'slow-spawn': 'child_process.spawn',
  unsandboxed: 'unsandboxed.run',
  'sandbox2-nested': "ForkClient, pivot 'nested'",
  'sandbox2-direct': "ForkClient, pivot 'direct'",
  spawn: 'child_process.spawn',
  execFile: 'child_process.execFile',
  execa: 'execa',
  'execa-capture': 'execa',
  bwrap: 'bwrap --unshare-all',
  unshare: 'unshare (namespaces only)',
}

export const label = (mode: string): string => LABELS[mode] ?? mode

type Row = readonly string[]

/** Numbers to the right: all columns but the first `left`. */
const table = (head: Row, rows: readonly Row[], left = 1): string => {
  const line = (cells: Row): string => `| ${cells.join(' | ')} |`
  return [line(head), line(head.map((_, index) => (index < left ? '---' : '---:'))), ...rows.map(line)].join('\n')
}

const micros = (us: number): string => Math.round(us).toLocaleString('en')

const percent = (fraction: number): string => `${(fraction * 100).toFixed(1)} %`

// ---- sections ---------------------------------------------------------------------------------------------------------------

const MET = (met: boolean | undefined): string => (met === undefined ? 'not measured' : met ? 'met' : '**missed**')

export const targetsTable = (run: Run): string =>
  table(
    ['measure', 'target', 'measured', '', 'beside it'],
    outcomes(run).map(({ measure, target, measured = '–', met, beside = '' }) => [
      measure,
      target,
      measured,
      MET(met),
      beside,
    ]),
    5,
  )

/** What of the kernel's work a mode does. */
const FLOORS: Readonly<Record<string, string>> = {
  nestbox: 'floor-warm',
  'nestbox-cold': 'floor-cold',
  'nestbox-cold-shared-loopback': 'floor-cold',
  unsandboxed: 'floor-bare',
  spawn: 'floor-bare',
}

/** Fewer samples than this say nothing about the slowest in a thousand. */
const ENOUGH_FOR_P999 = 1000

const against = (record: SampleRecord, other: SampleRecord | undefined): string => {
  if (record === other) return '1'
  const ratio = ratioBetween(record, other)
  return ratio === undefined ? '–' : showEstimate(ratio)
}

/** The latencies of a scenario, each against the one that all are compared with, and against its floor. */
const latencyTable = (run: Run, scenario: string, reference: string): string => {
  const base = samplesOf(run, scenario, reference)
  const series = run.records.filter(
    (record): record is SampleRecord => record.type === 'samples' && record.scenario === scenario,
  )
  const withTail = series.some(({ us }) => us.length >= ENOUGH_FOR_P999)
  const withFloor = series.some(({ mode }) => mode.startsWith('floor-'))
  const quantiles = withTail ? [0.5, 0.9, 0.99, 0.999] : [0.5, 0.9, 0.99]
  const rows = series.map((record) => {
    const floor = samplesOf(run, scenario, FLOORS[record.mode] ?? '')
    const cells = quantiles.map((q) => micros(quantile(record.us, q)))
    return [label(record.mode)].concat(cells, against(record, base), withFloor ? against(record, floor) : [])
  })
  const names = quantiles.map((q) => `p${q * 100}`)
  return table(
    ['µs', ...names, `p50 against ${label(reference)}`, ...(withFloor ? ['p50 against its floor'] : [])],
    rows,
  )
}

/** The medians of a sweep: a row for each mode, a column for each point. */
const sweepTable = (run: Run, scenario: string): string => {
  const series = run.records.filter(
    (record): record is SampleRecord => record.type === 'samples' && record.scenario === scenario,
  )
  const points = [...new Set(series.map(({ variant }) => variant))]
  const rows = [...new Set(series.map(modeOf))].map((mode) => {
    const cells = points.map((point) => {
      const record = series.find((other) => other.mode === mode && other.variant === point)
      return record === undefined ? '–' : micros(median(record.us))
    })
    return [label(mode)].concat(cells)
  })
  return table(['p50, µs', ...points], rows)
}

/** The latencies of a scenario that changes the host or the machine, each against itself before the change. */
const growthTable = (run: Run, scenario: string): string => {
  const modes = new Set(
    run.records.filter((record) => record.type === 'samples' && record.scenario === scenario).map(modeOf),
  )
  const rows = [...modes].flatMap((mode) =>
    [0, 1].flatMap((variant) => {
      const record = samplesOf(run, scenario, mode, variant)
      if (record === undefined) return []
      const ratio = variant === 0 ? undefined : ratioBetween(record, samplesOf(run, scenario, mode, 0))
      return [
        [
          label(mode),
          record.variant,
          ...[0.5, 0.9, 0.99].map((q) => micros(quantile(record.us, q))),
          ratio === undefined ? '1' : showEstimate(ratio),
        ],
      ]
    }),
  )
  return table(['µs', '', 'p50', 'p90', 'p99', 'p50 against itself'], rows, 2)
}

const modeOf = (record: object): string => (record as { mode: string }).mode

const blocksTable = (run: Run): string => {
  const rows = ['nestbox', 'spawn'].flatMap((mode) =>
    [0, 1].flatMap((variant) => {
      const record = samplesOf(run, 'heap', mode, variant)
      if (record === undefined) return []
      const { own, disturbed } = splitBlocks(record)
      return [
        [
          label(mode),
          record.variant,
          micros(quantile(own, 0.5)),
          micros(quantile(own, 0.99)),
          micros(Math.max(...own)),
          `${own.filter((us) => us > MILLISECOND).length} of ${own.length}`,
          disturbed.length === 0 ? '–' : `${disturbed.length}, up to ${micros(Math.max(...disturbed))}`,
        ],
      ]
    }),
  )
  return table(['µs', '', 'p50', 'p99', 'longest', 'above 1 ms', 'set aside'], rows, 2)
}

const memoryTable = (run: Run): string | undefined => {
  const record = memoryOf(run)
  if (record === undefined) return undefined
  const total = record.processes.reduce((sum, { pssKib }) => sum + pssKib, 0)
  const rows = record.processes.map(({ name, pssKib, rssKib }) => [`\`${name}\``, micros(pssKib), micros(rssKib)])
  return table(['process', 'PSS, KiB', 'RSS, KiB'], [...rows, ['together', micros(total), '']])
}

const nestsLine = (run: Run): string | undefined => {
  const found = nestsOf(run)
  if (found === undefined) return undefined
  return [
    `A warm nest takes ${found.pssKib} KiB of its processes' proportional memory, and with what the kernel needs for it`,
    `${Math.round(found.availableKib)} KiB of the machine's (the difference that ${found.nests} of them make).`,
  ].join('\n')
}

const throughputTable = (run: Run): string => {
  const records = run.records.filter((record): record is ThroughputRecord => record.type === 'throughput')
  const inFlight = [...new Set(records.map((record) => record.inFlight))]
  const modes = [...new Set(records.map(({ mode }) => mode))]
  const rows = modes.map((mode) => {
    const rates = inFlight.map((count) => {
      const record = records.find((other) => other.mode === mode && other.inFlight === count)
      return record === undefined ? '–' : micros(median(record.perSecond))
    })
    return [label(mode)].concat(rates)
  })
  return table(['launches a second', ...inFlight.map((count) => `${count} in flight`)], rows)
}

const stepsTable = (record: StepsRecord): string => {
  const total = median(record.steps.find(({ step }) => step === IN_ALL)?.us ?? [])
  const rows = record.steps.map(({ step, us }) => [
    /^[\w-]+$/.test(step) ? `\`${step}\`` : step,
    micros(quantile(us, 0.5)),
    micros(quantile(us, 0.9)),
    percent(median(us) / total),
  ])
  return table(['µs', 'p50', 'p90', 'part of the whole'], rows)
}

const quietTable = (run: Run): string => {
  const rows = run.records
    .filter((record): record is QuietRecord => record.type === 'quiet')
    .map(({ scenario, before, after, steal, seconds, looks, noisy, waited }) => [
      scenario,
      percent(before.busy),
      percent(after.busy),
      percent(steal),
      before.load.toFixed(2),
      seconds.toFixed(0),
      waited.toFixed(0),
      looks === 0 ? '–' : `${looks - noisy} of ${looks}`,
      wasQuiet(before.quiet, noisy, looks) ? 'yes' : '**no**',
    ])
  const head = ['scenario', 'busy before', 'busy after', 'steal during', 'load before', 'seconds', 'waited']
  return table([...head, 'quiet between turns', 'quiet'], rows)
}

/** One look in twenty may see something. */
const wasQuiet = (before: boolean, noisy: number, looks: number): boolean => before && noisy <= looks / 20

const describe = ({ run, records }: Run): string => {
  const peers = Object.entries(run.peers).map(([name, version]) => `${name} ${version}`)
  const launches = Math.min(...records.flatMap((record) => (record.type === 'samples' ? [record.us.length] : [])))
  return [
    `Measured on ${run.date.slice(0, 10)} with nestbox ${run.nestbox} (${run.revision}), Node.js ${run.node}, Linux ${run.kernel}`,
    `(${run.arch}), ${run.cpus} CPUs (${run.cpu}), ${run.memoryGiB} GiB of memory, ${run.root ? 'as root' : 'unprivileged'}`,
    `(${[`transparent huge pages: ${run.hugePages}`, `${run.mounts} mounts`, ...peers].join(', ')}).`,
    Number.isFinite(launches) ? `At least ${launches} launches a mode.` : '',
    run.quick ? '**A quick run: it shows that the harness works; its numbers mean nothing.**' : '',
  ]
    .filter((line) => line !== '')
    .join('\n')
}

const missing = (run: Run): string =>
  run.records
    .flatMap((record) =>
      record.type === 'missing'
        ? [`- ${label(record.mode)} was not measured in \`${record.scenario}\`: ${record.why}`]
        : [],
    )
    .join('\n')

/** Is there anything of a scenario? */
const has = (run: Run, scenario: string): boolean =>
  run.records.some((record) => record.scenario === scenario && record.type !== 'quiet' && record.type !== 'missing')

/** The tables of everything that was measured. `image` gives the line that shows a plot, or nothing. */
export const reportOf = (run: Run, image: (name: string) => string): string => {
  const steps = run.records.filter((record): record is StepsRecord => record.type === 'steps')
  const section = (scenario: string, title: string, ...parts: (string | undefined)[]): string[] =>
    has(run, scenario) ? [`## ${title}`, ...parts.filter((part): part is string => part !== undefined)] : []
  return [
    describe(run),
    '## Targets',
    'p50 ratios with their 95 % confidence intervals (bootstrap over turns).',
    targetsTable(run),
    ...section(
      'ignore',
      'A trivial static program, stdio ignored',
      image('latency'),
      latencyTable(run, 'ignore', 'spawn'),
    ),
    ...section(
      'back-to-back',
      'Without pauses',
      [
        'Each launch right after the one before, in rows that are longer than what is ever made ahead: what is replaced in the',
        'background now costs the launches that follow.',
      ].join('\n'),
      latencyTable(run, 'back-to-back', 'spawn'),
    ),
    ...section('tail', 'The tail', latencyTable(run, 'tail', 'spawn')),
    ...section('capture', 'The same, its output captured', latencyTable(run, 'capture', 'execFile')),
    ...section(
      'filter',
      'Syscall filters',
      latencyTable(run, 'filter', 'nestbox-unfiltered'),
      has(run, 'filter-cold') ? latencyTable(run, 'filter-cold', 'nestbox-cold-unfiltered') : undefined,
    ),
    ...section(
      'violation',
      'A violation',
      [
        'From the moment before the program makes the forbidden call until JavaScript hears of it on `nestbox:violation`, which is',
        "after all of the nest is dead. With `'kill'` the kernel kills, and there is nothing to tell but that.",
      ].join('\n'),
      latencyTable(run, 'violation', 'nestbox-violation'),
    ),
    ...section(
      'prewarm',
      'A program that is slow to start',
      [
        'A Python interpreter that imports some modules, is given its work and answers. With `prewarm` it was started before, and has',
        'loaded all when its work comes.',
      ].join('\n'),
      latencyTable(run, 'prewarm', 'slow-spawn'),
    ),
    ...section(
      'heap',
      'A host with a big heap',
      image('heap'),
      growthTable(run, 'heap'),
      [
        'The longest that a launch can have kept the event loop busy without a pause, by the wall clock: what the processes that it',
        'wakes take from it is in it. Set aside, whether long or short, is each launch that the processor was taken from while a',
        'process ran that has nothing to do with it: another host, the benchmark itself, a daemon of the machine.',
      ].join('\n'),
      blocksTable(run),
    ),
    ...section('threads', 'A machine full of threads', image('threads'), growthTable(run, 'threads')),
    ...section('mounts', 'A host with many mounts', image('mounts'), growthTable(run, 'mounts')),
    ...section('throughput', 'Throughput', image('throughput'), throughputTable(run)),
    ...section('memory', 'Memory', memoryTable(run), nestsLine(run)),
    ...section(
      'steps',
      'Where the time goes',
      image('steps'),
      ...steps.flatMap((record) => [`${label(record.mode)}:`, stepsTable(record)]),
    ),
    ...(SWEEPS.some(([scenario]) => has(run, scenario))
      ? ['## How it grows', 'Medians of few launches each: the shape is what to look at.']
      : []),
    ...SWEEPS.flatMap(([scenario, title]) =>
      has(run, scenario) ? [`### ${title}`, image(scenario), sweepTable(run, scenario)] : [],
    ),
    '## Was the machine quiet?',
    [
      'Looked at before and after each scenario, and between turns, with all hosts idle; while others were at work, it waited.',
      'Steal is what other guests of the same hardware took.',
    ].join('\n'),
    quietTable(run),
    missing(run),
  ]
    .filter((part) => part !== '')
    .join('\n\n')
}

/** Sweeps, and what they are over. */
export const SWEEPS: readonly (readonly [scenario: string, title: string])[] = [
  ['sweep-rss', "With the host's memory"],
  ['sweep-threads', 'With threads that sleep on the machine'],
  ['sweep-mounts', "With the host's mounts"],
  ['sweep-arguments', 'With arguments and environment'],
  ['sweep-output', 'With output that is captured'],
  ['sweep-binds', "With a launch's own binds"],
  ['sweep-alive', 'With nests that are alive on the same fork server'],
]

/** What the README shows. */
export const summaryOf = (run: Run, image: (name: string) => string): string =>
  [image('latency'), targetsTable(run), image('heap'), `${describe(run).split('\n').slice(0, 2).join('\n')}.`]
    .filter((part) => part !== '')
    .join('\n\n')
