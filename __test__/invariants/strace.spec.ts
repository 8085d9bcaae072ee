// A launch calls no pivot_root, no umount2, and mounts only what is fresh for each nest. Nothing on its way from the clone
// to the program's first instruction allocates. Shown by counting system calls; and that the counting would see them is
// shown with `pivot: 'direct'`, which is there for that.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'

import test, { type ExecutionContext } from 'ava'

import { have } from '../helpers.ts'
import { fixture, Host, room } from './support.ts'

const TRACED = [
  'clone,clone3,fork,vfork,execve,execveat,exit_group',
  'pivot_root,chroot,mount,umount2,open_tree,move_mount,mount_setattr,fsopen,fsmount,setns,unshare',
  'brk,mmap,mremap,munmap,mprotect,madvise',
].join(',')

/** A system call of one process, in order. */
interface Call {
  readonly name: string
  readonly text: string
}

/** Traced processes by their pid as the host sees it. */
type Trace = ReadonlyMap<number, readonly Call[]>

const readTrace = (prefix: string): Trace => {
  const trace = new Map<number, Call[]>()
  const { dir, base } = path.parse(prefix)
  for (const file of readdirSync(dir)) {
    if (!file.startsWith(`${base}.`)) continue
    const calls: Call[] = []
    for (const line of readFileSync(path.join(dir, file), 'latin1').split('\n')) {
      const name = /^(?:<\.\.\. )?(\w+)(?:\(| resumed)/.exec(line)?.[1]
      if (name !== undefined) calls.push({ name, text: line })
    }
    trace.set(Number(file.slice(base.length + 1)), calls)
  }
  return trace
}

/** The processes that one program came from: its launch child up to the exec, and its init. */
interface Launch {
  readonly child: readonly Call[]
  readonly init: readonly Call[]
  /** Whoever cloned init, all of it. */
  readonly parent: readonly Call[]
}

/** The pid that a call made, as strace's own pid namespace has it. */
const clonedPid = ({ name, text }: Call): number | undefined => {
  if (!/^(?:clone3?|v?fork)$/.test(name)) return undefined
  const translated = /= \d+ \/\* (\d+) in strace's PID NS \*\/$/.exec(text)?.[1]
  return Number(translated ?? /= (\d+)$/.exec(text)?.[1])
}

const parentOf = (trace: Trace, pid: number): number => {
  for (const [parent, calls] of trace) if (calls.some((call) => clonedPid(call) === pid)) return parent
  throw new Error(`nobody cloned ${pid}`)
}

/** The launch of the program that was executed with this argument. */
const launchOf = (trace: Trace, marker: string): Launch => {
  for (const [pid, calls] of trace) {
    const at = calls.findIndex(({ name, text }) => name.startsWith('execve') && text.includes(`"${marker}"`))
    if (at === -1) continue
    const init = parentOf(trace, pid)
    const whole = trace.get(init) ?? []
    return {
      child: calls.slice(0, at + 1),
      init: whole,
      parent: trace.get(parentOf(trace, init)) ?? [],
    }
  }
  throw new Error(`nothing was executed with ${marker}`)
}

const count = (calls: readonly Call[], ...names: string[]): number =>
  calls.filter(({ name }) => names.includes(name)).length

const ALLOCATING = ['brk', 'mmap', 'mremap', 'munmap', 'mprotect', 'madvise']

/** Where each mount(2) went to. */
const mountTargets = (calls: readonly Call[]): string[] =>
  calls.filter(({ name }) => name === 'mount').map(({ text }) => /^mount\("[^"]*", "([^"]*)"/.exec(text)?.[1] ?? text)

const traced = async (t: ExecutionContext, name: string, options: object): Promise<{ host: Host; prefix: string }> => {
  const prefix = path.join(room(name), 'trace')
  const wrapper = [
    'strace',
    '-ff',
    '--decode-pids=pidns',
    '-s',
    '256',
    '-o',
    prefix,
    '-e',
    `trace=${TRACED}`,
    '-e',
    'signal=none',
  ]
  const host = await Host.start({ wrapper, ...options })
  t.teardown(() => host[Symbol.asyncDispose]())
  return { host, prefix }
}

const traceable = have('strace') && have('gcc')
const straced = traceable ? test : test.skip

straced('a launch from a template mounts what is fresh, and neither pivots nor unmounts', async (t) => {
  const program = fixture('nothing')
  const { host, prefix } = await traced(t, 'strace-template', { base: 'host-system', binds: { '/program': program } })
  // The first makes the initial namespaces, the template, the network pool.
  await host.must('run', { args: ['first'] })
  for (const marker of ['second', 'third', 'fourth']) {
    const { result } = await host.must('run', { args: [marker], options: { stdout: 'ignore', stderr: 'ignore' } })
    t.is(result?.status, 'exited')
  }
  await host[Symbol.asyncDispose]()
  const trace = readTrace(prefix)

  // That they would be seen: making the initial namespaces pivots once, making a template drops the host's tree once.
  const everything = [...trace.values()].flat()
  t.is(count(everything, 'pivot_root'), 1)
  t.is(count(everything, 'umount2'), 1, 'one template, one detached tree')

  for (const marker of ['first', 'second', 'third', 'fourth']) {
    const { init, child, parent } = launchOf(trace, marker)
    t.is(count(child, 'pivot_root', 'umount2', 'chroot', 'mount', 'move_mount', 'open_tree'), 0, marker)
    t.is(
      count(init, 'pivot_root', 'umount2', 'chroot', 'open_tree', 'move_mount', 'fsopen', 'mount_setattr'),
      0,
      marker,
    )

    const targets = mountTargets(init)
    t.is(count(init, 'mount'), targets.length)
    const masks = targets.filter((target) => target.startsWith('/proc/'))
    const fresh = targets.filter((target) => !target.startsWith('/proc/'))
    t.deepEqual(fresh.toSorted(), ['/dev/pts', '/dev/shm', '/proc', '/tmp'], marker)
    // Read-only ones take two calls; each other one.
    const readOnly = new Set(masks.filter((target, index) => masks.indexOf(target) !== index))
    t.is(masks.length, new Set(masks).size + readOnly.size, marker)
    t.true(masks.length > 0, 'proc is masked')

    // One clone for the nest, with everything in it, and one for the program.
    t.is(init.filter((call) => clonedPid(call) !== undefined).length, 1, marker)
    t.is(count(child, 'clone', 'clone3', 'fork', 'vfork'), 0, marker)
    t.is(count(parent, 'unshare'), 0, marker)

    // Nothing is allocated from the clone that makes init to the exec; nor afterwards.
    t.is(count(child, ...ALLOCATING), 0, marker)
    t.deepEqual(
      init.filter(({ name }) => ALLOCATING.includes(name)),
      [],
      marker,
    )
  }
  // All of them by the same template, which mounted nothing for any.
  const [first, last] = [launchOf(trace, 'first'), launchOf(trace, 'fourth')]
  t.is(first.parent, last.parent)
  const forks = first.parent.findIndex(({ text }) => text.includes('CLONE_NEWUTS'))
  t.not(forks, -1)
  const serving = first.parent.slice(forks)
  t.is(count(serving, 'mount', 'umount2', 'pivot_root', 'move_mount', 'open_tree', 'chroot', 'setns', 'unshare'), 0)
  t.is(count(serving, 'clone', 'clone3'), 4, 'one clone a launch')
  // Reusing freed memory is fine, growing with each launch is not: the last launch found all it needed.
  const lastFork = serving.findLastIndex(({ name }) => name === 'clone3' || name === 'clone')
  const forkBefore = serving.findLastIndex(({ name }, at) => at < lastFork && (name === 'clone3' || name === 'clone'))
  t.deepEqual(
    serving.slice(forkBefore + 1, lastFork).filter(({ name }) => name === 'brk'),
    [],
  )
})

straced('without proc and dev a launch mounts its tmpfs, and nothing else', async (t) => {
  const program = fixture('nothing')
  const { host, prefix } = await traced(t, 'strace-bare', { binds: { '/program': program } })
  await host.must('run', { args: ['bare'] })
  await host[Symbol.asyncDispose]()
  const { init } = launchOf(readTrace(prefix), 'bare')
  // The base 'empty' has proc('fresh') and dev('minimal') unless told otherwise: at most those.
  for (const target of mountTargets(init)) t.regex(target, /^\/(?:proc|dev|tmp)(?:\/|$)/)
  t.is(count(init, 'pivot_root', 'umount2', 'move_mount'), 0)
})

straced("sandbox2's requests pivot only if told to: the check above can fail", async (t) => {
  const program = fixture('nothing')
  const { host, prefix } = await traced(t, 'strace-pivot', {})
  for (const pivot of ['nested', 'direct']) {
    const { value } = await host.must('fork', { file: program, args: [`marked-${pivot}`], options: { pivot } })
    t.like(value, { status: 'exited', exitCode: 0 }, pivot)
  }
  await host[Symbol.asyncDispose]()
  const trace = readTrace(prefix)
  const nested = launchOf(trace, 'marked-nested')
  const direct = launchOf(trace, 'marked-direct')
  t.is(count([...nested.init, ...nested.child], 'pivot_root'), 0)
  t.is(count(direct.init, 'pivot_root'), 1)
  t.true(count(direct.init, 'umount2') >= 1)
  t.is(count(nested.child, ...ALLOCATING), 0)
  t.is(count(direct.child, ...ALLOCATING), 0)
})
