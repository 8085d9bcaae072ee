// sandbox2's ForkClient: sends requests to a fork server, or to a zygote over its comms channel.

import * as z from 'zod'
import type { NativeEnded, NativeFailure } from '#binding'

import type { Connection, Listener } from '../connection.ts'
import {
  describeIssues,
  type ForkServerError,
  fromFailure,
  NestboxError,
  RequestError,
  requestError,
} from '../errors.ts'
import { resourceUsage } from '../launch/result.ts'
import { flightOf } from '../launch/sandboxee.ts'
import { SignalNameSchema } from '../launch/schema.ts'
import type { Sandboxee } from '../launch/types.ts'
import { RunningForkServer } from '../server.ts'
import { signalName, signalNumber } from '../signals.ts'
import type { ForkServer } from '../types.ts'
import { check, FdSchema, type Tied } from '../validate.ts'
import { isForkRequest, toNativeRequest } from './request.ts'
import type { Exit, ForkReply, ForkRequest, RequestDescriptors } from './types.ts'

const StdioSchema = z.union([FdSchema, z.literal('ignore')], 'It must be a descriptor or "ignore"').optional()

const DescriptorsSchema = z.strictObject({
  execFd: FdSchema.optional(),
  commsFd: FdSchema.optional(),
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

/**
 * Sends requests to a fork server; or, for the mode `'fork'`, to a zygote: a sandboxee that was spawned with `comms: true`
 * and answers requests there.
 */
export class ForkClient {
  readonly #target: () => Target

  /** @throws `RequestError` if it is neither a fork server of ours nor a sandboxee with comms */
  constructor(server: ForkServer | Sandboxee<{ comms: true }>) {
    this.#target = targetOf(server)
  }

  /**
   * Sends a request, and resolves once it is carried out: the sandboxee runs, or the namespaces are made.
   *
   * @throws `RequestError`, `SpawnError`, `ExecError`, `ForkServerError`. Never synchronously.
   */
  async sendRequest(request: ForkRequest, descriptors: RequestDescriptors = {}): Promise<ForkReply> {
    if (!isForkRequest(request)) throw requestError(WHAT, ['request'], 'It must be what forkRequest().build() made')
    const checked = check(DescriptorsSchema, descriptors)
    if (!checked.ok) {
      const { issues, cause } = checked.error
      throw new RequestError(describeIssues(WHAT, issues), issues, { cause })
    }
    const { connection, zygoteFd } = this.#target()
    if ((request.mode === 'fork') !== (zygoteFd !== undefined)) {
      throw requestError(WHAT, ['mode'], 'A zygote takes the mode "fork", and nobody else does')
    }
    const { execFd, commsFd, userNsFd, stdin, stdout, stderr } = checked.value
    const message = toNativeRequest(request)
    if (execFd !== undefined) message.execFd = execFd
    if (commsFd !== undefined) message.commsFd = commsFd
    if (userNsFd !== undefined) message.userNsFd = userNsFd
    if (zygoteFd !== undefined) message.zygoteFd = zygoteFd
    if (typeof stdin === 'number') message.stdin = stdin
    if (typeof stdout === 'number') message.stdout = stdout
    if (typeof stderr === 'number') message.stderr = stderr
    const launched = connection.server.fork(message)
    if (launched.failure !== undefined) throw fromFailure(launched.failure)
    const reply = new Reply(connection, launched.token)
    connection.listen(launched, reply)
    await reply.ready
    return reply.handle()
  }
}

const targetOf = (server: unknown): (() => Target) => {
  if (server instanceof RunningForkServer) {
    return () => ({ connection: server.connection(), zygoteFd: undefined })
  }
  const flight = typeof server === 'object' && server !== null ? flightOf(server) : undefined
  if (flight?.comms === undefined) {
    const message = 'It must be what ForkServer.start() gave, or a sandboxee that was spawned with comms'
    throw requestError("ForkClient() was asked for something that can't be", ['server'], message)
  }
  return () => {
    const { connection, comms, commsFd } = flight
    // The descriptor belongs to the stream: once that is closed the number may be another file's.
    if (connection === undefined || comms === undefined || comms.destroyed || commsFd === undefined) {
      throw new NestboxError('ERR_NESTBOX_CLOSED', 'The zygote is gone, or its comms channel was closed.')
    }
    return { connection, zygoteFd: commsFd }
  }
}

/** What becomes of one request. */
class Reply implements Listener {
  /** Settles once the request is carried out, or can't be. */
  readonly ready: Promise<void>
  readonly #connection: Connection
  readonly #token: number
  readonly #exited: Promise<Exit>
  #pid = 0
  #initPid = 0
  #resolveReady!: () => void
  #rejectReady!: (error: Error) => void
  #resolveExited!: (exit: Exit) => void
  #rejectExited!: (error: Error) => void

  constructor(connection: Connection, token: number) {
    this.#connection = connection
    this.#token = token
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
    return Object.freeze({
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

  #fail(error: Error): void {
    this.#rejectReady(error)
    this.#rejectExited(error)
  }
}
