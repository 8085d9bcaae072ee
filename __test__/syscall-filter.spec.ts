// The builder of syscall filters, and the form in which filters are published.

import { readFileSync } from 'node:fs'

import test from 'ava'

import { policy, PolicyError, syscallFilter, type SyscallFilter, type SyscallFilterJSON } from '../index.ts'
import * as syscalls from '../lib/syscalls/index.ts'
import { GROUPS } from '../lib/syscalls/groups.ts'
import { generated } from '../scripts/syscall-groups.ts'
import { broken, wrong } from './broken.ts'

const { arg, arg64, AF_INET, AF_UNIX, AT_FDCWD, CLONE_NEWUSER, PROT_EXEC, TIOCSTI } = syscalls

const json = (filter: SyscallFilter): SyscallFilterJSON => JSON.parse(JSON.stringify(filter)) as SyscallFilterJSON

test('a filter denies by default, and keeps rules in order', (t) => {
  t.deepEqual(json(syscallFilter()), { rules: [], otherwise: 'report' })
  const filter = syscallFilter()
    .errno('readlink', 'ENOENT')
    .allow('read', 'write')
    .when(['socket', 'socketpair'], [arg(0).eq(AF_INET), arg(1).ne(3)], 'allow')
    .kill('ptrace')
    .report('bpf')
    .ask('connect')
    .errno(['mount', 'umount2'], 'EPERM')
    .otherwise({ errno: 'ENOSYS' })
  t.deepEqual(json(filter), {
    rules: [
      { syscalls: ['readlink'], when: [], action: { errno: 'ENOENT' } },
      { syscalls: ['read', 'write'], when: [], action: 'allow' },
      {
        syscalls: ['socket', 'socketpair'],
        when: [
          { arg: 0, width: 32, op: 'eq', value: '0x2' },
          { arg: 1, width: 32, op: 'ne', value: '0x3' },
        ],
        action: 'allow',
      },
      { syscalls: ['ptrace'], when: [], action: 'kill' },
      { syscalls: ['bpf'], when: [], action: 'report' },
      { syscalls: ['connect'], when: [], action: 'ask' },
      { syscalls: ['mount', 'umount2'], when: [], action: { errno: 'EPERM' } },
    ],
    otherwise: { errno: 'ENOSYS' },
  })
})

test('every call returns a new filter and leaves the receiver alone', (t) => {
  const base = syscallFilter().allowRead()
  const before = JSON.stringify(base)
  const others = [
    base.allow('write'),
    base.kill('write'),
    base.allowTime(),
    base.otherwise('kill'),
    base.preset('strict'),
  ]
  t.is(JSON.stringify(base), before)
  t.is(new Set([before, ...others.map((other) => JSON.stringify(other))]).size, others.length + 1)
  const [rule] = base.toJSON().rules
  t.true(Object.isFrozen(rule) && Object.isFrozen(rule?.syscalls))
})

test('conditions say how much of an argument they compare', (t) => {
  t.deepEqual(arg(1).eq(TIOCSTI), { arg: 1, width: 32, op: 'eq', value: '0x5412' })
  t.deepEqual(arg(0).eq(AT_FDCWD), { arg: 0, width: 32, op: 'eq', value: '0xffffff9c' })
  t.deepEqual(arg64(0).eq(-1n), { arg: 0, width: 64, op: 'eq', value: '0xffffffffffffffff' })
  t.deepEqual(arg64(1).ge(2n ** 63n), { arg: 1, width: 64, op: 'ge', value: '0x8000000000000000' })
  t.deepEqual(arg(0).lt(0xff_ff_ff_ff), { arg: 0, width: 32, op: 'lt', value: '0xffffffff' })
  t.deepEqual(arg(0).le(0), { arg: 0, width: 32, op: 'le', value: '0x0' })
  t.deepEqual(arg(5).gt(1), { arg: 5, width: 32, op: 'gt', value: '0x1' })
  t.deepEqual(arg(0).hasAny(CLONE_NEWUSER), { arg: 0, width: 32, op: 'hasAny', value: '0x10000000' })
  t.deepEqual(arg(2).hasNone(PROT_EXEC), { arg: 2, width: 32, op: 'maskedEq', mask: '0x4', value: '0x0' })
  t.deepEqual(arg(2).hasAll(6), { arg: 2, width: 32, op: 'maskedEq', mask: '0x6', value: '0x6' })
  t.deepEqual(arg(2).maskedEq(~1, 4), { arg: 2, width: 32, op: 'maskedEq', mask: '0xfffffffe', value: '0x4' })
  t.deepEqual(arg(0).oneOf(AF_UNIX, AF_INET), { arg: 0, width: 32, op: 'oneOf', values: ['0x1', '0x2'] })
})

test('fallbacks of groups come after all other rules', (t) => {
  const filter = syscallFilter().allowStaticStartup().allow('readlink')
  const { rules } = json(filter)
  const about = rules.filter((rule) => rule.syscalls.includes('readlink'))
  t.deepEqual(
    about.map((rule) => rule.action),
    ['allow', { errno: 'ENOENT' }],
  )
})

test('presets are data, and may have exceptions before them', (t) => {
  const filter = json(syscallFilter().errno('connect', 'EACCES').preset('default'))
  t.deepEqual(filter.rules[0], { syscalls: ['connect'], when: [], action: { errno: 'EACCES' } })
  t.true(filter.rules[1]?.syscalls.includes('connect'))
  t.deepEqual(filter.otherwise, { errno: 'ENOSYS' })
  t.is(json(syscallFilter().preset('strict')).otherwise, 'report')
  t.is(json(syscallFilter().otherwise('kill').preset('strict')).otherwise, 'kill')
  t.is(json(syscallFilter().preset('strict').otherwise('kill')).otherwise, 'kill')
})

test('every group can be used, and the core knows all of its names', (t) => {
  const all = Object.keys(GROUPS) as (keyof typeof GROUPS)[]
  t.true(all.length > 60)
  for (const name of all) {
    const filter = syscallFilter()[name]().otherwise('kill')
    t.notThrows(() => policy().syscalls(filter), name)
    t.true(json(filter).rules.length > 0, name)
  }
  const together = all.reduce((filter, name) => filter[name](), syscallFilter())
  t.notThrows(() =>
    policy().syscalls(
      together.allowFutexOp(syscalls.FUTEX_REQUEUE).allowRestartableSequences('allow-slow-fences').preset('default'),
    ),
  )
})

test('what is generated from the tables is up to date (`npm run generate`)', (t) => {
  for (const [name, text] of Object.entries(generated())) {
    t.true(readFileSync(new URL(`../${name}`, import.meta.url), 'utf8') === text, `${name} is stale`)
  }
})

test('a policy holds its filter as data', (t) => {
  const filter = syscallFilter().preset('default').otherwise('kill')
  const built = policy('host-system').syscalls(filter).build()
  t.deepEqual(JSON.parse(JSON.stringify(built.syscalls)), json(filter))
  const text = JSON.stringify(built)
  const parsed = policy.parse(text)
  t.is(JSON.stringify(parsed), text)
  t.is(policy.hash(parsed), policy.hash(built))
  t.notThrows(() => policy().syscalls(JSON.parse(JSON.stringify(filter)) as SyscallFilterJSON))
})

test('hashes tell filters apart by what they do, and not by what is random in them', (t) => {
  const hash = (filter: SyscallFilter | 'default' | 'strict') => policy.hash(policy().syscalls(filter).build())
  t.is(hash('strict'), hash('strict'))
  t.not(hash('strict'), hash('default'))
  t.is(hash('strict'), hash(syscallFilter().preset('strict')))
  t.is(hash('default'), hash(syscallFilter().preset('default')))
  const one = syscallFilter().allow('read')
  t.is(hash(one.allow('write')), hash(syscallFilter().allow('write', 'read')))
  t.not(hash(one), hash(one.otherwise('kill')))
  t.not(hash(one.when('write', [arg(0).eq(1)], 'allow')), hash(one.when('write', [arg(0).eq(2)], 'allow')))
})

test('a name that this architecture has no call for is passed over', (t) => {
  t.notThrows(() => policy().syscalls(syscallFilter().allow('open', 'openat', 'arch_prctl', 'renameat')))
})

test('an unknown name', broken, () => syscallFilter().allow('read', 'opne'), ['names', 1], /no system call "opne"/)
test('no name at all', broken, () => syscallFilter().allow(), ['names'], /at least one system call/)
test('a number', broken, () => syscallFilter().allow(wrong(1)), ['names', 0], /the name of a system call/)
test('an unknown error', broken, () => syscallFilter().errno('read', 'EFOO'), [], /no error "EFOO"/)
test('an error by number', broken, () => syscallFilter().errno('read', wrong(1)), ['errno'], /"EPERM"/)
test('allowing the rest', broken, () => syscallFilter().otherwise(wrong('allow')), [], /a filter denies by default/)
test(
  'an unknown action',
  broken,
  () => syscallFilter().when('read', [arg(0).eq(0)], wrong('log')),
  ['action'],
  /"allow", "report"/,
)
test('otherwise twice', broken, () => syscallFilter().otherwise('kill').otherwise('kill'), [], /can be set only once/)
test('no conditions', broken, () => syscallFilter().when('read', [], 'allow'), ['conditions'], /without conditions/)
test(
  'something else than a condition',
  broken,
  () => syscallFilter().when('read', [wrong({ arg: 0 })], 'allow'),
  ['conditions', 0, 'op'],
  /as arg\(\) makes them/,
)
test('argument 6', broken, () => arg(6), [], /numbered from 0 to 5, got 6/)
test('33 bits', broken, () => arg(0).eq(2 ** 32), [], /at most 32 bits; arg64\(\) compares all 64/)
test('65 bits', broken, () => arg64(0).eq(2n ** 64n), [], /at most 64 bits/)
test('a fraction', broken, () => arg(0).eq(1.5), [], /whole number/)
test('a text', broken, () => arg(0).eq(wrong('1')), [], /whole number/)
test('less than a negative number', broken, () => arg(0).lt(-1), [], /unsigned, got -1/)
test(
  'no bits',
  broken,
  () => syscallFilter().when('read', [arg(0).hasAny(0)], 'allow'),
  ['conditions', 0],
  /has any of no bits/,
)
test(
  'bits beyond the mask',
  broken,
  () => syscallFilter().when('read', [arg(0).maskedEq(1, 2)], 'allow'),
  ['conditions', 0],
  /nothing matches/,
)
test(
  'an unknown preset',
  broken,
  () => policy().syscalls(wrong('lenient')),
  [],
  /"default", "strict", "unfiltered" or made by syscallFilter/,
)
test('no rules of unfiltered', broken, () => syscallFilter().preset(wrong('unfiltered')), [], /"default" or "strict"/)
test(
  'an unknown key in a rule',
  broken,
  () =>
    policy().syscalls(wrong({ rules: [{ syscalls: ['read'], when: [], action: 'allow', x: 1 }], otherwise: 'kill' })),
  ['rules', 0, 'x'],
  /no such option/,
)
test(
  'an unknown name in a parsed policy',
  broken,
  () =>
    policy.parse({
      version: 1,
      syscalls: { rules: [{ syscalls: ['nope'], when: [], action: 'allow' }], otherwise: 'kill' },
    }),
  ['syscalls', 'rules', 0, 'syscalls', 0],
  /no system call "nope"/,
)
const values = Array.from({ length: 700 }, (_, index) => index)
const tooLong = syscallFilter()
  .when('read', [arg64(1).oneOf(...values)], 'allow')
  .when('write', [arg64(2).oneOf(...values)], 'allow')
test(
  'a filter that the kernel would not take',
  broken,
  () => policy().syscalls(tooLong),
  ['syscalls', 'rules'],
  /the kernel takes 4096/,
)
test(
  'io_uring without unix sockets',
  broken,
  () => policy().syscalls(syscallFilter().allow('io_uring_setup')),
  ['syscalls', 'rules', 0, 'action'],
  /makes sockets that no filter sees/,
)

test('names are given by functions of the builder only', (t) => {
  const filter = syscallFilter()
  const copy = { ...filter }
  t.throws(() => policy().syscalls(copy as never), { instanceOf: PolicyError })
})
