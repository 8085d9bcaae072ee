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
  // Older versions of strace do not know it.
  '?landlock_create_ruleset',
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

/** The pid that a call made, as its caller has it, and as the host has it if the tracer could find out. */
const clonedPid = ({ name, text }: Call): { own: number; host: number | undefined } | undefined => {
  if (!/^(?:clone3?|v?fork)$/.test(name)) return undefined
  const found = /= (\d+)(?: \/\* (\d+) in strace's PID NS \*\/)?$/.exec(text)
  return found === null
    ? undefined
    : { own: Number(found[1]), host: found[2] === undefined ? undefined : Number(found[2]) }
}

/**
 * Who made a process. An unprivileged tracer may not look into ours to translate pids; but launches come one after the
 * other here, so it is the last one before that made somebody in a pid namespace by that call.
 */
const parentOf = (trace: Trace, pid: number, way: 'clone' | 'clone3'): number => {
  let last = 0
  for (const [parent, calls] of trace) {
    for (const call of calls) {
      const made = clonedPid(call)
      if (made === undefined) continue
      if (made.host === pid || (made.host === undefined && made.own === pid)) return parent
      if (call.name === way && !trace.has(made.own) && parent < pid) last = Math.max(last, parent)
    }
  }
  if (last === 0) throw new Error(`nobody made ${pid}`)
  return last
}

/** The launch of a program, by its pid. */
const launchOf = (trace: Trace, pid: number): Launch => {
  const calls = trace.get(pid) ?? []
  const exec = calls.findIndex(({ name, text }) => name.startsWith('execve') && text.endsWith('= 0'))
  if (exec === -1) throw new Error(`${pid} executed nothing`)
  const init = parentOf(trace, pid, 'clone')
  return {
    child: calls.slice(0, exec + 1),
    init: trace.get(init) ?? [],
    parent: trace.get(parentOf(trace, init, 'clone3')) ?? [],
  }
}

const count = (calls: readonly Call[], ...names: string[]): number =>
  calls.filter(({ name }) => names.includes(name)).length

const ALLOCATING = ['brk', 'mmap', 'mremap', 'munmap', 'mprotect', 'madvise']

/** Where each mount(2) went to. The tracer of an unprivileged host sees only that it was called. */
const mountTargets = (calls: readonly Call[]): (string | undefined)[] =>
  calls.filter(({ name }) => name === 'mount').map(({ text }) => /^mount\([^,]*, "([^"]*)"/.exec(text)?.[1])

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
  const pids: number[] = []
  // The first makes the initial namespaces, the template, the network pool.
  for (const options of [{}, {}, { stdout: 'ignore', stderr: 'ignore' }, {}]) {
    const { result } = await host.must('run', { options })
    t.is(result?.status, 'exited')
    pids.push(result?.pid ?? 0)
  }
  const { result: mounts } = await host.must('run', { file: '/bin/cat', args: ['/proc/self/mountinfo'] })
  const covered = (mounts?.stdout.match(/ \/proc\/\S+ (?=\S*,)/g) ?? []).length
  t.true(covered > 0, 'proc is masked')
  await host[Symbol.asyncDispose]()
  const trace = readTrace(prefix)

  // That they would be seen: making the initial namespaces pivots once, making a template drops the host's tree once.
  const everything = [...trace.values()].flat()
  t.is(count(everything, 'pivot_root'), 1)
  t.is(count(everything, 'umount2'), 1, 'one template, one detached tree')

  const launches = pids.map((pid) => launchOf(trace, pid))
  for (const { init, child, parent } of launches) {
    t.is(count(child, 'pivot_root', 'umount2', 'chroot', 'mount', 'move_mount', 'open_tree'), 0)
    t.is(count(init, 'pivot_root', 'umount2', 'chroot', 'open_tree', 'move_mount', 'mount_setattr'), 0)
    t.is(count(init, 'fsopen', 'fsmount'), 0)

    // proc, /tmp, /dev/shm, /dev/pts; what covers a part of proc takes one call, or two if it is made read-only. Below proc are the
    // nest's message queues, for a rule of Landlock, where the kernel has it.
    const targets = mountTargets(init)
    const queues = count(init, 'landlock_create_ruleset')
    const least = 4 + queues + covered
    t.is(count(init, 'mount'), targets.length)
    t.true(targets.length >= least && targets.length <= least + covered, `${targets.length}, ${covered} covered`)
    if (!targets.includes(undefined)) {
      const fresh = targets.filter((target) => target?.startsWith('/proc/') !== true)
      const sorted = fresh.map(String).toSorted((a, b) => a.localeCompare(b))
      t.deepEqual(sorted, ['/dev/pts', '/dev/shm', ...Array.from({ length: queues }, () => '/proc'), '/proc', '/tmp'])
    }

    // One clone for the nest, with everything in it, and one for the program.
    t.is(init.filter((call) => clonedPid(call) !== undefined).length, 1)
    t.is(count(child, 'clone', 'clone3', 'fork', 'vfork'), 0)
    t.is(count(parent, 'unshare'), 0)

    // Nothing is allocated from the clone that makes init to the exec; nor afterwards.
    t.is(count(child, ...ALLOCATING), 0)
    t.deepEqual(
      init.filter(({ name }) => ALLOCATING.includes(name)),
      [],
    )
  }
  // All of them by the same template, which mounted nothing for any.
  const template = launches[0]?.parent ?? []
  for (const { parent } of launches) t.is(parent, template)
  const serving = template.slice(template.findIndex((call) => clonedPid(call) !== undefined))
  t.is(count(serving, 'mount', 'umount2', 'pivot_root', 'move_mount', 'open_tree', 'chroot', 'setns', 'unshare'), 0)
  t.is(count(serving, 'clone', 'clone3'), 5, 'one clone a launch')
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
  const { host, prefix } = await traced(t, 'strace-bare', { bare: true, binds: { '/program': program } })
  const { result } = await host.must('run')
  await host[Symbol.asyncDispose]()
  const { init } = launchOf(readTrace(prefix), result?.pid ?? 0)
  t.is(count(init, 'mount'), 1)
  t.true(['/tmp', undefined].includes(mountTargets(init)[0]))
  t.is(count(init, 'pivot_root', 'umount2', 'move_mount'), 0)
})

straced("sandbox2's requests pivot only if told to: the check above can fail", async (t) => {
  const program = fixture('nothing')
  const { host, prefix } = await traced(t, 'strace-pivot', {})
  const pids: number[] = []
  for (const pivot of ['nested', 'direct']) {
    const { value, pid = 0 } = await host.must('fork', { file: program, options: { pivot } })
    t.like(value, { status: 'exited', exitCode: 0 }, pivot)
    pids.push(pid)
  }
  await host[Symbol.asyncDispose]()
  const trace = readTrace(prefix)
  const [nested, direct] = pids.map((pid) => launchOf(trace, pid))
  if (nested === undefined || direct === undefined) throw new Error('two launches')
  t.is(count([...nested.init, ...nested.child], 'pivot_root'), 0)
  t.is(count(direct.init, 'pivot_root'), 1)
  t.true(count(direct.init, 'umount2') >= 1)
  t.is(count(nested.child, ...ALLOCATING), 0)
  t.is(count(direct.child, ...ALLOCATING), 0)
})
