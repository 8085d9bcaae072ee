// The types of what launches are made with: the fork server and the sandbox. Interfaces, so that users can pass a stub in
// tests.

import type { Launcher, LaunchOptions, OutputFile } from './launch/types.ts'
import type { Policy } from './policy/types.ts'
import type { SyscallHandler } from './supervision/types.ts'

/** What a {@link ForkServer} is started with. */
export interface ForkServerOptions {
  /**
   * Only for a host that is root: the unprivileged ids that sandboxees run as, outside. With a `count` each running nest
   * gets ids of its own, from `uid` and `gid` upwards. Ignored for other hosts, whose sandboxees run as the caller.
   *
   * @defaultValue `{ uid: 65533, gid: 65533 }`
   */
  hostIds?: { uid: number; gid: number; count?: number | undefined } | undefined
  /**
   * How many policies are kept ready. The least recently used one goes first.
   *
   * @defaultValue 64
   */
  maxTemplates?: number | undefined
  /**
   * How many network namespaces are kept ready. While more launches than that are in flight the pool grows with them, up to 256
   * (each takes some 190 KiB of the kernel's memory); what nobody needed for half a minute is given up. 0: each launch makes its
   * own, which costs it half a millisecond.
   *
   * @defaultValue 8
   */
  networkPool?: number | undefined
}

/** Counters of a fork server. */
export interface ForkServerStats {
  /** Its process id; 0 while none runs. */
  readonly pid: number
  /** Policies kept ready. */
  readonly templates: number
  /** Launches in flight. */
  readonly running: number
  /** Launches since it started. */
  readonly launched: number
  /** Network namespaces kept ready. */
  readonly networkPool: number
  /** Nests that are ready for a launch. */
  readonly warmNests: number
  /** How many times it was started: more than once means that it died. */
  readonly starts: number
}

/**
 * A fork server: the small helper process that launches on request. Disposing is {@link ForkServer.destroy}. An idle one
 * does not keep the host alive, and none outlives it.
 *
 * If it dies, what it ran is lost (`ForkServerError`), and the next call starts a new one.
 */
export interface ForkServer extends AsyncDisposable {
  /** Its process id; 0 while none runs. */
  readonly pid: number
  /**
   * Launches **without isolation**: the host's ids, root, network and working directory. For hosts with a big heap, whose
   * own `child_process` is slow. `env` must be given.
   */
  readonly unsandboxed: Launcher
  stats(): ForkServerStats
  /** Takes no more launches, and ends when those in flight have ended. */
  close(): Promise<void>
  /** Kills everything it runs, then itself. Idempotent, never rejects. */
  destroy(): Promise<void>
}

/** A program that is started ahead: see {@link SandboxOptions.prewarm}. */
export interface Prewarm extends Pick<LaunchOptions, 'env' | 'cwd' | 'argv0'> {
  file: string
  args?: readonly string[] | undefined
  /** What launches bring out of it: the same files, by whatever name. */
  outputs?: Readonly<Record<string, Omit<OutputFile, 'to'>>> | undefined
  /**
   * How many are kept.
   *
   * @defaultValue 1
   */
  count?: number | undefined
}

/** What a {@link Sandbox} is made with. */
export interface SandboxOptions {
  /**
   * Launches that run at one time; more wait.
   *
   * @defaultValue `Infinity`
   */
  maxConcurrency?: number | undefined
  /**
   * Launches that wait at one time; one more is a `QueueFullError`.
   *
   * @defaultValue `Infinity`
   */
  maxQueue?: number | undefined
  /**
   * Milliseconds that a launch waits at most, before it is a `QueueFullError`.
   *
   * @defaultValue `Infinity`
   */
  queueTimeout?: number | undefined
  /**
   * Nests that are kept warm: made before a launch is known, so that it finds all but the program itself ready. One takes
   * about 240 KiB of the kernel's memory, is used once, and is replaced in the background when a launch takes it.
   * `create()` resolves when they are ready. 0: every launch makes its own.
   *
   * Without this option one is kept from the first launch on.
   *
   * @defaultValue 1
   */
  warm?: number | undefined
  /**
   * Milliseconds that a warm nest waits for a launch before it goes.
   *
   * @defaultValue 10,000 where `warm` is not given, else `Infinity`
   */
  warmIdle?: number | undefined
  /**
   * Keeps a program started, for one that is slow to start: it runs in a nest of its own, loads what it needs, and waits on its comms
   * channel, fd 1023, for its work. A launch of the same program with `work` (or a `spawn` with `comms`) is given it; where there is
   * none, the launch starts its own, so this is about time alone. `result.timings.prewarmed` tells.
   *
   * A launch is of the same program if all is the same that it can have seen: `file`, `args`, `env`, `cwd`, `argv0`; no
   * stdin, stdout and stderr pipes; the policy's limits, but for `wallTime`, `cpuTime` and `output`, which begin with the work;
   * neither `files` nor `binds`; the same `outputs`, whatever they are called and whether or not they are `optional`.
   *
   * Each is used once, and replaced in the background. One that dies is replaced more and more slowly; why it died is
   * reported by the launch that finds none, and dies of the same. While it waits, every limit of the policy holds but `wallTime`,
   * and what it writes stays in its pipes.
   *
   * `create()` resolves when they run.
   */
  prewarm?: Prewarm | undefined
  /**
   * Of launches that don't say: whether `result.crash` says what a program was doing that died of a signal.
   *
   * @defaultValue `false`
   */
  crashReport?: boolean | undefined
  /** @defaultValue the process-wide one, started on first use */
  server?: ForkServer | undefined
  /**
   * Decides about each call that the policy's filter would report, or leaves to it (`'report'`, `'ask'`). The caller waits
   * meanwhile, and its clock runs. If the handler throws, or the host dies, the nest is killed.
   *
   * @defaultValue every such call is a violation
   */
  onSyscall?: SyscallHandler | undefined
}

/** The distribution of a time, in milliseconds. Zeros as long as there was none. */
export interface Percentiles {
  readonly count: number
  readonly mean: number
  readonly min: number
  readonly p50: number
  readonly p90: number
  readonly p99: number
  readonly p999: number
  readonly max: number
}

/** Counters and latencies of a sandbox. */
export interface SandboxStats {
  /** Launches in flight. */
  readonly running: number
  /** Launches that wait. */
  readonly queued: number
  /** Launches that left the queue. */
  readonly launched: number
  /** Launches that resolved with a result, whatever it was. */
  readonly completed: number
  /** Launches that rejected, aborted ones included; turned away ones left out. */
  readonly errored: number
  /** Launches turned away: queue full, or waited too long. */
  readonly rejected: number
  /** Programs that were started ahead; zeros without {@link SandboxOptions.prewarm}. */
  readonly prewarm: {
    /** Running, and waiting for a launch. They are no launches, and don't count for `maxConcurrency`. */
    readonly ready: number
    /** Taken by a launch. */
    readonly taken: number
    /** Ended, or not even started, without having been taken. */
    readonly died: number
  }
  /** Of all launches whose program ran, however they ended. */
  readonly latency: {
    /** Waiting in the queue. */
    readonly queue: Percentiles
    /** From leaving the queue to exec. */
    readonly setup: Percentiles
    /** From leaving the queue to the result: without the time in the queue. */
    readonly total: Percentiles
  }
}

/**
 * A policy on a fork server, with its queue. Disposing is {@link Sandbox.destroy}.
 */
export interface Sandbox extends Launcher, AsyncDisposable {
  readonly policy: Policy
  /**
   * From now on keeps so many nests warm; see {@link SandboxOptions.warm}. Resolves when they are ready, rejects with the
   * `SpawnError` of what keeps them from being made.
   */
  warm(count: number): Promise<void>
  stats(): SandboxStats
  /** Takes no more launches, and ends when those that run or wait have ended. */
  close(): Promise<void>
  /** Kills its own launches, and turns away those that wait. Idempotent, never rejects. */
  destroy(): Promise<void>
}
