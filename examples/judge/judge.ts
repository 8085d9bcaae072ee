// An online judge: compiles a submission in C++ and runs it against tests, each step in a sandbox of its own.
//
// Three things a contestant may try, and what stands against them: to attack the judge through the compiler (it is isolated
// as well, and limited), to look for the answers (the program sees itself and nothing else), to leave something behind for
// the next run (a nest is used once).

import { chmod, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'

import { policy, type Result, Sandbox } from 'nestbox'

/**
 * Accepted, wrong answer, time limit exceeded, memory limit exceeded, output limit exceeded, runtime error, compile error.
 */
export type Verdict = 'AC' | 'WA' | 'TLE' | 'MLE' | 'OLE' | 'RE' | 'CE'

/** One input, and the output that is expected. */
export interface Test {
  readonly name: string
  readonly input: string
  readonly output: string
}

/** What a submission is judged by. */
export interface Problem {
  /** Milliseconds of CPU time for each test. */
  readonly time: number
  /** Bytes for each test. */
  readonly memory: number
  readonly tests: readonly Test[]
}

/** How one test went. */
export interface TestReport {
  readonly name: string
  readonly verdict: Verdict
  /** Milliseconds of CPU time. */
  readonly time: number
  /** Bytes. */
  readonly memory: number
}

/** How a submission did: the first verdict that is not AC, and the tests that ran. */
export interface Report {
  readonly verdict: Verdict
  readonly tests: readonly TestReport[]
  /** What the compiler said, of a CE. */
  readonly message?: string
}

const MIB = 1024 ** 2

/** Compilers are programs too: `#include "/dev/zero"`, templates without end, a gigabyte of error messages. */
const COMPILE = policy('host-system').limits({
  wallTime: 20_000,
  cpuTime: 15_000,
  processes: 16,
  addressSpacePerProcess: '2GiB',
  disk: '64MiB',
  fileSize: '32MiB',
  output: '64KiB',
})

/**
 * The program, and nothing else: it is linked statically. `/proc` shows it only itself, and is what init reads its CPU time
 * from; without it a limit of CPU time is kept to the second.
 */
const RUN = policy()
  .mountPoint('/main')
  .proc('fresh')
  .limits({ processes: 1, disk: '4096B', openFiles: 16, fileSize: 0, output: '16MiB' })

/** A launch may take so much longer than its CPU time: for waiting, on a machine where others compute as well. */
const PATIENCE = 10

/** What is compared: words. Nobody fails for a space at the end of a line. */
const wordsOf = (text: string): string[] => text.split(/\s+/).filter((word) => word !== '')

const isSame = (one: string, other: string): boolean => {
  const [a, b] = [wordsOf(one), wordsOf(other)]
  return a.length === b.length && a.every((word, index) => word === b[index])
}

const cpuTime = ({ resourceUsage }: Result): number => resourceUsage.userCpuMs + resourceUsage.systemCpuMs

/**
 * The last words of a program whose one big allocation was refused: it never had the memory, so its peak does not tell. They
 * may be made up, which gains no more than another verdict of failure.
 */
const OUT_OF_MEMORY = /\bstd::bad_alloc\b|^MemoryError\b/m

const verdictOf = (result: Result, problem: Problem, expected: string): Verdict => {
  // By evidence, whatever the program died of: what asks for too much memory mostly dies of not getting it.
  if (result.resourceUsage.peakMemoryBytes > problem.memory) return 'MLE'
  if (result.status === 'limit-exceeded') {
    if (result.limit === 'output') return 'OLE'
    return result.limit === 'cpuTime' || result.limit === 'wallTime' ? 'TLE' : 'RE'
  }
  // The kernel looks at the limit now and then; the account is exact.
  if (cpuTime(result) > problem.time) return 'TLE'
  if (result.failed) return OUT_OF_MEMORY.test(result.stderr) ? 'MLE' : 'RE'
  return isSame(result.stdout, expected) ? 'AC' : 'WA'
}

/** Judges submissions. Disposing ends what is running. */
export class Judge implements AsyncDisposable {
  readonly #compiler: Sandbox
  readonly #runner: Sandbox

  private constructor(compiler: Sandbox, runner: Sandbox) {
    this.#compiler = compiler
    this.#runner = runner
  }

  /**
   * @param concurrency - programs that run at one time; more than there are processors makes their times worse
   */
  static async create(concurrency = 1): Promise<Judge> {
    const compiler = await Sandbox.create(COMPILE, { maxConcurrency: concurrency })
    return new Judge(compiler, await Sandbox.create(RUN, { maxConcurrency: concurrency }))
  }

  async judge(source: string, problem: Problem): Promise<Report> {
    const directory = await mkdtemp(path.join(tmpdir(), 'judge-'))
    try {
      const program = path.join(directory, 'main')
      const message = await this.#compile(source, program)
      if (message !== undefined) return { verdict: 'CE', tests: [], message }
      return await this.#test(program, problem)
    } finally {
      await rm(directory, { recursive: true })
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#compiler.destroy()
    await this.#runner.destroy()
  }

  /** Leaves the program at a host path; or tells why there is none. */
  async #compile(source: string, to: string): Promise<string | undefined> {
    const args = ['-O2', '-std=c++17', '-static', '-o', '/tmp/main', '/tmp/main.cpp']
    const result = await this.#compiler.run('g++', args, {
      files: { '/tmp/main.cpp': source },
      outputs: { program: { path: '/tmp/main', maxBytes: '32MiB', to } },
      stderr: 'stdout',
      onOverflow: 'keep-head',
    })
    if (!result.failed) {
      // What is brought out is a file like any other.
      await chmod(to, 0o755)
      return undefined
    }
    return result.status === 'limit-exceeded' ? `The compiler exceeded its limit of ${result.limit}.` : result.stdout
  }

  /** Runs the tests in order, up to the first that fails. */
  async #test(program: string, problem: Problem): Promise<Report> {
    const tests: TestReport[] = []
    for (const { name, input, output } of problem.tests) {
      // One after the other: the first failure decides.
      // oxlint-disable-next-line no-await-in-loop
      const result = await this.#runner.run('/main', [], {
        binds: { '/main': program },
        input,
        limits: {
          cpuTime: problem.time,
          wallTime: problem.time * PATIENCE,
          // Twice what is allowed: so a program that takes more and more is seen to, and does not just fail to get it.
          addressSpacePerProcess: problem.memory * 2 + 16 * MIB,
        },
      })
      const verdict = verdictOf(result, problem, output)
      tests.push({ name, verdict, time: cpuTime(result), memory: result.resourceUsage.peakMemoryBytes })
      if (verdict !== 'AC') return { verdict, tests }
    }
    return { verdict: 'AC', tests }
  }
}
