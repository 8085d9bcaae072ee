// The types of `nestbox/sandbox2`: the request surface of sandbox2's fork server, kept whole.

import type { ResourceUsage } from '../launch/types.ts'
import type { Size } from '../policy/types.ts'

declare const requestBrand: unique symbol

/**
 * What a request is for. `'fork-execve-sandbox'`: namespaces, the syscall filter, execve. `'fork-execve'`: the same without
 * the filter; with no namespaces a plain spawn. `'fork'`: only for a zygote, which forks itself. `'initialize'`: makes
 * namespaces that later requests share.
 */
export type ForkMode = 'fork-execve-sandbox' | 'fork-execve' | 'fork' | 'initialize'

/** A namespace, by the name of its clone(2) flag. */
export type CloneFlag = 'newuser' | 'newns' | 'newpid' | 'newipc' | 'newuts' | 'newnet' | 'newcgroup'

/** Who would watch the sandboxee's system calls. */
export type MonitorType = 'ptrace' | 'unotify'

/** Which network namespace: one each, the host's, or one that all requests to this fork server share. */
export type NetnsMode = 'per-sandboxee' | 'none' | 'shared-per-forkserver'

/** What `'initialize'` makes. */
export type InitializationType = 'initial-namespaces' | 'network-namespaces' | 'ipc-namespace'

/**
 * `'nested'` starts from the initial namespaces, which were pivoted once; `'direct'` calls pivot_root(2) for this launch, as
 * sandbox2 did before. The latter is there to be measured against.
 */
export type Pivot = 'nested' | 'direct'

/** Access to something in a mount tree. */
export interface NodeOptions {
  /** @defaultValue `false` */
  writable?: boolean | undefined
  /**
   * Programs below something writable may be executed.
   *
   * @defaultValue `false`
   */
  allowWriteExecutable?: boolean | undefined
}

/** Access to a directory in a mount tree. */
export interface DirectoryOptions extends NodeOptions {
  /**
   * Mounts that the host makes below it later appear inside.
   *
   * @defaultValue `false`
   */
  allowMountPropagation?: boolean | undefined
}

/** One line of {@link MountTree.list}. */
export interface MountTreeEntry {
  readonly type: 'file' | 'directory' | 'tmpfs' | 'root'
  readonly inside: string
  /** Absent for a tmpfs and for the root. */
  readonly outside?: string
  readonly writable: boolean
  readonly allowWriteExecutable?: boolean
  readonly allowMountPropagation?: boolean
  /** Of a tmpfs: bytes. */
  readonly size?: number
}

/**
 * Which files a sandboxee sees: sandbox2's `Mounts`. Immutable: every call returns a new tree. Mounted in the order of the
 * calls.
 *
 * The rules of conflict are sandbox2's. The same target twice is fine if the source is the same file, however it is named;
 * writable once is writable. Nothing goes below a file, and no file over a directory that has something in it.
 */
export interface MountTree {
  /**
   * Shows a host file.
   *
   * @param inside - the same as `outside` by default
   * @throws `RequestError`
   */
  addFile(outside: string, inside?: string, options?: NodeOptions): MountTree
  /** Shows a host directory, with what is mounted below it. See {@link MountTree.addFile}. */
  addDirectory(outside: string, inside?: string, options?: DirectoryOptions): MountTree
  /** Mounts a fresh tmpfs. */
  addTmpfs(inside: string, options: { size: Size }): MountTree
  /** Makes the root directory itself writable. */
  rootWritable(): MountTree
  /**
   * Takes out what is at a path, and all below it.
   *
   * @throws `RequestError` if nothing is
   */
  remove(inside: string): MountTree
  /** What is in it, in the order of mounting. */
  list(): readonly MountTreeEntry[]
  /** The host path that a path inside shows; undefined if it shows none. */
  resolve(inside: string): string | undefined
}

/** A finished request: frozen, made by {@link ForkRequestBuilder.build} only. */
export interface ForkRequest {
  readonly [requestBrand]: true
  readonly mode: ForkMode
  readonly args: readonly string[]
  readonly envs: { readonly [name: string]: string }
  readonly cloneFlags: readonly CloneFlag[]
  readonly mountTree: readonly MountTreeEntry[]
  readonly hostname: string
  readonly monitorType: MonitorType
  readonly allowSpeculation: boolean
  readonly netnsMode: NetnsMode
  readonly initializationType?: InitializationType
  readonly pivot: Pivot
  readonly user: { readonly uid: number; readonly gid: number }
}

/** Builds a request. Immutable: every call returns a new builder. Checked by {@link ForkRequestBuilder.build}. */
export interface ForkRequestBuilder {
  /** Required. */
  mode(mode: ForkMode): ForkRequestBuilder
  /** argv. The first one is the program, unless the request is sent with an `execFd`. */
  args(...args: string[]): ForkRequestBuilder
  /** The whole environment. `SANDBOX2_NOFORKSERVER=1` is added for programs that are executed. */
  envs(envs: Readonly<Record<string, string>>): ForkRequestBuilder
  /**
   * The namespaces. Without `'newuser'` there can be none.
   *
   * @defaultValue all of them for `'fork-execve-sandbox'`, none for the others
   */
  cloneFlags(...flags: CloneFlag[]): ForkRequestBuilder
  /** Needs `'newns'`. */
  mountTree(tree: MountTree): ForkRequestBuilder
  /**
   * Needs `'newuts'`.
   *
   * @defaultValue `'sandbox2'`
   */
  hostname(name: string): ForkRequestBuilder
  /** @defaultValue `'unotify'` */
  monitorType(type: MonitorType): ForkRequestBuilder
  /**
   * Leaves speculative execution alone.
   *
   * @defaultValue `false`
   */
  allowSpeculation(allow?: boolean): ForkRequestBuilder
  /** @defaultValue `'per-sandboxee'` with `'newnet'`, else `'none'` */
  netnsMode(mode: NetnsMode): ForkRequestBuilder
  /** Required by, and only for, the mode `'initialize'`. */
  initializationType(type: InitializationType): ForkRequestBuilder
  /** @defaultValue `'nested'` */
  pivot(pivot: Pivot): ForkRequestBuilder
  /** Ids inside. @defaultValue `{ uid: 1000, gid: 1000 }` */
  user(ids: { uid: number; gid: number }): ForkRequestBuilder
  /**
   * The finished request.
   *
   * @throws `RequestError`
   */
  build(): ForkRequest
}

/** Descriptors that go with a request. The caller keeps, and closes, its own. */
export interface RequestDescriptors {
  /** The program itself. */
  execFd?: number | undefined
  /** Becomes fd 1023 of the sandboxee. */
  commsFd?: number | undefined
  /**
   * The sandboxee is a zygote: its fd 1023 is a control socket (SOCK_SEQPACKET) on which it takes requests. The reply can be
   * given to a {@link ForkClient}. Excludes `commsFd`.
   *
   * @defaultValue `false`
   */
  zygote?: boolean | undefined
  /** The user namespace to join instead of the initial one. */
  userNsFd?: number | undefined
  /**
   * Descriptors for the sandboxee's 0, 1 and 2.
   *
   * @defaultValue `'ignore'`
   */
  stdin?: number | 'ignore' | undefined
  stdout?: number | 'ignore' | undefined
  stderr?: number | 'ignore' | undefined
}

/** How a sandboxee ended. */
export type Exit = { readonly resourceUsage: ResourceUsage; readonly durationMs: number } & (
  | { readonly status: 'exited'; readonly exitCode: number }
  | { readonly status: 'signaled'; readonly signal: NodeJS.Signals }
)

/** The answer to a request. Disposing kills. */
export interface ForkReply extends AsyncDisposable {
  /** The sandboxee's process id in the host's pid namespace; 0 for `'initialize'`. */
  readonly pid: number
  /** That of its init; 0 if there is none. */
  readonly initPid: number
  /** Settles when everything of it is dead. Never raises `unhandledRejection`. */
  readonly exited: Promise<Exit>
  /** SIGKILL takes everything, any other signal goes to the sandboxee. */
  kill(signal?: NodeJS.Signals): boolean
}
