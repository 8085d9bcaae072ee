// `nestbox bench`: what a launch takes on this machine, next to child_process.spawn of the same program. A short look, not a
// benchmark to publish: the repository has one of those.
//
// Fair in this: the same program, both with its output captured, in turns, so that whatever disturbs the machine disturbs
// all; warmed up before it is counted; medians, not means. Unfair in this: to nestbox, whose launches are isolated while
// the others are not.

import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'

import { policy } from '../policy/policy.ts'
import { Sandbox } from '../sandbox.ts'
import { unsandboxed } from '../shared.ts'
import { UsageError } from './exit.ts'
import { benchHelp } from './help.ts'
import { pad, type Paint, paintFor, progress, write } from './terminal.ts'
import { parseNumber, parseSize } from './units.ts'

const ROUNDS = 100
const WARM_UP = 10

interface Row {
  readonly name: string
  readonly p50: number
  readonly p90: number
  readonly min: number
}

/** Carries out the command; returns what to exit with. */
export const benchCommand = async (argv: readonly string[]): Promise<number> => {
  const { rounds, heap, json, help } = parse(argv)
  if (help) {
    await write(process.stdout, benchHelp())
    return 0
  }
  const program = ['/usr/bin/true', '/bin/true'].find((file) => existsSync(file))
  if (program === undefined) throw new UsageError('There is no /usr/bin/true to launch.')
  // Touched, so that it is memory and not an intention.
  const ballast = Buffer.alloc(heap, 1)
  const rows = await measure(program, rounds)
  const { rss } = process.memoryUsage()
  const report = { program: path.basename(program), rounds, hostMemoryBytes: rss, ballastBytes: ballast.length, rows }
  const text = json ? `${JSON.stringify(report, undefined, 2)}\n` : render(rows, rounds, rss, paintFor(process.stdout))
  await write(process.stdout, text)
  return 0
}

const parse = (argv: readonly string[]): { rounds: number; heap: number; json: boolean; help: boolean } => {
  const text = { type: 'string' } as const
  const flag = { type: 'boolean' } as const
  let values
  try {
    const options = { rounds: text, heap: text, json: flag, help: { ...flag, short: 'h' } } as const
    values = parseArgs({ args: [...argv], options }).values
  } catch (error) {
    throw new UsageError((error as Error).message, { cause: error })
  }
  const rounds = values.rounds === undefined ? ROUNDS : parseNumber('rounds', values.rounds)
  if (rounds === 0) throw new UsageError('--rounds: at least one.')
  const heap = values.heap === undefined ? 0 : (parseSize('heap', values.heap) ?? 0)
  return { rounds, heap, json: values.json ?? false, help: values.help ?? false }
}

const measure = async (program: string, rounds: number): Promise<Row[]> => {
  await using sandbox = await Sandbox.create(policy('host-system'))
  const ways: readonly (readonly [string, () => Promise<unknown>])[] = [
    ['child_process.execFile', () => bare(program)],
    ['nestbox: sandbox.run', () => sandbox.run(program)],
    ['nestbox: unsandboxed.run', () => unsandboxed.run(program, [], { env: {} })],
  ]
  const times = ways.map((): number[] => [])
  const all = rounds + WARM_UP
  const show = progress(process.stderr, 'launching')
  for (let round = 0; round < all; round += 1) {
    for (const [index, [, way]] of ways.entries()) {
      const start = performance.now()
      // One after the other: this is about latency.
      // oxlint-disable-next-line no-await-in-loop
      await way()
      if (round >= WARM_UP) times[index]?.push(performance.now() - start)
    }
    show(round + 1, all)
  }
  return ways.map(([name], index) => summarize(name, times[index] ?? []))
}

const bare = (program: string): Promise<void> =>
  new Promise((resolve, reject) => {
    execFile(program, (error) => {
      if (error === null) resolve()
      else reject(error)
    })
  })

const summarize = (name: string, times: readonly number[]): Row => {
  const sorted = times.toSorted((a, b) => a - b)
  const at = (share: number): number => sorted[Math.min(Math.floor(sorted.length * share), sorted.length - 1)] ?? 0
  return { name, p50: at(0.5), p90: at(0.9), min: at(0) }
}

const MIB = 1024 ** 2

const cell = (ms: number): string => `${ms.toFixed(2)} ms`.padStart(10)

const render = (rows: readonly Row[], rounds: number, rss: number, paint: Paint): string => {
  const base = rows[0]?.p50 ?? 1
  const width = Math.max(...rows.map(({ name }) => name.length))
  const lines = rows.map(({ name, p50, p90, min }) => {
    const ratio = `×${(p50 / base).toFixed(2)}`
    return `  ${pad(name, width)} ${cell(p50)} ${cell(p90)} ${cell(min)}  ${p50 <= base ? paint.green(ratio) : paint.yellow(ratio)}`
  })
  const head = `  ${pad('', width)} ${'p50'.padStart(10)} ${'p90'.padStart(10)} ${'least'.padStart(10)}`
  const from = `\`true\`, its output captured, ${rounds} rounds in turns; this process has ${Math.round(rss / MIB)} MiB.`
  return `${paint.dim(from)}\n\n${paint.bold(head)}\n${lines.join('\n')}\n`
}
