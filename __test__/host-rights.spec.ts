// What a host is, and its sandboxees are not: in a real-time class, or a root that lacks what a root host needs.

import { execFileSync } from 'node:child_process'

import test, { type ExecutionContext } from 'ava'

import { type DoctorReport, run, type SpawnError } from '../index.ts'
import { have, isRoot } from './helpers.ts'
import { root } from './invariants/support.ts'

const asRoot = isRoot && have('setpriv') && have('chrt') ? test : test.skip

/** What a program prints that is started by such a command. */
const output = ([wrapper = '', ...rest]: readonly string[], program: string): string => {
  const node = ['--import', '@oxc-node/core/register', '--input-type=module', '--eval', program]
  return execFileSync(wrapper, [...rest, process.execPath, ...node], { cwd: root, encoding: 'utf8' }).trim()
}

/** What a host that is started by such a command prints of one launch. */
const printed = (command: readonly string[], file: string, args: readonly string[]): string =>
  output(
    command,
    `import { run } from './index.ts'
    const launch = ${JSON.stringify([file, args])}
    const told = await run(...launch).then((result) => result.stdout, (error) => error.message + ' Hint: ' + error.hint)
    console.log(told)`,
  )

/** Its class, and the limits that would let it enter another. */
const SCHEDULING = `
import os, resource
print(os.sched_getscheduler(0), *(resource.getrlimit(limit)[1] for limit in (resource.RLIMIT_RTPRIO, 13)))`

asRoot('a host in a real-time class passes it on to nobody', (t) => {
  const realTime = execFileSync('chrt', ['-r', '1', 'python3', '-c', SCHEDULING], { encoding: 'utf8' })
  t.regex(realTime, /^2 /, 'SCHED_RR')
  t.is(printed(['chrt', '-r', '1'], 'python3', ['-c', SCHEDULING]), '0 0 0')
})

/** Whether a sandboxee with a limit of one process could fork, and what its result says of that limit. */
const FORKS = `
  import { run } from './index.ts'
  const launched = await run('sh', ['-c', '(echo forked) 2> /dev/null'], { limits: { processes: 1 } })
  const { limits, skipped } = launched.isolation
  console.log(launched.stdout, limits.processes, skipped.filter((name) => name.startsWith('limits')).join())`

test("a limit of processes that the kernel does not keep for the machine's root is told to be none", (t) => {
  t.is(output(['env'], FORKS), '1')
  // Its only id is that of who made the namespace.
  t.is(output(['unshare', '--user', '--map-root-user'], FORKS), isRoot ? 'forked undefined limits.processes' : '1')
})

/** Runs a command as a root without some capabilities, as `docker run --cap-drop` does. */
const without = (...capabilities: readonly string[]): string[] => [
  'setpriv',
  `--bounding-set=${capabilities.map((name) => `-${name}`).join(',')}`,
  '--inh-caps=-all',
]

const lacks = async (t: ExecutionContext, missing: readonly string[], dropped: readonly string[]): Promise<void> => {
  const told = printed(without(...dropped), 'id', ['-u'])
  t.regex(told, /EPERM/)
  const [, hint = ''] = told.split(' Hint: ')
  for (const name of ['CAP_CHOWN', 'CAP_SETGID', 'CAP_SETUID', 'CAP_SETPCAP', 'CAP_SETFCAP']) {
    t.is(hint.includes(name), missing.includes(name), `${name}: ${hint}`)
  }
  t.regex(hint, /an ordinary user/)
  const report = JSON.parse(
    output(without(...dropped), `import { doctor } from './index.ts'; console.log(JSON.stringify(await doctor()))`),
  ) as DoctorReport
  t.false(report.ok)
  const check = report.checks.find(({ status, required }) => status === 'failed' && required)
  t.like(check, { name: 'capabilities', blocker: 'missing-capabilities', error: { hint } })
  t.like(
    report.blockers.find(({ required }) => required),
    { name: 'missing-capabilities', hint, required: true },
  )
  t.like(report.checks.at(-1), { name: 'launch', status: 'failed', blocker: 'missing-capabilities' })
}

for (const name of ['chown', 'setgid', 'setuid', 'setpcap', 'setfcap']) {
  const capability = `CAP_${name.toUpperCase()}`
  asRoot(`a root without ${capability} is told so, by errors and by the doctor`, (t) => lacks(t, [capability], [name]))
}

asRoot('a root without any capability is told of all that it needs', (t) =>
  lacks(t, ['CAP_CHOWN', 'CAP_SETGID', 'CAP_SETUID', 'CAP_SETPCAP', 'CAP_SETFCAP'], ['all']),
)

asRoot('a root that can give no ids gives its own to nobody', (t) => {
  t.regex(printed(without('setuid'), 'id', ['-u']), /'create-initial-namespaces'.*EPERM.*a root without CAP_SETUID/)
})

asRoot('a root needs no more than these, and an ordinary user none', (t) => {
  const keep = 'setpriv --bounding-set=-all,+chown,+setgid,+setuid,+setpcap,+setfcap --inh-caps=-all'.split(' ')
  t.is(printed(keep, 'echo', ['works']), 'works')
  const user = 'setpriv --bounding-set=-all --inh-caps=-all --reuid=65534 --regid=65534 --clear-groups'.split(' ')
  t.is(printed(user, 'echo', ['works']), 'works')
})

asRoot('a host that gave up its rights after its first launch is told when to', (t) => {
  const told = output(
    ['env'],
    `import { run } from './index.ts'
    await run('true')
    process.setgid(65534)
    process.setuid(65534)
    console.log(await run('true').then(() => 'ran', (error) => JSON.stringify({ ...error, message: error.message })))`,
  )
  const error = JSON.parse(told) as SpawnError
  t.like(error, { step: 'map-fds', syscall: 'fchown', errnoName: 'EPERM' })
  t.regex(error.path ?? '', /pipe/)
  t.regex(error.hint ?? '', /before the first launch.*process\.setuid\(\)/)
})

test('of the pseudo-terminals of the machine a sandboxee gets some', async (t) => {
  const take = `
import os
taken = []
try:
    while len(taken) < 100:
        taken.append(os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY))
except OSError as error:
    print(len(taken), error.strerror)`
  const { stdout } = await run('python3', ['-c', take])
  t.is(stdout, '64 No space left on device')
})

test('limits above what the host may have are told as what it may have', async (t) => {
  const told = output(
    ['prlimit', '--nofile=4096:5000', '--fsize=1000000000', '--core=0'],
    `import { policy, Sandbox } from './index.ts'
    const limits = { openFiles: 1e9, fileSize: '64MiB', core: '1MiB', stack: '8MiB' }
    const sandbox = await Sandbox.create(policy('host-system').limits(limits))
    const wide = await sandbox.run('sh', ['-c', 'ulimit -Hn; ulimit -Hc'])
    const tight = await sandbox.run('sh', ['-c', 'ulimit -Hn'], { limits: { openFiles: 100 } })
    console.log(JSON.stringify([wide, tight].map(({ stdout, isolation }) => ({ stdout, limits: isolation.limits }))))`,
  )
  t.like(JSON.parse(told), [
    {
      stdout: '5000\n0',
      limits: { openFiles: 5000, fileSize: 64 * 1024 ** 2, core: 0, stack: 8 * 1024 ** 2, wallTime: 60_000 },
    },
    { stdout: '100', limits: { openFiles: 100, core: 0 } },
  ])
})
