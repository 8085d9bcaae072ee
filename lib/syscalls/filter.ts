// The builder of syscall filters.
//
// A filter holds its rules as they would be published. Each call checks what it adds: its shape by a schema, names and
// conditions by the core. That all of it together can be compiled is checked with the policy that takes it.

import type * as z from 'zod'

import { native } from '../binding.ts'
import { describeIssues, fromNativeIssues, type Issue, PolicyError } from '../errors.ts'
import { deepFreeze } from '../freeze.ts'
import { check } from '../validate.ts'
import type { GroupMethods } from './group-methods.ts'
import { futexGroup, type Group, type GroupName, GROUPS, restartableSequences } from './groups.ts'
import { DefaultActionSchema, ErrnoCall, FencesSchema, FutexCall, NamesCall, PresetCall, WhenCall } from './schema.ts'
import type {
  ArgumentCondition,
  CpuFences,
  DefaultAction,
  ErrnoName,
  SyscallAction,
  SyscallFilter,
  SyscallFilterJSON,
  SyscallPreset,
  SyscallRuleJSON,
} from './types.ts'

interface State {
  readonly rules: readonly SyscallRuleJSON[]
  /** Come after all rules. */
  readonly fallbacks: readonly SyscallRuleJSON[]
  /** Set by {@link SyscallFilter.otherwise}. */
  readonly otherwise: DefaultAction | undefined
  /** Taken over from a preset. */
  readonly presetOtherwise: DefaultAction | undefined
}

const EMPTY: State = { rules: [], fallbacks: [], otherwise: undefined, presetOtherwise: undefined }

const checked = <S extends z.ZodType>(what: string, schema: S, input: unknown): z.output<S> => {
  const result = check(schema, input)
  if (!result.ok) throw failure(what, result.error.issues, result.error.cause)
  return result.value
}

const failure = (what: string, issues: readonly Issue[], cause?: unknown): PolicyError =>
  new PolicyError(describeIssues(what, issues), issues, { cause })

/** The names that a rule's call has for the parts of a rule. */
const PARTS: Readonly<Record<string, string>> = { syscalls: 'names', when: 'conditions' }

const list = (names: unknown): unknown => (typeof names === 'string' ? [names] : names)

class Builder {
  readonly #state: State

  constructor(state: State) {
    this.#state = deepFreeze(state)
    Object.freeze(this)
  }

  /** Whether a value is a builder; a copy of one is not. */
  static is(value: unknown): value is Builder {
    return typeof value === 'object' && value !== null && #state in value
  }

  allow(...names: string[]): SyscallFilter {
    return this.#named('allow', names, 'allow')
  }

  kill(...names: string[]): SyscallFilter {
    return this.#named('kill', names, 'kill')
  }

  report(...names: string[]): SyscallFilter {
    return this.#named('report', names, 'report')
  }

  ask(...names: string[]): SyscallFilter {
    return this.#named('ask', names, 'ask')
  }

  errno(names: string | readonly string[], errno: ErrnoName): SyscallFilter {
    const what = 'syscallFilter.errno()'
    const call = checked(what, ErrnoCall, { names: list(names), errno })
    return this.#rule(what, { syscalls: call.names, when: [], action: { errno: call.errno } })
  }

  when(
    names: string | readonly string[],
    conditions: readonly ArgumentCondition[],
    action: SyscallAction,
  ): SyscallFilter {
    const what = 'syscallFilter.when()'
    const call = checked(what, WhenCall, { names: list(names), conditions, action })
    return this.#rule(what, { syscalls: call.names, when: call.conditions, action: call.action })
  }

  allowFutexOp(operation: number): SyscallFilter {
    const call = checked('syscallFilter.allowFutexOp()', FutexCall, { operation })
    return this.addGroup(futexGroup(call.operation))
  }

  allowRestartableSequences(fences: CpuFences): SyscallFilter {
    const kind = checked('syscallFilter.allowRestartableSequences()', FencesSchema, fences)
    return this.addGroup(restartableSequences(kind === 'allow-slow-fences'))
  }

  preset(name: Exclude<SyscallPreset, 'unfiltered'>): SyscallFilter {
    const known = checked('syscallFilter.preset()', PresetCall, name)
    const { rules, otherwise } = JSON.parse(native().syscallPreset(known)) as SyscallFilterJSON
    return this.#with({ rules: [...this.#state.rules, ...rules], presetOtherwise: otherwise })
  }

  otherwise(action: DefaultAction): SyscallFilter {
    const what = 'syscallFilter.otherwise()'
    const known = checked(what, DefaultActionSchema, action)
    if (this.#state.otherwise !== undefined) {
      throw failure(what, [{ path: [], message: 'It was set before, and can be set only once' }])
    }
    verify(what, { rules: [], otherwise: known }, () => [])
    return this.#with({ otherwise: known })
  }

  toJSON(): SyscallFilterJSON {
    const { rules, fallbacks, otherwise, presetOtherwise } = this.#state
    return { rules: [...rules, ...fallbacks], otherwise: otherwise ?? presetOtherwise ?? 'report' }
  }

  /** What the methods of groups do. */
  addGroup(group: Group): SyscallFilter {
    const { rules, fallbacks } = this.#state
    return this.#with({ rules: [...rules, ...group.rules], fallbacks: [...fallbacks, ...group.fallbacks] })
  }

  #named(method: string, names: readonly string[], action: SyscallAction): SyscallFilter {
    const what = `syscallFilter.${method}()`
    const call = checked(what, NamesCall, { names })
    return this.#rule(what, { syscalls: call.names, when: [], action })
  }

  #rule(what: string, rule: SyscallRuleJSON): SyscallFilter {
    verify(what, { rules: [rule], otherwise: 'kill' }, ([, , part, ...rest]) => [PARTS[String(part)] ?? part, ...rest])
    return this.#with({ rules: [...this.#state.rules, rule] })
  }

  #with(change: Partial<State>): SyscallFilter {
    return new Builder({ ...this.#state, ...change }) as Builder & GroupMethods
  }
}

/** What the core says of a filter, at the paths that the caller knows. */
const verify = (
  what: string,
  filter: SyscallFilterJSON,
  toCall: (path: readonly PropertyKey[]) => (PropertyKey | undefined)[],
): void => {
  const issues = fromNativeIssues(native().checkSyscallFilter(JSON.stringify(filter))).map(({ path, message }) => ({
    path: toCall(path).filter((key) => key !== undefined),
    message,
  }))
  if (issues.length > 0) throw failure(what, issues)
}

for (const name of Object.keys(GROUPS) as GroupName[]) {
  Object.defineProperty(Builder.prototype, name, {
    value(this: Builder) {
      return this.addGroup(GROUPS[name])
    },
  })
}

/** The JSON of a filter that {@link syscallFilter} started; anything else as it is. */
export const toFilterJSON = (value: unknown): unknown => (Builder.is(value) ? value.toJSON() : value)

/** Starts a filter that allows nothing. */
export const syscallFilter = (): SyscallFilter => new Builder(EMPTY) as Builder & GroupMethods
