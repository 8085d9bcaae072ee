// Conditions on the arguments of system calls, as data.
//
// A register has 64 bits, and of many arguments the kernel looks at 32: the caller fills the rest as it likes. To compare
// all of it where the kernel doesn't has let programs type into terminals (CVE-2017-5226, CVE-2019-10063), so the width is
// said with each condition: `arg` for what is `int` or `unsigned int` to the kernel, `arg64` for pointers, lengths and
// offsets.

import { PolicyError } from '../errors.ts'
import type { ArgumentCondition } from './types.ts'

/** A number of an argument: negative ones as the kernel stores them. */
export type ArgumentValue = number | bigint

/** Makes conditions on one argument. Comparisons are unsigned. */
export interface ArgumentMatcher {
  /** It is `value`. */
  eq(value: ArgumentValue): ArgumentCondition
  /** It is anything but `value`. */
  ne(value: ArgumentValue): ArgumentCondition
  /** It is less than `value`. */
  lt(value: ArgumentValue): ArgumentCondition
  /** It is `value` or less. */
  le(value: ArgumentValue): ArgumentCondition
  /** It is more than `value`. */
  gt(value: ArgumentValue): ArgumentCondition
  /** It is `value` or more. */
  ge(value: ArgumentValue): ArgumentCondition
  /** Of the bits of `mask` it has exactly those of `value`. */
  maskedEq(mask: ArgumentValue, value: ArgumentValue): ArgumentCondition
  /** It has at least one of these bits. */
  hasAny(bits: ArgumentValue): ArgumentCondition
  /** It has all of these bits. */
  hasAll(bits: ArgumentValue): ArgumentCondition
  /** It has none of these bits. */
  hasNone(bits: ArgumentValue): ArgumentCondition
  /** It is one of these. */
  oneOf(...values: ArgumentValue[]): ArgumentCondition
}

/** Conditions on the low 32 bits of argument `index`, from 0: for `int` and `unsigned int`. */
export const arg = (index: number): ArgumentMatcher => matcher(index, 32)

/** Conditions on all 64 bits of argument `index`, from 0: for pointers, lengths and offsets. */
export const arg64 = (index: number): ArgumentMatcher => matcher(index, 64)

/** System calls take six. */
const ARGUMENTS = 6

const matcher = (index: number, width: 32 | 64): ArgumentMatcher => {
  if (!Number.isInteger(index) || index < 0 || index >= ARGUMENTS) {
    throw wrong(`arg${width === 64 ? '64' : ''}()`, `Arguments are numbered from 0 to 5, got ${String(index)}`)
  }
  const hex = (value: unknown) => hexadecimal(value, width)
  const plain = (op: 'eq' | 'ne' | 'hasAny', value: unknown): ArgumentCondition =>
    Object.freeze({ arg: index, width, op, value: hex(value) })
  // "Less than -1" is what nobody means.
  const ordered = (op: 'lt' | 'le' | 'gt' | 'ge', value: ArgumentValue): ArgumentCondition => {
    if (value < 0) throw wrong(`arg.${op}()`, `Comparisons are unsigned, got ${String(value)}`)
    return Object.freeze({ arg: index, width, op, value: hex(value) })
  }
  const masked = (mask: unknown, value: unknown): ArgumentCondition =>
    Object.freeze({ arg: index, width, op: 'maskedEq', mask: hex(mask), value: hex(value) })
  return Object.freeze({
    eq: (value: ArgumentValue) => plain('eq', value),
    ne: (value: ArgumentValue) => plain('ne', value),
    lt: (value: ArgumentValue) => ordered('lt', value),
    le: (value: ArgumentValue) => ordered('le', value),
    gt: (value: ArgumentValue) => ordered('gt', value),
    ge: (value: ArgumentValue) => ordered('ge', value),
    maskedEq: masked,
    hasAny: (bits: ArgumentValue) => plain('hasAny', bits),
    hasAll: (bits: ArgumentValue) => masked(bits, bits),
    hasNone: (bits: ArgumentValue) => masked(bits, 0),
    oneOf: (...values: ArgumentValue[]): ArgumentCondition =>
      Object.freeze({ arg: index, width, op: 'oneOf', values: Object.freeze(values.map(hex)) }),
  })
}

/** The one way in which a number is written. */
const hexadecimal = (value: unknown, width: 32 | 64): string => {
  const whole = typeof value === 'bigint' || Number.isSafeInteger(value)
  const number = whole ? BigInt(value as ArgumentValue) : undefined
  const limit = 2n ** BigInt(width)
  if (number === undefined || number >= limit || number < -limit / 2n) {
    const hint = width === 32 ? '; arg64() compares all 64' : ', as a bigint beyond 2^53'
    throw wrong('arg()', `It must be a whole number of at most ${width} bits${hint}, got ${String(value)}`)
  }
  return `0x${BigInt.asUintN(width, number).toString(16)}`
}

const wrong = (what: string, message: string): PolicyError =>
  new PolicyError(`${what}: ${message}`, [{ path: [], message }])
