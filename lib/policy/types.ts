// The types of a policy: what a sandboxee may see and do. Written by hand, because they are the documentation; the
// schemas in `./schema.ts` are tied to them at compile time.

import type { SyscallFilter, SyscallFilterJSON, SyscallPreset } from '../syscalls/types.ts'

declare const policyBrand: unique symbol

/** A number of bytes, as a number or with a unit: `67108864` or `'64MiB'`. */
export type Size = number | `${number}${'B' | 'KiB' | 'MiB' | 'GiB'}`

/** The tree that a policy starts from. See {@link PolicyFactory}. */
export type PolicyBase = 'host-system' | 'empty'

/** How a host path is shown inside. */
export interface BindOptions {
  /**
   * May be written to. What is written stays: a writable bind and `outputs` are the only things that survive a launch.
   *
   * @defaultValue `false`
   */
  writable?: boolean | undefined
  /**
   * Programs below it may be executed.
   *
   * @defaultValue the opposite of `writable`
   */
  exec?: boolean | undefined
  /**
   * Leave it out if the source does not exist; it is then listed in `result.isolation.skipped`. Otherwise a missing
   * source makes launches fail.
   *
   * @defaultValue `false`
   */
  optional?: boolean | undefined
}

/** What a launch's `binds` may do at a mount point. */
export interface MountPointOptions {
  /**
   * A launch's bind is writable here.
   *
   * @defaultValue `false`
   */
  writable?: boolean | undefined
  /**
   * Programs below it may be executed.
   *
   * @defaultValue the opposite of `writable`
   */
  exec?: boolean | undefined
}

/** A fresh, private file system in memory. */
export interface TmpfsOptions {
  /**
   * How much it holds.
   *
   * @defaultValue the `disk` limit
   */
  size?: Size | undefined
  /**
   * How many files and directories it holds.
   *
   * @defaultValue the kernel's: half the number of its memory pages
   */
  inodes?: number | undefined
  /**
   * The mode of its top directory.
   *
   * @defaultValue `0o1777`
   */
  mode?: number | undefined
}

/** A file made from memory. */
export interface FileOptions {
  /** @defaultValue `0o644` */
  mode?: number | undefined
}

/** User and group of the sandboxee, as it sees them itself. */
export interface Ids {
  uid: number
  gid: number
}

/**
 * Limits. `Infinity` lifts one. Of the whole nest: `wallTime`, `cpuTime`, `processes`, `output`, `disk`; the others are
 * of each process or file.
 */
export interface Limits {
  /**
   * Milliseconds on the clock, from exec. Kept by init, so a blocked event loop does not stretch it.
   *
   * @defaultValue 60,000
   */
  wallTime?: number | undefined
  /**
   * Milliseconds of CPU time, user and system, summed over all processes.
   *
   * @defaultValue none
   */
  cpuTime?: number | undefined
  /**
   * Processes and threads at one time. A fork beyond it fails inside with `EAGAIN`. Without isolation all of the host's user count,
   * and for root there is no such limit: `result.isolation.skipped` then has `'limits.processes'`.
   *
   * @defaultValue 128
   */
  processes?: number | undefined
  /**
   * Bytes on stdout and stderr together, as far as they come through the host: captured, or as a stream. What goes elsewhere
   * (`'inherit'`, `{ file }`, an open descriptor) is not counted; a file is bounded by `fileSize`. What happens past it: `onOverflow`.
   *
   * @defaultValue 10 MiB
   */
  output?: Size | undefined
  /**
   * Bytes in each tmpfs. A write beyond it fails inside with `ENOSPC`.
   *
   * @defaultValue 64 MiB
   */
  disk?: Size | undefined
  /**
   * The number that file descriptors stay below, in each process.
   *
   * @defaultValue 1,024
   */
  openFiles?: number | undefined
  /**
   * Bytes of the largest file that may be written.
   *
   * @defaultValue 1 GiB
   */
  fileSize?: Size | undefined
  /**
   * Bytes of address space of each process. Programs reserve far more than they use.
   *
   * @defaultValue none
   */
  addressSpacePerProcess?: Size | undefined
  /**
   * Bytes of stack of each main thread.
   *
   * @defaultValue none beyond the host's
   */
  stack?: Size | undefined
  /**
   * Bytes of a core file.
   *
   * @defaultValue 0
   */
  core?: Size | undefined
}

/** The name of a limit. */
export type LimitName = keyof Limits

/**
 * The network that a sandboxee sees. `'none'`: a namespace with nothing but loopback, that no other running sandboxee
 * shares. `'shared-loopback'`: one without outside links, shared by launches, which can talk to each other. `'host'`: the
 * host's own, **no isolation of the network at all**.
 */
export type Network = 'none' | 'shared-loopback' | 'host'

/** Whether the program may make unix sockets, and so connect to one that a bind shows. */
export type UnixSockets = 'none' | 'allow'

/**
 * The syscall filter: a preset, or one of the policy's own. `'default'`: everything that ordinary programs need, and none of
 * the kernel's dangerous corners. `'strict'`: computation on what is open already; a statically linked program starts under
 * it, a dynamically linked one needs `syscallFilter().allowDynamicStartup().preset('strict')`. `'unfiltered'`: no filter.
 */
export type Syscalls = SyscallPreset | SyscallFilterJSON

/** A protection that a policy can insist on. */
export type Requirement = 'landlock'

/** One entry of {@link PolicyJSON}'s `mounts`. */
export type MountJSON =
  | {
      readonly type: 'bind'
      readonly source: string
      readonly path: string
      readonly writable: boolean
      readonly exec: boolean
      readonly optional: boolean
    }
  | { readonly type: 'mountPoint'; readonly path: string; readonly writable: boolean; readonly exec: boolean }
  | {
      readonly type: 'tmpfs'
      readonly path: string
      readonly size: number | null
      readonly inodes: number | null
      readonly mode: number
    }
  | {
      readonly type: 'file'
      readonly path: string
      readonly content: string
      readonly encoding: 'utf8' | 'base64'
      readonly mode: number
    }
  | { readonly type: 'symlink'; readonly path: string; readonly pointsTo: string }
  | { readonly type: 'librariesFor'; readonly binary: string }

/** The limits of a {@link PolicyJSON}: every key is there, `null` is no limit. Bytes and milliseconds. */
export type LimitsJSON = { readonly [K in LimitName]-?: number | null }

/**
 * The published form of a policy: what `JSON.stringify` makes of one, and what {@link PolicyFactory.parse} reads. It can be
 * logged, stored, and sent to another machine.
 */
// A type alias, not an interface: only an alias can be assigned to `Record<string, unknown>`.
export type PolicyJSON = {
  readonly version: 1
  readonly base: PolicyBase
  /** In call order; at most one per path. */
  readonly mounts: readonly MountJSON[]
  readonly proc: 'fresh' | 'none'
  readonly dev: 'minimal' | 'none'
  readonly rootWritable: boolean
  readonly hostname: string
  readonly user: { readonly uid: number; readonly gid: number }
  readonly env: { readonly [name: string]: string }
  readonly network: Network
  readonly unixSockets: UnixSockets
  readonly syscalls: Syscalls
  readonly coreScheduling: boolean
  readonly allowSpeculation: boolean
  readonly limits: LimitsJSON
  readonly require: readonly Requirement[]
}

/**
 * A finished policy: a deeply frozen plain value. Made by {@link PolicyBuilder.build} or {@link PolicyFactory.parse} only;
 * a copy that was spread or edited is no longer one, and is parsed again wherever it is used.
 */
export type Policy = PolicyJSON & {
  readonly [policyBrand]: true
  toJSON(): PolicyJSON
}

/**
 * Builds a policy. Immutable: every call returns a new builder and leaves the receiver as it was, so nobody who shares a
 * base can widen it for others.
 *
 * Every call checks what it was given and throws a `PolicyError` that names it. For paths (`bind`, `mountPoint`, `tmpfs`,
 * `file`, `symlink`) the last call wins; `env` and `limits` merge by key; everything else may be set once.
 */
export interface PolicyBuilder {
  /**
   * Shows a host file or directory, with everything mounted below it.
   *
   * @param source - absolute host path. The policy is reused only while this is the same inode.
   * @param path - absolute path inside; the same as `source` by default
   */
  bind(source: string, path?: string, options?: BindOptions): PolicyBuilder
  /** Declares a path that a launch's `binds` may fill. No other path may be. */
  mountPoint(path: string, options?: MountPointOptions): PolicyBuilder
  /**
   * Mounts a fresh, private, writable file system in memory, made for each launch. What is compiled there can be executed
   * there.
   */
  tmpfs(path: string, options?: TmpfsOptions): PolicyBuilder
  /** Makes a read-only file from memory. */
  file(path: string, content: string | Uint8Array, options?: FileOptions): PolicyBuilder
  /** Makes a symbolic link. `pointsTo` is taken as it is. */
  symlink(path: string, pointsTo: string): PolicyBuilder
  /**
   * Shows the ELF interpreter and the libraries that a host binary needs, at the paths where it looks for them. Resolved by
   * reading the file, never by running it.
   */
  librariesFor(binary: string): PolicyBuilder
  /**
   * `'fresh'`: a /proc of the nest's own, with the dangerous files masked.
   *
   * @defaultValue `'fresh'` with the base `'host-system'`, else `'none'`
   */
  proc(kind: 'fresh' | 'none'): PolicyBuilder
  /**
   * `'minimal'`: null zero full random urandom tty shm pts ptmx fd stdin stdout stderr.
   *
   * @defaultValue `'minimal'` with the base `'host-system'`, else `'none'`
   */
  dev(kind: 'minimal' | 'none'): PolicyBuilder
  /** Lets the program write to the root directory. Private and gone afterwards, but such launches are slower. */
  rootWritable(): PolicyBuilder
  /** @defaultValue `'nestbox'` */
  hostname(name: string): PolicyBuilder
  /**
   * The ids that the program sees as its own. Outside it has those of `ForkServerOptions.hostIds`, whatever this says.
   *
   * @defaultValue `{ uid: 1000, gid: 1000 }`
   */
  user(ids: Ids): PolicyBuilder
  /** Environment variables, over the default `PATH` and `HOME=/tmp`. The host's environment is never read. */
  env(env: Readonly<Record<string, string>>): PolicyBuilder
  /** @defaultValue `'none'` */
  network(network: Network): PolicyBuilder
  /**
   * `'none'`: `socket(AF_UNIX)` fails with `EACCES`; `socketpair` still works. A read-only bind does not stop `connect` to
   * a socket in it, this does.
   *
   * @defaultValue `'none'`; `'allow'` with `.syscalls('unfiltered')`, which has nothing to enforce it with
   */
  unixSockets(sockets: UnixSockets): PolicyBuilder
  /**
   * Which system calls the program may make: a preset, or what `syscallFilter()` builds.
   *
   * @defaultValue `'default'`
   */
  syscalls(filter: Syscalls | SyscallFilter): PolicyBuilder
  /**
   * Never lets another sandboxee, or anything else of the machine, run on the same core at the same time (core scheduling,
   * `PR_SCHED_CORE`): two threads of one core see more of each other than of other cores. Costs a part of the machine's
   * throughput. Launches fail where it can't be had: without SMT, where there is nothing to keep apart (`ENODEV`), and where
   * the kernel was built without it (`EINVAL`).
   */
  coreScheduling(): PolicyBuilder
  /**
   * Leaves speculative execution as the host has it. Otherwise the processor's speculative store bypass and indirect branch
   * speculation are off in every process of the sandbox, for good (`PR_SET_SPECULATION_CTRL`, prctl(2)): programs that run code of
   * others inside themselves leak less to it. That costs some programs much: of what an interpreter computes, from a few per cent to
   * as much again, depending on the processor. For programs that hold nothing which their own code must not see.
   */
  allowSpeculation(): PolicyBuilder
  /** Sets limits, over the defaults; merged by key. A launch may only tighten them. */
  limits(limits: Limits): PolicyBuilder
  /**
   * Makes launches fail where a protection cannot be had. All that the other calls ask for is required anyway.
   *
   * `'landlock'` is a second line behind the mount tree, added wherever the kernel has it (Linux 5.19, and switched on). What
   * of it was enforced is in `result.isolation.landlock`.
   */
  require(...names: Requirement[]): PolicyBuilder
  /** The finished policy. Optional: whatever takes a {@link Policy} takes the builder. */
  build(): Policy
  /** What {@link PolicyBuilder.build} would give, for `JSON.stringify`. */
  toJSON(): PolicyJSON
}

/** Starts a policy, reads one, and tells one from another. */
export interface PolicyFactory {
  /**
   * Starts a policy.
   *
   * @param base - `'host-system'`: the host's system directories read-only (/usr /bin /sbin /lib*, the harmless part of
   *   /etc), private /tmp, fresh /proc, minimal /dev. `'empty'`: nothing at all. `'empty'` by default.
   * @throws `PolicyError`
   */
  (base?: PolicyBase): PolicyBuilder
  /**
   * Reads the published form, as text or as a value. What has a default may be left out (all but `version`, and of mounts what
   * they are about), and sizes may be text: `'64MiB'`. The `base` is `'empty'` then, as in the builder. Keys that there are not are
   * refused.
   *
   * @throws `PolicyError`
   */
  parse(json: unknown): Policy
  /**
   * What this policy comes to on this host, as a hash: computed over the resolved mounts, libraries and filter. Equal
   * hashes share a template.
   *
   * @throws `SpawnError` if it can't be resolved here (a bind source that is missing, for one)
   */
  hash(policy: Policy | PolicyBuilder): string
}
