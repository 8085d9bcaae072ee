// The command line of `nestbox run`: what was typed, and the policy and launch that it means.
//
// Options that shape what the program may see and do become the JSON of a policy, over that of `--policy` if there is one,
// and are validated like any other policy; the rest are options of the launch.

import { readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { parseArgs, type ParseArgsConfig } from 'node:util'

import type { LaunchOptions } from '../launch/types.ts'
import { LimitsSchema } from '../policy/schema.ts'
import type { LimitName, MountJSON } from '../policy/types.ts'
import { UsageError } from './exit.ts'
import { parseCount, parseNumber, parseSize, parseTime } from './units.ts'

/** `wallTime` is `--wall-time`. */
const kebab = (name: string): string => name.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)

/** What measures a limit, where it is not bytes. */
const MEASURES: { readonly [name: string]: typeof parseSize } = {
  wallTime: parseTime,
  cpuTime: parseTime,
  processes: parseCount,
  openFiles: parseCount,
}

/** The limits that policies have, as options. */
export const LIMIT_OPTIONS: readonly { readonly option: string; readonly limit: LimitName; readonly unit: string }[] =
  LimitsSchema.keyof().options.map((limit) => {
    const measure = MEASURES[limit] ?? parseSize
    return { option: kebab(limit), limit, unit: measure === parseTime ? 'TIME' : measure === parseCount ? 'N' : 'SIZE' }
  })

/** All options of `nestbox run`. */
export const OPTIONS = {
  help: { type: 'boolean', short: 'h' },
  // What it may see and do.
  policy: { type: 'string' },
  base: { type: 'string' },
  bind: { type: 'string', multiple: true },
  tmpfs: { type: 'string', multiple: true },
  symlink: { type: 'string', multiple: true },
  'libraries-for': { type: 'string', multiple: true },
  proc: { type: 'string' },
  dev: { type: 'string' },
  'root-writable': { type: 'boolean' },
  hostname: { type: 'string' },
  user: { type: 'string' },
  network: { type: 'string' },
  'unix-sockets': { type: 'string' },
  syscalls: { type: 'string' },
  'core-scheduling': { type: 'boolean' },
  'allow-speculation': { type: 'boolean' },
  require: { type: 'string', multiple: true },
  ...Object.fromEntries(LIMIT_OPTIONS.map(({ option }) => [option, { type: 'string' as const }])),
  // This launch.
  env: { type: 'string', multiple: true, short: 'e' },
  cwd: { type: 'string' },
  file: { type: 'string', multiple: true },
  'copy-out': { type: 'string', multiple: true },
  learn: { type: 'string' },
  // What nestbox itself says.
  json: { type: 'boolean' },
  'json-file': { type: 'string' },
  'json-fd': { type: 'string' },
  stats: { type: 'boolean' },
  quiet: { type: 'boolean', short: 'q' },
  'print-policy': { type: 'boolean' },
} satisfies NonNullable<ParseArgsConfig['options']>

/** What one command line asks for. */
export interface RunCommand {
  readonly help: boolean
  /** The JSON of a policy, not validated yet. */
  readonly policy: { [key: string]: unknown }
  /** Where it is from, for a message. */
  readonly policyFrom: string
  readonly file: string | undefined
  readonly args: readonly string[]
  readonly launch: Pick<LaunchOptions, 'env' | 'cwd' | 'files' | 'outputs'>
  /** Where the result goes as JSON: to stdout with all output in it, to a file, or to a descriptor. */
  readonly json: 'stdout' | { readonly file: string } | { readonly fd: number } | undefined
  /** Where the policy goes that the run teaches. */
  readonly learn: string | undefined
  readonly stats: boolean
  readonly quiet: boolean
  readonly printPolicy: boolean
}

/** The words before the program are ours, it and the rest are its own, with or without `--` between them. */
const split = (argv: readonly string[]): { own: string[]; program: string[] } => {
  const { tokens } = parseArgs({
    args: [...argv],
    options: OPTIONS,
    strict: false,
    allowPositionals: true,
    tokens: true,
  })
  const first = tokens.find((token) => token.kind !== 'option')
  if (first === undefined) return { own: [...argv], program: [] }
  const from = first.kind === 'option-terminator' ? first.index + 1 : first.index
  return { own: argv.slice(0, first.index), program: argv.slice(from) }
}

type Values = { readonly [name: string]: string | boolean | (string | boolean)[] | undefined }

const textOf = (values: Values, name: string): string | undefined => {
  const value = values[name]
  return typeof value === 'string' ? value : undefined
}

const listOf = (values: Values, name: string): string[] => {
  const value = values[name]
  return Array.isArray(value) ? value.filter((item) => typeof item === 'string') : []
}

/** Reads a command line. */
export const parseRun = (argv: readonly string[]): RunCommand => {
  const { own, program } = split(argv)
  const values = strictly(own)
  const [file, ...args] = program
  return {
    help: values['help'] === true,
    policy: policyOf(values),
    policyFrom: policyFile(values) ?? 'The options',
    file,
    args,
    launch: launchOf(values),
    json: jsonTarget(values),
    learn: textOf(values, 'learn'),
    stats: values['stats'] === true,
    quiet: values['quiet'] === true,
    printPolicy: values['print-policy'] === true,
  }
}

const strictly = (args: string[]): Values => {
  try {
    return parseArgs({ args, options: OPTIONS }).values
  } catch (error) {
    // Node's messages are whole sentences that name the option.
    throw new UsageError((error as Error).message, { cause: error })
  }
}

const jsonTarget = (values: Values): RunCommand['json'] => {
  const targets = ['json', 'json-file', 'json-fd'].filter((name) => values[name] !== undefined)
  if (targets.length > 1) throw new UsageError(`--${targets.join(' and --')} exclude each other.`)
  const file = textOf(values, 'json-file')
  if (file !== undefined) return { file }
  const fd = textOf(values, 'json-fd')
  if (fd !== undefined) return { fd: parseNumber('json-fd', fd) }
  return values['json'] === true ? 'stdout' : undefined
}

// ---- the policy ------------------------------------------------------------------------------------------------------------

/** The file's policy as it is written; `$schema`, which editors look at, is no part of it. */
const readPolicy = (file: string): { [key: string]: unknown } => {
  let text
  try {
    text = readFileSync(file === '-' ? 0 : file, 'utf8')
  } catch (error) {
    throw new UsageError(`--policy: ${(error as Error).message}.`, { cause: error })
  }
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (error) {
    throw new UsageError(`--policy: ${file} is not JSON: ${(error as Error).message}.`, { cause: error })
  }
  if (!isRecord(json)) throw new UsageError(`--policy: ${file} must hold a JSON object.`)
  const { $schema: _, ...policy } = json
  return policy
}

const policyFile = (values: Values): string | undefined => {
  const file = textOf(values, 'policy')
  return file === '-' ? 'The policy on stdin' : file
}

const policyOf = (values: Values): { [key: string]: unknown } => {
  const file = textOf(values, 'policy')
  if (file !== undefined && values['base'] !== undefined) {
    throw new UsageError('--base and --policy exclude each other: the file says its base.')
  }
  const written: { [key: string]: unknown } =
    file === undefined ? { version: 1, base: textOf(values, 'base') ?? 'host-system' } : readPolicy(file)
  const user = textOf(values, 'user')
  const scalars = {
    proc: textOf(values, 'proc'),
    dev: textOf(values, 'dev'),
    rootWritable: values['root-writable'],
    hostname: textOf(values, 'hostname'),
    user: user === undefined ? undefined : parseUser(user),
    network: textOf(values, 'network'),
    unixSockets: textOf(values, 'unix-sockets'),
    syscalls: textOf(values, 'syscalls'),
    coreScheduling: values['core-scheduling'],
    allowSpeculation: values['allow-speculation'],
  }
  const required = listOf(values, 'require')
  const mounts: unknown = written['mounts'] ?? []
  const limits: unknown = written['limits'] ?? {}
  const require: unknown = written['require'] ?? []
  return {
    ...written,
    ...Object.fromEntries(Object.entries(scalars).filter(([, value]) => value !== undefined)),
    mounts: Array.isArray(mounts) ? mergeMounts(mounts, mountsOf(values)) : mounts,
    limits: isRecord(limits) ? { ...limits, ...limitsOf(values) } : limits,
    require: Array.isArray(require) ? [...new Set<unknown>([...(require as unknown[]), ...required])] : require,
  }
}

const isRecord = (value: unknown): value is { [key: string]: unknown } =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** Where it is inside; a bind that does not say so is where its source is. */
const pathOf = (mount: unknown): unknown => {
  if (!isRecord(mount)) return undefined
  return mount['path'] ?? (mount['type'] === 'bind' ? mount['source'] : undefined)
}

/** The last one for a path wins, as in the builder. */
const mergeMounts = (written: readonly unknown[], added: readonly MountJSON[]): unknown[] => {
  const replaced = new Set<unknown>(added.map(pathOf).filter((where) => where !== undefined))
  return [...written.filter((mount) => !replaced.has(pathOf(mount))), ...added]
}

const limitsOf = (values: Values): { [name: string]: number | null } => {
  const limits: { [name: string]: number | null } = {}
  for (const { option, limit } of LIMIT_OPTIONS) {
    const text = textOf(values, option)
    if (text !== undefined) limits[limit] = (MEASURES[limit] ?? parseSize)(option, text)
  }
  return limits
}

const mountsOf = (values: Values): MountJSON[] => {
  const mounts: MountJSON[] = [
    ...listOf(values, 'bind').map(parseBind),
    ...listOf(values, 'tmpfs').map(parseTmpfs),
    ...listOf(values, 'symlink').map(parseSymlink),
    ...listOf(values, 'libraries-for').map((binary) => ({
      type: 'librariesFor' as const,
      binary: path.resolve(binary),
    })),
  ]
  const last = new Map(mounts.map((mount) => ['path' in mount ? mount.path : mount.binary, mount]))
  return [...last.values()]
}

const BIND_FLAGS = ['ro', 'rw', 'exec', 'noexec', 'optional'] as const

/** `SOURCE[:PATH][:FLAGS]`; the source is one of the host, from the working directory on. */
const parseBind = (text: string): MountJSON => {
  const parts = text.split(':')
  const last = parts.at(-1)?.split(',') ?? []
  const hasFlags = parts.length > 1 && last.every((word) => (BIND_FLAGS as readonly string[]).includes(word))
  const flags = hasFlags ? last : []
  const [source = '', inside, ...rest] = hasFlags ? parts.slice(0, -1) : parts
  // A PATH that is none is mostly flags: misspelt, or with a colon between them.
  if (source === '' || rest.length > 0 || inside?.startsWith('/') === false) {
    throw new UsageError(
      `--bind: "${text}" is not SOURCE[:PATH][:FLAGS]; PATH is absolute, and flags are separated by commas, as in rw,exec: ` +
        `${BIND_FLAGS.join(', ')}.`,
    )
  }
  const writable = flags.includes('rw')
  const exec = flags.includes('exec') || (!writable && !flags.includes('noexec'))
  const host = path.resolve(source)
  return { type: 'bind', source: host, path: inside ?? host, writable, exec, optional: flags.includes('optional') }
}

/** `PATH[:SIZE]`. */
const parseTmpfs = (text: string): MountJSON => {
  const [where = '', size] = pair(text)
  return {
    type: 'tmpfs',
    path: where,
    size: size === undefined ? null : parseSize('tmpfs', size),
    inodes: null,
    mode: 0o1777,
  }
}

/** `PATH:TARGET`. */
const parseSymlink = (text: string): MountJSON => {
  const [where, pointsTo] = both('symlink', text, 'PATH:TARGET')
  return { type: 'symlink', path: where, pointsTo }
}

const parseUser = (text: string): { uid: number; gid: number } => {
  const [user, group = user] = pair(text)
  return { uid: parseNumber('user', user), gid: parseNumber('user', group) }
}

/** What is before the last colon, and what is after it, if there is one. */
const pair = (text: string): [string] | [string, string] => {
  const at = text.lastIndexOf(':')
  return at === -1 ? [text] : [text.slice(0, at), text.slice(at + 1)]
}

const both = (option: string, text: string, form: string): [string, string] => {
  const [first, second] = pair(text)
  if (first === '' || second === undefined || second === '')
    throw new UsageError(`--${option}: "${text}" is not ${form}.`)
  return [first, second]
}

// ---- the launch --------------------------------------------------------------------------------------------------------------

/** The largest file that `--copy-out` brings out. */
const COPY_MAX = 1024 ** 3

const launchOf = (values: Values): RunCommand['launch'] => {
  const cwd = textOf(values, 'cwd')
  const files = listOf(values, 'file').map((text) => {
    const [source, inside] = both('file', text, 'HOSTFILE:PATH')
    return [inside, hostFile(source)] as const
  })
  const outputs = listOf(values, 'copy-out').map((text) => {
    const [inside, to] = both('copy-out', text, 'PATH:HOSTFILE')
    return [inside, { path: inside, maxBytes: COPY_MAX, to: path.resolve(to) }] as const
  })
  return {
    env: Object.fromEntries(listOf(values, 'env').map(parseEnv)),
    ...(cwd !== undefined && { cwd }),
    ...(files.length > 0 && { files: Object.fromEntries(files) }),
    ...(outputs.length > 0 && { outputs: Object.fromEntries(outputs) }),
  }
}

const hostFile = (source: string): { content: Uint8Array; mode: number } => {
  try {
    return { content: readFileSync(source), mode: statSync(source).mode & 0o777 }
  } catch (error) {
    throw new UsageError(`--file: ${(error as Error).message}.`, { cause: error })
  }
}

/** `NAME=VALUE`, or `NAME` for the value that it has here. */
const parseEnv = (text: string): [string, string | undefined] => {
  const at = text.indexOf('=')
  return at === -1 ? [text, process.env[text]] : [text.slice(0, at), text.slice(at + 1)]
}
