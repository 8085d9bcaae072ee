import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { runInNewContext } from 'node:vm'

import test from 'ava'
import type { NativeFailure } from '#binding'

import * as nestbox from '../index.ts'
import {
  AbortError,
  ExecError,
  ForkServerError,
  NestboxError,
  PolicyError,
  RequestError,
  SpawnError,
} from '../index.ts'
import { describeIssues, fromFailure } from '../lib/errors.ts'

const FAILURE: NativeFailure = {
  code: 'ERR_NESTBOX_SPAWN',
  errno: 2,
  errnoName: 'ENOENT',
  syscall: 'open_tree',
  step: 'open-bind-source',
  path: '/srv',
  exec: false,
  message: 'open-bind-source: open_tree /srv: ENOENT (No such file or directory)',
}

test('a failure becomes an error with all of its facts', (t) => {
  const error = fromFailure({ ...FAILURE, hint: 'Is it there?' })
  t.true(error instanceof SpawnError)
  t.false(error instanceof ExecError)
  t.like(error, {
    name: 'SpawnError',
    code: 'ERR_NESTBOX_SPAWN',
    errno: 2,
    errnoName: 'ENOENT',
    syscall: 'open_tree',
    step: 'open-bind-source',
    path: '/srv',
    hint: 'Is it there?',
  })
  t.is(
    error.message,
    "The launch failed at the step 'open-bind-source': open_tree /srv: ENOENT (No such file or directory). Is it there?",
  )
})

test('what is absent is not there', (t) => {
  const { path: _, ...failure } = FAILURE
  t.false('path' in fromFailure(failure))
  t.false('hint' in fromFailure(failure))
  t.false('result' in new AbortError('x'))
})

test('the class follows from the failure', (t) => {
  const exec = fromFailure({ ...FAILURE, code: 'ERR_NESTBOX_EXEC', exec: true })
  t.true(exec instanceof ExecError)
  t.true(exec instanceof SpawnError)
  t.is(exec.code, 'ERR_NESTBOX_EXEC')
  t.true(fromFailure({ ...FAILURE, code: 'ERR_NESTBOX_FORKSERVER' }) instanceof ForkServerError)
  const unsafe = fromFailure({ ...FAILURE, code: 'ERR_NESTBOX_UNSAFE_FD' })
  t.true(unsafe instanceof RequestError)
  t.is(unsafe.code, 'ERR_NESTBOX_UNSAFE_FD')
})

test('the name is not printed as a property', (t) => {
  const error = new NestboxError('ERR_NESTBOX_X', 'x')
  t.is(error.name, 'NestboxError')
  t.deepEqual(Object.keys(error), ['code'])
  t.regex(error.stack ?? '', /^NestboxError: x|^Error: x/)
})

test('instanceof holds between realms and copies', (t) => {
  const foreign = runInNewContext(`
    const error = new Error('x')
    error[Symbol.for('nestbox.NestboxError')] = true
    error[Symbol.for('nestbox.SpawnError')] = true
    error
  `) as unknown
  t.true(foreign instanceof SpawnError)
  t.true(foreign instanceof NestboxError)
  t.false(foreign instanceof ExecError)
  for (const other of [null, undefined, 'x', new Error('x'), {}]) t.false(other instanceof (NestboxError as never))
})

test("a user's subclass is compared as any class", (t) => {
  class Mine extends SpawnError {}
  const mine = new Mine('x', FAILURE)
  t.true(mine instanceof Mine)
  t.true(mine instanceof SpawnError)
  t.false(new SpawnError('x', FAILURE) instanceof Mine)
})

test('a cause is kept', (t) => {
  const cause = new Error('why')
  t.is(new AbortError('x', { cause }).cause, cause)
  t.is(new PolicyError('x', [], { cause }).cause, cause)
})

test('the page of errors lists every code, by the class that has it', (t) => {
  const root = fileURLToPath(new URL('..', import.meta.url))
  const sources = readdirSync(path.join(root, 'lib'), { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith('.ts'),
  )
  const text = sources.map((name) => readFileSync(path.join(root, 'lib', name), 'utf8')).join('\n')
  const codes = new Set(text.match(/(?<=['`])(?:ERR_NESTBOX_[A-Z_]*[A-Z]|ABORT_ERR)(?=['`])/g))
  const page = readFileSync(path.join(root, 'docs', 'errors.md'), 'utf8')
  const rows = [...page.matchAll(/^\| `([A-Z_]+)` \| (.*?) \|/gm)]
  t.deepEqual(rows.map(([, code = '']) => code).toSorted(), [...codes].toSorted())
  for (const [row, , classes = ''] of rows) {
    for (const [, name = ''] of classes.matchAll(/`(\w+)`/g)) t.true(name in nestbox, row)
  }
})

test('issues as sentences', (t) => {
  t.is(describeIssues('It is wrong', [{ path: ['a', 0, 'b c'], message: 'No' }]), 'It is wrong: a[0]["b c"]: No.')
  t.is(
    describeIssues('It is wrong', [
      { path: [], message: 'One.' },
      { path: ['x'], message: 'Two' },
    ]),
    'It is wrong:\n  - One.\n  - x: Two.',
  )
})
