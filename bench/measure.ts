// Measures modes against each other: a few launches of the first, of the second, ..., and all over again, so that whatever
// else the machine does at one time happens to all of them alike.

import { Host, type Sample } from './hosts.ts'
import type { Gate } from './machine.ts'
import { progressBar } from './progress.ts'
import type { Programs } from './programs.ts'
import { rounded, type SampleRecord, type ScenarioRecord } from './samples.ts'
import type { Settings } from './settings.ts'
import { random } from './stats.ts'

/** Something that can be measured by itself. */
export interface Scenario {
  readonly name: string
  readonly what: string
  run(context: Context): Promise<ScenarioRecord[]>
}

/** One of the series that are compared. */
export interface Series {
  readonly mode: string
  /** See {@link SampleRecord.variant}. */
  readonly variant?: string
  /** Starts the host in another way. */
  readonly command?: readonly string[]
}

/** A series whose host runs. */
export interface OpenSeries extends Series {
  readonly host: Host
}

/** What a scenario gets. */
export interface Context {
  readonly scenario: string
  readonly settings: Settings
  readonly programs: Programs
  /** To be passed before each turn of all. */
  readonly gate: Gate
}

/** Modes that need a program which not every system has, or which not everybody may use. */
const OF_THE_SYSTEM: ReadonlySet<string> = new Set([
  'bwrap',
  'bwrap-binds',
  'unshare',
  'crun',
  'runc',
  'slow-spawn',
  'slow-nestbox',
  'slow-prewarmed',
])

/** Should this mode be there? What the system lacks need not, nor the floor where only `npm test` built. */
const shouldBeThere = (mode: string, { floor }: Programs): boolean =>
  mode.startsWith('floor-') ? floor !== undefined : !OF_THE_SYSTEM.has(mode)

/** What can be said of each turn. */
export interface TurnOptions {
  readonly launches?: number
  readonly warmUp?: number
  /** Milliseconds without pauses before that; none where the launches that come first are given and this is not. */
  readonly warmUpFor?: number
  /** Launches of one turn. */
  readonly turn?: number
  readonly pause?: number
  readonly watch?: boolean
  readonly size?: number
}

/** Opens those that can be opened; the others become records that say why they are missing. */
export const openAll = async (
  { scenario, programs }: Context,
  wanted: readonly Series[],
): Promise<{ open: OpenSeries[]; missing: ScenarioRecord[] }> => {
  const open: OpenSeries[] = []
  const missing: ScenarioRecord[] = []
  for (const series of wanted) {
    try {
      // One after the other: they are to be alike, and a fork server that starts is no quiet machine.
      const host = await Host.open(series.mode, programs, series.command)
      open.push({ ...series, host })
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error)
      missing.push({ type: 'missing', scenario, mode: series.mode, why, fault: shouldBeThere(series.mode, programs) })
    }
  }
  return { open, missing }
}

export const closeAll = async (open: readonly OpenSeries[]): Promise<void> => {
  await Promise.all(open.map(({ host }) => host.close()))
}

/**
 * The orders in which they take their turns: another one in each round, and nobody twice in succession. Back and forth would not do:
 * who comes first and who comes last would have every second turn right after one of their own, which is 3 % faster.
 */
export const orders = function* <T>(all: readonly T[]): Generator<T[], never> {
  const next = random(0x74_75_72_6e)
  let last: T | undefined
  for (;;) {
    const order = [...all]
    for (let rest = order.length; rest > 1; rest -= 1) {
      const [drawn] = order.splice(Math.floor(next() * rest), 1)
      if (drawn !== undefined) order.push(drawn)
    }
    const [first] = order
    if (first !== undefined && first === last) order.push(...order.splice(0, 1))
    last = order.at(-1)
    yield order
  }
}

/** Has hosts launch what is not counted: until V8 has compiled, and then as is measured, which is another path through the host. */
export const warmUpAll = async (
  { settings }: Context,
  open: readonly OpenSeries[],
  options: TurnOptions = {},
): Promise<void> => {
  const { warmUp, pause, watch, size } = { ...settings, ...options }
  const { warmUpFor = options.warmUp === undefined ? settings.warmUpFor : 0 } = options
  for (const { host } of open) if (warmUpFor > 0) await host.warmUp(warmUpFor, 0, size)
  // All are there by now.
  for (const { host } of open) {
    if (watch === true) await host.watch(2 * warmUpFor)
    else if (pause > 0) await host.warmUp(2 * warmUpFor, pause, size)
  }
  for (const { host } of open) if (warmUp > 0) await host.turn({ launches: warmUp, pause, watch, size })
}

/** Takes turns until each series has `launches` samples. */
export const takeTurns = async (
  context: Context,
  open: readonly OpenSeries[],
  options: TurnOptions = {},
): Promise<Map<OpenSeries, Sample[]>> => {
  const { scenario, settings, gate } = context
  const { launches, turn, pause, watch, size } = { ...settings, ...options }
  const samples = new Map<OpenSeries, Sample[]>(open.map((series) => [series, []]))
  await warmUpAll(context, open, options)
  const rounds = orders(open)
  for (let done = 0; done < launches; done += turn) {
    progressBar(scenario, done, launches)
    await gate.pass()
    // The order is the point.
    for (const series of rounds.next().value) {
      samples.get(series)?.push(...(await series.host.turn({ launches: turn, pause, watch, size })))
    }
  }
  return samples
}

/** The record of one series. */
export const toRecord = (
  { scenario, settings }: Context,
  { mode, variant = '' }: Series,
  samples: readonly Sample[],
  { turn = settings.turn, pause = settings.pause }: TurnOptions = {},
  at?: number,
): SampleRecord => {
  const column = (key: 'syncUs' | 'busyUs' | 'preempted' | 'strangers' | 'collected'): number[] =>
    rounded(samples.map((sample) => sample[key] ?? 0))
  const watched = samples[0]?.syncUs !== undefined
  return {
    type: 'samples',
    scenario,
    mode,
    variant,
    turn,
    ...(at === undefined ? undefined : { at }),
    pause,
    us: rounded(samples.map(({ us }) => us)),
    ...(watched
      ? {
          syncUs: column('syncUs'),
          busyUs: column('busyUs'),
          preempted: column('preempted'),
          strangers: column('strangers'),
          collected: column('collected'),
        }
      : undefined),
  }
}

/** The whole of what most scenarios do. */
export const compare = async (
  context: Context,
  wanted: readonly Series[],
  options: TurnOptions = {},
): Promise<ScenarioRecord[]> => {
  const { open, missing } = await openAll(context, wanted)
  try {
    const samples = await takeTurns(context, open, options)
    return [...[...samples].map(([series, taken]) => toRecord(context, series, taken, options)), ...missing]
  } finally {
    await closeAll(open)
  }
}

/** Series of these modes, as they are. */
export const plain = (modes: readonly string[]): Series[] => modes.map((mode) => ({ mode }))
