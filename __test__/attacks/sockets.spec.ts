// Attacks by way of sockets: servers of the host, by name and by address; families and protocols; descriptors in flight.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { execFileSync, spawn } from 'node:child_process'
import { chmodSync } from 'node:fs'
import { createServer, type Server } from 'node:net'
import { networkInterfaces } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'

import type { ExecutionContext } from 'ava'

import { ForkServer, policy, PolicyError, RequestError, Sandbox } from '../../index.ts'
import { scratch, until } from '../helpers.ts'
import { attack, attackable, done, filters, inside, outside, program, withoutLandlock } from './support.ts'

/** A server of the host; counts who called. */
const serve = async (
  t: ExecutionContext,
  address: string | number,
  host = '127.0.0.1',
): Promise<{ server: Server; calls: () => number }> => {
  let calls = 0
  const server = createServer((socket) => {
    calls += 1
    socket.destroy()
  })
  t.teardown(() => server.close())
  await new Promise<void>((resolve) => {
    if (typeof address === 'number') server.listen(address, host, resolve)
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
    const free = done(await outside(target)).filter((what) => what.startsWith('tcp-'))
    t.true(free.includes('tcp-127.0.0.1'))
    // The first address is among them twice.
    const before = free.length + 1
    t.true(await until(() => calls() === before))
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

/** Other ways to write the address of this machine to itself, all of which programs that compare text let pass. */
const FORMS = '127.1 2130706433 0x7f000001 0177.0.0.1 017700000001 0 0.0.0.0 ::ffff:127.0.0.1 ::ffff:7f00:1'.split(' ')

/** Where clouds tell programs their secrets, and where networks that nobody else should reach are. */
const INTERNAL = '169.254.169.254 fd00:ec2::254 100.100.100.200 10.0.0.1 172.16.0.1 192.168.0.1 64:ff9b::7f00:1'.split(
  ' ',
)

for (const filter of filters) {
  attack(`no form of an address leads to the host or to a network behind it: ${filter}`, async (t) => {
    const { server, calls } = await serve(t, 0, '0.0.0.0')
    const port = String(portOf(server))
    // By the addresses that others know the host by, too.
    const own = Object.values(networkInterfaces())
      .flatMap((addresses) => addresses ?? [])
      .filter(({ family }) => family === 'IPv4')
      .map(({ address }) => address)
    const forms = [...new Set([...FORMS, ...own])]
    t.deepEqual(done(await outside(['sockets', 'forms', port, ...forms])), forms)
    t.true(await until(() => calls() === forms.length))
    for (const network of ['none', 'shared-loopback'] as const) {
      await using sandbox = await Sandbox.create(attackable(filter).network(network))
      const found = await inside(sandbox, ['sockets', 'forms', port, ...forms, ...INTERNAL])
      t.is(found.size, forms.length + INTERNAL.length)
      t.deepEqual(done(found), [], network)
    }
    t.is(calls(), forms.length)
  })
}

/** What somebody might write who means no network, or some of it; and what might then be taken for all of it. */
const NETWORKS: readonly unknown[] = [
  null,
  '',
  'None',
  ' none',
  'none\0',
  'all',
  'host\0',
  'HOST',
  true,
  0,
  [],
  ['host'],
  {},
  { allow: undefined },
  { allow: [] },
  { allow: null },
  { allow: '*' },
  { toString: () => 'host' },
]

/** Names that a check of their ends lets pass, and a resolver takes for others. */
const NAMES = [
  'evil.example\0.allowed.example',
  'evil.example%00.allowed.example',
  'evil.example\r\n.allowed.example',
  'evil.example .allowed.example',
  'allowed.example.',
  'ALLOWED.example',
  'аllowed.example',
  'xn--llowed-4ve.example',
  `${'a'.repeat(250)}.example`,
  '127.0.0.1',
  '*',
  '',
]

const refusesNetwork = (t: ExecutionContext, network: unknown): void => {
  const what = JSON.stringify(network)
  t.throws(() => policy('host-system').network(network as never), { instanceOf: PolicyError }, what)
  const written = { version: 1, base: 'host-system', network } as never
  t.throws(() => policy.parse(written), { instanceOf: PolicyError }, what)
  const json = JSON.parse(JSON.stringify(written)) as { network?: unknown }
  // What JSON has no word for is left out, and then it is none.
  if (json.network === undefined) t.is(policy.parse(json as never).network, 'none', what)
  else if (json.network !== network) t.throws(() => policy.parse(json as never), { instanceOf: PolicyError }, what)
}

attack('who asks for no network gets none, and no other value is taken for a wider one', async (t) => {
  const { server, calls } = await serve(t, 0)
  const target = ['sockets', 'forms', String(portOf(server)), '127.0.0.1']
  await using open = await Sandbox.create(attackable().network('host'))
  t.deepEqual(done(await inside(open, target)), ['127.0.0.1'])
  t.true(await until(() => calls() === 1))
  for (const network of NETWORKS) refusesNetwork(t, network)
  const { network: _, ...silent } = attackable().build()
  for (const written of [silent, { ...silent, network: undefined }, { ...silent, network: 'none' }]) {
    await using sandbox = await Sandbox.create(policy.parse(written))
    const result = await sandbox.run('/attack', target)
    t.is(result.stdout, '127.0.0.1 ECONNREFUSED')
    t.is(result.isolation.network, 'none')
  }
  t.is(calls(), 1)
})

attack('lists of names are refused whole, so no name in them is ever compared with another', async (t) => {
  for (const name of NAMES) {
    for (const list of [[name], ['allowed.example', name], { 0: name }, name]) refusesNetwork(t, { allow: list })
    refusesNetwork(t, name)
  }
  // Of a launch there is none to ask for.
  await using sandbox = await Sandbox.create(attackable())
  for (const network of ['host', { allow: ['allowed.example'] }]) {
    await t.throwsAsync(sandbox.run('/attack', [], { network } as never), { instanceOf: RequestError })
  }
})

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

attack("a network that was watched from another nest is nobody else's afterwards", async (t) => {
  const directory = scratch(t)
  chmodSync(directory, 0o777)
  const server = await ForkServer.start({ networkPool: 4 })
  t.teardown(() => server.destroy())
  const meeting = attackable().bind(directory, '/meeting', { writable: true }).unixSockets('allow')
  await using accomplices = await Sandbox.create(meeting, { server })
  await using victims = await Sandbox.create(attackable(), { server })
  await using watcher = await accomplices.spawn('/attack', ['sockets', 'watch', '/meeting/socket'], { stdin: 'pipe' })
  const lines = watcher.lines()[Symbol.asyncIterator]()
  t.is((await lines.next()).value, 'listen done')
  const seen = async (): Promise<unknown> => {
    watcher.stdin.write('.')
    return (await lines.next()).value
  }
  t.deepEqual(done(await inside(accomplices, ['sockets', 'hand-on', '/meeting/socket'])), ['hand-on'])
  t.is(await seen(), 'bytes 0', 'it can watch')
  // As many at a time as there are namespaces, so that each of those that are used again is.
  for (let turn = 0; turn < 6; turn += 1) {
    await Promise.all(Array.from({ length: 8 }, () => inside(victims, ['sockets', 'forms', '9', '127.0.0.1'])))
    t.is(await seen(), 'bytes 0')
  }
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
