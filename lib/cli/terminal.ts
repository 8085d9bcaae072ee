// What is written for people: colours and a progress bar where a terminal reads, plain text everywhere else.

import type { WriteStream } from 'node:tty'

/** A stream that may be a terminal. */
export type Output = NodeJS.WriteStream | WriteStream

const CODES = { bold: [1, 22], dim: [2, 22], red: [31, 39], green: [32, 39], yellow: [33, 39], cyan: [36, 39] } as const

export type Paint = { readonly [K in keyof typeof CODES]: (text: string) => string }

/** See https://no-color.org: any value but the empty one switches colours off. */
const isColourful = (stream: Output): boolean => {
  const { NO_COLOR: noColour = '', FORCE_COLOR: force, TERM: terminal } = process.env
  if (noColour !== '') return false
  if (force !== undefined) return force !== '0' && force !== 'false'
  return stream.isTTY && terminal !== 'dumb'
}

/** Colours for what is written to a stream; none where they would be noise. */
export const paintFor = (stream: Output): Paint => {
  const colourful = isColourful(stream)
  const paint = ([on, off]: readonly [number, number]) => {
    if (!colourful) return (text: string): string => text
    return (text: string): string => `\u001B[${on}m${text}\u001B[${off}m`
  }
  return {
    bold: paint(CODES.bold),
    dim: paint(CODES.dim),
    red: paint(CODES.red),
    green: paint(CODES.green),
    yellow: paint(CODES.yellow),
    cyan: paint(CODES.cyan),
  }
}

/** Pads a cell by what is seen of it. */
export const pad = (text: string, width: number): string => text + ' '.repeat(Math.max(width - text.length, 0))

const BAR = 30

/** A progress bar on the terminal, if it is one. Call it with what is done; with all, it goes away. */
export const progress = (stream: Output, label: string): ((done: number, all: number) => void) => {
  if (!stream.isTTY) return () => {}
  let shown = -1
  return (done, all) => {
    const filled = Math.floor((done / all) * BAR)
    if (filled === shown && done < all) return
    shown = filled
    const bar = `${'█'.repeat(filled)}${'░'.repeat(BAR - filled)}`
    stream.write(done < all ? `\r${label} ${bar} ${done}/${all}` : '\r\u001B[K')
  }
}

/** Writes all of a text, however slowly it is read. */
export const write = (stream: Output, text: string): Promise<void> =>
  new Promise((resolve, reject) => {
    stream.write(text, (error) => {
      // Who reads no further (`| head`) has seen enough.
      if (error && (error as NodeJS.ErrnoException).code !== 'EPIPE') reject(error)
      else resolve()
    })
  })
