// Attacks by way of files: out of the tree, on the programs that make the sandbox, with device nodes and privileged
// programs, and with names that change while they are looked at.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { type ChildProcess, spawn } from 'node:child_process'
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { appendFile } from 'node:fs/promises'
import path from 'node:path'
import { createInterface } from 'node:readline'

import type { ExecutionContext } from 'ava'

import { ForkServer, policy, Sandbox, SpawnError } from '../../index.ts'
import { isRoot, runs, scratch, until } from '../helpers.ts'
import { firstLine } from '../inside.ts'
import { attack, attackable, done, filters, inside, outside, program, victim } from './support.ts'

const NOBODY = 65534

/** A file of the host that nobody inside has business with, readable by all. */
const canary = (t: ExecutionContext): string => {
  const file = path.join(scratch(t), 'canary')
  writeFileSync(file, 'TOKEN-of-the-host')
  chmodSync(file, 0o644)
  return file
}

for (const filter of filters) {
  attack(`no path, descriptor or magic link leads to a file of the host: ${filter}`, async (t) => {
    const file = canary(t)
    const free = done(await outside(['files', 'paths', file, 'TOKEN']))
    for (const what of ['path-', 'path-/proc/self/root', 'path-/tmp/../..', 'path-/proc/self/cwd/..']) {
      t.true(
        free.some((found) => found.startsWith(what)),
        what,
      )
    }

    await using sandbox = await Sandbox.create(attackable(filter))
    const found = await inside(sandbox, ['files', 'paths', file, 'TOKEN'])
    t.true(found.size > 25)
    t.deepEqual(done(found), [])
    // Files that were passed do not lead anywhere else either.
    const fd = openSync(file, 'r')
    const passed = { stdio: ['ignore', 'pipe', 'pipe', { fd }] } as const
    t.deepEqual(done(await inside(sandbox, ['files', 'paths', file, 'TOKEN'], passed)), [])
    // A directory does, which is why it takes a word to pass one: so the attempts above are attempts.
    const top = openSync('/', 'r')
    const unsafe = { stdio: ['ignore', 'pipe', 'pipe', { fd: top, unsafe: true }] } as const
    const led = done(await inside(sandbox, ['files', 'paths', file, 'TOKEN'], unsafe))
    t.deepEqual(led.toSorted(), ['fd-3-chdir', 'fd-3-magic', 'fd-3-relative', 'process-2-fd-3'])
    await t.throwsAsync(sandbox.run('/attack', [], { stdio: ['ignore', 'pipe', 'pipe', { fd: top }] }), {
      code: 'ERR_NESTBOX_UNSAFE_FD',
    })
  })

  attack(`what init has open or mapped can not be had by magic links: ${filter}`, async (t) => {
    await using sandbox = await Sandbox.create(attackable(filter))
    t.deepEqual(done(await inside(sandbox, ['files', 'magic'])), [])
    // Of another process of the same user they can, where nothing is in between.
    const own = await victim(t)
    t.true(readdirSync(`/proc/${own.pid}/fd`).length > 2)
  })

  attack(`the programs that run can not be overwritten, neither one's own nor init's: ${filter}`, async (t) => {
    await using server = await ForkServer.start()
    await using sandbox = await Sandbox.create(attackable(filter), { server })
    const before = readFileSync(program())
    // One that does not run, or not any more, is anybody's who may write to it.
    const copy = path.join(scratch(t), 'copy')
    copyFileSync(program(), copy)
    const free = done(await outside(['files', 'overwrite', copy, `${copy}-link`]))
    for (const what of ['write', 'truncate', 'chmod', 'path', 'reopen', 'resize', 'link'])
      t.true(free.includes(what), what)
    for (const exe of ['/proc/self/exe', '/proc/1/exe', '/attack']) {
      const found = await inside(sandbox, ['files', 'overwrite', exe, '/tmp/link'])
      t.deepEqual(
        done(found).filter((what) => what !== 'path'),
        [],
        exe,
      )
      t.is(found.get('path') === 'done', exe !== '/proc/1/exe', 'init can not even be looked at')
    }
    t.deepEqual(readFileSync(program()), before)

    // CVE-2019-5736: the launcher itself, as the interpreter of the first program. It is a memfd, and sealed for good.
    const script = { '/tmp/script': { content: '#!/proc/self/exe files\n', mode: 0o755 } }
    const result = await sandbox.run('/tmp/script', [], { files: script }).catch((error: unknown) => error)
    if (!(result instanceof SpawnError)) t.like(result, { status: 'exited', stdout: '' })
    if (isRoot) {
      const seals = (await outside(['files', 'seals', `/proc/${server.pid}/exe`])).get('seals')
      // F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
      t.is(Number(seals) & 15, 15, String(seals))
    }
    t.is((await sandbox.run('/attack', ['files', 'ids'])).status, 'exited', 'launches go on')
  })

  attack(`device nodes can neither be made nor used: ${filter}`, async (t) => {
    const directory = scratch(t)
    chmodSync(directory, 0o777)
    if (isRoot) t.is((await outside(['files', 'devices', directory])).get('zero'), 'done')
    const writable = attackable(filter).bind(directory, '/data', { writable: true, exec: true })
    await using sandbox = await Sandbox.create(writable)
    for (const where of ['/tmp', '/dev/shm', '/data']) {
      t.deepEqual(done(await inside(sandbox, ['files', 'devices', where])), [], where)
    }
    // One that is there already, in a bind: of root's making, for everybody to use.
    if (!isRoot) return
    const { status } = await spawnSyncly('mknod', ['-m', '666', path.join(directory, 'zero'), 'c', '1', '5'])
    t.is(status, 0)
    t.is((await outside(['files', 'open', path.join(directory, 'zero')], NOBODY)).get('open'), 'done')
    t.is((await inside(sandbox, ['files', 'open', '/data/zero'])).get('open'), 'EACCES')
  })

  attack(`set-user-ID programs and file capabilities give nothing: ${filter}`, async (t) => {
    if (!isRoot) {
      t.log('skipped: only root can make a program that gives something')
      t.pass()
      return
    }
    const directory = scratch(t)
    const [setuid, endowed] = ['setuid', 'endowed'].map((name) => path.join(directory, name)) as [string, string]
    for (const copy of [setuid, endowed]) copyFileSync(program(), copy)
    chmodSync(setuid, 0o6755)
    chmodSync(endowed, 0o755)
    t.is((await outside(['files', 'endow', endowed])).get('endow'), 'done')
    // Outside, to anybody.
    const free = await as(setuid)
    t.regex(free, /^euid 0$/m)
    t.regex(await as(endowed), /^capabilities 0*1$/m)

    const shown = attackable(filter)
      .bind(directory, '/data')
      .bind(directory, '/writable', { writable: true, exec: true })
    await using sandbox = await Sandbox.create(shown)
    for (const file of ['/data/setuid', '/data/endowed', '/writable/setuid', '/writable/endowed']) {
      const { stdout } = await sandbox.run(file, ['files', 'ids'])
      t.is(stdout, 'euid 1000\negid 1000\ncapabilities 0000000000000000', file)
    }
  })
}

/** What of the host's files below a directory would run with their owner's or group's ids. */
const withIds = (directory: string): string[] =>
  readdirSync(directory).filter((name) => {
    const found = statSync(path.join(directory, name))
    return found.isFile() && (found.mode & 0o6000) !== 0
  })

attack('no set-user-ID or set-group-ID program can be left in a writable bind', async (t) => {
  // Kernels before 6.6 have no fchmodat2, some file systems no O_TMPFILE, arm64 none of the calls of old.
  const there = (found: ReadonlyMap<string, string>): string[] =>
    [...found].filter(([, how]) => !['ENOSYS', 'EOPNOTSUPP'].includes(how)).map(([name]) => name)
  for (const mode of ['4755', '2755', '6711']) {
    for (const point of [false, true]) {
      const shown = (filter: 'default' | 'unfiltered', directory: string) => {
        const options = point ? { binds: { '/out': directory } } : {}
        const plain = attackable(filter)
        const tree = point
          ? plain.mountPoint('/out', { writable: true })
          : plain.bind(directory, '/out', { writable: true })
        return { tree, options }
      }
      // Its owner is the owner of all that is made there: under a root host, root.
      const open = scratch(t)
      const free = shown('unfiltered', open)
      await using without = await Sandbox.create(free.tree)
      const made = await inside(without, ['files', 'modes', '/out', mode], free.options)
      for (const name of ['fchmod', 'mknodat', 'openat', 'openat2']) t.is(made.get(name), 'done', name)
      t.true(withIds(open).includes('fchmod'))
      t.not(made.get('mkdir'), 'done', 'which has no such mode')

      const closed = scratch(t)
      const kept = shown('default', closed)
      await using sandbox = await Sandbox.create(kept.tree)
      const tried = await inside(sandbox, ['files', 'modes', '/out', mode], kept.options)
      t.deepEqual(done(tried), [])
      t.is(tried.get('openat2'), 'ENOSYS')
      for (const name of there(made)) {
        if (name !== 'openat2' && name !== 'mkdir') t.is(tried.get(name), 'EPERM', name)
      }
      t.deepEqual(withIds(closed), [])
    }
  }
  // Every other mode is as it was, the sticky bit too.
  for (const mode of ['644', '755', '1777', '0']) {
    const directory = scratch(t)
    await using sandbox = await Sandbox.create(attackable().bind(directory, '/out', { writable: true }))
    const tried = await inside(sandbox, ['files', 'modes', '/out', mode])
    t.deepEqual(
      there(tried).filter((name) => tried.get(name) !== 'done'),
      [],
      mode,
    )
    t.true(tried.size >= 12)
  }
})

attack('what copies, unpacks, installs and compiles works in a writable bind', async (t) => {
  const directory = scratch(t)
  await using sandbox = await Sandbox.create(
    policy('host-system').bind(directory, '/out', { writable: true, exec: true }),
  )
  const work = `
    set -e; cd /out; mkdir -m 1777 sticky; mkdir -p a/b; echo text > a/b/file; chmod 640 a/b/file; chmod u+x,g-r a/b/file
    cp -a a copied; install -m 755 a/b/file installed; tar cf a.tar a; mkdir there; tar xpf a.tar -C there
    printf 'int main(void) { return 0; }' > main.c; gcc -o main main.c; ./main
    stat -c %a copied/b/file there/a/b/file installed main sticky
    if command -v git > /dev/null; then export HOME=/out; git init -q repository; fi
    if command -v python3 > /dev/null; then python3 -c 'import shutil, tempfile; shutil.copytree("a", "tree"); tempfile.TemporaryFile(dir=".")'; fi
    if chmod u+s main || chmod g+s sticky || install -m 4755 main privileged; then exit 1; fi`
  const result = await sandbox.run('sh', ['-c', work])
  t.like(result, { status: 'exited', exitCode: 0 }, result.stderr)
  t.is(result.stdout.trim(), '700\n700\n755\n755\n1777')
  t.deepEqual(withIds(directory), [])
})

/** What {@link program}'s `ids` says when nobody in particular runs this copy of it. */
const as = async (file: string): Promise<string> => {
  const child = spawn(file, ['files', 'ids'], { uid: NOBODY, gid: NOBODY, stdio: ['ignore', 'pipe', 'ignore'] })
  let text = ''
  for await (const chunk of child.stdout) text += String(chunk)
  return text
}

const spawnSyncly = async (file: string, args: readonly string[]): Promise<{ status: number | null }> =>
  new Promise((resolve) => {
    spawn(file, args, { stdio: 'ignore' }).on('close', (status) => resolve({ status }))
  })

// ---- names that change -----------------------------------------------------------------------------------------------------

/** Has two names of the host swapped all the time, until the test is over. */
const flipping = async (t: ExecutionContext, one: string, other: string): Promise<ChildProcess> => {
  const child = spawn(program(), ['files', 'flip', one, other], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => child.kill('SIGKILL'))
  for await (const line of createInterface({ input: child.stdout })) {
    t.is(line, 'flip done')
    break
  }
  return child
}

attack('a mount point that becomes a link and back, all the time, never moves the mount', async (t) => {
  const directory = scratch(t)
  const [volume, secret, source] = ['volume', 'secret', 'source'].map((name) => path.join(directory, name)) as [
    string,
    string,
    string,
  ]
  for (const made of [volume, secret, source, path.join(volume, 'x'), path.join(volume, 'sub')]) mkdirSync(made)
  writeFileSync(path.join(source, 'planted'), 'planted')
  // Where a mount would do harm: a directory of the nest that programs trust. Once as a link and once as the way there.
  symlinkSync('/usr/local', path.join(volume, 'link'))
  const flipper = await flipping(t, path.join(volume, 'x'), path.join(volume, 'link'))
  const base = policy('host-system').bind(program(), '/attack').bind(volume, '/volume', { writable: true })
  await using server = await ForkServer.start({ maxTemplates: 4 })
  let mounted = 0
  let refused = 0
  const judge = async (launch: () => Promise<{ readonly stdout: string }>): Promise<void> => {
    try {
      const { stdout } = await launch()
      const points = stdout.split('\n').map((line) => line.split(' ')[4] ?? '')
      t.false(
        points.some((point) => point.startsWith('/usr/local')),
        points.join(),
      )
      // On the directory, whatever its name has become since.
      t.true(points.includes('/volume/x') || points.includes('/volume/link'), points.join())
      mounted += 1
    } catch (error) {
      if (!(error instanceof SpawnError)) throw error
      refused += 1
    }
  }
  const mountinfo = ['cat', ['/proc/self/mountinfo']] as const
  for (let round = 0; round < 60; round += 1) {
    // A policy of its own each time: the mount is made with the template; below that, with the launch.
    const fixed = base
      .bind(source, '/volume/x')
      .env({ ROUND: String(round) })
      .hostname(`round${round}`)
    await using sandbox = await Sandbox.create(fixed, { server })
    await judge(() => sandbox.run(...mountinfo))
  }
  await using sandbox = await Sandbox.create(base.mountPoint('/volume/x'), { server })
  for (let round = 0; round < 60; round += 1) {
    await judge(() => sandbox.run(...mountinfo, { binds: { '/volume/x': source } }))
  }
  // A file system of the nest's own, which init mounts. Cold each time: a warm nest had it before the name changed.
  await using fresh = await Sandbox.create(base.tmpfs('/volume/x'), { server, warm: 0 })
  for (let round = 0; round < 60; round += 1) await judge(() => fresh.run(...mountinfo))
  flipper.kill('SIGKILL')
  t.log(`mounted ${mounted}, refused ${refused}`)
  t.is(mounted + refused, 180)
  t.true(refused > 0, 'the link was met')
  // Nothing came to be on the host.
  t.deepEqual(readdirSync(secret), [])
  t.deepEqual(readdirSync(source), ['planted'])
})

attack('a source that becomes a link and back, all the time, is one or the other, and never half', async (t) => {
  const directory = scratch(t)
  const [real, secret, link] = ['real', 'secret', 'link'].map((name) => path.join(directory, name)) as [
    string,
    string,
    string,
  ]
  for (const [made, content] of [
    [real, 'real'],
    [secret, 'secret'],
  ] as const) {
    mkdirSync(path.join(made, 'sub'), { recursive: true })
    writeFileSync(path.join(made, 'sub', 'name'), content)
    writeFileSync(path.join(made, 'name'), content)
  }
  symlinkSync(secret, link)
  const flipper = await flipping(t, real, link)
  await using sandbox = await Sandbox.create(policy('host-system').mountPoint('/in', { writable: true }))
  const seen = new Set<string>()
  for (let round = 0; round < 80; round += 1) {
    const launch = sandbox.run('cat', ['/in/name', '/in/sub/name'], { binds: { '/in': real } })
    const result = await launch.catch((error: unknown) => {
      if (!(error instanceof SpawnError)) throw error
    })
    if (result === undefined) continue
    t.true(['realreal', 'secretsecret'].includes(result.stdout), result.stdout)
    seen.add(result.stdout)
  }
  flipper.kill('SIGKILL')
  t.true(seen.size > 0)
})

attack('an output whose name others change while it is brought out is never what a link points to', async (t) => {
  const directory = scratch(t)
  chmodSync(directory, 0o777)
  const secret = path.join(scratch(t), 'secret')
  writeFileSync(secret, 'secret')
  const [out, link] = ['out', 'link'].map((name) => path.join(directory, name)) as [string, string]
  const shown = policy('host-system').bind(directory, '/data', { writable: true }).bind(secret)
  await using sandbox = await Sandbox.create(shown)
  writeFileSync(out, 'content')
  symlinkSync(secret, link)
  const flipper = await flipping(t, out, link)
  const seen: Record<string, number> = {}
  for (let round = 0; round < 100; round += 1) {
    // Whoever opens it by its name gets either.
    const careless = readFileSync(out, 'utf8')
    seen[`careless ${careless}`] = (seen[`careless ${careless}`] ?? 0) + 1
    const { outputs, outputErrors } = await sandbox.run('true', [], {
      outputs: { out: { path: '/data/out', maxBytes: 100 } },
    })
    const found = outputErrors?.['out']?.errnoName ?? Buffer.from(outputs.out).toString()
    seen[found] = (seen[found] ?? 0) + 1
  }
  flipper.kill('SIGKILL')
  t.log(JSON.stringify(seen))
  t.true((seen['careless secret'] ?? 0) > 0, 'the attack works on the careless')
  t.true((seen['ELOOP'] ?? 0) > 0)
  t.deepEqual(
    Object.keys(seen).filter((what) => !/^(?:careless \w+|content|ELOOP|EAGAIN|EXDEV)$/.test(what)),
    [],
  )
})

attack('a hard link made inside leads to no file of the host', async (t) => {
  const directory = scratch(t)
  chmodSync(directory, 0o777)
  const secret = path.join(scratch(t), 'secret')
  writeFileSync(secret, 'secret')
  chmodSync(secret, 0o666)
  const shown = policy('host-system').bind(directory, '/data', { writable: true }).bind(secret).syscalls('unfiltered')
  await using sandbox = await Sandbox.create(shown)
  // Of what it sees, to where it can write; on the host both are on one file system, where a link can be made.
  const script = `ln ${secret} /data/link || echo refused; ln /etc/passwd /tmp/link || echo refused`
  const { stdout } = await sandbox.run('sh', ['-c', script])
  t.is(stdout, 'refused\nrefused')
  t.deepEqual(readdirSync(directory), [])
  t.is((await spawnSyncly('ln', [secret, path.join(directory, 'link')])).status, 0)
})

// ---- what two launches share on purpose ------------------------------------------------------------------------------------

attack(
  'locks and watches on what a bind shows are shared, leases are refused: what the threat model says',
  async (t) => {
    const directory = scratch(t)
    const file = path.join(directory, 'file')
    writeFileSync(file, 'x')
    chmodSync(file, 0o644)
    await using sandbox = await Sandbox.create(attackable().bind(directory, '/data'))

    // A lock is on the inode. Another launch sees it, and so does the host: no protection, and documented.
    const holder = await sandbox.spawn('/attack', ['files', 'hold', '/data/file'])
    t.is(await firstLine(holder), 'lock done')
    t.is((await inside(sandbox, ['files', 'locks', '/data/file'])).get('flock'), 'EAGAIN')
    t.is((await outside(['files', 'locks', file])).get('flock'), 'EAGAIN')
    holder.kill()
    await holder.result
    t.is((await inside(sandbox, ['files', 'locks', '/data/file'])).get('flock'), 'done', 'gone with the nest')

    // A watch tells of what the host does to it.
    const watcher = await sandbox.spawn('/attack', ['files', 'watch', '/data/file'])
    t.is(await firstLine(watcher), 'watch done')
    readFileSync(file)
    t.is(await firstLine(watcher), 'event done')
    await watcher.result

    // A lease makes the host wait. Without the filter, where the file is the sandboxee's own, it can be had.
    t.is((await inside(sandbox, ['files', 'locks', '/data/file'])).get('lease-read'), 'EPERM')
    await using open = await Sandbox.create(attackable('unfiltered').bind(directory, '/data'))
    const lessor = await open.spawn('/attack', ['files', 'hold-lease', '/data/file'])
    const leased = await firstLine(lessor)
    t.is(leased, isRoot ? 'lease EACCES' : 'lease done')
    let over = false
    const written = appendFile(file, 'y').finally(() => (over = true))
    // Who does not wait for a lease is done in any time that a busy machine takes.
    if (leased === 'lease done') t.false(await until(() => over, 300))
    else t.true(await until(() => over))
    lessor.kill()
    await lessor.result
    await written
    t.false(runs(lessor.pid))
  },
)
