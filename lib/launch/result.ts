// From what the core reports to the result that callers see: the verdict, the text, the account of what was enforced.

import { constants } from 'node:os'
import type { NativeEnded, NativeLimits } from '#binding'

import { native } from '../binding.ts'
import { ProcessError } from '../errors.ts'
import type { LimitName, LimitsJSON, Network } from '../policy/types.ts'
import { signalName } from '../signals.ts'
import type { Violation } from '../supervision/types.ts'
import { toViolation } from '../supervision/violation.ts'
import { crashReport } from './crash.ts'
import type { CrashReport } from './crash-types.ts'
import { CAPTURE, type LaunchRequest, STREAM } from './request.ts'
import type {
  CommonResult,
  Isolation,
  LandlockIsolation,
  LaunchOptions,
  OutputFailure,
  ResourceUsage,
  Result,
  Timings,
} from './types.ts'

/** What the host knows of a launch's end, next to what the core reports. */
export interface HostFacts {
  readonly queueMs: number
  /** Undefined: the program was started for this launch. */
  readonly handover: Handover | undefined
  /** Its `signal` ended it. */
  readonly canceled: boolean
  /** The host's own timer for `killSignal` ended it. */
  readonly timedOut: boolean
  /** The signals that the host sent, by number. */
  readonly sent: readonly number[]
  /** What was captured or counted on streams of the host; undefined where the core did it. */
  readonly stdout: Streamed | undefined
  readonly stderr: Streamed | undefined
  /** A stream of the host went past the limit. */
  readonly overflowed: boolean
  /** In force at the end. */
  readonly limits: LimitsJSON
}

/** When a program that was started ahead was given its work, on the core's clock. */
export interface Handover {
  readonly beganNs: number
  readonly doneNs: number
}

/** A stream's share of the result. */
export interface Streamed {
  readonly bytes: number
  readonly kept: Buffer | undefined
}

/** A result whose options are not known here. */
export type AnyResult = Result

// ---- the verdict ------------------------------------------------------------------------------------------------------------

/** How it ended, as it stands in the result. */
export type Verdict =
  | { readonly status: 'exited'; readonly exitCode: number }
  | { readonly status: 'signaled'; readonly signal: NodeJS.Signals }
  | { readonly status: 'limit-exceeded'; readonly limit: LimitName; readonly signal?: NodeJS.Signals }
  | { readonly status: 'violation'; readonly violation?: Violation }
  | { readonly status: 'killed'; readonly signal: NodeJS.Signals }

/** Decides by evidence: violation, limit, killed by the host, signal, exit. */
export const verdict = (
  ended: Pick<NativeEnded, 'ending' | 'status' | 'limit' | 'killedByHost' | 'filter' | 'violated' | 'violation'>,
  host: Pick<HostFacts, 'timedOut' | 'sent' | 'overflowed'>,
  onOverflow: LaunchRequest['onOverflow'],
): Verdict => {
  if (ended.violated) {
    const { violation } = ended
    return violation === undefined
      ? { status: 'violation' }
      : { status: 'violation', violation: toViolation(violation) }
  }
  const signaled = ended.ending === 'signaled'
  // The kernel's own kill by a filter; without one a SIGSYS is a signal like others.
  if (signaled && ended.status === constants.signals.SIGSYS && ended.filter !== 'unfiltered')
    return { status: 'violation' }
  const limit = limitOf(ended.limit, host, onOverflow)
  if (limit !== undefined) {
    return signaled
      ? { status: 'limit-exceeded', limit, signal: signalName(ended.status) }
      : { status: 'limit-exceeded', limit }
  }
  if (!signaled) return { status: 'exited', exitCode: ended.status }
  const signal = signalName(ended.status)
  // A program that was asked to stop, and crashes of something else, was not killed by us.
  const ours = host.sent.includes(ended.status) || (ended.killedByHost && ended.status === constants.signals.SIGKILL)
  return ours ? { status: 'killed', signal } : { status: 'signaled', signal }
}

const limitOf = (
  limit: NativeEnded['limit'],
  host: Pick<HostFacts, 'timedOut' | 'overflowed'>,
  onOverflow: LaunchRequest['onOverflow'],
): LimitName | undefined => {
  if (limit !== undefined) return limit
  if (host.overflowed && onOverflow === 'kill') return 'output'
  return host.timedOut ? 'wallTime' : undefined
}

// ---- the whole --------------------------------------------------------------------------------------------------------------

/** The result of a launch. */
export const makeResult = (request: LaunchRequest, ended: NativeEnded, host: HostFacts): AnyResult => {
  const end = verdict(ended, host, request.onOverflow)
  const outputs = readOutputs(request, ended)
  const overflowed = host.overflowed || outgrew(host.limits, ended)
  const limit = end.status === 'limit-exceeded' ? end.limit : undefined
  // One literal, and the few fields that differ afterwards: a literal that begins with a spread takes 30 µs to make.
  const result: Draft = {
    status: end.status,
    failed: end.status !== 'exited' || end.exitCode !== 0 || outputs.missing,
    timedOut: limit === 'wallTime',
    isMaxBuffer: limit === 'output' || overflowed,
    isCanceled: host.canceled,
    stdout: content(request, host.stdout === undefined ? ended.stdout : host.stdout.kept),
    stderr: content(request, host.stderr === undefined ? ended.stderr : host.stderr.kept),
    stdoutBytes: host.stdout?.bytes ?? ended.stdoutBytes,
    stderrBytes: host.stderr?.bytes ?? ended.stderrBytes,
    outputs: outputs.found,
    limitsHit: limitsHit(ended, overflowed, limit),
    durationMs: milliseconds(host.handover?.beganNs ?? ended.submittedNs, ended.endedNs),
    resourceUsage: resourceUsage(ended),
    timings: host.handover === undefined ? timings(ended, host.queueMs) : prewarmed(ended, host.queueMs, host.handover),
    isolation: isolation(request, ended, host.limits),
    file: request.file,
    args: request.args,
    command: request.command,
    pid: ended.pid,
  }
  if (end.status === 'exited') result.exitCode = end.exitCode
  else if (end.status === 'violation') {
    if (end.violation !== undefined) result.violation = end.violation
  } else if (end.signal !== undefined) result.signal = end.signal
  if (limit !== undefined) result.limit = limit
  const died = end.status === 'signaled' || end.status === 'violation'
  if (died && ended.crash !== undefined) result.crash = crashReport(ended.crash, ended.status)
  if (outputs.errors !== undefined) result.outputErrors = outputs.errors
  return result as unknown as AnyResult
}

/** A result while it is made: what is always there, and what depends on how it ended. */
interface Draft extends Omit<CommonResult<LaunchOptions, boolean>, 'outputs' | 'outputErrors'> {
  readonly status: Verdict['status']
  readonly outputs: ReadOutputs['found']
  outputErrors?: NonNullable<ReadOutputs['errors']>
  exitCode?: number
  signal?: NodeJS.Signals
  limit?: LimitName
  violation?: Violation
  crash?: CrashReport
}

/** With `reject: true`: the error that a failed result is. */
export const processError = (result: AnyResult, limits: LimitsJSON): ProcessError =>
  new ProcessError(`${reason(result, limits)}: ${result.command}`, result)

const reason = (result: AnyResult, limits: LimitsJSON): string => {
  switch (result.status) {
    case 'violation':
      return result.violation === undefined
        ? 'Command violated its syscall filter'
        : `Command violated its syscall filter with ${result.violation.syscall}`
    case 'limit-exceeded':
      return result.timedOut && limits.wallTime !== null
        ? `Command timed out after ${limits.wallTime} milliseconds`
        : `Command exceeded its limit of ${result.limit}`
    case 'killed':
      return `Command was killed by the host with ${result.signal}`
    case 'signaled':
      return `Command was killed with ${result.signal}`
    case 'exited':
      return result.exitCode === 0
        ? `Command succeeded, but the outputs ${Object.keys(result.outputErrors ?? {}).join(', ')} could not be brought out`
        : `Command failed with exit code ${result.exitCode}`
  }
}

// ---- output -----------------------------------------------------------------------------------------------------------------

const NEWLINE = 10
const RETURN = 13

/** What was captured, in the form that was asked for. */
const content = (request: LaunchRequest, bytes: Buffer | undefined): string | string[] | Uint8Array | undefined => {
  if (bytes === undefined) return undefined
  // Not a Buffer, whose methods differ from what the type says.
  if (request.encoding === 'buffer') return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length)
  if (request.lines) return splitLines(bytes.toString())
  return bytes.toString('utf8', 0, request.stripFinalNewline ? lengthWithoutNewline(bytes) : bytes.length)
}

const lengthWithoutNewline = (bytes: Buffer): number => {
  const { length } = bytes
  if (bytes[length - 1] !== NEWLINE) return length
  return bytes[length - 2] === RETURN ? length - 2 : length - 1
}

const splitLines = (text: string): string[] => {
  const lines = text.split(/\r?\n/)
  // What follows the last newline is no line unless there is something.
  if (lines.at(-1) === '') lines.pop()
  return lines
}

/** The core counted more than it was to keep. */
const outgrew = (limits: LimitsJSON, ended: NativeEnded): boolean =>
  limits.output !== null && ended.stdoutBytes + ended.stderrBytes > limits.output

const NO_LIMITS_HIT: readonly LimitName[] = Object.freeze([])

/** What was reached without being the end. */
const limitsHit = (ended: NativeEnded, overflowed: boolean, limit: LimitName | undefined): readonly LimitName[] => {
  const hit: LimitName[] = []
  if (overflowed && limit !== 'output') hit.push('output')
  if (ended.diskFull) hit.push('disk')
  return hit.length === 0 ? NO_LIMITS_HIT : hit
}

interface ReadOutputs {
  readonly found: Readonly<Record<string, unknown>>
  readonly errors: Readonly<Record<string, OutputFailure>> | undefined
  /** One that was required is not there. */
  readonly missing: boolean
}

const NO_OUTPUTS: ReadOutputs = Object.freeze({ found: Object.freeze({}), errors: undefined, missing: false })

const readOutputs = (request: LaunchRequest, ended: NativeEnded): ReadOutputs => {
  const { outputNames, outputs } = request
  if (outputNames.length === 0) return NO_OUTPUTS
  const found: Record<string, unknown> = {}
  const errors: Record<string, OutputFailure> = {}
  let missing = false
  for (const [index, name] of outputNames.entries()) {
    const output = ended.outputs[index]
    const asked = outputs?.[name]
    if (asked === undefined) continue
    if (output !== undefined && output.errno === undefined && output.tooLarge !== true) {
      const { content: bytes } = output
      found[name] =
        asked.to !== undefined || bytes === undefined
          ? { bytes: output.bytes }
          : new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length)
      continue
    }
    // As the core was given it: the working directory may be another by now.
    const to = request.message.extras?.outputs?.[index]?.to
    const failure = outputFailure(asked.path, asked.maxBytes, to, output)
    if (asked.optional === true && failure.errnoName === 'ENOENT' && failure.to === undefined) continue
    errors[name] = failure
    missing = true
  }
  return { found, errors: missing ? errors : undefined, missing }
}

const outputFailure = (
  path: string,
  maxBytes: number,
  to: string | undefined,
  output: NativeEnded['outputs'][number] | undefined,
): OutputFailure => {
  if (output?.tooLarge === true) {
    return { path, errnoName: 'EFBIG', message: `${path} has more than ${maxBytes} bytes.` }
  }
  const errnoName = output?.errnoName ?? 'ENOENT'
  if (to !== undefined && output?.ofTarget === true) {
    const why = TARGET_FAILURES[errnoName] ?? ''
    return { path, to, errnoName, message: `${path} could not be written to the host file ${to}${why} (${errnoName}).` }
  }
  const why = OUTPUT_FAILURES[errnoName] ?? 'could not be read'
  return { path, errnoName, message: `${path} ${why} (${errnoName}).` }
}

const OUTPUT_FAILURES: Readonly<Record<string, string | undefined>> = {
  ENOENT: 'does not exist',
  ELOOP: 'is, or lies behind, a symbolic link',
  EXDEV: 'lies behind a mount or a link that leads elsewhere',
  EMEDIUMTYPE: 'is no regular file',
}

const TARGET_FAILURES: Readonly<Record<string, string | undefined>> = {
  ENOENT: ', whose directory is gone',
  EEXIST: ', which exists',
}

// ---- accounts ---------------------------------------------------------------------------------------------------------------

const milliseconds = (from: number, to: number): number => Math.max(to - from, 0) / 1e6

const timings = ({ submittedNs, execNs, endedNs, warm, steps }: NativeEnded, queueMs: number): Timings => ({
  queueMs,
  setupMs: milliseconds(submittedNs, execNs),
  execMs: milliseconds(execNs, endedNs),
  warm,
  prewarmed: false,
  steps,
})

const prewarmed = ({ endedNs }: NativeEnded, queueMs: number, { beganNs, doneNs }: Handover): Timings => {
  const setupMs = milliseconds(beganNs, doneNs)
  const execMs = milliseconds(doneNs, endedNs)
  return { queueMs, setupMs, execMs, warm: true, prewarmed: true, steps: [{ step: 'hand-over', ms: setupMs }] }
}

/** What the nest used. */
export const resourceUsage = (ended: NativeEnded): ResourceUsage => ({
  userCpuMs: ended.userCpuUs / 1000,
  systemCpuMs: ended.systemCpuUs / 1000,
  peakMemoryBytes: ended.maxRssKib * 1024,
  memorySource: 'max-rss',
  minorFaults: ended.minorFaults,
  majorFaults: ended.majorFaults,
  voluntaryContextSwitches: ended.voluntarySwitches,
  involuntaryContextSwitches: ended.involuntarySwitches,
})

const NOTHING_SKIPPED: readonly string[] = Object.freeze([])

/** The last one that nothing was left out of: most launches are like the one before, and then so is this. */
let lastIsolation: Isolation | undefined

const isolation = (request: LaunchRequest, ended: NativeEnded, limits: LimitsJSON): Isolation => {
  const { coreScheduling, speculation, isolated } = request.context
  const { namespaces, network, filter: syscalls, landlockAbi, landlockScopes, noNewPrivs } = ended
  const unenforced = request.context.unenforced().filter((name) => limits[name] !== null)
  const skipped =
    unenforced.length === 0 ? ended.skipped : [...ended.skipped, ...unenforced.map((name) => `limits.${name}`)]
  const enforced = landlockAbi > 0 ? landlock(landlockAbi, landlockScopes) : undefined
  const capabilities = isolated ? 'none' : 'inherited'
  const inForceNow = limitsInForce(limits, unenforced, comesThroughHost(request))
  const known = lastIsolation
  // The namespaces, what Landlock adds and the limits are made once for each combination that there is.
  if (
    known !== undefined &&
    skipped.length === 0 &&
    known.namespaces === namespaces &&
    known.network === network &&
    known.syscalls === syscalls &&
    known.landlock === enforced &&
    known.noNewPrivs === noNewPrivs &&
    known.coreScheduling === coreScheduling &&
    known.speculation === speculation &&
    known.capabilities === capabilities &&
    known.limits === inForceNow
  ) {
    return known
  }
  const made: Isolation = Object.freeze({
    namespaces,
    network: network as Network,
    syscalls: syscalls as Isolation['syscalls'],
    ...(enforced !== undefined && { landlock: enforced }),
    noNewPrivs,
    coreScheduling,
    speculation,
    capabilities,
    limits: inForceNow,
    skipped: skipped.length === 0 ? NOTHING_SKIPPED : skipped,
  })
  if (skipped.length === 0) lastIsolation = made
  return made
}

const landlocks = new Map<number, LandlockIsolation>()

/** Of a host there is one. */
const landlock = (abi: number, scopes: number): LandlockIsolation => {
  const key = abi * 4 + scopes
  let known = landlocks.get(key)
  if (known === undefined) {
    const enforced: LandlockIsolation['enforced'][number][] = ['files']
    if ((scopes & 1) !== 0) enforced.push('abstract-unix-sockets')
    if ((scopes & 2) !== 0) enforced.push('signals')
    known = Object.freeze({ abi, enforced: Object.freeze(enforced) })
    landlocks.set(key, known)
  }
  return known
}

/** Whether any of what it writes can be counted. A stderr that is the same as stdout has its number, or follows it. */
const comesThroughHost = ({ message: { stdout, stderr } }: LaunchRequest): boolean =>
  [stdout, stderr].some((descriptor) => descriptor === CAPTURE || descriptor === STREAM)

type InForce = WeakMap<LimitsJSON, Isolation['limits']>
const inForce: { readonly withOutput: InForce; readonly withoutOutput: InForce } = {
  withOutput: new WeakMap(),
  withoutOutput: new WeakMap(),
}

/** Of the host, whose fork server has the same. */
let hardLimits: NativeLimits | undefined

/**
 * Without the limits that are none, and no higher than the host may go itself; once per policy, for most launches have no limits
 * of their own.
 */
const limitsInForce = (limits: LimitsJSON, unenforced: readonly LimitName[], counted: boolean): Isolation['limits'] => {
  const all = counted ? inForce.withOutput : inForce.withoutOutput
  const known = all.get(limits)
  if (known !== undefined) return known
  const hard = (hardLimits ??= native().hardLimits())
  const made: { [K in LimitName]?: number } = {}
  for (const name of Object.keys(limits) as LimitName[]) {
    const value = limits[name]
    if (value === null || unenforced.includes(name) || (name === 'output' && !counted)) continue
    made[name] = name === 'output' ? value : Math.min(value, hard[name] ?? Infinity)
  }
  Object.freeze(made)
  all.set(limits, made)
  return made
}
