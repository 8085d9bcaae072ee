// A program that is slow to start: a Python interpreter that imports what a small tool does, and is then given its work. Each mode
// hands over the same work and reads the same answer.

import { spawn } from 'node:child_process'

const PYTHON = '/usr/bin/python3'

/** Reads its work, to the end of file, from the descriptor that it is given the number of. */
const PROGRAM = `
import ast, decimal, email.message, http.client, json, sqlite3, sys, unittest
with open(int(sys.argv[1]), 'rb') as work: print(sum(json.load(work)))
`
const args = (descriptor) => ['-c', PROGRAM, String(descriptor)]

const WORK = '[6, 36]'
const ANSWER = '42'

const COMMS = 1023

/**
 * How long one that was started ahead gets to load all, in milliseconds, before it is given its work. One that takes longer does
 * the rest when it is measured: that can make it look slower than it is, never faster.
 */
const LOADING = 150

const sleep = (ms) => new Promise((resolve) => void setTimeout(resolve, ms))

const wrong = (what) => new Error(`the program did not do what it should: ${JSON.stringify(what)}`)

const sandboxed = async (nestbox, prewarm) => {
  const { ForkServer, Sandbox } = await nestbox()
  const server = await ForkServer.start()
  const sandbox = await Sandbox.create(undefined, { server, prewarm })
  return {
    server,
    async launch() {
      const result = await sandbox.run(PYTHON, args(COMMS), { work: WORK })
      if (result.stdout !== ANSWER || result.timings.prewarmed !== (prewarm !== undefined)) throw wrong(result)
      return result
    },
    async settle() {
      if (prewarm === undefined) return
      while (sandbox.stats().prewarm.ready === 0) await sleep(1)
      await sleep(LOADING)
    },
    close: () => server.destroy(),
  }
}

const bare = () =>
  new Promise((resolve, reject) => {
    const child = spawn(PYTHON, args(0), { stdio: ['pipe', 'pipe', 'ignore'] })
    let text = ''
    child.stdout.setEncoding('utf8').on('data', (part) => {
      text += part
    })
    child.once('error', reject)
    child.once('close', (code) => (code === 0 && text === `${ANSWER}\n` ? resolve() : reject(wrong({ code, text }))))
    child.stdin.end(WORK)
  })

/** @param how - `'spawn'`, `'cold'` or `'prewarmed'` */
export const slow = async (how, nestbox) => {
  if (how !== 'spawn') return sandboxed(nestbox, how === 'prewarmed' ? { file: PYTHON, args: args(COMMS) } : undefined)
  await bare()
  return { launch: bare }
}
