// The policy builder, and what becomes of a policy on its way to the core.
//
// A builder holds the policy as it would be published and checks each change as it is made: its shape by a schema, the
// paths together by the core. So a finished policy is right, and is not looked at again. What is finished is known by
// identity (a WeakSet), which no property of an object from outside can forge.

import type { NativePolicy } from '#binding'
import type * as z from 'zod'

import { native } from '../binding.ts'
import { describeIssues, fromFailure, fromNativeIssues, type Issue, PolicyError } from '../errors.ts'
import { deepFreeze } from '../freeze.ts'
import { toFilterJSON } from '../syscalls/filter.ts'
import { SyscallsSchema } from '../syscalls/schema.ts'
import type { SyscallFilter } from '../syscalls/types.ts'
import { check, type Invalid } from '../validate.ts'
import {
  BaseSchema,
  BindCall,
  DevSchema,
  EnvSchema,
  FileCall,
  HostnameSchema,
  IdsSchema,
  LibrariesForCall,
  LimitsSchema,
  MountPointCall,
  NetworkSchema,
  PolicyInputSchema,
  ProcSchema,
  RequirementSchema,
  SymlinkCall,
  TmpfsCall,
  UnixSocketsSchema,
  withDefaults,
} from './schema.ts'
import type {
  BindOptions,
  FileOptions,
  Ids,
  LimitName,
  Limits,
  LimitsJSON,
  MountJSON,
  MountPointOptions,
  Network,
  Policy,
  PolicyBase,
  PolicyBuilder,
  PolicyFactory,
  PolicyJSON,
  Requirement,
  Syscalls,
  TmpfsOptions,
  UnixSockets,
} from './types.ts'

const DEFAULT_LIMITS: LimitsJSON = {
  wallTime: 60_000,
  cpuTime: null,
  processes: 128,
  output: 10 * 1024 ** 2,
  disk: 64 * 1024 ** 2,
  openFiles: 1024,
  fileSize: 1024 ** 3,
  addressSpacePerProcess: null,
  stack: null,
  core: 0,
}

const DEFAULT_ENV = {
  PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
  HOME: '/tmp',
}

const defaults = (base: PolicyBase): PolicyJSON => ({
  version: 1,
  base,
  mounts: [],
  proc: base === 'host-system' ? 'fresh' : 'none',
  dev: base === 'host-system' ? 'minimal' : 'none',
  rootWritable: false,
  hostname: 'nestbox',
  user: { uid: 1000, gid: 1000 },
  env: DEFAULT_ENV,
  network: 'none',
  unixSockets: 'none',
  syscalls: 'default',
  coreScheduling: false,
  allowSpeculation: false,
  limits: DEFAULT_LIMITS,
  require: [],
})

// ---- finished policies -----------------------------------------------------------------------------------------------------

const finished = new WeakSet<object>()

/** Is this a policy that `build()` or `parse()` made, untouched? */
const isFinished = (value: unknown): value is Policy =>
  typeof value === 'object' && value !== null && finished.has(value)

/** Takes a policy that is known to be right. */
const finish = (json: PolicyJSON): Policy => {
  const policy = { ...json }
  // Not enumerable: a policy is plain data to whoever looks at it, compares it or sends it to a worker.
  Object.defineProperty(policy, 'toJSON', { value: () => json })
  finished.add(deepFreeze(policy))
  return policy as Policy
}

/** The policy that a caller means: a finished one as it is, a builder's, anything else parsed. */
export const toPolicy = (value: unknown): Policy => {
  if (isFinished(value)) return value
  if (value instanceof Builder) return value.build()
  return parse(value)
}

const natives = new WeakMap<Policy, NativePolicy>()

/** The core's side of a policy; one per policy, so that what it resolves is kept. */
export const nativePolicy = (policy: Policy): NativePolicy => {
  const known = natives.get(policy)
  if (known !== undefined) return known
  const made = new (native().NativePolicy)(JSON.stringify(policy))
  natives.set(policy, made)
  return made
}

// ---- checking ------------------------------------------------------------------------------------------------------------------

const policyError = (what: string, { issues, cause }: Invalid): PolicyError =>
  new PolicyError(describeIssues(what, issues), issues, { cause })

const simpleError = (what: string, path: PropertyKey[], message: string): PolicyError =>
  policyError(what, { issues: [{ path, message }], cause: undefined })

const checked = <S extends z.ZodType>(what: string, schema: S, input: unknown): z.output<S> => {
  const result = check(schema, input)
  if (!result.ok) throw policyError(what, result.error)
  return result.value
}

/** What no single path shows: which go together, and what nothing could enforce. */
const conflicts = (json: PolicyJSON): Issue[] => {
  const issues = fromNativeIssues(native().checkPolicy(JSON.stringify(json)))
  if (json.syscalls === 'unfiltered' && json.unixSockets === 'none') {
    const message = '"none" is enforced by the syscall filter, and "unfiltered" is none: say "allow"'
    issues.push({ path: ['unixSockets'], message })
  }
  return issues
}

const mustFit = (what: string, json: PolicyJSON): void => {
  const issues = conflicts(json)
  if (issues.length > 0) throw policyError(what, { issues, cause: undefined })
}

// ---- the builder ---------------------------------------------------------------------------------------------------------------

/** What may be set once. */
type Scalar =
  | 'proc'
  | 'dev'
  | 'rootWritable'
  | 'hostname'
  | 'user'
  | 'network'
  | 'unixSockets'
  | 'syscalls'
  | 'coreScheduling'
  | 'allowSpeculation'

class Builder implements PolicyBuilder {
  readonly #json: PolicyJSON
  /** The scalars that were set, not defaulted. */
  readonly #set: ReadonlySet<Scalar>
  #built: Policy | undefined

  constructor(json: PolicyJSON, set: ReadonlySet<Scalar>) {
    this.#json = json
    this.#set = set
    Object.freeze(this)
  }

  bind(source: string, path: string = source, options: BindOptions = {}): PolicyBuilder {
    const what = 'policy.bind()'
    const call = checked(what, BindCall, { source, path, options })
    return this.#mount(what, withDefaults({ type: 'bind', source: call.source, path: call.path, ...call.options }))
  }

  mountPoint(path: string, options: MountPointOptions = {}): PolicyBuilder {
    const what = 'policy.mountPoint()'
    const call = checked(what, MountPointCall, { path, options })
    return this.#mount(what, withDefaults({ type: 'mountPoint', path: call.path, ...call.options }))
  }

  tmpfs(path: string, options: TmpfsOptions = {}): PolicyBuilder {
    const what = 'policy.tmpfs()'
    const call = checked(what, TmpfsCall, { path, options })
    return this.#mount(what, withDefaults({ type: 'tmpfs', path: call.path, ...call.options }))
  }

  file(path: string, content: string | Uint8Array, options: FileOptions = {}): PolicyBuilder {
    const what = 'policy.file()'
    const call = checked(what, FileCall, { path, content, options })
    const given = call.content
    const written =
      typeof given === 'string'
        ? ({ content: given, encoding: 'utf8' } as const)
        : ({ content: Buffer.from(given).toString('base64'), encoding: 'base64' } as const)
    return this.#mount(what, withDefaults({ type: 'file', path: call.path, ...written, ...call.options }))
  }

  symlink(path: string, pointsTo: string): PolicyBuilder {
    const what = 'policy.symlink()'
    return this.#mount(what, { type: 'symlink', ...checked(what, SymlinkCall, { path, pointsTo }) })
  }

  librariesFor(binary: string): PolicyBuilder {
    const what = 'policy.librariesFor()'
    return this.#mount(what, { type: 'librariesFor', ...checked(what, LibrariesForCall, { binary }) })
  }

  proc(kind: 'fresh' | 'none'): PolicyBuilder {
    return this.#scalar('proc', ProcSchema, kind)
  }

  dev(kind: 'minimal' | 'none'): PolicyBuilder {
    return this.#scalar('dev', DevSchema, kind)
  }

  rootWritable(): PolicyBuilder {
    return this.#once('rootWritable', true)
  }

  hostname(name: string): PolicyBuilder {
    return this.#scalar('hostname', HostnameSchema, name)
  }

  user(ids: Ids): PolicyBuilder {
    return this.#scalar('user', IdsSchema, ids)
  }

  env(env: Readonly<Record<string, string>>): PolicyBuilder {
    const added = checked('policy.env()', EnvSchema, env)
    return this.#with({ ...this.#json, env: { ...this.#json.env, ...added } })
  }

  network(network: Network): PolicyBuilder {
    return this.#scalar('network', NetworkSchema, network)
  }

  unixSockets(sockets: UnixSockets): PolicyBuilder {
    return this.#scalar('unixSockets', UnixSocketsSchema, sockets)
  }

  syscalls(filter: Syscalls | SyscallFilter): PolicyBuilder {
    return this.#scalar('syscalls', SyscallsSchema, toFilterJSON(filter))
  }

  coreScheduling(): PolicyBuilder {
    return this.#once('coreScheduling', true)
  }

  allowSpeculation(): PolicyBuilder {
    return this.#once('allowSpeculation', true)
  }

  limits(limits: Limits): PolicyBuilder {
    const added = checked('policy.limits()', LimitsSchema, limits)
    const merged: { -readonly [K in LimitName]: LimitsJSON[K] } = { ...this.#json.limits }
    for (const name of Object.keys(added) as LimitName[]) {
      const value = added[name]
      if (value !== undefined) merged[name] = value === Infinity ? null : value
    }
    return this.#with({ ...this.#json, limits: merged })
  }

  require(...names: Requirement[]): PolicyBuilder {
    const added = checked('policy.require()', RequirementSchema.array(), names)
    return this.#with({ ...this.#json, require: [...new Set([...this.#json.require, ...added])] })
  }

  build(): Policy {
    // A builder never changes, so it has one policy; the same one each time keeps what the core made of it.
    this.#built ??= finish(this.#json)
    return this.#built
  }

  toJSON(): PolicyJSON {
    return this.build().toJSON()
  }

  #with(json: PolicyJSON, set = this.#set): PolicyBuilder {
    return new Builder(json, set)
  }

  #mount(what: string, mount: MountJSON): PolicyBuilder {
    const key = mountKey(mount)
    const others = this.#json.mounts.filter((other) => mountKey(other) !== key)
    const json = { ...this.#json, mounts: [...others, mount] }
    // A filter was checked when it was set, and is no matter of mounts: to compile it each time would cost 0.6 ms.
    mustFit(what, { ...json, syscalls: 'default' })
    return this.#with(json)
  }

  #scalar<K extends Scalar>(name: K, schema: z.ZodType<PolicyJSON[K]>, value: unknown): PolicyBuilder {
    return this.#once(name, checked(`policy.${name}()`, schema, value))
  }

  #once<K extends Scalar>(name: K, value: PolicyJSON[K]): PolicyBuilder {
    const what = `policy.${name}()`
    if (this.#set.has(name)) throw simpleError(what, [name], 'It was set before, and can be set only once')
    const json: PolicyJSON = { ...this.#json, [name]: value }
    const set = new Set(this.#set).add(name)
    const fitted = name === 'syscalls' ? withDefaultSockets(json, set) : json
    mustFit(what, fitted)
    return this.#with(fitted, set)
  }
}

/** Without a filter nothing can refuse unix sockets, so without a filter the default is to allow them. */
const withDefaultSockets = (json: PolicyJSON, set: ReadonlySet<Scalar>): PolicyJSON =>
  json.syscalls === 'unfiltered' && !set.has('unixSockets') ? { ...json, unixSockets: 'allow' } : json

/** One entry per path (or per binary) is kept. */
const mountKey = (mount: MountJSON): string =>
  mount.type === 'librariesFor' ? `librariesFor ${mount.binary}` : mount.path

// ---- the factory ---------------------------------------------------------------------------------------------------------------

const start = (base: PolicyBase = 'empty'): PolicyBuilder =>
  new Builder(defaults(checked('policy()', BaseSchema, base)), new Set())

const parse = (input: unknown): Policy => {
  const what = 'policy.parse()'
  if (isFinished(input)) return input
  const read = checked(what, PolicyInputSchema, typeof input === 'string' ? parseText(what, input) : input)
  const filled = defaults(read.base ?? 'empty')
  const given = withoutUndefined(read)
  const json: PolicyJSON = {
    ...filled,
    ...given,
    limits: { ...filled.limits, ...withoutUndefined(read.limits ?? {}) },
  }
  const fitted = withDefaultSockets(json, new Set(read.unixSockets === undefined ? [] : ['unixSockets']))
  const keys = fitted.mounts.map(mountKey)
  const twice = keys.findIndex((key, index) => keys.indexOf(key) !== index)
  if (twice !== -1) throw simpleError(what, ['mounts', twice], 'There is more than one entry for this path')
  mustFit(what, fitted)
  return finish(fitted)
}

const parseText = (what: string, text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw policyError(what, { issues: [{ path: [], message: 'It is not JSON' }], cause })
  }
}

const withoutUndefined = <T extends object>(object: T): { [K in keyof T]: Exclude<T[K], undefined> } =>
  Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]: Exclude<T[K], undefined>
  }

const hash = (policy: Policy | PolicyBuilder): string => {
  const resolved = nativePolicy(toPolicy(policy))
  const failure = resolved.resolve()
  if (failure !== null) throw fromFailure(failure)
  return resolved.hash
}

/** Says what a sandboxee may see and do. */
export const policy: PolicyFactory = Object.freeze(Object.assign(start, { parse, hash }))
