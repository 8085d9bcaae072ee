// How many launches a second there are with many in flight.

import { closeAll, openAll, type OpenSeries, plain, type Scenario, warmUpAll } from '../measure.ts'
import { progressBar } from '../progress.ts'
import { rounded, type ScenarioRecord } from '../samples.ts'

export const throughput: Scenario = {
  name: 'throughput',
  what: 'launches a second with 1, 8, 64 and 256 in flight',
  async run(context) {
    const { scenario, settings } = context
    const wanted = plain([
      'nestbox',
      'nestbox-cold-shared-loopback',
      'unsandboxed',
      'spawn',
      'floor-cold',
      'floor-bare',
    ])
    const { open, missing } = await openAll(context, wanted)
    const rates = new Map<string, { series: OpenSeries; inFlight: number; perSecond: number[] }>()
    try {
      await warmUpAll(context, open, { pause: 0 })
      for (let done = 0; done < settings.floods; done += 1) {
        progressBar(scenario, done, settings.floods)
        for (const inFlight of settings.inFlight) {
          for (const series of open) {
            await context.gate.pass()
            const ms = await series.host.flood(settings.flood, inFlight)
            const key = `${series.mode} ${inFlight}`
            const entry = rates.get(key) ?? { series, inFlight, perSecond: [] }
            entry.perSecond.push(settings.flood / (ms / 1000))
            rates.set(key, entry)
          }
        }
      }
    } finally {
      await closeAll(open)
    }
    const records = [...rates.values()].map(({ series, inFlight, perSecond }): ScenarioRecord => {
      const { flood: launches } = settings
      return { type: 'throughput', scenario, mode: series.mode, inFlight, launches, perSecond: rounded(perSecond) }
    })
    return [...records, ...missing]
  },
}
