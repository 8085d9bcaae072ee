// The memory of processes, as /proc tells it.

import { readdirSync, readFileSync } from 'node:fs'

import type { MemoryRecord } from '../samples.ts'

/** A process and all that came of it. */
export const familyOf = (pid: number): number[] => {
  const children = new Map<number, number[]>()
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    try {
      // The name of a program may hold anything, so what follows is found from behind it.
      const stat = readFileSync(`/proc/${name}/stat`, 'latin1')
      const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1])
      children.set(parent, [...(children.get(parent) ?? []), Number(name)])
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
