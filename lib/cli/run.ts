// `nestbox run`: launches one program, lends it our stdio and ends as it ends.

import { accessSync, constants, openSync, statSync, writeFileSync, writeSync } from 'node:fs'
import path from 'node:path'

import { asError, describeIssues, PolicyError, RequestError } from '../errors.ts'
import { unwritableDescriptor } from '../launch/descriptors.ts'
import type { AnyResult } from '../launch/result.ts'
import type { LaunchOptions, Sandboxee } from '../launch/types.ts'
import { policy as policyFactory } from '../policy/policy.ts'
import type { Policy } from '../policy/types.ts'
import { Sandbox } from '../sandbox.ts'
import { learn } from '../supervision/learn.ts'
import { errorJSON, exitCodeOf, exitCodeOfError, UsageError } from './exit.ts'
import { runHelp } from './help.ts'
import { parseRun, type RunCommand } from './options.ts'
import { paintFor, write } from './terminal.ts'

/** Sent on to the program; a second one kills the nest. */
const FORWARDED = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** Carries out the command; returns what to exit with. */
export const runCommand = async (argv: readonly string[]): Promise<number> => {
  const command = parseRun(argv)
  if (command.help) {
    await write(process.stdout, runHelp())
    return 0
  }
  if (command.printPolicy) {
    await write(process.stdout, `${JSON.stringify(policyOf(command), undefined, 2)}\n`)
    return 0
  }
  if (command.file === undefined) {
    throw new UsageError('What is to be run? `nestbox run [options] [--] program [args...]`; --help tells more.')
  }
  return launch(command, command.file)
}

/** The policy, or what is wrong with it in the words of who typed it: no call of the API is. */
const policyOf = ({ policy, policyFrom }: RunCommand): Policy => {
  try {
    return policyFactory.parse(policy)
  } catch (error) {
    if (!(error instanceof PolicyError)) throw error
    throw new PolicyError(describeIssues(policyFrom, error.issues), error.issues, { cause: error })
  }
}

/** What is typed for the options of a launch. */
const TYPED: { readonly [option: string]: string | undefined } = {
  file: 'program',
  cwd: '--cwd',
  env: '--env',
  files: '--file',
  outputs: '--copy-out',
}

/** The same for a launch that was refused. */
const inTheirWords = (error: Error): Error => {
  if (!(error instanceof RequestError)) return error
  const { code, issues } = error
  const typed = issues.map(({ path: [option, ...rest], message }) => ({
    path: option === undefined ? [] : [TYPED[String(option)] ?? option, ...rest],
    message,
  }))
  return new RequestError(describeIssues('The command line is wrong', typed), issues, { cause: error, code })
}

const launch = async (command: RunCommand, file: string): Promise<number> => {
  if (command.learn !== undefined) mustBeWritable(command.learn)
  const report = reporter(command)
  try {
    const result = await outcome(command, file)
    await report(result)
    if (!command.quiet) await tell(command, result)
    return exitCodeOf(result)
  } catch (thrown) {
    const error = inTheirWords(asError(thrown))
    await report({ error: errorJSON(error) })
    if (!command.quiet) await complain(error)
    return exitCodeOfError(error)
  }
}

const outcome = async (command: RunCommand, file: string): Promise<AnyResult> => {
  const whole = command.json === 'stdout'
  const options: LaunchOptions = {
    ...command.launch,
    stdin: 'inherit',
    // With --json the output is part of the result; else the program writes where we would, without us between.
    ...(whole ? { buffer: true } : { stdout: 'inherit', stderr: 'inherit' }),
  }
  if (command.learn !== undefined) return learnInto(command.learn, command, file, options)
  // One launch is all there will be: no nest is kept warm for the next one.
  await using sandbox = await Sandbox.create(policyOf(command), { warm: 0 })
  const signals = forwardSignals()
  try {
    const sandboxee = await sandbox.spawn(file, command.args, options)
    signals.to(sandboxee)
    return (await sandboxee.result) as AnyResult
  } finally {
    signals.stop()
  }
}

/** Runs it with every call allowed, and writes the policy that would have let it pass. */
const learnInto = async (to: string, command: RunCommand, file: string, options: LaunchOptions): Promise<AnyResult> => {
  const policy = policyOf(command)
  const abort = new AbortController()
  const signals = forwardSignals()
  signals.to({ kill: (signal) => (abort.abort(new Error(`${signal} was received.`)), true) })
  try {
    const lesson = await learn(file, command.args, { ...options, policy, signal: abort.signal })
    const learned = policyFactory.parse({ ...policy.toJSON(), syscalls: lesson.filter.toJSON() })
    writeFileSync(to, `${JSON.stringify(learned, undefined, 2)}\n`)
    if (!command.quiet) {
      const more = lesson.incomplete ? ' There was more than is kept: the filter lacks some.' : ''
      await write(process.stderr, `nestbox: ${paintFor(process.stderr).yellow(`${lesson.warning}${more}`)}\n`)
    }
    return lesson.result
  } finally {
    signals.stop()
  }
}

/**
 * Refuses where a policy could not be written to. It is looked at and not opened: what is there stays as it is until there is
 * something to write, and where the run teaches nothing there is no new file.
 */
const mustBeWritable = (file: string): void => {
  try {
    const there = statSync(file, { throwIfNoEntry: false })
    if (there?.isDirectory() === true) throw new Error('EISDIR: it is a directory')
    if (there === undefined) accessSync(`${path.dirname(file)}/.`, constants.W_OK | constants.X_OK)
    else accessSync(file, constants.W_OK)
  } catch (error) {
    throw new UsageError(`--learn: ${file} can't be written: ${asError(error).message}.`, { cause: error })
  }
}

/** From now on signals are the program's; those that come before it is there wait for it. */
const forwardSignals = (): { to(sandboxee: Pick<Sandboxee, 'kill'>): void; stop(): void } => {
  const seen: NodeJS.Signals[] = []
  let target: Pick<Sandboxee, 'kill'> | undefined
  const forward = (signal: NodeJS.Signals): void => {
    target?.kill(seen.includes(signal) ? 'SIGKILL' : signal)
    seen.push(signal)
  }
  for (const signal of FORWARDED) process.on(signal, forward)
  return {
    to(sandboxee) {
      target = sandboxee
      for (const signal of seen.splice(0)) forward(signal)
    },
    stop() {
      for (const signal of FORWARDED) process.off(signal, forward)
    },
  }
}

const bytesAsBase64 = (_: string, value: unknown): unknown =>
  value instanceof Uint8Array ? Buffer.from(value).toString('base64') : value

const text = (value: object): string => `${JSON.stringify(value, bytesAsBase64)}\n`

/** Writes the result where it was asked for. What it is written to is opened, or looked at, before anything runs. */
const reporter = ({ json }: RunCommand): ((value: object) => Promise<void>) => {
  if (json === undefined) return async () => {}
  if (json === 'stdout') return (value) => write(process.stdout, text(value))
  if ('fd' in json) {
    const problem = unwritableDescriptor(json.fd)
    if (problem !== undefined) throw new UsageError(`--json-fd: Nothing can be written to ${json.fd}: ${problem}.`)
    return async (value) => {
      writeSync(json.fd, text(value))
    }
  }
  let fd: number
  try {
    fd = openSync(json.file, 'w')
  } catch (error) {
    throw new UsageError(`--json-file: ${(error as Error).message}.`, { cause: error })
  }
  return async (value) => writeFileSync(fd, text(value))
}

/** What the exit code alone does not say. */
const tell = async ({ stats }: RunCommand, result: AnyResult): Promise<void> => {
  const paint = paintFor(process.stderr)
  const lines: string[] = []
  if (result.status === 'limit-exceeded') lines.push(paint.red(`${result.command} reached its limit ${result.limit}.`))
  if (result.status === 'violation') {
    const call = result.violation?.syscall
    lines.push(paint.red(`${result.command} made a forbidden system call${call === undefined ? '' : `: ${call}`}.`))
  }
  for (const [name, { message }] of Object.entries(result.outputErrors ?? {})) {
    lines.push(paint.red(`${name} could not be brought out: ${message}`))
  }
  if (result.limitsHit.length > 0 && result.status !== 'limit-exceeded') {
    lines.push(paint.yellow(`Limits reached on the way: ${result.limitsHit.join(', ')}.`))
  }
  if (stats) lines.push(paint.dim(summary(result)))
  if (lines.length > 0) await write(process.stderr, lines.map((line) => `nestbox: ${line}\n`).join(''))
}

const MIB = 1024 ** 2

const summary = ({ status, durationMs, timings, resourceUsage }: AnyResult): string => {
  const { userCpuMs, systemCpuMs, peakMemoryBytes } = resourceUsage
  return [
    status,
    `${durationMs.toFixed(1)} ms (set up in ${timings.setupMs.toFixed(2)} ms)`,
    `cpu ${(userCpuMs + systemCpuMs).toFixed(1)} ms`,
    `memory ${(peakMemoryBytes / MIB).toFixed(1)} MiB`,
  ].join(', ')
}

/** One paragraph on stderr; the stack of a user's mistake helps nobody. */
export const complain = (error: Error): Promise<void> =>
  write(process.stderr, `nestbox: ${paintFor(process.stderr).red(error.message)}\n`)
