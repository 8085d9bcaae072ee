// How the cost of a launch grows: with the host's memory, the machine's threads, the host's mounts, the size of what is passed,
// captured and bound, and the number of nests alive. Few points and few launches each: the shape is what is looked at.

import os from 'node:os'

import {
  closeAll,
  type Context,
  openAll,
  type OpenSeries,
  plain,
  type Scenario,
  takeTurns,
  toRecord,
  warmUpAll,
} from '../measure.ts'
import { pause } from '../machine.ts'
import { progressBar } from '../progress.ts'
import type { ScenarioRecord } from '../samples.ts'
import type { Sample } from '../hosts.ts'
import { inMountNamespace } from './mount-namespace.ts'
import { SETTLE, startSleepers, stopSleepers, threadsAlive } from './sleepers.ts'

/** Launches before each point. */
const WARM_UP = 4

/** Of one point after the other, the first must not be the one that V8 was busy with. */
const warmUp = (context: Context, open: readonly OpenSeries[]): Promise<void> =>
  warmUpAll(context, open, { warmUp: WARM_UP, warmUpFor: context.settings.warmUpFor / 3 })

const binary = (bytes: number): string => {
  if (bytes >= 1024 ** 3) return `${bytes / 1024 ** 3} GiB`
  if (bytes >= 1024 ** 2) return `${bytes / 1024 ** 2} MiB`
  return bytes >= 1024 ? `${bytes / 1024} KiB` : `${bytes} B`
}

/** A sweep over something that each launch has: its points take turns like modes do. */
const overLaunches = (
  name: string,
  what: string,
  modes: readonly string[],
  points: (context: Context) => readonly number[],
  describe: (at: number) => string,
): Scenario => ({
  name,
  what,
  async run(context) {
    const { settings, scenario, gate } = context
    const options = { turn: settings.turn }
    const { open, missing } = await openAll(context, plain(modes))
    const taken = points(context).flatMap((at) => open.map((series) => ({ at, series, samples: [] as Sample[] })))
    try {
      await warmUp(context, open)
      for (const { at, series } of taken) {
        await series.host.turn({ launches: WARM_UP, pause: settings.pause, size: at })
      }
      for (let done = 0; done < settings.sweepLaunches; done += settings.turn) {
        progressBar(scenario, done, settings.sweepLaunches)
        await gate.pass()
        for (const { at, series, samples } of taken) {
          samples.push(...(await series.host.turn({ launches: settings.turn, pause: settings.pause, size: at })))
        }
      }
      const record = ({ at, series, samples }: (typeof taken)[number]): ScenarioRecord =>
        toRecord(context, { ...series, variant: describe(at) }, samples, options, at)
      return [...taken.map(record), ...missing]
    } finally {
      await closeAll(open)
    }
  },
})

/** A sweep over something that the host or the machine has: one point after the other, upwards. */
const overStates = (
  name: string,
  what: string,
  modes: readonly string[],
  points: (context: Context) => readonly number[],
  describe: (at: number) => string,
  /** Brings the state about; what it answers takes it away again, once all is measured. */
  enter: (at: number, open: readonly OpenSeries[], context: Context) => Promise<(() => Promise<void>) | undefined>,
): Scenario => ({
  name,
  what,
  async run(context) {
    const { settings } = context
    const options = { launches: settings.sweepLaunches, warmUp: WARM_UP }
    const { open, missing } = await openAll(context, plain(modes))
    const records: ScenarioRecord[] = []
    try {
      await warmUp(context, open)
      for (const at of points(context)) {
        const leave = await enter(at, open, context)
        try {
          const samples = await takeTurns(context, open, options)
          for (const [series, taken] of samples) {
            records.push(toRecord(context, { ...series, variant: describe(at) }, taken, options, at))
          }
        } finally {
          await leave?.()
        }
      }
      return [...records, ...missing]
    } finally {
      await closeAll(open)
    }
  },
})

const count = (unit: string) => (at: number) => `${at.toLocaleString('en')} ${unit}`

const rss = overStates(
  'sweep-rss',
  "the host's memory",
  ['nestbox', 'spawn'],
  // Two hosts of that size, and room for everybody else.
  ({ settings }) => settings.sweeps.rss.filter((at) => 3 * at < os.freemem()),
  (at) => (at === 0 ? 'at start' : binary(at)),
  async (at, open) => {
    for (const { host } of open) await host.grow(at)
    return undefined
  },
)

const threads = overStates(
  'sweep-threads',
  'sleeping threads on the machine',
  ['nestbox', 'nestbox-cold', 'sandbox2-nested', 'sandbox2-direct', 'spawn'],
  ({ settings }) => settings.sweeps.threads,
  count('threads'),
  async (at, _, { programs }) => {
    if (at === 0) return undefined
    const baseline = threadsAlive()
    const sleepers = await startSleepers(programs.sleepers, at)
    await pause(SETTLE)
    return () => stopSleepers(sleepers, baseline)
  },
)

/** All at once: every host has a mount namespace of its own. */
const mounts: Scenario = {
  name: 'sweep-mounts',
  what: "the host's mounts",
  async run(context) {
    const { settings, programs } = context
    const options = { launches: settings.sweepLaunches, warmUp: WARM_UP }
    const wanted = settings.sweeps.mounts.flatMap((at) =>
      ['nestbox', 'nestbox-cold', 'sandbox2-nested', 'bwrap', 'spawn'].map((mode) => ({
        mode,
        at,
        variant: `${at.toLocaleString('en')} more`,
        command: inMountNamespace(at, programs.scratch),
      })),
    )
    const { open, missing } = await openAll(context, wanted)
    try {
      await warmUp(context, open)
      const samples = await takeTurns(context, open, options)
      const atOf = new Map(wanted.map(({ mode, variant, at }) => [`${mode} ${variant}`, at]))
      const records = [...samples].map(([series, taken]) =>
        toRecord(context, series, taken, options, atOf.get(`${series.mode} ${series.variant}`)),
      )
      return [...records, ...missing]
    } finally {
      await closeAll(open)
    }
  },
}

const alive = overStates(
  'sweep-alive',
  'nests that are alive on the same fork server, parked in their programs',
  ['nestbox', 'spawn', 'floor-cold'],
  ({ settings }) => settings.sweeps.alive,
  count('nests alive'),
  async (at, open) => {
    for (const { host, mode } of open) {
      if (mode === 'nestbox') await host.crowd(at)
    }
    await pause(SETTLE)
    return undefined
  },
)

export const sweeps: readonly Scenario[] = [
  rss,
  threads,
  mounts,
  overLaunches(
    'sweep-arguments',
    'arguments and environment',
    ['nestbox-arguments', 'spawn-arguments'],
    ({ settings }) => settings.sweeps.arguments,
    binary,
  ),
  overLaunches(
    'sweep-output',
    'output that is captured',
    ['nestbox-output', 'spawn-output'],
    ({ settings }) => settings.sweeps.output,
    binary,
  ),
  overLaunches(
    'sweep-binds',
    "a launch's own binds",
    ['nestbox-binds', 'bwrap-binds'],
    ({ settings }) => settings.sweeps.binds,
    count('binds'),
  ),
  alive,
]
