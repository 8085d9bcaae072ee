import test from 'ava'

import { policy, type Policy, type PolicyBuilder, PolicyError, type PolicyJSON } from '../index.ts'
import { broken, wrong } from './broken.ts'

test('build() fills in every field', (t) => {
  t.deepEqual(JSON.parse(JSON.stringify(policy().build())), {
    version: 1,
    base: 'empty',
    mounts: [],
    proc: 'none',
    dev: 'none',
    rootWritable: false,
    hostname: 'nestbox',
    user: { uid: 1000, gid: 1000 },
    env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', HOME: '/tmp' },
    network: 'none',
    unixSockets: 'none',
    syscalls: 'default',
    coreScheduling: false,
    allowSpeculation: false,
    limits: {
      wallTime: 60_000,
      cpuTime: null,
      processes: 128,
      output: 10_485_760,
      disk: 67_108_864,
      openFiles: 1024,
      fileSize: 1_073_741_824,
      addressSpacePerProcess: null,
      stack: null,
      core: 0,
    },
    require: [],
  })
  const system = policy('host-system').build()
  t.is(system.proc, 'fresh')
  t.is(system.dev, 'minimal')
})

test('every mount has all of its fields', (t) => {
  const { mounts } = policy()
    .bind('/usr')
    .bind('/srv/data', '/data', { writable: true, optional: true })
    .mountPoint('/in')
    .tmpfs('/tmp', { size: '8KiB', inodes: 10 })
    .file('/etc/motd', 'hello')
    .file('/etc/bytes', new Uint8Array([0, 255]), { mode: 0o600 })
    .symlink('/lib', 'usr/lib')
    .librariesFor('/bin/sh')
    .build()
  t.deepEqual(mounts, [
    { type: 'bind', source: '/usr', path: '/usr', writable: false, exec: true, optional: false },
    { type: 'bind', source: '/srv/data', path: '/data', writable: true, exec: false, optional: true },
    { type: 'mountPoint', path: '/in', writable: false, exec: true },
    { type: 'tmpfs', path: '/tmp', size: 8192, inodes: 10, mode: 0o1777 },
    { type: 'file', path: '/etc/motd', content: 'hello', encoding: 'utf8', mode: 0o644 },
    { type: 'file', path: '/etc/bytes', content: 'AP8=', encoding: 'base64', mode: 0o600 },
    { type: 'symlink', path: '/lib', pointsTo: 'usr/lib' },
    { type: 'librariesFor', binary: '/bin/sh' },
  ])
})

test('every call returns a new builder and leaves the receiver alone', (t) => {
  const base = policy().bind('/usr')
  const before = JSON.stringify(base)
  const others: PolicyBuilder[] = [
    base.network('host'),
    base.limits({ wallTime: Infinity }),
    base.env({ A: '1' }),
    base.bind('/', '/host', { writable: true }),
    base.user({ uid: 0, gid: 0 }),
    base.rootWritable(),
  ]
  t.is(JSON.stringify(base), before)
  t.is(new Set([before, ...others.map((other) => JSON.stringify(other))]).size, others.length + 1)
})

test('the last call wins for a path, however it is written', (t) => {
  const { mounts } = policy().bind('/a', '/x').tmpfs('/y').file('//x/./', 'new').build()
  t.deepEqual(
    mounts.map((mount) => mount.type),
    ['tmpfs', 'file'],
  )
})

test('limits merge by key, Infinity lifts, sizes have units', (t) => {
  const { limits } = policy()
    .limits({ wallTime: 1000, output: '1MiB', processes: 5 })
    .limits({ processes: Infinity, disk: '64KiB', cpuTime: 12.5, core: undefined })
    .build()
  t.like(limits, { wallTime: 1000, output: 1_048_576, processes: null, disk: 65_536, cpuTime: 13, core: 0 })
})

test('env merges by key over the default', (t) => {
  const { env } = policy().env({ HOME: '/', A: '1' }).env({ A: '2' }).build()
  t.like(env, { HOME: '/', A: '2' })
  t.truthy(env['PATH'])
})

for (const [name, set] of Object.entries({
  network: (from: PolicyBuilder) => from.network('none'),
  syscalls: (from: PolicyBuilder) => from.syscalls('default'),
  user: (from: PolicyBuilder) => from.user({ uid: 1, gid: 1 }),
  proc: (from: PolicyBuilder) => from.proc('fresh'),
  dev: (from: PolicyBuilder) => from.dev('minimal'),
  hostname: (from: PolicyBuilder) => from.hostname('box'),
  unixSockets: (from: PolicyBuilder) => from.unixSockets('allow'),
  rootWritable: (from: PolicyBuilder) => from.rootWritable(),
  coreScheduling: (from: PolicyBuilder) => from.coreScheduling(),
  allowSpeculation: (from: PolicyBuilder) => from.allowSpeculation(),
})) {
  test(`${name} twice`, broken, () => set(set(policy())), [name], /can be set only once/)
}

test('a base that is none', broken, () => policy(wrong('host')), [], /policy\(\)/)
test(
  'a relative path',
  broken,
  () => policy().bind('/usr', 'usr'),
  ['path'],
  /policy\.bind\(\).*must be absolute, got "usr"/,
)
test('a relative source', broken, () => policy().bind('usr'), ['source'], /must be absolute/)
test('..', broken, () => policy().tmpfs('/tmp/../etc'), ['path'], /must not contain "\.\."/)
test('a NUL byte', broken, () => policy().file('/a\0b', ''), ['path'], /NUL/)
test('a lone surrogate', broken, () => policy().symlink('/a', '\uD800'), ['pointsTo'], /well-formed/)
test('an empty link', broken, () => policy().symlink('/a', ''), ['pointsTo'], /empty/)
test(
  'an unknown option',
  broken,
  () => policy().bind('/a', '/a', wrong({ write: true })),
  ['options', 'write'],
  /no such option/,
)
test('a size without a unit', broken, () => policy().limits({ disk: wrong('64') }), ['disk'], /64MiB/)
test('a negative limit', broken, () => policy().limits({ processes: -1 }), ['processes'], /at least 1/)
test('a limit of no number', broken, () => policy().limits({ wallTime: Number.NaN }), ['wallTime'], /milliseconds/)
test(
  'a time of 30,000 years',
  broken,
  () => policy().limits({ wallTime: 1e15 }),
  ['wallTime'],
  /at most 1000000000000\b/,
)
test('a tmpfs without a size', broken, () => policy().tmpfs('/t', { size: Infinity }), ['options', 'size'], /finite/)
test('an unknown limit', broken, () => policy().limits(wrong({ memory: 1 })), ['memory'], /no such option/)
test('= in a name', broken, () => policy().env({ 'A=B': '' }), ['A=B'], /must not contain "="/)
test('NUL in a value', broken, () => policy().env({ A: '\0' }), ['A'], /NUL/)
test('a hostname with a slash', broken, () => policy().hostname('a/b'), [], /hostname/)
test('an id that means none', broken, () => policy().user({ uid: 0xff_ff_ff_ff, gid: 0 }), ['uid'], /policy\.user/)
test('an unknown requirement', broken, () => policy().require(wrong('magic')), [0], /landlock/)
test(
  'unix sockets refused by no filter',
  broken,
  () => policy().unixSockets('none').syscalls('unfiltered'),
  ['unixSockets'],
  /enforced by the syscall filter/,
)

test('a file over a directory that has something in it is a conflict', (t) => {
  t.throws(() => policy().file('/a/b', '').file('/a', ''), { instanceOf: PolicyError, message: /policy\.file\(\)/ })
  t.throws(() => policy().file('/a', '').file('/a/b', ''), { instanceOf: PolicyError })
})

test('without a filter unix sockets are allowed by default', (t) => {
  t.is(policy().syscalls('unfiltered').build().unixSockets, 'allow')
  t.notThrows(() => policy().unixSockets('allow').syscalls('unfiltered'))
  t.notThrows(() => policy().syscalls('unfiltered').unixSockets('allow'))
})

// ---- what is finished ------------------------------------------------------------------------------------------------------

const isDeeplyFrozen = (value: unknown): boolean =>
  typeof value !== 'object' || value === null || (Object.isFrozen(value) && Object.values(value).every(isDeeplyFrozen))

test('a policy is a frozen plain value, and its JSON reads back', (t) => {
  const built = policy('host-system').bind('/srv', '/data').limits({ wallTime: 5 }).env({ A: '1' }).build()
  t.true(isDeeplyFrozen(built))
  const text = JSON.stringify(built)
  t.deepEqual(JSON.parse(text), { ...built })
  t.is(JSON.stringify(policy.parse(text)), text)
  t.is(JSON.stringify(policy.parse(JSON.parse(text))), text)
  t.is(policy.parse(built), built)
})

test('a builder gives the same policy each time', (t) => {
  const builder = policy().bind('/usr')
  t.is(builder.build(), builder.build())
  t.is(JSON.stringify(builder), JSON.stringify(builder.build()))
})

test('a policy that was spread or edited is another one, and is parsed', (t) => {
  const built = policy().network('none').build()
  const widened = { ...built, network: 'host' }
  const parsed = policy.parse(widened)
  t.not(parsed, built)
  t.is(parsed.network, 'host')
  t.throws(() => policy.parse({ ...built, network: 'everything' }), { instanceOf: PolicyError })
  t.throws(() => policy.parse({ ...built, extra: 1 }), { instanceOf: PolicyError, message: /extra/ })
})

test('parse() fills in what is left out, and refuses what it does not know', (t) => {
  t.is(JSON.stringify(policy.parse({ version: 1 })), JSON.stringify(policy().build()))
  t.is(JSON.stringify(policy.parse({ version: 1, base: 'host-system' })), JSON.stringify(policy('host-system').build()))
  for (const input of [undefined, null, 1, [], {}, { version: 2 }, '{', '[]', 'null']) {
    t.throws(() => policy.parse(input), { instanceOf: PolicyError }, JSON.stringify(input))
  }
})

test('parse() looks at mounts as closely as the builder does', (t) => {
  const mount = { type: 'bind', source: '/usr', path: '/usr', writable: false, exec: true, optional: false }
  const parse = (...mounts: unknown[]): Policy => policy.parse({ version: 1, mounts })
  t.is(parse(mount).mounts.length, 1)
  for (const [mounts, message] of [
    [[{ ...mount, path: '/../etc' }], /\.\./],
    [[{ ...mount, path: 'usr' }], /absolute/],
    [[mount, { ...mount, path: '//usr' }], /more than one entry/],
    [[{ ...mount, type: 'device' }], /mounts\[0\]/],
    [[{ type: 'file', path: '/a', content: '%', encoding: 'base64', mode: 0 }], /encoding/],
    [[{ type: 'file', path: '/a', content: '', encoding: 'utf8', mode: 0o10000 }], /0o7777/],
  ] as const) {
    t.throws(() => parse(...mounts), { instanceOf: PolicyError, message })
  }
})

// ---- hostile input -----------------------------------------------------------------------------------------------------------

test('a getter is read once, and what it answered then is what counts', (t) => {
  let reads = 0
  const limits = {
    get processes() {
      reads += 1
      return reads === 1 ? 5 : Infinity
    },
  }
  t.is(policy().limits(limits).build().limits.processes, 5)
  t.is(reads, 1)
})

test('a proxy can neither answer differently later nor hide a key', (t) => {
  const reads: PropertyKey[] = []
  const proxy = new Proxy(
    { uid: 7, gid: 8 },
    {
      get: (target, key) => {
        reads.push(key)
        return reads.filter((read) => read === key).length === 1 ? Reflect.get(target, key) : 0
      },
    },
  )
  t.deepEqual(policy().user(proxy).build().user, { uid: 7, gid: 8 })
  t.throws(() => policy().user(new Proxy({ uid: 1, gid: 1, root: true } as never, {})), { instanceOf: PolicyError })
})

test('what can not be read is an error of ours', (t) => {
  const throws = {
    get wallTime(): number {
      throw new TypeError('no')
    },
  }
  const error = t.throws(() => policy().limits(throws), { instanceOf: PolicyError, message: /could not be read/ })
  t.truthy(error.cause)
})

test('__proto__ is no name for anything', (t) => {
  const env = JSON.parse('{"__proto__": "x"}') as Record<string, string>
  t.throws(() => policy().env(env), { instanceOf: PolicyError, message: /__proto__/ })
  const json = JSON.parse('{"version": 1, "__proto__": {"network": "host"}}') as PolicyJSON
  t.throws(() => policy.parse(json), { instanceOf: PolicyError, message: /__proto__/ })
  const inherited = Object.create({ network: 'host' }) as Record<string, unknown>
  t.is(policy.parse(Object.assign(inherited, { version: 1 })).network, 'none')
})

test('bytes are copied when they are given', (t) => {
  const bytes = new Uint8Array([1])
  const builder = policy().file('/a', bytes)
  bytes[0] = 2
  t.like(builder.build().mounts[0], { content: 'AQ==' })
})
