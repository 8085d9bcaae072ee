// Files that are brought out of a nest after its death: regular ones, whole, bounded, never by way of a link.

import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'

import test from 'ava'

import { policy, run, Sandbox, SpawnError } from '../index.ts'
import { isRoot, scratch } from './helpers.ts'
import { sh } from './inside.ts'

test('bytes, exactly', async (t) => {
  const { outputs, failed } = await sh(
    { run },
    String.raw`mkdir /tmp/sub; printf 'a\000\377' > /tmp/sub/a; : > /tmp/b`,
    {
      outputs: { first: { path: '/tmp/sub/a', maxBytes: 100 }, 'the second': { path: '/tmp/b', maxBytes: '1KiB' } },
    },
  )
  t.false(failed)
  const first: Uint8Array = outputs.first
  t.deepEqual(first, Uint8Array.of(97, 0, 255))
  t.deepEqual(outputs['the second'], new Uint8Array(0))
})

test('a large one', async (t) => {
  const { outputs } = await sh({ run }, 'head -c 20000000 /dev/urandom > /tmp/a; sha256sum < /tmp/a > /tmp/sum', {
    outputs: { a: { path: '/tmp/a', maxBytes: '20MiB' }, sum: { path: '/tmp/sum', maxBytes: 100 } },
  })
  const { createHash } = await import('node:crypto')
  t.is(createHash('sha256').update(outputs.a).digest('hex'), Buffer.from(outputs.sum).toString().slice(0, 64))
})

test('to a new host file', async (t) => {
  const to = path.join(scratch(t), 'copy')
  const { outputs } = await sh({ run }, 'echo hello > /tmp/a', {
    outputs: { a: { path: '/tmp/a', maxBytes: 100, to } },
  })
  t.deepEqual(outputs, { a: { bytes: 6 } })
  t.is(readFileSync(to, 'utf8'), 'hello\n')
})

test('to a host file that can be seen not to be made: an error before the program runs', async (t) => {
  const directory = scratch(t)
  chmodSync(directory, 0o777)
  const at = (...names: string[]): string => path.join(directory, ...names)
  writeFileSync(at('there'), 'mine')
  symlinkSync(at('elsewhere'), at('link'))
  mkdirSync(at('closed'), { mode: 0o555 })
  const sandbox = await Sandbox.create(policy('host-system').bind(directory, '/job', { writable: true }))
  for (const [to, errnoName, hint] of [
    [at('there'), 'EEXIST', /never replaces a file/],
    [at('link'), 'EEXIST', /never replaces a file/],
    [at('none', 'copy'), 'ENOENT', /not there on the host/],
    [at('there', 'copy'), 'ENOTDIR', /no directory/],
    // Root may write anywhere.
    ...(isRoot ? [] : [[at('closed', 'copy'), 'EACCES', /may not make a file/] as const]),
  ] as const) {
    const launched = sh(sandbox, 'echo hello > /tmp/a; echo > /job/ran', {
      // It is about the file inside.
      outputs: { a: { path: '/tmp/a', maxBytes: 100, to, optional: true } },
    })
    // oxlint-disable-next-line no-await-in-loop
    const error = await t.throwsAsync(launched, { instanceOf: SpawnError })
    t.like(error, { errnoName, path: to, step: 'open-output-target' })
    t.true(error?.message.includes(to))
    t.regex(error?.hint ?? '', hint)
  }
  t.deepEqual(readdirSync(directory).toSorted(), ['closed', 'link', 'there'])
  t.is(readFileSync(at('there'), 'utf8'), 'mine')
})

test('to a host file that could not be made in the end: a failure of the host file, also of an optional output', async (t) => {
  const directory = scratch(t)
  const targets = ['gone', 'taken', 'linked'].map((name) => path.join(directory, name, 'copy'))
  const [gone, taken, linked] = targets as [string, string, string]
  chmodSync(directory, 0o777)
  for (const to of targets) {
    mkdirSync(path.dirname(to))
    chmodSync(path.dirname(to), 0o777)
  }
  const sandbox = await Sandbox.create(policy('host-system').bind(directory, '/job', { writable: true }))
  const script = 'rmdir /job/gone; echo theirs > /job/taken/copy; ln -s ../victim /job/linked/copy'
  const result = await sh(sandbox, `echo hello > /tmp/a; ${script}`, {
    outputs: {
      gone: { path: '/tmp/a', maxBytes: 100, to: gone, optional: true },
      taken: { path: '/tmp/a', maxBytes: 100, to: taken, optional: true },
      linked: { path: '/tmp/a', maxBytes: 100, to: linked, optional: true },
      whole: { path: '/tmp/a', maxBytes: 100, to: path.join(directory, 'whole') },
      absent: { path: '/tmp/b', maxBytes: 100, to: path.join(directory, 'absent'), optional: true },
    },
  })
  t.true(result.failed)
  t.deepEqual(result.outputErrors, {
    gone: {
      path: '/tmp/a',
      to: gone,
      errnoName: 'ENOENT',
      message: `/tmp/a could not be written to the host file ${gone}, whose directory is gone (ENOENT).`,
    },
    taken: {
      path: '/tmp/a',
      to: taken,
      errnoName: 'EEXIST',
      message: `/tmp/a could not be written to the host file ${taken}, which exists (EEXIST).`,
    },
    linked: {
      path: '/tmp/a',
      to: linked,
      errnoName: 'EEXIST',
      message: `/tmp/a could not be written to the host file ${linked}, which exists (EEXIST).`,
    },
  })
  t.deepEqual(result.outputs as object, { whole: { bytes: 6 } })
  t.is(readFileSync(taken, 'utf8'), 'theirs\n')
  t.false(existsSync(path.join(directory, 'victim')))
  t.false(existsSync(path.join(directory, 'absent')))
})

test('to a host file below a directory that the program replaces by a link', async (t) => {
  const directory = scratch(t)
  const job = path.join(directory, 'job')
  const victim = path.join(directory, 'victim')
  mkdirSync(path.join(job, 'results'), { recursive: true })
  mkdirSync(victim)
  chmodSync(job, 0o777)
  chmodSync(path.join(job, 'results'), 0o777)
  const sandbox = await Sandbox.create(policy('host-system').bind(job, '/job', { writable: true }))
  const script = `echo hello > /tmp/a; mv /job/results /job/moved && ln -s ${victim} /job/results`
  const result = await sh(sandbox, script, {
    outputs: { a: { path: '/tmp/a', maxBytes: 100, to: path.join(job, 'results', 'copy') } },
  })
  t.false(result.failed)
  t.deepEqual(result.outputs, { a: { bytes: 6 } })
  t.is(readFileSync(path.join(job, 'moved', 'copy'), 'utf8'), 'hello\n')
  t.deepEqual(readdirSync(victim), [])
  // And where the directory is gone, there is no file.
  mkdirSync(path.join(job, 'again'))
  const gone = await sh(sandbox, `echo hello > /tmp/a; rmdir /job/again && ln -s ${victim} /job/again`, {
    outputs: { a: { path: '/tmp/a', maxBytes: 100, to: path.join(job, 'again', 'copy') } },
  })
  t.is(gone.outputErrors?.['a']?.errnoName, 'ENOENT')
  t.deepEqual(readdirSync(victim), [])
})

const refused = test.macro<[script: string, errnoName: RegExp, at?: string]>({
  exec: async (t, script: string, errnoName: RegExp, at: string = '/tmp/out') => {
    const to = path.join(scratch(t), 'copy')
    const result = await sh({ run }, script, {
      outputs: { bytes: { path: at, maxBytes: 1000 }, file: { path: at, maxBytes: 1000, to } },
    })
    t.is(result.status, 'exited')
    t.true(result.failed)
    t.deepEqual(Object.keys(result.outputs), [])
    t.regex(result.outputErrors?.['bytes']?.errnoName ?? '', errnoName)
    t.regex(result.outputErrors?.['file']?.errnoName ?? '', errnoName)
    t.true(result.outputErrors?.['bytes']?.message.includes(at))
    t.false(existsSync(to))
  },
  title: (name = '') => `refused: ${name}`,
})

test('one that is not there', refused, 'true', /^ENOENT$/)
test('a link to a file of the host system', refused, 'ln -s /etc/passwd /tmp/out', /^ELOOP$/)
test('a relative link', refused, 'echo x > /tmp/real; ln -s real /tmp/out', /^ELOOP$/)
test('a link on the way', refused, 'ln -s /etc /tmp/dir', /^ELOOP$/, '/tmp/dir/passwd')
test('a magic link', refused, 'true', /^(?:ELOOP|ENOENT|EXDEV|EACCES)$/, '/proc/self/exe')
test('a pipe, which does not block', refused, 'mkfifo /tmp/out', /^(?:EMEDIUMTYPE|ENXIO)$/)
test('a directory', refused, 'mkdir /tmp/out', /^(?:EMEDIUMTYPE|EISDIR)$/)
test('a device', refused, 'true', /^(?:EMEDIUMTYPE|EXDEV)$/, '/dev/zero')
test('one that is too large', refused, 'head -c 1001 /dev/zero > /tmp/out', /^EFBIG$/)
test('a sparse giant', refused, 'truncate -s 900M /tmp/out', /^EFBIG$/)

test('as large as it may be', async (t) => {
  const { outputs } = await sh({ run }, 'head -c 1000 /dev/zero > /tmp/out', {
    outputs: { out: { path: '/tmp/out', maxBytes: 1000 } },
  })
  t.is(outputs.out.length, 1000)
})

test('an optional one that is not there is no failure; one that is wrong is', async (t) => {
  const outputs = { log: { path: '/tmp/log', maxBytes: 10, optional: true } } as const
  const absent = await run('true', [], { outputs })
  t.false(absent.failed)
  t.is(absent.outputs.log, undefined)
  t.is(absent.outputErrors, undefined)
  const wrong = await sh({ run }, 'ln -s /etc/passwd /tmp/log', { outputs })
  t.true(wrong.failed)
  t.is(wrong.outputErrors?.['log']?.errnoName, 'ELOOP')
})

test('a file that the program alone may read is read as the program', async (t) => {
  const { outputs } = await sh({ run }, 'echo secret > /tmp/a; chmod 600 /tmp/a; chmod 700 /tmp', {
    outputs: { a: { path: '/tmp/a', maxBytes: 10 } },
  })
  t.is(Buffer.from(outputs.a).toString(), 'secret\n')
})

test('outputs of a program that failed, was killed or ran into a limit', async (t) => {
  const outputs = { a: { path: '/tmp/a', maxBytes: 10 } }
  for (const [script, status] of [
    ['echo x > /tmp/a; exit 4', 'exited'],
    ['echo x > /tmp/a; kill -SEGV $$', 'signaled'],
    ['echo x > /tmp/a; sleep 60', 'limit-exceeded'],
  ] as const) {
    // oxlint-disable-next-line no-await-in-loop
    const result = await sh({ run }, script, { outputs, timeout: 2000 })
    t.is(result.status, status)
    t.is(Buffer.from(result.outputs.a).toString(), 'x\n')
  }
})

test('from a writable bind', async (t) => {
  const directory = scratch(t)
  chmodSync(directory, 0o777)
  const sandbox = await Sandbox.create(policy('host-system').bind(directory, '/data', { writable: true }))
  const { outputs, failed } = await sh(sandbox, 'echo x > /data/a', {
    outputs: { a: { path: '/data/a', maxBytes: 10 } },
  })
  t.false(failed)
  t.is(Buffer.from(outputs.a).toString(), 'x\n')
  t.deepEqual(readdirSync(directory), ['a'])
})

test('many at once', async (t) => {
  const names = Array.from({ length: 40 }, (_, index) => `f${index}`)
  const outputs = Object.fromEntries(names.map((name) => [name, { path: `/tmp/${name}`, maxBytes: 100 }]))
  const result = await sh({ run }, `for i in ${names.join(' ')}; do echo $i > /tmp/$i; done`, { outputs })
  t.deepEqual(
    Object.entries(result.outputs).map(([name, bytes]) => [name, Buffer.from(bytes).toString()]),
    names.map((name) => [name, `${name}\n`]),
  )
})
