// Puts the report of a run where readers find it: docs/benchmarks.md with its plots, and the section of the README.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import { plots } from './plots.ts'
import { reportOf, summaryOf } from './report.ts'
import type { Run } from './samples.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))

/** What lies between these is replaced; the rest of the file is its author's. */
const BEGIN = '<!-- benchmarks: made by `npm run bench`, do not edit -->'
const END = '<!-- /benchmarks -->'

const INTRODUCTION = `# Benchmarks

${BEGIN}
${END}

## How it is measured

\`npm run bench\` compiles the programs, starts a host (a Node.js process) for every mode, and lets the hosts launch in turns: five
launches of the first mode, five of the second, and so on, over and over, back and forth. The first launches of each are discarded. What
is compared was therefore measured at the same time; absolute numbers are those of one machine, the ratios are what to look at.

- Every mode has a host to itself that loads only what it needs, because the cost of \`child_process\` grows with the memory
  of the process that calls it: loading a TypeScript loader alone makes it half as slow again.
- The program is static, has no libc and makes one system call (two where its output is captured). What is measured is the
  launch, from the call until the result is known, as seen by JavaScript.
- \`sandbox.run\` is \`policy('host-system')\` with the program bound into it: all namespaces, fresh /proc, private /tmp, no
  capabilities, the syscall filter, all default limits. \`bwrap\` gets options that come as close as it can; it applies no limits and no
  syscall filter.
- Between turns it looks for 60 ms, with all hosts idle, whether anybody else uses the machine, and waits while they do, for five
  minutes a scenario at the most. What is measured is never chosen by its outcome. How quiet it was is below the numbers.
- 20,000 threads can't take turns with none, being the whole machine's: these two are measured in alternating blocks.
- Samples are kept: \`bench/runs\` has one file a run, a JSON line for each series. \`npm run bench -- --report FILE\` makes this
  page from such a file again.

\`npm run bench -- --list\` names the scenarios; \`npm run bench -- NAME...\` measures some of them and prints the tables;
\`--quick\` shows within seconds that the harness works.
`

/** The text with what is between the markers replaced; undefined if there are none. */
const between = (text: string, made: string): string | undefined => {
  const from = text.indexOf(BEGIN)
  const to = text.indexOf(END)
  if (from === -1 || to < from) return undefined
  return `${text.slice(0, from + BEGIN.length)}\n\n${made}\n\n${text.slice(to)}`
}

/** Writes it all; names what could not be written. */
export const publish = async (run: Run): Promise<string[]> => {
  const images = path.join(ROOT, 'docs', 'benchmarks')
  mkdirSync(images, { recursive: true })
  const drawn = await plots(run)
  for (const [name, svg] of drawn) writeFileSync(path.join(images, `${name}.svg`), svg)
  const imageFrom =
    (directory: string) =>
    (name: string): string =>
      drawn.has(name) ? `![${ALTERNATIVES[name] ?? name}](${directory}/${name}.svg)` : ''

  const page = path.join(ROOT, 'docs', 'benchmarks.md')
  const old = existsSync(page) ? readFileSync(page, 'utf8') : INTRODUCTION
  const report = reportOf(run, imageFrom('benchmarks'))
  writeFileSync(page, between(old, report) ?? between(INTRODUCTION, report) ?? '')

  const readme = path.join(ROOT, 'README.md')
  const text = existsSync(readme)
    ? between(readFileSync(readme, 'utf8'), summaryOf(run, imageFrom('docs/benchmarks')))
    : undefined
  if (text === undefined) return [`README.md has no line "${BEGIN}" followed by "${END}"`]
  writeFileSync(readme, text)
  return []
}

const ALTERNATIVES: Readonly<Record<string, string>> = {
  latency: 'Latency of launching a trivial program: p50, p90 and p99 of each way to launch',
  capture: 'Latency of launching a trivial program and capturing its output',
  heap: 'Latency of a launch from a small host and from one with 1 GiB of memory',
  threads: 'Latency of a launch on an empty machine and on one with 20,000 threads',
  mounts: 'Latency of a launch from a host with few mounts and with 320 more',
  throughput: 'Launches a second against the number in flight',
  steps: 'The steps of one launch, one after the other',
}
