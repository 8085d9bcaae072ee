// Learning: a program runs with every call allowed and noted, and what it did becomes the smallest filter that lets it.
//
// No boundary: while it is watched, the program is held by its namespaces, its ids and its limits alone. What comes out is
// what one run did, no more and no less.

import type { NativeLearned } from '#binding'

import { asError, RequestError } from '../errors.ts'
import { type LaunchContext, sandboxContext } from '../launch/context.ts'
import { Flight } from '../launch/flight.ts'
import { makeRequest } from '../launch/request.ts'
import { discardInputOf } from '../launch/streams.ts'
import { policy as policyFactory, toPolicy } from '../policy/policy.ts'
import type { Policy } from '../policy/types.ts'
import { RunningForkServer, sharedServer } from '../server.ts'
import { syscallFilter } from '../syscalls/filter.ts'
import { arg } from '../syscalls/arguments.ts'
import type { SyscallFilter } from '../syscalls/types.ts'
import { type Condition, printFilter, type Rule } from './code.ts'
import type { Learn, LearnedCall, LearnOptions, Lesson } from './types.ts'

const WARNING =
  'Learning is no boundary: the program ran with every system call allowed. The filter holds what this one run did: what ' +
  'another run needs may be missing, and what a hostile program did is allowed by it. Read it before you use it.'

/**
 * Its flags are in memory, where no filter can look; the C libraries then fall back to `clone`, which is what is learned.
 */
const REFUSED = 'clone3'

/** Everything is handed to the supervisor. */
const watched = (policy: Policy): Policy =>
  policyFactory.parse({
    ...policy.toJSON(),
    syscalls: syscallFilter().errno(REFUSED, 'ENOSYS').otherwise('report').toJSON(),
  })

/**
 * Runs a program with **every system call allowed**, notes which ones it makes, and gives the smallest `syscallFilter()` that
 * would have let it pass, as a filter and as code. **It is no boundary**: use it on programs that you trust, with inputs that
 * you know, and read the filter before you use it. Several times slower than a launch without it.
 *
 * The namespaces, ids and limits are those of the policy, whose own filter is left out; `unixSockets` holds.
 *
 * A signal that comes after a call was made and before it was looked at interrupts it as if it were a slow one: it fails with
 * `EINTR`, unless the signal's handler has `SA_RESTART` (seccomp_unotify(2)). On a busy machine a shell may fail of that where it
 * makes a process or a pipe: look at `result`, and learn again.
 *
 * @example
 * ```ts
 * const { filter, code } = await learn('sort', ['-r'], { input: 'b\na\n' })
 * await using sandbox = await Sandbox.create(policy('host-system').syscalls(filter))
 * ```
 * @throws as {@link Launcher.run}, and `PolicyError`
 */
export const learn: Learn = async (file, args = [], options = {}) => {
  const { policy, server, ...launch } = read(options)
  const running = server ?? sharedServer()
  if (!(running instanceof RunningForkServer)) {
    const issues = [{ path: ['server'], message: 'It must be what ForkServer.start() gave' }]
    throw new RequestError("learn() was asked for something that can't be: server: It must be a fork server.", issues)
  }
  const base = policy === undefined ? policyFactory('host-system').build() : toPolicy(policy)
  const context = sandboxContext(watched(base), undefined, { learns: true })
  const flight = prepare(context, file, args, launch)
  flight.begin(() => running.connection())
  const result = await flight.result
  const { uses, incomplete } = flight.learned ?? { uses: [], incomplete: true }
  const rules = toRules(uses)
  return {
    result,
    calls: uses.map(toCall),
    filter: build(rules),
    code: printFilter(rules, result.command, WARNING),
    incomplete,
    warning: WARNING,
  } satisfies Lesson
}

const prepare = (context: LaunchContext, file: unknown, args: unknown, launch: object): Flight => {
  try {
    return new Flight(makeRequest(context, 'run', file, args, launch), { over: () => {} })
  } catch (error) {
    discardInputOf(launch)
    throw error
  }
}

const read = (options: LearnOptions): LearnOptions => {
  try {
    return { ...options }
  } catch (cause) {
    throw new RequestError(`The options of learn() could not be read: ${asError(cause).message}`, [], { cause })
  }
}

type Use = NativeLearned['uses'][number]

const pairs = ({ arguments: flat }: Use): [number, number][] =>
  flat.flatMap((index, at) => (at % 2 === 0 ? [[index, flat[at + 1] ?? 0] as [number, number]] : []))

const toCall = (use: Use): LearnedCall => ({ syscall: use.syscall, args: Object.fromEntries(pairs(use)) })

/** Rules in order of names, those with conditions last; uses that differ in their last argument only are one rule. */
const toRules = (uses: readonly Use[]): Rule[] => {
  const plain: string[] = []
  const merged = new Map<string, { syscall: string; conditions: Condition[] }>()
  for (const use of uses) {
    const told = pairs(use)
    const last = told.pop()
    if (last === undefined) {
      plain.push(use.syscall)
      continue
    }
    const key = JSON.stringify([use.syscall, told])
    const conditions = merged.get(key)?.conditions ?? [
      ...told.map(([index, value]) => ({ index, values: [value] })),
      { index: last[0], values: [] },
    ]
    conditions.at(-1)?.values.push(last[1])
    merged.set(key, { syscall: use.syscall, conditions })
  }
  const conditional = [...merged.values()].toSorted((a, b) => (a.syscall < b.syscall ? -1 : 1))
  const clones = conditional.some(({ syscall }) => syscall === 'clone')
  return [
    ...(clones ? [{ refuse: REFUSED, errno: 'ENOSYS' } as const] : []),
    { allow: plain.toSorted() },
    ...conditional.map(({ syscall, conditions }) => ({ allow: [syscall], conditions })),
  ]
}

const build = (rules: readonly Rule[]): SyscallFilter => {
  let filter = syscallFilter()
  for (const rule of rules) {
    if ('refuse' in rule) {
      filter = filter.errno(rule.refuse, rule.errno)
    } else if (rule.conditions === undefined) {
      if (rule.allow.length > 0) filter = filter.allow(...rule.allow)
    } else {
      const conditions = rule.conditions.map(({ index, values: [first = 0, ...more] }) =>
        more.length === 0 ? arg(index).eq(first) : arg(index).oneOf(first, ...more),
      )
      filter = filter.when(rule.allow, conditions, 'allow')
    }
  }
  return filter
}
