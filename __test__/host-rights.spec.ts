// What a host is, and its sandboxees are not: in a real-time class, or a root that can not give ids.

import { execFileSync } from 'node:child_process'

import test from 'ava'

import { run } from '../index.ts'
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

asRoot('a root that can give no ids is told so, and its own is given to nobody', (t) => {
  const trimmed = ['setpriv', '--bounding-set=-setuid', '--inh-caps=-all']
  const told = printed(trimmed, 'id', ['-u'])
  t.regex(told, /'create-initial-namespaces'.*EPERM.*a root without CAP_SETUID/)
  t.regex(told, /Hint: give this process CAP_SETUID and CAP_SETGID/)
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
