// The types of a launch: its options, the result that they determine, and what launches. Written by hand, because they
// are the documentation; the schemas in `./schema.ts` are tied to them at compile time.

import type { FileHandle } from 'node:fs/promises'
import type { Duplex, Readable, Writable } from 'node:stream'

import type { LimitName, Limits, Network, Size } from '../policy/types.ts'
import type { Violation } from '../supervision/types.ts'
import type { SyscallPreset } from '../syscalls/types.ts'
import type { CrashReport } from './crash-types.ts'

// ---- options --------------------------------------------------------------------------------------------------------

/**
 * An open file descriptor of the host, passed as it is; the caller keeps (and closes) its own. Directories, `O_PATH`
 * descriptors and sockets lead out of a sandbox and are refused, unless `unsafe` says that this is meant.
 */
export interface PassedFd {
  fd: number
  /** @defaultValue `false` */
  unsafe?: boolean | undefined
}

/**
 * Where stdin comes from: `'pipe'` a stream of the sandboxee, `'ignore'` nowhere, `'inherit'` the host's own stdin, a host
 * file, an open descriptor. A `file` must not be a FIFO: open that yourself and pass `{ fd }`. The host follows symlinks, so a
 * path below a directory that a sandboxee can write to may lead elsewhere.
 */
export type StdioIn = 'pipe' | 'ignore' | 'inherit' | FileHandle | { file: string } | PassedFd

/**
 * Where stdout or stderr goes to. A `file` is truncated unless `append` is set, once all of the launch's files are open, and
 * made if it is missing. It must not be a FIFO: open that yourself and pass `{ fd }`. The host follows symlinks, so a path below a
 * directory that a sandboxee can write to may lead elsewhere.
 */
export type StdioOut =
  | 'pipe'
  | 'ignore'
  | 'inherit'
  | FileHandle
  | { file: string; append?: boolean | undefined }
  | PassedFd

/** A descriptor from 3 on: `'pipe'` is a duplex stream in `sandboxee.stdio`, `'ignore'` leaves the number closed. */
export type StdioExtra = 'pipe' | 'ignore' | 'inherit' | FileHandle | PassedFd

/** All descriptors; the index is the number inside. */
export type Stdio =
  | 'pipe'
  | 'ignore'
  | 'inherit'
  | readonly [
      stdin?: StdioIn | undefined,
      stdout?: StdioOut | undefined,
      stderr?: StdioOut | 'stdout' | undefined,
      ...extra: (StdioExtra | undefined)[],
    ]

/** A file that a launch puts inside. */
export interface LaunchFile {
  content: string | Uint8Array
  /** @defaultValue `0o644` */
  mode?: number | undefined
}

/** A file that is brought out after the nest is dead. Only regular files, no link is followed. */
export interface OutputFile {
  /** Absolute path inside. */
  path: string
  /** A larger file is not brought out. Counted while reading. */
  maxBytes: Size
  /**
   * Write it to this new host file instead of giving its bytes. It must not exist; its directory must, and is looked up before
   * the program runs: what can be seen then to keep the file from being made is a `SpawnError`, and nothing is launched. What
   * leads there is followed, so a path below a directory that another sandboxee can write to may lead elsewhere. A relative path is
   * taken from the host's working directory.
   *
   * It is written however the launch ends, if the file is there inside: of one that failed, timed out or was aborted, too. Another
   * try with the same path then fails with `EEXIST`: remove the file before, or give each launch a path of its own.
   */
  to?: string | undefined
  /**
   * It is no failure if there is no such file inside.
   *
   * @defaultValue `false`
   */
  optional?: boolean | undefined
}

/** What can be said about one launch. Every path is one inside, except where it says host. */
export interface LaunchOptions {
  /** Laid over the policy's environment; `undefined` removes a name. The host's environment is never read. */
  env?: Readonly<Record<string, string | undefined>> | undefined
  /** @defaultValue `'/tmp'` with the base `'host-system'`, `'/'` with `'empty'` */
  cwd?: string | undefined
  /** @defaultValue `file` */
  argv0?: string | undefined
  /** @defaultValue `'ignore'`; `'pipe'` with `input` */
  stdin?: StdioIn | undefined
  /** @defaultValue `'pipe'` */
  stdout?: StdioOut | undefined
  /**
   * `'stdout'`: one pipe for both, in the true order.
   *
   * @defaultValue `'pipe'`
   */
  stderr?: StdioOut | 'stdout' | undefined
  /** All descriptors in one: excludes `stdin`, `stdout` and `stderr`. */
  stdio?: Stdio | undefined
  /**
   * What is written to stdin, which then ends. It is no error if the program does not read it. Bytes are not copied: leave them as
   * they are until the launch is over. A stream belongs to the launch: it is destroyed when it was read to its end, when the
   * program takes no more of it, and when the launch is over, also where that was refused. What goes wrong with it is an
   * `ERR_NESTBOX_INPUT`.
   */
  input?: string | Uint8Array | Readable | undefined
  /** Files put below a tmpfs of the nest: private copies, gone afterwards. By path. */
  files?: Readonly<Record<string, string | Uint8Array | LaunchFile>> | undefined
  /**
   * Host paths shown at mount points that the policy declared. By path inside. A relative one is taken from the host's working
   * directory.
   */
  binds?: Readonly<Record<string, string>> | undefined
  /** Files to bring out afterwards, at most 200. By a name of your choice, which is the key in `result.outputs`. */
  outputs?: Readonly<Record<string, OutputFile>> | undefined
  /**
   * A duplex channel: fd 1023 inside, `sandboxee.comms` outside. Only with `spawn`.
   *
   * @defaultValue `false`
   */
  comms?: boolean | undefined
  /**
   * Work for a program that waits for it: written to its comms channel, fd 1023 inside. Then the program reads the end of file,
   * and what it writes there itself is dropped; unless `spawn` is given `comms` as well, where the channel stays open and
   * yours.
   *
   * A launch with work takes a program that was started ahead (`SandboxOptions.prewarm`), if there is one that is the same
   * in all that it can have seen. Otherwise it starts its own, and does the same with that.
   */
  work?: string | Uint8Array | undefined
  /** Tightens the policy's limits. Anything above them is a `RequestError`. */
  limits?: Limits | undefined
  /** Milliseconds: the same as `limits.wallTime`; 0 sets none. */
  timeout?: number | undefined
  /** Aborts the launch. The promise rejects with an `AbortError`, after the nest is dead. */
  signal?: AbortSignal | undefined
  /**
   * What an abort, or this launch's own `timeout`, sends to the program first. Unless it is SIGKILL the nest is killed
   * `forceKillAfterDelay` later.
   *
   * @defaultValue `'SIGKILL'`, which takes the whole nest at once
   */
  killSignal?: NodeJS.Signals | undefined
  /**
   * Milliseconds between `killSignal` and SIGKILL. Never lasts beyond the policy's `wallTime`.
   *
   * @defaultValue 5,000
   */
  forceKillAfterDelay?: number | undefined
  /**
   * `'utf8'`: text. `'buffer'`: bytes, exactly as they came.
   *
   * @defaultValue `'utf8'`
   */
  encoding?: 'utf8' | 'buffer' | undefined
  /**
   * Keep the output for the result. With `spawn` the program then never waits for you to read its streams, which hold as much as
   * the limit `output` and a little more: see `onOverflow`.
   *
   * @defaultValue `true` for `run`, `false` for `spawn`, where the streams are yours
   */
  buffer?: boolean | undefined
  /**
   * Split text into lines.
   *
   * @defaultValue `false`
   */
  lines?: boolean | undefined
  /**
   * Drop one newline at the end of text.
   *
   * @defaultValue `true`
   */
  stripFinalNewline?: boolean | undefined
  /**
   * Past the limit `output`: kill the nest, or let it run and keep the first or the last of what it wrote. On a stream
   * that is yours `'keep-tail'` passes everything; with `buffer: true`, where the program does not wait for you, it leaves out
   * what comes while you have more than the limit still to read, and the result has the last all the same.
   *
   * @defaultValue `'kill'`
   */
  onOverflow?: 'kill' | 'keep-head' | 'keep-tail' | undefined
  /**
   * Reject with a `ProcessError` if the program failed.
   *
   * @defaultValue `false`
   */
  reject?: boolean | undefined
  /**
   * If the program dies of a signal that is not SIGKILL, or of a violation, say in `result.crash` what it was doing: registers,
   * memory map, and the stack of each of its threads with names and lines. Of its child processes nothing is said.
   *
   * It is traced for that, which makes its signals slower and keeps it from tracing its own threads. A crash itself then takes
   * as long as it takes to read the debug information: some tens of milliseconds, 5 seconds at most. Of a warm nest all but
   * the process itself is used. Without a fresh proc (`proc('none')`) threads have no names; where
   * the filter allows userfaultfd(2), as `'unfiltered'` does, no stack is read.
   *
   * @defaultValue the sandbox's: `SandboxOptions.crashReport`
   */
  crashReport?: boolean | undefined
}

// ---- what the options determine ---------------------------------------------------------------------------------------

// Every conditional type distributes over the option's value, so `options: LaunchOptions` (not a literal) yields the union.

/** The value of option `K` in `O`, with its default `D`. */
export type Opt<O, K extends PropertyKey, D> = K extends keyof O
  ? Exclude<O[K], undefined> | (undefined extends O[K] ? D : never)
  : D

/** Entry `I` of the option `stdio`, with its default `D`. */
type Slot<S, I extends 0 | 1 | 2, D> = S extends string
  ? S
  : S extends readonly unknown[]
    ? `${I}` extends keyof S
      ? Exclude<S[`${I}`], undefined> | (undefined extends S[`${I}`] ? D : never)
      : D
    : D

/** The value of `stdin`, `stdout` or `stderr`, given by itself or in `stdio`. */
type Descriptor<O, K extends 'stdin' | 'stdout' | 'stderr', I extends 0 | 1 | 2, D> = 'stdio' extends keyof O
  ? O extends { stdio?: infer S }
    ? S extends undefined
      ? Opt<O, K, D>
      : K extends keyof O
        ? Opt<O, K, D> | Slot<S, I, D>
        : Slot<S, I, D>
    : Opt<O, K, D>
  : Opt<O, K, D>

type Text<E, L> = E extends 'buffer' ? Uint8Array : L extends true ? string[] : string
type Captured<B, S, T> = B extends false ? undefined : S extends 'pipe' ? T : undefined
type Out<O, K extends 'stdout' | 'stderr', I extends 1 | 2, B> = Captured<
  B,
  Descriptor<O, K, I, 'pipe'>,
  Text<Opt<O, 'encoding', 'utf8'>, Opt<O, 'lines', false>>
>
type IfPipe<S, T> = S extends 'pipe' ? T : undefined
type OutStream<O, K extends 'stdout' | 'stderr', I extends 1 | 2> = IfPipe<Descriptor<O, K, I, 'pipe'>, Readable>
/** A stdin that `input` is written to is nobody else's. */
type InStream<O> =
  Opt<O, 'input', undefined> extends infer I
    ? I extends undefined
      ? IfPipe<Descriptor<O, 'stdin', 0, 'ignore'>, Writable>
      : undefined
    : never
type CommsStream<O> = Opt<O, 'comms', false> extends infer C ? (C extends true ? Duplex : undefined) : never
type OutputOf<F> =
  | (F extends { to: string } ? { readonly bytes: number } : Uint8Array)
  | (F extends { optional: true } ? undefined : never)
type Outputs<O> = O extends { outputs: infer F } ? { readonly [K in keyof F]: OutputOf<F[K]> } : {}

// ---- the result --------------------------------------------------------------------------------------------------------

/** What the nest used. */
export interface ResourceUsage {
  readonly userCpuMs: number
  readonly systemCpuMs: number
  readonly peakMemoryBytes: number
  /** How `peakMemoryBytes` was measured. `'max-rss'`: the largest single process, of those that were waited for. */
  readonly memorySource: 'cgroup' | 'max-rss'
  readonly minorFaults: number
  readonly majorFaults: number
  readonly voluntaryContextSwitches: number
  readonly involuntaryContextSwitches: number
}

/** Where the time of a launch went, in milliseconds. */
export interface Timings {
  /** Waiting for the sandbox's `maxConcurrency`. */
  readonly queueMs: number
  /** From the request's leaving the queue to the program's exec. */
  readonly setupMs: number
  /** From exec to the death of the whole nest. */
  readonly execMs: number
  /** The nest had been prepared ahead. */
  readonly warm: boolean
  /**
   * The program had been started ahead (`SandboxOptions.prewarm`). Then handing it its work is the set-up, and stands for exec in
   * all times; in `resourceUsage` is what it used before.
   */
  readonly prewarmed: boolean
  /** The steps of the set-up, in order, each with what it took since the one before. */
  readonly steps: readonly { readonly step: string; readonly ms: number }[]
}

/** What Landlock enforced: a second line behind the mount tree, that goes by the file and not by the path. */
export interface LandlockIsolation {
  /** The kernel's version of it. */
  readonly abi: number
  /**
   * `'files'`: nothing outside of the policy's tree can be opened, whatever descriptor leads there, nothing written but what
   * the policy makes writable, and a file that was passed is opened again only as what it was passed as.
   * `'abstract-unix-sockets'`: none that another sandboxee or the host listens on can be connected to. `'signals'`: none
   * reach a process outside.
   */
  readonly enforced: readonly ('files' | 'abstract-unix-sockets' | 'signals')[]
}

/** What was enforced. */
export interface Isolation {
  /** The namespaces that were the nest's own: `'user'`, `'mnt'`, `'pid'`, `'ipc'`, `'uts'`, `'net'`, `'cgroup'`. */
  readonly namespaces: readonly string[]
  readonly network: Network
  /** The filter; `'custom'`: one of the policy's own. */
  readonly syscalls: SyscallPreset | 'custom'
  /** Absent where the kernel has no Landlock, or it is switched off; `skipped` then has `'landlock'`. */
  readonly landlock?: LandlockIsolation
  readonly noNewPrivs: boolean
  /** No thread of others ran on the same core at the same time. */
  readonly coreScheduling: boolean
  /**
   * `'restricted'`: no speculative store bypass and no indirect branch speculation, wherever the processor has a control for it.
   * It costs some programs much of their time: see `PolicyBuilder.allowSpeculation`.
   */
  readonly speculation: 'restricted' | 'allowed'
  /** `'none'`: all five sets are empty. */
  readonly capabilities: 'none' | 'inherited'
  /**
   * The limits in force: bytes and milliseconds. A limit that is not there is none; `output` is there where stdout or stderr
   * comes through the host. One of each process is no higher than the host's own hard limit (`ulimit -H`), which nobody can raise.
   */
  readonly limits: { readonly [K in LimitName]?: number }
  /**
   * Optional binds whose source was missing, and other things left out: `'limits.processes'`, if that was asked for and has no
   * effect.
   */
  readonly skipped: readonly string[]
}

/** Why an output is not there. */
export interface OutputFailure {
  /** The file inside. */
  readonly path: string
  /** The host file, if it is that which could not be made or written. Absent if the file inside could not be read. */
  readonly to?: string
  /** errno's name; without `to`, `'EFBIG'`: it is larger than `maxBytes`. */
  readonly errnoName: string
  readonly message: string
}

/** What every result has. Booleans are always present. */
export interface CommonResult<O extends LaunchOptions, B> {
  /** Anything but exit code 0 with all required outputs. */
  readonly failed: boolean
  /** The wall-clock limit ended it. */
  readonly timedOut: boolean
  /** It wrote more than the limit `output`. */
  readonly isMaxBuffer: boolean
  /** Its `signal` ended it. */
  readonly isCanceled: boolean
  /** What it wrote, if that was a buffered pipe. */
  readonly stdout: Out<O, 'stdout', 1, B>
  readonly stderr: Out<O, 'stderr', 2, B>
  /** Bytes that came through the pipe, kept or not. */
  readonly stdoutBytes: number
  readonly stderrBytes: number
  /**
   * By name. One that could not be brought out is missing here, whatever its type says, and explained in `outputErrors`; unless it
   * was optional and not there, the launch counts as failed. So all that are not optional are there where `failed` is false: look
   * at that first.
   */
  readonly outputs: Outputs<O>
  /** Why outputs are missing, by name. Absent if none is. */
  readonly outputErrors?: { readonly [name: string]: OutputFailure }
  /** Limits that were reached without ending the program: output dropped, a full tmpfs. */
  readonly limitsHit: readonly LimitName[]
  /** Milliseconds from the request's leaving the queue to the death of the nest. */
  readonly durationMs: number
  readonly resourceUsage: ResourceUsage
  readonly timings: Timings
  readonly isolation: Isolation
  readonly file: string
  readonly args: readonly string[]
  /** File and arguments as one line, quoted for reading, not for a shell. */
  readonly command: string
  /** The program's process id, as the host sees it. */
  readonly pid: number
}

/**
 * How a launch ended, decided by evidence in this order: violation, limit, killed by the host, signal, exit. It is JSON but
 * for bytes.
 */
export type Result<O extends LaunchOptions = {}, B = Opt<O, 'buffer', true>> = CommonResult<O, B> &
  (
    | { readonly status: 'exited'; readonly exitCode: number }
    | { readonly status: 'signaled'; readonly signal: NodeJS.Signals; readonly crash?: CrashReport }
    | { readonly status: 'limit-exceeded'; readonly limit: LimitName; readonly signal?: NodeJS.Signals }
    | { readonly status: 'violation'; readonly violation?: Violation; readonly crash?: CrashReport }
    | { readonly status: 'killed'; readonly signal: NodeJS.Signals }
  )

// ---- launching ---------------------------------------------------------------------------------------------------------

/** Whatever can launch programs. */
export interface Launcher {
  /**
   * Runs a program to its end.
   *
   * Resolves however the program ends: exit codes, signals, limits. Rejects if it could not be run as asked.
   *
   * @param file - a path inside, or a bare name that is looked up in the sandbox's `PATH` and tree
   * @throws `RequestError` (`ERR_NESTBOX_REQUEST`, `ERR_NESTBOX_UNSAFE_FD`; where it may have run: `ERR_NESTBOX_INPUT`,
   *   `ERR_NESTBOX_HANDLER`), `SpawnError` (`ERR_NESTBOX_SPAWN`), `ExecError` (`ERR_NESTBOX_EXEC`), `ForkServerError`
   *   (`ERR_NESTBOX_FORKSERVER`, `ERR_NESTBOX_FORKSERVER_DISABLED`, `ERR_NESTBOX_CLOSED`), `QueueFullError` (`ERR_NESTBOX_QUEUE_FULL`,
   *   `ERR_NESTBOX_QUEUE_TIMEOUT`), `AbortError` (`ABORT_ERR`), `NestboxError` with the code `ERR_NESTBOX_CLOSED`,
   *   `UnsupportedPlatformError` (`ERR_NESTBOX_UNSUPPORTED_PLATFORM`); with `reject: true` also `ProcessError`
   *   (`ERR_NESTBOX_PROCESS`). Never synchronously.
   */
  run<const O extends LaunchOptions = {}>(file: string, args?: readonly string[], options?: O): Promise<Result<O>>
  /**
   * Starts a program. Resolves once it runs.
   *
   * @throws as {@link Launcher.run}, which what fails later does in `result`: a stream given as `input`, `onSyscall`, an abort, `reject`
   */
  spawn<const O extends LaunchOptions = {}>(file: string, args?: readonly string[], options?: O): Promise<Sandboxee<O>>
}

/** What {@link SandboxeeOf.lines} takes. */
export interface LinesOptions {
  /** @defaultValue `'stdout'` */
  from?: 'stdout' | 'stderr' | undefined
  /**
   * A longer line comes in pieces of this many UTF-16 code units.
   *
   * @defaultValue 65,536
   */
  maxLength?: number | undefined
}

/**
 * A running program, with the members of {@link SandboxeeOf}. Not thenable: await its `result`. Disposing kills it.
 *
 * Which streams it has follows from the options that it was spawned with, and so does its type; options that these don't depend
 * on make no difference. To keep one in a field, name the options that matter: `Sandboxee<{ stdin: 'pipe' }>` is any that was spawned
 * with `stdin: 'pipe'` and the other streams as they are by default. `Sandboxee` alone is one with the default streams, and
 * `Sandboxee<LaunchOptions>` any at all, whose streams may be undefined.
 */
export type Sandboxee<O extends LaunchOptions = {}> = SandboxeeOf<
  InStream<O>,
  OutStream<O, 'stdout', 1>,
  OutStream<O, 'stderr', 2>,
  CommsStream<O>,
  Result<O, Opt<O, 'buffer', false>>
>

/** A {@link Sandboxee}, by the types of its streams and its result. */
// With the options in its place TypeScript would compare two of them by these, and take none for one with fewer.
export interface SandboxeeOf<Stdin, Stdout, Stderr, Comms, Outcome> extends AsyncDisposable {
  /** The program's process id, as the host sees it. */
  readonly pid: number
  /**
   * Writes to its stdin; undefined if `input` is written there. That the program reads no more, or is gone, is no failure of the
   * launch, and nobody has to listen for it. Who does is told as by any stream: listeners of `'error'` and callbacks of `write` get an
   * `EPIPE`, or an `ERR_STREAM_DESTROYED` after the end, and a `pipeline` into it rejects.
   */
  readonly stdin: Stdin
  readonly stdout: Stdout
  readonly stderr: Stderr
  /** All streams by the number inside; the first three are `stdin`, `stdout` and `stderr`. */
  readonly stdio: readonly (Readable | Writable | Duplex | undefined)[]
  /** The host's end of fd 1023. */
  readonly comms: Comms
  /**
   * Settles as {@link Launcher.run} does. Never raises `unhandledRejection`. Waits for the program, not for you; but a program
   * whose pipe is full waits for whoever reads `stdout` or `stderr`, and with it the result. Ignore the streams that you don't read.
   */
  readonly result: Promise<Outcome>
  /**
   * SIGKILL, the default, takes the whole nest; any other signal goes to the program.
   *
   * @returns whether there was something to send it to
   */
  kill(signal?: NodeJS.Signals): boolean
  /**
   * Sets other limits for the running program; those that are not given, or undefined, stay. Resolves when they hold for every
   * process of the nest. Units are those of {@link Limits}: milliseconds, bytes, counts.
   *
   * - `wallTime` counts from exec as ever: one that has passed ends the program at once, with `'limit-exceeded'`. So does a
   *   `cpuTime` that is used up.
   * - `wallTime`, `cpuTime` and `output` can be lowered, and raised again up to the policy's. Output that was dropped is not
   *   brought back.
   * - `processes`, `openFiles`, `fileSize`, `addressSpacePerProcess`, `stack` and `core` can only be tightened: the kernel
   *   lets nobody raise them again. What a process has already it keeps. A fork that was under way at that moment may end
   *   with the old limits; it is caught soon after, by stopping the nest for an instant.
   * - `disk` can't be changed.
   *
   * Each result's `isolation.limits` tells what was in force at the end.
   *
   * @throws `RequestError` for a limit above the policy's, one that can't be raised, or what is no limit; `NestboxError` with
   *   the code `ERR_NESTBOX_ENDED` if the launch is over, or ends before the limits hold; `SpawnError` if a process could not
   *   be limited: the limits of time and output are then as they were, those of processes perhaps tightened for some.
   *   Never synchronously.
   */
  setLimits(limits: Limits): Promise<void>
  /**
   * The output by lines, without their ends. It ends with the output, also where a limit, a signal or an abort cut that short:
   * `result` tells. Bounded: reads no further than you take. Call it again to go on after a `break`.
   *
   * @throws `RequestError` if there is no such stream
   */
  lines(options?: LinesOptions): AsyncIterable<string>
}
