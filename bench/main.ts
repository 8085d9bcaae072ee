// `npm run bench`: measures, keeps the raw samples, and writes the report.
//
//   npm run bench                      everything; into bench/runs, docs/benchmarks.md and README.md
//   npm run bench -- ignore heap       some scenarios, printed; nothing of the documentation is touched
//   npm run bench -- --skip sweep-rss  all but some; likewise
//   npm run bench -- --quick           everything in small, within seconds: does the harness work?
//   npm run bench -- --peer 'NAME=COMMAND {program}'   a command of yours beside the others
//   npm run bench -- --trace FILE      some launches as a trace for ui.perfetto.dev, and nothing measured
//   npm run bench -- --out FILE        the samples there, and nothing of the documentation touched
//   npm run bench -- --report FILE     the documentation from the samples of an earlier run
//   npm run bench -- --patience 0      don't wait for a quiet machine (seconds per scenario, 300 if not said)
//   npm run bench -- --list            the scenarios

import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { describeMachine, Gate, readTicks, stealBetween, waitUntilQuiet } from './machine.ts'
import { compilePrograms, type Programs } from './programs.ts'
import { progress, progressDone } from './progress.ts'
import { publish } from './publish.ts'
import { reportOf } from './report.ts'
import { appendRecords, readRun, type RunRecord, type ScenarioRecord, startFile } from './samples.ts'
import type { Scenario } from './measure.ts'
import { peersOf } from './peers.ts'
import { scenarios } from './scenarios/index.ts'
import { traceLaunches } from './scenarios/steps.ts'
import { FULL, QUICK, type Settings } from './settings.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))

const out = (text: string): void => {
  process.stdout.write(`${text}\n`)
}

const complain = (text: string): void => {
  process.stderr.write(`bench: ${text}\n`)
}

/** A file of its own for every run; only whole runs are worth keeping in the repository. */
const defaultFile = (date: string, whole: boolean): string => {
  const directory = path.join(ROOT, whole ? 'bench/runs' : 'target/bench')
  mkdirSync(directory, { recursive: true })
  const day = date.slice(0, 10)
  for (let number = 1; ; number += 1) {
    const file = path.join(directory, number === 1 ? `${day}.jsonl` : `${day}-${number}.jsonl`)
    if (!existsSync(file)) return file
  }
}

const measure = async (scenario: Scenario, settings: Settings, programs: Programs): Promise<ScenarioRecord[]> => {
  const { name } = scenario
  progress(`${name.padEnd(16)} waiting for a quiet moment`)
  const before = await waitUntilQuiet(settings.look, settings.patience)
  const gate = new Gate(settings.patience)
  const ticks = readTicks()
  const start = performance.now()
  progress(`${name.padEnd(16)} starting hosts`)
  const records = await scenario.run({ scenario: name, settings, programs, gate })
  const seconds = tenths((performance.now() - start) / 1000)
  const steal = Math.round(stealBetween(ticks, readTicks()) * 1000) / 1000
  const after = await waitUntilQuiet(settings.look, 0)
  const { looks, noisy } = gate
  const waited = tenths(gate.waited / 1000)
  return [...records, { type: 'quiet', scenario: name, before, after, steal, seconds, looks, noisy, waited }]
}

const tenths = (number: number): number => Math.round(number * 10) / 10

/** Measures; false if a scenario broke off or a mode of it could not be measured. */
const measureAll = async (
  chosen: readonly Scenario[],
  file: string,
  settings: Settings,
  run: RunRecord,
  programs: Programs,
): Promise<boolean> => {
  startFile(file, run)
  let complete = true
  try {
    for (const scenario of chosen) {
      try {
        const records = await measure(scenario, settings, programs)
        appendRecords(file, records)
        for (const record of records) {
          if (record.type !== 'missing' || !record.fault) continue
          complete = false
          progressDone()
          complain(`${scenario.name}: ${record.mode}: ${record.why}`)
        }
      } catch (error) {
        complete = false
        progressDone()
        complain(`${scenario.name}: ${error instanceof Error ? error.message : String(error)}`)
      }
    }
  } finally {
    progressDone()
  }
  return complete
}

/** Compiles the programs, and removes them when the work is done or broken off. */
const withPrograms = async <T>(peers: Programs['peers'], work: (programs: Programs) => Promise<T>): Promise<T> => {
  const programs = compilePrograms(peers)
  // Hosts end with their channel, and what they run with them; only files have to be thought of.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => {
      programs.remove()
      progressDone()
      process.exit(1)
    })
  }
  try {
    return await work(programs)
  } finally {
    programs.remove()
  }
}

/** Launches a little, and writes it down for a trace viewer. */
const writeTrace = async (file: string, settings: Settings): Promise<void> => {
  const context = { scenario: 'trace', settings, gate: new Gate(0) }
  const traceEvents = await withPrograms({}, (programs) => traceLaunches({ ...context, programs }))
  writeFileSync(file, JSON.stringify({ traceEvents, displayTimeUnit: 'ms' }))
  out(`The trace is in ${file}: open it in https://ui.perfetto.dev.`)
}

const publishFile = async (file: string): Promise<void> => {
  for (const problem of await publish(readRun(file))) complain(problem)
  out(`The report is in docs/benchmarks.md, made from ${path.relative(ROOT, file)}.`)
}

const main = async (): Promise<number> => {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      quick: { type: 'boolean', default: false },
      list: { type: 'boolean', default: false },
      out: { type: 'string' },
      report: { type: 'string' },
      trace: { type: 'string' },
      patience: { type: 'string' },
      skip: { type: 'string', multiple: true, default: [] },
      peer: { type: 'string', multiple: true, default: [] },
    },
  })
  if (values.list) {
    for (const { name, what } of scenarios) out(`${name.padEnd(16)} ${what}`)
    return 0
  }
  if (values.report !== undefined) {
    await publishFile(values.report)
    return 0
  }
  const sizes = values.quick ? QUICK : FULL
  const patience = values.patience === undefined ? sizes.patience : Number(values.patience) * 1000
  if (!(patience >= 0)) {
    complain(`--patience wants seconds, and got "${values.patience}"`)
    return 2
  }
  const settings: Settings = { ...sizes, patience }
  if (values.trace !== undefined) {
    await writeTrace(values.trace, settings)
    return 0
  }
  const peers = peersOf(values.peer)
  if (typeof peers === 'string') {
    complain(peers)
    return 2
  }
  const unknown = [...positionals, ...values.skip].find((name) => scenarios.every((scenario) => scenario.name !== name))
  if (unknown !== undefined) {
    complain(`there is no scenario "${unknown}": see --list`)
    return 2
  }
  const asked = (name: string): boolean => positionals.length === 0 || positionals.includes(name)
  const chosen = scenarios.filter(({ name }) => asked(name) && !values.skip.includes(name))
  const whole = chosen.length === scenarios.length && !values.quick
  const run: RunRecord = { type: 'run', date: new Date().toISOString(), quick: values.quick, ...describeMachine() }
  const file = values.out === undefined ? defaultFile(run.date, whole) : path.resolve(values.out)
  const complete = await withPrograms(peers, (programs) => measureAll(chosen, file, settings, run, programs))
  out(reportOf(readRun(file), () => ''))
  out(`\nThe samples are in ${path.relative(process.cwd(), file)}.`)
  if (whole && complete && values.out === undefined) await publishFile(file)
  return complete ? 0 : 1
}

process.exitCode = await main()
