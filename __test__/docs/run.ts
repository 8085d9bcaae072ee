// Runs programs of the documentation, one after the other in this process, and writes one line of JSON about each to
// descriptor 3. Arguments: the files.

import { writeSync } from 'node:fs'
import { pathToFileURL } from 'node:url'
import { inspect } from 'node:util'

import { begin, met, print } from './checks.ts'

/** No program of a page takes that long. */
const PATIENCE = 30_000

/** What became of one program. */
export interface Outcome {
  readonly file: string
  readonly met: readonly number[]
  readonly ms: number
  readonly error?: string
}

// oxlint-disable-next-line no-console
console.log = print

for (const file of process.argv.slice(2)) {
  begin()
  const start = performance.now()
  let error: string | undefined
  let timer: NodeJS.Timeout | undefined
  try {
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error('It did not end.')), PATIENCE)
    })
    // Each is a reader's whole program.
    // oxlint-disable-next-line no-await-in-loop
    await Promise.race([import(pathToFileURL(file).href), late])
  } catch (thrown) {
    error = inspect(thrown)
  }
  clearTimeout(timer)
  const outcome: Outcome = {
    file,
    met: [...met],
    ms: performance.now() - start,
    ...(error === undefined ? {} : { error }),
  }
  writeSync(3, `${JSON.stringify(outcome)}\n`)
}
process.exit(0)
