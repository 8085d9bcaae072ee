// From what a caller asks for to what is launched: validated, merged with the policy, frozen.
//
// A request holds the message to the core ready made, so that launching it, perhaps after a while in a queue, looks at
// nothing of the caller's again. Only open descriptors are asked for their number at the last moment: a FileHandle that was
// closed meanwhile must not name a file that was opened since.

import { constants } from 'node:fs'
import path from 'node:path'
import { Readable } from 'node:stream'
import type { FileHandle } from 'node:fs/promises'
import type { NativeExtras, NativeLimits, NativeOutputRequest } from '#binding'

import { describeIssues, type Issue, RequestError } from '../errors.ts'
import type { LimitName, LimitsJSON } from '../policy/types.ts'
import { AbsolutePath, checkCopied, type Checked, type Invalid, repeatedly } from '../validate.ts'
import { commandLine } from './command.ts'
import { ArgsSchema, type CheckedOptions, FileSchema, LaunchOptionsSchema } from './schema.ts'
import type { LaunchMessage } from '../connection.ts'
import type { LaunchContext } from './context.ts'

/** `run` has nobody who could use a stream, `spawn` has. */
export type Kind = 'run' | 'spawn'

/** What the core understands in place of a descriptor. */
export const IGNORE = -1
export const CAPTURE = -2
export const STREAM = -3
export const SAME_AS_STDOUT = -4

/** A host file to open for a launch. */
export interface OpenFile {
  readonly file: string
  readonly flags: number
  /** What is in it goes when the launch is made. */
  readonly truncate: boolean
}

/** A descriptor whose number is known only at the launch, and the numbers inside that it gets. */
export interface Late {
  readonly targets: number[]
  readonly source: OpenFile | FileHandle
}

/** A launch that is known to be right. */
export interface LaunchRequest {
  readonly kind: Kind
  readonly context: LaunchContext
  /** The message to the core; complete unless there are `late` descriptors. */
  readonly message: LaunchMessage
  readonly late: readonly Late[]
  /** Host descriptors that are passed and must lead nowhere; the core checks them, unless others are exempt. */
  readonly checkHere: readonly number[]
  /** Numbers of the descriptors from 3 on whose host's end comes back, in order. */
  readonly extraStreams: readonly number[]
  readonly file: string
  readonly args: readonly string[]
  /** Both as one line, for reading. */
  readonly command: string
  /** Written to stdin as it comes; bytes are in the message. */
  readonly inputStream: Readable | undefined
  /** Written to a stdin that is a stream as well. */
  readonly inputBytes: Uint8Array | undefined
  /** Written to the comms channel. */
  readonly work: Uint8Array | undefined
  /** The comms channel, if there is one, is the caller's. */
  readonly talks: boolean
  readonly outputNames: readonly string[]
  readonly outputs: CheckedOptions['outputs']
  /** In force: the policy's, tightened. */
  readonly limits: LimitsJSON
  /** The launch has limits of its own. */
  readonly tightened: boolean
  /** Milliseconds after exec at which `killSignal` is sent; undefined: the core's limit is all. */
  readonly softTimeout: number | undefined
  readonly signal: AbortSignal | undefined
  readonly killSignal: NodeJS.Signals
  readonly forceKillAfterDelay: number
  readonly encoding: 'utf8' | 'buffer'
  readonly buffer: boolean
  readonly lines: boolean
  readonly stripFinalNewline: boolean
  readonly onOverflow: 'kill' | 'keep-head' | 'keep-tail'
  readonly reject: boolean
}

const NO_OPTIONS: Checked<CheckedOptions> = Object.freeze({ ok: true, value: Object.freeze({}) })
const NO_ARGS: Checked<readonly string[]> = Object.freeze({ ok: true, value: Object.freeze([]) })
const NONE: readonly never[] = Object.freeze([])

const checkFile = repeatedly(FileSchema)
const checkArgs = repeatedly(ArgsSchema)
// A judge's launches differ in these, and in nothing else.
const checkOptions = repeatedly(
  LaunchOptionsSchema,
  LaunchOptionsSchema.pick({ input: true, files: true, work: true, signal: true }),
)

/**
 * Checks one call of `run` or `spawn`.
 *
 * @throws `RequestError`
 */
export const makeRequest = (
  context: LaunchContext,
  kind: Kind,
  file: unknown,
  args: unknown,
  options: unknown,
): LaunchRequest => {
  const checkedFile = checkFile(file)
  const checkedArgs = args === undefined ? NO_ARGS : checkArgs(args)
  const checkedOptions = options === undefined ? NO_OPTIONS : checkOptions(options)
  const known = last
  if (
    known !== undefined &&
    known.file === checkedFile &&
    known.args === checkedArgs &&
    known.options === checkedOptions &&
    isStillRight(known.request, context, kind)
  ) {
    return known.request
  }
  if (!checkedFile.ok || !checkedArgs.ok || !checkedOptions.ok) {
    throw invalid(kind, [
      ...issuesOf(checkedFile, 'file'),
      ...issuesOf(checkedArgs, 'args'),
      ...issuesOf(checkedOptions),
    ])
  }
  const made = new Merge(context, kind, checkedFile.value, checkedArgs.value, checkedOptions.value).request()
  if (Array.isArray(made)) throw invalid(kind, made)
  last = isRepeatable(made)
    ? { file: checkedFile, args: checkedArgs, options: checkedOptions, request: made }
    : undefined
  return made
}

/**
 * The last request that another launch may have as well, and what it was made of. Most launches are like the one before, and
 * to merge options with a policy takes 65 µs of a launch that comes after a pause.
 */
let last:
  | {
      readonly file: Checked<string>
      readonly args: Checked<readonly string[]>
      readonly options: Checked<CheckedOptions>
      readonly request: LaunchRequest
    }
  | undefined

/** A longer text, in characters, is not worth being kept. */
const REPEATABLE = 16_384

/** Whether nothing in it belongs to one launch, and nothing was looked up that may have changed since. */
const isRepeatable = ({ context, message, late, inputStream, inputBytes, work, signal }: LaunchRequest): boolean =>
  context.isolated &&
  message.text.length <= REPEATABLE &&
  // Limits are numbers; whatever else is in there holds bytes, descriptors, or paths that depend on where the host is.
  Object.keys(message.extras ?? {}).every((extra) => extra === 'limits') &&
  late.length === 0 &&
  inputStream === undefined &&
  inputBytes === undefined &&
  work === undefined &&
  signal === undefined

const isStillRight = (request: LaunchRequest, context: LaunchContext, kind: Kind): boolean =>
  request.context === context &&
  request.kind === kind &&
  request.message.warm === context.warmth.count &&
  request.message.warmIdle === context.warmth.idle

const issuesOf = (checked: Checked<unknown>, ...prefix: PropertyKey[]): Issue[] =>
  checked.ok ? [] : checked.error.issues.map((issue) => ({ ...issue, path: [...prefix, ...issue.path] }))

const invalid = (kind: Kind, issues: Issue[], cause?: Invalid['cause']): RequestError =>
  new RequestError(describeIssues(`${kind}() was asked for something that can't be`, issues), issues, { cause })

/** The flags of a file that a launch writes to; a terminal must not become the host's. */
const WRITE = constants.O_WRONLY | constants.O_CREAT | constants.O_NOCTTY
const READ = constants.O_RDONLY | constants.O_NOCTTY

/** What execa does, and what users of `killSignal` expect. */
const DEFAULT_GRACE = 5000

/** So many outputs has a launch at most: each comes with the result as an open descriptor. */
const OUTPUTS_MAX = 200

/** So many descriptors from 3 on and binds come with a launch at most: they and some of the core's own are in one packet. */
const PASSED_MAX = 240

/** The number of the comms channel inside. */
const COMMS_FD = 1023

const ON_OVERFLOW = { kill: 0, 'keep-head': 1, 'keep-tail': 2 } as const

type Descriptor = CheckedOptions['stdin'] | CheckedOptions['stdout'] | CheckedOptions['stderr']

/** How much `input`, in bytes or characters, costs as much to copy as a stream does to make. */
const LARGE_INPUT = 1024 * 1024

/** One merge of options with a context. A class only so that its many small steps share what they find wrong. */
class Merge {
  readonly #context: LaunchContext
  readonly #kind: Kind
  readonly #file: string
  readonly #args: readonly string[]
  readonly #options: CheckedOptions
  readonly #issues: Issue[] = []
  readonly #late: Late[] = []
  /** Passed descriptors that must lead nowhere. */
  readonly #checked: number[] = []
  #exempt = false

  constructor(context: LaunchContext, kind: Kind, file: string, args: readonly string[], options: CheckedOptions) {
    this.#context = context
    this.#kind = kind
    this.#file = file
    this.#args = args
    this.#options = options
  }

  request(): LaunchRequest | Issue[] {
    const { encoding = 'utf8', lines = false, stripFinalNewline = true, onOverflow = 'kill' } = this.#options
    const { signal, killSignal = 'SIGKILL', reject = false, outputs, input, work } = this.#options
    const buffer = this.#options.buffer ?? this.#kind === 'run'
    const stdio = this.#stdio()
    const limits = this.#limits()
    const forceKillAfterDelay = this.#options.forceKillAfterDelay ?? DEFAULT_GRACE
    const grace = killSignal === 'SIGKILL' ? undefined : this.#grace(limits, forceKillAfterDelay)
    const outputNames = outputs === undefined ? NONE : Object.keys(outputs)
    const message = this.#message(stdio, limits, grace, buffer, onOverflow)
    if (this.#issues.length > 0) return this.#issues

    const bytes = typeof input === 'string' ? Buffer.from(input) : input instanceof Readable ? undefined : input
    if (message.stdin === CAPTURE) this.#extras(message).input = bytes ?? new Uint8Array(0)
    return Object.freeze({
      kind: this.#kind,
      context: this.#context,
      message,
      late: this.#late,
      checkHere: this.#exempt ? this.#checked : NONE,
      extraStreams: stdio.extraStreams,
      file: this.#file,
      args: Object.freeze(this.#args),
      command: commandLine(this.#file, this.#args),
      inputStream: input instanceof Readable ? input : undefined,
      inputBytes: message.stdin === STREAM ? bytes : undefined,
      work: typeof work === 'string' ? Buffer.from(work) : work,
      talks: this.#options.comms === true,
      outputNames,
      outputs,
      limits: limits === undefined ? this.#context.limits : Object.freeze(limits),
      tightened: limits !== undefined,
      softTimeout: grace?.soft,
      signal,
      killSignal,
      forceKillAfterDelay,
      encoding,
      buffer,
      lines,
      stripFinalNewline,
      onOverflow,
      reject,
    })
  }

  #issue(at: PropertyKey[], message: string): void {
    this.#issues.push({ path: at, message })
  }

  // ---- the message ------------------------------------------------------------------------------------------------------

  #message(
    stdio: StdioPlan,
    limits: LimitsJSON | undefined,
    grace: { readonly hard: number | undefined } | undefined,
    buffer: boolean,
    onOverflow: keyof typeof ON_OVERFLOW,
  ): LaunchMessage {
    const context = this.#context
    const { argv0 = this.#file } = this.#options
    const environment = context.environment(this.#options.env)
    if (environment === undefined) this.#issue(['env'], 'It must be given: the host environment is never passed on')
    const output = (limits ?? context.limits).output
    // One join: the core takes the text in one piece, which what is put together bit by bit had to become first, copied whole.
    const texts = [this.#file, this.#cwd(), environment?.path ?? '', argv0, ...this.#args]
    if (environment !== undefined && environment.joined !== '') texts.push(environment.joined)
    const message: LaunchMessage = {
      policy: undefined,
      text: texts.join('\0'),
      argc: this.#args.length + 1,
      stdin: stdio.stdin,
      stdout: captured(stdio.stdout, this.#kind, buffer),
      stderr: captured(stdio.stderr, this.#kind, buffer),
      outputLimit: output ?? -1,
      onOverflow: ON_OVERFLOW[onOverflow],
      checkFds: !this.#exempt,
      comms: this.#options.comms === true || this.#options.work !== undefined,
      // Whoever only waits for the result need not be woken when the program starts.
      reportStart: this.#kind === 'spawn' || grace !== undefined || context.onSyscall !== undefined,
      crashReport: this.#crashReport(),
      standby: false,
      warm: context.warmth.count,
      warmIdle: context.warmth.idle,
      extras: undefined,
    }
    if (message.comms) this.#checkComms(stdio)
    if (context.onSyscall !== undefined) this.#extras(message).supervision = 'ask'
    else if (context.learns) this.#extras(message).supervision = 'learn'
    if (stdio.extra.length > 0) this.#extras(message).extraFds = stdio.extra
    const tightened = this.#nativeLimits(limits, grace?.hard)
    if (tightened !== undefined) this.#extras(message).limits = tightened
    this.#putFiles(message)
    this.#putBinds(message)
    this.#putOutputs(message)
    this.#checkPassed(message)
    return message
  }

  /** What few launches have; made for those. */
  #extras(message: LaunchMessage): NativeExtras {
    return (message.extras ??= {})
  }

  #checkComms(stdio: StdioPlan): void {
    if (this.#kind === 'run' && this.#options.comms === true) {
      this.#issue(['comms'], 'It needs spawn(): run() has nobody to use the channel')
    }
    if (stdio.extra.some((number, index) => index % 2 === 0 && number === COMMS_FD)) {
      this.#issue(['stdio', COMMS_FD], 'The comms channel has this number')
    }
  }

  #cwd(): string {
    const { cwd } = this.#options
    if (cwd === undefined) return this.#context.cwd()
    if (!this.#context.isolated) return path.resolve(cwd)
    const checked = checkCopied(AbsolutePath, cwd)
    if (checked.ok) return checked.value
    this.#issues.push(...issuesOf(checked, 'cwd'))
    return '/'
  }

  #crashReport(): boolean {
    const { crashReport = this.#context.crashReport } = this.#options
    if (crashReport && !this.#context.isolated) this.#issue(['crashReport'], NEEDS_SANDBOX)
    return crashReport
  }

  #putFiles(message: LaunchMessage): void {
    const { files } = this.#options
    if (files === undefined) return
    if (!this.#context.isolated) this.#issue(['files'], NEEDS_SANDBOX)
    this.#extras(message).files = Object.entries(files).map(([at, file]) => {
      const plain = typeof file === 'string' || file instanceof Uint8Array
      const content = plain ? file : file.content
      return {
        path: at,
        content: typeof content === 'string' ? Buffer.from(content) : content,
        mode: (plain ? undefined : file.mode) ?? 0o644,
      }
    })
  }

  #putBinds(message: LaunchMessage): void {
    const { binds } = this.#options
    if (binds === undefined) return
    if (!this.#context.isolated) this.#issue(['binds'], NEEDS_SANDBOX)
    this.#extras(message).binds = Object.entries(binds).map(([at, source]) => {
      if (this.#context.isolated && !this.#context.mountPoints.has(at)) {
        this.#issue(['binds', at], 'The policy declares no mount point here')
      }
      return { path: at, source: path.resolve(source) }
    })
  }

  #checkPassed({ comms, extras }: LaunchMessage): void {
    const fds = (extras?.extraFds?.length ?? 0) / 2 + (comms ? 1 : 0)
    const binds = extras?.binds?.length ?? 0
    if (fds + binds <= PASSED_MAX) return
    const what = `Descriptors from 3 on and binds of a launch are at most ${PASSED_MAX} together`
    this.#issue([binds > fds ? 'binds' : 'stdio'], `${what}, and these are ${fds + binds}`)
  }

  #putOutputs(message: LaunchMessage): void {
    const { outputs } = this.#options
    if (outputs === undefined) return
    if (!this.#context.isolated) this.#issue(['outputs'], NEEDS_SANDBOX)
    const count = Object.keys(outputs).length
    if (count > OUTPUTS_MAX)
      this.#issue(['outputs'], `There are ${count} of them, and at most ${OUTPUTS_MAX} can be had`)
    this.#extras(message).outputs = Object.values(outputs).map(({ path: at, maxBytes, to }) => {
      const output: NativeOutputRequest = { path: at, maxBytes }
      if (to !== undefined) output.to = path.resolve(to)
      return output
    })
  }

  // ---- limits -----------------------------------------------------------------------------------------------------------

  /** The policy's limits with the launch's, or undefined if it has none of its own. */
  #limits(): LimitsJSON | undefined {
    const { limits, timeout } = this.#options
    if (limits === undefined && timeout === undefined) return undefined
    const merged: { -readonly [K in LimitName]: LimitsJSON[K] } = { ...this.#context.limits }
    for (const name of Object.keys(limits ?? {}) as LimitName[])
      this.#tighten(merged, name, limits?.[name], ['limits', name])
    // As in child_process, 0 is no timeout.
    if (timeout !== undefined && timeout !== 0) this.#tighten(merged, 'wallTime', timeout, ['timeout'])
    return merged
  }

  #tighten(
    merged: { -readonly [K in LimitName]: LimitsJSON[K] },
    name: LimitName,
    value: number | undefined,
    at: PropertyKey[],
  ): void {
    if (value === undefined) return
    const allowed = this.#context.limits[name]
    if (!this.#context.isolated && name === 'disk') {
      this.#issue(at, NEEDS_SANDBOX)
    } else if (!this.#context.isolated && name === 'output') {
      // There is no policy that it could widen.
      merged.output = value === Infinity ? null : value
    } else if (allowed !== null && value > allowed) {
      const message = `A launch may only tighten its policy's limits: ${value} is above ${allowed}`
      this.#issue(at, message)
    } else if (value !== Infinity && (merged[name] === null || value < merged[name])) {
      merged[name] = value
    }
  }

  #nativeLimits(limits: LimitsJSON | undefined, hardTimeout: number | undefined): NativeLimits | undefined {
    if (limits === undefined) return undefined
    const message: NativeLimits = {}
    for (const name of Object.keys(limits) as LimitName[]) {
      const value = limits[name]
      // The limit of the output is kept where the output is read.
      if (name !== 'output' && value !== null && value !== this.#context.limits[name]) message[name] = value
    }
    if (hardTimeout !== undefined) message.wallTime = hardTimeout
    return message
  }

  /** When `killSignal` is sent, and when the core kills. The grace ends at the policy's limit at the latest. */
  #grace(limits: LimitsJSON | undefined, delay: number): { soft: number; hard: number } | undefined {
    const soft = limits?.wallTime ?? null
    if (soft === null) return undefined
    return { soft, hard: Math.min(soft + delay, this.#context.limits.wallTime ?? Infinity) }
  }

  // ---- descriptors ------------------------------------------------------------------------------------------------------

  #stdio(): StdioPlan {
    const { stdio, stdin, stdout, stderr } = this.#options
    if (stdio === undefined) return this.#plan(stdin, stdout, stderr, NONE)
    for (const name of ['stdin', 'stdout', 'stderr'] as const) {
      if (this.#options[name] !== undefined) this.#issue([name], 'It is in `stdio` already')
    }
    if (typeof stdio === 'string') return this.#plan(stdio, stdio, stdio, NONE)
    const [first, second, third, ...extra] = stdio
    return this.#plan(first, second, third, extra)
  }

  #plan(
    stdin: CheckedOptions['stdin'],
    stdout: CheckedOptions['stdout'],
    stderr: CheckedOptions['stderr'],
    extra: readonly Descriptor[],
  ): StdioPlan {
    const { input } = this.#options
    const plan: StdioPlan = {
      stdin: this.#descriptor(0, stdin ?? (input === undefined ? 'ignore' : 'pipe'), READ),
      stdout: this.#descriptor(1, stdout ?? 'pipe', WRITE),
      stderr: IGNORE,
      extra: [],
      extraStreams: [],
    }
    plan.stderr = stderr === 'stdout' ? this.#sameAsStdout(plan.stdout) : this.#descriptor(2, stderr ?? 'pipe', WRITE)
    if (input !== undefined && plan.stdin !== STREAM) this.#issue(['input'], 'It needs a stdin that is a pipe')
    // Bytes that are all there, and a stdin that nobody can write to, need no stream. Which does not copy them, though.
    const given = this.#kind === 'spawn' && stdin === 'pipe'
    const streamed = given || input instanceof Readable || (input !== undefined && input.length >= LARGE_INPUT)
    if (plan.stdin === STREAM && !streamed) plan.stdin = CAPTURE
    extra.forEach((descriptor, index) => this.#putExtra(plan, index + 3, descriptor ?? 'ignore'))
    return plan
  }

  /** The same open file, so that what is written to both stays in order. */
  #sameAsStdout(stdout: number): number {
    if (stdout === STREAM) return SAME_AS_STDOUT
    this.#late.find(({ targets }) => targets.includes(1))?.targets.push(2)
    return stdout
  }

  #putExtra(plan: StdioPlan, number: number, descriptor: NonNullable<Descriptor>): void {
    if (descriptor === 'ignore') return
    const fd = this.#descriptor(number, descriptor, READ)
    if (fd === STREAM) {
      if (this.#kind === 'run') this.#issue(['stdio', number], '"pipe" needs spawn(): run() has nobody to use it')
      plan.extraStreams.push(number)
    }
    plan.extra.push(number, fd)
  }

  #descriptor(target: number, descriptor: NonNullable<Descriptor>, flags: number): number {
    if (descriptor === 'pipe') return STREAM
    if (descriptor === 'ignore' || descriptor === 'stdout') return IGNORE
    if (descriptor === 'inherit') {
      // Often a socket (Node's own pipes are), and the word says what is meant.
      this.#exempt = true
      return target
    }
    if ('file' in descriptor) {
      const append = 'append' in descriptor && descriptor.append === true
      const source: OpenFile = {
        file: path.resolve(descriptor.file),
        flags: append ? flags | constants.O_APPEND : flags,
        truncate: flags === WRITE && !append,
      }
      this.#late.push({ targets: [target], source })
      return IGNORE
    }
    if ('unsafe' in descriptor && descriptor.unsafe === true) {
      this.#exempt = true
      return descriptor.fd
    }
    if ('datasync' in descriptor) {
      this.#late.push({ targets: [target], source: descriptor })
      return IGNORE
    }
    this.#checked.push(descriptor.fd)
    return descriptor.fd
  }
}

export const NEEDS_SANDBOX = 'It needs a sandbox: unsandboxed launches have only what the host has'

interface StdioPlan {
  stdin: number
  stdout: number
  stderr: number
  /** Pairs of number inside and descriptor. */
  extra: number[]
  extraStreams: number[]
}

/** What `run` keeps is captured by the core, without a stream. */
const captured = (descriptor: number, kind: Kind, buffer: boolean): number =>
  descriptor === STREAM && kind === 'run' && buffer ? CAPTURE : descriptor
