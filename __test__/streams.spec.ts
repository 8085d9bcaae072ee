// spawn(): streams while the program runs, lines, the comms channel, signals, disposal.

import { once } from 'node:events'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'

import test from 'ava'

import { ExecError, policy, RequestError, Sandbox } from '../index.ts'
import { runs, until } from './helpers.ts'
import { firstLine, withProbe } from './inside.ts'

const MiB = 1024 ** 2

const sandbox = () => Sandbox.create(withProbe(policy('host-system')))

const text = async (stream: AsyncIterable<Buffer>): Promise<string> => {
  const chunks: Buffer[] = []
  for await (const chunk of stream) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}

// ---- streams ------------------------------------------------------------------------------------------------------------

test('a dialogue with a running program', async (t) => {
  const cat = await (await sandbox()).spawn('cat', [], { stdin: 'pipe' })
  t.true(runs(cat.pid))
  t.is((cat as { then?: unknown }).then, undefined)
  const lines = cat.lines()[Symbol.asyncIterator]()
  for (const word of ['one', 'two', 'three']) {
    cat.stdin.write(`${word}\n`)
    // oxlint-disable-next-line no-await-in-loop
    t.deepEqual(await lines.next(), { value: word, done: false })
  }
  cat.stdin.end()
  t.true((await lines.next()).done)
  const result = await cat.result
  t.like(result, { status: 'exited', exitCode: 0, stdout: undefined, stdoutBytes: 14 })
})

test('stdout and stderr are streams of their own', async (t) => {
  const program = await (await sandbox()).spawn('sh', ['-c', 'echo out; echo err >&2'])
  t.is(program.stdin, undefined)
  t.deepEqual(await Promise.all([text(program.stdout), text(program.stderr)]), ['out\n', 'err\n'])
  t.deepEqual(program.stdio.slice(1, 3), [program.stdout, program.stderr])
})

test('streams that are looked at only after the end still have it all', async (t) => {
  const program = await (await sandbox()).spawn('sh', ['-c', 'echo out; echo err >&2'])
  t.is((await program.result).status, 'exited')
  await sleep(20)
  t.is(await text(program.stdout), 'out\n')
  t.is(await text(program.stderr), 'err\n')
})

test('a stdin that the input is written to is nobody else’s', async (t) => {
  for (const input of ['x', Readable.from(['x'])]) {
    // oxlint-disable-next-line no-await-in-loop
    const cat = await (await sandbox()).spawn('cat', [], { stdin: 'pipe', input, buffer: true })
    t.is(cat.stdin, undefined)
    // oxlint-disable-next-line no-await-in-loop
    t.is((await cat.result).stdout, 'x')
  }
})

test('buffer: true keeps the output for the result as well', async (t) => {
  const program = await (await sandbox()).spawn('sh', ['-c', 'echo out; echo err >&2'], { buffer: true })
  const result = await program.result
  t.like(result, { stdout: 'out', stderr: 'err' })
})

test('what is not a pipe is no stream', async (t) => {
  const program = await (await sandbox()).spawn('true', [], { stdout: 'ignore', stderr: 'ignore' })
  t.is(program.stdout, undefined)
  t.is(program.stderr, undefined)
  t.throws(() => program.lines(), { instanceOf: RequestError })
  await program.result
})

test('a reader that does not read stops the program, not the host, and takes no memory', async (t) => {
  const wide = await Sandbox.create(withProbe(policy('host-system')).limits({ output: '512MiB' }))
  const program = await wide.spawn('/probe', ['flood', '1', String(256 * MiB), 'x'], { stderr: 'ignore' })
  // Time for far more than a pipe to arrive, if anything took it.
  await sleep(300)
  t.true(program.stdout.readableLength < 2 * MiB, String(program.stdout.readableLength))
  const before = process.memoryUsage().arrayBuffers
  let bytes = 0
  let most = 0
  for await (const chunk of program.stdout) {
    bytes += (chunk as Buffer).length
    most = Math.max(most, process.memoryUsage().arrayBuffers - before)
    if (bytes > 32 * MiB) break
    if (bytes % (4 * MiB) < 65_536) await sleep(1)
  }
  t.true(most < 64 * MiB, `${most} bytes were held at one time`)
  // Leaving the loop has closed the pipe.
  t.like(await program.result, { status: 'signaled', signal: 'SIGPIPE' })
})

test('a kill that comes when the program has just ended', async (t) => {
  const box = await sandbox()
  for (let turn = 0; turn < 30; turn += 1) {
    // oxlint-disable-next-line no-await-in-loop
    const program = await box.spawn('/probe', ['exit', '3'])
    if (turn % 3 > 0) program.kill('SIGTERM')
    program.kill(turn % 2 === 0 ? 'SIGKILL' : 'SIGUSR1')
    // oxlint-disable-next-line no-await-in-loop
    const { status } = await program.result
    t.true(status === 'exited' || status === 'killed', status)
  }
})

test('every byte comes through, in order', async (t) => {
  const wide = await Sandbox.create(policy('host-system').limits({ output: '64MiB' }))
  const program = await wide.spawn('seq', ['1000000'])
  let next = 1
  for await (const line of program.lines()) {
    if (Number(line) !== next) {
      t.is(line, String(next))
      break
    }
    next += 1
  }
  t.is(next, 1_000_001)
  t.is((await program.result).stdoutBytes, 6_888_896)
})

// ---- lines --------------------------------------------------------------------------------------------------------------

test('lines: left and taken up again, from both streams', async (t) => {
  const program = await (await sandbox()).spawn('sh', ['-c', 'seq 5; echo err >&2'])
  const seen: string[] = []
  for await (const line of program.lines()) {
    seen.push(line)
    if (line === '2') break
  }
  for await (const line of program.lines()) seen.push(line)
  t.deepEqual(seen, ['1', '2', '3', '4', '5'])
  for await (const line of program.lines({ from: 'stderr' })) t.is(line, 'err')
})

test('lines: an endless line comes in pieces', async (t) => {
  const program = await (await sandbox()).spawn('sh', ['-c', 'head -c 25 /dev/zero | tr "\\0" x; echo; echo end'])
  const seen: string[] = []
  for await (const line of program.lines({ maxLength: 10 })) seen.push(line)
  t.deepEqual(seen, ['x'.repeat(10), 'x'.repeat(10), 'x'.repeat(5), 'end'])
})

// ---- comms --------------------------------------------------------------------------------------------------------------

const ECHO = `
import socket
s = socket.socket(fileno=1023)
while data := s.recv(65536):
    s.sendall(data.upper())
`

test('comms: a duplex channel at descriptor 1023', async (t) => {
  const program = await (await sandbox()).spawn('python3', ['-c', ECHO], { comms: true })
  const { comms } = program
  comms.write('hello ')
  comms.end('world')
  t.is(await text(comms), 'HELLO WORLD')
  t.like(await program.result, { status: 'exited', exitCode: 0 })
})

test('comms: nothing is lost of what came before the end', async (t) => {
  const source = 'import os; [os.write(1023, b"x" * 1000) for _ in range(50)]'
  const program = await (await sandbox()).spawn('python3', ['-c', source], { comms: true })
  t.is((await text(program.comms)).length, 50_000)
  t.is((await program.result).status, 'exited')
})

test('more descriptors are duplex streams', async (t) => {
  const stdio = ['ignore', 'pipe', 'pipe', 'pipe'] as const
  const program = await (await sandbox()).spawn('sh', ['-c', 'read line <&3; echo "got $line" >&3'], { stdio })
  const channel = program.stdio[3] as NodeJS.ReadWriteStream
  channel.write('something\n')
  const [data] = (await once(channel, 'data')) as [Buffer]
  t.is(data.toString(), 'got something\n')
  t.is((await program.result).status, 'exited')
})

// ---- signals and ends ---------------------------------------------------------------------------------------------------

test('kill() takes the whole nest', async (t) => {
  const program = await (
    await sandbox()
  ).spawn('sh', ['-c', 'trap "" TERM; (trap "" TERM; sleep 100) & echo up; sleep 100'])
  t.is(await firstLine(program), 'up')
  t.true(program.kill())
  const result = await program.result
  t.like(result, { status: 'killed', signal: 'SIGKILL', failed: true, timedOut: false, isCanceled: false })
  t.false(runs(result.pid))
  t.false(program.kill(), 'there is nothing left to kill')
  t.false(program.kill('SIGTERM'))
})

test('another signal goes to the program, which may see to it', async (t) => {
  const script = 'trap "echo bye; exit 3" TERM; echo up; while :; do sleep 0.02; done'
  const program = await (await sandbox()).spawn('sh', ['-c', script])
  const lines = program.lines()[Symbol.asyncIterator]()
  await lines.next()
  t.true(program.kill('SIGTERM'))
  t.is((await lines.next()).value, 'bye')
  t.like(await program.result, { status: 'exited', exitCode: 3 })
})

test("a signal that the program does not see to ends it, and is the host's doing", async (t) => {
  const program = await (await sandbox()).spawn('sleep', ['100'])
  t.true(program.kill('SIGTERM'))
  t.like(await program.result, { status: 'killed', signal: 'SIGTERM' })
  t.throws(() => program.kill('SIGNOPE' as 'SIGTERM'), { instanceOf: RequestError })
})

test('signals that stop and continue', async (t) => {
  const program = await (await sandbox()).spawn('cat', [], { stdin: 'pipe' })
  t.true(program.kill('SIGSTOP'))
  program.stdin.write('x\n')
  await sleep(30)
  t.is(program.stdout.readableLength, 0)
  t.true(program.kill('SIGCONT'))
  t.is(await firstLine(program), 'x')
  await program[Symbol.asyncDispose]()
})

test('disposal kills, and waits until it is dead', async (t) => {
  const box = await sandbox()
  let pid = 0
  {
    await using program = await box.spawn('sleep', ['100'])
    ;({ pid } = program)
    t.true(runs(pid))
  }
  t.false(runs(pid))
  const program = await box.spawn('true')
  await program.result
  await program[Symbol.asyncDispose]()
  await program[Symbol.asyncDispose]()
  t.pass('idempotent')
})

test('a program that is gone before anybody looks', async (t) => {
  const program = await (await sandbox()).spawn('sh', ['-c', 'exit 7'])
  t.true(await until(() => !runs(program.pid)))
  t.like(await program.result, { status: 'exited', exitCode: 7 })
  t.false(program.kill())
})

test('what can not be started rejects spawn(), not the result', async (t) => {
  await t.throwsAsync((await sandbox()).spawn('/none'), { instanceOf: ExecError })
})

test('a result that nobody looks at raises nothing', async (t) => {
  let raised = 0
  const count = (): void => {
    raised += 1
  }
  process.on('unhandledRejection', count)
  const program = await (await sandbox()).spawn('false', [], { reject: true })
  await until(() => !runs(program.pid))
  await sleep(20)
  process.off('unhandledRejection', count)
  t.is(raised, 0)
  await t.throwsAsync(program.result)
})

test('writing to a program that is gone is no error', async (t) => {
  const program = await (await sandbox()).spawn('true', [], { stdin: 'pipe' })
  await program.result
  program.stdin.write('too late')
  program.stdin.end()
  await sleep(20)
  t.pass()
})
