// What a launch takes from a host with a big heap, on a machine full of threads, from a host with many mounts.

import { pause } from '../machine.ts'
import {
  closeAll,
  compare,
  openAll,
  type OpenSeries,
  plain,
  type Scenario,
  takeTurns,
  toRecord,
  warmUpAll,
} from '../measure.ts'
import type { SampleRecord } from '../samples.ts'
import { inMountNamespace } from './mount-namespace.ts'
import { SETTLE, startSleepers, stopSleepers, threadsAlive } from './sleepers.ts'

// ---- a big host -------------------------------------------------------------------------------------------------------------

const AT_START = 'at start'
/** What a host of this many bytes is called. */
const grown = (bytes: number): string => `at ${Math.round(bytes / 1024 ** 2).toLocaleString('en')} MiB`

export const heap: Scenario = {
  name: 'heap',
  what: 'the host at 1 GiB of memory against itself at start, and what launches do to its event loop',
  async run(context) {
    const wanted = ['nestbox', 'spawn'].flatMap((mode) => [
      { mode, variant: AT_START },
      { mode, variant: grown(context.settings.ballast) },
    ])
    const { open, missing } = await openAll(context, wanted)
    try {
      for (const { host, variant } of open) {
        if (variant !== AT_START) await host.grow(context.settings.ballast)
      }
      // Two hosts, one of each size, rather than one that grows: so the sizes are interleaved like everything else.
      // What V8 compiles in one launch of a thousand would be the longest block of all.
      const { launches, warmUpFor } = context.settings
      const samples = await takeTurns(context, open, { watch: true, warmUp: launches, warmUpFor: 2 * warmUpFor })
      return [...[...samples].map(([series, taken]) => toRecord(context, series, taken)), ...missing]
    } finally {
      await closeAll(open)
    }
  },
}

// ---- a full machine ---------------------------------------------------------------------------------------------------------

export const threads: Scenario = {
  name: 'threads',
  what: '20,000 sleeping threads on the machine against none',
  async run(context) {
    const { settings, programs } = context
    const wanted = plain(['nestbox', 'nestbox-cold', 'sandbox2-nested', 'sandbox2-direct', 'spawn'])
    const { open, missing } = await openAll(context, wanted)
    const found = new Map<OpenSeries, { none: SampleRecord['us'][]; many: SampleRecord['us'][] }>(
      open.map((series) => [series, { none: [], many: [] }]),
    )
    const block = Math.ceil(settings.launches / settings.threadBlocks)
    const measure = async (variant: 'none' | 'many'): Promise<void> => {
      await pause(Math.min(SETTLE, settings.launches * 10))
      const samples = await takeTurns(context, open, { launches: block, warmUp: settings.turn })
      for (const [series, taken] of samples) found.get(series)?.[variant].push(taken.map(({ us }) => us))
    }
    try {
      await warmUpAll(context, open)
      const baseline = threadsAlive()
      // In blocks, because the threads are the whole machine's: what is measured with them can't take turns with what is not.
      for (let done = 0; done < settings.threadBlocks; done += 1) {
        await measure('none')
        const sleepers = await startSleepers(programs.sleepers, settings.threads)
        try {
          await measure('many')
        } finally {
          await stopSleepers(sleepers, baseline)
        }
      }
    } finally {
      await closeAll(open)
    }
    const records = [...found].flatMap(([series, { none, many }]) =>
      [
        { variant: 'none', blocks: none },
        { variant: `${settings.threads} threads`, blocks: many },
      ].map(({ variant, blocks }) =>
        toRecord(
          context,
          { ...series, variant },
          blocks.flat().map((us) => ({ us })),
        ),
      ),
    )
    return [...records, ...missing]
  },
}

// ---- a host with many mounts ------------------------------------------------------------------------------------------------

export const mounts: Scenario = {
  name: 'mounts',
  what: '320 more mounts on the host against none',
  run(context) {
    const { settings, programs } = context
    const wanted = ['nestbox', 'nestbox-cold', 'sandbox2-nested', 'bwrap', 'spawn'].flatMap((mode) =>
      [0, settings.mounts].map((count) => ({
        mode,
        variant: count === 0 ? 'none' : `${count} mounts`,
        command: inMountNamespace(count, programs.scratch),
      })),
    )
    return compare(context, wanted)
  },
}
