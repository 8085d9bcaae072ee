// Validation by zod, and the schemas that everything else is made of. Schemas are module constants: to build one takes
// longer than to launch a program takes in JavaScript.

import { types } from 'node:util'
import * as z from 'zod'

import { describeIssues, type Issue, RequestError } from './errors.ts'
import { deepFreeze } from './freeze.ts'
import type { Size } from './policy/types.ts'
import { isCollection, isOpaque, SnapshotError, snapshot } from './snapshot.ts'

/**
 * `true` if a schema and a hand-written type say the same: the same keys, and each assignable to the other. Used as
 * `export const tied: Tied<z.input<typeof Schema>, Interface> = true`.
 */
export type Tied<A, B> = [keyof A] extends [keyof B]
  ? [keyof B] extends [keyof A]
    ? [A] extends [B]
      ? [B] extends [A]
        ? true
        : never
      : never
    : never
  : never

/** The same without `readonly`, all the way down: what a schema gives, for a type that is published read-only. */
export type Mutable<T> = T extends readonly (infer Item)[]
  ? Mutable<Item>[]
  : T extends object
    ? { -readonly [K in keyof T]: Mutable<T[K]> }
    : T

/** A value that was read once and found right, or what is wrong with it. */
export type Checked<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly error: Invalid }

/** What is wrong with an input. */
export interface Invalid {
  readonly issues: readonly Issue[]
  readonly cause: unknown
}

/** A copy of an input, not validated. */
const copyOf = (input: unknown): Checked<unknown> => {
  try {
    return { ok: true, value: snapshot(input) }
  } catch (cause) {
    if (cause instanceof SnapshotError) return { ok: false, error: { issues: cause.issues, cause } }
    throw cause
  }
}

/** Copies an input and validates the copy. */
export const check = <S extends z.ZodType>(schema: S, input: unknown): Checked<z.output<S>> => {
  const copied = copyOf(input)
  return copied.ok ? checkCopied(schema, copied.value) : copied
}

/**
 * {@link check}, where there is nothing else to find wrong.
 *
 * @param what - begins the error's message
 * @throws `RequestError`
 */
export const demand = <S extends z.ZodType>(schema: S, input: unknown, what: string): z.output<S> => {
  const checked = check(schema, input)
  if (checked.ok) return checked.value
  const { issues, cause } = checked.error
  throw new RequestError(describeIssues(what, issues), issues, { cause })
}

/** Validates what was copied already. */
export const checkCopied = <S extends z.ZodType>(schema: S, copied: unknown): Checked<z.output<S>> => {
  const result = schema.safeParse(copied)
  if (result.success) return { ok: true, value: result.data }
  return { ok: false, error: { issues: result.error.issues.flatMap(toIssues), cause: result.error } }
}

/** How much text, in characters, and how many values an input has at most that is remembered. */
const MEMORABLE_TEXT = 4096
const MEMORABLE_VALUES = 1024

/** Whether a copy is small, and all of it is ours: text, numbers and the like, or arrays and objects of those. */
const isMemorable = (copied: unknown): boolean => {
  let text = 0
  let values = 0
  const fits = (value: unknown): boolean => {
    values += 1
    if (typeof value === 'string') text += value.length
    if (values > MEMORABLE_VALUES || text > MEMORABLE_TEXT) return false
    return !isObject(value) || (!isOpaque(value) && Object.values(value).every(fits))
  }
  return fits(copied)
}

const isObject = (value: unknown): value is object => typeof value === 'object' && value !== null

/**
 * Whether an input says the same as a memorable copy of an earlier one. Each of its properties is read once, and nothing of it
 * is used: what was validated then is.
 */
const saysTheSame = (input: unknown, known: unknown): boolean => {
  if (input === known) return true
  if (!isObject(input) || !isObject(known) || isOpaque(input) || isCollection(input)) return false
  if (Array.isArray(input)) {
    if (!Array.isArray(known) || input.length !== known.length) return false
    for (let index = 0; index < known.length; index += 1) if (!saysTheSame(input[index], known[index])) return false
    return true
  }
  if (Array.isArray(known)) return false
  const keys = Object.keys(input)
  const knownKeys = Object.keys(known)
  if (keys.length !== knownKeys.length) return false
  for (let index = 0; index < keys.length; index += 1) {
    const key = keys[index] as string
    if (key !== knownKeys[index]) return false
    if (!saysTheSame((input as Record<string, unknown>)[key], (known as Record<string, unknown>)[key])) return false
  }
  return true
}

/** The same, of an input whose getters or proxies may throw: then it is not the same, and the copy finds out why. */
const isSame = (input: unknown, known: unknown): boolean => {
  try {
    return saysTheSame(input, known)
  } catch {
    return false
  }
}

/**
 * Whether an object says the same for ever: it is frozen, nothing in it is computed, and it has no objects in it that could
 * change. A proxy can't lie about that (ECMA-262, invariants of the essential internal methods), but may throw.
 */
const isSettled = (input: unknown): boolean => {
  if (!isObject(input)) return false
  try {
    return (
      Object.isFrozen(input) &&
      Object.values(Object.getOwnPropertyDescriptors(input)).every(
        (property) => 'value' in property && !isObject(property.value),
      )
    )
  } catch {
    return false
  }
}

/** The properties of an object that are not named, and those that are. What has none of them, or is no plain object, is whole. */
const split = (object: unknown, names: ReadonlySet<string>): { rest: unknown; parts: object | undefined } => {
  if (!isObject(object) || Array.isArray(object) || isOpaque(object)) return { rest: object, parts: undefined }
  const rest: Record<string, unknown> = {}
  let parts: Record<string, unknown> | undefined
  for (const [name, value] of Object.entries(object)) {
    if (names.has(name)) (parts ??= {})[name] = value
    else rest[name] = value
  }
  return parts === undefined ? { rest: object, parts } : { rest, parts }
}

/**
 * {@link check}, for inputs that mostly repeat: the last one that was found right is remembered, and is neither copied nor
 * validated again as long as the same comes. To validate a launch's options takes longer than to launch it does in JavaScript.
 *
 * @param apart - properties that are another's each time: only they are validated then, and the rest is remembered without them
 */
export const repeatedly = <S extends z.ZodType>(
  schema: S,
  apart: z.ZodObject = z.object({}),
): ((input: unknown) => Checked<z.output<S>>) => {
  const names = new Set(Object.keys(apart.shape))
  let known: unknown
  let settled: unknown
  let remembered: { readonly ok: true; readonly value: z.output<S> } | undefined
  return (input) => {
    if (remembered !== undefined && ((settled !== undefined && input === settled) || isSame(input, known))) {
      return remembered
    }
    // Before the copy, so that this is what is copied.
    const isForGood = isSettled(input)
    const copied = copyOf(input)
    if (!copied.ok) return copied
    const { rest, parts } = split(copied.value, names)
    if (remembered !== undefined && parts !== undefined && saysTheSame(rest, known)) {
      const checked = checkCopied(apart, parts)
      return checked.ok ? { ok: true, value: Object.assign({}, remembered.value, checked.value) } : checked
    }
    const checked = checkCopied(schema, copied.value)
    if (checked.ok && isMemorable(rest)) {
      const value = split(checked.value, names).rest as z.output<S>
      if (isObject(value)) deepFreeze(value)
      known = rest
      settled = isForGood && parts === undefined ? input : undefined
      remembered = value === checked.value ? checked : { ok: true, value }
    }
    return checked
  }
}

/** zod's issues, in our words: a wrong name is where the name is, not in a list below it. */
const toIssues = (issue: z.core.$ZodIssue): Issue[] => {
  if (issue.code === 'invalid_key') return issue.issues.map(({ message }) => ({ path: [...issue.path], message }))
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => ({ path: [...issue.path, key], message: 'There is no such option' }))
  }
  return [{ path: [...issue.path], message: issue.message }]
}

// ---- strings that the kernel gets to see ----------------------------------------------------------------------------------

/** A string that arrives as it was given: the kernel ends it at a NUL, and a lone surrogate has no UTF-8. */
const isKernelString = (text: string): boolean => !text.includes('\0') && text.isWellFormed()

const NOT_A_KERNEL_STRING = 'It must have no NUL byte and be well-formed Unicode'

/** Any string that the kernel can take, the empty one included. */
export const KernelString = z.string('It must be a string').refine(isKernelString, NOT_A_KERNEL_STRING)

/** One that is not empty. */
export const NonEmptyString = KernelString.refine((text) => text !== '', 'It must not be empty')

/** What is wrong with a path inside, or a host path of a policy. */
const pathProblem = (path: string): string | undefined => {
  if (path === '') return 'The path must not be empty'
  if (!isKernelString(path)) return NOT_A_KERNEL_STRING
  if (!path.startsWith('/')) return `The path must be absolute, got ${JSON.stringify(path)}`
  if (path.split('/').includes('..')) return `The path must not contain "..", got ${JSON.stringify(path)}`
  return undefined
}

/** The same path with neither empty nor `.` components, so that equal paths are equal strings. */
const cleanPath = (path: string): string => {
  // The common case is clean; the rest is worth no cleverness.
  if (!/\/(?:\/|\.(?:\/|$)|$)/.test(path)) return path
  return `/${path
    .split('/')
    .filter((part) => part !== '' && part !== '.')
    .join('/')}`
}

/** An absolute path without `..`; cleaned. */
export const AbsolutePath = z
  .string('It must be a string')
  .check((context) => {
    const message = pathProblem(context.value)
    if (message !== undefined) context.issues.push({ code: 'custom', message, input: context.value })
  })
  .overwrite(cleanPath)

/** The name of an environment variable. */
export const EnvName = NonEmptyString.refine((name) => !name.includes('='), 'It must not contain "="')

// ---- numbers ------------------------------------------------------------------------------------------------------------

const UNITS = { B: 1, KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3 } as const

/** A size as text. */
export const SIZE = /^(\d+(?:\.\d+)?)(B|KiB|MiB|GiB)$/

/** The bytes that a size means; NaN if it means none. */
export const bytesOf = (size: unknown): number => {
  if (typeof size === 'number') return size
  const match = typeof size === 'string' ? SIZE.exec(size) : null
  if (match === null) return Number.NaN
  return Number(match[1]) * UNITS[match[2] as keyof typeof UNITS]
}

/** A whole number that is at least `least`, or `Infinity`. (zod's own numbers are finite.) */
export const isCount = (count: unknown, least: number): boolean =>
  count === Infinity || (Number.isSafeInteger(count) && (count as number) >= least)

/** Bytes, as a number or as `'64MiB'`. `least` is the smallest that makes sense; `Infinity` is one. */
export const sizeSchema = (least: number) =>
  z
    .custom<Size>(
      (size) => isCount(bytesOf(size), least),
      `It must be a whole number of bytes that is at least ${least}, or a size such as "64MiB"`,
    )
    .transform(bytesOf)

/** A count of things; `Infinity` is one. */
export const countSchema = (least: number) =>
  z.custom<number>((count) => isCount(count, least), `It must be a whole number that is at least ${least}`)

/** Milliseconds; `Infinity` is one. A fraction counts as a whole one. */
export const MillisecondsSchema = z
  .custom<number>((ms) => typeof ms === 'number' && ms >= 0, 'It must be a number of milliseconds that is not negative')
  .overwrite((ms) => Math.ceil(ms))

/** The longest limit of time that the core takes, some 30 years. */
const TIME_MAX = 1_000_000_000_000

/** Milliseconds that limit a launch; 0 is none. */
export const TimeoutSchema = MillisecondsSchema.refine(
  (ms) => ms <= TIME_MAX || ms === Infinity,
  `It must be at most ${TIME_MAX}, or Infinity, which lifts the limit`,
)

/** Milliseconds above zero that limit a launch. */
export const DurationSchema = TimeoutSchema.refine((ms) => ms > 0, 'It must be above 0; Infinity lifts the limit')

/** Permission bits of a file. */
export const ModeSchema = z.int('It must be a whole number').min(0).max(0o7777, 'It must be at most 0o7777')

/** A user or group id. The largest one means "leave it as it is" to the kernel. */
export const IdSchema = z.int('It must be a whole number').min(0).max(0xff_ff_ff_fe)

/** An open descriptor. */
export const FdSchema = z.int('It must be a whole number').min(0, 'It must not be negative').max(0x7f_ff_ff_ff)

// ---- bytes --------------------------------------------------------------------------------------------------------------

/** Text or bytes. */
export const ContentSchema = z.custom<string | Uint8Array>(
  (content) => (typeof content === 'string' ? content.isWellFormed() : types.isUint8Array(content)),
  'It must be a well-formed string or a Uint8Array',
)
