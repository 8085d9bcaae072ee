import { closeSync, openSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { createServer } from 'node:net'
import path from 'node:path'
import { Readable } from 'node:stream'

import test from 'ava'

import { type LaunchOptions, policy, type PolicyBuilder, RequestError } from '../index.ts'
import { sandboxContext, unsandboxedContext } from '../lib/launch/context.ts'
import { unsafeDescriptor } from '../lib/launch/descriptors.ts'
import {
  CAPTURE,
  IGNORE,
  type LaunchRequest as Request,
  makeRequest as makePacked,
  SAME_AS_STDOUT,
  STREAM,
} from '../lib/launch/request.ts'
import { scratch } from './helpers.ts'

/** A request whose message is taken apart again, as the core does it. */
const makeRequest = (...of: Parameters<typeof makePacked>) => {
  const request = makePacked(...of)
  const { text, argc, extras, ...message } = request.message
  const [file = '', cwd = '', searchPath = '', ...rest] = text.split('\0')
  const [args, env] = [rest.slice(0, argc).join('\0'), rest.slice(argc).join('\0')]
  return Object.freeze({ ...request, message: { file, cwd, searchPath, args, env, ...extras, ...message } })
}

type LaunchRequest = Omit<Request, 'message'> & Pick<ReturnType<typeof makeRequest>, 'message'>

const base = policy().limits({ wallTime: 1000, processes: 10 }).mountPoint('/in').env({ PATH: '/bin', A: '1' })

const make = (
  kind: 'run' | 'spawn',
  options?: LaunchOptions,
  from: PolicyBuilder = base,
  args?: readonly string[],
): LaunchRequest => makeRequest(sandboxContext(from.build()), kind, 'prog', args, options)

const refused = test.macro({
  exec: (t, options: unknown, at: PropertyKey[], message: RegExp, kind: 'run' | 'spawn' = 'run') => {
    const error = t.throws(() => make(kind, options as LaunchOptions), {
      instanceOf: RequestError,
      code: 'ERR_NESTBOX_REQUEST',
      message,
    })
    t.deepEqual(error.issues[0]?.path, at)
  },
  title: (name = '') => `refused: ${name}`,
})

test('a launch without options', (t) => {
  const request = make('run')
  t.true(Object.isFrozen(makePacked(sandboxContext(base.build()), 'run', 'prog', undefined, undefined)))
  t.deepEqual(request.message, {
    policy: undefined,
    file: 'prog',
    args: 'prog',
    env: 'PATH=/bin\0HOME=/tmp\0A=1\0SANDBOX2_NOFORKSERVER=1',
    searchPath: '/bin',
    cwd: '/',
    stdin: IGNORE,
    stdout: CAPTURE,
    stderr: CAPTURE,
    outputLimit: 10_485_760,
    onOverflow: 0,
    checkFds: true,
    comms: false,
    reportStart: false,
    crashReport: false,
    standby: false,
    warm: 0,
    warmIdle: undefined,
  })
  t.is(make('run', {}, policy('host-system')).message.cwd, '/tmp')
})

test('the arguments arrive as they are', (t) => {
  const args = ['-c', '', '; rm -rf /', '--bind', '\'"`$()', 'é\u{1F600}', '\n']
  t.is(make('run', {}, base, args).message.args, ['prog', ...args].join('\0'))
  t.is(make('run', { argv0: '-sh' }, base, args).message.args.split('\0')[0], '-sh')
  t.is(make('run', { argv0: '' }, base, []).message.args, '')
})

test('what file and arguments must not be', (t) => {
  const context = sandboxContext(base.build())
  for (const [file, args, at] of [
    ['', [], ['file']],
    [undefined, [], ['file']],
    ['a\0', [], ['file']],
    ['a', ['b', 'c\0d'], ['args', 1]],
    ['a', ['\uDC00'], ['args', 0]],
    ['a', 'b', ['args']],
    ['a', { cwd: '/' }, ['args']],
    ['a', [1], ['args', 0]],
  ] as const) {
    const error = t.throws(() => makeRequest(context, 'run', file, args, undefined), { instanceOf: RequestError })
    t.deepEqual(error.issues[0]?.path, [...at], String(file))
  }
})

test('everything that is wrong is reported, in sentences', (t) => {
  const error = t.throws(() => make('run', { cwd: 5, colour: 'red', timeout: -1 } as unknown as LaunchOptions), {
    instanceOf: RequestError,
  })
  t.deepEqual(error.issues.map((issue) => issue.path.join('.')).toSorted(), ['colour', 'cwd', 'timeout'])
  t.regex(error.message, /run\(\).*:\n {2}- /)
})

// ---- environment ---------------------------------------------------------------------------------------------------------

const env = (request: LaunchRequest): string[] => request.message.env.split('\0')

test("the launch's environment is laid over the policy's", (t) => {
  t.deepEqual(env(make('run', { env: { A: undefined, B: 'x=y', PATH: '/opt' } })), [
    'PATH=/opt',
    'HOME=/tmp',
    'B=x=y',
    'SANDBOX2_NOFORKSERVER=1',
  ])
  t.is(make('run', { env: { PATH: '/opt' } }).message.searchPath, '/opt')
  t.is(make('run', { env: { PATH: undefined } }).message.searchPath, '/bin:/usr/bin')
})

test('the mark of a sandbox can not be taken off', (t) => {
  for (const value of [undefined, '', '0']) {
    const marks = env(make('run', { env: { SANDBOX2_NOFORKSERVER: value } })).filter((line) =>
      line.startsWith('SANDBOX2'),
    )
    t.deepEqual(marks, ['SANDBOX2_NOFORKSERVER=1'])
  }
})

test('= in a name of env', refused, { env: { 'A=': '' } }, ['env', 'A='], /"="/)
test('an empty name in env', refused, { env: { '': '' } }, ['env', ''], /empty/)
test('NUL in a value of env', refused, { env: { A: 'a\0B=b' } }, ['env', 'A'], /NUL/)
test('a number in env', refused, { env: { A: 1 } }, ['env', 'A'], /string/)

// ---- limits ----------------------------------------------------------------------------------------------------------------

test('a launch may tighten', (t) => {
  const request = make('run', { limits: { wallTime: 500, cpuTime: 100, output: '1KiB', processes: 10 } })
  t.deepEqual(request.message.limits, { wallTime: 500, cpuTime: 100 })
  t.is(request.message.outputLimit, 1024)
  t.like(request.limits, { wallTime: 500, cpuTime: 100, output: 1024, processes: 10 })
})

test('the tighter one of timeout and wallTime holds; 0 is no timeout', (t) => {
  t.deepEqual(make('run', { timeout: 200, limits: { wallTime: 300 } }).message.limits, { wallTime: 200 })
  t.deepEqual(make('run', { timeout: 300, limits: { wallTime: 200 } }).message.limits, { wallTime: 200 })
  t.deepEqual(make('run', { timeout: 0 }).message.limits, {})
  t.is(make('run', { limits: { output: Infinity } }, base.limits({ output: Infinity })).message.outputLimit, -1)
})

test('a longer timeout', refused, { timeout: 1001 }, ['timeout'], /only tighten/)
test('more processes', refused, { limits: { processes: 11 } }, ['limits', 'processes'], /11 is above 10/)
test('a lifted limit', refused, { limits: { output: Infinity } }, ['limits', 'output'], /only tighten/)
test('a time of 30,000 years', refused, { limits: { cpuTime: 1e15 } }, ['limits', 'cpuTime'], /at most 1000000000000\b/)
test('a timeout of 30,000 years', refused, { timeout: 1e15 }, ['timeout'], /at most 1000000000000\b/)
test('a limit of 0', refused, { limits: { wallTime: 0 } }, ['limits', 'wallTime'], /above 0/)

test('the grace period stays within the policy', (t) => {
  const graceful = { killSignal: 'SIGTERM', forceKillAfterDelay: 300 } as const
  const early = make('run', { ...graceful, timeout: 500 })
  t.is(early.softTimeout, 500)
  t.deepEqual(early.message.limits, { wallTime: 800 })
  const late = make('run', { ...graceful, timeout: 900 })
  t.is(late.softTimeout, 900)
  t.deepEqual(late.message.limits, { wallTime: 1000 })
  t.is(make('run', { timeout: 500 }).softTimeout, undefined)
})

// ---- files, binds, outputs -----------------------------------------------------------------------------------------------

test('files are bytes with a mode', (t) => {
  const { files } = make('run', {
    files: { '/tmp/a': 'é', '/tmp//b': new Uint8Array([1]), '/tmp/c': { content: '', mode: 0o755 } },
  }).message
  t.deepEqual(
    files?.map((file) => [file.path, [...file.content], file.mode]),
    [
      ['/tmp/a', [0xc3, 0xa9], 0o644],
      ['/tmp/b', [1], 0o644],
      ['/tmp/c', [], 0o755],
    ],
  )
})

test('binds go to mount points only', (t) => {
  t.deepEqual(make('run', { binds: { '/in': '/srv' } }).message.binds, [{ path: '/in', source: '/srv' }])
  t.deepEqual(make('run', { binds: { '/in/': '/srv' } }).message.binds, [{ path: '/in', source: '/srv' }])
})

test('a bind elsewhere', refused, { binds: { '/etc': '/srv' } }, ['binds', '/etc'], /no mount point/)
test('a bind below a mount point', refused, { binds: { '/in/x': '/srv' } }, ['binds', '/in/x'], /no mount point/)
test('a relative file', refused, { files: { 'a.txt': '' } }, ['files', 'a.txt'], /absolute/)
test(
  'an output without a bound',
  refused,
  { outputs: { a: { path: '/a' } } },
  ['outputs', 'a', 'maxBytes'],
  /whole number/,
)
test(
  'an endless output',
  refused,
  { outputs: { a: { path: '/a', maxBytes: Infinity } } },
  ['outputs', 'a', 'maxBytes'],
  /finite/,
)
test(
  'an output with ..',
  refused,
  { outputs: { a: { path: '/a/../b', maxBytes: 1 } } },
  ['outputs', 'a', 'path'],
  /"\.\."/,
)
test('a relative cwd', refused, { cwd: 'tmp' }, ['cwd'], /absolute/)
test('a cwd with ..', refused, { cwd: '/tmp/..' }, ['cwd'], /"\.\."/)

test('outputs keep their order and names', (t) => {
  const request = make('run', {
    outputs: {
      b: { path: '/tmp/b', maxBytes: '1KiB', to: 'b.bin' },
      a: { path: '/tmp/a', maxBytes: 5, optional: true },
    },
  })
  t.deepEqual(request.outputNames, ['b', 'a'])
  t.deepEqual(request.message.outputs, [
    { path: '/tmp/b', maxBytes: 1024, to: path.resolve('b.bin') },
    { path: '/tmp/a', maxBytes: 5 },
  ])
})

// ---- descriptors -----------------------------------------------------------------------------------------------------------

const stdio = ({ message }: LaunchRequest): number[] => [message.stdin, message.stdout, message.stderr]

test('run captures, spawn streams', (t) => {
  t.deepEqual(stdio(make('run')), [IGNORE, CAPTURE, CAPTURE])
  t.deepEqual(stdio(make('spawn')), [IGNORE, STREAM, STREAM])
  t.deepEqual(stdio(make('run', { buffer: false })), [IGNORE, STREAM, STREAM])
  t.deepEqual(stdio(make('spawn', { stdin: 'pipe', stderr: 'stdout' })), [STREAM, STREAM, SAME_AS_STDOUT])
  t.deepEqual(stdio(make('run', { stdout: 'ignore', stderr: 'stdout' })), [IGNORE, IGNORE, IGNORE])
  t.deepEqual(stdio(make('run', { stdio: 'ignore' })), [IGNORE, IGNORE, IGNORE])
})

test('input goes through the core unless it is a stream, or large', (t) => {
  const text = make('run', { input: 'é' })
  t.is(text.message.stdin, CAPTURE)
  t.deepEqual([...(text.message.input ?? [])], [0xc3, 0xa9])
  t.is(make('run', { stdin: 'pipe' }).message.input?.length, 0)
  t.is(make('run', { input: Readable.from(['a']) }).message.stdin, STREAM)
  const both = make('spawn', { input: 'a', stdin: 'pipe' })
  t.is(both.message.stdin, STREAM)
  t.is(both.inputBytes?.length, 1)
  const large = new Uint8Array(1024 * 1024)
  t.is(make('run', { input: large.subarray(1) }).message.stdin, CAPTURE)
  for (const kind of ['run', 'spawn'] as const) {
    const streamed = make(kind, { input: large })
    t.is(streamed.message.stdin, STREAM)
    t.is(streamed.inputBytes, large, 'without a copy')
  }
})

test('stdio by index, with more descriptors', (t) => {
  const request = make('spawn', { stdio: ['ignore', 'pipe', 'stdout', 'pipe', undefined, { fd: 0 }, 'inherit'] })
  t.deepEqual(stdio(request), [IGNORE, STREAM, SAME_AS_STDOUT])
  t.deepEqual(request.message.extraFds, [3, STREAM, 5, 0, 6, 6])
  t.deepEqual(request.extraStreams, [3])
  // Another one is exempt, so this one is checked here.
  t.false(request.message.checkFds)
  t.deepEqual(request.checkHere, [0])
})

test('files and file handles are asked for a descriptor at the launch', async (t) => {
  const handle = await open('/dev/null')
  t.teardown(() => handle.close())
  const { late } = make('run', { stdin: handle, stdout: { file: '/tmp/out', append: true }, stderr: 'stdout' })
  t.deepEqual(
    late.map(({ targets }) => targets),
    [[0], [1, 2]],
  )
  t.is(late[0]?.source, handle)
})

test('input without a pipe', refused, { input: '', stdin: 'ignore' }, ['input'], /pipe/)
test('stdio next to stdout', refused, { stdio: [], stdout: 'pipe' }, ['stdout'], /already/)
test('a pipe that nobody can use', refused, { stdio: ['ignore', 'pipe', 'pipe', 'pipe'] }, ['stdio', 3], /spawn/)
test('comms that nobody can use', refused, { comms: true }, ['comms'], /spawn/)
test('a negative descriptor', refused, { stdout: { fd: -1 } }, ['stdout', 'fd'], /negative/)
test('stdin to stdout', refused, { stdin: 'stdout' }, ['stdin'], /"pipe"/)
test('an unknown signal', refused, { killSignal: 'SIGNOPE' }, ['killSignal'], /signal/)
test('a signal that is none', refused, { signal: { aborted: false } }, ['signal'], /AbortSignal/)

test('directories and sockets are unsafe to pass', async (t) => {
  const directory = openSync(scratch(t), 'r')
  t.teardown(() => closeSync(directory))
  t.regex(unsafeDescriptor(directory) ?? '', /directory/)
  t.regex(unsafeDescriptor(1_000_000) ?? '', /not an open descriptor/)
  const file = openSync('/dev/null', 'r')
  t.teardown(() => closeSync(file))
  t.is(unsafeDescriptor(file), undefined)
  const server = createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => {
    server.once('listening', resolve)
  })
  t.teardown(() => server.close())
  const { fd } = (server as unknown as { _handle: { fd: number } })._handle
  t.regex(unsafeDescriptor(fd) ?? '', /socket/)
})

// ---- without isolation -------------------------------------------------------------------------------------------------------

test('without a sandbox the environment must be given, and nothing needs a sandbox', (t) => {
  const bare = (options?: unknown): LaunchRequest => makeRequest(unsandboxedContext, 'run', 'prog', [], options)
  const error = t.throws(() => bare(), { instanceOf: RequestError })
  t.deepEqual(error.issues[0]?.path, ['env'])
  const { message } = bare({ env: { A: '1' }, cwd: '.' })
  t.is(message.env, 'A=1\0SANDBOX2_NOFORKSERVER=1')
  t.is(message.cwd, process.cwd())
  t.is(message.policy, undefined)
  for (const options of [
    { files: { '/tmp/a': '' } },
    { binds: { '/in': '/' } },
    { outputs: { a: { path: '/a', maxBytes: 1 } } },
    { limits: { disk: '1MiB' } },
  ]) {
    t.throws(() => bare({ env: {}, ...options }), { instanceOf: RequestError, message: /sandbox/ })
  }
  t.deepEqual(bare({ env: {}, limits: { wallTime: 5, output: Infinity } }).message.limits, { wallTime: 5 })
})

// ---- hostile input -------------------------------------------------------------------------------------------------------------

test('each property of the options is read once', (t) => {
  const reads = new Map<string, number>()
  const answers: Record<string, unknown> = { cwd: '/', env: { A: '2' }, timeout: 5, encoding: 'utf8' }
  const options = new Proxy(answers, {
    get: (target, key) => {
      const name = String(key)
      reads.set(name, (reads.get(name) ?? 0) + 1)
      return (reads.get(name) ?? 0) > 1 ? '\0' : Reflect.get(target, key)
    },
  })
  t.is(make('run', options as LaunchOptions).message.cwd, '/')
  t.deepEqual(
    [...reads],
    Object.keys(answers).map((key) => [key, 1]),
  )
})

test('nested objects are read once as well', (t) => {
  let reads = 0
  const binds = {
    get '/in'() {
      reads += 1
      return reads === 1 ? '/srv' : '/etc'
    },
  }
  t.deepEqual(make('run', { binds }).message.binds, [{ path: '/in', source: '/srv' }])
  let fds = 0
  const stdout = {
    get fd() {
      fds += 1
      return fds
    },
  }
  t.is(make('run', { stdout }).message.stdout, 1)
})

test('changing the options later changes nothing', (t) => {
  const args = ['a']
  const options = { env: { A: 'x' }, limits: { wallTime: 5 } }
  const request = make('run', options, base, args)
  args.push('b')
  options.env.A = 'y'
  options.limits.wallTime = 100
  t.deepEqual(request.args, ['a'])
  t.true(request.message.env.includes('A=x'))
  t.deepEqual(request.message.limits, { wallTime: 5 })
})

test('prototypes are not looked at', (t) => {
  const options = Object.create({ cwd: '/etc', limits: { processes: 1 } }) as LaunchOptions
  t.is(make('run', options).message.cwd, '/')
  const polluted = JSON.parse('{"__proto__": {"cwd": "/etc"}}') as LaunchOptions
  t.throws(() => make('run', polluted), { instanceOf: RequestError, message: /__proto__/ })
})

test('a cycle ends', (t) => {
  const cycle: Record<string, unknown> = {}
  cycle['env'] = cycle
  t.throws(() => make('run', cycle as LaunchOptions), { instanceOf: RequestError, message: /nested too deeply/ })
})

test('a Map or a Set is no object with nothing in it', (t) => {
  t.notThrows(() => make('run', { env: {} }))
  for (const collection of [new Map([['A', '2']]), new Map(), new Set()]) {
    const options = { env: collection } as unknown as LaunchOptions
    t.throws(() => make('run', options), { instanceOf: RequestError, message: /env.*not a Map or a Set/s })
  }
  t.throws(() => make('run', new Map() as LaunchOptions), { instanceOf: RequestError, message: /not a Map or a Set/ })
})

test('what was found right is remembered, and nothing else', (t) => {
  const context = sandboxContext(policy().build())
  const options: Record<string, unknown> = { stdout: 'ignore', cwd: '/a' }
  const args = ['x']
  const again = (file: unknown = 'prog'): LaunchRequest => makeRequest(context, 'run', file, args, options)
  for (let round = 0; round < 2; round += 1) t.like(again().message, { args: 'prog\0x', cwd: '/a', stdout: IGNORE })
  // The same objects, changed after they were found right.
  options['cwd'] = '/b'
  args.push('y')
  for (let round = 0; round < 2; round += 1) t.like(again().message, { args: 'prog\0x\0y', cwd: '/b', stdout: IGNORE })
  args.push('z\0')
  for (let round = 0; round < 2; round += 1) t.throws(() => again(), { instanceOf: RequestError })
  args.pop()
  options['no such option'] = 1
  for (let round = 0; round < 2; round += 1) t.throws(() => again(), { instanceOf: RequestError })
  delete options['no such option']
  options['stderr'] = undefined
  t.like(again().message, { cwd: '/b', stderr: CAPTURE })
  for (const wrong of ['', 'a\0', 7]) t.throws(() => again(wrong), { instanceOf: RequestError })
  t.like(again().message, { file: 'prog' })
  // An array is not an object with the same properties.
  t.throws(() => makeRequest(context, 'run', 'prog', { 0: 'x', 1: 'y' }, options), { instanceOf: RequestError })
})

test('a launch like the one before has the same request, and no other has', (t) => {
  const warmth = { count: 1, idle: 10 as number | undefined }
  const context = sandboxContext(base.build(), warmth)
  const options: LaunchOptions = { stdio: 'ignore' }
  const again = (...[kind, args, own]: ['run' | 'spawn', string[]?, LaunchOptions?]): Request =>
    makePacked(context, kind, 'prog', args, own ?? options)

  const first = again('run', ['a'])
  t.is(again('run', ['a']), first, 'equal, though the array is another')
  t.not(again('run', ['b']), first)
  t.not(again('spawn', ['b']), again('run', ['b']))
  t.not(again('run', ['a']), makePacked(sandboxContext(base.build()), 'run', 'prog', ['a'], options))

  const args = ['a']
  const before = again('run', args)
  args[0] = 'c'
  t.is(again('run', args).message.text.split('\0').at(4), 'c')
  t.deepEqual(before.args, ['a'])
  options.stdio = 'pipe'
  t.is(again('run', args).message.stdout, CAPTURE)
  options.stdio = 'ignore'
  t.is(again('run', args).message.stdout, IGNORE)

  warmth.count = 3
  t.is(again('run', args).message.warm, 3)
  warmth.idle = undefined
  t.is(again('run', args).message.warmIdle, undefined)
})

test('objects and arrays among the options are part of what is alike, and looked at each time', (t) => {
  const context = sandboxContext(base.build())
  const options = {
    stdio: ['ignore', 'pipe', 'ignore'] as ('ignore' | 'pipe')[],
    env: { A: 'b', C: undefined as string | undefined },
    limits: { processes: 3, wallTime: 500 },
  }
  const again = (own: unknown = options): Request => makePacked(context, 'run', 'prog', undefined, own)
  const first = again()
  t.is(again(), first)
  t.is(again(structuredClone(options)), first, 'equal, though the objects are others')

  options.env.A = 'c'
  const other = again()
  t.true(other.message.text.includes('A=c'))
  t.true(first.message.text.includes('A=b'))
  options.env.C = 'd'
  t.true(again().message.text.includes('C=d'))
  options.limits.processes = 2
  t.is(again().message.extras?.limits?.processes, 2)
  options.stdio[1] = 'ignore'
  t.is(again().message.stdout, IGNORE)
  options.stdio[1] = 'pipe'
  t.is(again().message.stdout, CAPTURE)
  // What is remembered can't be changed by whoever has the request.
  t.true([again().limits, again().args].every((part) => Object.isFrozen(part)))

  // Outer objects that are frozen say nothing about what is in them.
  const frozen = Object.freeze(options)
  t.is(again(frozen).message.extras?.limits?.processes, 2)
  options.limits.processes = 1
  t.is(again(frozen).message.extras?.limits?.processes, 1)

  // Of what answers differently each time the copy counts, not what it was compared by.
  let reads = 0
  const counting = {
    env: {
      get A() {
        reads += 1
        return `b${reads}`
      },
    },
  }
  t.true(again(counting).message.text.includes('A=b1'))
  t.is(reads, 1)
  t.true(again(counting).message.text.includes('A=b3'))
  t.is(reads, 3)

  // What is not ours to copy is no plain object, whatever its properties.
  t.is(again({ env: {} }).message.text, again({ env: {} }).message.text)
  for (const odd of [new Uint8Array(0), new EventTarget()])
    t.throws(() => again({ env: odd }), { instanceOf: RequestError })
  t.throws(() => again(new EventTarget()), { instanceOf: RequestError })
  t.throws(() => again({ env: [] }), { instanceOf: RequestError })
})

test('what differs each time is looked at each time, whatever is remembered of the rest', (t) => {
  const context = sandboxContext(base.build())
  const make_ = (own: unknown): Request => makePacked(context, 'run', 'prog', undefined, own)
  const options = (input: unknown, value = 'b'): object => ({ input, env: { A: value }, limits: { processes: 3 } })
  const inputOf = (request: Request): string => Buffer.from(request.message.extras?.input ?? []).toString()

  for (const input of ['one', 'two', Buffer.from('three')]) t.is(inputOf(make_(options(input))), String(input))
  t.true(make_(options('one')).message.text.includes('A=b'))
  t.true(make_(options('one', 'c')).message.text.includes('A=c'))
  t.is(make_(options('one', 'c')).message.extras?.limits?.processes, 3)
  // With the rest remembered, without it, and with it again.
  for (const wrong of [7, {}]) {
    const error = t.throws(() => make_(options(wrong, 'c')), { instanceOf: RequestError })
    if (wrong === 7)
      t.deepEqual(
        error.issues.map((issue) => issue.path),
        [['input']],
      )
    t.throws(() => make_({ ...options(wrong), cwd: 'relative' }), { instanceOf: RequestError })
    t.is(inputOf(make_(options('right', 'c'))), 'right')
  }
  t.throws(() => make_({ ...options('one'), 'no such option': 1 }), { instanceOf: RequestError })
  // None of it stays for a launch that has none.
  const { input: _, ...without } = options('one') as { input: unknown }
  t.is(make_(without).message.extras?.input, undefined)
  t.is(make_(without).message.stdin, IGNORE)
  t.is(inputOf(make_(options(''))), '')

  const { signal } = new AbortController()
  t.is(make_({ signal }).signal, signal)
  t.is(make_({}).signal, undefined)
  t.throws(() => make_({ signal: {} }), { instanceOf: RequestError })
  const files = make_({ files: { '/tmp/a': 'text' } }).message.extras?.files
  t.deepEqual(
    files?.map((file) => file.path),
    ['/tmp/a'],
  )
  t.throws(() => make_({ files: { relative: 'text' } }), { instanceOf: RequestError })
})

test('what belongs to one launch is not shared', (t) => {
  const context = sandboxContext(base.build())
  const { signal } = new AbortController()
  const cases: LaunchOptions[] = [
    { signal },
    { input: 'text' },
    { files: { '/tmp/a': 'text' } },
    { stdout: { file: '/dev/null' } },
    { binds: { '/in': '/etc' } },
  ]
  for (const options of cases) {
    const [one, other] = [0, 1].map(() => makePacked(context, 'run', 'prog', undefined, options))
    t.not(one, other, Object.keys(options).join())
  }
  const options: LaunchOptions = { env: {} }
  const [one, other] = [0, 1].map(() => makePacked(unsandboxedContext, 'run', 'prog', undefined, options))
  t.not(one, other, 'its working directory is that of the host, which may change')
})

test('an object that is frozen is believed only if nothing in it is computed', (t) => {
  const context = sandboxContext(base.build())
  const stdout = (options: LaunchOptions): number =>
    makePacked(context, 'run', 'prog', undefined, options).message.stdout
  const frozen = Object.freeze({ stdio: 'ignore' } as const)
  t.deepEqual([stdout(frozen), stdout(frozen)], [IGNORE, IGNORE])

  let answer: 'ignore' | 'pipe' = 'ignore'
  const computed = Object.freeze({
    get stdio() {
      return answer
    },
  })
  t.deepEqual([stdout(computed), stdout(computed)], [IGNORE, IGNORE])
  answer = 'pipe'
  t.is(stdout(computed), CAPTURE)

  // A proxy of an object that is not frozen can't pass for frozen; of one that is, it can't answer anything else.
  const target: { stdio: 'ignore' | 'pipe' } = { stdio: 'ignore' }
  const proxy = new Proxy(target, {})
  t.deepEqual([stdout(proxy), stdout(proxy)], [IGNORE, IGNORE])
  target.stdio = 'pipe'
  t.is(stdout(proxy), CAPTURE)
  const throwing = new Proxy(Object.freeze({ stdio: 'ignore' } as const), {
    getOwnPropertyDescriptor() {
      throw new Error('not to be looked at')
    },
  })
  t.throws(() => stdout(throwing), { code: 'ERR_NESTBOX_REQUEST' })
})

// ---- how much of it ------------------------------------------------------------------------------------------------------

test('more than a launch can carry is refused, with how much that is', (t) => {
  const outputs = (count: number) =>
    Object.fromEntries(Array.from({ length: count }, (_, index) => [index, { path: `/tmp/${index}`, maxBytes: 1 }]))
  const pipes = (count: number) => ['ignore', 'ignore', 'ignore', ...Array<'pipe'>(count).fill('pipe')] as const
  t.notThrows(() => make('spawn', { outputs: outputs(200), stdio: pipes(240) }))
  const refuse = (options: LaunchOptions, message: RegExp): void => {
    t.throws(() => make('spawn', options), { instanceOf: RequestError, message })
  }
  refuse({ outputs: outputs(201) }, /201 of them, and at most 200/)
  refuse({ stdio: pipes(241) }, /at most 240 together, and these are 241/)
  refuse({ stdio: pipes(240), comms: true }, /at most 240 together, and these are 241/)
})
