// The three descriptors in all their forms, with run().

import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  closeSync,
  constants,
  createReadStream,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  writeFileSync,
} from 'node:fs'
import { open, readFile } from 'node:fs/promises'
import { connect, createServer, type Socket } from 'node:net'
import path from 'node:path'
import { Readable } from 'node:stream'

import test from 'ava'

import { AbortError, ForkServer, learn, policy, RequestError, run, Sandbox, SpawnError, unsandboxed } from '../index.ts'
import { delay, openDescriptors, scratch, until } from './helpers.ts'
import { sh, withProbe } from './inside.ts'
import { descriptors } from './invariants/support.ts'

const MiB = 1024 ** 2

// ---- in -----------------------------------------------------------------------------------------------------------------

test('stdin is nothing by default', async (t) => {
  const { stdout } = await sh({ run }, 'readlink /proc/self/fd/0; cat | wc -c')
  t.is(stdout, '/dev/null\n0')
})

test('input: text, bytes, nothing', async (t) => {
  t.is((await run('cat', [], { input: 'grüße\n' })).stdout, 'grüße')
  const bytes = Uint8Array.from({ length: 256 }, (_, index) => index)
  t.deepEqual((await run('cat', [], { input: bytes, encoding: 'buffer' })).stdout, bytes)
  t.is((await run('cat', [], { input: '' })).stdout, '')
  t.is((await run('cat', [], { stdin: 'pipe' })).stdout, '', 'run() has nobody to write to it')
})

test('input: more than a pipe holds, both ways at once', async (t) => {
  for (const size of [300_000, 5 * MiB]) {
    const input = Buffer.alloc(size, 'abcdefghij')
    // oxlint-disable-next-line no-await-in-loop
    const { stdout } = await run('cat', [], { input, encoding: 'buffer' })
    t.true(input.equals(stdout), String(size))
  }
  const text = 'grüße\n'.repeat(MiB / 8)
  t.is((await run('cat', [], { input: text, stripFinalNewline: false })).stdout, text)
})

test('input: a program that does not read is no error', async (t) => {
  for (const size of [300_000, 3 * MiB]) {
    const input = Buffer.alloc(size, 'x')
    // oxlint-disable no-await-in-loop
    t.like(await run('true', [], { input }), { status: 'exited', exitCode: 0 })
    t.is((await run('head', ['-c', '3'], { input })).stdout, 'xxx')
    t.like(await run('sleep', ['60'], { input, timeout: 200 }), { timedOut: true })
    // oxlint-enable no-await-in-loop
  }
})

test('input: a stream', async (t) => {
  const input = Readable.from(['one\n', Buffer.from('two\n'), 'x'.repeat(300_000)])
  t.is((await run('wc', ['-c'], { input })).stdout, String(300_008))
})

test('input: a stream that fails is an error, and the program is dead', async (t) => {
  const cause = new Error('broken on purpose')
  const input = new Readable({
    read() {
      this.push('something')
      this.destroy(cause)
    },
  })
  const error = await t.throwsAsync(run('sleep', ['60'], { input }), { instanceOf: RequestError })
  t.is(error?.cause, cause)
})

test('input: a stream that fails before its turn is an error, and nothing is launched', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system'), { maxConcurrency: 1 })
  const first = sandbox.run('sleep', ['0.3'])
  const input = createReadStream('/none')
  const queued = await t.throwsAsync(sandbox.run('cat', [], { input }), { instanceOf: RequestError })
  t.like(queued, { code: 'ERR_NESTBOX_INPUT', cause: { code: 'ENOENT' } })
  // It leaves the queue at once.
  t.like(sandbox.stats(), { running: 1, queued: 0 })
  await first
  t.is(sandbox.stats().launched, 1)
  const opening = sandbox.run('cat', [], {
    input: createReadStream('/none'),
    stdout: { file: path.join(scratch(t), 'out') },
  })
  t.is((await t.throwsAsync(opening, { instanceOf: RequestError }))?.code, 'ERR_NESTBOX_INPUT')
})

test('input: a stream that fails while the policy is looked up', async (t) => {
  const input = new Readable({ read() {} })
  // Nobody has prepared this policy, so that the launch waits.
  const lesson = learn('cat', [], { input })
  input.destroy(new Error('broken on purpose'))
  const error = await t.throwsAsync(lesson, { instanceOf: RequestError })
  t.is(error?.code, 'ERR_NESTBOX_INPUT')
  t.regex(error?.message ?? '', /nothing was launched/)
})

test('input: a stream that has ended, failed, or was destroyed is no empty one', async (t) => {
  const cause = new Error('broken on purpose')
  const failed = new Readable({ read() {} }).on('error', () => {}).destroy(cause)
  await delay(10)
  const destroyed = new Readable({ read() {} }).destroy()
  const used = Readable.from(['abc'])
  for await (const _ of used);
  // One whose error is still to be emitted has nobody else to listen to it.
  for (const make of [() => failed, () => new Readable().destroy(cause), () => destroyed, () => used]) {
    const input = make()
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(run('wc', ['-c'], { input }), { instanceOf: RequestError })
    t.like(error, { code: 'ERR_NESTBOX_INPUT', issues: [{ path: ['input'] }] })
    if (input.errored) t.is(error?.cause, cause)
  }
  t.is((await run('wc', ['-c'], { input: Readable.from([]) })).stdout, '0')
})

test('input: a stream that is destroyed while it waits', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system'), { maxConcurrency: 1 })
  const first = sandbox.run('sleep', ['0.2'])
  const input = new Readable({ read() {} })
  const queued = sandbox.run('cat', [], { input })
  input.destroy()
  t.is((await t.throwsAsync(queued, { instanceOf: RequestError }))?.code, 'ERR_NESTBOX_INPUT')
  await first
})

test('input: a stream of something else than bytes is an error', async (t) => {
  for (const chunks of [['x', 5], [{ a: 1 }], [undefined]]) {
    const input = Readable.from(chunks)
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(run('sleep', ['60'], { input }), { instanceOf: RequestError })
    t.is(error?.code, 'ERR_NESTBOX_INPUT')
    t.true(error?.cause instanceof TypeError)
    t.true(input.destroyed)
  }
  const bytes = Readable.from(['é', new Uint8Array([1, 2]), Buffer.from('x'), ''])
  t.is((await run('cat', [], { input: bytes })).stdout, 'é\x01\x02x')
})

test('input: the stream of a launch that is refused is let go of', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system'), { maxConcurrency: 1, maxQueue: 1 })
  const first = await sandbox.spawn('cat', [], { stdin: 'pipe' })
  const controller = new AbortController()
  const refused = async (...options: Parameters<typeof sandbox.run>[2][]): Promise<void> => {
    for (const option of options) {
      const input = createReadStream('/etc/passwd')
      const launch = sandbox.run('cat', [], { ...option, input })
      controller.abort()
      // oxlint-disable-next-line no-await-in-loop
      await t.throwsAsync(launch)
      // oxlint-disable-next-line no-await-in-loop
      t.true(await until(() => input.closed))
    }
  }
  // Aborted while it waits, and before; and one that makes no sense.
  await refused({ signal: controller.signal }, { signal: controller.signal }, { timeout: -1 }, { stdin: 'ignore' })
  const waiting = sandbox.run('true')
  await refused({})
  first.stdin.end()
  await Promise.all([first.result, waiting])
  await sandbox.close()
  await refused({})
})

test('input: a stream that never ends does not keep the program', async (t) => {
  const input = new Readable({
    read() {
      this.push(Buffer.alloc(65_536))
    },
  })
  t.is((await run('head', ['-c', '10'], { input, encoding: 'buffer' })).stdout.length, 10)
})

test('stdin: a file, a descriptor, a file handle', async (t) => {
  const file = path.join(scratch(t), 'input')
  writeFileSync(file, 'from a file\n')
  t.is((await run('cat', [], { stdin: { file } })).stdout, 'from a file')
  const fd = openSync(file, 'r')
  t.is((await run('cat', [], { stdin: { fd } })).stdout, 'from a file')
  // The caller keeps its own.
  closeSync(fd)
  const handle = await open(file)
  t.is((await run('cat', [], { stdin: handle })).stdout, 'from a file')
  await handle.close()
})

test('stdin: a file that is not there', async (t) => {
  const file = path.join(scratch(t), 'none')
  const error = await t.throwsAsync(run('cat', [], { stdin: { file } }), { instanceOf: SpawnError })
  t.like(error, { errnoName: 'ENOENT', path: file, step: 'open-stdio' })
})

test('a FIFO that a program left in the place of a file is refused, and nobody waits for its other end', async (t) => {
  const directory = scratch(t)
  chmodSync(directory, 0o777)
  const sandbox = await Sandbox.create(policy('host-system').bind(directory, '/job', { writable: true }))
  await sh(sandbox, 'mkfifo -m 666 /job/fifo')
  const file = path.join(directory, 'fifo')
  // As many as the pool has threads: the host's own files would have to wait for them.
  const launches = Array.from({ length: 4 }, () => sandbox.run('cat', [], { stdin: { file } }))
  const ended = Promise.allSettled(launches)
  t.truthy(await readFile('/etc/passwd'))
  const outcomes = [...(await ended), ...(await Promise.allSettled([sandbox.run('true', [], { stdout: { file } })]))]
  for (const outcome of outcomes) {
    const reason: unknown = outcome.status === 'rejected' ? outcome.reason : undefined
    t.true(reason instanceof SpawnError)
    const hint = 'If it is a FIFO that you mean, open it yourself and pass { fd }'
    t.like(reason, { step: 'open-stdio', path: file, hint })
  }
  // One with a reader can be opened for writing, and is refused all the same.
  const fd = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK)
  await t.throwsAsync(run('true', [], { stderr: { file, append: true } }), { message: /it is a FIFO/ })
  t.is((await run('cat', [], { stdin: { fd } })).stdout, '', 'unless the caller has opened it')
  closeSync(fd)
})

test('a directory is refused as a file, by its name', async (t) => {
  const file = scratch(t)
  for (const launcher of [{ run }, unsandboxed]) {
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(launcher.run('cat', [], { stdin: { file }, env: {} }), { instanceOf: SpawnError })
    t.like(error, { step: 'open-stdio', path: file, hint: 'Name a file in it' })
    t.regex(error?.message ?? '', /it is a directory/)
  }
})

test('a descriptor that is not open is said to be none, and nothing of limits', async (t) => {
  const error = await t.throwsAsync(run('cat', [], { stdin: { fd: 9999 } }), { instanceOf: RequestError })
  t.regex(error?.message ?? '', /fd 9999 \(for fd 0\).*EBADF.*not open in this process/)
  t.notRegex(error?.message ?? '', /ulimit/)
})

test('a file and a device block, as a program expects', async (t) => {
  const file = path.join(scratch(t), 'log')
  // The last digits but three of the flags: O_NONBLOCK is 04000.
  const script = String.raw`for fd in 0 1 2; do sed -n 's/^flags:\s*//p' /proc/self/fdinfo/$fd; done > /tmp/flags`
  const { outputs } = await sh({ run }, script, {
    stdin: { file: '/dev/zero' },
    stdout: { file, append: true },
    stderr: { file: '/dev/null' },
    outputs: { flags: { path: '/tmp/flags', maxBytes: 100 } },
  })
  const flags = Buffer.from(outputs.flags).toString().trim().split('\n')
  t.is(flags.length, 3)
  for (const value of flags) t.is(Number.parseInt(value, 8) & constants.O_NONBLOCK, 0, value)
})

// ---- out ----------------------------------------------------------------------------------------------------------------

test('stdout and stderr are captured apart, with their bytes', async (t) => {
  const result = await sh({ run }, 'echo out; echo err >&2; printf more')
  t.like(result, { stdout: 'out\nmore', stderr: 'err', stdoutBytes: 8, stderrBytes: 4 })
})

test('the forms of text', async (t) => {
  const script = String.raw`printf 'a\r\nb\n\n'`
  t.is((await sh({ run }, script)).stdout, 'a\r\nb\n')
  t.is((await sh({ run }, script, { stripFinalNewline: false })).stdout, 'a\r\nb\n\n')
  t.deepEqual((await sh({ run }, script, { lines: true })).stdout, ['a', 'b', ''])
  t.deepEqual((await sh({ run }, script, { encoding: 'buffer' })).stdout, new Uint8Array(Buffer.from('a\r\nb\n\n')))
  t.is((await sh({ run }, String.raw`printf '\377\376x'`)).stdout, '\uFFFD\uFFFDx')
  const unbuffered = await sh({ run }, script, { buffer: false })
  t.is(unbuffered.stdout, undefined)
  t.is(unbuffered.stdoutBytes, 6)
})

test('ignore', async (t) => {
  const result = await sh({ run }, 'readlink /proc/self/fd/5 5>&1 >&2; echo lost', { stdout: 'ignore' })
  t.is(result.stdout, undefined)
  t.is(result.stderr, '/dev/null')
})

test('files, truncated or appended to', async (t) => {
  const file = path.join(scratch(t), 'log')
  writeFileSync(file, 'what was there before, which is longer\n')
  const first = await run('echo', ['first'], { stdout: { file } })
  t.is(first.stdout, undefined)
  t.is(readFileSync(file, 'utf8'), 'first\n')
  await sh({ run }, 'echo second; echo error >&2', { stdout: { file, append: true }, stderr: { file, append: true } })
  t.is(readFileSync(file, 'utf8'), 'first\nsecond\nerror\n')
  const handle = await open(file, 'w')
  await run('echo', ['third'], { stdout: handle })
  await run('echo', ['fourth'], { stdout: { fd: handle.fd } })
  await handle.close()
  t.is(readFileSync(file, 'utf8'), 'third\nfourth\n')
})

test('the files of a launch that is not made are left alone', async (t) => {
  const directory = scratch(t)
  const [kept, never] = ['kept', 'never'].map((name) => path.join(directory, name)) as [string, string]
  writeFileSync(kept, 'kept')
  const server = await ForkServer.start()
  const sandbox = await Sandbox.create(policy('host-system'), { server })
  const controller = new AbortController()
  const aborted = sandbox.run('true', [], {
    stdout: { file: kept },
    stderr: { file: never },
    signal: controller.signal,
  })
  controller.abort()
  await t.throwsAsync(aborted, { instanceOf: AbortError })
  // Another one fails at its second file.
  const failed = sandbox.run('true', [], { stdout: { file: kept }, stderr: { file: path.join(never, 'none') } })
  await t.throwsAsync(failed, { instanceOf: SpawnError })
  // What was under way when it was aborted is over then, too.
  await server.close()
  t.is(readFileSync(kept, 'utf8'), 'kept')
  t.false(existsSync(never))
  t.true(await until(() => !descriptors('self').some((descriptor) => descriptor.includes(directory))))
})

test("stderr: 'stdout' is one stream in the true order", async (t) => {
  const script = 'for i in 1 2 3 4 5 6 7 8 9; do echo o$i; echo e$i >&2; done'
  const result = await sh({ run }, script, { stderr: 'stdout', lines: true })
  t.deepEqual(
    result.stdout,
    [1, 2, 3, 4, 5, 6, 7, 8, 9].flatMap((index) => [`o${index}`, `e${index}`]),
  )
  t.is(result.stderr, undefined)
  const file = path.join(scratch(t), 'both')
  await sh({ run }, script, { stdout: { file }, stderr: 'stdout' })
  t.deepEqual(readFileSync(file, 'utf8').trim().split('\n'), result.stdout)
})

test('/dev/stdout and /proc/self/fd/1 can be opened again', async (t) => {
  const result = await sh(
    { run },
    'echo a > /dev/stdout; echo b > /dev/fd/1; echo c > /proc/self/fd/1; echo d > /dev/stderr',
  )
  t.is(result.stdout, 'a\nb\nc')
  t.is(result.stderr, 'd')
})

test('/dev/stdin can be opened again', async (t) => {
  t.is((await run('cat', ['/dev/stdin'], { input: 'x' })).stdout, 'x')
})

test('64 MiB, whole', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system').limits({ output: '70MiB' }))
  const script = 'head -c 33554432 /dev/zero & head -c 33554432 /dev/zero >&2; wait'
  const { stdout, stderr, stdoutBytes, stderrBytes, status } = await sh(sandbox, script, { encoding: 'buffer' })
  t.is(status, 'exited')
  t.deepEqual(
    [stdout.length, stderr.length, stdoutBytes, stderrBytes],
    Array.from({ length: 4 }, () => 32 * MiB),
  )
})

test('much output, byte for byte, also where only its head or its tail is kept', async (t) => {
  const numbers = ['1', '6000000']
  const expected = execFileSync('seq', numbers, { maxBuffer: 64 * MiB })
  const compare = async (limit: number, onOverflow: 'keep-head' | 'keep-tail'): Promise<void> => {
    const sandbox = await Sandbox.create(policy('host-system').limits({ output: limit }))
    const { stdout, stdoutBytes, status } = await sandbox.run('seq', numbers, { encoding: 'buffer', onOverflow })
    const kept = onOverflow === 'keep-head' ? expected.subarray(0, limit) : expected.subarray(-limit)
    t.deepEqual(
      [status, stdoutBytes, kept.equals(stdout)],
      ['exited', expected.length, true],
      `${onOverflow} of ${limit}`,
    )
  }
  const limits = [64 * MiB, 41 * MiB + 7, 3 * MiB + 1]
  await Promise.all(limits.flatMap((limit) => [compare(limit, 'keep-head'), compare(limit, 'keep-tail')]))
})

test('a background process that holds the pipe does not hold the result', async (t) => {
  const result = await sh({ run }, 'sleep 60 & echo started')
  t.like(result, { status: 'exited', stdout: 'started' })
})

// ---- which descriptors --------------------------------------------------------------------------------------------------

test('a program has its own three descriptors, and no other', async (t) => {
  const directory = scratch(t)
  const opened = Array.from({ length: 40 }, () => openSync(directory, 'r'))
  t.teardown(() => {
    for (const fd of opened) closeSync(fd)
  })
  const sandbox = await Sandbox.create(withProbe(policy('host-system')))
  t.is((await sandbox.run('/probe', ['open-fds'])).stdout, '0,1,2')
  t.is((await sandbox.run('/probe', ['open-fds'], { stdio: ['ignore', 'pipe', 'ignore'] })).stdout, '0,1,2')
})

test('more descriptors, where they are asked for', async (t) => {
  const directory = scratch(t)
  const file = path.join(directory, 'file')
  writeFileSync(file, 'three\n')
  const fd = openSync(file, 'r')
  t.teardown(() => closeSync(fd))
  const sandbox = await Sandbox.create(withProbe(policy('host-system')))
  const stdio = ['ignore', 'pipe', 'pipe', { fd }, 'ignore', { fd }] as const
  t.is((await sandbox.run('/probe', ['open-fds'], { stdio })).stdout, '0,1,2,3,5')
  t.is((await sandbox.run('cat', ['/dev/fd/3'], { stdio })).stdout, 'three')
})

test('what leads out is refused: directories, sockets, O_PATH; unless it is meant', async (t) => {
  const directory = scratch(t)
  const server = createServer((socket) => socket.resume())
  t.teardown(() => server.close())
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve)
  })
  const socket = await new Promise<Socket>((resolve) => {
    const made = connect((server.address() as { port: number }).port, '127.0.0.1', () => resolve(made))
  })
  t.teardown(() => socket.destroy())
  const socketFd = (socket as unknown as { _handle: { fd: number } })._handle.fd
  mkdirSync(path.join(directory, 'd'))
  const directoryFd = openSync(path.join(directory, 'd'), 'r')
  const pathFd = openSync('/etc/passwd', 0o10000000)
  t.teardown(() => {
    closeSync(directoryFd)
    closeSync(pathFd)
  })
  for (const fd of [directoryFd, pathFd, socketFd]) {
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(run('true', [], { stdin: { fd } }), { instanceOf: RequestError })
    t.is(error?.code, 'ERR_NESTBOX_UNSAFE_FD')
    // oxlint-disable-next-line no-await-in-loop
    t.is((await run('true', [], { stdin: { fd, unsafe: true } })).status, 'exited')
  }
  const closed = await t.throwsAsync(run('true', [], { stdin: { fd: 987_654 } }))
  t.regex((closed as { code?: string }).code ?? '', /^ERR_NESTBOX_/)
})

test.serial('no descriptor is left open, whatever happens', async (t) => {
  const directory = scratch(t)
  const file = path.join(directory, 'file')
  const rounds = async () => {
    await run('cat', [], { input: 'x' })
    await sh({ run }, 'echo x; echo y >&2', { stdout: { file }, stderr: 'stdout' })
    await run('cat', [], { stdin: { file } })
    await t.throwsAsync(run('/none', [], { stdout: { file } }))
    await t.throwsAsync(run('true', [], { stdin: { file: path.join(directory, 'none') } }))
    await t.throwsAsync(run('true', [], { cwd: '/none', input: 'x' }))
    await run('sleep', ['9'], { timeout: 20 })
  }
  // The first ones fill what is kept ready.
  await rounds()
  await rounds()
  const before = openDescriptors().size
  await rounds()
  await rounds()
  // Whatever other tests of this file hold at this moment has nothing to do with it: this one runs alone.
  t.true(openDescriptors().size <= before, `${before} before, ${openDescriptors().size} after`)
})
