// The errors that nestbox throws, and how one is made of what the native side or zod reports.
//
// Every message is made of whole sentences: what was being done, on what, why it failed, at which step, and what to do
// about it where that is known. `code` is always `ERR_NESTBOX_*`, or `ABORT_ERR`. `instanceof` compares brands, so it also
// holds between two copies of the package and between realms.

import type { NativeFailure, NativeIssue } from '#binding'
import type { Result } from './launch/types.ts'

/** One thing that is wrong with an input. */
export interface Issue {
  /** Where in the input: `['limits', 'wallTime']`. */
  readonly path: PropertyKey[]
  readonly message: string
}

const brands = new WeakMap<object, symbol>()

/** Gives a class its name (not enumerable, so that printed errors are not cluttered by it) and its brand. */
const brand = (errorClass: { readonly prototype: object }, name: string): void => {
  const symbol = Symbol.for(`nestbox.${name}`)
  brands.set(errorClass, symbol)
  Object.defineProperty(errorClass.prototype, symbol, { value: true })
  Object.defineProperty(errorClass.prototype, 'name', { value: name, configurable: true, writable: true })
}

/**
 * What all errors of nestbox are. By itself with the codes `ERR_NESTBOX_CLOSED`: the sandbox or the fork server was closed or
 * destroyed, and launches nothing any more; `ERR_NESTBOX_ENDED`: `setLimits` came too late; and `ERR_NESTBOX_OPENTELEMETRY`.
 */
export class NestboxError extends Error {
  /** A stable name of the kind of error, for programs: `ERR_NESTBOX_*`, or `ABORT_ERR`. */
  readonly code: string

  constructor(code: string, message: string, options?: ErrorOptions) {
    // Only if there is one: `cause: undefined` would be printed with every error.
    super(message, options?.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    const symbol = brands.get(this)
    // A user's own subclass has no brand: it is compared by prototype, as any class.
    if (symbol === undefined) return Function.prototype[Symbol.hasInstance].call(this, value)
    return typeof value === 'object' && value !== null && symbol in value
  }
}
brand(NestboxError, 'NestboxError')

/**
 * A request that can't be carried out as it is. Nothing was launched, but with two codes, which come of what goes wrong in the
 * host while the program runs, and kill it: `ERR_NESTBOX_INPUT`, the stream given as `input` failed (a message that says that nothing
 * was launched is of one that had failed before), and `ERR_NESTBOX_HANDLER`, `onSyscall` did. `ERR_NESTBOX_UNSAFE_FD`: a descriptor
 * to be passed leads out of the sandbox, or is closed. All else is `ERR_NESTBOX_REQUEST`.
 */
export class RequestError extends NestboxError {
  /** Everything that is wrong, not just the first thing. */
  readonly issues: readonly Issue[]

  constructor(message: string, issues: readonly Issue[], options?: ErrorOptions & { code?: string }) {
    super(options?.code ?? 'ERR_NESTBOX_REQUEST', message, options)
    this.issues = issues
  }
}
brand(RequestError, 'RequestError')

/** A policy that makes no sense (`ERR_NESTBOX_POLICY`). Thrown by the builder's call that is wrong, or by `policy.parse`. */
export class PolicyError extends NestboxError {
  /** Everything that is wrong, not just the first thing. */
  readonly issues: readonly Issue[]

  constructor(message: string, issues: readonly Issue[], options?: ErrorOptions) {
    super('ERR_NESTBOX_POLICY', message, options)
    this.issues = issues
  }
}
brand(PolicyError, 'PolicyError')

/** The facts of a {@link SpawnError}. */
export interface SpawnFailure {
  readonly code?: string
  readonly errno: number
  readonly errnoName: string
  readonly syscall: string
  readonly step: string
  readonly path?: string
  readonly hint?: string
}

/** The launch failed, and not by the program's doing: a step of setting it up went wrong (`ERR_NESTBOX_SPAWN`). */
export class SpawnError extends NestboxError {
  /** The number of the error, as in errno(3); 0 if no system call failed. */
  readonly errno: number
  /** Its name: `'ENOENT'`. Empty if no system call failed. */
  readonly errnoName: string
  /** The system call that failed. */
  readonly syscall: string
  /** The step of the launch: `'open-bind-source'`, `'exec'`. */
  readonly step: string
  /** What the step was about. */
  declare readonly path?: string
  /** What to do about it, where that is known. */
  declare readonly hint?: string

  constructor(message: string, failure: SpawnFailure, options?: ErrorOptions) {
    super(failure.code ?? 'ERR_NESTBOX_SPAWN', message, options)
    this.errno = failure.errno
    this.errnoName = failure.errnoName
    this.syscall = failure.syscall
    this.step = failure.step
    if (failure.path !== undefined) this.path = failure.path
    if (failure.hint !== undefined) this.hint = failure.hint
  }
}
brand(SpawnError, 'SpawnError')

/**
 * The program can't be executed: it is missing, is not executable, or has a format that the kernel does not know
 * (`ERR_NESTBOX_EXEC`).
 */
export class ExecError extends SpawnError {
  constructor(message: string, failure: SpawnFailure, options?: ErrorOptions) {
    super(message, { ...failure, code: failure.code ?? 'ERR_NESTBOX_EXEC' }, options)
  }
}
brand(ExecError, 'ExecError')

/**
 * The fork server could not be started, or died. What it ran is lost (and dead), and so is what was asked for between its
 * death and the moment in which the host sees it: of those nobody knows whether they ran. The next call starts a new one
 * (`ERR_NESTBOX_FORKSERVER`). With the code `ERR_NESTBOX_FORKSERVER_DISABLED`: the environment forbids to start one. With
 * `ERR_NESTBOX_CLOSED`: it was closed or destroyed under a launch.
 */
export class ForkServerError extends NestboxError {
  /** What went wrong while it started, as in {@link SpawnError}. */
  declare readonly step?: string
  declare readonly errno?: number
  declare readonly errnoName?: string
  declare readonly syscall?: string
  declare readonly path?: string
  declare readonly hint?: string

  constructor(message: string, options?: ErrorOptions & { code?: string; failure?: SpawnFailure | undefined }) {
    super(options?.code ?? 'ERR_NESTBOX_FORKSERVER', message, options)
    const failure = options?.failure
    if (failure === undefined) return
    this.step = failure.step
    this.errno = failure.errno
    this.errnoName = failure.errnoName
    this.syscall = failure.syscall
    if (failure.path !== undefined) this.path = failure.path
    if (failure.hint !== undefined) this.hint = failure.hint
  }
}
brand(ForkServerError, 'ForkServerError')

/**
 * The sandbox has `maxConcurrency` launches running and `maxQueue` waiting (`ERR_NESTBOX_QUEUE_FULL`), or this one waited for `queueTimeout`
 * (`ERR_NESTBOX_QUEUE_TIMEOUT`). Nothing was launched.
 */
export class QueueFullError extends NestboxError {
  constructor(message: string, code = 'ERR_NESTBOX_QUEUE_FULL') {
    super(code, message)
  }
}
brand(QueueFullError, 'QueueFullError')

/** There is no native addon for this platform (`ERR_NESTBOX_UNSUPPORTED_PLATFORM`). */
export class UnsupportedPlatformError extends NestboxError {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_NESTBOX_UNSUPPORTED_PLATFORM', message, options)
  }
}
brand(UnsupportedPlatformError, 'UnsupportedPlatformError')

/** The launch was aborted by its `signal`, whose reason is `cause` (`ABORT_ERR`). By the time it rejects, the nest is dead. */
export class AbortError extends NestboxError {
  /** What there was by then. Absent if nothing had been launched. */
  declare readonly result?: Result

  constructor(message: string, options?: ErrorOptions & { result?: Result | undefined }) {
    super('ABORT_ERR', message, options)
    if (options?.result !== undefined) this.result = options.result
  }
}
brand(AbortError, 'AbortError')

/** With `reject: true`: the program failed (`ERR_NESTBOX_PROCESS`). */
export class ProcessError extends NestboxError {
  readonly result: Result
  /** The message without the program's output. */
  readonly shortMessage: string

  constructor(shortMessage: string, result: Result) {
    super('ERR_NESTBOX_PROCESS', withOutput(shortMessage, result))
    this.shortMessage = shortMessage
    // Whole, but not printed once more below the message.
    this.result = result
  }
}
brand(ProcessError, 'ProcessError')

/** How much of stderr a message quotes. */
const TAIL = 2048

const withOutput = (message: string, result: Result): string => {
  const { stderr } = result as { readonly stderr?: unknown }
  const text = Array.isArray(stderr) ? stderr.join('\n') : stderr
  if (typeof text !== 'string' || text === '') return message
  return `${message}\n\n${text.length > TAIL ? `...${text.slice(-TAIL)}` : text}`
}

/**
 * The error that a failure reported by the native side is.
 *
 * @param at - where in the input it is, if it is the input's
 */
export const fromFailure = (failure: NativeFailure, at: PropertyKey[] = []): NestboxError => {
  const message = sentences(failure)
  switch (failure.code) {
    case 'ERR_NESTBOX_FORKSERVER':
      return new ForkServerError(message, { failure })
    case 'ERR_NESTBOX_UNSAFE_FD':
    case 'ERR_NESTBOX_REQUEST':
      return new RequestError(message, [{ path: at, message }], { code: failure.code })
    default:
      return failure.exec ? new ExecError(message, failure) : new SpawnError(message, failure)
  }
}

/** The error of limits that init could not set; the launch goes on. */
export const fromLimitsFailure = (failure: NativeFailure): SpawnError =>
  new SpawnError(sentences(failure, 'The limits could not be changed'), failure)

/** The core's message is `step: call object: reason`, for logs; a reader gets sentences. */
const sentences = (
  { code, exec, message, step, hint }: NativeFailure,
  subject: string = subjectOf(code, exec),
): string => {
  const prefix = `${step}: `
  const reason = step !== '' && message.startsWith(prefix) ? message.slice(prefix.length) : message
  const where = step === '' ? '' : ` at the step '${step}'`
  const what = sentence(`${subject}${where}: ${reason}`)
  return hint === undefined || hint === '' ? what : `${what} ${capitalized(sentence(hint))}`
}

const capitalized = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1)

const subjectOf = (code: string, exec: boolean): string => {
  if (exec) return 'The program could not be executed'
  switch (code) {
    case 'ERR_NESTBOX_FORKSERVER':
      return 'The fork server failed'
    case 'ERR_NESTBOX_REQUEST':
    case 'ERR_NESTBOX_UNSAFE_FD':
      return 'The request was refused'
    default:
      return 'The launch failed'
  }
}

const sentence = (text: string): string => (/[.!?]$/.test(text) ? text : `${text}.`)

/** The core's issues: it gives all keys as text, and indices are numbers. */
export const fromNativeIssues = (issues: readonly NativeIssue[]): Issue[] =>
  issues.map(({ path, message }) => ({ path: path.map((key) => (/^\d+$/.test(key) ? Number(key) : key)), message }))

/** The message of an error about an input: one line for one issue, a list for several. */
export const describeIssues = (what: string, issues: readonly Issue[]): string => {
  const [first] = issues
  if (issues.length === 1 && first !== undefined) return `${what}: ${describeIssue(first)}`
  return `${what}:\n${issues.map((issue) => `  - ${describeIssue(issue)}`).join('\n')}`
}

const describeIssue = ({ path, message }: Issue): string =>
  sentence(path.length === 0 ? message : `${describePath(path)}: ${message}`)

/** `['outputs', 'pdf', 'maxBytes']` as `outputs.pdf.maxBytes`; an option of a command line as it is typed. */
const describePath = (path: readonly PropertyKey[]): string =>
  path.reduce<string>((text, key) => {
    if (typeof key === 'number') return `${text}[${key}]`
    const name = String(key)
    if (!/^(?:--)?[A-Za-z_][\w-]*$/.test(name)) return `${text}[${JSON.stringify(name)}]`
    return text === '' ? name : `${text}.${name}`
  }, '')

/** An error for an input with one thing wrong. */
export const requestError = (what: string, path: PropertyKey[], message: string): RequestError => {
  const issues = [{ path, message }]
  return new RequestError(describeIssues(what, issues), issues)
}

/** Whatever was thrown, as an `Error`. */
export const asError = (thrown: unknown): Error =>
  thrown instanceof Error ? thrown : new Error(`A value that is not an Error was thrown: ${String(thrown)}.`)
