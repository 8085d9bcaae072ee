// The shape of a policy and of what the builder's calls take. Which paths go together is not decided here but in the core
// (`checkPolicy`), where the same rules make the plan.

import * as z from 'zod'

import {
  AbsolutePath,
  ContentSchema,
  countSchema,
  DurationSchema,
  EnvName,
  IdSchema,
  KernelString,
  ModeSchema,
  type Mutable,
  NonEmptyString,
  sizeSchema,
  type Tied,
} from '../validate.ts'
import { SyscallsSchema } from '../syscalls/schema.ts'
import type { BindOptions, FileOptions, Ids, Limits, MountPointOptions, PolicyJSON, TmpfsOptions } from './types.ts'

// ---- the builder's calls -------------------------------------------------------------------------------------------------

export const BaseSchema = z.enum(['host-system', 'empty'], 'The base must be "host-system" or "empty"')

export const BindOptionsSchema = z.strictObject({
  writable: z.boolean().optional(),
  exec: z.boolean().optional(),
  optional: z.boolean().optional(),
})

export const MountPointOptionsSchema = z.strictObject({
  writable: z.boolean().optional(),
  exec: z.boolean().optional(),
})

/** A tmpfs of size 0 would be one without a limit, and one page is the least that holds anything. */
const PAGE = 4096

const TmpfsSize = sizeSchema(PAGE).refine(Number.isFinite, 'A tmpfs needs a size that is finite')
const TmpfsInodes = countSchema(1).refine(Number.isFinite, 'A tmpfs needs a number of inodes that is finite')

export const TmpfsOptionsSchema = z.strictObject({
  size: TmpfsSize.optional(),
  inodes: TmpfsInodes.optional(),
  mode: ModeSchema.optional(),
})

export const FileOptionsSchema = z.strictObject({ mode: ModeSchema.optional() })

export const HostnameSchema = z
  .string()
  .regex(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$/, 'A hostname has 1 to 64 letters, digits, ".", "-" and "_"')

export const IdsSchema = z.strictObject({ uid: IdSchema, gid: IdSchema })

export const EnvSchema = z.record(EnvName, KernelString)

export const ProcSchema = z.enum(['fresh', 'none'], 'It must be "fresh" or "none"')
export const DevSchema = z.enum(['minimal', 'none'], 'It must be "minimal" or "none"')
export const NetworkSchema = z.enum(
  ['none', 'shared-loopback', 'host'],
  'The network must be "none", "shared-loopback" or "host"',
)
export const UnixSocketsSchema = z.enum(['none', 'allow'], 'It must be "none" or "allow"')
export const RequirementSchema = z.enum(['landlock'], 'The only protection that can be required is "landlock"')

export const LimitsSchema = z.strictObject({
  wallTime: DurationSchema.optional(),
  cpuTime: DurationSchema.optional(),
  processes: countSchema(1).optional(),
  output: sizeSchema(0).optional(),
  disk: sizeSchema(PAGE).optional(),
  openFiles: countSchema(3).optional(),
  fileSize: sizeSchema(0).optional(),
  addressSpacePerProcess: sizeSchema(PAGE).optional(),
  stack: sizeSchema(PAGE).optional(),
  core: sizeSchema(0).optional(),
})

/** The arguments of the calls that take more than one value, by name. */
export const BindCall = z.strictObject({ source: AbsolutePath, path: AbsolutePath, options: BindOptionsSchema })
export const MountPointCall = z.strictObject({ path: AbsolutePath, options: MountPointOptionsSchema })
export const TmpfsCall = z.strictObject({ path: AbsolutePath, options: TmpfsOptionsSchema })
export const FileCall = z.strictObject({ path: AbsolutePath, content: ContentSchema, options: FileOptionsSchema })
export const SymlinkCall = z.strictObject({ path: AbsolutePath, pointsTo: NonEmptyString })
export const LibrariesForCall = z.strictObject({ binary: AbsolutePath })

// ---- the published form ----------------------------------------------------------------------------------------------------

const MountSchema = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('bind'),
    source: AbsolutePath,
    path: AbsolutePath,
    writable: z.boolean(),
    exec: z.boolean(),
    optional: z.boolean(),
  }),
  z.strictObject({ type: z.literal('mountPoint'), path: AbsolutePath, writable: z.boolean(), exec: z.boolean() }),
  z.strictObject({
    type: z.literal('tmpfs'),
    path: AbsolutePath,
    size: z.int().min(PAGE).nullable(),
    inodes: z.int().min(1).nullable(),
    mode: ModeSchema,
  }),
  z
    .strictObject({
      type: z.literal('file'),
      path: AbsolutePath,
      content: z.string(),
      encoding: z.enum(['utf8', 'base64']),
      mode: ModeSchema,
    })
    .refine(
      ({ content, encoding }) => (encoding === 'utf8' ? content.isWellFormed() : isBase64(content)),
      'The content does not fit its encoding',
    ),
  z.strictObject({ type: z.literal('symlink'), path: AbsolutePath, pointsTo: NonEmptyString }),
  z.strictObject({ type: z.literal('librariesFor'), binary: AbsolutePath }),
])

/** Node decodes what it can and drops the rest; what is published must be whole. */
const isBase64 = (text: string): boolean => Buffer.from(text, 'base64').toString('base64') === text

const limit = (least: number) => z.int().min(least).nullable()

export const LimitsJSONSchema = z.strictObject({
  wallTime: limit(1),
  cpuTime: limit(1),
  processes: limit(1),
  output: limit(0),
  disk: limit(PAGE),
  openFiles: limit(3),
  fileSize: limit(0),
  addressSpacePerProcess: limit(PAGE),
  stack: limit(PAGE),
  core: limit(0),
})

/** What `parse` reads: of the published form all but the version may be left out. */
export const PolicyInputSchema = z.strictObject({
  version: z.literal(1, 'The version must be 1'),
  base: BaseSchema.optional(),
  mounts: z.array(MountSchema).optional(),
  proc: ProcSchema.optional(),
  dev: DevSchema.optional(),
  rootWritable: z.boolean().optional(),
  hostname: HostnameSchema.optional(),
  user: IdsSchema.optional(),
  env: EnvSchema.optional(),
  network: NetworkSchema.optional(),
  unixSockets: UnixSocketsSchema.optional(),
  syscalls: SyscallsSchema.optional(),
  limits: LimitsJSONSchema.partial().optional(),
  require: z.array(RequirementSchema).optional(),
})

type Required<T> = { [K in keyof T]-?: Exclude<T[K], undefined> }
/** Each schema says what the hand-written type says; a difference is a compile error here. */
export const tied: {
  bindOptions: Tied<z.input<typeof BindOptionsSchema>, BindOptions>
  mountPointOptions: Tied<z.input<typeof MountPointOptionsSchema>, MountPointOptions>
  tmpfsOptions: Tied<z.input<typeof TmpfsOptionsSchema>, TmpfsOptions>
  fileOptions: Tied<z.input<typeof FileOptionsSchema>, FileOptions>
  ids: Tied<z.input<typeof IdsSchema>, Ids>
  limits: Tied<z.input<typeof LimitsSchema>, Limits>
  limitsJson: Tied<z.output<typeof LimitsJSONSchema>, PolicyJSON['limits']>
  policy: Tied<Omit<Required<z.output<typeof PolicyInputSchema>>, 'limits'>, Omit<Mutable<PolicyJSON>, 'limits'>>
} = {
  bindOptions: true,
  mountPointOptions: true,
  tmpfsOptions: true,
  fileOptions: true,
  ids: true,
  limits: true,
  limitsJson: true,
  policy: true,
}
