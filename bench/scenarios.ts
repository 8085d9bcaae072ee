// What is measured. Each scenario opens the hosts that it needs, measures them interleaved, and closes them; what it returns
// goes into the file of the run as it is.

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'

import type { StepSample } from './hosts.ts'
import { pause } from './machine.ts'
import { closeAll, compare, type Context, openAll, type OpenSeries, takeTurns, toRecord } from './measure.ts'
import { progressBar } from './progress.ts'
import { type MemoryRecord, rounded, type SampleRecord, type ScenarioRecord, type StepsRecord } from './samples.ts'

/** Something that can be measured by itself. */
export interface Scenario {
  readonly name: string
  readonly what: string
  run(context: Context): Promise<ScenarioRecord[]>
}

// ---- latency ----------------------------------------------------------------------------------------------------------------

const ignore: Scenario = {
  name: 'ignore',
  what: 'a trivial static program, stdio ignored',
  run: (context) =>
    compare(
      context,
      ['spawn', 'nestbox', 'nestbox-empty', 'nestbox-shared-loopback', 'unsandboxed', 'execa', 'bwrap', 'unshare'].map(
        (mode) => ({ mode }),
      ),
    ),
}

const capture: Scenario = {
  name: 'capture',
  what: 'a trivial static program that writes a line, stdout and stderr captured',
  run: (context) =>
    compare(
      context,
      ['execFile', 'nestbox-capture', 'execa-capture'].map((mode) => ({ mode })),
    ),
}

// ---- a big host -------------------------------------------------------------------------------------------------------------

const AT_START = 'at start'
/** What a host of this many bytes is called. */
const grown = (bytes: number): string => `at ${Math.round(bytes / 1024 ** 2).toLocaleString('en')} MiB`

const heap: Scenario = {
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
      const samples = await takeTurns(context, open, { watch: true })
      return [...[...samples].map(([series, taken]) => toRecord(context, series, taken)), ...missing]
    } finally {
      await closeAll(open)
    }
  },
}

// ---- a full machine ---------------------------------------------------------------------------------------------------------

/** Threads that exist on the machine, all of them. */
const threadsAlive = (): number => Number(readFileSync('/proc/loadavg', 'utf8').split(/[ /]/)[4])

const startSleepers = async (program: string, threads: number): Promise<ChildProcess> => {
  const child = spawn(program, [String(threads)], { stdio: ['pipe', 'pipe', 'inherit'] })
  const said = await Promise.race([once(child.stdout, 'data'), once(child, 'exit')])
  if (String(said[0]) !== 'ready\n') throw new Error(`${threads} threads could not be made`)
  return child
}

const stopSleepers = async (child: ChildProcess, baseline: number): Promise<void> => {
  const exited = once(child, 'exit')
  child.stdin?.end()
  await exited
  // Their processes die of a signal after that, and not at once.
  const end = performance.now() + 10_000
  while (threadsAlive() > baseline + 100 && performance.now() < end) await pause(20)
}

/** The kernel puts things in order after thousands of threads came or went. */
const SETTLE = 500

const threads: Scenario = {
  name: 'threads',
  what: '20,000 sleeping threads on the machine against none',
  async run(context) {
    const { settings, programs } = context
    const wanted = ['nestbox', 'sandbox2-nested', 'sandbox2-direct', 'spawn'].map((mode) => ({ mode }))
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

/**
 * Starts a host in a mount namespace of its own, with mounts added there; the machine's own are never touched. `$0` is how
 * many, `$1` an empty directory, the rest the host.
 */
const MOUNT_AND_EXEC = `
set -e
count=$0 directory=$1
shift
mount -t tmpfs -o size=1m,nr_inodes=4k nestbox-bench "$directory"
i=0
while [ "$i" -lt "$count" ]; do
  mkdir "$directory/$i"
  mount -t tmpfs -o size=4k nestbox-bench "$directory/$i"
  i=$((i + 1))
done
exec "$@"
`

const inMountNamespace = (count: number, directory: string): string[] => {
  const isRoot = process.getuid?.() === 0
  // An unprivileged host keeps its ids, and in its own user namespace the power to mount.
  const asUser = isRoot ? [] : ['--user', '--map-current-user', '--keep-caps']
  return ['unshare', ...asUser, '-m', '--propagation', 'private', 'sh', '-c', MOUNT_AND_EXEC, String(count), directory]
}

const mounts: Scenario = {
  name: 'mounts',
  what: '320 more mounts on the host against none',
  run(context) {
    const { settings, programs } = context
    const wanted = ['nestbox', 'sandbox2-nested', 'bwrap', 'spawn'].flatMap((mode) =>
      [0, settings.mounts].map((count) => ({
        mode,
        variant: count === 0 ? 'none' : `${count} mounts`,
        command: inMountNamespace(count, programs.scratch),
      })),
    )
    return compare(context, wanted)
  },
}

// ---- memory -----------------------------------------------------------------------------------------------------------------

/** A process and all that came of it. */
const familyOf = (pid: number): number[] => {
  const children = new Map<number, number[]>()
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    try {
      // The name of a program may hold anything, so what follows is found from behind it.
      const stat = readFileSync(`/proc/${name}/stat`, 'latin1')
      const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1])
      children.set(parent, [...(children.get(parent) ?? []), Number(name)])
    } catch {
      // It has ended meanwhile.
    }
  }
  const family = [pid]
  for (const member of family) family.push(...(children.get(member) ?? []))
  return family
}

const kibibytes = (text: string, field: string): number =>
  Number(new RegExp(String.raw`^${field}:\s+(\d+) kB$`, 'm').exec(text)?.[1] ?? Number.NaN)

/** What a process calls itself. */
const nameOf = (pid: number): string => readFileSync(`/proc/${pid}/comm`, 'utf8').trim()

/** What one process takes; nothing if it has ended meanwhile. */
const memoryOfProcess = (pid: number): MemoryRecord['processes'] => {
  try {
    const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8')
    return [{ name: nameOf(pid), pssKib: kibibytes(rollup, 'Pss'), rssKib: kibibytes(rollup, 'Rss') }]
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (code === 'ESRCH' || code === 'ENOENT') return []
    throw error
  }
}

const memory: Scenario = {
  name: 'memory',
  what: 'proportional memory of the fork server with one template',
  async run(context) {
    const { open, missing } = await openAll(context, [{ mode: 'nestbox' }])
    try {
      const records: ScenarioRecord[] = []
      for (const { host } of open) {
        await host.turn(context.settings.warmUp)
        const server = await host.server()
        // The last nests are still being taken down, and are none of what stays.
        await pause(SETTLE)
        const processes = familyOf(server).flatMap(memoryOfProcess)
        records.push({ type: 'memory', scenario: context.scenario, processes })
      }
      return [...records, ...missing]
    } catch (error) {
      // These processes let nobody look into them but root.
      if ((error as NodeJS.ErrnoException).code !== 'EACCES') throw error
      const why = 'only root may look into these processes'
      return [{ type: 'missing', scenario: context.scenario, mode: 'nestbox', why, fault: false }]
    } finally {
      await closeAll(open)
    }
  },
}

// ---- throughput -------------------------------------------------------------------------------------------------------------

const throughput: Scenario = {
  name: 'throughput',
  what: 'launches a second with 1, 8, 64 and 256 in flight',
  async run(context) {
    const { scenario, settings } = context
    const wanted = ['nestbox', 'nestbox-shared-loopback', 'unsandboxed', 'spawn'].map((mode) => ({ mode }))
    const { open, missing } = await openAll(context, wanted)
    const rates = new Map<string, { series: OpenSeries; inFlight: number; perSecond: number[] }>()
    try {
      for (const { host } of open) await host.turn(settings.warmUp)
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

// ---- where the time goes ----------------------------------------------------------------------------------------------------

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

const steps: Scenario = {
  name: 'steps',
  what: 'where the time of one launch goes',
  async run(context) {
    const { settings } = context
    const { open, missing } = await openAll(
      context,
      ['nestbox', 'nestbox-empty'].map((mode) => ({ mode })),
    )
    try {
      const records: ScenarioRecord[] = []
      const samples = new Map<OpenSeries, StepSample[]>(open.map((series) => [series, []]))
      for (const { host } of open) {
        await host.turn(settings.warmUp)
      }
      for (let done = 0; done < settings.launches; done += settings.turn) {
        progressBar(context.scenario, done, settings.launches)
        await context.gate.pass()
        for (const series of open) samples.get(series)?.push(...(await series.host.steps(settings.turn)))
      }
      for (const [{ mode }, taken] of samples) records.push(toSteps(context, mode, taken))
      return [...records, ...missing]
    } finally {
      await closeAll(open)
    }
  },
}

export const scenarios: readonly Scenario[] = [ignore, capture, heap, threads, mounts, memory, throughput, steps]
