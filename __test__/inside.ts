// What a launched program sees and does: the program that looks (`probe.c`), scripts, and what they print, parsed.

import { execFileSync } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import type { Launcher, LaunchOptions, PolicyBuilder, Sandboxee } from '../index.ts'

const here = path.dirname(fileURLToPath(import.meta.url))

let compiled: string | undefined

/** The host path of the compiled probe; compiled once per test file, removed when its process ends. */
export const probe = (): string => {
  if (compiled !== undefined) return compiled
  const directory = mkdtempSync(path.join(tmpdir(), 'nestbox-probe-'))
  process.on('exit', () => rmSync(directory, { recursive: true, force: true }))
  const to = path.join(directory, 'probe')
  const args = ['-O1', '-static', '-pthread', '-o', to, path.join(here, 'probe.c')]
  execFileSync('gcc', args, { stdio: ['ignore', 'ignore', 'inherit'] })
  chmodSync(directory, 0o755)
  chmodSync(to, 0o755)
  compiled = to
  return to
}

/** A policy that shows the probe as well, at `/probe`. */
export const withProbe = (policy: PolicyBuilder): PolicyBuilder => policy.bind(probe(), '/probe')

/** Runs a shell script. */
export const sh = <const O extends LaunchOptions = {}>(launcher: Pick<Launcher, 'run'>, script: string, options?: O) =>
  launcher.run('sh', ['-c', script], options)

/** The stdout of a shell script that succeeds. */
export const shout = async (launcher: Pick<Launcher, 'run'>, script: string): Promise<string> => {
  const result = await launcher.run('sh', ['-c', script])
  if (result.failed) throw new Error(`${script}: ${JSON.stringify(result)}`)
  return result.stdout
}

/** `/proc/self/status`, by name. */
export const statusOf = (text: string): Record<string, string> =>
  Object.fromEntries(
    text
      .split('\n')
      .filter((line) => line.includes(':'))
      .map((line) => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 1).trim()]),
  )

/** One line of `/proc/self/mountinfo`. */
export interface Mount {
  readonly point: string
  readonly options: readonly string[]
  readonly type: string
  readonly source: string
}

/** `/proc/self/mountinfo`, the last mount at a path last. */
export const mountsOf = (text: string): Mount[] =>
  text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      const fields = line.split(' ')
      const dash = fields.indexOf('-')
      return {
        point: fields[4] ?? '',
        options: (fields[5] ?? '').split(','),
        type: fields[dash + 1] ?? '',
        source: fields[dash + 2] ?? '',
      }
    })

/** The mount that is seen at a path. */
export const mountAt = (mounts: readonly Mount[], point: string): Mount => {
  const found = mounts.findLast((mount) => mount.point === point)
  if (found === undefined) throw new Error(`nothing is mounted at ${point}`)
  return found
}

/** The first line that a sandboxee prints. */
export const firstLine = async (sandboxee: Pick<Sandboxee, 'lines'>): Promise<string> => {
  for await (const line of sandboxee.lines()) return line
  throw new Error('the program printed nothing')
}
