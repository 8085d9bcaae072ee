// Filters that a template takes on, for all that is cloned from it: its own calls and those of its inits pass by the cookie that
// they carry. One that did not carry it would show here: what is not memory's or a descriptor's end kills.

import { chmodSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'

import {
  ForkServer,
  policy,
  Sandbox,
  syscallFilter,
  type PolicyBuilder,
  type LaunchOptions,
  type SandboxOptions,
  type SyscallFilter,
} from '../index.ts'
import { compileBare, scratch } from './helpers.ts'
import { family, statusLine } from './invariants/support.ts'

const source = path.join(path.dirname(fileURLToPath(import.meta.url)), 'syscalls.c')

/** What the C library does for a template and its inits (`LIBRARY_CALLS` in crates/policy/src/filter.rs), and what the probe prints with. */
const LIBRARY = ['brk', 'clock_gettime', 'close', 'madvise', 'mmap', 'mprotect', 'mremap', 'munmap'] as const
const tightest = (...more: readonly string[]) =>
  syscallFilter()
    .allow(...LIBRARY, 'write', 'exit_group', ...more)
    .otherwise('kill')

const serve = async (
  t: ExecutionContext,
  filter: SyscallFilter | 'default' | 'unfiltered' | 'strict',
  options: SandboxOptions = {},
  more: (from: PolicyBuilder) => PolicyBuilder = (from) => from,
) => {
  const directory = scratch(t)
  const probe = compileBare(source, directory)
  writeFileSync(path.join(directory, 'bound'), 'x')
  chmodSync(directory, 0o755)
  const server = await ForkServer.start()
  const from = policy().bind(probe, '/probe').syscalls(filter).tmpfs('/tmp').mountPoint('/in')
  const sandbox = await Sandbox.create(more(from), { ...options, server })
  t.teardown(() => server.destroy())
  return { directory, sandbox, server }
}

const templatesOf = ({ pid }: ForkServer): number[] =>
  family(pid)
    .filter(({ name, parent }) => name === 'nestbox-templat' && parent === pid)
    .map((template) => template.pid)

/** The mode of seccomp(2) that a process is in; 2: it is under a filter. */
const modeOf = (pid: number): string => statusLine(pid, 'Seccomp')

/** The same of each template. */
const ofTemplate = (server: ForkServer): string[] => templatesOf(server).map(modeOf)

/** A crash is seen, the stack included. */
const crashes = async (t: ExecutionContext, sandbox: Sandbox): Promise<void> => {
  const result = await sandbox.run('/probe', ['fault'], { crashReport: true })
  t.like(result, { status: 'signaled', signal: 'SIGSEGV' })
  const crash = result.status === 'signaled' ? result.crash : undefined
  t.like(crash, { problem: undefined, faultAddress: '0x10' })
  t.is(crash?.threads.length, 1)
  t.false(crash?.truncated.stacks)
}

for (const warm of [0, 1])
  test(`every kind of launch works under the tightest filter, warm: ${warm}`, async (t) => {
    const { directory, sandbox, server } = await serve(t, tightest(), { warm })
    const ended = { status: 'exited', exitCode: 0, stdout: 'done', stderr: '' } as const
    const nothing = ['each', '1', '0']
    const run = (options: LaunchOptions = {}) => sandbox.run('/probe', nothing, options)

    t.like(await run(), ended)
    t.deepEqual(ofTemplate(server), ['2'])
    const [template = 0] = templatesOf(server)
    t.like(await run({ stdout: 'ignore' }), { ...ended, stdout: undefined })
    t.like(await run({ binds: { '/in': directory } }), ended)
    const outputs = {
      out: { path: '/tmp/a/b', maxBytes: 100_000 },
      none: { path: '/tmp/none', maxBytes: 100, optional: true },
    }
    for (const content of ['kept', 'k'.repeat(100_000)]) {
      // oxlint-disable-next-line no-await-in-loop
      const withFiles = await sandbox.run('/probe', nothing, { files: { '/tmp/a/b': content }, outputs })
      t.like(withFiles, ended)
      t.is(Buffer.from(withFiles.outputs.out).toString(), content)
    }
    t.like(await run({ crashReport: true, limits: { cpuTime: 10_000, processes: 3, fileSize: 1000 } }), ended)
    t.like(await run({ input: 'x'.repeat(100_000) }), ended)
    await t.throwsAsync(sandbox.run('/missing'), { code: 'ERR_NESTBOX_EXEC' })
    await t.throwsAsync(run({ cwd: '/missing' }), { code: 'ERR_NESTBOX_SPAWN' })
    // More than a parked process takes, and more than the arena holds.
    t.like(await sandbox.run('/probe', ['each', '1', '0', ...Array<string>(5000).fill('77')]), ended)
    t.like(
      await run({ env: Object.fromEntries(Array.from({ length: 3000 }, (_, index) => [`V${index}`, 'v'])) }),
      ended,
    )

    const spin = ['spin']
    t.like(await sandbox.run('/probe', spin, { timeout: 100 }), { status: 'limit-exceeded', limit: 'wallTime' })
    t.like(await sandbox.run('/probe', spin, { limits: { cpuTime: 60 } }), {
      status: 'limit-exceeded',
      limit: 'cpuTime',
    })
    const program = await sandbox.spawn('/probe', spin)
    await program.setLimits({ wallTime: 60_000, cpuTime: 50_000, processes: 2 })
    t.true(program.kill('SIGTERM'))
    t.like(await program.result, { status: 'killed', signal: 'SIGTERM' })
    await using talking = await sandbox.spawn('/probe', spin, { comms: true, stdin: 'pipe' })
    t.true(talking.kill())
    t.like(await talking.result, { status: 'killed' })

    await crashes(t, sandbox)
    // What is not allowed kills all the same.
    t.is((await sandbox.run('/probe', ['call', process.arch === 'x64' ? '39' : '172'])).status, 'violation')
    // By its number: crash reports have a template of their own, which may come first.
    t.is(modeOf(template), '2', 'and not because there is another one')
  })

test('so does one that goes on for longer, whose init has settled', async (t) => {
  const { sandbox } = await serve(t, tightest('ppoll'))
  // With no descriptors and no time-out.
  await using program = await sandbox.spawn('/probe', ['call', process.arch === 'x64' ? '271' : '73'])
  await new Promise((resolve) => {
    setTimeout(resolve, 50)
  })
  t.true(program.kill('SIGINT'))
  t.like(await program.result, { status: 'killed', signal: 'SIGINT' })
})

test('with no proc, no dev and its own root, too', async (t) => {
  const { sandbox, server } = await serve(t, tightest(), { warm: 0 }, (from) => from.proc('none'))
  for (const options of [{}, { limits: { cpuTime: 5000 } }, { crashReport: true }]) {
    // oxlint-disable-next-line no-await-in-loop
    t.like(await sandbox.run('/probe', ['each', '1', '0'], options), { status: 'exited', stdout: 'done' })
  }
  // Alone until a crash, whose report has a template of its own.
  t.deepEqual(ofTemplate(server), ['2'])
  await crashes(t, sandbox)
})

test("what listens, or refuses what the template needs, is each launch's own", async (t) => {
  const less = LIBRARY.filter((name) => name !== 'munmap')
  const own = [
    syscallFilter()
      .allow(...less, 'write', 'exit_group')
      .otherwise('kill'),
    syscallFilter().allow('write', 'exit_group').otherwise({ errno: 'EPERM' }),
    syscallFilter()
      .allow(...LIBRARY, 'write', 'exit_group')
      .otherwise('report'),
    syscallFilter().preset('strict'),
  ]
  for (const filter of own) {
    // oxlint-disable-next-line no-await-in-loop
    const { sandbox, server } = await serve(t, filter)
    for (let round = 0; round < 2; round += 1) {
      // oxlint-disable-next-line no-await-in-loop
      t.like(await sandbox.run('/probe', ['each', '1', '0']), { status: 'exited', stdout: 'done' })
    }
    t.deepEqual(ofTemplate(server), ['0'])
  }
  const { sandbox, server } = await serve(t, 'unfiltered')
  t.like(await sandbox.run('/probe', ['each', '1', '0']), { status: 'exited', stdout: 'done' })
  t.deepEqual(ofTemplate(server), ['0'])
})

test('a sandboxee is under one filter, and knows no cookie', async (t) => {
  const { sandbox, server } = await serve(t, 'default', { warm: 0 }, () => policy('host-system'))
  const { stdout } = await sandbox.run('grep', ['^Seccomp', '/proc/self/status'])
  t.regex(stdout, /^Seccomp:\s+2$/m)
  t.regex(stdout, /^Seccomp_filters:\s+1$/m)
  t.deepEqual(ofTemplate(server), ['2'])
})
