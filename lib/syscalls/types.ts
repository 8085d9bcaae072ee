// The types of a syscall filter: which system calls a program may make, and what happens otherwise. The methods that allow
// groups of calls are in `./group-methods.ts`.

import type { GroupMethods } from './group-methods.ts'

/** The name of an error: `'EPERM'`. */
export type ErrnoName = `E${string}`

/**
 * What becomes of a system call. `'allow'`: it is made. `{ errno }`: it fails with this error. `'report'`: it is recorded
 * and the nest killed; the result's status is `'violation'`. `'kill'`: the kernel kills the process, nobody is told why,
 * and nothing had to wait for it. `'ask'`: `onSyscall` decides, and without one it is reported. A sandbox with `onSyscall`
 * asks about what would be reported, too.
 */
export type SyscallAction = 'allow' | 'report' | 'kill' | 'ask' | { readonly errno: ErrnoName }

/** What becomes of the calls that no rule matches; never `'allow'`. */
export type DefaultAction = Exclude<SyscallAction, 'allow'>

/** A preset's name. */
export type SyscallPreset = 'default' | 'strict' | 'unfiltered'

/**
 * A condition on an argument, made by `arg(n)` and `arg64(n)` of `nestbox/syscalls`. Values are unsigned and hexadecimal
 * (`'0x5412'`), for 64 bits are more than a number of JSON holds.
 */
export type ArgumentCondition =
  | {
      readonly arg: number
      readonly width: 32 | 64
      readonly op: 'eq' | 'ne' | 'lt' | 'le' | 'gt' | 'ge' | 'hasAny'
      readonly value: string
    }
  | {
      readonly arg: number
      readonly width: 32 | 64
      readonly op: 'maskedEq'
      readonly mask: string
      readonly value: string
    }
  | { readonly arg: number; readonly width: 32 | 64; readonly op: 'oneOf'; readonly values: readonly string[] }

/** What becomes of some calls: one rule of a {@link SyscallFilterJSON}. */
export type SyscallRuleJSON = {
  /** Names, as in `/usr/include/asm/unistd.h`. One that this architecture has no call for is passed over. */
  readonly syscalls: readonly string[]
  /** All of these must hold; none: the rule always matches. */
  readonly when: readonly ArgumentCondition[]
  readonly action: SyscallAction
}

/** The published form of a filter: what `JSON.stringify` makes of one. The first rule that matches decides. */
export type SyscallFilterJSON = {
  readonly rules: readonly SyscallRuleJSON[]
  readonly otherwise: DefaultAction
}

/** How `allowRestartableSequences` lets a library wait for other processors. */
export type CpuFences = 'require-fast-fences' | 'allow-slow-fences'

/**
 * Builds a syscall filter. Denies by default; **the first rule that matches a call decides**, so exceptions come before what
 * they are exceptions of. Immutable: every call returns a new filter and leaves the receiver as it was. Every call checks
 * what it was given and throws a `PolicyError`.
 *
 * Some calls are dangerous in part: new namespaces by `clone` and `unshare`, `TIOCSTI` by `ioctl`, `AF_VSOCK` by `socket`,
 * init's limits by `prlimit64`, set-user-ID bits by `chmod`. A rule that allows one of them without conditions means the
 * rest, as the default preset does; one with conditions is taken at its word. See `docs/syscall-groups.md`.
 *
 * On top of every filter: calls of other architectures kill; numbers that this version doesn't know, those of x32 among
 * them, are never allowed; and `unixSockets('none')` holds.
 */
export interface SyscallFilter extends GroupMethods {
  /** Allows calls by name. */
  allow(...names: string[]): SyscallFilter
  /** Lets calls fail with an error. */
  errno(names: string | readonly string[], errno: ErrnoName): SyscallFilter
  /** Lets the kernel kill whoever makes these calls. */
  kill(...names: string[]): SyscallFilter
  /** Records whoever makes these calls, and kills the nest. */
  report(...names: string[]): SyscallFilter
  /** Leaves calls to the host: see `SandboxOptions.onSyscall`. */
  ask(...names: string[]): SyscallFilter
  /**
   * A rule for calls whose arguments meet all conditions.
   *
   * @example `.when('socket', [arg(0).eq(AF_INET)], 'allow')`
   */
  when(
    names: string | readonly string[],
    conditions: readonly ArgumentCondition[],
    action: SyscallAction,
  ): SyscallFilter
  /** Allows one operation of `futex`, with or without `FUTEX_PRIVATE_FLAG` and `FUTEX_CLOCK_REALTIME`. */
  allowFutexOp(operation: number): SyscallFilter
  /**
   * Allows what libraries with restartable sequences (tcmalloc) need: `rseq` `getcpu` `membarrier` and what they read;
   * slow fences also move threads between processors: `sched_getaffinity` `sched_setaffinity`.
   */
  allowRestartableSequences(fences: CpuFences): SyscallFilter
  /** Adds the rules of a preset here, and takes over its `otherwise`, unless that is said. */
  preset(name: Exclude<SyscallPreset, 'unfiltered'>): SyscallFilter
  /**
   * What becomes of all other calls.
   *
   * @defaultValue `'report'`
   */
  otherwise(action: DefaultAction): SyscallFilter
  /** The finished filter, for `JSON.stringify`. */
  toJSON(): SyscallFilterJSON
}
