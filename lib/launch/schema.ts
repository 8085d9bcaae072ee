// The shape of a launch's options. What depends on the policy (limits, mount points) or on other options is decided in
// `./request.ts`.

import { constants } from 'node:os'
import { Readable } from 'node:stream'
import { types } from 'node:util'
import type { FileHandle } from 'node:fs/promises'
import * as z from 'zod'

import { LimitsSchema } from '../policy/schema.ts'
import { isFileHandle } from '../snapshot.ts'
import {
  AbsolutePath,
  ContentSchema,
  EnvName,
  FdSchema,
  KernelString,
  MillisecondsSchema,
  ModeSchema,
  NonEmptyString,
  sizeSchema,
  type Tied,
  TimeoutSchema,
} from '../validate.ts'
import type {
  LaunchFile,
  LaunchOptions,
  LinesOptions,
  OutputFile,
  PassedFd,
  Stdio,
  StdioExtra,
  StdioIn,
  StdioOut,
} from './types.ts'

// ---- file and arguments -----------------------------------------------------------------------------------------------------

export const FileSchema = NonEmptyString

export const ArgsSchema = z.array(KernelString, 'The arguments must be an array of strings')

// ---- descriptors ------------------------------------------------------------------------------------------------------------

const FileHandleSchema = z.custom<FileHandle>(isFileHandle)

const PassedFdSchema = z.strictObject({ fd: FdSchema, unsafe: z.boolean().optional() })

const IN = 'It must be "pipe", "ignore", "inherit", a FileHandle, { file } or { fd }'
const OUT = 'It must be "pipe", "ignore", "inherit", a FileHandle, { file, append } or { fd }'
const ERR = 'It must be "stdout", "pipe", "ignore", "inherit", a FileHandle, { file, append } or { fd }'
const EXTRA = 'It must be "pipe", "ignore", "inherit", a FileHandle or { fd }'

const Keyword = z.enum(['pipe', 'ignore', 'inherit'])
const FileIn = z.strictObject({ file: NonEmptyString })
const FileOut = z.strictObject({ file: NonEmptyString, append: z.boolean().optional() })

const InSchema = z.union([Keyword, FileIn, PassedFdSchema, FileHandleSchema], IN)
const OutSchema = z.union([Keyword, FileOut, PassedFdSchema, FileHandleSchema], OUT)
const ErrSchema = z.union([z.literal('stdout'), Keyword, FileOut, PassedFdSchema, FileHandleSchema], ERR)
const ExtraSchema = z.union([Keyword, PassedFdSchema, FileHandleSchema], EXTRA)

/** How many entries `stdio` has at most: up to 1023, where the comms channel is if there is one. */
const EXTRA_FDS = 1024

const StdioSchema = z.union(
  [
    Keyword,
    z.tuple([]),
    z.tuple([InSchema.optional()]),
    z.tuple([InSchema.optional(), OutSchema.optional()]),
    z
      .tuple([InSchema.optional(), OutSchema.optional(), ErrSchema.optional()], ExtraSchema.optional())
      .refine((stdio) => stdio.length <= EXTRA_FDS),
  ],
  'It must be "pipe", "ignore", "inherit" or an array of what the single descriptors take',
)

// ---- options ----------------------------------------------------------------------------------------------------------------

const SignalNameSchema = z.custom<NodeJS.Signals>(
  (name) => typeof name === 'string' && Object.hasOwn(constants.signals, name),
  'It must be the name of a signal, such as "SIGTERM"',
)

const LaunchFileSchema = z.strictObject({ content: ContentSchema, mode: ModeSchema.optional() })

export const OutputFileSchema = z.strictObject({
  path: AbsolutePath,
  maxBytes: sizeSchema(0).refine(Number.isFinite, 'It must be finite: what comes from a sandbox is bounded'),
  to: NonEmptyString.optional(),
  optional: z.boolean().optional(),
})

const INPUT = 'It must be a string, a Uint8Array or a Readable'

const InputSchema = z.custom<string | Uint8Array | Readable>(
  (input) => typeof input === 'string' || types.isUint8Array(input) || input instanceof Readable,
  INPUT,
)

export const LaunchOptionsSchema = z.strictObject({
  env: z.record(EnvName, KernelString.optional()).optional(),
  cwd: KernelString.optional(),
  argv0: KernelString.optional(),
  stdin: InSchema.optional(),
  stdout: OutSchema.optional(),
  stderr: ErrSchema.optional(),
  stdio: StdioSchema.optional(),
  input: InputSchema.optional(),
  files: z.record(AbsolutePath, z.union([ContentSchema, LaunchFileSchema])).optional(),
  binds: z.record(AbsolutePath, NonEmptyString).optional(),
  outputs: z.record(z.string(), OutputFileSchema).optional(),
  comms: z.boolean().optional(),
  work: ContentSchema.optional(),
  limits: LimitsSchema.optional(),
  timeout: TimeoutSchema.optional(),
  signal: z.custom<AbortSignal>((signal) => signal instanceof AbortSignal, 'It must be an AbortSignal').optional(),
  killSignal: SignalNameSchema.optional(),
  forceKillAfterDelay: MillisecondsSchema.refine(Number.isFinite, 'It must be finite').optional(),
  encoding: z.enum(['utf8', 'buffer'], 'It must be "utf8" or "buffer"').optional(),
  buffer: z.boolean().optional(),
  lines: z.boolean().optional(),
  stripFinalNewline: z.boolean().optional(),
  onOverflow: z.enum(['kill', 'keep-head', 'keep-tail'], 'It must be "kill", "keep-head" or "keep-tail"').optional(),
  reject: z.boolean().optional(),
  crashReport: z.boolean().optional(),
})

/** Options as they are after validation: sizes are numbers, paths are clean. */
export type CheckedOptions = z.output<typeof LaunchOptionsSchema>

export const LinesOptionsSchema = z.strictObject({
  from: z.enum(['stdout', 'stderr'], 'It must be "stdout" or "stderr"').optional(),
  maxLength: z.int().min(1).optional(),
})

export { SignalNameSchema }

/** Each schema says what the hand-written type says; a difference is a compile error here. */
export const tied: {
  passedFd: Tied<z.input<typeof PassedFdSchema>, PassedFd>
  stdioIn: Tied<z.input<typeof InSchema>, StdioIn>
  stdioOut: Tied<z.input<typeof OutSchema>, StdioOut>
  stdioExtra: Tied<z.input<typeof ExtraSchema>, StdioExtra>
  stdio: z.input<typeof StdioSchema> extends Stdio ? true : never
  file: Tied<z.input<typeof LaunchFileSchema>, LaunchFile>
  output: Tied<z.input<typeof OutputFileSchema>, OutputFile>
  options: Tied<Omit<z.input<typeof LaunchOptionsSchema>, 'stdio'>, Omit<LaunchOptions, 'stdio'>>
  lines: Tied<z.input<typeof LinesOptionsSchema>, LinesOptions>
} = {
  passedFd: true,
  stdioIn: true,
  stdioOut: true,
  stdioExtra: true,
  stdio: true,
  file: true,
  output: true,
  options: true,
  lines: true,
}
