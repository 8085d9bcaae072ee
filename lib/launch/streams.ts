// The host's ends of a sandboxee's pipes and channels.
//
// The core hands over plain descriptors; each becomes a `net.Socket`, which reads through libuv, honours back-pressure and
// owns the descriptor. Output is wrapped once more, for three reasons: the limit of the output is kept while it arrives,
// however slowly it is consumed; nothing is lost if the caller looks at the stream only after the end; and the descriptor
// is closed at the end even if the caller never looks.

import { Socket } from 'node:net'
import { pipeline, Readable, Transform, type Writable } from 'node:stream'
import { types } from 'node:util'

import type { NativeLaunched } from '#binding'

interface Sides {
  readonly readable: boolean
  readonly writable: boolean
}

const INPUT: Sides = { readable: false, writable: true }
const OUTPUT: Sides = { readable: true, writable: false }
const DUPLEX: Sides = { readable: true, writable: true }

/** Sockets of descriptors that nothing is done with yet, by number. */
const held = new Map<number, Socket>()

const own = (fd: number | undefined, sides: Sides): void => {
  if (fd === undefined) return
  // Node's types lack the option that keeps it from reading at once.
  const options = { fd, ...sides, manualStart: true }
  held.set(fd, new Socket(options))
}

/**
 * Owns the host's ends of a program until somebody has use for them: nothing is read, and nobody is kept waiting. A handle is closed
 * with its environment, be that a worker thread's; of a mere number nobody knows there.
 */
export const hold = ({ stdin, stdout, stderr, comms }: NativeLaunched): void => {
  own(stdin, INPUT)
  own(stdout, OUTPUT)
  own(stderr, OUTPUT)
  own(comms, DUPLEX)
}

/** Closes what {@link hold} owns, and nobody had use for. */
export const release = ({ stdin, stdout, stderr, comms }: NativeLaunched): void => {
  for (const fd of [stdin, stdout, stderr, comms]) {
    if (fd === undefined) continue
    held.get(fd)?.destroy()
    held.delete(fd)
  }
}

/** The socket of a descriptor: the one that owns it, if there is one. */
const socketOf = (fd: number, sides: Sides): Socket => {
  const socket = held.get(fd)
  if (socket === undefined) return new Socket({ fd, ...sides })
  held.delete(fd)
  // As a new one does.
  if (sides.readable) socket.read(0)
  return socket
}

/** What may pass on stdout and stderr together. */
export class OutputMeter {
  #limit: number
  readonly #mode: 'kill' | 'keep-head' | 'keep-tail'
  readonly #overflow: () => void
  #passed = 0
  /** More came than the limit allows. */
  overflowed = false

  constructor(limit: number | null, mode: 'kill' | 'keep-head' | 'keep-tail', overflow: () => void) {
    this.#limit = limit ?? Infinity
    this.#mode = mode
    this.#overflow = overflow
  }

  /** Sets another limit, which what has passed may be above already. */
  limit(limit: number | null): void {
    this.#limit = limit ?? Infinity
    if (this.#passed > this.#limit) this.#overflows()
  }

  /** How many bytes of a chunk are let through. */
  take(length: number): number {
    const room = this.#limit - this.#passed
    this.#passed += length
    if (length <= room) return length
    this.#overflows()
    return this.#mode === 'keep-tail' ? length : Math.max(room, 0)
  }

  #overflows(): void {
    if (this.overflowed) return
    this.overflowed = true
    if (this.#mode === 'kill') this.#overflow()
  }
}

/** What is kept of a stream for the result: all that passed, or the last of it. */
class Collected {
  #most: number
  #chunks: Buffer[] = []
  #length = 0

  constructor(most: number) {
    this.#most = most
  }

  keep(most: number): void {
    this.#most = most
    this.#trim()
  }

  add(chunk: Buffer): void {
    this.#chunks.push(chunk)
    this.#length += chunk.length
    this.#trim()
  }

  #trim(): void {
    // By whole chunks as it grows, to the byte at the end.
    for (let first = this.#chunks[0]; first !== undefined; first = this.#chunks[0]) {
      if (this.#length - first.length < this.#most) return
      this.#chunks.shift()
      this.#length -= first.length
    }
  }

  /** How many bytes are kept at most. */
  get most(): number {
    return this.#most
  }

  bytes(): Buffer {
    const all = Buffer.concat(this.#chunks)
    return all.length > this.#most ? all.subarray(all.length - this.#most) : all
  }
}

/** What a pipe holds at most, unless root has made it larger. What is left in it at the end is read without being asked for. */
const PIPE = 1024 * 1024

/** stdout or stderr of a sandboxee. */
export class OutputStream extends Readable {
  readonly #source: Socket
  readonly #meter: OutputMeter
  readonly #collected: Collected | undefined
  /** What may still be read ahead of the consumer. */
  #ahead = 0
  /** Everything that the program wrote has arrived. */
  readonly ended: Promise<void>
  /** Bytes that arrived, kept or not. */
  bytes = 0

  /** @param keep - how much of it is kept for the result; undefined if it is the caller's alone */
  constructor(fd: number, meter: OutputMeter, keep: number | undefined) {
    super()
    this.#meter = meter
    this.#collected = keep === undefined ? undefined : new Collected(keep)
    // What is kept must not wait for a caller who relies on that, and may never look at the stream.
    if (keep !== undefined) this.#ahead = Infinity
    const source = socketOf(fd, OUTPUT)
    this.#source = source
    this.ended = new Promise((resolve) => {
      source.once('close', () => resolve())
    })
    source.on('data', (chunk: Buffer) => this.#arrived(chunk))
    source.once('end', () => this.push(null))
    source.once('error', (error) => this.destroy(error))
    // A caller who does not care about read errors (there are none to speak of) must not crash of one.
    this.on('error', () => {})
    if (keep === undefined) source.pause()
  }

  /** Has another number of bytes kept for the result, if any are. */
  keep(most: number): void {
    this.#collected?.keep(most)
  }

  /** What was kept for the result. */
  collected(): Buffer | undefined {
    return this.#collected?.bytes()
  }

  /** The program is dead: reads what is left in the pipe into memory, so that the pipe can be closed. */
  drain(): void {
    if (this.#ahead === 0) this.#ahead = PIPE
    this.#source.resume()
  }

  /** Drops whatever comes. */
  discard(): void {
    this.#ahead = Infinity
    this.resume()
  }

  override _read(): void {
    this.#source.resume()
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#source.destroy()
    done(error)
  }

  #arrived(chunk: Buffer): void {
    this.bytes += chunk.length
    const length = this.#meter.take(chunk.length)
    if (length === 0) return
    const kept = length === chunk.length ? chunk : chunk.subarray(0, length)
    if (this.#collected !== undefined) {
      this.#collected.add(kept)
      // It does not wait for whoever reads the stream, so what nobody reads must have a bound of its own: with 'keep-tail' the
      // meter sets none. A reader who keeps up has nothing queued, whatever the limit is.
      if (this.readableLength > this.#collected.most) return
    }
    const wanted = this.push(kept)
    if (wanted) return
    this.#ahead -= chunk.length
    if (this.#ahead <= 0) {
      this.#ahead = 0
      this.#source.pause()
    }
  }
}

/** A program that does not read, or is gone, is no error of whoever writes to it. */
const ignoreErrors = (stream: Socket): Socket => stream.on('error', () => {})

/** stdin of a sandboxee. */
export const inputStream = (fd: number): Socket => ignoreErrors(socketOf(fd, INPUT))

/** A channel to a sandboxee. */
export const duplexStream = (fd: number): Socket => ignoreErrors(socketOf(fd, DUPLEX))

/** Writes its work to a program's channel, which then ends; what the program writes there is dropped. */
export const handOver = (channel: Socket, work: Uint8Array | undefined, talks: boolean): void => {
  if (work !== undefined && work.length > 0) channel.write(work)
  // Otherwise both are the caller's.
  if (!talks) channel.resume().end()
}

/** The nest is dead: lets go of a channel that nobody reads; one that is being read ends by itself. */
export const releaseDuplex = (stream: Socket): void => {
  if (stream.readableFlowing === null) stream.resume()
}

/** Why nothing, or not the end, will come of a caller's stream. To a pipeline it would be one with nothing in it. */
export const inputProblem = (from: Readable): Error | undefined => {
  if (from.errored) return from.errored
  if (from.readableEnded) return new Error('The stream was read to its end already')
  return from.destroyed ? new Error('The stream was destroyed before its end') : undefined
}

/** Lets go of a caller's stream that will not be read, as a pipeline does with one that it reads no further. */
export const discardInput = (from: Readable): void => {
  // An error that comes of what it had begun is nobody's any more.
  from.on('error', () => {}).destroy()
}

/** The same for the options of a call that was refused. They may be anything, and nothing of them is called again. */
export const discardInputOf = (options: unknown): void => {
  if (typeof options !== 'object' || options === null || types.isProxy(options)) return
  const input: unknown = Object.getOwnPropertyDescriptor(options, 'input')?.value
  if (input instanceof Readable) discardInput(input)
}

/** Stands behind a stream of objects: writing one that is no bytes would throw where nobody can catch it. */
const onlyBytes = (): Transform =>
  new Transform({
    writableObjectMode: true,
    transform(chunk: unknown, _encoding, done) {
      if (typeof chunk === 'string' || ArrayBuffer.isView(chunk)) done(null, chunk)
      else done(new TypeError(`It gave a chunk of the type '${typeof chunk}', which is neither text nor bytes`))
    },
  })

/**
 * Writes a caller's stream to stdin. `failed` hears of what goes wrong with the caller's stream; that the program reads no more
 * is no error.
 */
export const feed = (from: Readable, to: Writable, failed: (error: Error) => void): void => {
  // What ends one end destroys the other with it, so only the end that went first tells which it was.
  let first: Readable | Writable | undefined
  const went = (stream: Readable | Writable) => (): void => {
    first ??= stream
  }
  from.once('error', went(from)).once('close', went(from))
  to.once('error', went(to)).once('close', went(to))
  const done = (error: Error | null | undefined): void => {
    if (error && first !== to) failed(error)
  }
  if (!from.readableObjectMode) {
    pipeline(from, to, done)
    return
  }
  const checked = onlyBytes()
  checked.once('error', went(checked))
  pipeline(from, checked, to, done)
}
