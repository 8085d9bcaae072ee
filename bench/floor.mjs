// The floor as a mode: a program that launches by itself (bench/floor) and holds the clock itself, since JavaScript would be
// more than half of what it measures. This host only tells it when it is its turn.

import { spawn } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'

/** Where the floor reads what nestbox does: the default policy with the program in it. */
const writePolicy = async ({ trivial }, nestbox) => {
  const { policy } = await nestbox()
  const file = path.join(path.dirname(trivial), `policy-${process.pid}.json`)
  writeFileSync(file, JSON.stringify(policy('host-system').bind(trivial, '/program').build()))
  return file
}

export const floor = async (kind, programs, nestbox) => {
  if (programs.floor === undefined) throw new Error('the floor program is not there: npm run bench builds it')
  const what = kind === 'bare' ? programs.trivial : await writePolicy(programs, nestbox)
  const child = spawn(programs.floor, [kind, what], { stdio: ['pipe', 'pipe', 'inherit'] })
  // Who writes to one that has ended is told by the end of its answers.
  child.stdin.on('error', () => {})
  const answers = createInterface(child.stdout)[Symbol.asyncIterator]()
  const ask = async (line) => {
    child.stdin.write(`${line}\n`)
    const { value, done } = await answers.next()
    if (done) throw new Error(`the floor program (${kind}) ended`)
    return JSON.parse(value)
  }
  return {
    async turn(launches, pause) {
      const { samples } = await ask(`turn ${launches} ${Math.round(pause * 1000)}`)
      return samples
    },
    /** More processes than twice the processors only get into each other's way. */
    async flood(launches, inFlight) {
      const { ms } = await ask(`flood ${launches} ${Math.min(inFlight, 2 * os.availableParallelism())}`)
      return ms
    },
    close() {
      child.stdin.end()
    },
  }
}
