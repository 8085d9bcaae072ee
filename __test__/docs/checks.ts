// What the expectations in documentation become: calls that are counted, and throw where the page is wrong.

import { isDeepStrictEqual, format, inspect } from 'node:util'

/** The lines of the program that runs whose expectations were met. */
export let met = new Set<number>()

/** What the program that runs has printed, and no expectation has passed yet. */
let lines: string[] = []

/** Before each program. */
export const begin = (): void => {
  met = new Set()
  lines = []
}

/** In place of `console.log`. */
export const print = (...values: unknown[]): void => {
  lines.push(...format(...values).split('\n'))
}

const matches = (actual: unknown, expected: unknown): boolean => {
  if (expected instanceof RegExp) return expected.test(String(actual))
  if (typeof expected !== 'object' || expected === null || Array.isArray(expected)) {
    return isDeepStrictEqual(actual, expected)
  }
  if (typeof actual !== 'object' || actual === null) return false
  return Object.entries(expected).every(([key, value]) => matches((actual as Record<string, unknown>)[key], value))
}

/** `expression // => value` */
export const check = (line: number, actual: unknown, expected: unknown): void => {
  if (!matches(actual, expected)) throw new Error(`line ${line}: expected ${inspect(expected)}, got ${inspect(actual)}`)
  met.add(line)
}

/** `// => text` */
export const printed = (line: number, expected: string): void => {
  const at = lines.findIndex((text) => text.trim() === expected.trim())
  if (at === -1) throw new Error(`line ${line}: expected ${inspect(expected)} to be printed, and not ${inspect(lines)}`)
  lines = lines.slice(at + 1)
  met.add(line)
}

/** `expression // throws Name: CODE` */
export const throws = async (
  line: number,
  work: () => Promise<unknown>,
  name: string,
  code: string | undefined,
): Promise<void> => {
  let thrown: unknown
  try {
    await work()
  } catch (error) {
    thrown = error
  }
  const { name: actualName, code: actualCode } = (thrown ?? {}) as { name?: string; code?: string }
  if (actualName !== name || (code !== undefined && actualCode !== code)) {
    throw new Error(`line ${line}: expected ${name} ${code ?? ''}, got ${inspect(thrown)}`)
  }
  met.add(line)
}
