// `npm run generate`: writes what follows from the tables of system calls: the methods of a filter, each documented with
// its calls (`lib/syscalls/group-methods.ts`), and `docs/syscall-groups.md`. A test fails when they are stale.

import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import { native } from '../lib/binding.ts'
import * as constants from '../lib/syscalls/constants.ts'
import { type Group, GROUPS } from '../lib/syscalls/groups.ts'
import type { ArgumentCondition, SyscallFilterJSON, SyscallRuleJSON } from '../lib/syscalls/types.ts'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..')

// ---- conditions, for people ------------------------------------------------------------------------------------------------

/** Whose values an argument has, by call and argument. */
const PREFIXES: Readonly<Record<string, string>> = {
  'mmap 2': 'PROT_',
  'mprotect 2': 'PROT_',
  'pkey_mprotect 2': 'PROT_',
  'mmap 3': 'MAP_',
  'mremap 3': 'MREMAP_',
  'madvise 2': 'MADV_',
  'futex 1': 'FUTEX_',
  'fcntl 1': 'F_',
  'prctl 0': 'PR_SET_',
  'prctl 1': 'PR_SET_VMA_',
  'arch_prctl 0': 'ARCH_',
  'rt_sigprocmask 0': 'SIG_',
  'getrandom 2': 'GRND_',
  'ioctl 1': 'TC',
  'bpf 0': 'BPF_',
  'clone 0': 'CLONE_',
  'newfstatat 3': 'AT_',
}

const named = Object.entries(constants as Readonly<Record<string, unknown>>).filter(
  (entry): entry is [string, number] => typeof entry[1] === 'number',
)

/** A value by its names, or as it is. */
const describeValue = (hex: string, prefix: string | undefined): string => {
  const value = BigInt(hex)
  const known = named.filter(([name]) => prefix !== undefined && name.startsWith(prefix))
  const exact = known.find(([, number]) => BigInt.asUintN(32, BigInt(number)) === value)
  if (exact !== undefined) return exact[0]
  const bits = known.filter(
    ([, number]) => number > 0 && (number & (number - 1)) === 0 && (value & BigInt(number)) !== 0n,
  )
  const sum = bits.reduce((all, [, number]) => all | BigInt(number), 0n)
  return bits.length > 1 && sum === value ? bits.map(([name]) => name).join('|') : hex
}

const SIGNS = { eq: '==', ne: '!=', lt: '<', le: '<=', gt: '>', ge: '>=' } as const

const describeCondition = (call: string, condition: ArgumentCondition): string => {
  const prefix = PREFIXES[`${call} ${condition.arg}`]
  const subject = `arg${condition.width === 64 ? '64' : ''}(${condition.arg})`
  const value = (hex: string) => describeValue(hex, prefix)
  switch (condition.op) {
    case 'oneOf':
      return `${subject} is ${condition.values.map(value).join(' or ')}`
    case 'maskedEq': {
      if (condition.value === '0x0') return `${subject} has none of ${value(condition.mask)}`
      if (condition.value === condition.mask) return `${subject} has all of ${value(condition.mask)}`
      const rest = `0x${BigInt.asUintN(condition.width, ~BigInt(condition.mask)).toString(16)}`
      return `${subject} without ${value(rest)} == ${value(condition.value)}`
    }
    case 'hasAny':
      return `${subject} has any of ${value(condition.value)}`
    default:
      return `${subject} ${SIGNS[condition.op]} ${value(condition.value)}`
  }
}

const describeAction = ({ action }: SyscallRuleJSON): string => {
  if (typeof action === 'object') return `: ${action.errno}`
  return action === 'allow' ? '' : `: ${action}`
}

/** One line for each rule. */
const describeRules = (rules: readonly SyscallRuleJSON[], quote: string): string[] =>
  rules.map((rule) => {
    const names = rule.syscalls.map((name) => `${quote}${name}${quote}`).join(' ')
    const [call = ''] = rule.syscalls
    const when = rule.when.map((condition) => describeCondition(call, condition)).join(' and ')
    return `${names}${when === '' ? '' : ` if ${when}`}${describeAction(rule)}`
  })

/** Rules that say the same but for their names as one, and each rule once. */
const joined = (rules: readonly SyscallRuleJSON[]): SyscallRuleJSON[] => {
  const found = new Map<string, SyscallRuleJSON>()
  for (const rule of rules) {
    const plain = rule.when.length === 0
    const key = JSON.stringify(plain ? [rule.action] : rule)
    const before = found.get(key)?.syscalls ?? []
    found.set(key, { ...rule, syscalls: [...new Set([...before, ...rule.syscalls])] })
  }
  return [...found.values()]
}

// ---- the files -------------------------------------------------------------------------------------------------------------

const groups = Object.entries(GROUPS as Readonly<Record<string, Group>>).toSorted(([a], [b]) => (a < b ? -1 : 1))

const WIDTH = 118

/** Text in lines that are not too long, each after a prefix. */
const wrap = (text: string, prefix: string): string[] => {
  const lines: string[] = []
  let line = ''
  for (const word of text.split(' ')) {
    if (line !== '' && prefix.length + line.length + 1 + word.length > WIDTH) {
      lines.push(prefix + line)
      line = word
    } else {
      line = line === '' ? word : `${line} ${word}`
    }
  }
  return [...lines, prefix + line]
}

const method = ([name, { about, rules, fallbacks }]: [string, Group]) => [
  '  /**',
  ...wrap(about, '   * '),
  '   *',
  ...describeRules(joined(rules), '`').flatMap((line) => wrap(`- ${line}`, '   * ')),
  ...describeRules(joined(fallbacks), '`').flatMap((line) => wrap(`- otherwise ${line}`, '   * ')),
  '   */',
  `  ${name}(): SyscallFilter`,
]

/** `lib/syscalls/group-methods.ts` */
export const methods = (): string => {
  return [
    '// Generated by `npm run generate` from the tables in `./groups.ts`.',
    '',
    "import type { SyscallFilter } from './types.ts'",
    '',
    '/** Methods that each allow the calls of one purpose. */',
    'export interface GroupMethods {',
    ...groups.flatMap(method),
    '}',
    '',
  ].join('\n')
}

const INTRODUCTION = `# Syscall filters: what the presets and groups hold

Generated by \`npm run generate\` from the tables that filters are made of.

A filter is a list of rules, of which **the first that matches a call decides**; \`otherwise\` says what becomes of the rest.
Names that an architecture has no call for are passed over there, so one policy serves all.

## What holds on top of every filter

- Calls of another architecture (\`int 0x80\` on x86-64) kill the process.
- Numbers that this version doesn't know, those of x32 among them, are never allowed: \`otherwise\` decides.
- With \`unixSockets('none')\`, \`socket\` for \`AF_UNIX\` fails with \`EACCES\`, and so does \`socketpair\` for datagrams.
- The launch's own exec passes once, whatever the filter says of \`execve\`.

A rule that **allows one of these without conditions** means the harmless part of it. A rule with conditions is taken at its
word.

| call | what \`allow\` means |
|---|---|
| \`clone\` \`unshare\` | no new namespaces: \`EPERM\` |
| \`clone3\` | \`ENOSYS\`: its flags are in memory, where no filter can look. C libraries fall back to \`clone\` |
| \`fcntl\` | not \`F_SETLEASE\`, \`F_NOTIFY\`: \`EPERM\` |
| \`ioctl\` | not \`TIOCSTI\`, \`TIOCLINUX\`, \`TIOCSETD\`, compared on the low 32 bits: \`EPERM\` |
| \`chmod\` \`fchmod\` \`fchmodat\` \`fchmodat2\` | no set-user-ID and no set-group-ID bit, of directories neither: \`EPERM\` |
| \`creat\` \`mknod\` \`mknodat\` \`open\` \`openat\` | the same of what they make, where the policy has a bind or a mount point that is writable |
| \`openat2\` | there, \`ENOSYS\`: its mode is in memory. Programs fall back to \`openat\` |
| \`semget\` | at most 250 semaphores in a set: else \`EINVAL\` |
| \`sync\` \`syncfs\` | success, and nothing is done: both wait for others' data, and can't be killed. \`fsync\` and \`fdatasync\` are made |
| \`personality\` | the normal one, without address randomisation, and asking; else \`EPERM\` |
| \`prlimit64\` | one's own limits; of another process, init among them, \`EPERM\` |
| \`seccomp\` | no listener: \`EPERM\` |
| \`socket\` | \`AF_UNIX\`, \`AF_INET\`, \`AF_INET6\`, and \`AF_NETLINK\` for routes; else \`EAFNOSUPPORT\` or \`EPROTONOSUPPORT\` |
| \`socketpair\` | \`AF_UNIX\`; else \`EAFNOSUPPORT\` |

No filter sees what goes through \`io_uring\`: who allows \`io_uring_setup\` allows whatever its rings can do, and needs
\`unixSockets('allow')\`.`

const STRICT = `Computation on what is open already. A statically linked program starts under it; what the C library asks for at the
start and does without is answered with an error. A dynamically linked program has to open its libraries, which strict
refuses; \`syscallFilter().allowDynamicStartup().preset('strict')\` lets it, and then also lets it open files later. There are no
threads. The first exec is the launch's own, and the last.`

const DEFAULT = `Everything that ordinary programs need, and none of the kernel's dangerous corners: interpreters with threads and
subprocesses, compilers, Node, a JVM, media tools. What is dangerous fails with \`EPERM\`, and what isn't listed does not exist.`

const preset = (name: string, about: string): string[] => {
  const { rules, otherwise } = JSON.parse(native().syscallPreset(name)) as SyscallFilterJSON
  const last = typeof otherwise === 'object' ? otherwise.errno : otherwise
  return [
    `### \`${name}\``,
    '',
    about,
    '',
    ...describeRules(rules, '`').map((line) => `- ${line}`),
    `- all others: ${last}`,
    '',
  ]
}

const section = ([name, { about, rules, fallbacks }]: [string, Group]) => [
  `### \`${name}()\``,
  '',
  about,
  '',
  ...describeRules(joined(rules), '`').map((line) => `- ${line}`),
  ...describeRules(joined(fallbacks), '`').map((line) => `- unless another rule says so, ${line}`),
  '',
]

/** `docs/syscall-groups.md` */
export const document = (): string => {
  const text = [
    INTRODUCTION,
    '',
    '## Presets',
    '',
    ...preset('default', DEFAULT),
    ...preset('strict', STRICT),
    '### `unfiltered`',
    '',
    'No filter. The namespaces alone hold the program; `unixSockets` is `allow`, and `AF_VSOCK` reaches the hypervisor.',
    '',
    '## Groups',
    '',
    'Those of sandbox2, and `allowExec`, `allowSockets`, `allowThreads`. Beside them, `allowFutexOp(operation)` and',
    '`allowRestartableSequences(fences)` take an argument.',
    '',
    ...groups.flatMap(section),
  ]
  return text.join('\n')
}

/** Every generated file, by its path in the repository. */
export const generated = (): Readonly<Record<string, string>> => ({
  'lib/syscalls/group-methods.ts': methods(),
  'docs/syscall-groups.md': document(),
})

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const [name, text] of Object.entries(generated())) writeFileSync(path.join(root, name), text)
}
