// What is measured on, and whether it is quiet enough to be measured on.

import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import os from 'node:os'

/** The parts of a machine that launch times depend on. */
export interface Machine {
  readonly kernel: string
  readonly arch: string
  readonly cpu: string
  readonly cpus: number
  readonly memoryGiB: number
  readonly mounts: number
  readonly root: boolean
  readonly node: string
  readonly hugePages: string
  readonly nestbox: string
  /** The commit, with `+` if the tree differs from it. */
  readonly revision: string
  readonly peers: Readonly<Record<string, string>>
}

/** What else the machine does. Fractions of all its time. */
export interface Quietness {
  readonly quiet: boolean
  readonly busy: number
  readonly steal: number
  readonly load: number
}

const ROOT = new URL('..', import.meta.url)

/** The output of a program, or nothing if there is no such program. */
const ask = (file: string, args: readonly string[]): string | undefined => {
  try {
    return execFileSync(file, args, { cwd: ROOT, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
  } catch {
    return undefined
  }
}

const readText = (file: string): string => (existsSync(file) ? readFileSync(file, 'utf8').trim() : '')

const packageVersion = (name: string): string => {
  const file = new URL(name === '' ? 'package.json' : `node_modules/${name}/package.json`, ROOT)
  return existsSync(file) ? (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version : 'none'
}

const revision = (): string => {
  const commit = ask('git', ['rev-parse', '--short', 'HEAD']) ?? 'unknown'
  // The samples and the report itself don't change what is measured.
  const code = ['.', ':!bench/runs', ':!docs', ':!README.md']
  const changed = ask('git', ['status', '--porcelain', '--untracked-files=no', '--', ...code]) ?? ''
  return changed === '' ? commit : `${commit}+`
}

export const describeMachine = (): Machine => {
  const bwrap = ask('bwrap', ['--version'])
  const unshare = ask('unshare', ['--version'])
  const runtimes = ['crun', 'runc'].map((name) => [name, /[\d.]+/.exec(ask(name, ['--version']) ?? '')?.[0]] as const)
  return {
    kernel: os.release(),
    arch: os.machine(),
    cpu: os.cpus()[0]?.model.trim() ?? 'unknown',
    cpus: os.availableParallelism(),
    memoryGiB: Math.round(os.totalmem() / 1024 ** 3),
    mounts: readText('/proc/self/mountinfo').split('\n').length,
    root: process.getuid?.() === 0,
    node: process.version,
    hugePages: /\[(\w+)\]/.exec(readText('/sys/kernel/mm/transparent_hugepage/enabled'))?.[1] ?? 'unknown',
    nestbox: packageVersion(''),
    revision: revision(),
    peers: {
      execa: packageVersion('execa'),
      ...(bwrap === undefined ? undefined : { bwrap: bwrap.replace(/^\D*/, '') }),
      ...(unshare === undefined ? undefined : { unshare: unshare.replace(/^\D*/, '') }),
      ...Object.fromEntries(runtimes.filter((entry): entry is [string, string] => entry[1] !== undefined)),
    },
  }
}

// ---- quietness --------------------------------------------------------------------------------------------------------------

/** The machine's processor time so far, in ticks. */
export interface Ticks {
  readonly total: number
  readonly idle: number
  readonly steal: number
}

export const readTicks = (): Ticks => {
  // user nice system idle iowait irq softirq steal; guest time is in user already.
  const fields = readFileSync('/proc/stat', 'utf8').split('\n', 1)[0]?.split(/\s+/).slice(1, 9).map(Number) ?? []
  const at = (index: number): number => fields[index] ?? 0
  return { total: fields.reduce((sum, ticks) => sum + ticks, 0), idle: at(3) + at(4), steal: at(7) }
}

/** The part of the time between two readings that other guests took. */
export const stealBetween = (from: Ticks, to: Ticks): number =>
  (to.steal - from.steal) / Math.max(to.total - from.total, 1)

/** A machine with more than this going on is not quiet. The second is what two guests on one core make of each other. */
const MAX_BUSY = 0.1
const MAX_STEAL = 0.02

export const pause = (ms: number): Promise<void> =>
  new Promise((resolve) => {
    setTimeout(resolve, ms)
  })

const round = (fraction: number): number => Math.round(fraction * 1000) / 1000

/** Does nothing for a while, and sees how much happens all the same. */
export const look = async (ms: number): Promise<Quietness> => {
  const from = readTicks()
  await pause(ms)
  const to = readTicks()
  const busy = 1 - (to.idle - from.idle) / Math.max(to.total - from.total, 1)
  const steal = stealBetween(from, to)
  return {
    quiet: busy <= MAX_BUSY && steal <= MAX_STEAL,
    busy: round(busy),
    steal: round(steal),
    load: os.loadavg()[0] ?? 0,
  }
}

/** Waits for a quiet moment, though not for ever. */
export const waitUntilQuiet = async (ms: number, patience: number): Promise<Quietness> => {
  const end = performance.now() + patience
  for (;;) {
    const seen = await look(ms)
    if (seen.quiet || performance.now() > end) return seen
  }
}

/**
 * Lets measuring go on only while nobody else uses the machine. Asked between turns, it looks now and then, for as short as the
 * kernel's ticks allow, and waits while others are at work; until its patience for the whole scenario is used up.
 */
export class Gate {
  readonly #patience: number
  #next = 0
  /** Milliseconds spent waiting. */
  waited = 0
  looks = 0
  /** Looks at a machine that was not quiet, and measured on all the same. */
  noisy = 0

  constructor(patience: number) {
    this.#patience = patience
  }

  async pass(): Promise<void> {
    if (this.#patience === 0 || performance.now() < this.#next) return
    this.looks += 1
    const start = performance.now()
    const { quiet } = await waitUntilQuiet(GLANCE, this.#patience - this.waited)
    this.waited += performance.now() - start
    if (!quiet) this.noisy += 1
    this.#next = performance.now() + BETWEEN_GLANCES
  }
}

/** Six ticks of the kernel's clock: on two processors one of them busy for one tick is below the limit. */
const GLANCE = 60
const BETWEEN_GLANCES = 400
