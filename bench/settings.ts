// How much is measured: a full run, whose numbers are for the documentation, and a quick one, which shows within seconds that
// the harness works and whose numbers mean nothing.

/** The sizes of a run. */
export interface Settings {
  /** Launches a mode that are counted. */
  readonly launches: number
  /** Launches a mode that come first and are not counted. */
  readonly warmUp: number
  /** Launches of one mode before it is the next one's turn. */
  readonly turn: number
  /** What the host's memory grows to, in bytes. */
  readonly ballast: number
  /** Threads that sleep on the machine. */
  readonly threads: number
  /** How often the threads are made and removed again. */
  readonly threadBlocks: number
  /** Mounts that the host has on top of its own. */
  readonly mounts: number
  /** Launches in flight at once. */
  readonly inFlight: readonly number[]
  /** Launches of one measurement of throughput. */
  readonly flood: number
  /** Measurements of throughput a mode. */
  readonly floods: number
  /** How long a scenario waits for others to leave the machine alone, in milliseconds, before and while it measures. */
  readonly patience: number
  /** How long to look whether the machine is quiet, in milliseconds. */
  readonly look: number
}

export const FULL: Settings = {
  launches: 400,
  warmUp: 40,
  turn: 5,
  ballast: 1024 ** 3,
  threads: 20_000,
  threadBlocks: 4,
  mounts: 320,
  inFlight: [1, 8, 64, 256],
  flood: 512,
  floods: 5,
  patience: 300_000,
  look: 1000,
}

export const QUICK: Settings = {
  launches: 10,
  warmUp: 2,
  turn: 2,
  ballast: 64 * 1024 ** 2,
  threads: 500,
  threadBlocks: 1,
  mounts: 20,
  inFlight: [1, 8],
  flood: 16,
  floods: 2,
  patience: 0,
  look: 100,
}
