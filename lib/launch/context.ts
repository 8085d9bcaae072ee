// What all launches of one launcher have in common: the policy's part of a request, taken apart once.

import type { NativePolicy } from '#binding'

import { nativePolicy } from '../policy/policy.ts'
import type { LimitName, LimitsJSON, Policy } from '../policy/types.ts'
import type { SyscallHandler } from '../supervision/types.ts'
import type { Prewarmer } from './prewarm.ts'
import { rootOfMachine } from './root.ts'
import type { Isolation } from './types.ts'

/** An environment as the core takes it, and the `PATH` in it. */
export interface Environment {
  readonly joined: string
  readonly path: string
}

/** Where a bare name is looked up if there is no `PATH`: what execvp(3) does. */
const DEFAULT_PATH = '/bin:/usr/bin'

/** Tells a nested nestbox (or sandbox2) that no fork server can be started here. */
const MARK = 'SANDBOX2_NOFORKSERVER'

/** The policy's side of launches, or the absence of one. */
export interface LaunchContext {
  /** False: without isolation. */
  readonly isolated: boolean
  /** The core's policy; made on first use. */
  native(): NativePolicy | undefined
  /** Settles when the policy was looked up on this host for the first time; undefined if it was. */
  prepared(): Promise<unknown> | undefined
  readonly limits: LimitsJSON
  /** Those that would be set to no effect. */
  unenforced(): readonly LimitName[]
  readonly mountPoints: ReadonlySet<string>
  /** The working directory of launches that name none. */
  cwd(): string
  /** The environment with a launch's laid over it; undefined if there must be one and is none. */
  environment(over: Readonly<Record<string, string | undefined>> | undefined): Environment | undefined
  /** A launch that could not have it failed. */
  readonly coreScheduling: boolean
  readonly speculation: Isolation['speculation']
  /** The nests that are kept for the launches to come. */
  readonly warmth: Warmth
  /** The programs that were started ahead. */
  prewarmer: Prewarmer | undefined
  /** Of launches that don't say whether they want one. */
  readonly crashReport: boolean
  /** Decides about the calls that the filter stops. */
  readonly onSyscall: SyscallHandler | undefined
  /** Those calls are noted and made. */
  readonly learns: boolean
}

/** What becomes of the calls that the filter stops; by default they are violations. */
export interface Supervision {
  readonly onSyscall?: SyscallHandler | undefined
  readonly learns?: boolean
}

/** How many nests are kept warm, and for how many milliseconds each; without a time for ever. */
export interface Warmth {
  count: number
  idle: number | undefined
}

const join = (entries: ReadonlyMap<string, string>): Environment => {
  const path = entries.get('PATH') ?? DEFAULT_PATH
  let joined = ''
  for (const [name, value] of entries) if (name !== MARK) joined += `${name}=${value}\0`
  return { joined: `${joined}${MARK}=1`, path }
}

const overlay = (
  base: Readonly<Record<string, string>>,
  over: Readonly<Record<string, string | undefined>>,
): Environment => {
  const entries = new Map(Object.entries(base))
  for (const [name, value] of Object.entries(over)) {
    if (value === undefined) entries.delete(name)
    else entries.set(name, value)
  }
  return join(entries)
}

const NONE: readonly LimitName[] = Object.freeze([])

/** Of the machine's root: its processes are not counted (`RLIMIT_NPROC` in getrlimit(2)). */
const OF_ROOT: readonly LimitName[] = Object.freeze(['processes'])

const NO_WARMTH: Warmth = Object.freeze({ count: 0, idle: undefined })

/** The context of a sandbox. */
export const sandboxContext = (
  policy: Policy,
  warmth: Warmth = NO_WARMTH,
  supervision: Supervision = {},
  crashReport = false,
): LaunchContext => {
  const environment = join(new Map(Object.entries(policy.env)))
  const mountPoints = new Set<string>()
  for (const mount of policy.mounts) if (mount.type === 'mountPoint') mountPoints.add(mount.path)
  const cwd = policy.base === 'host-system' ? '/tmp' : '/'
  let preparing: Promise<unknown> | undefined
  let prepared = false
  return {
    isolated: true,
    native: () => nativePolicy(policy),
    prepared: () => {
      if (prepared) return undefined
      // What goes wrong is found again, and reported, by the launch.
      return (preparing ??= nativePolicy(policy)
        .prepare()
        .finally(() => {
          prepared = true
        }))
    },
    limits: policy.limits,
    unenforced: () => (rootOfMachine() === 'alone' ? OF_ROOT : NONE),
    mountPoints,
    cwd: () => cwd,
    environment: (over) => (over === undefined ? environment : overlay(policy.env, over)),
    coreScheduling: policy.coreScheduling,
    speculation: policy.allowSpeculation ? 'allowed' : 'restricted',
    warmth,
    prewarmer: undefined,
    onSyscall: supervision.onSyscall,
    learns: supervision.learns ?? false,
    crashReport,
  }
}

const NO_LIMITS: LimitsJSON = Object.freeze({
  wallTime: null,
  cpuTime: null,
  processes: null,
  // Not the program's limit but the host's protection: its memory holds what is captured.
  output: 10 * 1024 ** 2,
  disk: null,
  openFiles: null,
  fileSize: null,
  addressSpacePerProcess: null,
  stack: null,
  core: null,
})

/** The context of launches without isolation. */
export const unsandboxedContext: LaunchContext = Object.freeze({
  isolated: false,
  native: () => undefined,
  prepared: () => undefined,
  limits: NO_LIMITS,
  unenforced: () => (rootOfMachine() === 'no' ? NONE : OF_ROOT),
  coreScheduling: false,
  speculation: 'allowed',
  mountPoints: new Set<string>(),
  cwd: () => process.cwd(),
  environment: (over: Readonly<Record<string, string | undefined>> | undefined) =>
    over === undefined ? undefined : overlay({}, over),
  warmth: NO_WARMTH,
  prewarmer: undefined,
  onSyscall: undefined,
  learns: false,
  crashReport: false,
})
