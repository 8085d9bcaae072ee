// sandbox2's ForkClient: sends requests to a fork server, or to a zygote over its comms channel.

import { close } from 'node:fs'
import * as z from 'zod'
import type { NativeEnded, NativeFailure } from '#binding'

import type { Connection, Listener } from '../connection.ts'
import { type ForkServerError, fromFailure, NestboxError, requestError } from '../errors.ts'
import { resourceUsage } from '../launch/result.ts'
import { flightOf } from '../launch/sandboxee.ts'
import { SignalNameSchema } from '../launch/schema.ts'
import type { Sandboxee } from '../launch/types.ts'
import { RunningForkServer } from '../server.ts'
import { signalName, signalNumber } from '../signals.ts'
import type { ForkServer } from '../types.ts'
import { check, demand, FdSchema, type Tied } from '../validate.ts'
import { isForkRequest, toNativeRequest } from './request.ts'
import type { Exit, ForkReply, ForkRequest, RequestDescriptors } from './types.ts'

const StdioSchema = z.union([FdSchema, z.literal('ignore')], 'It must be a descriptor or "ignore"').optional()

const DescriptorsSchema = z.strictObject({
  execFd: FdSchema.optional(),
  commsFd: FdSchema.optional(),
  zygote: z.boolean().optional(),
  userNsFd: FdSchema.optional(),
  stdin: StdioSchema,
  stdout: StdioSchema,
  stderr: StdioSchema,
})

/** The schema says what the hand-written type says; a difference is a compile error here. */
export const tied: Tied<z.input<typeof DescriptorsSchema>, RequestDescriptors> = true

const WHAT = "sendRequest() was asked for something that can't be"

/** Where requests go. */
interface Target {
  readonly connection: Connection
  /** The control socket of a zygote. */
  readonly zygoteFd: number | undefined
}

/** In place of a descriptor: the core makes a pair of packet sockets and hands over the other end. */
const CONTROL_SOCKET = -3

/**
 * Sends requests to a fork server; or, for the mode `'fork'`, to a zygote: the reply to a request that was sent with
 * `zygote: true`, or a sandboxee that was spawned with `comms: true` and takes requests there.
 */
export class ForkClient {
  readonly #target: () => Target

  /** @throws `RequestError` if it is neither a fork server of ours nor a zygote */
  constructor(server: ForkServer | ForkReply | Sandboxee<{ comms: true }>) {
    this.#target = targetOf(server)
  }

  /**
   * Sends a request, and resolves once it is carried out: the sandboxee runs, or the namespaces are made.
   *
   * @throws `RequestError`, `SpawnError`, `ExecError`, `ForkServerError`. Never synchronously.
   */
  async sendRequest(request: ForkRequest, descriptors: RequestDescriptors = {}): Promise<ForkReply> {
    if (!isForkRequest(request)) throw requestError(WHAT, ['request'], 'It must be what forkRequest().build() made')
    const checked = demand(DescriptorsSchema, descriptors, WHAT)
    const { connection, zygoteFd } = this.#target()
    if ((request.mode === 'fork') !== (zygoteFd !== undefined)) {
      throw requestError(WHAT, ['mode'], 'A zygote takes the mode "fork", and nobody else does')
    }
    const { execFd, commsFd, zygote, userNsFd, stdin, stdout, stderr } = checked
    if (zygote === true && commsFd !== undefined) {
      throw requestError(WHAT, ['commsFd'], 'The comms channel of a zygote is its control socket')
    }
    const message = toNativeRequest(request)
    if (execFd !== undefined) message.execFd = execFd
    if (commsFd !== undefined) message.commsFd = commsFd
    if (zygote === true) message.commsFd = CONTROL_SOCKET
    if (userNsFd !== undefined) message.userNsFd = userNsFd
    if (zygoteFd !== undefined) message.zygoteFd = zygoteFd
    if (typeof stdin === 'number') message.stdin = stdin
    if (typeof stdout === 'number') message.stdout = stdout
    if (typeof stderr === 'number') message.stderr = stderr
    // Of a fork server that is gone no event comes: its zygotes, too, are asked for nothing.
    if (connection.lost !== undefined) throw connection.lost
    const launched = connection.server.fork(message)
    if (launched.failure !== undefined) throw fromFailure(launched.failure)
    const reply = new Reply(connection, launched.token, launched.comms)
    connection.listen(launched, reply)
    await reply.ready
    return reply.handle()
  }
}

const targetOf = (server: unknown): (() => Target) => {
  if (server instanceof RunningForkServer) {
    return () => ({ connection: server.connection(), zygoteFd: undefined })
  }
  const control = typeof server === 'object' && server !== null ? controlOf(server) : undefined
  if (control === undefined) {
    const message = 'It must be what ForkServer.start() gave, or a zygote'
    throw requestError("ForkClient() was asked for something that can't be", ['server'], message)
  }
  return control
}

/** The way to a zygote, if it is one. */
const controlOf = (server: object): (() => Target) | undefined => {
  const reply = replies.get(server)
  if (reply?.isZygote === true) return () => reply.target()
  const flight = flightOf(server)
  if (flight?.comms === undefined) return undefined
  return () => {
    const { connection, comms, commsFd } = flight
    // The descriptor belongs to the stream: once that is closed the number may be another file's.
    if (connection === undefined || comms === undefined || comms.destroyed || commsFd === undefined) throw zygoteGone()
    return { connection, zygoteFd: commsFd }
  }
}

const zygoteGone = (): NestboxError =>
  new NestboxError('ERR_NESTBOX_CLOSED', 'The zygote is gone, or its control socket was closed.')

const replies = new WeakMap<object, Reply>()

/** What becomes of one request. */
class Reply implements Listener {
  /** Settles once the request is carried out, or can't be. */
  readonly ready: Promise<void>
  readonly #connection: Connection
  readonly #token: number
  readonly #exited: Promise<Exit>
  readonly isZygote: boolean
  #control: number | undefined
  #pid = 0
  #initPid = 0
  #resolveReady!: () => void
  #rejectReady!: (error: Error) => void
  #resolveExited!: (exit: Exit) => void
  #rejectExited!: (error: Error) => void

  /** @param control - the host's end of a zygote's control socket */
  constructor(connection: Connection, token: number, control: number | undefined) {
    this.#connection = connection
    this.#token = token
    this.#control = control
    this.isZygote = control !== undefined
    this.ready = new Promise((resolve, reject) => {
      this.#resolveReady = resolve
      this.#rejectReady = reject
    })
    this.#exited = new Promise((resolve, reject) => {
      this.#resolveExited = resolve
      this.#rejectExited = reject
    })
    // Whether anybody looks at it is the caller's affair.
    this.#exited.catch(() => {})
  }

  /** What the caller gets. */
  handle(): ForkReply {
    const exited = this.#exited
    const kill = (signal: NodeJS.Signals = 'SIGKILL'): boolean => {
      const checked = check(SignalNameSchema, signal)
      if (!checked.ok)
        throw requestError("kill() was asked for something that can't be", ['signal'], 'There is no such signal')
      return this.#connection.kill(this.#token, signalNumber(checked.value))
    }
    const handle = Object.freeze({
      pid: this.#pid,
      initPid: this.#initPid,
      exited,
      kill,
      async [Symbol.asyncDispose](): Promise<void> {
        kill()
        try {
          await exited
        } catch {
          // It is over, which is all that disposal is about.
        }
      },
    })
    replies.set(handle, this)
    return handle
  }

  /** Where requests to this zygote go. */
  target(): Target {
    if (this.#control === undefined) throw zygoteGone()
    return { connection: this.#connection, zygoteFd: this.#control }
  }

  placed(pid: number): void {
    this.#initPid = pid
  }

  started(pid: number): void {
    this.#pid = pid
    this.#resolveReady()
  }

  ended(ended: NativeEnded): void {
    this.#pid ||= ended.pid
    this.#initPid ||= ended.initPid
    this.#resolveReady()
    this.#closeControl()
    const durationMs = Math.max(ended.endedNs - ended.submittedNs, 0) / 1e6
    const common = { resourceUsage: resourceUsage(ended), durationMs }
    this.#resolveExited(
      ended.ending === 'exited'
        ? { status: 'exited', exitCode: ended.status, ...common }
        : { status: 'signaled', signal: signalName(ended.status), ...common },
    )
  }

  failed(failure: NativeFailure): void {
    this.#fail(fromFailure(failure))
  }

  lost(error: ForkServerError): void {
    this.#fail(error)
  }

  #closeControl(): void {
    if (this.#control !== undefined) close(this.#control)
    this.#control = undefined
  }

  #fail(error: Error): void {
    this.#closeControl()
    this.#rejectReady(error)
    this.#rejectExited(error)
  }
}
