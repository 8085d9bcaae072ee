// The host decides about calls: with every decision there is, without one, and with nobody left to decide.

import { spawn } from 'node:child_process'
import { chmodSync, closeSync, existsSync, openSync, writeFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import path from 'node:path'

import test from 'ava'

import {
  type NestboxError,
  policy,
  RequestError,
  Sandbox,
  syscallFilter,
  type SyscallCall,
  type SyscallDecision,
  type SyscallHandler,
} from '../index.ts'
import { delay, have, scratch, until } from './helpers.ts'
import { fixture, root } from './invariants/support.ts'

const gcc = have('gcc') ? test : test.skip
const program = have('gcc') ? fixture('supervised') : ''

const CALLS = ['mkdir', 'mkdirat', 'open', 'openat', 'connect', 'sendto']

const asking = (onSyscall: SyscallHandler): Promise<Sandbox> =>
  Sandbox.create(
    policy()
      .tmpfs('/tmp')
      .bind(program, '/program')
      .syscalls(
        syscallFilter()
          .report(...CALLS)
          .preset('default'),
      ),
    { onSyscall },
  )

/** The output of a program each of whose calls is decided so. */
const decided = async (decision: SyscallDecision | undefined, ...args: string[]): Promise<string> => {
  await using box = await asking(() => decision)
  return (await box.run('/program', args, { timeout: 20_000 })).stdout
}

gcc('each decision does what it says', async (t) => {
  t.is(await decided('allow', 'make'), 'made')
  t.is(await decided({ errno: 'EXDEV' }, 'each', '2'), 'EXDEV\nEXDEV')
  t.is(await decided({ value: 7 }, 'each', '1'), '7')
  t.is(await decided({ value: 0x7fff_ffffn }, 'each', '1'), '2147483647')
  // The kernel's own way to return an error.
  t.is(await decided({ value: -1 }, 'each', '1'), 'EPERM')
  for (const decision of ['report', undefined, 'kill'] as const) {
    // oxlint-disable-next-line no-await-in-loop
    await using box = await asking(() => decision)
    // oxlint-disable-next-line no-await-in-loop
    const result = await box.run('/program', ['make'])
    t.like(result, { status: 'violation', stdout: '', failed: true })
    if (decision === 'kill') t.false('violation' in result)
    else t.is(result.status === 'violation' && result.violation?.path, '/tmp/made')
  }
})

gcc('handlers see which call it is, and copies of what its pointers lead to', async (t) => {
  const calls: SyscallCall[] = []
  const pids = new Set<number>()
  await using box = await asking((call, caller) => {
    t.is(caller.file, '/program')
    pids.add(caller.pid)
    calls.push(call)
    return call.path === '/call/1' ? { errno: 'EEXIST' } : { value: Number(call.path?.slice(-1) ?? 5) + 10 }
  })
  const result = await box.run('/program', ['each', '3'])
  t.is(result.stdout, '10\nEEXIST\n12')
  t.deepEqual([...pids], [result.pid])
  t.deepEqual(
    calls.map((call) => call.path),
    ['/call/0', '/call/1', '/call/2'],
  )
  t.deepEqual(
    calls[0]?.memory.map(({ kind, cut }) => [kind, cut]),
    [['path', false]],
  )
  t.is(Buffer.from(calls[0]?.memory[0]?.content ?? []).toString(), '/call/0')
  calls.length = 0
  t.is((await box.run('/program', ['send'])).stdout, '15')
  t.is(calls[0]?.syscall, 'sendto')
  t.deepEqual(calls[0]?.address, { family: 'AF_INET', address: '127.0.0.1', port: 9 })
  t.is(Buffer.from(calls[0]?.memory.find(({ kind }) => kind === 'data')?.content ?? []).toString(), 'hello')
})

gcc('a descriptor of the host is put into the program', async (t) => {
  const file = path.join(scratch(t), 'file')
  writeFileSync(file, 'from the host')
  const handle = await open(file)
  t.teardown(() => handle.close())
  // The program has no /etc, and the host's file is nowhere in its tree.
  t.is(await decided({ fd: handle }, 'open', '/etc/secret'), 'from the host cloexec')
  const fd = openSync(file, 'r')
  t.teardown(() => closeSync(fd))
  t.is(await decided({ fd, closeOnExec: false }, 'open', '/etc/secret'), 'from the host kept')
})

gcc('handlers may take their time, and the clock goes on', async (t) => {
  await using patient = await asking(async () => {
    await delay(50)
    return { value: 3 }
  })
  t.is((await patient.run('/program', ['each', '2'])).stdout, '3\n3')
  await using endless = await asking(() => new Promise(() => {}))
  const result = await endless.run('/program', ['make'], { timeout: 150 })
  t.like(result, { status: 'limit-exceeded', limit: 'wallTime', stdout: '' })
  const sandboxee = await endless.spawn('/program', ['make'])
  await delay(50)
  t.true(sandboxee.kill())
  t.like(await sandboxee.result, { status: 'killed' })
})

gcc('a host that is busy until the launch is over changes nothing', async (t) => {
  // Its answer comes when init has spoken its last word, which nobody has heard yet.
  await using box = await asking(() => {
    const end = performance.now() + 300
    while (performance.now() < end);
    return 'allow'
  })
  const result = await box.run('/program', ['make'], { timeout: 100 })
  t.like(result, { status: 'limit-exceeded', limit: 'wallTime', stdout: '' })
})

const failing: readonly (readonly [string, SyscallHandler])[] = [
  [
    'throws',
    () => {
      throw new TypeError('on purpose')
    },
  ],
  ['rejects', () => Promise.reject(new TypeError('on purpose'))],
  ['says what is no decision', () => 'on purpose' as 'allow'],
  ['says an error that is none', () => ({ errno: 'EON_PURPOSE' })],
  ['says a value that does not fit', () => ({ value: 2n ** 63n })],
  ['says two things', () => ({ errno: 'EPERM', value: 1 }) as { value: number }],
  ['says true', () => true as unknown as 'allow'],
  ['says what was never documented', () => ({ allow: true }) as unknown as 'allow'],
]
for (const [what, handler] of failing) {
  gcc(`a handler that ${what} allows nothing`, async (t) => {
    await using box = await asking(handler)
    const error = await t.throwsAsync<NestboxError>(box.run('/program', ['make']), { instanceOf: RequestError })
    t.is(error?.code, 'ERR_NESTBOX_HANDLER')
    t.true(error?.cause instanceof Error)
    // And the next launch works.
    t.is((await box.run('/program', ['nothing'])).status, 'exited')
  })
}

gcc('descriptors that lead out are refused unless that is meant', async (t) => {
  const top = openSync('/', 'r')
  t.teardown(() => closeSync(top))
  for (const fd of [top, 999_999]) {
    // oxlint-disable-next-line no-await-in-loop
    await using box = await asking(() => ({ fd }))
    // oxlint-disable-next-line no-await-in-loop
    await t.throwsAsync(box.run('/program', ['open', '/']), { code: 'ERR_NESTBOX_HANDLER' })
  }
  t.is(await decided({ fd: top, unsafe: true }, 'open', '/'), 'EISDIR')
  await using box = await asking(() => ({ fd: 999_999, unsafe: true }))
  await t.throwsAsync(box.run('/program', ['open', '/']), { code: 'ERR_NESTBOX_HANDLER', message: /not an open/ })
})

gcc('hundreds of callers are answered, each once', async (t) => {
  let waiting = 0
  let most = 0
  let all = 0
  await using box = await asking(async () => {
    waiting += 1
    all += 1
    most = Math.max(most, waiting)
    await delay(1)
    waiting -= 1
    return { value: 7 }
  })
  const result = await box.run('/program', ['many', '40', '20'], { timeout: 30_000 })
  t.is(result.stdout, '800')
  t.is(all, 800)
  t.true(most > 1 && most <= 8, String(most))
})

gcc('what a handler judged is a copy: the program changes its memory in vain', async (t) => {
  // Another thread swaps the path between two values all the time.
  const seen = new Set<string>()
  await using box = await asking((call) => {
    seen.add(call.path ?? '')
    t.is(call.path, Buffer.from(call.memory[0]?.content ?? []).toString())
    return { errno: 'EPERM' }
  })
  const result = await box.run('/program', ['swap', '300'], { timeout: 30_000 })
  t.is(result.stdout, 'done')
  for (const path_ of seen) t.true(['/tmp/a', '/tmp/b'].includes(path_), path_)
})

gcc('a host that dies allows nothing', async (t) => {
  const place = scratch(t)
  chmodSync(place, 0o777)
  const script = `
    import { policy, Sandbox, syscallFilter } from ${JSON.stringify(path.join(root, 'index.ts'))}
    const box = await Sandbox.create(
      policy().bind(${JSON.stringify(place)}, '/tmp', { writable: true }).bind(${JSON.stringify(program)}, '/program')
        .syscalls(syscallFilter().report('mkdir', 'mkdirat').preset('default')),
      { onSyscall: () => { console.log('asked'); return new Promise(() => {}) } },
    )
    await box.run('/program', ['make'])
  `
  const main = path.join(scratch(t), 'host.ts')
  writeFileSync(main, script)
  const host = spawn(process.execPath, ['--import', '@oxc-node/core/register', main], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let said = ''
  host.stdout.on('data', (data: Buffer) => (said += String(data)))
  t.true(await until(() => said.includes('asked'), 20_000))
  host.kill('SIGKILL')
  await delay(300)
  t.false(existsSync(path.join(place, 'made')))
})

test('a handler that would never be called is refused', async (t) => {
  const onSyscall: SyscallHandler = () => 'allow'
  for (const syscalls of ['default', 'unfiltered'] as const) {
    // oxlint-disable-next-line no-await-in-loop
    await t.throwsAsync(Sandbox.create(policy('host-system').syscalls(syscalls), { onSyscall }), {
      instanceOf: RequestError,
      message: /onSyscall: The filter '\w+' has no 'report' and no 'ask'/,
    })
  }
  const wrong = { onSyscall: 'allow' } as unknown as { onSyscall: SyscallHandler }
  await t.throwsAsync(Sandbox.create(undefined, wrong), { instanceOf: RequestError, message: /must be a function/ })
})

gcc('ask without a handler is a violation', async (t) => {
  const filter = syscallFilter().ask('mkdir', 'mkdirat').preset('default')
  await using box = await Sandbox.create(policy().tmpfs('/tmp').bind(program, '/program').syscalls(filter))
  t.like(await box.run('/program', ['make']), { status: 'violation', stdout: '' })
})
