// A byte stream as lines, at the consumer's pace and within bounds: what comes from a sandbox may be one endless line.

import { StringDecoder } from 'node:string_decoder'
import type { Readable } from 'node:stream'

/** The default of `maxLength`. */
export const MAX_LINE = 64 * 1024

/**
 * Splits a stream into lines. One splitter serves all iterations over its stream, so that leaving one by `break` loses
 * nothing for the next.
 */
export class LineSplitter {
  readonly #stream: Readable
  readonly #decoder = new StringDecoder('utf8')
  #rest = ''
  #ended = false

  constructor(stream: Readable) {
    this.#stream = stream
  }

  async *lines(maxLength: number): AsyncGenerator<string, void, void> {
    for (;;) {
      const line = this.#next(maxLength)
      if (line !== undefined) {
        yield line
        continue
      }
      if (this.#ended) return
      // In sequence by nature: what is read next depends on what was read before.
      // oxlint-disable-next-line no-await-in-loop
      const chunk = await readChunk(this.#stream)
      this.#ended = chunk === null
      this.#rest += chunk === null ? this.#decoder.end() : this.#decoder.write(chunk)
    }
  }

  /** The next line of what is there, if that is enough for one. */
  #next(maxLength: number): string | undefined {
    const newline = this.#rest.indexOf('\n')
    if (newline !== -1 && newline <= maxLength) {
      const line = this.#rest.slice(0, newline)
      this.#rest = this.#rest.slice(newline + 1)
      return line.endsWith('\r') ? line.slice(0, -1) : line
    }
    if (this.#rest.length > maxLength) return this.#take(piece(this.#rest, maxLength))
    return this.#ended && this.#rest !== '' ? this.#take(this.#rest.length) : undefined
  }

  #take(length: number): string {
    const line = this.#rest.slice(0, length)
    this.#rest = this.#rest.slice(length)
    return line
  }
}

/** How long a piece may be without splitting a surrogate pair. */
const piece = (text: string, maxLength: number): number => {
  const last = text.charCodeAt(maxLength - 1)
  const high = last >= 0xd8_00 && last <= 0xdb_ff
  return high && maxLength > 1 ? maxLength - 1 : maxLength
}

/** The next chunk, or null at the end; the stream stays open if nobody asks for more. */
const readChunk = (stream: Readable): Promise<Buffer | null> =>
  new Promise((resolve, reject) => {
    const settle = (): boolean => {
      const chunk = stream.read() as Buffer | null
      if (chunk !== null) resolve(chunk)
      else if (stream.errored) reject(stream.errored)
      else if (stream.readableEnded || stream.destroyed) resolve(null)
      else return false
      stream.off('readable', settle).off('end', settle).off('close', settle).off('error', settle)
      return true
    }
    if (!settle()) stream.on('readable', settle).on('end', settle).on('close', settle).on('error', settle)
  })
