// What `nestbox run` exits with: the program's own code where there is one, else a code that says which kind of end it was.
// Shells and timeout(1) have taken 124 to 127 and 128 + signal; ours are beside them.

import { ExecError, NestboxError, PolicyError, RequestError } from '../errors.ts'
import type { AnyResult } from '../launch/result.ts'
import { signalNumber } from '../signals.ts'

/** Exit codes that are not the program's. Documented in `./help.ts`. */
export const EXIT = {
  /** The command line or the policy is wrong; nothing was launched. */
  usage: 120,
  /** The program made a system call that its policy forbids. */
  violation: 121,
  /** The program ended well, but an output could not be brought out. */
  output: 122,
  /** A limit ended it, as with timeout(1). */
  limit: 124,
  /** nestbox could not do its job. */
  internal: 125,
  /** The program can't be executed. */
  notExecutable: 126,
  /** There is no such program in the sandbox. */
  notFound: 127,
  /** Plus the number of the signal that ended it. */
  signal: 128,
} as const

/** For how a program ended. */
export const exitCodeOf = (result: AnyResult): number => {
  switch (result.status) {
    case 'exited':
      return result.exitCode === 0 && result.failed ? EXIT.output : result.exitCode
    case 'limit-exceeded':
      return EXIT.limit
    case 'violation':
      return EXIT.violation
    default:
      return EXIT.signal + signalNumber(result.signal)
  }
}

/** What is wrong with the command line. */
export class UsageError extends Error {
  static {
    this.prototype.name = 'UsageError'
  }
}

/** For what was thrown. */
export const exitCodeOfError = (error: Error): number => {
  if (error instanceof ExecError) return error.errnoName === 'ENOENT' ? EXIT.notFound : EXIT.notExecutable
  if (error instanceof UsageError || error instanceof RequestError || error instanceof PolicyError) return EXIT.usage
  return EXIT.internal
}

/** The facts of an error, as JSON. */
export const errorJSON = (error: Error): object => ({
  name: error.name,
  message: error.message,
  ...(error instanceof NestboxError && Object.fromEntries(Object.entries(error))),
})
