// Asking `onSyscall`, and making an answer of what it says. Whatever it says that makes no sense is an error of the host,
// and allows nothing.

import { constants } from 'node:os'
import type { FileHandle } from 'node:fs/promises'
import type { NativeAnswer } from '#binding'
import * as z from 'zod'

import { asError, describeIssues, RequestError } from '../errors.ts'
import { closedDescriptor, unsafeDescriptor } from '../launch/descriptors.ts'
import { isFileHandle } from '../snapshot.ts'
import type { ErrnoName } from '../syscalls/types.ts'
import { check } from '../validate.ts'
import type { SyscallCall, SyscallCaller, SyscallDecision, SyscallHandler } from './types.ts'

const ERRNOS: Readonly<Record<string, number | undefined>> = constants.errno

const INT64_MAX = 2n ** 63n - 1n

const ErrnoSchema = z.custom<ErrnoName>(
  (name) => typeof name === 'string' && Object.hasOwn(ERRNOS, name),
  'It must be the name of an error, as in errno(3)',
)
const ValueSchema = z
  .union([z.int(), z.bigint()], 'It must be a whole number')
  .refine((value) => BigInt(value) <= INT64_MAX && BigInt(value) >= -INT64_MAX - 1n, 'It must fit into 64 bits')
const FdSchema = z.union(
  [z.custom<FileHandle>(isFileHandle), z.int().nonnegative()],
  'It must be a FileHandle or the number of an open descriptor',
)
const DecisionSchema = z.union(
  [
    z.enum(['allow', 'report', 'kill']),
    z.strictObject({ errno: ErrnoSchema }),
    z.strictObject({ value: ValueSchema }),
    z.strictObject({ fd: FdSchema, unsafe: z.boolean().optional(), closeOnExec: z.boolean().optional() }),
  ],
  'A decision is "allow", "report", "kill", { errno }, { value } or { fd }',
)

/** Errors that a value of this range would be taken for are said as such. */
const ERRNO_MAX = 4095n

const toAnswer = (decision: SyscallDecision | undefined): NativeAnswer => {
  if (decision === undefined) return { kind: 'report' }
  const checked = check(DecisionSchema, decision)
  if (!checked.ok) throw new Error(describeIssues("onSyscall answered what can't be", checked.error.issues))
  const { value } = checked
  if (typeof value === 'string') return { kind: value }
  if ('errno' in value) return { kind: 'errno', number: ERRNOS[value.errno] ?? constants.errno.EPERM }
  if ('value' in value) {
    const number = BigInt(value.value)
    // The kernel's own way to return an error.
    if (number < 0n && number >= -ERRNO_MAX) return { kind: 'errno', number: Number(-number) }
    return { kind: 'value', value: String(number) }
  }
  const fd = typeof value.fd === 'number' ? value.fd : value.fd.fd
  const why = value.unsafe === true ? closedDescriptor(fd) : unsafeDescriptor(fd)
  if (why !== undefined) throw new Error(`onSyscall answered with the descriptor ${fd}: ${why}.`)
  return { kind: 'fd', number: fd, closeOnExec: value.closeOnExec ?? true }
}

/** What a handler decides. Never throws: the error is the second part, and the answer then a violation. */
export const decide = async (
  handler: SyscallHandler,
  call: SyscallCall,
  caller: SyscallCaller,
): Promise<{ readonly answer: NativeAnswer; readonly error?: Error }> => {
  try {
    return { answer: toAnswer((await handler(call, caller)) ?? undefined) }
  } catch (error) {
    return { answer: { kind: 'report' }, error: asError(error) }
  }
}

/** What a launch rejects with whose handler failed. */
export const handlerFailure = (cause: Error): RequestError => {
  const issues = [{ path: ['onSyscall'], message: cause.message }]
  const message = `The handler onSyscall failed, so the program was killed: ${cause.message}`
  return new RequestError(message, issues, { cause, code: 'ERR_NESTBOX_HANDLER' })
}
