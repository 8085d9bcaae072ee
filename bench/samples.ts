// What a run leaves behind: one JSON line for the machine, then one for each series of raw samples. The report is made from
// these lines alone, so it can be made again, or differently, without measuring again.

import { appendFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'

import type { Machine, Quietness } from './machine.ts'

/** Where and with what it was measured. The first line. */
export interface RunRecord extends Machine {
  readonly type: 'run'
  readonly date: string
  readonly quick: boolean
}

/** The launches of one mode in one scenario, in the order in which they were made. */
export interface SampleRecord {
  readonly type: 'samples'
  readonly scenario: string
  readonly mode: string
  /** What the host or the machine was like, in scenarios that change it: `'at start'`, `'1 GiB'`, ... */
  readonly variant: string
  /** Launches in a row before another mode had its turn. */
  readonly turn: number
  /** What a sweep varied, as a number: bytes, threads, mounts, ... */
  readonly at?: number
  /** Milliseconds of rest before each launch; 0: back to back. */
  readonly pause: number
  /** From the call until the result is known, in microseconds. */
  readonly us: readonly number[]
  /** The part of it that the call itself took, with the event loop waiting. */
  readonly syncUs?: readonly number[]
  /** All that the event loop was busy with during the launch. */
  readonly busyUs?: readonly number[]
  /** 1 where the kernel took the processor away meanwhile, for somebody else's process or for one that the launch woke. */
  readonly preempted?: readonly number[]
  /** 1 where a process ran meanwhile, or right before, that has nothing to do with the launch: see `strangers.mjs`. */
  readonly strangers?: readonly number[]
  /** 1 where V8 collected garbage meanwhile. */
  readonly collected?: readonly number[]
}

/** Launches a second with a fixed number of them in flight. */
export interface ThroughputRecord {
  readonly type: 'throughput'
  readonly scenario: string
  readonly mode: string
  readonly inFlight: number
  readonly launches: number
  /** One for each measurement. */
  readonly perSecond: readonly number[]
}

/** Where the time of launches went, in microseconds: one array for each step, in order. */
export interface StepsRecord {
  readonly type: 'steps'
  readonly scenario: string
  readonly mode: string
  readonly steps: readonly { readonly step: string; readonly us: readonly number[] }[]
}

/** The memory of resident processes. */
export interface MemoryRecord {
  readonly type: 'memory'
  readonly scenario: string
  /** Proportional set size: what is shared with others is counted in part. */
  readonly processes: readonly { readonly name: string; readonly pssKib: number; readonly rssKib: number }[]
}

/** What a warm nest takes: the difference that so many of them make, divided by their number. */
export interface NestsRecord {
  readonly type: 'nests'
  readonly scenario: string
  readonly nests: number
  /** Proportional set size of their processes; memory that two of them share is counted once. */
  readonly pssKib: number
  /** What the machine has less of: the kernel's memory for namespaces, mounts and processes is in it. */
  readonly availableKib: number
}

/** A mode that could not be measured, and why. */
export interface MissingRecord {
  readonly type: 'missing'
  readonly scenario: string
  readonly mode: string
  readonly why: string
  /** It should be there; what isn't installed, or not allowed to this user, need not. */
  readonly fault: boolean
}

/** How much else was going on. */
export interface QuietRecord {
  readonly type: 'quiet'
  readonly scenario: string
  readonly before: Quietness
  readonly after: Quietness
  /** Taken by other guests of the same hardware, all through the scenario; a fraction. */
  readonly steal: number
  readonly seconds: number
  /** How often it was looked whether the machine is quiet, while measuring. */
  readonly looks: number
  /** How often it was not, and patience was at an end. */
  readonly noisy: number
  /** Seconds spent waiting for others to finish. */
  readonly waited: number
}

export type ScenarioRecord =
  | SampleRecord
  | ThroughputRecord
  | StepsRecord
  | MemoryRecord
  | NestsRecord
  | MissingRecord
  | QuietRecord

/** A whole run. */
export interface Run {
  readonly run: RunRecord
  readonly records: readonly ScenarioRecord[]
}

/** Starts the file of a run. */
export const startFile = (file: string, run: RunRecord): void => {
  mkdirSync(path.dirname(file), { recursive: true })
  writeFileSync(file, `${JSON.stringify(run)}\n`)
}

/** Adds what a scenario measured; at once, so that a run that breaks off later is not lost. */
export const appendRecords = (file: string, records: readonly ScenarioRecord[]): void => {
  for (const record of records) appendFileSync(file, `${JSON.stringify(record)}\n`)
}

export const readRun = (file: string): Run => {
  const [run, ...records] = readFileSync(file, 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as RunRecord | ScenarioRecord)
  if (run?.type !== 'run') throw new Error(`${file} is not the file of a run: its first line must be the machine`)
  return { run, records: records as ScenarioRecord[] }
}

/** Tenths of a microsecond are more than the clock is worth. */
export const rounded = (values: readonly number[]): number[] => values.map((value) => Math.round(value * 10) / 10)
