// What nestbox promises, and whether a run shows it. A promise is kept if the estimate keeps it; the interval says how sure
// that is.

import type { MemoryRecord, NestsRecord, Run, SampleRecord, ThroughputRecord } from './samples.ts'
import { type Estimate, median, quantile, ratioOfMedians, ratioOfQuantiles } from './stats.ts'

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

/** The series of a mode at a point of a sweep. */
export const pointOf = (run: Run, scenario: string, mode: string, at: number): SampleRecord | undefined =>
  run.records.find(
    (record): record is SampleRecord =>
      record.type === 'samples' && record.scenario === scenario && record.mode === mode && record.at === at,
  )

/** The series of a mode; the only one, the first (`0`) or the second (`1`) of its variants. */
export const samplesOf = (run: Run, scenario: string, mode: string, variant = 0): SampleRecord | undefined =>
  run.records.filter(
    (record): record is SampleRecord =>
      record.type === 'samples' && record.scenario === scenario && record.mode === mode,
  )[variant]

export const memoryOf = (run: Run): MemoryRecord | undefined =>
  run.records.find((record): record is MemoryRecord => record.type === 'memory')

export const nestsOf = (run: Run): NestsRecord | undefined =>
  run.records.find((record): record is NestsRecord => record.type === 'nests')

/** The ratio of two series, or nothing if one of them is missing. */
export const ratioBetween = (over: SampleRecord | undefined, under: SampleRecord | undefined): Estimate | undefined =>
  over === undefined || under === undefined ? undefined : ratioOfMedians(over.us, under.us, over.turn)

export const showEstimate = ({ value, low, high }: Estimate): string =>
  `${value.toFixed(2)} (${low.toFixed(2)}–${high.toFixed(2)})`

type Beside = readonly (readonly [string, Estimate | undefined])[]

const ratioOutcome = (
  measure: string,
  bound: { readonly most: number } | { readonly least: number },
  estimate: Estimate | undefined,
  beside?: Beside,
): Outcome => {
  const also = (beside ?? [])
    .filter(([, other]) => other !== undefined)
    .map(([name, other]) => `${name}: ${other?.value.toFixed(2)}`)
    .join(', ')
  return {
    measure,
    target: 'most' in bound ? `≤ ${bound.most.toFixed(2)}` : `≥ ${bound.least.toFixed(2)}`,
    measured: estimate === undefined ? undefined : showEstimate(estimate),
    met: estimate === undefined ? undefined : isWithin(estimate.value, bound),
    ...(also === '' ? undefined : { beside: also }),
  }
}

const isWithin = (value: number, bound: { readonly most: number } | { readonly least: number }): boolean =>
  'most' in bound ? value <= bound.most : value >= bound.least

/** The longest that one launch can have kept the event loop: in the call, or in all that came after it. */
const longestBlocks = ({ syncUs = [], busyUs = [] }: SampleRecord): number[] =>
  syncUs.map((sync, index) => Math.max(sync, (busyUs[index] ?? sync) - sync))

/**
 * The blocks of those launches during which nobody else can have had the host's processor, and of the others. Set aside is, whether
 * it was long or short, each during which the kernel took the processor from the host *and* a process ran that has nothing to do
 * with the launch. What the launch wakes, and what V8 and the kernel do for it, is its own. `uncollected` are those of its own during
 * which V8 collected no garbage; runs from before this was noted have none.
 */
export const splitBlocks = (record: SampleRecord): { own: number[]; uncollected: number[]; disturbed: number[] } => {
  const isDisturbed = (index: number): boolean => record.preempted?.[index] === 1 && record.strangers?.[index] === 1
  const blocks = longestBlocks(record)
  return {
    own: blocks.filter((_, index) => !isDisturbed(index)),
    uncollected: blocks.filter((_, index) => !isDisturbed(index) && record.collected?.[index] === 0),
    disturbed: blocks.filter((_, index) => isDisturbed(index)),
  }
}

export const MILLISECOND = 1000

const milliseconds = (us: number): string => `${(us / MILLISECOND).toFixed(2)} ms`

/** In how many V8 collected garbage, and what is the longest without them; nothing of a run that did not note it. */
const collections = (own: readonly number[], uncollected: readonly number[]): string[] => {
  if (uncollected.length === 0) return []
  const count = own.length - uncollected.length
  const without = count === 0 ? '' : `, without these: ${milliseconds(Math.max(...uncollected))}`
  return [`with a collection of V8's garbage: ${count}${without}`]
}

const blockOutcome = (run: Run): Outcome => {
  const measure = 'longest block of the event loop by a launch, host at 1 GiB'
  const target = '≤ 1 ms'
  const grown = samplesOf(run, 'heap', 'nestbox', 1)
  if (grown === undefined) return { measure, target, measured: undefined, met: undefined }
  const { own, uncollected, disturbed } = splitBlocks(grown)
  const longest = Math.max(...own)
  const above = own.filter((us) => us > MILLISECOND).length
  const spawn = samplesOf(run, 'heap', 'spawn', 1)
  const beside = [
    `above 1 ms: ${above} of ${own.length}`,
    `p99: ${milliseconds(quantile(own, 0.99))}`,
    ...collections(own, uncollected),
    ...(disturbed.length === 0
      ? []
      : [`set aside as disturbed by others: ${disturbed.length}, up to ${milliseconds(Math.max(...disturbed))}`]),
    ...(spawn === undefined ? [] : [`child_process.spawn, p50: ${milliseconds(median(splitBlocks(spawn).own))}`]),
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

/** What it may take until the host knows of a violation, in milliseconds. */
const VIOLATION_HEARD = 2

const violationOutcome = (run: Run): Outcome => {
  const measure = "from a forbidden call (`'report'`) until the host hears of the violation, p50"
  const target = `≤ ${VIOLATION_HEARD} ms`
  const heard = samplesOf(run, 'violation', 'nestbox-violation')
  if (heard === undefined) return { measure, target, measured: undefined, met: undefined }
  const killed = samplesOf(run, 'violation', 'nestbox-violation-kill')
  return {
    measure,
    target,
    measured: milliseconds(median(heard.us)),
    met: median(heard.us) <= VIOLATION_HEARD * MILLISECOND,
    beside: [`p99: ${milliseconds(quantile(heard.us, 0.99))}`]
      .concat(killed === undefined ? [] : `'kill': ${milliseconds(median(killed.us))}`)
      .join(', '),
  }
}

/** What a nest may take that waits for its launch. */
const MOST_PER_NEST = 300

const nestOutcome = (run: Run): Outcome => {
  const found = nestsOf(run)
  return {
    measure: 'proportional memory of a warm nest',
    target: `≤ ${MOST_PER_NEST} KiB`,
    measured: found === undefined ? undefined : `${found.pssKib} KiB`,
    met: found === undefined ? undefined : found.pssKib <= MOST_PER_NEST,
    ...(found === undefined ? undefined : { beside: `with the kernel's own: ${Math.round(found.availableKib)} KiB` }),
  }
}

/** The slowest in a hundred against the median, of one series. */
const tailOf = (record: SampleRecord | undefined): Estimate | undefined =>
  record === undefined
    ? undefined
    : ratioOfQuantiles({ values: record.us, q: 0.99 }, { values: record.us, q: 0.5 }, record.turn)

/** Launches a second of one mode against another's. */
const throughputRatio = (run: Run, inFlight: number, over: string, under: string): Estimate | undefined => {
  const of = (mode: string): ThroughputRecord | undefined =>
    run.records.find(
      (record): record is ThroughputRecord =>
        record.type === 'throughput' && record.mode === mode && record.inFlight === inFlight,
    )
  const [top, bottom] = [of(over), of(under)]
  return top === undefined || bottom === undefined ? undefined : ratioOfMedians(top.perSecond, bottom.perSecond, 1)
}

/** Launches in flight, and bytes captured, that promises are about. */
const IN_FLIGHT = 64
const CAPTURED = 64 * 1024 ** 2

export const outcomes = (run: Run): Outcome[] => {
  const of = (scenario: string, mode: string, variant?: number): SampleRecord | undefined =>
    samplesOf(run, scenario, mode, variant)
  const ratio = (scenario: string, over: string, under: string): Estimate | undefined =>
    ratioBetween(of(scenario, over), of(scenario, under))
  const growth = (scenario: string, mode: string): Estimate | undefined =>
    ratioBetween(of(scenario, mode, 1), of(scenario, mode, 0))
  return [
    // ---- the first promises: against others, and whatever the host is like
    ratioOutcome(
      '`sandbox.run`, stdio ignored, against bare `child_process.spawn`',
      { most: 0.6 },
      ratio('ignore', 'nestbox', 'spawn'),
      [['with nothing made ahead', ratio('ignore', 'nestbox-cold', 'spawn')]],
    ),
    ratioOutcome(
      '`sandbox.run`, capturing stdout, against `child_process.execFile`',
      { most: 0.6 },
      ratio('capture', 'nestbox-capture', 'execFile'),
      [['with nothing made ahead', ratio('capture', 'nestbox-cold-capture', 'execFile')]],
    ),
    ratioOutcome('`sandbox.run` against `bwrap --unshare-all`', { most: 0.12 }, ratio('ignore', 'nestbox', 'bwrap'), [
      ['with nothing made ahead', ratio('ignore', 'nestbox-cold', 'bwrap')],
    ]),
    ratioOutcome('the host at 1 GiB against itself at start', { most: 1.2 }, growth('heap', 'nestbox'), [
      ['child_process.spawn', growth('heap', 'spawn')],
    ]),
    blockOutcome(run),
    ratioOutcome(
      "20,000 sleeping threads on the machine against none, `pivot: 'nested'`",
      { most: 1.25 },
      growth('threads', 'sandbox2-nested'),
      [
        ["pivot: 'direct'", growth('threads', 'sandbox2-direct')],
        ['sandbox.run', growth('threads', 'nestbox')],
        ['sandbox.run, cold', growth('threads', 'nestbox-cold')],
        ['child_process.spawn', growth('threads', 'spawn')],
      ],
    ),
    ratioOutcome('320 more mounts on the host against none', { most: 1.2 }, growth('mounts', 'nestbox'), [
      ['sandbox.run, cold', growth('mounts', 'nestbox-cold')],
      ['bwrap', growth('mounts', 'bwrap')],
      ["pivot: 'nested'", growth('mounts', 'sandbox2-nested')],
    ]),
    memoryOutcome(run),
    // ---- the filter
    ratioOutcome(
      "the default syscall filter against `'unfiltered'`, warm",
      { most: 1.05 },
      ratio('filter', 'nestbox', 'nestbox-unfiltered'),
      [['with nothing made ahead', ratio('filter-cold', 'nestbox-cold', 'nestbox-cold-unfiltered')]],
    ),
    ratioOutcome(
      "a filter whose default action is `'report'` against `'unfiltered'`, warm",
      { most: 1.15 },
      ratio('filter', 'nestbox-report', 'nestbox-unfiltered'),
      [['with nothing made ahead', ratio('filter-cold', 'nestbox-cold-report', 'nestbox-cold-unfiltered')]],
    ),
    violationOutcome(run),
    // ---- close to the floor
    ratioOutcome(
      'cold `sandbox.run` (`warm: 0`), all namespaces, against the cold floor',
      { most: 1.3 },
      ratio('ignore', 'nestbox-cold', 'floor-cold'),
    ),
    ratioOutcome(
      'warm `sandbox.run` against bare vfork, exec and wait of the same program',
      { most: 3.5 },
      ratio('ignore', 'nestbox', 'floor-bare'),
      [['the warm floor', ratio('ignore', 'floor-warm', 'floor-bare')]],
    ),
    ratioOutcome(
      'warm `sandbox.run` against bare `child_process.spawn`',
      { most: 0.3 },
      ratio('ignore', 'nestbox', 'spawn'),
      [['back to back', ratio('back-to-back', 'nestbox', 'spawn')]],
    ),
    ratioOutcome(
      'a network namespace of its own against `shared-loopback`, cold, back to back',
      { most: 1.1 },
      ratio('back-to-back', 'nestbox-cold', 'nestbox-cold-shared-loopback'),
      [['with pauses', ratio('ignore', 'nestbox-cold', 'nestbox-cold-shared-loopback')]],
    ),
    ratioOutcome('p99 against p50 of warm `sandbox.run`, one at a time', { most: 4 }, tailOf(of('tail', 'nestbox')), [
      ['child_process.spawn', tailOf(of('tail', 'spawn'))],
      ['the warm floor', tailOf(of('tail', 'floor-warm'))],
    ]),
    ratioOutcome(
      'launches a second at 64 in flight against bare `child_process.spawn`',
      { least: 2.5 },
      throughputRatio(run, IN_FLIGHT, 'nestbox', 'spawn'),
    ),
    ratioOutcome(
      'launches a second at 64 in flight against the floor on as many processors',
      { least: 0.75 },
      throughputRatio(run, IN_FLIGHT, 'nestbox', 'floor-cold'),
    ),
    nestOutcome(run),
    ratioOutcome(
      'capturing 64 MiB of output against `child_process.spawn` piping it',
      { most: 1 },
      ratioBetween(
        pointOf(run, 'sweep-output', 'nestbox-output', CAPTURED),
        pointOf(run, 'sweep-output', 'spawn-output', CAPTURED),
      ),
    ),
  ]
}
