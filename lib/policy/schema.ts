// The shape of a policy and of what the builder's calls take. Which paths go together is not decided here but in the core
// (`checkPolicy`), where the same rules make the plan.

import * as z from 'zod'

import {
  AbsolutePath,
  bytesOf,
  ContentSchema,
  countSchema,
  DurationSchema,
  EnvName,
  IdSchema,
  isCount,
  KernelString,
  ModeSchema,
  type Mutable,
  NonEmptyString,
  SIZE,
  sizeSchema,
  type Tied,
} from '../validate.ts'
import { SyscallsSchema } from '../syscalls/schema.ts'
import type {
  BindOptions,
  FileOptions,
  Ids,
  Limits,
  MountJSON,
  MountPointOptions,
  PolicyJSON,
  TmpfsOptions,
} from './types.ts'

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

/** A {@link MountJSON} of which may be missing what has a default. */
type MountInput = MountJSON extends infer M
  ? M extends MountJSON
    ? { readonly [K in Extract<keyof M, Needed<M['type']>>]: M[K] } & {
        readonly [K in Exclude<keyof M, Needed<M['type']>>]?: M[K] | undefined
      }
    : never
  : never

type Needed<T extends MountJSON['type']> =
  | 'type'
  | (T extends 'bind' ? 'source' : 'path')
  | 'content'
  | 'pointsTo'
  | 'binary'

/** A mount with everything that it does not say: the same for the builder's calls and for JSON. */
export const withDefaults = (mount: MountInput): Mutable<MountJSON> => {
  switch (mount.type) {
    case 'bind': {
      const { type, source, path = source, writable = false, exec = !writable, optional = false } = mount
      return { type, source, path, writable, exec, optional }
    }
    case 'mountPoint': {
      const { type, path, writable = false, exec = !writable } = mount
      return { type, path, writable, exec }
    }
    case 'tmpfs': {
      const { type, path, size = null, inodes = null, mode = 0o1777 } = mount
      return { type, path, size, inodes, mode }
    }
    case 'file': {
      const { type, path, content, encoding = 'utf8', mode = 0o644 } = mount
      return { type, path, content, encoding, mode }
    }
    default:
      return { ...mount }
  }
}

/** A count in JSON: `null` is no limit. */
const countJSON = (least: number) => {
  const message = `It must be a whole number that is at least ${least}, or null`
  return z.int(message).min(least, message).nullable()
}

/** Bytes in JSON: a number, a size such as `'64MiB'`, or `null` for no limit. */
const sizeJSON = (least: number) => {
  const message = `It must be a whole number of bytes that is at least ${least}, a size such as "64MiB", or null`
  const sizes = [z.int(message).min(least, message), z.string(message).regex(SIZE, message), z.null(message)] as const
  return z
    .union(sizes, message)
    .transform((size) => (size === null ? null : bytesOf(size)))
    .refine((bytes) => bytes === null || isCount(bytes, least), message)
}

// What is written by hand may leave out what the builder's calls do not ask for either, and has the same defaults then.
const MountSchema = z
  .discriminatedUnion('type', [
    z.strictObject({
      type: z.literal('bind'),
      source: AbsolutePath,
      path: AbsolutePath.optional(),
      writable: z.boolean().optional(),
      exec: z.boolean().optional(),
      optional: z.boolean().optional(),
    }),
    z.strictObject({
      type: z.literal('mountPoint'),
      path: AbsolutePath,
      writable: z.boolean().optional(),
      exec: z.boolean().optional(),
    }),
    z.strictObject({
      type: z.literal('tmpfs'),
      path: AbsolutePath,
      size: sizeJSON(PAGE).optional(),
      inodes: countJSON(1).optional(),
      mode: ModeSchema.optional(),
    }),
    z
      .strictObject({
        type: z.literal('file'),
        path: AbsolutePath,
        content: z.string('It must be a string'),
        encoding: z.enum(['utf8', 'base64']).optional(),
        mode: ModeSchema.optional(),
      })
      .refine(
        ({ content, encoding }) => (encoding === 'base64' ? isBase64(content) : content.isWellFormed()),
        'The content does not fit its encoding',
      ),
    z.strictObject({ type: z.literal('symlink'), path: AbsolutePath, pointsTo: NonEmptyString }),
    z.strictObject({ type: z.literal('librariesFor'), binary: AbsolutePath }),
  ])
  .transform(withDefaults)

/** Node decodes what it can and drops the rest; what is published must be whole. */
const isBase64 = (text: string): boolean => Buffer.from(text, 'base64').toString('base64') === text

export const LimitsJSONSchema = z.strictObject({
  wallTime: countJSON(1),
  cpuTime: countJSON(1),
  processes: countJSON(1),
  output: sizeJSON(0),
  disk: sizeJSON(PAGE),
  openFiles: countJSON(3),
  fileSize: sizeJSON(0),
  addressSpacePerProcess: sizeJSON(PAGE),
  stack: sizeJSON(PAGE),
  core: sizeJSON(0),
})

/** What `parse` reads: of the published form all but the version may be left out, and sizes may be text. */
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
  coreScheduling: z.boolean().optional(),
  allowSpeculation: z.boolean().optional(),
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
