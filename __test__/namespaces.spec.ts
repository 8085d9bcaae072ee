// Who a sandboxee is: its ids, names, session and powers, and what it shares with others, which is nothing. Asserts for
// our API what sandbox2's namespace, sanitizer and limits tests assert for theirs.

import { existsSync, readFileSync, readlinkSync } from 'node:fs'
import { hostname } from 'node:os'

import test from 'ava'

import { policy, run, Sandbox, unsandboxed } from '../index.ts'
import { isRoot, runs } from './helpers.ts'
import { firstLine, probe, sh, shout, statusOf, withProbe } from './inside.ts'

const env = { PATH: '/usr/bin:/bin' }

const NAMESPACES = ['cgroup', 'ipc', 'mnt', 'net', 'pid', 'user', 'uts']

const links = NAMESPACES.map((name) => `/proc/self/ns/${name}`).join(' ')

/** pid, name, state, parent, group, session, terminal, ...: proc_pid_stat(5). */
const stat = async () => {
  const { stdout } = await run('cat', ['/proc/self/stat'])
  return stdout.split(' ').map(Number)
}

const status = async () => statusOf((await run('cat', ['/proc/self/status'])).stdout)

// ---- process ----------------------------------------------------------------------------------------------------------

test('the program is process 2 of its nest, and the child of init', async (t) => {
  const [pid, , , parent] = await stat()
  t.deepEqual([pid, parent], [2, 1])
})

test('without isolation it is an ordinary process', async (t) => {
  const result = await unsandboxed.run('cat', ['/proc/self/status'], { env })
  const { NSpid, Uid } = statusOf(result.stdout)
  t.is(NSpid, String(result.pid))
  t.is(Uid?.split('\t')[0], String(process.getuid?.()))
})

test("pid is the program's number on the host", async (t) => {
  const sandbox = await Sandbox.create()
  await using sandboxee = await sandbox.spawn('cat', [], { stdin: 'pipe' })
  const seen = statusOf(readFileSync(`/proc/${sandboxee.pid}/status`, 'utf8'))
  t.is(seen['NSpid']?.split('\t').at(-1), '2')
  t.is(seen['Name'], 'cat')
  sandboxee.stdin.end()
  t.is((await sandboxee.result).pid, sandboxee.pid)
  t.false(runs(sandboxee.pid))
})

test('it has a session and a process group of its own, and no terminal', async (t) => {
  const [, , , , group, session, terminal] = await stat()
  t.deepEqual([group, session, terminal], [2, 2, 0])
  const { stdout } = await sh(await Sandbox.create(withProbe(policy('host-system'))), '/probe read /dev/tty')
  t.is(stdout, 'ENXIO')
})

test('it sees itself and no other process, not even init', async (t) => {
  const seen = await shout({ run }, 'echo /proc/[0-9]*')
  t.is(seen, '/proc/2')
})

// ---- ids --------------------------------------------------------------------------------------------------------------

test('uid and gid are 1000 from the first instruction on', async (t) => {
  const { Uid, Gid, Groups } = await status()
  t.is(Uid, '1000\t1000\t1000\t1000')
  t.is(Gid, '1000\t1000\t1000\t1000')
  // Of an unprivileged caller's supplementary groups the kernel lets nobody drop any; they show as unmapped.
  t.true(
    (Groups ?? '').split(/\s+/).every((group) => group === '' || group === '65534'),
    Groups,
  )
})

test('one id is mapped, of each kind, and setgroups is denied', async (t) => {
  const text = await shout({ run }, 'cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups')
  const [uid, gid, groups] = text.split('\n').map((line) => line.trim().split(/\s+/))
  t.is(uid?.[0], '1000')
  t.is(uid?.[2], '1')
  t.is(gid?.[0], '1000')
  t.is(gid?.[2], '1')
  t.deepEqual(groups, ['deny'])
})

test('outside, the program runs as nobody that matters', async (t) => {
  const sandbox = await Sandbox.create()
  await using sandboxee = await sandbox.spawn('cat', [], { stdin: 'pipe' })
  const { Uid, Gid } = statusOf(readFileSync(`/proc/${sandboxee.pid}/status`, 'utf8'))
  const uid = isRoot ? 65533 : process.getuid?.()
  const gid = isRoot ? 65533 : process.getgid?.()
  t.is(Uid, `${uid}\t${uid}\t${uid}\t${uid}`)
  t.is(Gid, `${gid}\t${gid}\t${gid}\t${gid}`)
})

for (const [uid, gid] of [
  [0, 0],
  [4242, 4343],
] as const) {
  test(`user({ uid: ${uid}, gid: ${gid} })`, async (t) => {
    const sandbox = await Sandbox.create(policy('host-system').user({ uid, gid }))
    t.is(
      await shout(sandbox, 'id -u; id -g; touch /tmp/mine; stat -c %u:%g /tmp/mine'),
      `${uid}\n${gid}\n${uid}:${gid}`,
    )
    // A root of this kind has no power either.
    const { CapEff } = statusOf((await sandbox.run('cat', ['/proc/self/status'])).stdout)
    t.is(CapEff, '0000000000000000')
  })
}

// ---- names ------------------------------------------------------------------------------------------------------------

test('the hostname is nestbox by default', async (t) => {
  t.is((await run('uname', ['-n'])).stdout, 'nestbox')
  t.not(hostname(), 'nestbox')
})

test('the hostname can be chosen', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system').hostname('somewhere'))
  t.is((await sandbox.run('uname', ['-n'])).stdout, 'somewhere')
})

test("without isolation it is the host's", async (t) => {
  t.is((await unsandboxed.run('uname', ['-n'], { env })).stdout, hostname())
})

// ---- namespaces -------------------------------------------------------------------------------------------------------

test('every namespace is its own: neither the host nor another running sandboxee has it', async (t) => {
  const sandbox = await Sandbox.create()
  const script = `echo $(readlink ${links}); cat`
  const sandboxees = await Promise.all([1, 2].map(() => sandbox.spawn('sh', ['-c', script], { stdin: 'pipe' })))
  try {
    const inside = await Promise.all(sandboxees.map(async (sandboxee) => (await firstLine(sandboxee)).split(' ')))
    for (const [index, name] of NAMESPACES.entries()) {
      const host = readlinkSync(`/proc/self/ns/${name}`)
      const [first, second] = inside.map((all) => all[index])
      t.regex(first ?? '', new RegExp(`^${name}:\\[\\d+\\]$`))
      t.is(new Set([host, first, second]).size, 3, name)
    }
  } finally {
    await Promise.all(sandboxees.map((sandboxee) => sandboxee[Symbol.asyncDispose]()))
  }
})

test('its cgroup is the root of what it sees', async (t) => {
  const { stdout } = await run('cat', ['/proc/self/cgroup'], { lines: true })
  t.true(stdout.length > 0)
  for (const line of stdout) t.regex(line, /^\d+:[^:]*:\/$/)
})

test('the result says what was enforced', async (t) => {
  const { isolation } = await run('true')
  t.deepEqual(isolation.namespaces.toSorted(), NAMESPACES)
  t.like(isolation, { network: 'none', syscalls: 'default', noNewPrivs: true, capabilities: 'none' })
  t.deepEqual(isolation.skipped, [])
  t.like(isolation.limits, { wallTime: 60_000, processes: 128, openFiles: 1024, core: 0 })
  t.false('cpuTime' in isolation.limits)
})

test('and that nothing was, without isolation', async (t) => {
  const { isolation } = await unsandboxed.run('true', [], { env })
  t.deepEqual(isolation.namespaces, [])
  t.like(isolation, { network: 'host', syscalls: 'unfiltered', noNewPrivs: false, capabilities: 'inherited' })
})

// ---- powers -----------------------------------------------------------------------------------------------------------

const NO_CAPABILITIES = {
  CapInh: '0000000000000000',
  CapPrm: '0000000000000000',
  CapEff: '0000000000000000',
  CapBnd: '0000000000000000',
  CapAmb: '0000000000000000',
}

test('all five capability sets are empty, no privilege can be gained, a filter is on', async (t) => {
  t.like(await status(), { ...NO_CAPABILITIES, NoNewPrivs: '1', Seccomp: '2' })
})

test('the same without a filter', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system').syscalls('unfiltered'))
  const { stdout, isolation } = await sandbox.run('cat', ['/proc/self/status'])
  t.like(statusOf(stdout), { ...NO_CAPABILITIES, NoNewPrivs: '1', Seccomp: '0' })
  t.is(isolation.syscalls, 'unfiltered')
})

test('signals have their default dispositions, none is blocked or pending', async (t) => {
  const nothing = '0000000000000000'
  // The host's own are not: Node ignores SIGPIPE.
  t.not(statusOf(readFileSync('/proc/self/status', 'utf8'))['SigIgn'], nothing)
  const signals = { SigPnd: nothing, ShdPnd: nothing, SigBlk: nothing, SigIgn: nothing, SigCgt: nothing }
  t.like(await status(), signals)
  t.like(statusOf((await unsandboxed.run('cat', ['/proc/self/status'], { env })).stdout), signals)
})

test.serial("the file mode mask is 022, whatever the host's", async (t) => {
  const before = process.umask(0o077)
  t.teardown(() => process.umask(before))
  t.is((await status())['Umask'], '0022')
})

test('keyrings have nothing in common with the host or between launches', async (t) => {
  // Without the filter, which refuses the system calls themselves.
  const sandbox = await Sandbox.create(withProbe(policy('host-system').syscalls('unfiltered')))
  const [first, second, outside] = await Promise.all([
    sandbox.run('/probe', ['keyrings'], { lines: true }),
    sandbox.run('/probe', ['keyrings'], { lines: true }),
    unsandboxed.run(probe(), ['keyrings'], { env, lines: true }),
  ])
  const all = [...first.stdout, ...second.stdout, ...outside.stdout].filter((id) => /^\d+$/.test(id))
  const between = new Set(all)
  // The user session keyring doubles as the session keyring where there is no other: equal within one launch only.
  for (const id of first.stdout.filter((line) => /^\d+$/.test(line))) {
    t.false(second.stdout.includes(id), id)
    t.false(outside.stdout.includes(id), id)
  }
  t.true(between.size > 0 || all.length === 0)
})

// ---- limits of the process --------------------------------------------------------------------------------------------

const limitsOf = (text: string): Record<string, string> =>
  Object.fromEntries(
    text
      .split('\n')
      .slice(1)
      .map((line) => [line.slice(0, 26).trim(), line.slice(26, 68).trim().replaceAll(/\s+/g, ' ')]),
  )

test('resource limits are the defaults', async (t) => {
  const limits = limitsOf((await run('cat', ['/proc/self/limits'])).stdout)
  t.like(limits, {
    'Max processes': '128 128',
    'Max open files': '1024 1024',
    'Max file size': '1073741824 1073741824',
    // Not 0, which a core_pattern that is a pipe ignores: core(5).
    'Max core file size': '1 1',
    'Max address space': 'unlimited unlimited',
  })
})

test('and follow the policy, which a launch tightens', async (t) => {
  const sandbox = await Sandbox.create(
    policy('host-system').limits({
      processes: 20,
      openFiles: 64,
      fileSize: '1MiB',
      addressSpacePerProcess: '1GiB',
      stack: '1MiB',
    }),
  )
  const { stdout } = await sandbox.run('cat', ['/proc/self/limits'], { limits: { openFiles: 32 } })
  t.like(limitsOf(stdout), {
    'Max processes': '20 20',
    'Max open files': '32 32',
    'Max file size': '1048576 1048576',
    'Max address space': '1073741824 1073741824',
    'Max stack size': '1048576 1048576',
  })
})

/* oxlint-disable no-await-in-loop */
test('proc shows the processes of the nest and not init, with the filter and without', async (t) => {
  const script =
    'sleep 9 & echo /proc/[0-9]*; cat /proc/1/status; cat /proc/1/cmdline; test -e /proc/$!/stat; echo $?; kill $!'
  for (const filter of ['default', 'unfiltered'] as const) {
    const sandbox = await Sandbox.create(policy('host-system').syscalls(filter).unixSockets('allow'))
    for (const warm of [false, true]) {
      if (warm) await sandbox.warm(1)
      const { stdout, stderr } = await sandbox.run('sh', ['-c', script])
      const [shown = '', ...rest] = stdout.split('\n')
      t.false(shown.split(' ').includes('/proc/1'), shown)
      t.true(shown.startsWith('/proc/2 '), shown)
      t.deepEqual(rest, ['0'])
      t.is(stderr.match(/No such file/g)?.length, 2, stderr)
    }
  }
  // On a proc that hides nothing it can be seen.
  t.true(existsSync('/proc/1/status'))
})
