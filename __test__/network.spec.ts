// The three kinds of network, and unix sockets.

import { readlinkSync } from 'node:fs'
import { createServer } from 'node:net'
import { networkInterfaces } from 'node:os'

import test from 'ava'

import { ForkServer, policy, Sandbox } from '../index.ts'
import { scratch } from './helpers.ts'
import { firstLine, shout, withProbe } from './inside.ts'

const hostNetwork = () => readlinkSync('/proc/self/ns/net')

/** The names in /proc/net/dev. */
const interfaces = 'tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d " "'

/** A server of the host's on 127.0.0.1. */
const hostPort = async (t: { teardown: (work: () => void) => void }): Promise<number> => {
  const server = createServer((socket) => socket.end('pong'))
  t.teardown(() => server.close())
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve)
  })
  return (server.address() as { port: number }).port
}

test('none: loopback is all there is, and it works', async (t) => {
  const sandbox = await Sandbox.create(withProbe(policy('host-system')))
  t.is(await shout(sandbox, interfaces), 'lo')
  const loopback = await sandbox.run('/probe', ['loopback'])
  t.is(loopback.stdout, 'pong')
  t.is(loopback.isolation.network, 'none')
})

test('none: there is no route, and no neighbour', async (t) => {
  const sandbox = await Sandbox.create(withProbe(policy('host-system')))
  // Only the heading.
  t.is(await shout(sandbox, 'wc -l < /proc/net/route'), '1')
  t.is(await shout(sandbox, 'wc -l < /proc/net/arp'), '1')
})

test("none: the host's servers are out of reach", async (t) => {
  const port = await hostPort(t)
  const sandbox = await Sandbox.create(withProbe(policy('host-system')))
  t.is((await sandbox.run('/probe', ['call', String(port)])).stdout, 'ECONNREFUSED')
})

test('none: running sandboxees have a network each, and can not talk', async (t) => {
  const sandbox = await Sandbox.create(withProbe(policy('host-system')))
  await using server = await sandbox.spawn('/probe', ['serve'])
  const port = await firstLine(server)
  t.is((await sandbox.run('/probe', ['call', port])).stdout, 'ECONNREFUSED')
})

test('none: a burst that is larger than the pool has a network for each, too', async (t) => {
  const server = await ForkServer.start({ networkPool: 2 })
  t.teardown(() => server.destroy())
  const sandbox = await Sandbox.create(policy('host-system'), { server })
  // All of them at the same time: none ends before the last one runs.
  const script = 'readlink /proc/self/ns/net; read line'
  const burst = await Promise.all(
    Array.from({ length: 24 }, () => sandbox.spawn('sh', ['-c', script], { stdin: 'pipe', buffer: true })),
  )
  await Promise.all(
    burst.map(
      ({ stdout }) =>
        new Promise((resolve) => {
          stdout.once('data', resolve)
        }),
    ),
  )
  for (const { stdin } of burst) stdin.end('over\n')
  const results = await Promise.all(burst.map(({ result }) => result))
  t.true(results.every(({ status, isolation }) => status === 'exited' && isolation.network === 'none'))
  t.is(new Set(results.map(({ stdout }) => stdout)).size, burst.length)
})

test('none: nothing of a network is left to the next one who gets it', async (t) => {
  const sandbox = await Sandbox.create(withProbe(policy('host-system')))
  for (let turn = 0; turn < 5; turn += 1) {
    // One after the other, so that a namespace may be used again.
    // oxlint-disable-next-line no-await-in-loop
    const counters = await shout(sandbox, "grep lo: /proc/net/dev | tr -s ' ' | cut -d' ' -f3,11; /probe loopback")
    t.regex(counters, /(^|\n)pong$/)
    t.notRegex(counters, /\b[1-9]\d* [1-9]/, 'traffic of somebody else')
  }
})

test("shared-loopback: launches share a network that is not the host's, and can talk", async (t) => {
  const sandbox = await Sandbox.create(withProbe(policy('host-system').network('shared-loopback')))
  const port = await hostPort(t)
  const server = await sandbox.spawn('/probe', ['serve'])
  try {
    const inside = await firstLine(server)
    const call = await sandbox.run('/probe', ['call', inside])
    t.is(call.stdout, 'pong')
    t.is(call.isolation.network, 'shared-loopback')
    t.is((await sandbox.run('/probe', ['call', String(port)])).stdout, 'ECONNREFUSED')
    t.is(await shout(sandbox, interfaces), 'lo')
  } finally {
    await server[Symbol.asyncDispose]()
  }
})

test('shared-loopback: another policy shares it too, one of its own does not', async (t) => {
  const shared = await Sandbox.create(policy('host-system').network('shared-loopback'))
  const other = await Sandbox.create(policy('host-system').network('shared-loopback').hostname('other'))
  const own = await Sandbox.create(policy('host-system'))
  await using holder = await shared.spawn('sh', ['-c', 'readlink /proc/self/ns/net; cat'], { stdin: 'pipe' })
  const network = await firstLine(holder)
  t.not(network, hostNetwork())
  t.is(await shout(shared, 'readlink /proc/self/ns/net'), network)
  t.is(await shout(other, 'readlink /proc/self/ns/net'), network)
  t.not(await shout(own, 'readlink /proc/self/ns/net'), network)
})

test("host: the host's network, as it is", async (t) => {
  const port = await hostPort(t)
  const sandbox = await Sandbox.create(withProbe(policy('host-system').network('host')))
  t.is(await shout(sandbox, 'readlink /proc/self/ns/net'), hostNetwork())
  const call = await sandbox.run('/probe', ['call', String(port)])
  t.is(call.stdout, 'pong')
  t.is(call.isolation.network, 'host')
  t.false(call.isolation.namespaces.includes('net'))
  for (const name of Object.keys(networkInterfaces())) {
    // oxlint-disable-next-line no-await-in-loop
    t.true((await shout(sandbox, interfaces)).split('\n').includes(name), name)
  }
})

test('unix sockets: refused by default, allowed on request, and not to be had for a bind', async (t) => {
  const directory = scratch(t)
  const path = `${directory}/socket`
  const server = createServer((socket) => socket.end('pong'))
  t.teardown(() => server.close())
  await new Promise<void>((resolve) => {
    server.listen({ path, writableAll: true }, resolve)
  })
  const base = withProbe(policy('host-system')).bind(directory, '/sockets')
  const none = await Sandbox.create(base)
  t.is((await none.run('/probe', ['unix'])).stdout, 'EACCES')
  const allow = await Sandbox.create(base.unixSockets('allow'))
  t.is((await allow.run('/probe', ['unix'])).stdout, 'ok')
  const python =
    'import socket; s = socket.socket(socket.AF_UNIX); s.connect("/sockets/socket"); print(s.recv(9).decode())'
  t.is((await allow.run('python3', ['-c', python])).stdout, 'pong')
  const refused = await none.run('python3', ['-c', python])
  t.is(refused.status, 'exited')
  t.regex(refused.stderr, /PermissionError/)
  // A pair leads nowhere else.
  const pair = 'import socket; a, b = socket.socketpair(); a.send(b"x"); print(b.recv(1).decode())'
  t.is((await none.run('python3', ['-c', pair])).stdout, 'x')
})
