// `npm run demo`: runs real programs in sandboxes, prints what each of them saw and how long its launch took, next to
// child_process.spawn of the same program.

import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import path from 'node:path'

import { policy, type Result, run, Sandbox } from 'nestbox'

/** What a program can tell about where it is. */
const LOOK_AROUND = `
import os, socket
mounts = [line.split()[4] for line in open('/proc/self/mountinfo')]
print('pid        ', os.getpid())
print('uid, gid   ', os.getuid(), os.getgid())
print('hostname   ', socket.gethostname())
print('processes  ', ' '.join(sorted((p for p in os.listdir('/proc') if p.isdigit()), key=int)))
print('interfaces ', ' '.join(name for _, name in socket.if_nameindex()))
print('mounts     ', ' '.join(mounts))
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

/** Both in turn, so that whatever disturbs the machine disturbs both. */
const compare = async (isolated: () => Promise<unknown>, plain: () => Promise<unknown>): Promise<string> => {
  const times: { isolated: number[]; plain: number[] } = { isolated: [], plain: [] }
  for (let round = 0; round < ROUNDS; round += 1) {
    // One after the other: this is about latency.
    // oxlint-disable-next-line no-await-in-loop
    times.isolated.push(await timed(isolated))
    // oxlint-disable-next-line no-await-in-loop
    times.plain.push(await timed(plain))
  }
  const [ours, theirs] = [median(times.isolated), median(times.plain)]
  return `nestbox ${ours.toFixed(2)} ms, child_process.spawn ${theirs.toFixed(2)} ms (median of ${ROUNDS}, run to the end)`
}

const show = (title: string, result: Result): void => {
  console.log(`\n== ${title}`)
  if (result.stdout !== '') console.log(result.stdout)
  if (result.stderr !== '') console.log(result.stderr)
  if (result.status !== 'exited' || result.exitCode !== 0) console.log(`(${result.status}, failed: ${result.failed})`)
  console.log(`-- set up in ${result.timings.setupMs.toFixed(2)} ms, ran for ${result.timings.execMs.toFixed(2)} ms`)
}

const demo = async (): Promise<void> => {
  const first = await timed(() => run('true'))
  console.log(`The first launch started the fork server and built the sandbox: ${first.toFixed(1)} ms.`)

  const python = find('python3')
  if (python !== undefined) {
    show('python3 looks around', await run(python, ['-c', LOOK_AROUND]))
    const hello = ['-S', '-c', 'print(6 * 7)'] as const
    console.log(
      `-- python3 -c 'print(6 * 7)': ${await compare(
        () => run(python, hello),
        () => bare(python, hello),
      )}`,
    )
  }

  show('a shell pipeline', await run('sh', ['-c', PIPELINE]))
  console.log(
    `-- ${await compare(
      () => run('sh', ['-c', PIPELINE]),
      () => bare('sh', ['-c', PIPELINE]),
    )}`,
  )

  if (find('gcc') !== undefined) await compileAndRun()

  console.log(
    `\n== /bin/true\n-- ${await compare(
      () => run('/bin/true', []),
      () => bare('/bin/true', []),
    )}`,
  )

  const blocked = await run('sh', ['-c', 'echo x > /file; cat /etc/shadow; ls /root /home; kill -9 1'])
  show('what it may not do', blocked)
  const endless = await run('sh', ['-c', 'while :; do :; done'], { timeout: 200 })
  show(`an endless loop (limit: ${endless.status === 'limit-exceeded' ? endless.limit : 'none?'})`, endless)
}

/** The source goes in as a private file, the program comes out as an output, and goes into the next sandbox. */
const compileAndRun = async (): Promise<void> => {
  await using compiler = await Sandbox.create(policy('host-system').limits({ processes: 32 }))
  const compiled = await compiler.run('gcc', ['-O1', '-o', '/tmp/hello', '/tmp/hello.c'], {
    files: { '/tmp/hello.c': HELLO_C },
    outputs: { program: { path: '/tmp/hello', maxBytes: '4MiB' } },
  })
  show('gcc', compiled)
  if (compiled.failed) return
  await using runner = await Sandbox.create(
    policy('host-system').file('/opt/hello', compiled.outputs.program, { mode: 0o755 }),
  )
  show('what gcc made', await runner.run('/opt/hello'))
}

await demo()
