// The shape of a filter, and of what its builder's calls take. Which names there are, and whether a condition makes sense,
// is decided in the core (`checkSyscallFilter`), where the same rules are compiled.

import * as z from 'zod'

import type { Mutable, Tied } from '../validate.ts'
import type { ArgumentCondition, ErrnoName, SyscallAction, SyscallFilterJSON, SyscallPreset } from './types.ts'

const Hexadecimal = z
  .string()
  .regex(/^0x(?:0|[1-9a-f][0-9a-f]{0,15})$/, 'It must be a hexadecimal number such as "0x5412"; arg() makes them')

const ARGUMENT = 'It must be the number of an argument, 0 to 5'

const operand = {
  arg: z.int(ARGUMENT).min(0, ARGUMENT).max(5, ARGUMENT),
  width: z.literal([32, 64], 'The width must be 32 or 64'),
}

const ConditionSchema = z.discriminatedUnion(
  'op',
  [
    z.strictObject({
      ...operand,
      op: z.enum(['eq', 'ne', 'lt', 'le', 'gt', 'ge', 'hasAny']),
      value: Hexadecimal,
    }),
    z.strictObject({ ...operand, op: z.literal('maskedEq'), mask: Hexadecimal, value: Hexadecimal }),
    z.strictObject({ ...operand, op: z.literal('oneOf'), values: z.array(Hexadecimal) }),
  ],
  'It must be a condition on an argument, as arg() makes them',
)

const ErrnoSchema = z.custom<ErrnoName>(
  (name) => typeof name === 'string' && /^E[A-Z0-9]+$/.test(name),
  'It must be the name of an error, such as "EPERM"',
)

const isErrno = (value: unknown): boolean => z.strictObject({ errno: ErrnoSchema }).safeParse(value).success

const actions =
  (names: readonly string[]): ((value: unknown) => boolean) =>
  (value) =>
    typeof value === 'string' ? names.includes(value) : isErrno(value)

/** What was checked is a copy without a prototype; what is published is an object like any. */
const plain = <T extends SyscallAction>(action: T): T =>
  typeof action === 'object' ? ({ errno: action.errno } as T) : action

export const ActionSchema = z
  .custom<SyscallAction>(
    actions(['allow', 'report', 'kill', 'ask']),
    'It must be "allow", "report", "kill", "ask" or { errno: "EPERM" }',
  )
  .overwrite(plain)

export const DefaultActionSchema = z
  .custom<Exclude<SyscallAction, 'allow'>>(
    actions(['report', 'kill', 'ask']),
    'It must be "report", "kill", "ask" or { errno: "EPERM" }: a filter denies by default',
  )
  .overwrite(plain)

const NamesSchema = z
  .array(z.string('It must be the name of a system call'))
  .min(1, 'It must be the name of at least one system call')

const RuleSchema = z.strictObject({
  syscalls: NamesSchema,
  when: z.array(ConditionSchema),
  action: ActionSchema,
})

export const FilterSchema = z.strictObject({ rules: z.array(RuleSchema), otherwise: DefaultActionSchema })

export const PresetSchema = z.enum(
  ['default', 'strict', 'unfiltered'],
  'The filter must be "default", "strict", "unfiltered" or made by syscallFilter()',
)

/** The arguments of the builder's calls, by name. */
export const NamesCall = z.strictObject({ names: NamesSchema })
export const ErrnoCall = z.strictObject({ names: NamesSchema, errno: ErrnoSchema })
export const WhenCall = z.strictObject({
  names: NamesSchema,
  conditions: z.array(ConditionSchema).min(1, 'A rule without conditions is allow(), errno(), kill() or report()'),
  action: ActionSchema,
})
export const FutexCall = z.strictObject({ operation: z.int('It must be a FUTEX_* constant').min(0).max(127) })
export const FencesSchema = z.enum(
  ['require-fast-fences', 'allow-slow-fences'],
  'It must be "require-fast-fences" or "allow-slow-fences"',
)
export const PresetCall = z.enum(['default', 'strict'], 'The rules must be those of "default" or "strict"')

/** A policy's `syscalls`: a preset by name, or a filter. Not a union of zod's, which says only that nothing fits. */
export const SyscallsSchema = z.custom<SyscallPreset | Mutable<SyscallFilterJSON>>().check((context) => {
  const schema = typeof context.value === 'object' && context.value !== null ? FilterSchema : PresetSchema
  const result = schema.safeParse(context.value)
  if (result.success) context.value = result.data
  for (const issue of result.error?.issues ?? []) {
    context.issues.push({ ...issue, path: [...issue.path], input: context.value } as z.core.$ZodRawIssue)
  }
})

/** Each schema says what the hand-written type says; a difference is a compile error here. */
export const tied: {
  condition: Tied<z.output<typeof ConditionSchema>, Mutable<ArgumentCondition>>
  filter: Tied<z.output<typeof FilterSchema>, Mutable<SyscallFilterJSON>>
} = { condition: true, filter: true }
