// The doctor, under each condition that can be made here: inside namespaces, filters and limits of the test's own, never on
// the machine itself. Each test shows first that without the condition all is well.

import { execFile } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

import test, { type ExecutionContext } from 'ava'

import { doctor, type DoctorCheck, type DoctorReport } from '../index.ts'
import { render } from '../lib/cli/doctor.ts'
import { paintFor } from '../lib/cli/terminal.ts'
import { compile, have, isRoot, scratch } from './helpers.ts'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..')
const entry = path.join(root, 'dist', 'index.js')
const cli = path.join(root, 'dist', 'lib', 'cli', 'main.js')

/** The command's words, for a shell. */
const DOCTOR = `"${process.execPath}" "${cli}" doctor --json`

/** Runs a program to its end; 1 is how the doctor says that something is wrong. */
const output = (t: ExecutionContext, file: string, args: readonly string[]): Promise<string> =>
  new Promise((resolve, reject) => {
    execFile(file, [...args], { timeout: 60_000, cwd: root }, (error, stdout, stderr) => {
      if (stderr !== '') t.log(stderr)
      if (error === null || error.code === 1) resolve(stdout)
      else reject(error)
    })
  })

const reported = async (t: ExecutionContext, file: string, args: readonly string[]): Promise<DoctorReport> =>
  JSON.parse(await output(t, file, args)) as DoctorReport

/** What the doctor says after a script has made a condition, in new user and other namespaces. */
const under = (t: ExecutionContext, namespaces: readonly string[], condition: string): Promise<DoctorReport> =>
  reported(t, 'unshare', ['--user', '--map-root-user', ...namespaces, 'sh', '-ec', `${condition}\nexec ${DOCTOR}`])

const MOUNTS = ['--mount']
/** With a /proc that is the pid namespace's own, so that it is complete and its settings are, too. */
const PROCESSES = ['--mount', '--pid', '--fork', '--mount-proc']

const checkOf = (report: DoctorReport, name: string): DoctorCheck | undefined =>
  report.checks.find((check) => check.name === name)

/** The first thing that fails, which is the one to look at. */
const firstFailure = ({ checks }: DoctorReport): DoctorCheck | undefined =>
  checks.find(({ required, status }) => required && status === 'failed')

/** That this is what is in the way, that it has a fix, and that an error of a launch would say the same. */
const isInTheWay = (t: ExecutionContext, report: DoctorReport, blocker: string, check: string): void => {
  t.false(report.ok)
  t.like(firstFailure(report), { name: check, blocker })
  const known = report.blockers.find(({ name }) => name === blocker)
  t.true(known?.required)
  t.true((known?.fixes.length ?? 0) > 0)
  t.like(checkOf(report, 'launch'), { status: 'failed', blocker, error: { hint: known?.hint } })
}

/** The kernel has the switch, for each pid namespace; its file is root's. */
const mayForbidMemfds = isRoot && existsSync('/proc/sys/vm/memfd_noexec')

const wellHere = doctor()

const unlessWell = async (t: ExecutionContext): Promise<boolean> => {
  const { ok } = await wellHere
  if (!ok) t.log('Sandboxes cannot be launched here to begin with.')
  t.pass()
  return !ok
}

test('this system', async (t) => {
  const report = await wellHere
  t.is(
    report.ok,
    report.checks.every(({ required, status }) => !required || status === 'ok'),
  )
  t.true(report.ok, render(report, true, paintFor(process.stderr)))
  t.is(report.system.uid, process.getuid?.() ?? -1)
  t.regex(checkOf(report, 'id-maps')?.value ?? '', isRoot ? /every id|one id/ : /one id/)
  t.is(checkOf(report, 'launch')?.value, 'user, mnt, pid, net, ipc, uts, cgroup')
  t.is(report.settings['user.max_user_namespaces'], readFileSync('/proc/sys/user/max_user_namespaces', 'utf8').trim())
  t.is(checkOf(report, 'capabilities')?.value, isRoot ? 'all that root needs' : 'none is needed')
  t.deepEqual(JSON.parse(JSON.stringify(report)), report)
})

test('inside a user namespace, which is what the conditions below are made in', async (t) => {
  if (await unlessWell(t)) return
  const report = await under(t, PROCESSES, '')
  t.true(report.ok, render(report, true, paintFor(process.stderr)))
})

test('user.max_user_namespaces is 0', async (t) => {
  if (await unlessWell(t)) return
  const report = await under(t, [], 'echo 0 > /proc/sys/user/max_user_namespaces')
  isInTheWay(t, report, 'max-user-namespaces', 'user-namespace')
  t.is(report.settings['user.max_user_namespaces'], '0')
  t.like(checkOf(report, 'proc'), { status: 'skipped', reason: 'it needs pid-namespace' })
})

test('user.max_net_namespaces is 0', async (t) => {
  if (await unlessWell(t)) return
  const report = await under(t, [], 'echo 0 > /proc/sys/user/max_net_namespaces')
  isInTheWay(t, report, 'max-namespaces', 'network-namespace')
  t.is(checkOf(report, 'pid-namespace')?.status, 'ok')
})

test('parts of /proc are covered, as in a container', async (t) => {
  if (await unlessWell(t)) return
  const report = await under(t, MOUNTS, 'mount --bind /dev/null /proc/version')
  isInTheWay(t, report, 'masked-proc', 'proc')
  t.is(checkOf(report, 'devpts')?.status, 'ok')
})

test('there is no /proc', async (t) => {
  if (await unlessWell(t)) return
  const report = await under(t, MOUNTS, 'mount -t tmpfs none /proc')
  isInTheWay(t, report, 'no-proc', 'id-maps')
})

test('memfds may not be executed', async (t) => {
  if ((await unlessWell(t)) || !mayForbidMemfds) return
  const report = await under(t, PROCESSES, 'echo 2 > /proc/sys/vm/memfd_noexec')
  // A temporary file takes its place.
  t.true(report.ok, render(report, true, paintFor(process.stderr)))
  t.like(checkOf(report, 'memfd-exec'), { status: 'failed', required: false, blocker: 'memfd-noexec' })
  t.is(checkOf(report, 'temporary-file-exec')?.status, 'ok')
})

test('memfds may not be executed, and no temporary directory either', async (t) => {
  if ((await unlessWell(t)) || !mayForbidMemfds) return
  // All that the client tries; tmpfs over what the files of this test are not in.
  const places = ['/var/tmp', '/dev/shm', '/run'].filter((directory) => existsSync(directory))
  const place = path.join(scratch(t), 'tmp')
  mkdirSync(place)
  const cover = [place, ...places].map((directory) => `mount -t tmpfs -o noexec none "${directory}"`).join('\n')
  const condition = `${cover}\nexport TMPDIR="${place}"\necho 2 > /proc/sys/vm/memfd_noexec`
  const report = await under(t, PROCESSES, condition)
  isInTheWay(t, report, 'memfd-noexec', 'start-forkserver')
})

const filterSource = (): string => readFileSync(path.join(root, '__test__', 'fixtures', 'container-filter.c'), 'utf8')

test("a container's syscall filter", async (t) => {
  if ((await unlessWell(t)) || !have('gcc')) return
  const filter = compile(t, filterSource())
  const report = await reported(t, filter, [process.execPath, cli, 'doctor', '--json'])
  isInTheWay(t, report, 'seccomp', 'system-calls')
  const refused = checkOf(report, 'system-calls')?.error?.message ?? ''
  t.regex(refused, /unshare \(EPERM\), setns \(EPERM\), clone3 \(ENOSYS\), mount \(EPERM\), open_tree/)
  // What works is not said to be refused.
  t.notRegex(refused, /execveat|pidfd_open|memfd_create/)
  t.is(report.settings['seccomp'], 'filter')
})

test("a container's syscall filter, with what the doctor says it has to allow", async (t) => {
  if ((await unlessWell(t)) || !have('gcc')) return
  const report = await reported(t, compile(t, filterSource(), '-DAMENDED'), [process.execPath, cli, 'doctor', '--json'])
  t.is(report.settings['seccomp'], 'filter')
  t.true(report.ok, render(report, true, paintFor(process.stderr)))
})

test('a syscall filter that kills does not kill who asks', async (t) => {
  if ((await unlessWell(t)) || !have('gcc')) return
  const report = await reported(t, compile(t, filterSource(), '-DKILL'), [process.execPath, cli, 'doctor', '--json'])
  t.false(report.ok)
  t.like(firstFailure(report), { name: 'system-calls', blocker: 'seccomp' })
  t.regex(checkOf(report, 'user-namespace')?.error?.message ?? '', /killed by SIGSYS/)
})

test('a chroot', async (t) => {
  if (await unlessWell(t)) return
  // Everything but the root itself, so that this is a directory and no mount.
  const place = path.join(scratch(t), 'root')
  const condition = `
    mkdir "${place}"
    for entry in /*; do
      if [ -L "$entry" ]; then cp -P "$entry" "${place}$entry"
      elif [ -d "$entry" ]; then mkdir "${place}$entry" && mount --rbind "$entry" "${place}$entry"
      fi
    done
    exec chroot "${place}" ${DOCTOR}`
  isInTheWay(t, await under(t, MOUNTS, condition), 'chroot', 'user-namespace')
})

/** Examines from a process that has lowered a limit of its own after it started: Node itself needs more than is left. */
const withLimit = (t: ExecutionContext, limit: string): Promise<DoctorReport> => {
  const script = `
    import { execFileSync } from 'node:child_process'
    import { stat } from 'node:fs/promises'
    import { doctor } from ${JSON.stringify(pathToFileURL(entry).href)}
    // Loads the addon, and starts the threads of the pool.
    await doctor()
    await stat('/')
    execFileSync('prlimit', ['--pid', String(process.pid), '${limit}'])
    console.log(JSON.stringify(await doctor()))
    process.exit(0)
  `
  return reported(t, process.execPath, ['--input-type=module', '-e', script])
}

test('no more processes', async (t) => {
  // The kernel does not hold root to this limit.
  if ((await unlessWell(t)) || isRoot || !have('prlimit')) return
  const report = await withLimit(t, '--nproc=1:1')
  t.like(firstFailure(report), { name: 'start-forkserver', blocker: 'process-limit' })
})

test('no more descriptors', async (t) => {
  if ((await unlessWell(t)) || !have('prlimit')) return
  const report = await withLimit(t, '--nofile=8:8')
  t.like(firstFailure(report), { name: 'start-forkserver', blocker: 'open-files-limit' })
})

test('the table names what is in the way and prints the fix, in colour only on a terminal', async (t) => {
  if (await unlessWell(t)) return
  const report = await under(t, [], 'echo 0 > /proc/sys/user/max_user_namespaces')
  const plain = render(report, false, paintFor({ isTTY: false } as never))
  t.regex(plain, /FAILED {3}user-namespace .*\[max-user-namespaces\]/)
  t.regex(plain, /^ {4}sysctl -w user\.max_user_namespaces=\d+$/m)
  t.false(plain.includes('\u001B'))
  // What nothing needs is not in the way.
  t.notRegex(plain, /^\[no-cgroups\]/m)
  t.regex(render(report, true, paintFor({ isTTY: false } as never)), /user\.max_user_namespaces +0\n/)
})
