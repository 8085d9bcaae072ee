// What the tests of the invariants share: compiled fixtures, a look at the machine's processes, and hosts that can be
// killed because they are not the test itself.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

import type { Result } from '../../index.ts'
import { delay, until } from '../helpers.ts'

/** The top of the repository. */
export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')

const fixtures = path.join(root, '__test__', 'fixtures')

// ---- compiled fixtures -------------------------------------------------------------------------------------------------------

let built: string | undefined

/** A directory for this test process, gone when it ends. Readable by all, for sandboxees have other ids. */
export const workshop = (): string => {
  if (built === undefined) {
    const made = mkdtempSync(path.join(tmpdir(), 'nestbox-test-'))
    chmodSync(made, 0o755)
    process.on('exit', () => rmSync(made, { recursive: true, force: true }))
    built = made
  }
  return built
}

/** A directory below {@link workshop} that does not exist yet. */
export const room = (name: string): string => {
  const directory = path.join(workshop(), name)
  mkdirSync(directory, { recursive: true })
  chmodSync(directory, 0o755)
  return directory
}

/** Compiles `fixtures/<name>.c`, statically, once; returns the program's path. */
export const fixture = (name: string): string => {
  const program = path.join(workshop(), name)
  if (existsSync(program)) return program
  const source = path.join(fixtures, `${name}.c`)
  const flags = ['-O1', '-Wall', '-static', '-pthread', '-o', program, source]
  execFileSync('gcc', flags, { stdio: ['ignore', 'ignore', 'inherit'] })
  chmodSync(program, 0o755)
  return program
}

/**
 * The fork server as a file, carved out of the addon: for wrappers around it. (The one in `target/` may be another, and is
 * not there where only the package was copied to.)
 */
export const forkServerFile = (): string => {
  const file = path.join(workshop(), 'nestbox-forkserver')
  if (existsSync(file)) return file
  const name = readdirSync(root).find((entry) => /^nestbox\..*\.node$/.test(entry))
  if (name === undefined) throw new Error('the addon is not built')
  const addon = readFileSync(path.join(root, name))
  for (const program of programsIn(addon)) {
    // Not the symboliser, which is embedded as well: a name that the fork server gives one of its processes.
    if (!program.includes('nestbox-templat')) continue
    writeFileSync(file, program)
    chmodSync(file, 0o755)
    return file
  }
  throw new Error('the addon has no fork server in it')
}

/** The ELF files within one. */
function* programsIn(addon: Buffer): Generator<Buffer> {
  const magic = Buffer.from('\u007FELF\u0002\u0001\u0001', 'latin1')
  for (let start = addon.indexOf(magic, 4); start !== -1; start = addon.indexOf(magic, start + 4)) {
    // The section header table is the last thing in an ELF file: e_shoff, e_shentsize, e_shnum.
    const table = addon.readUInt16LE(start + 58) * addon.readUInt16LE(start + 60)
    const length = Number(addon.readBigUInt64LE(start + 40)) + table
    // Programs that read ELF files hold the magic number as well.
    if (start + length <= addon.length) yield addon.subarray(start, start + length)
  }
}

// ---- processes -------------------------------------------------------------------------------------------------------------------

/** A process, by what tells it from a later one with the same number. */
export interface Process {
  readonly pid: number
  readonly parent: number
  readonly session: number
  readonly nice: number
  /** R, S, D, T, Z ... */
  readonly state: string
  readonly name: string
  /** Clock ticks since boot. */
  readonly start: string
}

/** One process, if it is there. */
export const processOf = (pid: number): Process | undefined => {
  let text
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'latin1')
  } catch {
    return undefined
  }
  const end = text.lastIndexOf(')')
  const fields = text.slice(end + 2).split(' ')
  return {
    pid,
    name: text.slice(text.indexOf('(') + 1, end),
    state: fields[0] ?? '',
    parent: Number(fields[1]),
    session: Number(fields[3]),
    nice: Number(fields[16]),
    start: fields[19] ?? '',
  }
}

/** All processes of the machine. */
export const processTable = (): Process[] =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((name) => processOf(Number(name)))
    .filter((found) => found !== undefined)

/** A process and everything below it. */
export const family = (pid: number, table: readonly Process[] = processTable()): Process[] => {
  const children = new Map<number, Process[]>()
  for (const entry of table) {
    const siblings = children.get(entry.parent)
    if (siblings === undefined) children.set(entry.parent, [entry])
    else siblings.push(entry)
  }
  const found = table.filter((entry) => entry.pid === pid)
  // Grows while it is walked.
  for (const member of found) found.push(...(children.get(member.pid) ?? []))
  return found
}

/** Those that still run: a zombie of somebody else's does not. */
export const survivors = (processes: readonly Process[]): Process[] =>
  processes.filter((before) => {
    const now = processOf(before.pid)
    return now !== undefined && now.start === before.start && now.state !== 'Z' && now.state !== 'X'
  })

/** One line of `/proc/PID/status`, without its name. */
export const statusLine = (pid: number | 'self', name: string): string =>
  new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1] ?? ''

/** Resident memory in KiB. */
export const residentKib = (pid: number | 'self'): number => Number.parseInt(statusLine(pid, 'VmRSS'), 10)

/** What each open descriptor leads to. Needs a process that lets us look: ours, or any for root. */
export const descriptors = (pid: number | 'self'): string[] => {
  const directory = `/proc/${pid}/fd`
  return readdirSync(directory).flatMap((name) => {
    try {
      return [`${name} ${readlinkSync(`${directory}/${name}`)}`]
    } catch {
      // The one that the directory itself was read with.
      return []
    }
  })
}

// ---- hosts -----------------------------------------------------------------------------------------------------------------------

/** What a {@link Host} is started with. */
export interface HostOptions {
  /** Programs to show inside, by path inside. */
  readonly binds?: Readonly<Record<string, string>>
  readonly base?: 'host-system' | 'empty'
  readonly warm?: number
  /** No proc, no dev; one tmpfs. */
  readonly bare?: boolean
  readonly syscalls?: 'default' | 'unfiltered'
  readonly network?: 'none' | 'shared-loopback' | 'host'
  readonly env?: Readonly<Record<string, string>>
  /** Further arguments of the Node process. */
  readonly args?: readonly string[]
  readonly cwd?: string
  /** A program and its arguments that execute what follows. */
  readonly wrapper?: readonly string[]
  /** Own process group. */
  readonly detached?: boolean
  /** Run nestbox in a worker thread of it. */
  readonly worker?: boolean
  /** One more pipe, fd 3 of the outermost program. */
  readonly pipe?: boolean
}

/** An error, as a host tells of it. */
export interface HostError {
  readonly name: string
  readonly code?: string
  readonly errno?: number
  readonly errnoName?: string
  readonly syscall?: string
  readonly step?: string
  readonly hint?: string
  readonly message: string
}

/** An answer of a host. */
export interface HostAnswer {
  readonly error?: HostError
  readonly result?: Result
  readonly results?: readonly { readonly result?: Result; readonly error?: HostError }[]
  readonly pids?: readonly number[]
  readonly pid?: number
  readonly value?: unknown
}

/** A Node process that uses nestbox and does what it is told, one command at a time; see `fixtures/host.ts`. */
export class Host {
  readonly child: ChildProcess
  /** The Node process. Behind a wrapper that forks it is not `child`. */
  pid = 0
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null }>
  #answers: ((answer: HostAnswer) => void)[] = []
  #stderr = ''

  constructor(options: HostOptions = {}) {
    const { wrapper = [], env = {}, args = [], cwd = root, detached = false, pipe = false, ...settings } = options
    const script = path.join(fixtures, 'host.ts')
    const node = [process.execPath, '--import', '@oxc-node/core/register', script, JSON.stringify(settings), ...args]
    const [file = '', ...rest] = [...wrapper, ...node]
    // A loader is looked up from the working directory.
    node[2] = import.meta.resolve('@oxc-node/core/register')
    rest[rest.indexOf('@oxc-node/core/register')] = node[2]
    this.child = spawn(file, rest, {
      cwd,
      detached,
      env: { PATH: process.env['PATH'], HOME: process.env['HOME'], TMPDIR: process.env['TMPDIR'], ...env },
      stdio: ['pipe', 'pipe', 'pipe', pipe ? 'pipe' : 'ignore'],
    })
    this.ended = new Promise((resolve) => {
      this.child.on('close', (code, signal) => {
        for (const answer of this.#answers) {
          answer({ error: { name: 'Ended', message: `the host ended: ${code ?? signal}\n${this.#stderr}` } })
        }
        this.#answers = []
        resolve({ code, signal })
      })
    })
    this.child.on('error', (error) => this.#fail(error))
    // A host that was killed does not read.
    this.child.stdin?.on('error', () => {})
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text
    })
    if (this.child.stdout !== null) {
      createInterface({ input: this.child.stdout }).on('line', (line) => {
        this.#answers.shift()?.(JSON.parse(line) as HostAnswer)
      })
    }
  }

  /** Starts one, and waits until it listens. */
  static async start(options?: HostOptions): Promise<Host> {
    const host = new Host(options)
    const { pid, error } = await host.ask('hello')
    if (pid === undefined) throw new Error(error?.message ?? 'the host did not start')
    host.pid = pid
    return host
  }

  /** What it wrote to stderr so far. */
  get stderr(): string {
    return this.#stderr
  }

  /** Sends a command, and waits for the answer. */
  ask(command: string, values: Readonly<Record<string, unknown>> = {}): Promise<HostAnswer> {
    return new Promise((resolve) => {
      this.#answers.push(resolve)
      this.child.stdin?.write(`${JSON.stringify({ command, ...values })}\n`)
    })
  }

  /** The same, for commands that must succeed. */
  async must(command: string, values?: Readonly<Record<string, unknown>>): Promise<HostAnswer> {
    const answer = await this.ask(command, values)
    if (answer.error !== undefined) throw new Error(`${command}: ${JSON.stringify(answer.error)}`)
    return answer
  }

  kill(signal: NodeJS.Signals = 'SIGKILL'): void {
    if (this.pid === 0) this.child.kill(signal)
    else process.kill(this.pid, signal)
  }

  /** Ends it, and waits for that. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.child.stdin?.end()
    const ended = await Promise.race([this.ended.then(() => true), delay(3000).then(() => false)])
    if (ended) return
    try {
      this.kill()
    } catch {
      // It ended meanwhile.
    }
    this.child.kill('SIGKILL')
    await this.ended
  }

  #fail(error: Error): void {
    for (const answer of this.#answers) answer({ error: { name: error.name, message: error.message } })
    this.#answers = []
  }
}

/** Waits until a family has a number of members, none of them just passing through; returns it. */
export const familyOf = async (pid: number, size: number, timeout = 20_000): Promise<Process[]> => {
  let members: Process[] = []
  let looks = 0
  await until(() => {
    const now = family(pid)
    const same = now.length === members.length && now.every((one, index) => one.start === members[index]?.start)
    looks = same ? looks + 1 : 0
    members = now
    return members.length >= size && looks >= 4
  }, timeout)
  return members
}
