import test from 'ava'

import { RequestError } from '../index.ts'
import { ForkClient, forkRequest, type ForkRequestBuilder, mountTree } from '../lib/sandbox2/index.ts'
import { toNativeRequest } from '../lib/sandbox2/request.ts'

const base = forkRequest().mode('fork-execve-sandbox').args('/bin/true')

test('a request with everything', (t) => {
  const request = forkRequest()
    .mode('fork-execve-sandbox')
    .args('/bin/cat', '/etc/hostname')
    .envs({ LANG: 'C' })
    .cloneFlags('newuser', 'newns', 'newpid', 'newipc', 'newuts', 'newnet', 'newcgroup')
    .mountTree(mountTree().addTmpfs('/tmp', { size: '1MiB' }))
    .hostname('box')
    .monitorType('ptrace')
    .netnsMode('per-sandboxee')
    .pivot('direct')
    .build()
  t.true(Object.isFrozen(request))
  t.deepEqual(toNativeRequest(request), {
    mode: 1,
    cloneFlags: 0x7e_02_00_00,
    tree: [{ type: 'tmpfs', path: '/tmp', writable: true, options: 'size=1048576' }],
    hostname: 'box',
    monitorType: 1,
    allowSpeculation: false,
    netnsMode: 1,
    initializationType: 0,
    pivot: 2,
    args: '/bin/cat\0/etc/hostname',
    env: 'LANG=C\0SANDBOX2_NOFORKSERVER=1',
    uid: 1000,
    gid: 1000,
    stdin: -1,
    stdout: -1,
    stderr: -1,
  })
})

test('the builder is immutable, and checks nothing before build()', (t) => {
  const wrong = base.hostname('a/b')
  t.notThrows(() => base.build())
  t.throws(() => wrong.build(), { instanceOf: RequestError })
  t.notThrows(() => wrong.hostname('ab').build())
})

const refused = test.macro({
  exec: (t, request: ForkRequestBuilder, key: string) => {
    const error = t.throws(() => request.build(), { instanceOf: RequestError })
    t.is(error.issues[0]?.path[0], key)
  },
  title: (name = '') => `refused: ${name}`,
})

test('no mode', refused, forkRequest().args('a'), 'mode')
test('no program', refused, forkRequest().mode('fork-execve'), 'args')
test('namespaces without newuser', refused, base.mode('fork-execve').cloneFlags('newpid'), 'cloneFlags')
test('a sandbox without newuser', refused, base.cloneFlags(), 'cloneFlags')
test('a tree without newns', refused, base.cloneFlags('newuser').mountTree(mountTree()), 'mountTree')
test('a hostname without newuts', refused, base.cloneFlags('newuser').hostname('x'), 'hostname')
test('two minds about the network', refused, base.netnsMode('none'), 'netnsMode')
test('initialize what', refused, forkRequest().mode('initialize'), 'initializationType')
test('initialize with a program', refused, base.initializationType('ipc-namespace'), 'initializationType')
test('NUL in an argument', refused, base.args('a\0b'), 'args')
test('an unknown flag', refused, base.cloneFlags('newtime' as never), 'cloneFlags')
test('a tree of their own', refused, base.mountTree({ list: () => [] } as never), 'mountTree')

test('a mode without namespaces', (t) => {
  const request = toNativeRequest(forkRequest().mode('fork-execve').args('/bin/true').build())
  t.is(request.cloneFlags, 0)
  t.is(request.tree, undefined)
  t.is(request.netnsMode, 2)
})

test('only what build() made is sent', async (t) => {
  t.throws(() => new ForkClient({} as never), { instanceOf: RequestError })
  const client = Object.create(ForkClient.prototype) as ForkClient
  await t.throwsAsync(() => client.sendRequest({ ...base.build() }), { instanceOf: RequestError })
})

// ---- mount tree -----------------------------------------------------------------------------------------------------------------

test('names that are none', (t) => {
  for (const path of ['', 'a', '/', '/a\0', '/..', '/a/../b']) {
    t.throws(() => mountTree().addFile('/etc/passwd', path), { instanceOf: RequestError }, path)
    t.throws(() => mountTree().addTmpfs(path, { size: 4096 }), { instanceOf: RequestError }, path)
    t.throws(() => mountTree().remove(path), { instanceOf: RequestError }, path)
  }
})

test('a tree lists what is in it, in order', (t) => {
  const tree = mountTree().addDirectory('/usr').addFile('/etc/passwd', '/etc/p', { writable: true }).rootWritable()
  t.deepEqual(tree.list(), [
    { type: 'directory', inside: '/usr', outside: '/usr', writable: false },
    { type: 'file', inside: '/etc/p', outside: '/etc/passwd', writable: true },
    { type: 'root', inside: '/', writable: true },
  ])
})

test('the same again is the same; writable once is writable', (t) => {
  for (const order of [
    [false, true],
    [true, false],
  ]) {
    let tree = mountTree()
    for (const writable of order) tree = tree.addFile('/etc/passwd', '/p', { writable })
    t.deepEqual(tree.list(), [{ type: 'file', inside: '/p', outside: '/etc/passwd', writable: true }])
  }
})

test('remove() takes what is below along', (t) => {
  const tree = mountTree().addDirectory('/usr', '/a/b').addFile('/etc/passwd', '/a/c').addTmpfs('/ab', { size: 4096 })
  t.deepEqual(
    tree
      .remove('/a')
      .list()
      .map((entry) => entry.inside),
    ['/ab'],
  )
  t.throws(() => tree.remove('/b'), { instanceOf: RequestError, message: /Nothing is at/ })
  t.is(tree.list().length, 3)
})

test('resolve() says what a path inside shows', (t) => {
  const tree = mountTree()
    .addDirectory('/usr', '/u')
    .addFile('/etc/passwd', '/u/share/p')
    .addTmpfs('/t', { size: 4096 })
  t.is(tree.resolve('/u/bin/sh'), '/usr/bin/sh')
  t.is(tree.resolve('/u/share/p'), '/etc/passwd')
  t.is(tree.resolve('/u/share/p/x'), undefined)
  t.is(tree.resolve('/t/x'), undefined)
  t.is(tree.resolve('/none'), undefined)
})
