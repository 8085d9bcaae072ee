// Attacks by way of sockets: servers of the host, by name and by address; families and protocols; descriptors in flight.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { execFileSync, spawn } from 'node:child_process'
import { chmodSync } from 'node:fs'
import { createServer, type Server } from 'node:net'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'

import type { ExecutionContext } from 'ava'

import { Sandbox } from '../../index.ts'
import { scratch, until } from '../helpers.ts'
import { attack, attackable, done, filters, inside, outside, program, withoutLandlock } from './support.ts'

/** A server of the host; counts who called. */
const serve = async (
  t: ExecutionContext,
  address: string | number,
): Promise<{ server: Server; calls: () => number }> => {
  let calls = 0
  const server = createServer((socket) => {
    calls += 1
    socket.destroy()
  })
  t.teardown(() => server.close())
  await new Promise<void>((resolve) => {
    if (typeof address === 'number') server.listen(address, '127.0.0.1', resolve)
    else server.listen({ path: address, writableAll: true }, resolve)
  })
  return { server, calls: () => calls }
}

const portOf = (server: Server): number => {
  const address = server.address()
  return typeof address === 'object' && address !== null ? address.port : 0
}

attack('a socket in a bind leads to its server without the filter, and nowhere with it', async (t) => {
  const directory = scratch(t)
  const { calls } = await serve(t, path.join(directory, 'socket'))
  const binding = (filter: (typeof filters)[number]) => attackable(filter).bind(directory, '/sockets')
  const names = ['sockets', 'unix', '/sockets/socket']
  await using open = await Sandbox.create(binding('unfiltered').unixSockets('allow'))
  const free = await inside(open, names)
  t.is(free.get('stream'), 'done', 'a read-only bind is no protection from connect()')
  t.true(await until(() => calls() > 0))
  const before = calls()

  await using closed = await Sandbox.create(binding('default'))
  const found = await inside(closed, names)
  t.is(found.size, 8)
  t.deepEqual(done(found), [])
  t.is(calls(), before)
})

attack('one end of a datagram pair can not be connected to a socket of the host', async (t) => {
  const directory = scratch(t)
  const name = path.join(directory, 'datagrams')
  // Node has no unix datagram sockets.
  const python = `import socket,sys; s=socket.socket(1,2); s.bind(sys.argv[1]); import os; os.chmod(sys.argv[1],0o777)`
  try {
    execFileSync('python3', ['-c', python, name], { stdio: 'ignore' })
  } catch {
    t.log('skipped: python3 is needed to make the server')
    t.pass()
    return
  }
  chmodSync(directory, 0o755)
  // Nobody has it open any more: whoever gets as far as the server is refused by it, and not on the way.
  await using open = await Sandbox.create(attackable('unfiltered').bind(directory, '/sockets').unixSockets('allow'))
  const free = await inside(open, ['sockets', 'unix', '/sockets/datagrams'])
  t.is(free.get('pair-datagram'), 'ECONNREFUSED')
  t.is(free.get('pair-raw'), 'ECONNREFUSED')
  await using closed = await Sandbox.create(attackable().bind(directory, '/sockets'))
  const found = await inside(closed, ['sockets', 'unix', '/sockets/datagrams'])
  for (const what of ['stream', 'datagram', 'packets', 'pair-datagram', 'pair-raw', 'pair-sends']) {
    t.is(found.get(what), 'EACCES', what)
  }
  // Those two can't be connected anew, whatever there is.
  for (const what of ['pair-stream', 'pair-packets'])
    t.regex(found.get(what) ?? '', /^(?:EISCONN|ECONNREFUSED|EPROTOTYPE)$/, what)
})

attack(
  'abstract sockets of the host are out of reach: by the network namespace alone, and by the filter alone',
  async (t) => {
    const name = `nestbox-attack-${process.pid}`
    const server = spawn(program(), ['sockets', 'serve', `@${name}`], { stdio: ['ignore', 'pipe', 'inherit'] })
    t.teardown(() => server.kill('SIGKILL'))
    const told: string[] = []
    createInterface({ input: server.stdout }).on('line', (line) => told.push(line))
    t.true(await until(() => told.includes('listen done')))
    const names = ['sockets', 'unix', `@${name}`]
    t.is((await outside(names)).get('stream'), 'done')
    // With the host's network, without a filter and without Landlock it is there. (That alone: landlock.spec.ts.)
    const bare = { server: await withoutLandlock(t) }
    await using open = await Sandbox.create(attackable('unfiltered').network('host').unixSockets('allow'), bare)
    t.is((await inside(open, names)).get('stream'), 'done')
    await delay(100)
    const before = told.length
    t.true(before > 2)
    for (const closed of [
      attackable('unfiltered').unixSockets('allow'),
      attackable('unfiltered').network('shared-loopback').unixSockets('allow'),
      attackable().network('host'),
    ]) {
      await using sandbox = await Sandbox.create(closed, bare)
      t.deepEqual(done(await inside(sandbox, names)), [])
    }
    await delay(100)
    t.is(told.length, before)
  },
)

for (const filter of filters) {
  attack(`no server of the host, no address and no wire can be reached: ${filter}`, async (t) => {
    const { server, calls } = await serve(t, 0)
    const target = ['sockets', 'internet', '127.0.0.1', String(portOf(server))]
    t.is((await outside(target)).get('tcp-127.0.0.1'), 'done')
    // Four of the addresses lead there.
    await until(() => calls() >= 4, 500)
    t.true(calls() > 0)
    const before = calls()
    for (const network of ['none', 'shared-loopback'] as const) {
      await using sandbox = await Sandbox.create(attackable(filter).network(network))
      const found = await inside(sandbox, target)
      t.true(found.size >= 10)
      t.deepEqual(done(found), [], network)
    }
    await delay(100)
    await delay(100)
    t.is(calls(), before)
  })
}

attack('only families and protocols that know of namespaces can be used', async (t) => {
  await using filtered = await Sandbox.create(attackable())
  await using unfiltered = await Sandbox.create(attackable('unfiltered'))
  const free = done(await inside(unfiltered, ['sockets', 'families']))
  const found = done(await inside(filtered, ['sockets', 'families']))
  // inet, inet6, netlink with the route protocol.
  t.deepEqual(
    found.filter(
      (what) => !/^(?:family-(?:2|10)-(?:stream|datagram)|family-16-(?:raw|datagram)|netlink-0)$/.test(what),
    ),
    [],
  )
  t.true(found.length > 3)
  t.true(
    free.some((what) => what.startsWith('family-1-')) && free.length > found.length + 3,
    'without the filter there are others',
  )
})

attack('descriptors in flight are bounded, and the host and others can still pass theirs', async (t) => {
  // Unix sockets count what is in flight for the user, against the limit of whoever sends.
  await using sandbox = await Sandbox.create(attackable())
  const holders = await Promise.all(
    Array.from({ length: 3 }, () => sandbox.spawn('/attack', ['sockets', 'in-flight', '100000', 'stay'])),
  )
  let most = 0
  for (const holder of holders) {
    for await (const line of holder.lines()) {
      if (line.startsWith('sent')) most += Number(line.slice(5))
      if (line.startsWith('ready')) break
    }
  }
  t.true(most > 500, 'they did take what they could')
  t.true(most < 3 * 1500, String(most))
  t.is((await sandbox.run('/attack', ['files', 'ids'])).status, 'exited', 'launches pass descriptors')
  const free = execFileSync(program(), ['sockets', 'in-flight', '500'], { encoding: 'utf8' })
  t.is(/^sent (\d+)$/m.exec(free)?.[1], '500')
  for (const holder of holders) holder.kill()
  await Promise.all(holders.map(({ result }) => result))
})
