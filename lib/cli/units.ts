// Values of options as people write them: `10s`, `64MiB`, `none`.

import { UsageError } from './exit.ts'

const TIMES = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 } as const
const SIZES = { B: 1, KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3 } as const

const measure = (text: string, units: Readonly<Record<string, number>>): number | undefined => {
  const match = /^(\d+(?:\.\d+)?)([A-Za-z]+)$/.exec(text)
  const factor = match?.[2] === undefined ? undefined : units[match[2]]
  return factor === undefined ? undefined : Math.round(Number(match?.[1]) * factor)
}

/** Milliseconds of `500ms`, `10s`, `2m`, `1h`; `null` of `none`. */
export const parseTime = (option: string, text: string): number | null => {
  if (text === 'none') return null
  const ms = measure(text, TIMES)
  // Not without a unit: seconds to some, milliseconds to others.
  if (ms === undefined) throw new UsageError(`--${option}: "${text}" is no time; write 500ms, 10s, 2m, 1h or none.`)
  return ms
}

/** Bytes of `64MiB` or `1024`; `null` of `none`. */
export const parseSize = (option: string, text: string): number | null => {
  if (text === 'none') return null
  const bytes = /^\d+$/.test(text) ? Number(text) : measure(text, SIZES)
  if (bytes === undefined)
    throw new UsageError(`--${option}: "${text}" is no size; write 4096, 64KiB, 64MiB, 1GiB or none.`)
  return bytes
}

/** A whole number; `null` of `none`. */
export const parseCount = (option: string, text: string): number | null =>
  text === 'none' ? null : parseNumber(option, text, ', nor none')

/** A whole number where there is no 'none'; `otherwise` is what else there is. */
export const parseNumber = (option: string, text: string, otherwise = ''): number => {
  if (!/^\d+$/.test(text)) throw new UsageError(`--${option}: "${text}" is no whole number${otherwise}.`)
  return Number(text)
}
