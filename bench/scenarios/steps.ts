// Where the time of one launch goes, by the core's own account; and launches as a trace.

import type { StepSample } from '../hosts.ts'
import { closeAll, type Context, openAll, type OpenSeries, plain, type Scenario, warmUpAll } from '../measure.ts'
import { progressBar } from '../progress.ts'
import { rounded, type ScenarioRecord, type StepsRecord } from '../samples.ts'

/** The steps of launches as the core reports them, and before and after them what JavaScript and the way to it take. */
const toSteps = (context: Context, mode: string, samples: readonly StepSample[]): StepsRecord => {
  const { scenario } = context
  /** Not every launch has every step; each is put where it begins on the average. */
  const columns = new Map<string, { us: number[]; begins: number }>()
  const put = (step: string, begin: number, us: number): void => {
    const column = columns.get(step) ?? { us: [], begins: 0 }
    column.us.push(us)
    column.begins += begin
    columns.set(step, column)
  }
  for (const { totalMs, timings } of samples) {
    // Some are made more than once in one launch: a tmpfs for each directory.
    const spent = new Map<string, { begin: number; ms: number }>()
    let begin = 0
    for (const { step, ms } of timings.steps) {
      const known = spent.get(step)
      spent.set(step, { begin: known?.begin ?? begin, ms: (known?.ms ?? 0) + ms })
      begin += ms
    }
    for (const [step, { begin: at, ms }] of spent) put(step, at, ms * 1000)
    put(PROGRAM, timings.setupMs, timings.execMs * 1000)
    put(IN_JAVASCRIPT, Infinity, (totalMs - timings.setupMs - timings.execMs) * 1000)
    put(IN_ALL, Infinity, totalMs * 1000)
  }
  const ordered = [...columns].toSorted(([, a], [, b]) => {
    const [left, right] = [a.begins / a.us.length, b.begins / b.us.length]
    return left === right ? 0 : left - right
  })
  return { type: 'steps', scenario, mode, steps: ordered.map(([step, { us }]) => ({ step, us: rounded(us) })) }
}

/** From exec until all of the nest is dead. */
const PROGRAM = 'the program, to its end'
/** Checking the request before it is sent, waking up for the answer, making the result. */
const IN_JAVASCRIPT = 'the host, before and after'
/** From the call until the result is known. */
export const IN_ALL = 'in all'

export const steps: Scenario = {
  name: 'steps',
  what: 'where the time of one launch goes',
  async run(context) {
    const { settings } = context
    const { open, missing } = await openAll(context, plain(['nestbox', 'nestbox-cold']))
    try {
      const records: ScenarioRecord[] = []
      const samples = new Map<OpenSeries, StepSample[]>(open.map((series) => [series, []]))
      await warmUpAll(context, open)
      for (let done = 0; done < settings.launches; done += settings.turn) {
        progressBar(context.scenario, done, settings.launches)
        await context.gate.pass()
        for (const series of open)
          samples.get(series)?.push(...(await series.host.steps(settings.turn, settings.pause)))
      }
      for (const [{ mode }, taken] of samples) records.push(toSteps(context, mode, taken))
      return [...records, ...missing]
    } finally {
      await closeAll(open)
    }
  },
}

/** Launches as the events of a trace: warm and cold ones, one after the other and many at once. */
export const traceLaunches = async (context: Context): Promise<object[]> => {
  const { open } = await openAll(context, plain(['nestbox', 'nestbox-cold']))
  try {
    const { settings } = context
    const events: object[] = []
    for (const { host } of open) {
      await host.turn({ launches: settings.warmUp, pause: settings.pause })
      events.push(...(await host.trace(settings.turn, 2 * settings.turn, settings.pause)))
    }
    return events
  } finally {
    await closeAll(open)
  }
}
