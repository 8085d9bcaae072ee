// Processes as /proc tells of them: who came of whom, who is a stranger, what memory they take.

import { readdirSync, readFileSync } from 'node:fs'

import type { MemoryRecord } from '../samples.ts'

/** The entries of a directory of /proc that are numbers; none if it is gone. */
const numbersIn = (directory: string): number[] => {
  try {
    return readdirSync(directory)
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
  } catch {
    return []
  }
}

/** A process and all that came of it. */
export const familyOf = (pid: number): number[] => {
  const children = new Map<number, number[]>()
  for (const name of numbersIn('/proc')) {
    try {
      // The name of a program may hold anything, so what follows is found from behind it.
      const stat = readFileSync(`/proc/${name}/stat`, 'latin1')
      const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1])
      children.set(parent, [...(children.get(parent) ?? []), name])
    } catch {
      // It has ended meanwhile.
    }
  }
  const family = [pid]
  for (const member of family) family.push(...(children.get(member) ?? []))
  return family
}

const kibibytes = (text: string, field: string): number =>
  Number(new RegExp(String.raw`^${field}:\s+(\d+) kB$`, 'm').exec(text)?.[1] ?? Number.NaN)

/** What a process calls itself. */
const nameOf = (pid: number): string => readFileSync(`/proc/${pid}/comm`, 'utf8').trim()

/** Threads of the kernel that do what processes have it do: deferred work, what is freed late, moves to another processor. */
const SERVING = /^(?:kworker|ksoftirqd|rcu|migration|kthreadd|pool_workqueue)/

/**
 * Where the kernel counts how often each thread has run that is neither a process's own, nor of those that came of it, nor one of
 * the kernel's that work for whoever asks them to.
 */
export const strangersTo = (pid: number): string[] => {
  const own = new Set(familyOf(pid))
  const isStranger = (other: number): boolean => {
    try {
      return !own.has(other) && !SERVING.test(nameOf(other))
    } catch {
      // It has ended meanwhile.
      return false
    }
  }
  const threadsOf = (other: number): string[] =>
    numbersIn(`/proc/${other}/task`).map((thread) => `/proc/${other}/task/${thread}/schedstat`)
  return numbersIn('/proc').filter(isStranger).flatMap(threadsOf)
}

/** What one process takes; nothing if it has ended meanwhile. */
export const memoryOfProcess = (pid: number): MemoryRecord['processes'] => {
  try {
    const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8')
    return [{ name: nameOf(pid), pssKib: kibibytes(rollup, 'Pss'), rssKib: kibibytes(rollup, 'Rss') }]
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (code === 'ESRCH' || code === 'ENOENT') return []
    throw error
  }
}

/** The parent of a process, and whether it is suspended while a child that it started by vfork(2) uses its memory. */
const statusOf = (pid: number): { parent: number; suspended: boolean } => {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  const parent = Number(/^PPid:\s+(\d+)$/m.exec(status)?.[1] ?? 0)
  return { parent, suspended: /^State:\s+D/m.test(status) }
}

/** Does this process run in its parent's memory, which is counted there already? The sandboxee of a warm nest does. */
const sharesMemory = (pid: number): boolean => {
  try {
    return statusOf(statusOf(pid).parent).suspended
  } catch {
    return false
  }
}

/** Proportional memory of processes together, in KiB. */
export const memoryOfAll = (pids: readonly number[]): number =>
  pids
    .filter((pid) => !sharesMemory(pid))
    .flatMap(memoryOfProcess)
    .reduce((sum, { pssKib }) => sum + pssKib, 0)

/** What the machine has left, in KiB. */
export const memoryAvailable = (): number => kibibytes(readFileSync('/proc/meminfo', 'utf8'), 'MemAvailable')
