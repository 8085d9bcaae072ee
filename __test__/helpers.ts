// What the tests share: scratch directories, small C programs, and answers about where they run.

import { execFileSync } from 'node:child_process'
import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'

import type { ExecutionContext } from 'ava'

/** A directory of the test's own, gone when the test is over. Readable by all, for sandboxees have other ids. */
export const scratch = (t: ExecutionContext): string => {
  const directory = mkdtempSync(path.join(tmpdir(), 'nestbox-test-'))
  chmodSync(directory, 0o755)
  t.teardown(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

/** Is there such a program on the host's PATH? */
export const have = (name: string): boolean =>
  (process.env['PATH'] ?? '').split(':').some((directory) => directory !== '' && existsSync(path.join(directory, name)))

/** The suite runs as root and as an unprivileged user; few tests care. */
export const isRoot = process.getuid?.() === 0

/** Compiles a C program, statically: it runs in a policy that shows nothing but itself. */
export const compile = (t: ExecutionContext, source: string, ...flags: string[]): string => {
  const directory = scratch(t)
  const from = path.join(directory, 'program.c')
  const to = path.join(directory, 'program')
  writeFileSync(from, source)
  execFileSync('gcc', ['-O1', '-static', '-o', to, from, ...flags], { stdio: ['ignore', 'ignore', 'inherit'] })
  chmodSync(to, 0o755)
  return to
}

/** Compiles a C program that has no C library, and leaves it in a directory for everybody to execute. */
export const compileBare = (source: string, directory: string): string => {
  const to = path.join(directory, 'probe')
  const flags = ['-O1', '-static', '-nostdlib', '-ffreestanding', '-fno-stack-protector']
  execFileSync('gcc', [...flags, '-o', to, source], { stdio: ['ignore', 'ignore', 'inherit'] })
  chmodSync(to, 0o755)
  return to
}

/** The open descriptors of this process, by number, with what they lead to. */
export const openDescriptors = (): Map<number, string> => {
  const found = new Map<number, string>()
  for (const name of readdirSync('/proc/self/fd')) {
    try {
      found.set(Number(name), readFileSync(`/proc/self/fdinfo/${name}`, 'latin1'))
    } catch {
      // The one that the directory itself was read with.
    }
  }
  return found
}

/**
 * Does a process with this id run? One that has ended does not, though nobody may have asked for its status yet: a launch of one
 * process is reported before that is done.
 */
export const runs = (pid: number): boolean => {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    // `pid (name) state ...`, and a name may have parentheses, too.
    return !'ZX'.includes(stat[stat.lastIndexOf(')') + 2] ?? '')
  } catch {
    return false
  }
}

/**
 * Milliseconds: what is bounded at all ends sooner, on a machine that does much else, too. What has no bound goes on for longer.
 * Nothing about speed is asserted by it.
 */
export const BOUNDED = 20_000

/** Waits until something holds, looking often. */
export const until = async (holds: () => boolean | Promise<boolean>, timeout = BOUNDED): Promise<boolean> => {
  const end = performance.now() + timeout
  for (;;) {
    // In sequence by nature.
    // oxlint-disable-next-line no-await-in-loop
    if (await holds()) return true
    if (performance.now() > end) return false
    // oxlint-disable-next-line no-await-in-loop
    await delay(5)
  }
}

/** Resolves after some milliseconds. */
export const delay = (ms: number): Promise<void> =>
  new Promise((resolve) => {
    setTimeout(resolve, ms)
  })
