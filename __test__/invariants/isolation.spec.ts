// What a sandboxee can't reach: another launch, its init, the host's descriptors, terminal and files, the tree of mounts.
// Each attack is shown to work first, on something that it may be done to; and where it says so, the syscall filter is off,
// so that what holds is the namespaces alone.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { execFile, execFileSync, spawn } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync, chmodSync } from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'

import test from 'ava'

import { policy, type PolicyBuilder, run, Sandbox } from '../../index.ts'
import { runs, have, isRoot } from '../helpers.ts'
import { fixture, Host, room, root, workshop } from './support.ts'

const compiled = have('gcc') ? test : test.skip
const filters = ['unfiltered', 'default'] as const

/** `what outcome`, line by line. */
const outcomes = (text: string): Map<string, string> =>
  new Map(
    text
      .trim()
      .split('\n')
      .map((line) => [line.slice(0, line.lastIndexOf(' ')), line.slice(line.lastIndexOf(' ') + 1)]),
  )

const done = (found: ReadonlyMap<string, string>): string[] =>
  [...found].filter(([, outcome]) => outcome === 'done').map(([what]) => what)

const only = (name: string): PolicyBuilder => policy('host-system').bind(fixture(name), '/program')

// ---- two launches of one template ----------------------------------------------------------------------------------------------

compiled('two launches of one template share no writable state', async (t) => {
  const everything = only('share').syscalls('unfiltered').unixSockets('allow')
  await using sandbox = await Sandbox.create(everything)

  // Two processes of one launch share each of these.
  const both = await sandbox.run('/program', ['both'])
  const [left = '', seen = ''] = both.stdout.split('\n').map((line) => line.trim())
  t.notRegex(left, /(?:^| )-/)
  t.is(seen, left)

  // The one that leaves them stays while the other looks.
  const leaver = await sandbox.spawn('/program', ['leave'])
  const lines = leaver.lines()
  for await (const line of lines) {
    t.is(line.trim(), left)
    break
  }
  const looker = await sandbox.run('/program', ['look'])
  t.is(looker.stdout.trim(), left.replaceAll(/(^| )/g, '$1-'))
  leaver.kill()
  await leaver.result
  t.is((await sandbox.run('/program', ['look'])).stdout.trim(), looker.stdout.trim(), 'nor afterwards')
})

compiled('the hostname of a nest is its own, and fixed', async (t) => {
  const python = 'import socket; print(socket.gethostname()); socket.sethostname("other")'
  if (!have('python3')) {
    t.pass()
    return
  }
  await using sandbox = await Sandbox.create(policy('host-system').syscalls('unfiltered'))
  const result = await sandbox.run('python3', ['-c', python])
  t.is(result.stdout, 'nestbox')
  t.regex(result.stderr, /PermissionError/)
})

// ---- init ------------------------------------------------------------------------------------------------------------------------

/** What works on a process of one's own, and so has to be kept from working on init. */
const ON_OWN = [
  'open-mem',
  'read-environ',
  'read-maps',
  'read-auxv',
  'open-exe',
  'open-root',
  'open-cwd',
  'list-fd',
  'write-oom',
  'vm-read',
  'getfd',
  'prlimit',
  'ptrace',
]

for (const filter of filters) {
  compiled(`init is out of reach: ${filter}`, async (t) => {
    // Beside it: another nest, and a process of the host.
    await using sandbox = await Sandbox.create(only('attack').bind(fixture('stubborn'), '/stubborn').syscalls(filter))
    const neighbour = await sandbox.spawn('/stubborn')
    const ours = spawn('sleep', ['60'], { stdio: 'ignore' })
    const result = await sandbox.run('/program')
    // It saw the end of its own attack: init was there to report it.
    t.like(result, { status: 'exited', exitCode: 0 }, result.stderr)
    t.regex(result.stdout, /^end$/m)
    const found = outcomes(result.stdout.replace(/\nend\n?$/, ''))

    if (filter === 'unfiltered') {
      for (const what of ON_OWN) t.is(found.get(`own ${what}`), 'done', what)
    }
    t.is(found.get('own kill-KILL'), 'done')
    for (const what of ON_OWN) {
      // Same owner, other user namespace: prlimit(2) asks for the same ids only, and init has nothing that it limits.
      // What it would take to refuse it is the filter.
      if (what === 'prlimit' && filter === 'unfiltered' && !isRoot) continue
      t.not(found.get(`init ${what}`), 'done', what)
      t.not(found.get(`init ${what}`), undefined, what)
    }
    for (const what of ['setns-mnt', 'setns-pid', 'setns-user']) t.not(found.get(`init ${what}`), 'done', what)
    // Signals to init may be accepted; they are dropped, for it has no handler.
    t.true(['done', 'ESRCH', 'EPERM'].includes(found.get('all kill-KILL') ?? ''), 'nobody else is there to be killed')

    t.true(runs(neighbour.pid))
    t.is(ours.exitCode, null)
    t.is(ours.signalCode, null)
    ours.kill('SIGKILL')
    neighbour.kill()
    await neighbour.result
  })
}

// ---- descriptors -------------------------------------------------------------------------------------------------------------------

/** Opens many kinds of descriptors, none of them close-on-exec, and becomes Node. */
const INHERITING = `
import fcntl, os, select, socket, sys
kinds = [lambda: os.open("/", os.O_RDONLY), lambda: os.open("/proc", os.O_RDONLY), lambda: os.memfd_create("x"),
         lambda: os.open("/dev/null", os.O_RDWR), lambda: os.open("/etc/passwd", os.O_RDONLY),
         lambda: socket.socket().detach(), lambda: os.pipe()[0], lambda: (made.append(select.epoll()), made[-1].fileno())[1],
         lambda: os.open("/proc/self/ns/mnt", os.O_RDONLY), lambda: os.open("/", os.O_PATH)]
keep = []
made = []
for index in range(200):
    made.append(kinds[index % len(kinds)]())
    # Node marks the lowest ones close-on-exec when it starts, up to the first gap.
    fd = fcntl.fcntl(made[-1], fcntl.F_DUPFD, 500)
    keep.append(fd)
os.execv(sys.argv[1], sys.argv[1:])
`

const withPython = have('gcc') && have('python3') ? test : test.skip

withPython('a sandboxee has exactly its own descriptors, whatever the host has open', async (t) => {
  const program = fixture('descriptors')
  await using host = await Host.start({
    wrapper: [
      execFileSync('python3', ['-c', 'import sys; print(sys.executable)'], { encoding: 'utf8' }).trim(),
      '-c',
      INHERITING,
    ],
    binds: { '/program': program },
  })
  t.true(readdirSync(`/proc/${host.pid}/fd`).length > 200)
  // Whom the host spawns the usual way inherits them.
  const inherited = await host.must('childProcess', { file: program })
  t.true(String(inherited.value).trim().split(' ').length > 200)

  t.is((await host.must('run')).result?.stdout, '0 1 2 ')
  const ignored = { stdout: 'pipe', stdin: 'ignore', stderr: 'ignore' }
  t.is((await host.must('run', { options: ignored })).result?.stdout, '0 1 2 ')
  const mapped = { stdio: ['ignore', 'pipe', 'ignore', 'ignore', { fd: 0, unsafe: true }] }
  t.is((await host.must('run', { options: mapped })).result?.stdout, '0 1 2 4 ')
  t.is((await host.must('unsandboxed', { file: program })).result?.stdout, '0 1 2 ')
})

withPython('a working directory that leads to a descriptor of the host does not lead out', async (t) => {
  await using sandbox = await Sandbox.create(policy('host-system').bind(fixture('descriptors'), '/program'))
  for (let number = 0; number < 64; number += 1) {
    for (const cwd of [`/proc/self/fd/${number}`, `/proc/1/fd/${number}`, `/dev/fd/${number}`]) {
      // Of init's nothing can be entered, and of one's own only what was passed: pipes and the null device.
      await t.throwsAsync(sandbox.run('/program', [], { cwd }), { name: 'SpawnError', code: 'ERR_NESTBOX_SPAWN' }, cwd)
    }
  }
})

// ---- mounts ------------------------------------------------------------------------------------------------------------------------

compiled('the tree of mounts can be neither changed nor left, with the filter off', async (t) => {
  const source = room('escape-source')
  writeFileSync(path.join(source, 'file'), 'content')
  await using sandbox = await Sandbox.create(only('escape').bind(source, '/data').syscalls('unfiltered'))
  const result = await sandbox.run('/program', ['plain', '/data'])
  t.is(result.status, 'exited')
  t.deepEqual(done(outcomes(result.stdout)), [], result.stdout)

  // In namespaces of its own it has power, but over its own mounts only; under Landlock none at all (landlock.spec.ts).
  const powerful = await sandbox.run('/program', ['namespace', '/data'])
  const found = outcomes(powerful.stdout)
  if (found.get('unshare') !== 'done') {
    t.log(`a nested user namespace is refused: ${found.get('unshare')}`)
    return
  }
  t.deepEqual(
    done(found).filter((what) => !/^(?:unshare|uid-map|gid-map|power-.*|pivot)$/.test(what)),
    [],
    powerful.stdout,
  )
  for (const what of ['mount', 'mount-more', 'remount', 'umount', 'umount-tmp']) {
    const free = powerful.isolation.landlock === undefined
    t.is(found.get(`power-${what}`) === 'done', free, powerful.stdout)
  }
  // The masks of proc can't be shed by mounting another proc.
  t.is(found.get('mount-proc'), 'EPERM')
  t.is(found.get('fsopen-proc'), 'EPERM')

  // Outside, in the same namespaces of its own, the same program pulls off much of it.
  const outside = await promisify(execFile)(fixture('escape'), ['namespace', '/usr']).catch((error: unknown) => {
    t.log(`outside: ${String(error)}`)
    return { stdout: '' }
  })
  const free = done(outcomes(outside.stdout))
  t.true(free.includes('mount-proc') || free.includes('remount-root'), outside.stdout)
})

compiled('the default filter refuses all of it, too', async (t) => {
  const source = room('escape-filtered')
  await using sandbox = await Sandbox.create(only('escape').bind(source, '/data'))
  for (const how of ['plain', 'namespace']) {
    const result = await sandbox.run('/program', [how, '/data'])
    t.deepEqual(done(outcomes(result.stdout)), [], result.stdout)
  }
})

compiled('what a policy shows read-only stays as it is', async (t) => {
  const canary = room('canary')
  const fill = (directory: string): void => {
    for (const name of ['canary', 'second', 'third']) {
      writeFileSync(path.join(directory, name), 'canary')
      chmodSync(path.join(directory, name), 0o666)
    }
    for (const name of ['below', 'mounted']) mkdirSync(path.join(directory, name), { recursive: true })
    for (const name of ['', 'below', 'mounted']) chmodSync(path.join(directory, name), 0o777)
    writeFileSync(path.join(directory, 'mounted', 'canary'), 'canary')
    chmodSync(path.join(directory, 'mounted', 'canary'), 0o666)
  }
  const scratch = room('canary-writable')
  chmodSync(scratch, 0o777)
  const control = room('canary-control')
  fill(canary)
  fill(control)
  const state = (): unknown =>
    readdirSync(canary, { recursive: true })
      .map(String)
      .toSorted()
      .map((name) => {
        const { ino, mode, size, mtimeMs, ctimeMs, uid, nlink } = statSync(path.join(canary, name))
        return { name, ino, mode, size, mtimeMs, ctimeMs, uid, nlink }
      })
  const before = state()

  const shown = only('write-attempts')
    .bind(canary, '/canary')
    .bind(control, '/control', { writable: true })
    .bind(scratch, '/scratch', { writable: true })
    .syscalls('unfiltered')
    .unixSockets('allow')
  await using sandbox = await Sandbox.create(shown)

  const refused = await sandbox.run('/program', ['/canary', '/scratch'])
  t.is(refused.status, 'exited', refused.stderr)
  t.deepEqual(done(outcomes(refused.stdout)), [], refused.stdout)
  t.deepEqual(state(), before)

  // The same attempts on a writable bind: most work, so that the ones above are attempts.
  const allowed = done(outcomes((await sandbox.run('/program', ['/control', '/scratch'])).stdout))
  for (const what of [
    'open-write',
    'open-read-write',
    'open-append',
    'open-truncate',
    'read-truncate',
    'create',
    'through-root',
    'reopen-proc',
    'map',
    'resize',
    'chmod',
    'fchmod',
    'times',
    'mkdir',
    'mkfifo',
    'mknod',
    'socket',
    'symlink',
    'link',
    'rename',
    'unlink',
    'rmdir',
    'below',
  ]) {
    t.true(allowed.includes(what), `${what} does not even work on a writable bind`)
  }
})

compiled('what is mounted below a read-only bind is read-only, too', async (t) => {
  // A host with a mount of its own below the source, in a mount namespace of its own.
  const source = room('submounts')
  mkdirSync(path.join(source, 'mounted'))
  writeFileSync(path.join(source, 'canary'), 'canary')
  chmodSync(path.join(source, 'canary'), 0o666)
  const mounted = `mount -t tmpfs tmpfs ${source}/mounted && echo canary > ${source}/mounted/canary && chmod 666 ${source}/mounted/canary && exec "$@"`
  const unshare = isRoot ? ['unshare', '--mount'] : ['unshare', '--user', '--map-root-user', '--mount']
  try {
    execFileSync(unshare[0] ?? '', [...unshare.slice(1), 'true'], { stdio: 'ignore' })
  } catch {
    t.log('skipped: no mount namespace of our own')
    t.pass()
    return
  }
  if (!isRoot) {
    t.log('skipped: the uid of a host in a user namespace of one id is root without a second id to drop to')
    t.pass()
    return
  }
  await using host = await Host.start({
    wrapper: [...unshare, 'sh', '-c', mounted, 'sh'],
    base: 'host-system',
    binds: { '/program': fixture('write-attempts'), '/canary': source },
    syscalls: 'unfiltered',
  })
  const { result } = await host.must('run', { args: ['/canary', '/tmp'] })
  const found = outcomes(result?.stdout ?? '')
  t.is(found.get('below'), 'EROFS', 'it is there, and read-only')
  t.is(found.get('open-write'), 'EROFS')
})

// ---- process ids -------------------------------------------------------------------------------------------------------------------

compiled('a handle whose process has ended signals nobody, when its number is used again', async (t) => {
  const smallest = 400
  await using host = await Host.start({
    wrapper: [fixture('confine'), isRoot ? '65534' : '-', `pid:${smallest}`],
    pipe: true,
    binds: { '/program': fixture('nothing'), '/stubborn': fixture('stubborn') },
    base: 'host-system',
  }).catch(() => ({ pid: 0, [Symbol.asyncDispose]: async () => {} }) as unknown as Host)
  if (host.pid === 0) {
    t.log('skipped: this kernel has no limit of process ids for each namespace, or none for us')
    t.pass()
    return
  }
  // The lowest three hundred are given out only once.
  t.is((await host.must('occupy', { count: 320 })).value, true)
  const { pids: [ended = 0] = [] } = await host.must('spawn')
  await host.must('results')
  // Numbers are given out in turn: soon another process has that one.
  const { value } = await host.must('occupy', { count: ended })
  t.is(value, true, 'the number was used again')
  t.deepEqual((await host.must('kill')).value, [false])
  t.is((await host.must('occupied')).value, true, 'whoever has it now lives')
})

// ---- the terminal ------------------------------------------------------------------------------------------------------------------

/** Runs a command with a new terminal as its controlling one; prints what it wrote, then what was typed in its name. */
const TERMINAL = `
import os, pty, sys, termios, select, time
pid, master = pty.fork()
if pid == 0:
    attributes = termios.tcgetattr(0)
    attributes[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(0, termios.TCSANOW, attributes)
    code = os.spawnvp(os.P_WAIT, sys.argv[1], sys.argv[1:])
    typed = b""
    while select.select([0], [], [], 0.1)[0]:
        typed += os.read(0, 64)
    print("exit", code, flush=True)
    print("typed", len(typed), flush=True)
    os._exit(0)
output = b""
while True:
    try:
        part = os.read(master, 4096)
    except OSError:
        break
    if not part:
        break
    output += part
sys.stdout.write(output.decode().replace("\\r", ""))
`

const inTerminal = async (command: readonly string[]): Promise<string> => {
  const { stdout } = await promisify(execFile)('python3', ['-c', TERMINAL, ...command], { cwd: root })
  return stdout
}

withPython("a terminal on stdin is not the sandboxee's to type into", async (t) => {
  const program = fixture('terminal')
  const free = await inTerminal([program])
  const legacy = /^push done$/m.test(free)
  if (legacy) t.regex(free, /^typed [12]$/m, free)
  else t.log('this kernel has no TIOCSTI for anybody')
  t.regex(free, /^open done$/m)

  const loader = import.meta.resolve('@oxc-node/core/register')
  for (const filter of filters) {
    const script = path.join(workshop(), `terminal-${filter}.ts`)
    writeFileSync(
      script,
      `import { policy, Sandbox } from ${JSON.stringify(path.join(root, 'index.ts'))}
       const sandbox = await Sandbox.create(policy('host-system').bind(${JSON.stringify(program)}, '/program').syscalls('${filter}'))
       const result = await sandbox.run('/program', [], { stdin: 'inherit' })
       console.log(result.stdout)`,
    )
    const text = await inTerminal([process.execPath, '--import', loader, script])
    t.regex(text, /^tty done$/m, `${filter}: ${text}`)
    for (const what of ['push', 'open', 'control', 'steal', 'push-again']) {
      t.regex(text, new RegExp(`^${what} E[A-Z]+$`, 'm'), `${filter}: ${text}`)
    }
    t.regex(text, /^exit 0$/m, text)
    t.regex(text, /^typed 0$/m, text)
  }
})

// ---- the network ---------------------------------------------------------------------------------------------------------------------

compiled('a network namespace is used again only if nobody used it', async (t) => {
  await using sandbox = await Sandbox.create(only('network').syscalls('unfiltered'))
  const look = async (what = 'look'): Promise<{ namespace: string; traces: string; rest: string }> => {
    const { stdout } = await sandbox.run('/program', [what])
    const [namespace = '', loopback = '', sockets = '', ...rest] = stdout.split('\n')
    return { namespace, traces: `${loopback}\n${sockets}`, rest: rest.join('\n') }
  }
  const first = await look('listen')
  t.is(first.rest, 'listen done')
  t.regex(first.traces, /^lo:(?:\s+0)+\nsockets: used \d+$/, 'as new')
  for (let round = 0; round < 12; round += 1) {
    const used = await look(round % 2 === 0 ? 'raise' : 'listen')
    t.is(used.traces, first.traces, `as new, in round ${round}`)
    t.regex(used.rest, /^(?:send|listen) done$/)
    const next = await look()
    t.is(next.traces, first.traces)
    t.is(next.rest, 'connect ECONNREFUSED', 'nobody listens')
  }
  // Nothing of a running one can be reached either.
  const listener = await sandbox.spawn('/bin/sh', ['-c', '/program listen; sleep 60'])
  for await (const line of listener.lines()) if (line.startsWith('listen')) break
  t.is((await look()).rest, 'connect ECONNREFUSED')
  listener.kill()
  await listener.result

  // In one that they share they do reach each other: the attempt is one.
  await using together = await Sandbox.create(only('network').network('shared-loopback').syscalls('unfiltered'))
  const shared = await together.spawn('/bin/sh', ['-c', '/program listen; exec /program listen'])
  await shared.result
  const server = await together
    .spawn('/usr/bin/python3', [
      '-c',
      'import socket,time; s=socket.socket(); s.setsockopt(1,2,1); s.bind(("127.0.0.1",7000)); s.listen(); print("up",flush=True); time.sleep(60)',
    ])
    .catch(() => undefined)
  if (server !== undefined) {
    for await (const line of server.lines()) if (line === 'up') break
    t.regex((await together.run('/program', ['look'])).stdout, /^connect done$/m)
    server.kill()
    await server.result
  }
})

test('the host is not in sight: no pid, no mount, no name of it', async (t) => {
  const result = await run('/bin/sh', ['-c', 'cat /proc/self/mountinfo; echo; ls -d /proc/[0-9]*; ls /'])
  t.is(result.status, 'exited')
  t.notRegex(result.stdout, /realroot|staging/)
  const pids = result.stdout.match(/^\/proc\/\d+$/gm) ?? []
  t.true(pids.length <= 3, pids.join())
  t.is(readFileSync('/proc/self/mountinfo', 'latin1').includes('nestbox'), false)
})
