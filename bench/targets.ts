// What nestbox promises, and whether a run shows it. A promise is kept if the estimate keeps it; the interval says how sure
// that is.

import type { MemoryRecord, Run, SampleRecord } from './samples.ts'
import { type Estimate, median, quantile, ratioOfMedians } from './stats.ts'

/** One promise against what was measured. */
export interface Outcome {
  readonly measure: string
  readonly target: string
  /** What was measured, ready for a table; undefined if it was not. */
  readonly measured: string | undefined
  readonly met: boolean | undefined
  /** Shown beside it, and not judged. */
  readonly beside?: string
}

/** The series of a mode; the only one, the first (`0`) or the second (`1`) of its variants. */
export const samplesOf = (run: Run, scenario: string, mode: string, variant = 0): SampleRecord | undefined =>
  run.records.filter(
    (record): record is SampleRecord =>
      record.type === 'samples' && record.scenario === scenario && record.mode === mode,
  )[variant]

export const memoryOf = (run: Run): MemoryRecord | undefined =>
  run.records.find((record): record is MemoryRecord => record.type === 'memory')

/** The ratio of two series, or nothing if one of them is missing. */
export const ratioBetween = (over: SampleRecord | undefined, under: SampleRecord | undefined): Estimate | undefined =>
  over === undefined || under === undefined ? undefined : ratioOfMedians(over.us, under.us, over.turn)

export const showEstimate = ({ value, low, high }: Estimate): string =>
  `${value.toFixed(2)} (${low.toFixed(2)}–${high.toFixed(2)})`

const ratioOutcome = (
  measure: string,
  most: number,
  estimate: Estimate | undefined,
  beside?: readonly (readonly [string, Estimate | undefined])[],
): Outcome => {
  const also = (beside ?? [])
    .filter(([, other]) => other !== undefined)
    .map(([name, other]) => `${name}: ${other?.value.toFixed(2)}`)
    .join(', ')
  return {
    measure,
    target: `≤ ${most.toFixed(2)}`,
    measured: estimate === undefined ? undefined : showEstimate(estimate),
    met: estimate === undefined ? undefined : estimate.value <= most,
    ...(also === '' ? undefined : { beside: also }),
  }
}

/** The longest that one launch can have kept the event loop: in the call, or in all that came after it. */
export const longestBlocks = ({ syncUs = [], busyUs = [] }: SampleRecord): number[] =>
  syncUs.map((sync, index) => Math.max(sync, (busyUs[index] ?? sync) - sync))

/**
 * Without the launches during which the kernel took the processor from the host. Shown, and not what is judged: the process
 * that a launch wakes may be the one that takes it, so what is left out here is not only other people's doing.
 */
export const unpreemptedBlocks = (record: SampleRecord): number[] =>
  longestBlocks(record).filter((_, index) => record.preempted?.[index] !== 1)

export const MILLISECOND = 1000

const milliseconds = (us: number): string => `${(us / MILLISECOND).toFixed(2)} ms`

const blockOutcome = (run: Run): Outcome => {
  const measure = 'longest block of the event loop by a launch, host at 1 GiB'
  const target = '≤ 1 ms'
  const grown = samplesOf(run, 'heap', 'nestbox', 1)
  if (grown === undefined) return { measure, target, measured: undefined, met: undefined }
  const blocks = longestBlocks(grown)
  const longest = Math.max(...blocks)
  const above = blocks.filter((us) => us > MILLISECOND).length
  const spawn = samplesOf(run, 'heap', 'spawn', 1)
  const beside = [
    `above 1 ms: ${above} of ${blocks.length}`,
    `p99: ${milliseconds(quantile(blocks, 0.99))}`,
    `longest without preemption: ${milliseconds(Math.max(...unpreemptedBlocks(grown)))}`,
    ...(spawn === undefined ? [] : [`child_process.spawn, p50: ${milliseconds(median(longestBlocks(spawn)))}`]),
  ]
  return {
    measure,
    target,
    measured: milliseconds(longest),
    met: longest <= MILLISECOND,
    beside: beside.join(', '),
  }
}

const MOST_MEMORY = 4 * 1024

const memoryOutcome = (run: Run): Outcome => {
  const processes = memoryOf(run)?.processes
  const total = processes?.reduce((sum, { pssKib }) => sum + pssKib, 0)
  return {
    measure: 'proportional memory of fork server and one template',
    target: '≤ 4 MiB',
    measured: total === undefined ? undefined : `${(total / 1024).toFixed(2)} MiB`,
    met: total === undefined ? undefined : total <= MOST_MEMORY,
    ...(processes === undefined ? undefined : { beside: `${processes.length} processes` }),
  }
}

export const outcomes = (run: Run): Outcome[] => {
  const of = (scenario: string, mode: string, variant?: number): SampleRecord | undefined =>
    samplesOf(run, scenario, mode, variant)
  const growth = (scenario: string, mode: string): Estimate | undefined =>
    ratioBetween(of(scenario, mode, 1), of(scenario, mode, 0))
  return [
    ratioOutcome(
      '`sandbox.run`, stdio ignored, against bare `child_process.spawn`',
      0.6,
      ratioBetween(of('ignore', 'nestbox'), of('ignore', 'spawn')),
    ),
    ratioOutcome(
      '`sandbox.run`, capturing stdout, against `child_process.execFile`',
      0.6,
      ratioBetween(of('capture', 'nestbox-capture'), of('capture', 'execFile')),
    ),
    ratioOutcome(
      '`sandbox.run` against `bwrap --unshare-all`',
      0.12,
      ratioBetween(of('ignore', 'nestbox'), of('ignore', 'bwrap')),
    ),
    ratioOutcome('the host at 1 GiB against itself at start', 1.2, growth('heap', 'nestbox'), [
      ['child_process.spawn', growth('heap', 'spawn')],
    ]),
    blockOutcome(run),
    ratioOutcome(
      "20,000 sleeping threads on the machine against none, `pivot: 'nested'`",
      1.25,
      growth('threads', 'sandbox2-nested'),
      [
        ["pivot: 'direct'", growth('threads', 'sandbox2-direct')],
        ['sandbox.run', growth('threads', 'nestbox')],
        ['child_process.spawn', growth('threads', 'spawn')],
      ],
    ),
    ratioOutcome('320 more mounts on the host against none', 1.2, growth('mounts', 'nestbox'), [
      ['bwrap', growth('mounts', 'bwrap')],
      ["pivot: 'nested'", growth('mounts', 'sandbox2-nested')],
    ]),
    memoryOutcome(run),
  ]
}
