// Every system call number there could be, by every ABI, with arguments of several shapes: what the filter does to them,
// and that without it the namespaces hold.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { setTimeout as delay } from 'node:timers/promises'

import test from 'ava'

import { Sandbox } from '../../index.ts'
import { runs } from '../helpers.ts'
import { alive, attack, attackable, type Filter, filters, machine, type Outcomes, victim } from './support.ts'

const isX64 = process.arch === 'x64'

/** 64 past the last that Linux 6.18 has, 470; whatever is newer is in reach of it as well. */
const LAST = 470 + 64

const SHAPES = ['zero', 'ones', 'minus', 'pointers', 'garbage'] as const

/** What each number comes to. A launch each, for a call may take the program's output or the whole of it along. */
const attempts = async (filter: Filter, abi: string, shape: string, from = 0, to = LAST): Promise<Outcomes> => {
  await using sandbox = await Sandbox.create(
    attackable(filter).limits({ processes: 64, disk: '8MiB', wallTime: 20_000 }),
  )
  const all = new Map<string, string>()
  // Whatever ends the program is one of its calls; the rest is tried without that one.
  for (let next = from; next < to;) {
    const args = ['syscalls', abi, shape, String(next), String(to)]
    const { stdout } = await sandbox.run('/attack', args, { stderr: 'ignore' })
    const lines = stdout.split('\n').filter((line) => /^\d+ \w+$/.test(line))
    for (const line of lines) all.set(line.slice(0, line.indexOf(' ')), line.slice(line.indexOf(' ') + 1))
    const last = Number(lines.at(-1)?.split(' ')[0] ?? next - 1)
    if (last < to - 1) all.set(String(last + 1), 'took everything along')
    next = last + 2
  }
  return all
}

/** Everything around them is as it was. */
const surviving = (title: string, body: (t: Parameters<Parameters<typeof attack>[1]>[0]) => Promise<void>): void =>
  attack(title, async (t) => {
    const before = machine()
    const host = await victim(t)
    await using sandbox = await Sandbox.create(attackable())
    const neighbour = await sandbox.spawn('/attack', ['processes', 'victim'])
    await body(t)
    await delay(20)
    t.deepEqual(machine(), before)
    t.true(alive(host))
    t.true(runs(neighbour.pid))
    neighbour.kill()
    t.is((await neighbour.result).status, 'killed')
    t.is((await sandbox.run('/attack', ['files', 'ids'])).stdout.split('\n')[0], 'euid 1000')
  })

/** On x86-64. Never anything but refused by the filter, whatever the arguments. */
const FORBIDDEN: Readonly<Record<string, number>> = {
  ptrace: 101,
  syslog: 103,
  pivot_root: 155,
  adjtimex: 159,
  chroot: 161,
  acct: 163,
  settimeofday: 164,
  mount: 165,
  umount2: 166,
  swapon: 167,
  reboot: 169,
  sethostname: 170,
  iopl: 172,
  init_module: 175,
  delete_module: 176,
  quotactl: 179,
  io_setup: 206,
  clock_settime: 227,
  kexec_load: 246,
  add_key: 248,
  request_key: 249,
  keyctl: 250,
  migrate_pages: 256,
  move_pages: 279,
  perf_event_open: 298,
  fanotify_init: 300,
  name_to_handle_at: 303,
  open_by_handle_at: 304,
  setns: 308,
  process_vm_readv: 310,
  process_vm_writev: 311,
  kcmp: 312,
  finit_module: 313,
  kexec_file_load: 320,
  bpf: 321,
  userfaultfd: 323,
  io_uring_setup: 425,
  io_uring_enter: 426,
  io_uring_register: 427,
  open_tree: 428,
  move_mount: 429,
  fsopen: 430,
  fsconfig: 431,
  fsmount: 432,
  pidfd_getfd: 438,
  mount_setattr: 442,
  open_tree_attr: 467,
}

for (const shape of SHAPES) {
  surviving(`every number, under the default filter: ${shape}`, async (t) => {
    const found = await attempts('default', 'native', shape)
    t.is(found.size, LAST)
    if (isX64) for (const [name, number] of Object.entries(FORBIDDEN)) t.is(found.get(String(number)), 'EPERM', name)
    // clone3, and whatever is not known.
    t.is(found.get('435'), 'ENOSYS')
    for (let number = 470; number < LAST; number += 1) t.is(found.get(String(number)), 'ENOSYS', String(number))
    t.deepEqual(
      [...found].filter(([, outcome]) => outcome === 'SIGSYS'),
      [],
    )
  })

  surviving(`every number, with the namespaces alone: ${shape}`, async (t) => {
    const found = await attempts('unfiltered', 'native', shape)
    t.is(found.size, LAST)
    const answered = [...found.values()].filter((outcome) => outcome !== 'ENOSYS').length
    t.true(answered > 250, 'they reach the kernel')
  })
}

const x64 = isX64 ? surviving : (title: string) => test.skip(`${title} (skipped: of x86-64 only)`, () => {})

for (const filter of filters) {
  x64(`every number of the x32 ABI: ${filter}`, async (t) => {
    for (const shape of ['zero', 'garbage']) {
      const found = await attempts(filter, 'x32', shape, 0, 640)
      t.is(found.size, 640)
      if (filter === 'default') t.deepEqual([...new Set(found.values())], ['ENOSYS'])
    }
  })

  x64(`every number of the 32-bit ABI, by int 0x80: ${filter}`, async (t) => {
    for (const shape of SHAPES) {
      const found = await attempts(filter, 'int80', shape, 0, 534)
      t.is(found.size, 534)
      if (filter === 'default') t.deepEqual([...new Set(found.values())], ['SIGSYS'], shape)
    }
    if (filter === 'default') {
      // The whole process ends, whatever thread of it called.
      await using sandbox = await Sandbox.create(attackable())
      t.is((await sandbox.run('/attack', ['files', 'ids'])).status, 'exited')
    }
  })

  x64(`every number with something in the upper half of the register: ${filter}`, async (t) => {
    const found = await attempts(filter, 'high', 'zero')
    t.is(found.size, LAST)
    // The kernel looks at the lower half, and so must the filter.
    if (filter === 'default') {
      for (const [name, number] of Object.entries(FORBIDDEN)) t.is(found.get(String(number)), 'EPERM', name)
    }
  })
}
