// sandbox2's fork request as an immutable builder: nothing is checked before `build()`, everything is there.

import type { NativeForkRequest } from '#binding'
import * as z from 'zod'

import { EnvSchema, HostnameSchema, IdsSchema } from '../policy/schema.ts'
import { demand, KernelString, type Tied } from '../validate.ts'
import { isMountTree, toNative } from './mount-tree.ts'
import type {
  CloneFlag,
  ForkMode,
  ForkRequest,
  ForkRequestBuilder,
  InitializationType,
  MonitorType,
  MountTree,
  NetnsMode,
  Pivot,
} from './types.ts'

// The numbers are those of proto/forkserver.proto and of clone(2).
const MODES = { 'fork-execve-sandbox': 1, 'fork-execve': 2, fork: 3, initialize: 5 } as const
const MONITOR_TYPES = { ptrace: 1, unotify: 2 } as const
const NETNS_MODES = { 'per-sandboxee': 1, none: 2, 'shared-per-forkserver': 3 } as const
const INITIALIZATION_TYPES = { 'initial-namespaces': 1, 'network-namespaces': 2, 'ipc-namespace': 5 } as const
const PIVOTS = { nested: 1, direct: 2 } as const
const CLONE_FLAGS = {
  newns: 0x00_02_00_00,
  newcgroup: 0x02_00_00_00,
  newuts: 0x04_00_00_00,
  newipc: 0x08_00_00_00,
  newuser: 0x10_00_00_00,
  newpid: 0x20_00_00_00,
  newnet: 0x40_00_00_00,
} as const

const keysOf = <K extends string>(numbers: Readonly<Record<K, number>>): [K, ...K[]] =>
  Object.keys(numbers) as [K, ...K[]]

const oneOf = <K extends string>(numbers: Readonly<Record<K, number>>) => {
  const names = keysOf(numbers)
  return z.enum(names, `It must be one of ${names.map((name) => `"${name}"`).join(', ')}`)
}

const ForkRequestSchema = z
  .strictObject({
    mode: oneOf(MODES),
    args: z.array(KernelString).default([]),
    envs: EnvSchema.default({}),
    cloneFlags: z.array(oneOf(CLONE_FLAGS)).optional(),
    mountTree: z.custom<MountTree>(isMountTree, 'It must be what mountTree() began').optional(),
    hostname: HostnameSchema.optional(),
    monitorType: oneOf(MONITOR_TYPES).default('unotify'),
    allowSpeculation: z.boolean().default(false),
    netnsMode: oneOf(NETNS_MODES).optional(),
    initializationType: oneOf(INITIALIZATION_TYPES).optional(),
    pivot: oneOf(PIVOTS).default('nested'),
    user: IdsSchema.default({ uid: 1000, gid: 1000 }),
  })
  .check(({ value, issues }) => {
    const issue = (key: string, message: string): void => {
      issues.push({ code: 'custom', path: [key], message, input: value })
    }
    const { mode, initializationType, hostname, netnsMode } = value
    const flags = new Set(value.cloneFlags ?? defaultFlags(mode))
    if (flags.size > 0 && !flags.has('newuser')) issue('cloneFlags', 'No namespace can be made without "newuser"')
    if (value.mountTree !== undefined && !flags.has('newns')) issue('mountTree', 'It needs the clone flag "newns"')
    if (hostname !== undefined && !flags.has('newuts')) issue('hostname', 'It needs the clone flag "newuts"')
    if (value.pivot === 'direct' && !flags.has('newns')) issue('pivot', 'It needs the clone flag "newns"')
    if (netnsMode === 'per-sandboxee' && !flags.has('newnet')) issue('netnsMode', 'It needs the clone flag "newnet"')
    if (netnsMode === 'none' && flags.has('newnet')) issue('netnsMode', 'It contradicts the clone flag "newnet"')
    if (mode === 'fork-execve-sandbox' && !flags.has('newuser')) issue('cloneFlags', 'A sandbox needs "newuser"')
    if (mode === 'initialize' && initializationType === undefined) {
      issue('initializationType', 'The mode "initialize" needs it')
    }
    if (mode !== 'initialize' && initializationType !== undefined) {
      issue('initializationType', 'It is for the mode "initialize" only')
    }
    if (executes(mode) && value.args.length === 0) issue('args', 'There must be at least the name of the program')
  })

type Parsed = z.output<typeof ForkRequestSchema>

/** Each name of a type has its number, and the other way round. */
export const tied: {
  mode: Tied<Parsed['mode'], ForkMode>
  flag: Tied<NonNullable<Parsed['cloneFlags']>[number], CloneFlag>
  monitor: Tied<Parsed['monitorType'], MonitorType>
  netns: Tied<NonNullable<Parsed['netnsMode']>, NetnsMode>
  initialization: Tied<NonNullable<Parsed['initializationType']>, InitializationType>
  pivot: Tied<Parsed['pivot'], Pivot>
} = { mode: true, flag: true, monitor: true, netns: true, initialization: true, pivot: true }

const executes = (mode: ForkMode): boolean => mode === 'fork-execve-sandbox' || mode === 'fork-execve'

const defaultFlags = (mode: ForkMode): readonly CloneFlag[] =>
  mode === 'fork-execve-sandbox' ? ['newuser', 'newns', 'newpid', 'newipc', 'newuts', 'newnet', 'newcgroup'] : []

const finished = new WeakSet<object>()

/** Is this a request that `build()` made? */
export const isForkRequest = (value: unknown): value is ForkRequest =>
  typeof value === 'object' && value !== null && finished.has(value)

const finish = (parsed: Parsed): ForkRequest => {
  const { mountTree, initializationType, cloneFlags = defaultFlags(parsed.mode), hostname = 'sandbox2' } = parsed
  const netnsMode = parsed.netnsMode ?? (cloneFlags.includes('newnet') ? 'per-sandboxee' : 'none')
  const request = Object.freeze({
    mode: parsed.mode,
    args: Object.freeze(parsed.args),
    envs: Object.freeze(parsed.envs),
    cloneFlags: Object.freeze([...new Set(cloneFlags)]),
    mountTree: mountTree?.list() ?? Object.freeze([]),
    hostname,
    monitorType: parsed.monitorType,
    allowSpeculation: parsed.allowSpeculation,
    netnsMode,
    ...(initializationType === undefined ? undefined : { initializationType }),
    pivot: parsed.pivot,
    user: Object.freeze(parsed.user),
  })
  finished.add(request)
  return request as unknown as ForkRequest
}

class Builder implements ForkRequestBuilder {
  readonly #parts: Readonly<Record<string, unknown>>

  constructor(parts: Readonly<Record<string, unknown>>) {
    this.#parts = parts
    Object.freeze(this)
  }

  mode(mode: ForkMode): ForkRequestBuilder {
    return this.#with({ mode })
  }

  args(...args: string[]): ForkRequestBuilder {
    return this.#with({ args })
  }

  envs(envs: Readonly<Record<string, string>>): ForkRequestBuilder {
    return this.#with({ envs })
  }

  cloneFlags(...cloneFlags: CloneFlag[]): ForkRequestBuilder {
    return this.#with({ cloneFlags })
  }

  mountTree(mountTree: MountTree): ForkRequestBuilder {
    return this.#with({ mountTree })
  }

  hostname(hostname: string): ForkRequestBuilder {
    return this.#with({ hostname })
  }

  monitorType(monitorType: MonitorType): ForkRequestBuilder {
    return this.#with({ monitorType })
  }

  allowSpeculation(allowSpeculation = true): ForkRequestBuilder {
    return this.#with({ allowSpeculation })
  }

  netnsMode(netnsMode: NetnsMode): ForkRequestBuilder {
    return this.#with({ netnsMode })
  }

  initializationType(initializationType: InitializationType): ForkRequestBuilder {
    return this.#with({ initializationType })
  }

  pivot(pivot: Pivot): ForkRequestBuilder {
    return this.#with({ pivot })
  }

  user(user: { uid: number; gid: number }): ForkRequestBuilder {
    return this.#with({ user })
  }

  build(): ForkRequest {
    return finish(demand(ForkRequestSchema, this.#parts, 'The fork request is not one that can be sent'))
  }

  #with(part: Readonly<Record<string, unknown>>): ForkRequestBuilder {
    return new Builder({ ...this.#parts, ...part })
  }
}

/** Starts a request. */
export const forkRequest = (): ForkRequestBuilder => new Builder({})

/** The request as the core takes it, without descriptors. */
export const toNativeRequest = (request: ForkRequest): NativeForkRequest => {
  const env = Object.entries(request.envs).filter(([name]) => name !== 'SANDBOX2_NOFORKSERVER')
  if (executes(request.mode)) env.push(['SANDBOX2_NOFORKSERVER', '1'])
  const { initializationType } = request
  const message: NativeForkRequest = {
    mode: MODES[request.mode],
    cloneFlags: request.cloneFlags.reduce((bits, flag) => bits + CLONE_FLAGS[flag], 0),
    hostname: request.cloneFlags.includes('newuts') ? request.hostname : '',
    monitorType: MONITOR_TYPES[request.monitorType],
    allowSpeculation: request.allowSpeculation,
    netnsMode: NETNS_MODES[request.netnsMode],
    initializationType: initializationType === undefined ? 0 : INITIALIZATION_TYPES[initializationType],
    pivot: PIVOTS[request.pivot],
    args: request.args.join('\0'),
    env: env.map(([name, value]) => `${name}=${value}`).join('\0'),
    uid: request.user.uid,
    gid: request.user.gid,
    stdin: -1,
    stdout: -1,
    stderr: -1,
  }
  if (request.cloneFlags.includes('newns')) message.tree = request.mountTree.map(toNative)
  return message
}
