// A learned filter as TypeScript, to be pasted, read and changed.

import * as constants from '../syscalls/constants.ts'
import type { ErrnoName } from '../syscalls/types.ts'

/** An argument that has one of these values. */
export interface Condition {
  readonly index: number
  readonly values: number[]
}

/** A rule of a learned filter. */
export type Rule =
  | { readonly refuse: string; readonly errno: ErrnoName }
  | { readonly allow: readonly string[]; readonly conditions?: readonly Condition[] }

/** Which constants name the values of an argument: by the beginnings of their names. */
const NAMES: Readonly<Record<string, readonly string[] | undefined>> = {
  'socket 0': ['AF_'],
  'socketpair 0': ['AF_'],
  'ioctl 1': ['TC', 'TIOC', 'FIO'],
  'fcntl 1': ['F_'],
  'prctl 0': ['PR_'],
  'arch_prctl 0': ['ARCH_'],
  'prlimit64 1': ['RLIMIT_'],
  'getsockopt 1': ['SOL_'],
  'setsockopt 1': ['SOL_'],
}

/** Not what they begin like. */
const OTHER_MEANING: ReadonlySet<string> = new Set(['PR_SET_VMA_ANON_NAME'])

const WIDTH = 100

/** The constant that names a value, or its number. */
const constant = (syscall: string, index: number, value: number): string => {
  const prefixes = NAMES[`${syscall} ${index}`] ?? []
  const found = Object.entries(constants).find(
    ([name, number]) =>
      number === value && !OTHER_MEANING.has(name) && prefixes.some((prefix) => name.startsWith(prefix)),
  )
  return found?.[0] ?? (value < 10 ? String(value) : `0x${value.toString(16)}`)
}

/** `('a', 'b')`, over several lines if it is long. */
const call = (method: string, args: readonly string[]): string => {
  const line = `  .${method}(${args.join(', ')})`
  if (line.length <= WIDTH) return line
  const lines: string[] = []
  for (const argument of args) {
    const last = lines.at(-1)
    if (last !== undefined && last.length + argument.length + 2 <= WIDTH)
      lines[lines.length - 1] = `${last} ${argument},`
    else lines.push(`    ${argument},`)
  }
  return [`  .${method}(`, ...lines, '  )'].join('\n')
}

const comment = (text: string): string => {
  const lines = ['//']
  // What a caller named a program must not end the comment.
  for (const word of text.replaceAll(/[\p{Cc}\p{Zl}\p{Zp}]/gu, '?').split(' ')) {
    const last = lines.at(-1) ?? ''
    if (last.length + word.length + 1 <= WIDTH || last === '//') lines[lines.length - 1] = `${last} ${word}`
    else lines.push(`// ${word}`)
  }
  return lines.join('\n')
}

const quote = (text: string): string => `'${text}'`

/** The module that makes the filter. */
export const printFilter = (rules: readonly Rule[], command: string, warning: string): string => {
  const used = new Set<string>()
  const name = (syscall: string, index: number, value: number): string => {
    const text = constant(syscall, index, value)
    if (text in constants) used.add(text)
    return text
  }
  const calls = rules.flatMap((rule) => {
    if ('refuse' in rule) return [call('errno', [quote(rule.refuse), quote(rule.errno)])]
    if (rule.conditions === undefined) return rule.allow.length === 0 ? [] : [call('allow', rule.allow.map(quote))]
    const [syscall = ''] = rule.allow
    const conditions = rule.conditions.map(({ index, values }) => {
      const names = values.map((value) => name(syscall, index, value))
      return `arg(${index}).${names.length === 1 ? 'eq' : 'oneOf'}(${names.join(', ')})`
    })
    return [call('when', [quote(syscall), `[${conditions.join(', ')}]`, quote('allow')])]
  })
  const imports = rules.some((rule) => 'conditions' in rule) ? ['arg', ...[...used].toSorted()] : []
  return [
    "import { syscallFilter } from 'nestbox'",
    ...(imports.length === 0 ? [] : [`import { ${imports.join(', ')} } from 'nestbox/syscalls'`]),
    '',
    comment(`Learned from one run of: ${command}`),
    comment(warning),
    'export const filter = syscallFilter()',
    ...calls,
    '',
  ].join('\n')
}
