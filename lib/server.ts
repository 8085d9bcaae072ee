// The fork server as users see it: started on first use or by hand, started anew after it died.

import type { ServerOptions } from '#binding'
import * as z from 'zod'

import { Connection } from './connection.ts'
import { ForkServerError, NestboxError } from './errors.ts'
import { unsandboxedContext } from './launch/context.ts'
import type { Launcher } from './launch/types.ts'
import { type Gate, makeLauncher } from './launcher.ts'
import { registerHandle } from './snapshot.ts'
import type { ForkServer as ForkServerType, ForkServerOptions, ForkServerStats } from './types.ts'
import { demand, IdSchema, type Tied } from './validate.ts'

const ForkServerOptionsSchema = z.strictObject({
  hostIds: z
    .strictObject({
      uid: IdSchema.refine((id) => id !== 0, 'It must not be root'),
      gid: IdSchema.refine((id) => id !== 0, 'It must not be root'),
      count: z.int().min(1).max(65_536).optional(),
    })
    .refine(
      ({ uid, gid, count = 1 }) => IdSchema.safeParse(Math.max(uid, gid) + count - 1).success,
      'The last of these ids is above 4,294,967,294',
    )
    .optional(),
  maxTemplates: z.int().min(1).max(4096).optional(),
  networkPool: z.int().min(0).max(1024).optional(),
})

/** The schema says what the hand-written type says; a difference is a compile error here. */
export const tied: Tied<z.input<typeof ForkServerOptionsSchema>, ForkServerOptions> = true

/** Either of these in the environment, and no fork server starts. The first is sandbox2's. */
const DISABLED_BY = ['SANDBOX2_NOFORKSERVER', 'NESTBOX_NOFORKSERVER'] as const

const mustBeEnabled = (): void => {
  for (const name of DISABLED_BY) {
    if (process.env[name] === undefined) continue
    throw new ForkServerError(
      `No fork server is started, because ${name} is in the environment. Inside a sandbox of nestbox or sandbox2 that is ` +
        'so by design; elsewhere remove the variable.',
      { code: 'ERR_NESTBOX_FORKSERVER_DISABLED' },
    )
  }
}

/** How long `destroy` waits for what it killed, before it takes the fork server away. */
const PATIENCE = 2000

/** A fork server, over as many runs as it takes. */
export class RunningForkServer implements ForkServerType {
  readonly unsandboxed: Launcher
  readonly #options: ServerOptions
  #connection: Connection | undefined
  #starts = 0
  #closed = false

  constructor(options: ServerOptions) {
    this.#options = options
    registerHandle(this)
    const connect = (): Connection => this.connection()
    const gate: Gate = { admit: (flight) => flight.begin(connect), over: () => {} }
    this.unsandboxed = makeLauncher(() => unsandboxedContext, gate)
  }

  /**
   * The running fork server; a new one if there is none.
   *
   * @throws `ForkServerError`, `UnsupportedPlatformError`
   */
  connection(): Connection {
    if (this.#closed) throw new NestboxError('ERR_NESTBOX_CLOSED', 'The fork server was closed.')
    const current = this.#connection
    if (current !== undefined && current.lost === undefined) return current
    mustBeEnabled()
    this.#connection = new Connection(this.#options)
    this.#starts += 1
    return this.#connection
  }

  /** The running fork server, if there is one. */
  get current(): Connection | undefined {
    const connection = this.#connection
    return connection?.lost === undefined ? connection : undefined
  }

  get pid(): number {
    return this.#connection?.pid ?? 0
  }

  stats(): ForkServerStats {
    const connection = this.#connection
    const starts = this.#starts
    if (connection === undefined || connection.lost !== undefined) {
      return { pid: 0, templates: 0, running: 0, launched: 0, networkPool: 0, warmNests: 0, starts }
    }
    const { templates, running, launched, networkPool, warmNests } = connection.stats()
    return { pid: connection.pid, templates, running, launched, networkPool, warmNests, starts }
  }

  async close(): Promise<void> {
    this.#closed = true
    const connection = this.#connection
    if (connection === undefined) return
    await connection.idle()
    connection.close()
    this.#connection = undefined
  }

  async destroy(): Promise<void> {
    this.#closed = true
    const connection = this.#connection
    if (connection === undefined || connection.lost !== undefined) return
    // One by one first, so that each launch gets its result; what does not die of it goes with the fork server.
    connection.killAll(9)
    let timer: NodeJS.Timeout | undefined
    const patience = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, PATIENCE)
    })
    await Promise.race([connection.idle(), patience])
    clearTimeout(timer)
    connection.close()
    this.#connection = undefined
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.destroy()
  }
}

const nativeOptions = (options: z.output<typeof ForkServerOptionsSchema>): ServerOptions => {
  const { hostIds, maxTemplates, networkPool } = options
  return {
    ...(hostIds === undefined ? undefined : { hostUid: hostIds.uid, hostGid: hostIds.gid }),
    ...(hostIds?.count === undefined ? undefined : { hostIdCount: hostIds.count }),
    ...(maxTemplates === undefined ? undefined : { maxTemplates }),
    ...(networkPool === undefined ? undefined : { networkPool }),
  }
}

/** A fork server: the small helper process that launches on request. Disposing is `destroy`. */
export type ForkServer = ForkServerType

/** Starts fork servers. Most programs need none of their own: `run` and `Sandbox.create` share a process-wide one. */
export const ForkServer: {
  /**
   * Starts a fork server, and resolves when it runs.
   *
   * @throws `RequestError`, `ForkServerError`, `UnsupportedPlatformError`
   */
  start(options?: ForkServerOptions): Promise<ForkServerType>
} = Object.freeze({
  async start(options: ForkServerOptions = {}): Promise<ForkServerType> {
    const what = "ForkServer.start() was asked for something that can't be"
    const server = new RunningForkServer(nativeOptions(demand(ForkServerOptionsSchema, options, what)))
    await server.connection().ready
    return server
  },
})

let shared: RunningForkServer | undefined

/** The process-wide fork server. It has no disposal: it ends with the host. */
export const sharedServer = (): RunningForkServer => (shared ??= new RunningForkServer({}))
