import { constants } from 'node:os'

import test from 'ava'
import type { NativeEnded } from '#binding'

import { type LaunchOptions, policy, ProcessError } from '../index.ts'
import { sandboxContext } from '../lib/launch/context.ts'
import { type LaunchRequest, makeRequest } from '../lib/launch/request.ts'
import { type AnyResult, type HostFacts, makeResult, processError, verdict } from '../lib/launch/result.ts'

const context = sandboxContext(policy().limits({ output: 100, wallTime: 2000 }).build())

const request = (options: LaunchOptions = {}): LaunchRequest =>
  makeRequest(context, 'run', 'prog', ["it's", 'a b'], options)

const ENDED: NativeEnded = {
  pid: 42,
  initPid: 41,
  ending: 'exited',
  status: 0,
  killedByHost: false,
  violated: false,
  diskFull: false,
  stdout: Buffer.from('out\n'),
  stderr: Buffer.from(''),
  stdoutBytes: 4,
  stderrBytes: 0,
  userCpuUs: 1500,
  systemCpuUs: 500,
  maxRssKib: 2,
  minorFaults: 3,
  majorFaults: 4,
  voluntarySwitches: 5,
  involuntarySwitches: 6,
  submittedNs: 1_000_000,
  execNs: 3_000_000,
  endedNs: 9_000_000,
  steps: [
    { step: 'clone-init', ms: 0.5 },
    { step: 'exec', ms: 1.5 },
  ],
  outputs: [],
  skipped: [],
  namespaces: ['user', 'pid'],
  network: 'none',
  landlockAbi: 7,
  landlockScopes: 3,
  noNewPrivs: true,
  filter: 'default',
  warm: false,
}

const HOST: HostFacts = {
  queueMs: 1,
  handover: undefined,
  canceled: false,
  timedOut: false,
  sent: [],
  stdout: undefined,
  stderr: undefined,
  overflowed: false,
  limits: context.limits,
}

const result = (
  ended: Partial<NativeEnded> = {},
  options?: LaunchOptions,
  host: Partial<HostFacts> = {},
): AnyResult => {
  const asked = request(options)
  return makeResult(asked, { ...ENDED, ...ended }, { ...HOST, limits: asked.limits, ...host })
}

const { SIGKILL, SIGSEGV, SIGSYS, SIGTERM, SIGXFSZ } = constants.signals

const decided = test.macro({
  exec: (t, ended: Partial<NativeEnded>, host: Partial<HostFacts>, expected: ReturnType<typeof verdict>) => {
    t.deepEqual(verdict({ ...ENDED, ...ended }, { ...HOST, ...host }, 'kill'), expected)
  },
  title: (name = '') => `verdict: ${name}`,
})

test('exit', decided, { status: 3 }, {}, { status: 'exited', exitCode: 3 })
test('signal', decided, { ending: 'signaled', status: SIGSEGV }, {}, { status: 'signaled', signal: 'SIGSEGV' })
test(
  'killed',
  decided,
  { ending: 'signaled', status: SIGKILL, killedByHost: true },
  { sent: [SIGKILL] },
  { status: 'killed', signal: 'SIGKILL' },
)
test(
  'asked to stop',
  decided,
  { ending: 'signaled', status: SIGTERM, killedByHost: true },
  { sent: [SIGTERM] },
  { status: 'killed', signal: 'SIGTERM' },
)
test(
  'asked to stop, but crashed',
  decided,
  { ending: 'signaled', status: SIGSEGV, killedByHost: true },
  { sent: [SIGTERM] },
  { status: 'signaled', signal: 'SIGSEGV' },
)
test(
  'asked to stop, and exited',
  decided,
  { status: 0, killedByHost: true },
  { sent: [SIGTERM] },
  { status: 'exited', exitCode: 0 },
)
test(
  'SIGKILL of its own',
  decided,
  { ending: 'signaled', status: SIGKILL },
  {},
  { status: 'signaled', signal: 'SIGKILL' },
)
test(
  'limit before kill',
  decided,
  { ending: 'signaled', status: SIGKILL, limit: 'wallTime', killedByHost: true },
  { sent: [SIGKILL] },
  { status: 'limit-exceeded', limit: 'wallTime', signal: 'SIGKILL' },
)
test(
  'file size',
  decided,
  { ending: 'signaled', status: SIGXFSZ, limit: 'fileSize' },
  {},
  { status: 'limit-exceeded', limit: 'fileSize', signal: 'SIGXFSZ' },
)
test(
  'output on a stream',
  decided,
  { ending: 'signaled', status: SIGKILL, killedByHost: true },
  { sent: [SIGKILL], overflowed: true },
  { status: 'limit-exceeded', limit: 'output', signal: 'SIGKILL' },
)
test(
  'timed out, left of its own accord',
  decided,
  { status: 0 },
  { timedOut: true, sent: [SIGTERM] },
  { status: 'limit-exceeded', limit: 'wallTime' },
)
test(
  'violation before limit',
  decided,
  { ending: 'signaled', status: SIGSYS, limit: 'wallTime' },
  {},
  { status: 'violation' },
)
test(
  'SIGSYS without a filter',
  decided,
  { ending: 'signaled', status: SIGSYS, filter: 'unfiltered' },
  {},
  { status: 'signaled', signal: 'SIGSYS' },
)

test('a result has all fields, and is JSON', (t) => {
  const made = result()
  t.deepEqual(JSON.parse(JSON.stringify(made)), {
    status: 'exited',
    exitCode: 0,
    failed: false,
    timedOut: false,
    isMaxBuffer: false,
    isCanceled: false,
    stdout: 'out',
    stderr: '',
    stdoutBytes: 4,
    stderrBytes: 0,
    outputs: {},
    limitsHit: [],
    durationMs: 8,
    resourceUsage: {
      userCpuMs: 1.5,
      systemCpuMs: 0.5,
      peakMemoryBytes: 2048,
      memorySource: 'max-rss',
      minorFaults: 3,
      majorFaults: 4,
      voluntaryContextSwitches: 5,
      involuntaryContextSwitches: 6,
    },
    timings: {
      queueMs: 1,
      setupMs: 2,
      execMs: 6,
      warm: false,
      prewarmed: false,
      steps: [
        { step: 'clone-init', ms: 0.5 },
        { step: 'exec', ms: 1.5 },
      ],
    },
    isolation: {
      namespaces: ['user', 'pid'],
      network: 'none',
      syscalls: 'default',
      landlock: { abi: 7, enforced: ['files', 'abstract-unix-sockets', 'signals'] },
      noNewPrivs: true,
      coreScheduling: false,
      speculation: 'restricted',
      capabilities: 'none',
      limits: {
        wallTime: 2000,
        processes: 128,
        output: 100,
        disk: 67_108_864,
        openFiles: 1024,
        fileSize: 1_073_741_824,
        core: 0,
      },
      skipped: [],
    },
    file: 'prog',
    args: ["it's", 'a b'],
    command: String.raw`prog 'it'\''s' 'a b'`,
    pid: 42,
  })
})

const stdoutOf = (bytes: string | Buffer, options?: LaunchOptions): unknown =>
  result({ stdout: Buffer.from(bytes as string) }, options).stdout

test('text loses one newline unless it is to be kept', (t) => {
  t.is(stdoutOf('a\n\n'), 'a\n')
  t.is(stdoutOf('a\r\n'), 'a')
  t.is(stdoutOf('a'), 'a')
  t.is(stdoutOf('\n'), '')
  t.is(stdoutOf('a\n', { stripFinalNewline: false }), 'a\n')
})

test('lines', (t) => {
  t.deepEqual(stdoutOf('a\r\n\nb', { lines: true }), ['a', '', 'b'])
  t.deepEqual(stdoutOf('a\n', { lines: true }), ['a'])
  t.deepEqual(stdoutOf('', { lines: true }), [])
})

test('bytes are exact, and no Buffer', (t) => {
  const bytes = stdoutOf(Buffer.from([255, 10]), { encoding: 'buffer' }) as Uint8Array
  t.deepEqual([...bytes], [255, 10])
  t.is(Object.getPrototypeOf(bytes), Uint8Array.prototype)
})

test('what was not a buffered pipe is undefined', (t) => {
  const { stdout: _, ...ended } = ENDED
  t.is<unknown, undefined>(makeResult(request(), ended, HOST).stdout, undefined)
})

test('dropped output and a full disk are limits that were hit', (t) => {
  const made = result({ stdoutBytes: 101, diskFull: true }, { onOverflow: 'keep-head' })
  t.deepEqual([...made.limitsHit], ['output', 'disk'])
  t.true(made.isMaxBuffer)
  t.false(made.failed)
  const killed = result({ ending: 'signaled', status: SIGKILL, limit: 'output', stdoutBytes: 101 })
  t.like(killed, { status: 'limit-exceeded', limit: 'output', isMaxBuffer: true, failed: true })
  t.deepEqual([...killed.limitsHit], [])
})

const outputs = {
  a: { path: '/tmp/a', maxBytes: 5 },
  b: { path: '/tmp/b', maxBytes: 5, to: '/host/b' },
  c: { path: '/tmp/c', maxBytes: 5, optional: true },
} as const

test('outputs by name', (t) => {
  const made = makeResult(
    makeRequest(context, 'run', 'prog', [], { outputs }),
    {
      ...ENDED,
      outputs: [{ bytes: 2, content: Buffer.from('hi') }, { bytes: 3 }, { bytes: 0, errno: 2, errnoName: 'ENOENT' }],
    },
    HOST,
  ) as AnyResult & { outputs: Record<string, unknown> }
  t.deepEqual(made.outputs, { a: new Uint8Array([104, 105]), b: { bytes: 3 } })
  t.is(made.outputErrors, undefined)
  t.false(made.failed)
})

test('an output that is not there is a failure that says why', (t) => {
  const made = result(
    {
      outputs: [
        { bytes: 9, tooLarge: true },
        { bytes: 0, errno: 2, errnoName: 'ENOENT' },
        { bytes: 0, errno: 40, errnoName: 'ELOOP' },
      ],
    },
    { outputs },
  )
  t.true(made.failed)
  t.deepEqual(
    Object.entries(made.outputErrors ?? {}).map(([name, error]) => [name, error.errnoName]),
    [
      ['a', 'EFBIG'],
      ['b', 'ENOENT'],
      ['c', 'ELOOP'],
    ],
  )
  t.regex(made.outputErrors?.['a']?.message ?? '', /more than 5 bytes/)
  t.regex(processError(made, context.limits).message, /the outputs a, b, c could not be brought out/)
})

test('a ProcessError says how it ended, quotes stderr, and carries the result', (t) => {
  const failed = result({ status: 3, stderr: Buffer.from(`${'x'.repeat(5000)}the end\n`) })
  const error = processError(failed, context.limits)
  t.true(error instanceof ProcessError)
  t.is(error.shortMessage, String.raw`Command failed with exit code 3: prog 'it'\''s' 'a b'`)
  t.true(error.message.startsWith(error.shortMessage))
  t.true(error.message.endsWith('the end'))
  t.true(error.message.length < 3000)
  t.is(error.result, failed)
  const timedOut = result({ ending: 'signaled', status: SIGKILL, limit: 'wallTime' })
  t.regex(processError(timedOut, context.limits).message, /timed out after 2000 milliseconds/)
})

test('control characters of arguments do not reach a log', (t) => {
  const made = makeResult(makeRequest(context, 'run', 'prog', ['\u001B[2J\n'], {}), ENDED, HOST)
  t.is(made.command, String.raw`prog '\u001b[2J\u000a'`)
})
