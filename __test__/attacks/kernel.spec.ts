// Attacks on the kernel's privileged corners: the machine's state, namespaces, control groups, privileges, what proc shows.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { chmodSync, readdirSync, readFileSync } from 'node:fs'

import { policy, Sandbox } from '../../index.ts'
import { isRoot, scratch } from '../helpers.ts'
import { attack, attackable, done, filters, inside, machine, type Outcomes, outside, program } from './support.ts'

const isX64 = process.arch === 'x64'

for (const filter of filters) {
  attack(`the machine can not be administered: ${filter}`, async (t) => {
    const before = machine()
    // As root all of it is there to be had; nothing of it is done.
    const free = done(await outside(['kernel', 'machine']))
    if (isRoot)
      for (const what of ['clock', 'time-zone', 'reboot', 'swap-on', 'log', 'nice']) t.true(free.includes(what))
    await using sandbox = await Sandbox.create(attackable(filter))
    const found = await inside(sandbox, ['kernel', 'machine'])
    t.true(found.size >= 15)
    // Without the filter quotactl(2) looks for the device first, and says that there is none.
    t.deepEqual(
      done(found).filter((what) => what !== 'quota' || filter === 'default'),
      [],
    )
    t.deepEqual(machine(), before)
  })

  attack(`no privilege can be gained and no limit raised: ${filter}`, async (t) => {
    const free = done(await outside(['kernel', 'privileges']))
    if (isRoot) for (const what of ['setuid-0', 'setgroups', 'securebits', 'raise-size']) t.true(free.includes(what))
    await using sandbox = await Sandbox.create(attackable(filter))
    const found = await inside(sandbox, ['kernel', 'privileges'])
    t.true(found.size >= 14)
    t.deepEqual(done(found), [])
  })

  attack(
    `nothing of /proc/sys, and nothing else of proc but one's own, can be opened for writing: ${filter}`,
    async (t) => {
      const free = await outside(['kernel', 'writable', '/proc/sys/kernel'])
      if (isRoot) t.true(Number(free.get('writable')) > 20)
      await using sandbox = await Sandbox.create(attackable(filter))
      const settings = await inside(sandbox, ['kernel', 'writable', '/proc/sys'])
      t.true(Number(settings.get('files')) > 100, 'they are there')
      t.deepEqual(done(settings), [])
      const all = await inside(sandbox, ['kernel', 'writable', '/proc'])
      // These are opened by whoever wants to, and refuse what is written; pressure is read only, but in units of one's own.
      const harmless = /^write-\/proc\/(?:[2-9]\d*\/|1\/(?:task\/1\/)?attr\/|1\/timerslack_ns$|pressure\/)/
      // Where there is a null device, it covers what is masked.
      const masked = /^write-\/proc\/(?:keys|key-users|kcore|timer_list|sched_debug|sysrq-trigger|latency_stats)$/
      t.deepEqual(
        done(all).filter((what) => !harmless.test(what) && !masked.test(what)),
        [],
      )
      t.deepEqual(done(await inside(sandbox, ['kernel', 'tune-init'])), [])
      t.true(done(all).some((what) => what.startsWith('write-/proc/2/')))
    },
  )

  attack(`what proc tells root about the machine is not told: ${filter}`, async (t) => {
    const free = done(await outside(['kernel', 'secrets']))
    t.true(free.includes('read-/proc/keys') || !isRoot, free.join())
    if (isRoot) t.true(free.length >= 4, free.join())
    await using sandbox = await Sandbox.create(attackable(filter))
    const found = done(await inside(sandbox, ['kernel', 'secrets']))
    // How many keys each of its ids has.
    t.deepEqual(
      found.filter((what) => what !== 'read-/proc/key-users'),
      [],
    )
  })

  attack(`a crash leaves no core file, and who handles core files can not be changed: ${filter}`, async (t) => {
    const directory = scratch(t)
    chmodSync(directory, 0o777)
    const shown = attackable(filter).bind(directory, '/data', { writable: true })
    await using sandbox = await Sandbox.create(shown)
    const result = await sandbox.run('/attack', ['kernel', 'crash'], { cwd: '/data' })
    t.like(result, { status: 'signaled', signal: 'SIGABRT' })
    t.regex(result.stdout, /^pattern (?:EROFS|EACCES)$/m)
    t.deepEqual(readdirSync(directory), [])
    if (!/^[\w.%]+$/.test(machine()['core'] ?? '')) {
      t.log('the rest is skipped: core files do not go to the working directory on this machine')
      return
    }
    // With the limit lifted there is one, where the program could have written itself, and nowhere else.
    await using dumping = await Sandbox.create(shown.limits({ core: '64MiB' }))
    await dumping.run('/attack', ['kernel', 'crash'], { cwd: '/data' })
    t.is(readdirSync(directory).length, 1)
  })

  attack(`control groups can neither be seen, changed, nor made to run a program: ${filter}`, async (t) => {
    const free = await outside(['kernel', 'cgroups'])
    if (isRoot && free.get('unshare') === 'done') {
      const could = ['release-agent', 'procs', 'notify'].filter((what) => free.get(what) === 'done')
      if (could.length === 0) t.log('no control group of this machine is ours to change')
    }
    await using sandbox = await Sandbox.create(attackable(filter))
    const found = await inside(sandbox, ['kernel', 'cgroups'])
    t.deepEqual(
      done(found).filter((what) => /^(?:mounted|release|procs|subtree|notify)/.test(what)),
      [],
    )
    if (found.get('mount-cgroup2') === 'done') t.not(found.get('make'), 'done')
  })
}

const namespaces = async (filter: 'default' | 'unfiltered'): Promise<Outcomes> => {
  await using sandbox = await Sandbox.create(attackable(filter))
  return await inside(sandbox, ['kernel', 'namespaces'])
}

attack('no namespace of any kind can be made, by any call', async (t) => {
  const free = done(await outside(['kernel', 'namespaces']))
  t.true(free.includes('unshare-user') || free.includes('clone3-nothing'))
  const found = await namespaces('default')
  t.true(found.size > 25)
  t.deepEqual(done(found), [])
  for (const [what, outcome] of found) t.is(outcome, what.startsWith('clone3') ? 'ENOSYS' : 'EPERM', what)
})

attack('without the filter a namespace needs a user namespace, and power there is none over the nest', async (t) => {
  const found = await namespaces('unfiltered')
  for (const [what, outcome] of found) {
    // Of its own, all of them; of those it was put in, none.
    if (/^user-and|-user$|nothing$/.test(what)) continue
    t.is(outcome, 'EPERM', what)
  }
})

attack('interfaces where most escalations were are refused by the filter, and would be there without', async (t) => {
  await using filtered = await Sandbox.create(attackable())
  await using unfiltered = await Sandbox.create(attackable('unfiltered'))
  const free = done(await inside(unfiltered, ['kernel', 'interfaces']))
  const found = await inside(filtered, ['kernel', 'interfaces'])
  t.true(free.length >= 5, free.join())
  t.deepEqual(done(found), [])
  for (const [what, outcome] of found) {
    if (what === 'ldt' && !isX64) continue
    t.is(outcome, 'EPERM', what)
  }
})

attack("typing into a terminal, and a console's tricks, are refused whatever the upper half says", async (t) => {
  await using filtered = await Sandbox.create(attackable())
  await using unfiltered = await Sandbox.create(attackable('unfiltered'))
  const found = await inside(filtered, ['kernel', 'interfaces'])
  const free = await inside(unfiltered, ['kernel', 'interfaces'])
  for (const what of ['TIOCSTI', 'TIOCSTI-high', 'TIOCLINUX', 'TIOCLINUX-high', 'TIOCSETD']) {
    t.is(found.get(what), 'EPERM', what)
  }
  // Without it they reach the terminal's driver, which takes the lower half: TIOCLINUX is for consoles only.
  t.is(free.get('TIOCSTI-high'), free.get('TIOCSTI'))
  t.regex(free.get('TIOCSTI') ?? '', /^(?:done|EIO|EPERM)$/)
  t.regex(free.get('TIOCLINUX-high') ?? '', /^(?:ENOTTY|EINVAL)$/)
})

attack('keys are neither shared nor to be had', async (t) => {
  await using filtered = await Sandbox.create(attackable())
  const found = await inside(filtered, ['kernel', 'interfaces'])
  for (const what of ['add-key', 'keyring', 'persistent-keyring']) t.is(found.get(what), 'EPERM', what)
  t.is((await outside(['kernel', 'interfaces'])).get('keyring'), 'done')
})

attack('a policy without proc and dev leaves nothing to attack there', async (t) => {
  const bare = policy().bind(program(), '/attack').proc('none').dev('none').syscalls('unfiltered')
  await using sandbox = await Sandbox.create(bare)
  t.deepEqual(done(await inside(sandbox, ['kernel', 'secrets'])), [])
  t.is((await inside(sandbox, ['kernel', 'writable', '/proc'])).get('files'), '0')
})

attack('speculation is restricted for good, where the processor lets a program be restricted', async (t) => {
  await using sandbox = await Sandbox.create(attackable())
  const speculation = async (launcher: Sandbox): Promise<{ lines: string[]; said: string }> => {
    const { stdout, isolation } = await launcher.run('cat', ['/proc/self/status'])
    return { lines: stdout.split('\n').filter((line) => line.startsWith('Speculation')), said: isolation.speculation }
  }
  const { lines: found, said } = await speculation(sandbox)
  t.true(found.length > 0)
  t.is(said, 'restricted')
  // Where it was asked for it is as the host has it.
  await using allowed = await Sandbox.create(policy('host-system').allowSpeculation())
  const host = readFileSync('/proc/self/status', 'utf8')
  const hosts = host.split('\n').filter((line) => line.startsWith('Speculation'))
  t.deepEqual(await speculation(allowed), { lines: hosts, said: 'allowed' })
  // Neither open nor merely closed: `thread force mitigated`, `conditional force disabled`, or nothing to be done.
  for (const line of found) t.notRegex(line, /thread (?:vulnerable|mitigated)|conditional (?:enabled|disabled)/)
})
