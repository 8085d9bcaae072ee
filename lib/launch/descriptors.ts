// Open descriptors of the host's that are to be passed, or written to: whether they may be.
//
// The core has the same rule for those of a launch; this one is for what it does not see at once: descriptors beside others that
// are exempt from the rule, files that were opened late, and what `onSyscall` answers with.

import { constants, fstatSync, readFileSync, readlinkSync } from 'node:fs'

import { RequestError } from '../errors.ts'

/** Not among Node's constants; the same on all architectures that Node runs on. */
const O_PATH = 0o10000000
const O_ACCMODE = 0o3

const CLOSED = 'It is not an open descriptor'

/** What it was opened with. */
const flagsOf = (fd: number): number =>
  Number.parseInt(/^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1] ?? '0', 8)

/** What is wrong with passing an open descriptor, if anything. */
export const unsafeDescriptor = (fd: number): string | undefined => {
  let stat
  let flags
  try {
    stat = fstatSync(fd)
    flags = flagsOf(fd)
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

/** What is wrong with writing to an open descriptor, if anything. */
export const unwritableDescriptor = (fd: number): string | undefined => {
  try {
    const flags = flagsOf(fd)
    if ((flags & O_PATH) !== 0 || (flags & O_ACCMODE) === constants.O_RDONLY) return 'It is not open for writing'
    // Where nothing was passed there may be what Node.js waits with.
    const isFile = !readlinkSync(`/proc/self/fd/${fd}`).startsWith('anon_inode:')
    return isFile ? undefined : 'It is none that was passed, but one of Node.js itself'
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
