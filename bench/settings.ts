// How much is measured: a full run, whose numbers are for the documentation, and a quick one, which shows within seconds that
// the harness works and whose numbers mean nothing.

/** The points of each sweep. */
export interface Sweeps {
  /** Memory of the host, in bytes. */
  readonly rss: readonly number[]
  /** Threads that sleep on the machine. */
  readonly threads: readonly number[]
  /** Mounts that the host has on top of its own. */
  readonly mounts: readonly number[]
  /** Bytes of arguments and environment. */
  readonly arguments: readonly number[]
  /** Bytes of output. */
  readonly output: readonly number[]
  /** Binds of a launch. */
  readonly binds: readonly number[]
  /** Nests that are alive meanwhile. */
  readonly alive: readonly number[]
}

/** The sizes of a run. */
export interface Settings {
  /** Launches a mode that are counted. */
  readonly launches: number
  /** Launches a mode that come first and are not counted. */
  readonly warmUp: number
  /**
   * For how long it launches without pauses before those, in milliseconds, and then twice as long with pauses if it is measured
   * with them: until most of what V8 compiles is compiled.
   */
  readonly warmUpFor: number
  /** Launches of one mode before it is the next one's turn. */
  readonly turn: number
  /** Milliseconds of rest before each launch, in all modes alike. */
  readonly pause: number
  /** Launches a mode where the tail of the distribution is looked at, or differences of a few per cent. */
  readonly tail: number
  /** Launches in a row where they follow each other without rest: more than are ever made ahead. */
  readonly sustained: number
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
  /** Warm nests whose memory is measured together. */
  readonly nests: number
  /** Launches a mode and point of a sweep. */
  readonly sweepLaunches: number
  readonly sweeps: Sweeps
  /** How long a scenario waits for others to leave the machine alone, in milliseconds, before and while it measures. */
  readonly patience: number
  /** How long to look whether the machine is quiet, in milliseconds. */
  readonly look: number
}

const KIB = 1024
const MIB = 1024 * KIB
const GIB = 1024 * MIB

export const FULL: Settings = {
  launches: 400,
  warmUp: 40,
  warmUpFor: 3000,
  turn: 5,
  pause: 2,
  tail: 2000,
  sustained: 50,
  ballast: GIB,
  threads: 20_000,
  threadBlocks: 4,
  mounts: 320,
  inFlight: [1, 8, 64, 256],
  flood: 512,
  floods: 9,
  nests: 64,
  sweepLaunches: 60,
  sweeps: {
    rss: [0, GIB / 4, GIB, 2 * GIB, 4 * GIB],
    threads: [0, 1000, 10_000, 30_000],
    mounts: [0, 80, 320, 980],
    arguments: [0, 16 * KIB, 128 * KIB, 512 * KIB, MIB],
    output: [0, 64 * KIB, MIB, 16 * MIB, 64 * MIB],
    binds: [0, 1, 4, 16, 64],
    alive: [0, 100, 500, 1000, 2000],
  },
  patience: 300_000,
  look: 1000,
}

export const QUICK: Settings = {
  launches: 10,
  warmUp: 2,
  warmUpFor: 0,
  turn: 2,
  pause: 1,
  tail: 10,
  sustained: 4,
  ballast: 64 * MIB,
  threads: 500,
  threadBlocks: 1,
  mounts: 20,
  inFlight: [1, 8],
  flood: 16,
  floods: 2,
  nests: 4,
  sweepLaunches: 2,
  sweeps: {
    rss: [0, 96 * MIB],
    threads: [0, 200],
    mounts: [0, 10],
    arguments: [0, 256 * KIB],
    output: [0, MIB],
    binds: [0, 4],
    alive: [0, 8],
  },
  patience: 0,
  look: 100,
}
