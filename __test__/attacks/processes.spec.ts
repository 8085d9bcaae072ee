// Attacks on processes: the host's, other nests', init; and the means to outlive one's own nest.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'

import { ForkServer, Sandbox } from '../../index.ts'
import { BOUNDED, isRoot, runs, until } from '../helpers.ts'
import { family, processOf } from '../invariants/support.ts'
import { alive, attack, attackable, done, filters, inside, outside, program, victim } from './support.ts'

for (const filter of filters) {
  attack(`processes of the host, of nestbox and of other nests are out of reach: ${filter}`, async (t) => {
    await using server = await ForkServer.start()
    await using sandbox = await Sandbox.create(attackable(filter), { server })
    const neighbour = await sandbox.spawn('/attack', ['processes', 'victim'])
    const host = await victim(t)

    // The user that owns them can do all of it but what takes a privilege, so these are attempts.
    const free = done(await outside(['processes', 'reach', String((await victim(t)).pid)]))
    for (const what of ['signal-0', 'pidfd-signal', 'pidfd-getfd', 'ptrace', 'vm-read', 'vm-write', 'open-mem']) {
      t.true(free.includes(what), what)
    }
    for (const what of ['open-environ', 'open-root', 'list-fd', 'prlimit', 'renice', 'signal-KILL']) {
      t.true(free.includes(what), what)
    }

    for (const pid of [host.pid ?? 0, process.pid, server.pid, neighbour.pid]) {
      t.deepEqual(done(await inside(sandbox, ['processes', 'reach', String(pid)])), [], String(pid))
    }
    t.true(alive(host))
    t.true(runs(neighbour.pid))
    t.is((await sandbox.run('/attack', ['files', 'ids'])).status, 'exited')
    neighbour.kill()
    t.is((await neighbour.result).status, 'killed')
  })

  attack(`no process outside of the nest can be found by trying every number: ${filter}`, async (t) => {
    await using sandbox = await Sandbox.create(attackable(filter))
    const seen = done(await inside(sandbox, ['processes', 'sweep']))
    // Its own is left out.
    t.deepEqual(seen, ['seen-1'])
  })

  attack(`signals to everybody reach nobody outside of the nest: ${filter}`, async (t) => {
    await using sandbox = await Sandbox.create(attackable(filter))
    const neighbour = await sandbox.spawn('/attack', ['processes', 'victim'])
    const host = await victim(t)
    const { nice: before } = processOf(host.pid ?? 0) ?? {}
    const result = await sandbox.run('/attack', ['processes', 'broadcast'])
    // Its own parent was among them.
    t.like(result, { status: 'signaled', signal: 'SIGKILL' })
    await delay(50)
    t.true(alive(host))
    t.is(processOf(host.pid ?? 0)?.nice, before)
    t.true(runs(neighbour.pid))
    neighbour.kill()
    await neighbour.result
  })
}

/** The number of the comms channel. */
const COMMS = '1023'

attack("the channel between another nest and the host is not to be had, and one's own is nobody else's", async (t) => {
  const own = await victim(t, true)
  const free = await outside(['processes', 'steal', '3', String(own.pid)])
  t.is(free.get(`of-${own.pid}`), 'done', 'the user that owns it can')
  const said: string[] = []
  own.stdio[3]?.on('data', (bytes: Buffer) => said.push(String(bytes)))
  t.true(await until(() => said.join('') === 'stolen'))

  await using server = await ForkServer.start()
  for (const filter of filters) {
    for (const network of ['none', 'shared-loopback'] as const) {
      await using sandbox = await Sandbox.create(attackable(filter).network(network), { server })
      const heard = new Map<string, string>()
      const listen = (name: string, comms: NodeJS.ReadableStream): void => {
        heard.set(name, '')
        comms.on('data', (bytes: Buffer) => heard.set(name, `${heard.get(name)}${String(bytes)}`))
      }
      const neighbour = await sandbox.spawn('/attack', ['processes', 'victim'], { comms: true })
      listen('neighbour', neighbour.comms)
      const pids = [neighbour.pid, server.pid, process.pid, 1].map(String)
      t.deepEqual(done(await inside(sandbox, ['processes', 'steal', COMMS, ...pids])), [], 'without one')
      const thief = await sandbox.spawn('/attack', ['processes', 'steal', COMMS, ...pids], {
        comms: true,
        buffer: true,
      })
      listen('thief', thief.comms)
      const { stdout } = await thief.result
      t.deepEqual(stdout.match(/^.* done$/gm), ['own done'])
      t.true(await until(() => heard.get('thief') === 'stolen'))
      neighbour.kill()
      await neighbour.result
      t.is(heard.get('neighbour'), '')
    }
  }
})

attack('processes that went into hiding end with their nest', async (t) => {
  const hidden = (parent: number): number[] =>
    family(parent)
      .filter(({ name }) => name === 'atk-daemon')
      .map(({ pid }) => pid)

  // Without a nest they stay: with the machine's init, or whoever else takes in orphans.
  const free = spawn(program(), ['processes', 'daemonize'], { stdio: ['ignore', 'pipe', 'ignore'] })
  const left: number[] = []
  createInterface({ input: free.stdout }).on('line', (line) => left.push(Number(line.split(' ')[1])))
  await once(free, 'exit')
  t.true(await until(() => left.length === 4))
  t.deepEqual(
    left.map((pid) => processOf(pid)?.name),
    Array.from({ length: 4 }, () => 'atk-daemon'),
  )
  for (const pid of left) process.kill(pid, 'SIGKILL')

  await using server = await ForkServer.start()
  for (const filter of filters) {
    await using sandbox = await Sandbox.create(attackable(filter), { server })
    const running = await sandbox.spawn('/attack', ['processes', 'daemonize'], { stdin: 'pipe' })
    t.true(await until(() => hidden(server.pid).length === 4), 'they are seen while they are there')
    running.stdin.end()
    const result = await running.result
    t.is(result.status, 'exited')
    t.deepEqual(hidden(server.pid), [])
    t.true(result.durationMs < BOUNDED)
  }
})

attack('a storm of forged signals does not change what init reports', async (t) => {
  for (const filter of filters) {
    await using sandbox = await Sandbox.create(attackable(filter))
    const result = await sandbox.run('/attack', ['processes', 'storm'], { stdout: 'ignore' })
    t.like(result, { status: 'exited', exitCode: 7 })
    t.true(result.resourceUsage.systemCpuMs > 0)
  }
})

attack('init can not be kept from ending a nest in time', async (t) => {
  for (const filter of filters) {
    await using sandbox = await Sandbox.create(attackable(filter).limits({ wallTime: 300 }))
    const result = await sandbox.run('/attack', ['processes', 'starve'])
    t.like(result, { status: 'limit-exceeded', limit: 'wallTime' })
    for (const what of ['pin', 'renice', 'demote']) t.regex(result.stdout, new RegExp(`^${what} EPERM$`, 'm'))
    // Of an unprivileged host's init the descriptors can be limited without the filter, to no end but its own outputs.
    const refused = filter === 'default' || isRoot
    t.is(/^descriptors done$/m.test(result.stdout), !refused, result.stdout)
    t.true(result.durationMs < BOUNDED, String(result.durationMs))
  }
})

attack('bombs are contained, others launch meanwhile, and one kill ends them', async (t) => {
  await using sandbox = await Sandbox.create(attackable('unfiltered').limits({ processes: 40 }))
  await using other = await Sandbox.create(attackable())
  for (const kind of ['fork', 'vfork', 'orphans', 'exec']) {
    const bomb = await sandbox.spawn('/attack', ['processes', 'bomb', kind], { stdout: 'ignore', stderr: 'ignore' })
    await delay(100)
    t.is((await other.run('/attack', ['files', 'ids'])).status, 'exited', kind)
    const start = performance.now()
    bomb.kill()
    // The exec bomb's first process may have come to the end of its chain.
    t.true(['killed', 'exited'].includes((await bomb.result).status), kind)
    t.true(performance.now() - start < BOUNDED, `${kind}: ${performance.now() - start} ms`)
    t.true(await until(() => !runs(bomb.pid)))
  }
})
