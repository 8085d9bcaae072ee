// `node --import @oxc-node/core/register examples/judge/main.ts SUBMISSION.cpp...`: judges submissions against the problem of
// this directory.

import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import { Judge, type Problem } from './judge.ts'

/** Reads a directory with `problem.json` (time in milliseconds, memory in MiB) and a pair of files `*.in`, `*.out` for each test. */
export const readProblem = (directory: string): Problem => {
  const read = (name: string): string => readFileSync(path.join(directory, name), 'utf8')
  const { time, memory } = JSON.parse(read('problem.json')) as { time: number; memory: number }
  const names = readdirSync(directory)
    .filter((name) => name.endsWith('.in'))
    .map((name) => path.basename(name, '.in'))
    .toSorted()
  return {
    time,
    memory: memory * 1024 ** 2,
    tests: names.map((name) => ({ name, input: read(`${name}.in`), output: read(`${name}.out`) })),
  }
}

const main = async (files: readonly string[]): Promise<void> => {
  const problem = readProblem(fileURLToPath(new URL('problem', import.meta.url)))
  await using judge = await Judge.create()
  for (const file of files) {
    // In the order in which they were given.
    // oxlint-disable-next-line no-await-in-loop
    const { verdict, tests, message } = await judge.judge(readFileSync(file, 'utf8'), problem)
    console.log(`${verdict.padEnd(4)} ${file}`)
    for (const { name, verdict: of, time, memory } of tests) {
      console.log(`     ${of.padEnd(4)} ${name}  ${time.toFixed(1)} ms  ${(memory / 1024 ** 2).toFixed(1)} MiB`)
    }
    if (message !== undefined) console.log(message.replaceAll(/^/gm, '     '))
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv.slice(2))
