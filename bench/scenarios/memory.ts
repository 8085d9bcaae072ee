// What stays in memory: the fork server with one template, and warm nests.

import { pause } from '../machine.ts'
import { closeAll, type Context, openAll, type OpenSeries, plain, type Scenario } from '../measure.ts'
import type { MemoryRecord, NestsRecord } from '../samples.ts'
import { familyOf, memoryAvailable, memoryOfAll, memoryOfProcess } from './processes.ts'

/** The last nests are still being taken down, and are none of what stays. */
const SETTLE = 500

const measure = async (
  { scenario, settings }: Context,
  { host }: OpenSeries,
): Promise<readonly [MemoryRecord, NestsRecord]> => {
  await host.turn({ launches: settings.warmUp, pause: settings.pause })
  const server = await host.server()
  await pause(SETTLE)
  const family = familyOf(server)
  const before = memoryOfAll(family)
  const processes = family.flatMap(memoryOfProcess)
  // The first ones bring a template of their own, which is not theirs.
  await host.crowd(1)
  await pause(SETTLE)
  const one = memoryOfAll(familyOf(server))
  const availableOne = memoryAvailable()
  await host.crowd(1 + settings.nests)
  await pause(SETTLE)
  const all = memoryOfAll(familyOf(server))
  const perNest = (kib: number): number => Math.round((kib / settings.nests) * 10) / 10
  if (!(all > one && one > before)) throw new Error('warm nests were made, and no memory was taken')
  return [
    { type: 'memory', scenario, processes },
    {
      type: 'nests',
      scenario,
      nests: settings.nests,
      pssKib: perNest(all - one),
      availableKib: perNest(availableOne - memoryAvailable()),
    },
  ]
}

export const memory: Scenario = {
  name: 'memory',
  what: 'proportional memory of the fork server with one template, and of warm nests',
  async run(context) {
    const { open, missing } = await openAll(context, plain(['nestbox-cold']))
    try {
      const [series] = open
      return [...(series === undefined ? [] : await measure(context, series)), ...missing]
    } catch (error) {
      // These processes let nobody look into them but root.
      if ((error as NodeJS.ErrnoException).code !== 'EACCES') throw error
      const why = 'only root may look into these processes'
      return [{ type: 'missing', scenario: context.scenario, mode: 'nestbox-cold', why, fault: false }]
    } finally {
      await closeAll(open)
    }
  },
}
