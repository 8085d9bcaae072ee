// The types of supervision: calls that the filter stopped, what the host decides about them, and what a launch learned.

import type { FileHandle } from 'node:fs/promises'

import type { LaunchOptions, PassedFd, Result } from '../launch/types.ts'
import type { Policy, PolicyBuilder } from '../policy/types.ts'
import type { ErrnoName, SyscallFilter } from '../syscalls/types.ts'
import type { ForkServer } from '../types.ts'

/** The address of a socket, as `connect`, `bind` and `sendto` take it. */
export interface SocketAddress {
  /** `'AF_INET'`; the number of a family that has no name here. */
  readonly family: string
  /** Of `AF_INET` and `AF_INET6`. */
  readonly address?: string
  /** Of `AF_INET` and `AF_INET6`. */
  readonly port?: number
  /** Of `AF_UNIX`; an abstract one begins with `@`. */
  readonly path?: string
}

/**
 * A system call that the filter stopped, before it was made. 64-bit numbers are hexadecimal text. `path`, `otherPath` and
 * `address` were read from the program's memory when it was stopped: other threads can change them at any time.
 */
export interface Violation {
  /** Its name; `syscall_1234` if there is no such call. */
  readonly syscall: string
  readonly number: number
  /** All six arguments, whether the call takes them or not. */
  readonly args: string[]
  /** `'x86_64'`, `'aarch64'`, `'i386'`, `'arm'`, or the number that the kernel has for it. */
  readonly arch: string
  readonly instructionPointer: string
  /** The process, as the sandbox counts. Absent where it is not known: in a thread of a child, under `proc('none')`. */
  readonly pid?: number
  /** The thread, as the sandbox counts. */
  readonly tid: number
  /** The (first) path among the arguments, if there is one and it could be read. */
  readonly path?: string
  /** The second path: where something is renamed, linked or mounted to. */
  readonly otherPath?: string
  /** The socket address among the arguments, if there is one and it could be read. */
  readonly address?: SocketAddress
}

/** What a pointer among the arguments of a call led to: a copy. */
export interface SyscallMemory {
  /** Which argument, from 0. */
  readonly argument: number
  /** A string (without its NUL), a `struct sockaddr`, or bytes. */
  readonly kind: 'path' | 'address' | 'data'
  /** At most 4,096 bytes. */
  readonly content: Uint8Array
  /** There is more than was copied. */
  readonly cut: boolean
}

/** A call that waits for the host's decision. */
export interface SyscallCall extends Violation {
  readonly memory: readonly SyscallMemory[]
}

/** Which launch a call belongs to. */
export interface SyscallCaller {
  readonly file: string
  readonly args: readonly string[]
  /** The program's process id, as the host sees it. The call may be another process's of the same nest. */
  readonly pid: number
}

/**
 * What the host decides about a call.
 *
 * - `'allow'`: it is made. **Unsafe for calls that take pointers**: the kernel reads the program's memory again, and another
 *   thread may have put something else there since the handler looked. Decide by numbers (families, requests, flags), or
 *   make the call yourself and answer with `value` or `fd`.
 * - `{ errno }`: it fails.
 * - `{ value }`: it is not made, and returns this.
 * - `{ fd }`: it is not made, and returns a descriptor: a copy of this one of the host's, which the host keeps. Close-on-exec
 *   unless said otherwise. Directories, sockets and `O_PATH` descriptors lead out of a sandbox and take `unsafe: true`.
 * - `'report'` or nothing: a violation, as without a handler.
 * - `'kill'`: the nest is killed, and the result does not say which call it was.
 */
export type SyscallDecision =
  | 'allow'
  | 'report'
  | 'kill'
  | { readonly errno: ErrnoName; readonly value?: never; readonly fd?: never }
  | { readonly value: number | bigint; readonly errno?: never; readonly fd?: never }
  | ((PassedFd | { readonly fd: FileHandle }) & {
      /** @defaultValue `true` */
      readonly closeOnExec?: boolean | undefined
      readonly errno?: never
      readonly value?: never
    })

/** Decides about a call; may take its time. If it throws, the nest is killed and the launch rejects. */
export type SyscallHandler = (
  call: SyscallCall,
  caller: SyscallCaller,
  // A handler that says nothing about a call need not say that.
  // oxlint-disable-next-line typescript/no-invalid-void-type
) => SyscallDecision | undefined | void | Promise<SyscallDecision | undefined | void>

/** What {@link Learn} takes, beside the options of a launch. */
export interface LearnOptions extends LaunchOptions {
  /**
   * What the program sees while it is watched. Its filter is left out.
   *
   * @defaultValue `policy('host-system')`
   */
  policy?: Policy | PolicyBuilder | undefined
  /** @defaultValue the process-wide one, started on first use */
  server?: ForkServer | undefined
}

/** One use of a call. */
export interface LearnedCall {
  readonly syscall: string
  /** The arguments that tell it from other uses of the same call, by index. */
  readonly args: Readonly<Record<number, number>>
}

/** What a run taught. */
export interface Lesson {
  /** How the program ended. What it did not come to do was not learned. */
  readonly result: Result
  /** Every call that was made, once for each use. */
  readonly calls: readonly LearnedCall[]
  /** The smallest filter that would have let the program pass. */
  readonly filter: SyscallFilter
  /** The filter as TypeScript. */
  readonly code: string
  /** There were more uses than are kept (2,048): the filter lacks some. */
  readonly incomplete: boolean
  /** What has to be known before the filter is used. */
  readonly warning: string
}

/** Watches a program. */
export type Learn = (file: string, args?: readonly string[], options?: LearnOptions) => Promise<Lesson>
