// The programs that are launched, compiled anew for every run into a directory of its own.

import { execFileSync } from 'node:child_process'
import { chmodSync, existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

/** Paths of what was compiled. */
export interface Programs {
  /** Ends at once. */
  readonly trivial: string
  /** Writes a line and ends. */
  readonly hello: string
  /** Writes as many bytes as it is told to. */
  readonly emit: string
  /** Makes a call that its filter forbids, and says when. */
  readonly violate: string
  /** Fills the machine with threads. */
  readonly sleepers: string
  /** An empty directory. */
  readonly scratch: string
  /** The floor (bench/floor), if it was built. */
  readonly floor: string | undefined
  /** Commands that the user named, by mode, in words. */
  readonly peers: Readonly<Record<string, readonly string[]>>
  remove(): void
}

const SOURCES = fileURLToPath(new URL('programs', import.meta.url))

/** What `scripts/bench.mjs` built. */
const builtFloor = (): string | undefined => {
  const file = process.env['NESTBOX_FLOOR'] ?? ''
  return existsSync(file) ? file : undefined
}

export const compilePrograms = (peers: Programs['peers'] = {}): Programs => {
  const directory = mkdtempSync(path.join(tmpdir(), 'nestbox-bench-'))
  // Sandboxees have other ids.
  chmodSync(directory, 0o755)
  const remove = (): void => rmSync(directory, { recursive: true, force: true })
  const compile = (name: string, source: string, ...flags: string[]): string => {
    const to = path.join(directory, name)
    execFileSync('cc', ['-O2', ...flags, '-o', to, path.join(SOURCES, source)], {
      stdio: ['ignore', 'ignore', 'inherit'],
    })
    chmodSync(to, 0o755)
    return to
  }
  const bare = ['-static', '-nostdlib', '-ffreestanding', '-fno-stack-protector', '-fno-pie', '-no-pie']
  try {
    return {
      trivial: compile('trivial', 'trivial.c', ...bare),
      hello: compile('hello', 'trivial.c', '-DSAY', ...bare),
      emit: compile('emit', 'emit.c', '-static'),
      violate: compile('violate', 'violate.c', ...bare),
      sleepers: compile('sleepers', 'sleepers.c', '-pthread'),
      scratch: mkdtempSync(path.join(directory, 'scratch-')),
      floor: builtFloor(),
      peers,
      remove,
    }
  } catch (cause) {
    remove()
    throw new Error('The programs that are launched could not be compiled: is there a C compiler (cc)?', { cause })
  }
}
