// Attacks on what there is only so much of: what is counted for the machine or for the user, memory, disk, output. Each
// takes at most what a cap says, so that nothing here can hurt the machine.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { execFileSync } from 'node:child_process'
import { chmodSync, existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'

import test from 'ava'

import { policy, Sandbox } from '../../index.ts'
import { BOUNDED, have, scratch } from '../helpers.ts'
import { attack, attackable, filters, inside, program } from './support.ts'

/** How much of something a program gets outside, right now. */
const free = (what: string, cap: number): { count: number; why: string } => {
  const [, count = '', why = ''] = execFileSync(program(), ['exhaust', what, String(cap)], { encoding: 'utf8' })
    .trim()
    .split(' ')
  return { count: Number(count), why }
}

/** One that takes as much as it gets, and keeps it; with what it got. */
const hold = async (sandbox: Sandbox, what: string, cap: number) => {
  const holder = await sandbox.spawn('/attack', ['exhaust', what, String(cap), 'stay'])
  for await (const line of holder.lines()) {
    const [, count = '', why = ''] = line.split(' ')
    return { holder, count: Number(count), why }
  }
  throw new Error('it printed nothing')
}

const setting = (name: string): number | undefined => {
  const file = path.join('/proc/sys', name)
  return existsSync(file) ? Number(readFileSync(file, 'latin1')) : undefined
}

const pendingSignals = Number(/^Max pending signals\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'latin1'))?.[1])

/** What the kernel counts for the user who made a user namespace, root as well. One program must leave some to the host. */
const counted = [
  ['inotify', (setting('fs/inotify/max_user_instances') ?? 128) * 2],
  ['timers', Math.min(pendingSignals * 2, 300_000)],
  ['queues', 100],
] as const

// One after the other, and nothing else beside them: each takes all that there is of something.
const serially = have('gcc') ? test.serial : test.serial.skip

for (const filter of filters) {
  serially(`of what is counted per user the host keeps some: ${filter}`, async (t) => {
    await using sandbox = await Sandbox.create(attackable(filter))
    for (const [what, cap] of counted) {
      if (free(what, 3).count < 3) {
        t.log(`skipped: somebody else has all of ${what}`)
        continue
      }
      const { holder, count, why } = await hold(sandbox, what, cap)
      t.true(count > 3, `${what}: it could take ${count}`)
      t.regex(why, /^(?:EMFILE|EAGAIN|ENOSPC)$/, `${what}: there was an end to it`)
      t.true(free(what, 2).count > 0, `${what}: nothing is left to the host`)
      holder.kill()
      await holder.result
      t.is(free(what, 3).why, 'cap', `${what} is given back`)
    }
  })
}

serially('of what is counted for the whole machine the filter lets nobody have any', async (t) => {
  const most = setting('fs/aio-max-nr') ?? 65_536
  await using open = await Sandbox.create(attackable('unfiltered'))
  const { stdout } = await open.run('/attack', ['exhaust', 'aio', '2'])
  t.regex(stdout, /^aio [12] /, `of ${most}`)
  await using closed = await Sandbox.create(attackable())
  t.is((await closed.run('/attack', ['exhaust', 'aio', '2'])).stdout, 'aio 0 EPERM')
})

attack('no semaphores are left that would take the kernel long to undo', async (t) => {
  await using open = await Sandbox.create(attackable('unfiltered'))
  t.is((await open.run('/attack', ['exhaust', 'semaphores', '4'])).stdout, 'semaphores 4 cap')
  await using closed = await Sandbox.create(attackable())
  t.is((await closed.run('/attack', ['exhaust', 'semaphores', '4'])).stdout, 'semaphores 0 EINVAL')
  t.is((await closed.run('/attack', ['exhaust', 'few-semaphores', '100'])).stdout, 'few-semaphores 100 cap')
})

attack("nobody waits for the whole machine's data to be written", async (t) => {
  await using open = await Sandbox.create(attackable('unfiltered'))
  const made = await inside(open, ['files', 'syncs'])
  t.deepEqual([...made.values()], ['EBADF', 'EBADF', 'EBADF'])
  await using closed = await Sandbox.create(attackable())
  const found = await inside(closed, ['files', 'syncs'])
  t.deepEqual([...found.values()], ['done', 'EBADF', 'EBADF'], "one's own files are")
  // Nobody notices.
  const ended = await closed.run('sh', ['-c', 'sync && echo x > /tmp/x && sync /tmp/x && sync -f /tmp/x'])
  t.like(ended, { status: 'exited', exitCode: 0 }, ended.stderr)
})

attack('descriptors, pipes and terminals end at the limit of the nest, and others have theirs', async (t) => {
  await using sandbox = await Sandbox.create(attackable().limits({ openFiles: 64 }))
  const held = await Promise.all(['descriptors', 'pipes', 'terminals'].map((what) => hold(sandbox, what, 5000)))
  for (const { count, why } of held) {
    t.true(count <= 61, String(count))
    t.is(why, 'EMFILE')
  }
  t.true(free('pipes', 100).why === 'cap')
  t.is((await sandbox.run('/attack', ['exhaust', 'pipes', '20'])).stdout, 'pipes 20 cap')
  for (const { holder } of held) holder.kill()
  await Promise.all(held.map(({ holder }) => holder.result))
})

attack('memory ends at the limit, and is given back', async (t) => {
  // Of each process: what of all of them together is for a control group to bound.
  await using sandbox = await Sandbox.create(attackable().limits({ addressSpacePerProcess: '64MiB' }))
  const { holder, count, why } = await hold(sandbox, 'memory', 128)
  t.true(count < 64 && count > 32, String(count))
  t.is(why, 'ENOMEM')
  holder.kill()
  const { resourceUsage } = await holder.result
  t.true(resourceUsage.peakMemoryBytes < 70 * 2 ** 20)
  // Without it the cap is the only one.
  await using open = await Sandbox.create(attackable())
  t.is((await open.run('/attack', ['exhaust', 'memory', '100'])).stdout, 'memory 100 cap')
})

attack('names and bytes end at the limits of their tmpfs, and are gone afterwards', async (t) => {
  await using sandbox = await Sandbox.create(
    attackable().tmpfs('/tmp', { inodes: 100, size: '1MiB' }).limits({ disk: '2MiB' }),
  )
  const { stdout } = await sandbox.run('/attack', ['exhaust', 'files', '5000'])
  const [, count = '', why] = stdout.split(' ')
  t.true(Number(count) < 100, count)
  t.is(why, 'ENOSPC')
  for (const where of ['/tmp/x', '/dev/shm/x']) {
    const full = await sandbox.run('dd', ['if=/dev/zero', `of=${where}`, 'bs=64k', 'count=100'])
    t.regex(full.stderr, /No space left/, where)
  }
  t.is((await sandbox.run('/attack', ['exhaust', 'files', '50'])).stdout, 'files 50 cap', 'the next has all of its own')
})

attack('a flood of output on both streams and in every file is bounded, in the nest and in the host', async (t) => {
  const to = scratch(t)
  chmodSync(to, 0o777)
  await using sandbox = await Sandbox.create(policy('host-system').limits({ disk: '8MiB', output: '256KiB' }))
  // What unpacks to far more than it is: two mebibytes of zeros in two kilobytes, over and over.
  const bomb =
    'head -c 2097152 /dev/zero | gzip > /tmp/bomb; for i in 1 2 3 4 5 6 7 8 9; do gzip -dc /tmp/bomb > /tmp/$i; done; yes & yes >&2'
  const names = Array.from({ length: 9 }, (_, index) => String(index + 1))
  const before = process.memoryUsage.rss()
  const outputs = Object.fromEntries(
    names.map((name) => [name, { path: `/tmp/${name}`, maxBytes: 2 ** 20, to: path.join(to, name) }]),
  )
  const result = await sandbox.run('sh', ['-c', bomb], { outputs, timeout: 5000, encoding: 'utf8', buffer: true })
  t.like(result, { status: 'limit-exceeded', limit: 'output', isMaxBuffer: true })
  t.true(result.stdout.length + result.stderr.length <= 256 * 1024)
  t.true(result.limitsHit.includes('disk'))
  // Each is larger than it may be; nothing of it is on the host.
  t.true(Object.values(result.outputErrors ?? {}).some(({ errnoName }) => errnoName === 'EFBIG'))
  t.deepEqual(
    readdirSync(to).filter((name) => readFileSync(path.join(to, name)).length > 2 ** 20),
    [],
  )
  t.true(process.memoryUsage.rss() - before < 64 * 2 ** 20)
})

attack('outputs that are no ordinary files neither block nor fill the host', async (t) => {
  const directory = scratch(t)
  chmodSync(directory, 0o777)
  await using sandbox = await Sandbox.create(policy('host-system').bind(directory, '/data', { writable: true }))
  const make =
    'cd /data; mkfifo fifo; truncate -s 1T sparse 2> /dev/null || truncate -s 900M sparse; ln -s /etc/passwd link; mkdir dir; ln -s dir through; echo ok > dir/file; ln dir/file hard; (while :; do echo more; done) > growing & sleep 0.05'
  const paths = ['fifo', 'sparse', 'link', 'dir', 'through/file', 'growing', 'hard']
  const start = performance.now()
  const { outputs, outputErrors } = await sandbox.run('sh', ['-c', make], {
    outputs: Object.fromEntries(paths.map((name) => [name, { path: `/data/${name}`, maxBytes: 1000 }])),
  })
  t.true(performance.now() - start < BOUNDED)
  const why = Object.fromEntries(Object.entries(outputErrors ?? {}).map(([name, { errnoName }]) => [name, errnoName]))
  t.deepEqual(Object.keys(why).toSorted(), ['dir', 'fifo', 'growing', 'link', 'sparse', 'through/file'])
  t.is(why['sparse'], 'EFBIG')
  t.is(why['growing'], 'EFBIG')
  for (const name of ['link', 'through/file']) t.is(why[name], 'ELOOP')
  // A hard link is as good a name as any.
  t.is(Buffer.from((outputs as Record<string, Uint8Array>)['hard'] ?? []).toString(), 'ok\n')
})
