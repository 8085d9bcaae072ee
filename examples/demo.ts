// `npm run demo`: runs real programs in sandboxes, prints what each of them saw and how long its launch took, next to
// child_process.spawn of the same program.

import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'

import { policy, type Result, run, Sandbox } from 'nestbox'

/** What a program can tell about where it is. */
const LOOK_AROUND = `
import os, socket, textwrap
mounts = [line.split()[4] for line in open('/proc/self/mountinfo')]
print('pid        ', os.getpid())
print('uid, gid   ', os.getuid(), os.getgid())
print('hostname   ', socket.gethostname())
print('processes  ', ' '.join(sorted((p for p in os.listdir('/proc') if p.isdigit()), key=int)))
print('interfaces ', ' '.join(name for _, name in socket.if_nameindex()))
print(textwrap.fill('mounts      ' + ' '.join(mounts), 100, subsequent_indent=' ' * 12))
print('environment', ' '.join(sorted(os.environ)))
`

const PIPELINE = 'seq 1 1000 | awk "{ sum += \\$1 } END { print sum }"; echo "pid $$, $(hostname), $(id -u):$(id -g)"'

const HELLO_C = `
#include <stdio.h>
#include <unistd.h>
int main(void) { printf("compiled and run inside: pid %d, uid %d\\n", getpid(), getuid()); return 0; }
`

/** How often a program is launched to say how long it takes. */
const ROUNDS = 30
const ROUNDS_OF_GCC = 5

/** Where the system has a program: what a sandbox finds, and not what the host's PATH may put before it. */
const find = (name: string): string | undefined =>
  ['/usr/bin', '/bin'].map((directory) => path.join(directory, name)).find((file) => existsSync(file))

const median = (times: number[]): number => times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)] ?? 0

/** The same program without any isolation, by Node itself. */
const bare = (file: string, args: readonly string[]): Promise<void> =>
  new Promise((resolve, reject) => {
    const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'pipe'], cwd: '/tmp' })
    child.stdout.resume()
    child.stderr.resume()
    child.once('error', reject)
    child.once('close', () => resolve())
  })

const timed = async (work: () => Promise<unknown>): Promise<number> => {
  const start = performance.now()
  await work()
  return performance.now() - start
}

/** What the table at the end has, a row for each program. */
const rows: { program: string; isolated: number; plain: number }[] = []

/** Both in turn, so that whatever disturbs the machine disturbs both. */
const compare = async (
  program: string,
  isolated: () => Promise<unknown>,
  plain: () => Promise<unknown>,
  rounds = ROUNDS,
): Promise<void> => {
  const times: { isolated: number[]; plain: number[] } = { isolated: [], plain: [] }
  for (let round = 0; round < rounds; round += 1) {
    // One after the other: this is about latency.
    // oxlint-disable-next-line no-await-in-loop
    times.isolated.push(await timed(isolated))
    // oxlint-disable-next-line no-await-in-loop
    times.plain.push(await timed(plain))
  }
  rows.push({ program, isolated: median(times.isolated), plain: median(times.plain) })
}

const heading = (title: string): void => console.log(`\n${title}\n${'-'.repeat(title.length)}`)

const indented = (text: string): string =>
  text
    .trimEnd()
    .split('\n')
    .map((line) => `  ${line}`)
    .join('\n')

const ending = (result: Result): string => {
  switch (result.status) {
    case 'exited':
      return result.exitCode === 0 ? 'It ended' : `It ended with exit code ${result.exitCode}`
    case 'limit-exceeded':
      return `It was killed at its limit ${result.limit}`
    default:
      return `It ended by ${result.status}`
  }
}

const show = (title: string, result: Result): void => {
  heading(title)
  for (const text of [result.stdout, result.stderr]) if (text !== '') console.log(indented(text))
  const { setupMs, execMs } = result.timings
  console.log(`${ending(result)}: set up in ${setupMs.toFixed(2)} ms, ran for ${execMs.toFixed(2)} ms.`)
}

const cell = (text: string): string => text.padStart(21)

const ms = (time: number): string => cell(`${time.toFixed(2)} ms`)

const table = (): void => {
  heading('How long each takes, from the call to the end of the program')
  const width = Math.max(...rows.map(({ program }) => program.length))
  console.log(`  ${''.padEnd(width)}${cell('nestbox, isolated')}${cell('child_process.spawn')}`)
  for (const { program, isolated, plain } of rows) {
    console.log(`  ${program.padEnd(width)}${ms(isolated)}${ms(plain)}`)
  }
  console.log(
    `Medians, both in turn. What is isolated has namespaces, a filter and limits of its own; the other has nothing.`,
  )
}

const demo = async (): Promise<void> => {
  const first = await timed(() => run('true'))
  console.log(`The first launch started the fork server and made the sandbox, in ${first.toFixed(0)} ms.`)

  const python = find('python3')
  if (python !== undefined) {
    show('What python3 sees in a sandbox', await run(python, ['-c', LOOK_AROUND]))
    const hello = ['-S', '-c', 'print(6 * 7)'] as const
    await compare(
      "python3 -c 'print(6 * 7)'",
      () => run(python, hello),
      () => bare(python, hello),
    )
  }

  show('A shell pipeline', await run('sh', ['-c', PIPELINE]))
  await compare(
    'a shell pipeline',
    () => run('sh', ['-c', PIPELINE]),
    () => bare('sh', ['-c', PIPELINE]),
  )

  if (find('gcc') !== undefined) await compileAndRun()

  await compare(
    '/bin/true',
    () => run('/bin/true', []),
    () => bare('/bin/true', []),
  )

  const blocked = await run('sh', ['-c', 'echo x > /file; cat /etc/shadow; ls /root /home; kill -9 1'])
  show('What a program may not do', blocked)
  show('An endless loop, with a limit of 200 ms', await run('sh', ['-c', 'while :; do :; done'], { timeout: 200 }))
  table()
}

/** The source goes in as a private file, the program comes out as an output, and goes into the next sandbox. */
const compileAndRun = async (): Promise<void> => {
  const host = mkdtempSync(path.join(tmpdir(), 'nestbox-demo-'))
  try {
    await using compiler = await Sandbox.create(policy('host-system').limits({ processes: 32 }))
    const compile = () =>
      compiler.run('gcc', ['-O1', '-o', '/tmp/hello', '/tmp/hello.c'], {
        files: { '/tmp/hello.c': HELLO_C },
        outputs: { program: { path: '/tmp/hello', maxBytes: '4MiB' } },
      })
    const compiled = await compile()
    show('gcc compiles a program', compiled)
    if (compiled.failed) return
    const [source, program] = [path.join(host, 'hello.c'), path.join(host, 'hello')]
    writeFileSync(source, HELLO_C)
    await compare('gcc', compile, () => bare('gcc', ['-O1', '-o', program, source]), ROUNDS_OF_GCC)

    await using runner = await Sandbox.create(
      policy('host-system').file('/opt/hello', compiled.outputs.program, { mode: 0o755 }),
    )
    show('And what it made runs in another sandbox', await runner.run('/opt/hello'))
    await compare(
      'what gcc made',
      () => runner.run('/opt/hello'),
      () => bare(program, []),
    )
  } finally {
    rmSync(host, { recursive: true, force: true })
  }
}

await demo()
