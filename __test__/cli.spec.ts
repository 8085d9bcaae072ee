// The command `nestbox`, as a process: what it prints, what it exits with, what it passes through.

import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'
import * as z from 'zod'

import { policy } from '../index.ts'
import { EXIT, exitCodeOf } from '../lib/cli/exit.ts'
import { OPTIONS, parseRun } from '../lib/cli/options.ts'
import { policyJSONSchema } from '../lib/cli/schema.ts'
import { paintFor, progress } from '../lib/cli/terminal.ts'
import { parseCount, parseSize, parseTime } from '../lib/cli/units.ts'
import { isRoot, scratch, until } from './helpers.ts'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..')
const cli = path.join(root, 'dist', 'lib', 'cli', 'main.js')

/** Node starts slowly where many start at a time. */
const PATIENCE = 30_000

/** What every colour begins with. */
const ESCAPE = '\u001B'

interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

interface Surroundings {
  readonly input?: string
  readonly cwd?: string
  readonly env?: NodeJS.ProcessEnv
}

const nestbox = (args: readonly string[], { input, cwd = root, env = {} }: Surroundings = {}): Promise<Ended> =>
  new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [cli, ...args], { cwd, env: { ...process.env, ...env } })
    const text = { stdout: '', stderr: '' }
    for (const name of ['stdout', 'stderr'] as const) {
      child[name].setEncoding('utf8').on('data', (chunk: string) => {
        text[name] += chunk
      })
    }
    child.stdin.end(input)
    child.once('error', reject)
    child.once('close', (code) => resolve({ code, ...text }))
  })

const run = (...args: string[]): Promise<Ended> => nestbox(['run', ...args])

test('a program has our stdio, and its exit code is ours', async (t) => {
  const args = ['run', 'sh', '-c', 'cat; echo problem >&2; exit 7']
  t.deepEqual(await nestbox(args, { input: 'in and out\n' }), {
    code: 7,
    stdout: 'in and out\n',
    stderr: 'problem\n',
  })
})

test('options end at the program', async (t) => {
  for (const args of [
    ['echo', '--json', '-q', '--', 'x'],
    ['--', 'echo', '--json', '-q', '--', 'x'],
  ]) {
    // oxlint-disable-next-line no-await-in-loop
    t.is((await run(...args)).stdout, '--json -q -- x\n')
  }
  t.deepEqual(parseRun(['--cwd', '/', 'a', '--cwd', 'b']).args, ['--cwd', 'b'])
  t.is(parseRun(['--', '--json']).file, '--json')
})

const CODES: readonly [title: string, code: number, stderr: RegExp, ...args: string[]][] = [
  ['a signal', 128 + 15, /^$/, 'sh', '-c', 'kill $$'],
  ['a real-time signal', 128 + 35, /^$/, 'sh', '-c', 'kill -35 $$'],
  ['a signal without a name', 128 + 32, /^$/, 'sh', '-c', 'kill -32 $$'],
  ['a user that is none', EXIT.usage, /"none" is no whole number/, '--user', 'none', 'true'],
  ['a group that is none', EXIT.usage, /"none" is no whole number/, '--user', '5:none', 'true'],
  ['a limit', EXIT.limit, /reached its limit wallTime/, '--wall-time', '200ms', 'sleep', '20'],
  ['no such program', EXIT.notFound, /no-such-program/, 'no-such-program'],
  ['not a program', EXIT.notExecutable, /EACCES/, '/etc'],
  ['an unknown option', EXIT.usage, /--nope/, '--nope', 'true'],
  ['a time without a unit', EXIT.usage, /"5" is no time; write 500ms, 10s/, '--wall-time', '5', 'true'],
  ['nothing to run', EXIT.usage, /What is to be run\?/],
  ['a policy that makes no sense', EXIT.usage, /network/, '--network', 'much', 'true'],
  [
    'a relative directory',
    EXIT.usage,
    /^nestbox: .*: --cwd: The path must be absolute, got "src"/,
    '--cwd',
    'src',
    'true',
  ],
  ['a variable without a name', EXIT.usage, /^nestbox: .*: --env\[""\]: It must not be empty/, '-e', '=x', 'true'],
  ['a file that has no place', EXIT.usage, /^nestbox: .*: --file\["\/a"\]: /, '--file', '/etc/passwd:/a', 'true'],
  ['no name of a program', EXIT.usage, /^nestbox: .*: program: It must not be empty/, ''],
  ['flags of a bind with a colon', EXIT.usage, /flags are separated by commas/, '--bind', '.:rw:exec', 'true'],
  ['a bind source that is missing', EXIT.internal, /open-bind-source/, '--bind', '/nope/nope', 'true'],
  ['an output that is missing', EXIT.output, /brought out/, '--copy-out', '/tmp/none:/tmp/none', 'true'],
]

for (const [title, code, stderr, ...args] of CODES) {
  test(`its own exit codes: ${title}`, async (t) => {
    const ended = await run(...args)
    t.is(ended.code, code, ended.stderr)
    t.regex(ended.stderr, stderr)
  })
}

test('quiet', async (t) => {
  t.deepEqual(await run('-q', '--wall-time', '100ms', 'sleep', '20'), { code: EXIT.limit, stdout: '', stderr: '' })
})

test('a violation has a code of its own', (t) => {
  t.is(exitCodeOf({ status: 'violation' } as never), EXIT.violation)
})

test('binds, tmpfs, files and outputs', async (t) => {
  const host = scratch(t)
  mkdirSync(path.join(host, 'data'))
  writeFileSync(path.join(host, 'data', 'a'), 'bound\n')
  writeFileSync(path.join(host, 'copy'), 'copied\n')
  const script = `
    cat data/a /data/a /tmp/deep/copy; cat link/a
    touch /data/b 2>/dev/null && echo "wrote to a read-only bind"
    df -k /big | awk 'NR == 2 { print $2 }'
    echo done > /tmp/made`
  const made = path.join(host, 'made')
  const options =
    '--bind data --bind data:/data --bind missing:/missing:ro,optional --tmpfs /big:8MiB ' +
    `--file copy:/tmp/deep/copy --copy-out /tmp/made:${made} --symlink ${host}/link:/data --cwd ${host}`
  const ended = await nestbox(['run', ...options.split(' '), 'sh', '-c', script], { cwd: host })
  t.deepEqual(ended, { code: 0, stdout: 'bound\nbound\ncopied\nbound\n8192\n', stderr: '' })
  t.is(readFileSync(made, 'utf8'), 'done\n')
})

test('the environment is what the options say', async (t) => {
  const args = ['run', '-e', 'A=1=2', '-e', 'FROM_HERE', '--env', 'NOT_THERE', 'env']
  const { stdout } = await nestbox(args, { env: { FROM_HERE: 'yes', SECRET: 'x', NOT_THERE: undefined } })
  t.regex(stdout, /^A=1=2$/m)
  t.regex(stdout, /^FROM_HERE=yes$/m)
  t.notRegex(stdout, /SECRET|NOT_THERE/)
})

test('ids, hostname and network', async (t) => {
  const script = 'id -u; id -g; uname -n; ls /proc/net/dev >/dev/null && grep -c : /proc/net/dev'
  const { stdout } = await run('--user', '5:6', '--hostname', 'box', 'sh', '-c', script)
  t.is(stdout, '5\n6\nbox\n1\n')
})

test('core scheduling is enforced, or the program does not run', async (t) => {
  const asked = await run('--core-scheduling', '--print-policy')
  t.deepEqual(JSON.parse(asked.stdout), JSON.parse(JSON.stringify(policy('host-system').coreScheduling())))
  const ended = await run('--core-scheduling', '--json', 'echo', 'it runs')
  const told = JSON.parse(ended.stdout) as { error?: object }
  if (ended.code === 0) {
    t.like(told, { stdout: 'it runs', isolation: { coreScheduling: true } })
  } else {
    // On a machine without SMT, or a kernel without core scheduling.
    t.is(ended.code, EXIT.internal)
    t.like(told, { error: { step: 'schedule-cores', syscall: 'prctl' } })
  }
})

test('the result as JSON, with the output in it', async (t) => {
  const ended = await run('--json', 'sh', '-c', 'echo out; echo err >&2; exit 3')
  t.is(ended.code, 3)
  t.is(ended.stderr, '')
  t.like(JSON.parse(ended.stdout), { status: 'exited', exitCode: 3, stdout: 'out', stderr: 'err' })
})

test('the result as JSON, beside the output', async (t) => {
  const file = path.join(scratch(t), 'result.json')
  t.is((await run('--json-file', file, 'echo', 'out')).stdout, 'out\n')
  t.like(JSON.parse(readFileSync(file, 'utf8')), { status: 'exited', exitCode: 0, file: 'echo' })
  t.deepEqual(await run('--json-fd', '2', '--quiet', 'true').then(({ stderr }) => JSON.parse(stderr).status), 'exited')
  t.is((await run('--json', '--json-file', file, 'true')).code, EXIT.usage)
})

test('what can not be written is refused before anything runs, and left alone', async (t) => {
  const directory = scratch(t)
  const at = (name: string): string => path.join(directory, name)
  writeFileSync(at('file'), 'kept')
  mkdirSync(at('closed'), { mode: 0o555 })
  writeFileSync(at('locked'), 'kept', { mode: 0o444 })
  for (const [option, target, stderr] of [
    ['--json-fd', '99', /--json-fd: Nothing can be written to 99: It is not an open descriptor/],
    // Nothing was passed as that: what Node.js opens first is there.
    ['--json-fd', '3', /Nothing can be written to 3: It is none that was passed/],
    ['--learn', '/nope/x', /--learn: \/nope\/x can't be written: ENOENT/],
    ['--learn', at('file/x'), /--learn: .*ENOTDIR/],
    ['--learn', directory, /--learn: .*EISDIR/],
    // Root may write anywhere.
    ...(isRoot
      ? []
      : [
          ['--learn', at('closed/x'), /--learn: .*EACCES/] as const,
          ['--learn', at('locked'), /--learn: .*EACCES/] as const,
        ]),
  ] as const) {
    // oxlint-disable-next-line no-await-in-loop
    const ended = await run(option, target, 'echo', 'ran')
    t.like(ended, { code: EXIT.usage, stdout: '' }, `${option} ${target}`)
    t.regex(ended.stderr, stderr)
  }
  const shell = ['-c', 'exec "$@" 9< /dev/null', 'sh', process.execPath, cli, 'run', '--json-fd', '9', 'echo', 'ran']
  const { status, stdout, stderr: said } = spawnSync('sh', shell, { encoding: 'utf8' })
  t.deepEqual({ status, stdout }, { status: EXIT.usage, stdout: '' })
  t.regex(said, /Nothing can be written to 9: It is not open for writing/)
  // One whose run teaches nothing.
  const none = await run('--learn', at('file'), 'no-such-program')
  t.is(none.code, EXIT.notFound)
  t.is(readFileSync(at('file'), 'utf8'), 'kept')
  t.is((await run('--learn', at('new'), 'no-such-program')).code, EXIT.notFound)
  t.false(existsSync(at('new')))
})

test('an error as JSON, with all of its facts', async (t) => {
  const ended = await run('--json', '--bind', '/nope/nope', 'true')
  t.like(JSON.parse(ended.stdout), {
    error: { name: 'SpawnError', code: 'ERR_NESTBOX_SPAWN', errnoName: 'ENOENT', step: 'open-bind-source' },
  })
})

test('a policy file, and options over it', async (t) => {
  const directory = scratch(t)
  const file = path.join(directory, 'policy.json')
  const printed = await run('--tmpfs', '/a:1MiB', '--wall-time', '9s', '--processes', 'none', '--print-policy')
  writeFileSync(file, JSON.stringify({ $schema: './policy.schema.json', ...JSON.parse(printed.stdout) }))
  const again = await run(
    '--policy',
    file,
    '--tmpfs',
    '/a:2MiB',
    '--disk',
    '3MiB',
    '--hostname',
    'other',
    '--print-policy',
  )
  const expected = policy('host-system')
    .tmpfs('/a', { size: '2MiB' })
    .limits({ wallTime: 9000, processes: Infinity, disk: '3MiB' })
    .hostname('other')
  t.deepEqual(JSON.parse(again.stdout), JSON.parse(JSON.stringify(expected)))
  t.is((await run('--policy', file, 'echo', 'it runs')).stdout, 'it runs\n')
  t.is((await nestbox(['run', '--policy', '-', 'hostname'], { input: again.stdout })).stdout, 'other\n')
})

test('policy files that are none', async (t) => {
  const file = path.join(scratch(t), 'policy.json')
  const refused = (text: string, message: RegExp): void => {
    writeFileSync(file, text)
    t.throws(() => policy.parse(parseRun(['--policy', file]).policy), { message })
  }
  refused('{', /is not JSON/)
  refused('[]', /must hold a JSON object/)
  refused('{"version": 2}', /version must be 1/)
  refused('{"version": 1, "limits": 5}', /limits/)
  refused('{"version": 1, "mounts": [{}]}', /mounts\[0\]/)
  refused('{"version": 1, "limits": {"disk": "1MB"}}', /limits\.disk: It must be a whole number of bytes/)
  writeFileSync(file, JSON.stringify({ version: 1, mounts: [{ type: 'bind', source: '/srv/data' }] }))
  const { mounts } = parseRun(['--policy', file, '--bind', '/srv/other:/srv/data']).policy as { mounts: object[] }
  t.is(mounts.length, 1, 'a bind that does not say where it goes is replaced as well')
  t.throws(() => parseRun(['--policy', `${file}x`]), { message: /ENOENT/ })
  t.throws(() => parseRun(['--policy', file, '--base', 'empty']), { name: 'UsageError' })
  writeFileSync(file, '{"version": 1, "netwrok": "none"}')
  t.like(await run('--policy', file, 'true'), {
    code: EXIT.usage,
    stderr: `nestbox: ${file}: netwrok: There is no such option.\n`,
  })
  t.like(await run('--network', 'all', 'true'), {
    code: EXIT.usage,
    stderr: 'nestbox: The options: network: The network must be "none", "shared-loopback" or "host".\n',
  })
})

test('a policy file may leave out what has a default, and write sizes as people do', async (t) => {
  const directory = scratch(t)
  const file = path.join(directory, 'policy.json')
  const written = {
    version: 1,
    base: 'host-system',
    mounts: [
      { type: 'bind', source: directory, path: '/data' },
      { type: 'tmpfs', path: '/scratch', size: '1MiB' },
      { type: 'file', path: '/motd', content: 'hello' },
    ],
    limits: { disk: '2MiB', wallTime: 9000 },
  }
  writeFileSync(file, JSON.stringify(written))
  const printed = await run('--policy', file, '--print-policy')
  const expected = policy('host-system')
    .bind(directory, '/data')
    .tmpfs('/scratch', { size: '1MiB' })
    .file('/motd', 'hello')
    .limits({ disk: '2MiB', wallTime: 9000 })
  t.deepEqual(JSON.parse(printed.stdout), JSON.parse(JSON.stringify(expected)))
  t.is((await run('--policy', file, 'cat', '/motd')).stdout, 'hello')
  // Editors agree, by the schema that is shipped.
  const schema = z.fromJSONSchema(policyJSONSchema() as Parameters<typeof z.fromJSONSchema>[0])
  t.true(schema.safeParse(written).success)
  t.true(schema.safeParse({ $schema: './policy.schema.json', ...JSON.parse(printed.stdout) }).success)
  for (const wrong of [
    { version: 2 },
    { limits: { disk: '1MB' } },
    { mounts: [{ type: 'bind' }] },
    { netwrok: 'none' },
  ]) {
    t.false(schema.safeParse({ ...written, ...wrong }).success, JSON.stringify(wrong))
  }
})

test('learning writes a policy that lets the same run pass, and nothing else', async (t) => {
  const file = path.join(scratch(t), 'learned.json')
  const input = 'a\nc\nb\n'
  const learned = await nestbox(['run', '--learn', file, '--wall-time', '20s', 'sort', '-r'], { input })
  t.like(learned, { code: 0, stdout: 'c\nb\na\n' })
  t.regex(learned.stderr, /^nestbox: Learning is no boundary/)
  const written = JSON.parse(readFileSync(file, 'utf8')) as { limits: { wallTime: number }; syscalls: object }
  t.is(written.limits.wallTime, 20_000)
  t.like(written.syscalls, { otherwise: 'report' })
  t.deepEqual(await nestbox(['run', '--policy', file, 'sort', '-r'], { input }), {
    code: 0,
    stdout: 'c\nb\na\n',
    stderr: '',
  })
  const other = await run('--policy', file, 'python3', '-c', 'import os; os.mkdir("/tmp/x"); os.listdir("/tmp")')
  t.is(other.code, EXIT.violation)
  t.regex(other.stderr, /made a forbidden system call: \w+\.\n$/)
})

test.serial('signals go to the program, and a second one to all of it', async (t) => {
  const start = (
    script: string,
  ): { ended: Promise<Ended>; kill: (signal: NodeJS.Signals) => void; said: () => string } => {
    const child = spawn(process.execPath, [cli, 'run', 'sh', '-c', script])
    let stdout = ''
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      stdout += chunk
    })
    const ended = new Promise<Ended>((resolve) => {
      child.once('close', (code) => resolve({ code, stdout, stderr: '' }))
    })
    return { ended, kill: (signal) => void child.kill(signal), said: () => stdout }
  }
  const polite = start("trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done")
  t.true(await until(() => polite.said() === 'ready\n', PATIENCE))
  polite.kill('SIGTERM')
  t.like(await polite.ended, { code: 5, stdout: 'ready\ncaught\n' })
  const stubborn = start("trap 'echo caught' INT; echo ready; while :; do sleep 0.05; done")
  t.true(await until(() => stubborn.said() === 'ready\n', PATIENCE))
  stubborn.kill('SIGINT')
  t.true(await until(() => stubborn.said() === 'ready\ncaught\n', PATIENCE))
  stubborn.kill('SIGINT')
  t.like(await stubborn.ended, { code: EXIT.signal + 9 })
})

test('stats', async (t) => {
  const { stderr } = await run('--stats', 'true')
  t.regex(stderr, /^nestbox: exited, [\d.]+ ms \(set up in [\d.]+ ms\), cpu [\d.]+ ms, memory [\d.]+ MiB\n$/)
})

test('help, version and mistakes', async (t) => {
  const main = await nestbox(['--help'])
  t.is(main.code, 0)
  const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as { version: string }
  t.is((await nestbox(['--version'])).stdout, `${version}\n`)
  t.is((await nestbox(['-v'])).stdout, `${version}\n`)
  t.is((await nestbox([])).code, EXIT.usage)
  t.is((await nestbox(['schema', '--nope'])).code, EXIT.usage)
  t.regex((await nestbox(['fly'])).stderr, /no command "fly"/)
  const helps = await Promise.all(['run', 'doctor', 'bench', 'schema'].map((name) => nestbox([name, '--help'])))
  for (const { code, stdout } of helps) {
    t.is(code, 0)
    t.regex(stdout, /^Usage$/m)
    // Not a terminal: no colours. And it fits one.
    t.false(stdout.includes(ESCAPE))
    for (const line of stdout.split('\n')) t.true(line.length <= 120, line)
  }
  const documented = helps[0]?.stdout ?? ''
  for (const code of Object.values(EXIT)) t.true(documented.includes(`${code}`), `${code}`)
  // Every option is explained.
  for (const option of Object.keys(OPTIONS)) t.true(documented.includes(`--${option}`), option)
})

test('the schema is the one that is shipped, and describes what is printed', async (t) => {
  const { stdout } = await nestbox(['schema'])
  t.deepEqual(JSON.parse(stdout), policyJSONSchema())
  t.is(stdout, readFileSync(path.join(root, 'policy.schema.json'), 'utf8'))
  const schema = JSON.parse(stdout) as { properties: { [key: string]: { description?: string } }; required: string[] }
  const { properties, required } = schema
  const known = JSON.parse(JSON.stringify(policy('host-system').build())) as object
  t.deepEqual(Object.keys(properties).toSorted(), ['$schema', ...Object.keys(known)].toSorted())
  t.deepEqual(required, ['version'])
  for (const [key, { description }] of Object.entries(properties))
    t.true(key === '$schema' || description !== undefined, key)
})

test('bench', async (t) => {
  const { code, stdout, stderr } = await nestbox(['bench', '--rounds', '3', '--json'])
  t.is(code, 0)
  t.is(stderr, '')
  const { rows, rounds } = JSON.parse(stdout) as { rounds: number; rows: { name: string; p50: number; min: number }[] }
  t.is(rounds, 3)
  t.deepEqual(
    rows.map(({ name }) => name),
    ['child_process.execFile', 'nestbox: sandbox.run', 'nestbox: unsandboxed.run'],
  )
  for (const { p50, min } of rows) t.true(p50 >= min && min > 0)
  t.regex((await nestbox(['bench', '--rounds', '2', '--heap', '10MiB'])).stdout, /p50.*\n.*execFile/)
  t.is((await nestbox(['bench', '--rounds', '0'])).code, EXIT.usage)
})

test('doctor', async (t) => {
  const [table, json] = await Promise.all([nestbox(['doctor', '--verbose']), nestbox(['doctor', '--json'])])
  const { ok, checks } = JSON.parse(json.stdout) as { ok: boolean; checks: { name: string }[] }
  for (const { code } of [table, json]) t.is(code, ok ? 0 : 1)
  for (const { name } of checks) t.true(table.stdout.includes(name), name)
  t.is((await nestbox(['doctor', '--nope'])).code, EXIT.usage)
})

// ---- parts -----------------------------------------------------------------------------------------------------------

test('units', (t) => {
  t.is(parseTime('x', '1.5s'), 1500)
  t.is(parseTime('x', '2m'), 120_000)
  t.is(parseTime('x', 'none'), null)
  t.is(parseSize('x', '64MiB'), 64 * 1024 ** 2)
  t.is(parseSize('x', '12'), 12)
  t.is(parseCount('x', '12'), 12)
  for (const wrong of ['', '5 s', '5 S', '-5s', '5d', 's'])
    t.throws(() => parseTime('x', wrong), { name: 'UsageError' })
  for (const wrong of ['64MB', '1e3', '-1', 'MiB']) t.throws(() => parseSize('x', wrong), { name: 'UsageError' })
  for (const wrong of ['1.5', 'x', '-1', '']) t.throws(() => parseCount('x', wrong), { name: 'UsageError' })
})

const withEnv = (t: ExecutionContext, env: NodeJS.ProcessEnv): void => {
  const before = Object.fromEntries(Object.keys(env).map((name) => [name, process.env[name]]))
  const set = (values: NodeJS.ProcessEnv): void => {
    for (const [name, value] of Object.entries(values)) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
  }
  set(env)
  t.teardown(() => set(before))
}

test.serial('colours and progress are for terminals', (t) => {
  withEnv(t, { NO_COLOR: undefined, FORCE_COLOR: undefined, TERM: 'xterm' })
  const written: string[] = []
  const stream = (isTTY: boolean) => ({ isTTY, write: (text: string) => written.push(text) > 0 }) as never
  t.is(paintFor(stream(true)).red('x'), '\u001B[31mx\u001B[39m')
  t.is(paintFor(stream(false)).red('x'), 'x')
  progress(stream(false), 'launching')(1, 2)
  t.deepEqual(written, [])
  const show = progress(stream(true), 'launching')
  show(1, 2)
  show(2, 2)
  t.is(written.join(''), `\rlaunching ${'█'.repeat(15)}${'░'.repeat(15)} 1/2\r${ESCAPE}[K`)
  process.env['NO_COLOR'] = '1'
  t.is(paintFor(stream(true)).red('x'), 'x')
})
