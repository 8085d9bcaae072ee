// Open descriptors of the host's that are to be passed: whether they may be.
//
// The core has the same rule for those of a launch; this one is for what it does not see at once: descriptors beside others that
// are exempt from the rule, files that were opened late, and what `onSyscall` answers with.

import { fstatSync, readFileSync } from 'node:fs'

import { RequestError } from '../errors.ts'

/** Not among Node's constants; the same on all architectures that Node runs on. */
const O_PATH = 0o10000000

const CLOSED = 'It is not an open descriptor'

/** What is wrong with passing an open descriptor, if anything. */
export const unsafeDescriptor = (fd: number): string | undefined => {
  let stat
  let flags
  try {
    stat = fstatSync(fd)
    flags = Number.parseInt(
      /^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1] ?? '0',
      8,
    )
  } catch {
    return CLOSED
  }
  if (stat.isDirectory()) return 'It is a directory, which leads out of the sandbox'
  if (stat.isSocket()) return 'It is a socket, over which more descriptors could come'
  if ((flags & O_PATH) !== 0) return 'It is an O_PATH descriptor, which leads out of the sandbox'
  return undefined
}

/** The same for whoever may pass what leads out. */
export const closedDescriptor = (fd: number): string | undefined => {
  try {
    fstatSync(fd)
    return undefined
  } catch {
    return CLOSED
  }
}

/** Throws a {@link RequestError} unless the descriptor may be passed as `stdio[target]`. */
export const mustBeSafe = (fd: number, target: number): void => {
  const message = unsafeDescriptor(fd)
  if (message === undefined) return
  const issues = [{ path: ['stdio', target], message }]
  throw new RequestError(`The descriptor ${fd} can't be passed: ${message}.`, issues, { code: 'ERR_NESTBOX_UNSAFE_FD' })
}
