// Syscall filters in force: what programs get to feel of them. Each protection is first shown to be one: the same call
// goes through without it.

import { chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import { policy, Sandbox, syscallFilter, type Result, type SyscallFilter } from '../index.ts'
import { arg, arg64, AF_UNIX, CLONE_NEWUSER, TIOCSTI } from '../lib/syscalls/index.ts'
import { compile, compileBare } from './helpers.ts'

const here = path.dirname(fileURLToPath(import.meta.url))

/** The number of each call here. */
const numbers = new Map(
  readFileSync(path.join(here, '../crates/policy/src/syscalls.txt'), 'utf8')
    .split('\n')
    .map((line) => line.split(' '))
    .map(([name = '', x64, arm64]) => [name, Number(process.arch === 'x64' ? x64 : arm64)] as const)
    .filter(([, number]) => Number.isInteger(number)),
)
const LAST = Math.max(...numbers.values())
const number = (name: string): string => String(numbers.get(name))

const directory = mkdtempSync(path.join(tmpdir(), 'nestbox-syscalls-'))
process.on('exit', () => rmSync(directory, { recursive: true, force: true }))
const probe = compileBare(path.join(here, 'syscalls.c'), directory)
chmodSync(directory, 0o755)

/** An error that no call gives by itself. */
const REFUSED = 'EL2HLT'
const REFUSED_NUMBER = '-51'

/** What the probe needs in order to tell. */
const telling = () => syscallFilter().allow('write', 'exit_group')

const sandbox = (filter: SyscallFilter | 'default' | 'strict' | 'unfiltered', unix: 'none' | 'allow' = 'allow') =>
  Sandbox.create(policy().bind(probe, '/probe').unixSockets(unix).syscalls(filter))

const run = async (
  filter: SyscallFilter | 'default' | 'strict' | 'unfiltered',
  args: readonly string[],
  unix?: 'none' | 'allow',
): Promise<Result> => {
  await using box = await sandbox(filter, unix)
  return await box.run('/probe', args)
}

/** What one call answers. */
const call = async (
  filter: SyscallFilter | 'default' | 'strict' | 'unfiltered',
  name: string,
  args: readonly (string | number)[] = [],
  unix?: 'none' | 'allow',
): Promise<number> => {
  const result = await run(filter, ['call', number(name), ...args.map(String)], unix)
  return Number(result.stdout)
}

/** The kernel ended the program for a call that its filter kills for. */
const wasKilled = (result: Result): boolean =>
  result.status === 'violation' || (result.status === 'signaled' && result.signal === 'SIGSYS')

const HIGH = (low: number): string => `0xdeadbeef${low.toString(16).padStart(8, '0')}`

const ENOENT = -2
const EPERM = -1
const EACCES = -13
const ENOTTY = -25
const ENOSYS = -38
const EBADF = -9
const ENXIO = -6

/**
 * Since Linux 6.14 the kernel asks no filter about these two of x86-64: they are the way back from a probe that a tracer
 * set, and from anywhere else they fail or end the process.
 */
const unfiltered = ['uretprobe', 'uprobe'].filter((name) => numbers.has(name)).map(number)

test('every number that there is, and the next 64, is refused unless it is allowed', async (t) => {
  const filter = telling().otherwise({ errno: REFUSED })
  const skipped = [number('write'), number('exit_group'), ...unfiltered]
  const all = await run(filter, ['each', '0', String(LAST + 64), ...skipped])
  t.is(all.stdout, 'done')
  for (const name of unfiltered) {
    // oxlint-disable-next-line no-await-in-loop
    const probed = await run(filter, ['call', name])
    t.true(probed.status === 'signaled' || [REFUSED_NUMBER, String(ENXIO)].includes(probed.stdout), probed.stdout)
  }
  const far = await run(filter, ['each', String(0x7f_ff_ff_f0), String(0x80_00_00_10)])
  t.is(far.stdout, 'done')
  const x32 = await run(filter, ['x32', '0', String(LAST + 64)])
  t.is(x32.stdout, 'done')
})

test('numbers that are unknown are refused by the default, too', async (t) => {
  const probed = await run('default', ['each', String(LAST + 1), String(LAST + 64)])
  const lines = probed.stdout.split('\n')
  t.is(lines.pop(), 'done')
  t.is(lines.length, 64)
  t.true(lines.every((line) => line.endsWith(` ${ENOSYS}`)))
  if (process.arch === 'x64') {
    for (const line of (await run('default', ['x32', '0', '20'])).stdout.split('\n').slice(0, -1)) {
      t.true(line.endsWith(` ${ENOSYS}`), line)
    }
  }
})

const x64 = process.arch === 'x64' ? test : test.skip

x64('calls of another architecture kill, whatever their number and the filter', async (t) => {
  const open = await run('unfiltered', ['i386', '20', '24'])
  if (open.stdout.includes('signal 11')) {
    t.log('this kernel has no i386 calls')
    t.pass()
    return
  }
  t.is(open.stdout, '20 exit 0\n21 exit 0\n22 exit 0\n23 exit 0\n24 exit 0')
  const filter = telling().allow('clone', 'wait4').otherwise({ errno: REFUSED })
  for (const restricted of [filter, 'default'] as const) {
    // oxlint-disable-next-line no-await-in-loop
    const tried = await run(restricted, ['i386', '0', '520'])
    const lines = tried.stdout.split('\n')
    t.is(lines.length, 521)
    t.deepEqual(
      lines.filter((line) => !line.endsWith(' signal 31')),
      [],
    )
  }
})

test('the first rule that matches decides', async (t) => {
  const both = async (filter: SyscallFilter) => await call(filter.otherwise('kill'), 'getppid')
  t.true((await both(telling().allow('getppid').errno('getppid', 'ENOENT'))) >= 0)
  t.is(await both(telling().errno('getppid', 'ENOENT').allow('getppid')), ENOENT)
  const exception = telling()
    .when('close', [arg(0).gt(100)], { errno: REFUSED })
    .allow('close')
    .otherwise('kill')
  t.is(await call(exception, 'close', [101]), Number(REFUSED_NUMBER))
  t.is(await call(exception, 'close', [100]), EBADF)
})

test('what the kernel reads as 32 bits is compared as 32 bits', async (t) => {
  // The trap: a filter that compares all 64 bits lets the call through, and the kernel sees TIOCSTI.
  const rest = (filter: SyscallFilter) => filter.when('ioctl', [arg64(1).ge(0)], 'allow').otherwise('kill')
  const trap = rest(telling().when('ioctl', [arg64(1).eq(TIOCSTI)], { errno: REFUSED }))
  t.is(await call(trap, 'ioctl', [0, TIOCSTI]), Number(REFUSED_NUMBER))
  t.is(await call(trap, 'ioctl', [0, HIGH(TIOCSTI)]), ENOTTY)
  const right = rest(telling().when('ioctl', [arg(1).eq(TIOCSTI)], { errno: REFUSED }))
  t.is(await call(right, 'ioctl', [0, TIOCSTI]), Number(REFUSED_NUMBER))
  t.is(await call(right, 'ioctl', [0, HIGH(TIOCSTI)]), Number(REFUSED_NUMBER))
  t.is(await call(right, 'ioctl', [0, TIOCSTI + 1]), ENOTTY)
})

test('what the kernel reads as 64 bits can be compared as 64 bits', async (t) => {
  const filter = telling()
    .when('lseek', [arg64(1).lt(2 ** 32)], 'allow')
    .otherwise({ errno: REFUSED })
  t.is(await call(filter, 'lseek', [99, 0xff_ff_ff_ff]), EBADF)
  t.is(await call(filter, 'lseek', [99, '0x100000000']), Number(REFUSED_NUMBER))
})

test('a filter of thousands of instructions is taken by the kernel, and jumps where it should', async (t) => {
  const offsets = Array.from({ length: 900 }, (_, index) => index * 7 + 2 ** 33 * (index % 2))
  const filter = telling()
    .when('lseek', [arg64(1).oneOf(...offsets)], 'allow')
    .otherwise({ errno: REFUSED })
  const box = await sandbox(filter)
  const lseek = async (offset: number) =>
    Number((await box.run('/probe', ['call', number('lseek'), '99', String(offset)])).stdout)
  for (const index of [0, 1, 63, 127, 128, 255, 256, 500, 898, 899]) {
    const offset = offsets[index] ?? -1
    // oxlint-disable-next-line no-await-in-loop
    t.deepEqual([await lseek(offset), await lseek(offset + 1)], [EBADF, Number(REFUSED_NUMBER)], String(index))
  }
})

test('terminals can not be typed into under the default', async (t) => {
  t.is(await call('unfiltered', 'ioctl', [0, HIGH(TIOCSTI)]), ENOTTY)
  for (const request of [TIOCSTI, HIGH(TIOCSTI), 0x54_1c, HIGH(0x54_1c)]) {
    // oxlint-disable-next-line no-await-in-loop
    t.is(await call('default', 'ioctl', [0, request]), EPERM, String(request))
  }
})

test('allow() of a call means its harmless part, and a condition is taken at its word', async (t) => {
  const plain = telling().allow('ioctl', 'unshare', 'clone3', 'prlimit64').otherwise('kill')
  t.is(await call(plain, 'ioctl', [0, TIOCSTI]), EPERM)
  t.is(await call(plain, 'ioctl', [0, 0x54_01]), ENOTTY)
  t.is(await call(plain, 'unshare', [CLONE_NEWUSER]), EPERM)
  t.is(await call(plain, 'unshare', [0]), 0)
  t.is(await call(plain, 'clone3'), ENOSYS)
  t.is(await call(plain, 'prlimit64', [1, 7, 0, 0]), EPERM)
  t.is(await call(plain, 'prlimit64', [0, 7, 0, 0]), 0)
  const meant = telling()
    .when(['ioctl', 'clone3'], [arg(1).ge(0)], 'allow')
    .otherwise('kill')
  t.is(await call(meant, 'ioctl', [0, TIOCSTI]), ENOTTY)
  t.not(await call(meant, 'clone3'), ENOSYS)
})

test('no unix sockets are made where the policy wants none, whatever the filter', async (t) => {
  const filter = telling().allow('socket', 'socketpair').otherwise('kill')
  t.true((await call(filter, 'socket', [AF_UNIX, 1, 0], 'allow')) >= 0)
  t.is(await call(filter, 'socket', [AF_UNIX, 1, 0], 'none'), EACCES)
  t.is(await call(filter, 'socket', [HIGH(AF_UNIX), 1, 0], 'none'), EACCES)
  t.is(await call(filter, 'socketpair', [AF_UNIX, 2, 0, 0], 'none'), EACCES)
  const meant = telling()
    .when('socket', [arg(0).eq(AF_UNIX)], 'allow')
    .otherwise('kill')
  t.true((await call(meant, 'socket', [AF_UNIX, 1, 0], 'allow')) >= 0)
  t.is(await call(meant, 'socket', [AF_UNIX, 1, 0], 'none'), EACCES)
})

test('kill: the kernel ends whoever makes the call', async (t) => {
  const filter = telling().kill('getppid').allow('getpid').otherwise({ errno: REFUSED })
  t.is(await call(filter, 'getppid'), 0, 'nothing was printed')
  t.true(wasKilled(await run(filter, ['call', number('getppid')])))
  t.false(wasKilled(await run(filter, ['call', number('getpid')])))
  const result = await run(filter, ['call', number('getpid')])
  t.is(result.isolation.syscalls, 'custom')
})

test('the launch executes, and nothing else does', async (t) => {
  const executed = await run('unfiltered', ['exec', '/probe', '0'])
  t.like(executed, { status: 'exited', exitCode: 0, stdout: '' }, 'the probe without arguments prints nothing')
  const refusing = telling().otherwise({ errno: REFUSED })
  const strict = syscallFilter().preset('strict').otherwise('kill')
  for (const how of ['0', '1']) {
    // oxlint-disable-next-line no-await-in-loop
    t.is((await run(refusing, ['exec', '/probe', how])).stdout, REFUSED_NUMBER)
    // oxlint-disable-next-line no-await-in-loop
    t.true(wasKilled(await run(strict, ['exec', '/probe', how])))
  }
})

test('a filter that allows nothing at all still lets the launch pass, warm or not', async (t) => {
  const box = await Sandbox.create(policy().bind(probe, '/probe').syscalls(telling().otherwise('kill')), { warm: 1 })
  try {
    for (let round = 0; round < 4; round += 1) {
      // oxlint-disable-next-line no-await-in-loop
      t.like(await box.run('/probe', ['each', '1', '0']), { status: 'exited', stdout: 'done' })
      // What let the launch pass is in no register of the program.
      // oxlint-disable-next-line no-await-in-loop
      t.is((await box.run('/probe', ['born'])).stdout, '0')
    }
    await t.throwsAsync(box.run('/missing'), { code: 'ERR_NESTBOX_EXEC' })
    await t.throwsAsync(box.run('/probe', [], { cwd: '/missing' }), { code: 'ERR_NESTBOX_SPAWN' })
  } finally {
    await box.destroy()
  }
  t.true(wasKilled(await run(syscallFilter().otherwise('kill'), [])))
})

const C = `
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(int count, char **args) {
  char *memory = malloc(3 << 20);
  memset(memory, 1, 3 << 20);
  memory = realloc(memory, 6 << 20);
  printf("%d %d\\n", count, memory[5]);
  if (count > 1 && !strcmp(args[1], "open")) return fopen("/program", "r") == 0;
  return 0;
}
`

test('a static program starts with its groups, and under strict', async (t) => {
  const program = compile(t, C)
  const groups = syscallFilter()
    .allowStaticStartup()
    .allowSystemMalloc()
    .allowStat()
    .allowTCGETS()
    .allowWrite()
    .allowExit()
  for (const filter of [groups, syscallFilter().preset('strict')]) {
    // oxlint-disable-next-line no-await-in-loop
    const box = await Sandbox.create(policy().bind(program, '/program').syscalls(filter.otherwise('kill')))
    // oxlint-disable-next-line no-await-in-loop
    t.like(await box.run('/program'), { status: 'exited', exitCode: 0, stdout: '1 1', stderr: '' })
    // oxlint-disable-next-line no-await-in-loop
    t.true(wasKilled(await box.run('/program', ['open'])))
  }
})

test('a dynamic program starts with its group', async (t) => {
  const dynamic = syscallFilter().allowDynamicStartup()
  const groups = dynamic.allowSystemMalloc().allowTCGETS().allowWrite().allowExit()
  for (const filter of [groups, dynamic.preset('strict')]) {
    // oxlint-disable-next-line no-await-in-loop
    const box = await Sandbox.create(policy('host-system').syscalls(filter.otherwise('kill')))
    // oxlint-disable-next-line no-await-in-loop
    t.like(await box.run('/bin/echo', ['hello']), { status: 'exited', exitCode: 0, stdout: 'hello', stderr: '' })
    // oxlint-disable-next-line no-await-in-loop
    t.true(wasKilled(await box.run('/bin/sh', ['-c', '/bin/true & wait'])))
  }
  const without = await Sandbox.create(
    policy('host-system').syscalls(syscallFilter().preset('strict').otherwise('kill')),
  )
  t.true(wasKilled(await without.run('/bin/echo')))
})

test('threads without processes', async (t) => {
  const program = compile(
    t,
    `
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
static void *work(void *n) { ++*(int *)n; return n; }
int main(int count, char **args) {
  int n = 1;
  pthread_t thread;
  if (pthread_create(&thread, 0, work, &n)) return 2;
  pthread_join(thread, 0);
  printf("%d\\n", n);
  fflush(stdout);
  if (count > 1 && fork() == 0) _exit(0);
  return 0;
}`,
    '-pthread',
  )
  const filter = syscallFilter().allowThreads().preset('strict').otherwise('kill')
  const box = await Sandbox.create(policy().bind(program, '/program').syscalls(filter))
  t.like(await box.run('/program'), { status: 'exited', exitCode: 0, stdout: '2' })
  t.true(wasKilled(await box.run('/program', ['fork'])))
})

test('what the default refuses', async (t) => {
  const refused = `setns mount umount2 pivot_root chroot fsopen move_mount open_tree mount_setattr ptrace
    process_vm_readv process_vm_writev pidfd_getfd bpf userfaultfd perf_event_open io_uring_setup io_uring_enter
    io_uring_register add_key request_key keyctl init_module finit_module delete_module kexec_load kexec_file_load reboot
    swapon`.split(/\s+/)
  const box = await sandbox('default')
  const answers = refused.map(async (name) => {
    const { stdout } = await box.run('/probe', ['call', number(name), '1', '1', '1', '1', '1'])
    return [name, Number(stdout)]
  })
  t.deepEqual(
    await Promise.all(answers),
    refused.map((name) => [name, EPERM]),
  )
  await box.destroy()
  t.is(await call('default', 'clone3'), ENOSYS)
  t.is(await call('default', 'clone', [CLONE_NEWUSER + 17]), EPERM)
  t.is(await call('default', 'unshare', [CLONE_NEWUSER]), EPERM)
  for (const family of [17, 38, 40]) {
    // oxlint-disable-next-line no-await-in-loop
    t.is(await call('default', 'socket', [family, 1, 0]), -97, `family ${family}`)
  }
})
