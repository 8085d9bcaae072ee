// Ten thousand launches, and a thousand that are ended at random moments, leave nothing behind: no descriptor, process,
// mount, namespace or file; and memory stays where it was.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { execFile, execFileSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import path from 'node:path'
import type { Duplex } from 'node:stream'
import { promisify } from 'node:util'

import test from 'ava'

import { have, isRoot } from '../helpers.ts'
import { fixture, Host, room, root } from './support.ts'

/** In KiB. */
interface Memory {
  readonly heap: number
  readonly host: number
  readonly processes: Readonly<Record<string, number>>
}

interface Report {
  readonly before: { readonly state: unknown }
  readonly after: { readonly state: unknown }
  /** After the first half, and after the second. */
  readonly middle: { readonly memory: Memory }
  readonly last: { readonly memory: Memory }
  readonly outcomes: Readonly<Record<string, number>>
}

const NOBODY = 65534

const compiled = have('gcc') ? test : test.skip

/** What a host of its own looks like before and after; its working directory, home and scratch directory are new. */
const churn = async (
  name: string,
  launches: number,
  aborted: number,
  wrapper: readonly string[] = [],
): Promise<Report> => {
  const directories = ['cwd', 'home', 'tmp'].map((kind) => room(`${name}/${kind}`))
  const [cwd = '', home = '', tmp = ''] = directories
  const settings = { program: fixture('nothing'), stubborn: fixture('stubborn'), launches, aborted, directories }
  const script = path.join(root, '__test__', 'fixtures', 'churn.ts')
  const loader = import.meta.resolve('@oxc-node/core/register')
  const node = [process.execPath, '--expose-gc', '--import', loader, script, JSON.stringify(settings)]
  const [file = '', ...args] = [...wrapper, ...node]
  const { stdout } = await promisify(execFile)(file, args, {
    cwd,
    env: { PATH: process.env['PATH'], HOME: home, TMPDIR: tmp },
    maxBuffer: 64 << 20,
  })
  return JSON.parse(stdout) as Report
}

/** What a fork server might leave in a public place. (Other tests have scratch directories there, of other names.) */
const leftovers = (): string[] =>
  ['/tmp', '/var/tmp', '/dev/shm', '/run'].flatMap((directory) => {
    try {
      return readdirSync(directory)
        .filter((name) => /^\.nestbox|forkserver|sandbox2|realroot/.test(name))
        .map((name) => path.join(directory, name))
    } catch {
      return []
    }
  })

const sum = (numbers: readonly number[]): number => numbers.reduce((total, number) => total + number, 0)

compiled('10,000 launches and 1,000 aborted ones leave nothing behind', async (t) => {
  t.timeout(180_000)
  const files = leftovers()
  const { before, middle, last, after, outcomes } = await churn('churn', 10_000, 1_000)
  t.is(outcomes['done'], 10_000, JSON.stringify(outcomes))
  // The others ended as they were made to, or were done before that.
  const { done: _, ...others } = outcomes
  const known = new Set(['killed', 'disposed', 'destroyed', 'ABORT_ERR', 'ERR_NESTBOX_CLOSED'])
  t.deepEqual(
    Object.keys(others).filter((outcome) => !known.has(outcome)),
    [],
    JSON.stringify(outcomes),
  )
  t.is(sum(Object.values(others)), 1_000)
  t.true((outcomes['ABORT_ERR'] ?? 0) > 100, JSON.stringify(outcomes))

  t.deepEqual(after.state, before.state)
  t.deepEqual(leftovers(), files)

  // What the second half added. A leak of 1 KiB a launch would show in the heap, one of 10 KiB in what the system sees.
  const [first, second] = [middle.memory, last.memory]
  t.true(second.heap - first.heap < 5 * 1024, `heap: ${first.heap} -> ${second.heap} KiB`)
  t.true(second.host - first.host < 50 * 1024, `host: ${first.host} -> ${second.host} KiB`)
  // Our own processes allocate while they decode, and nothing else: a leak of 200 bytes a launch would show.
  for (const [process, kib] of Object.entries(second.processes)) {
    const grown = kib - (first.processes[process] ?? kib)
    t.true(grown < 1024, `${process} grew by ${grown} KiB`)
  }
  t.log(`heap ${first.heap} -> ${second.heap} KiB, host ${first.host} -> ${second.host} KiB`)
})

/** Under a limit of so many namespaces of each kind, one that stays behind with each launch soon keeps all from starting. */
const LIMIT = 150

compiled('no namespace outlives its launch', async (t) => {
  t.timeout(180_000)
  // A user namespace of its own, whose limits are nobody else's.
  const confine = fixture('confine')
  if (isRoot) {
    const probe = ['--reuid', String(NOBODY), '--regid', String(NOBODY), '--clear-groups']
    try {
      execFileSync('setpriv', [...probe, 'test', '-r', path.join(root, 'index.ts')], { stdio: 'ignore' })
    } catch {
      t.log('skipped: another user can not read this directory')
      t.pass()
      return
    }
  }
  await using host = await Host.start({
    wrapper: [confine, isRoot ? String(NOBODY) : '-', '-'],
    pipe: true,
    base: 'host-system',
    binds: { '/program': fixture('nothing') },
  })
  const limits = host.child.stdio[3] as Duplex
  const limit = async (name: string, value: number): Promise<string> => {
    const answer = new Promise<string>((resolve) => {
      limits.once('data', (data: Buffer) => resolve(data.toString()))
    })
    limits.write(`${name} ${value}\n`)
    return answer
  }
  await host.must('run')
  for (const kind of ['user', 'mnt', 'pid', 'ipc', 'uts', 'net', 'cgroup']) {
    t.is(await limit(`max_${kind}_namespaces`, LIMIT), '+', kind)
  }
  for (let round = 0; round < 4; round += 1) {
    const { value } = await host.must('many', { count: 250 })
    t.deepEqual(value, { exited: 250 })
  }

  // That the limits hold, and that a refused clone is told whole and changes nothing.
  for (const kind of ['pid', 'mnt', 'user']) {
    await limit(`max_${kind}_namespaces`, 0)
    const { error } = await host.ask('run')
    t.like(error, { name: 'SpawnError', code: 'ERR_NESTBOX_SPAWN', errno: 28, errnoName: 'ENOSPC' }, kind)
    t.is(error?.syscall, kind === 'user' ? 'unshare' : 'clone3')
    t.is(error?.step, kind === 'user' ? 'create-user-namespace' : 'clone-init')
    t.regex(error?.hint ?? '', /max_[\w*]+_namespaces/, 'the hint names the limit')
    await limit(`max_${kind}_namespaces`, LIMIT)
    t.is((await host.must('run')).result?.status, 'exited', kind)
  }
})
