// Threads that sleep: a full machine, made and taken away again.

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'

import { pause } from '../machine.ts'

/** Threads that exist on the machine, all of them. */
export const threadsAlive = (): number => Number(readFileSync('/proc/loadavg', 'utf8').split(/[ /]/)[4])

export const startSleepers = async (program: string, threads: number): Promise<ChildProcess> => {
  const child = spawn(program, [String(threads)], { stdio: ['pipe', 'pipe', 'inherit'] })
  const said = await Promise.race([once(child.stdout, 'data'), once(child, 'exit')])
  if (String(said[0]) !== 'ready\n') throw new Error(`${threads} threads could not be made`)
  return child
}

export const stopSleepers = async (child: ChildProcess, baseline: number): Promise<void> => {
  const exited = once(child, 'exit')
  child.stdin?.end()
  await exited
  // Their processes die of a signal after that, and not at once.
  const end = performance.now() + 10_000
  while (threadsAlive() > baseline + 100 && performance.now() < end) await pause(20)
}

/** The kernel puts things in order after thousands of threads came or went. */
export const SETTLE = 500
