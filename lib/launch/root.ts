// Whether the host is the machine's root, whose processes the kernel does not count.

import { readFileSync } from 'node:fs'

type Root = 'no' | 'with-ids' | 'alone'

let root: Root | undefined

/**
 * Whether the host is the machine's root, and then whether it has other ids to give to sandboxees. In a user namespace that says so
 * of another user's uid 0, it is that user.
 */
export const rootOfMachine = (): Root => (root ??= lookAtRoot())

const lookAtRoot = (): Root => {
  if (process.getuid?.() !== 0) return 'no'
  const map = idMap()
  if (!/^\s*0\s+0\s/m.test(map)) return 'no'
  return /^\s*0\s+0\s+1\s*$/.test(map) ? 'alone' : 'with-ids'
}

const idMap = (): string => {
  try {
    return readFileSync('/proc/self/uid_map', 'latin1')
  } catch {
    // No namespaces, or no proc to tell of them.
    return '0 0 1'
  }
}
