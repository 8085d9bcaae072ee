// Learning: what a program did becomes the filter that lets it do that, and nothing else.

import { existsSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'

import test from 'ava'

import { learn, policy, type PolicyBuilder, RequestError, Sandbox, type SyscallFilter } from '../index.ts'
import { have, scratch } from './helpers.ts'
import { fixture, root } from './invariants/support.ts'

const gcc = have('gcc') ? test : test.skip
const needs = (name: string) => (existsSync(`/usr/bin/${name}`) ? test : test.skip)
const program = have('gcc') ? fixture('supervised') : ''

const shown = (): PolicyBuilder => policy().tmpfs('/tmp').bind(program, '/program')

/** The names that a filter allows. */
const allowed = (filter: SyscallFilter): string[] =>
  filter.toJSON().rules.flatMap(({ syscalls, action }) => (action === 'allow' ? syscalls : []))

gcc('a program passes its own filter, and does nothing else under it', async (t) => {
  const lesson = await learn('/program', ['variety'], { policy: shown() })
  t.like(lesson.result, { status: 'exited', stdout: 'made\nvaried' })
  t.false(lesson.incomplete)
  t.is(lesson.filter.toJSON().otherwise, 'report')
  await using box = await Sandbox.create(shown().syscalls(lesson.filter))
  t.like(await box.run('/program', ['variety']), { status: 'exited', stdout: 'made\nvaried' })
  t.like(await box.run('/program', ['rename']), { status: 'violation', stdout: '' })
  // The launch's exec was not learned: the program itself made none.
  t.false(allowed(lesson.filter).includes('execve'))
})

gcc('it is the smallest: without any one of its calls the program fails', async (t) => {
  const { filter } = await learn('/program', ['each', '1'], { policy: shown() })
  const { rules, otherwise } = filter.toJSON()
  const names = allowed(filter)
  t.true(names.length > 3 && names.length < 40, names.join(' '))
  const verdicts = await Promise.all(
    names.map(async (name) => {
      const fewer = rules
        .map(({ syscalls, when, action }) => ({ syscalls: syscalls.filter((other) => other !== name), when, action }))
        .filter(({ syscalls }) => syscalls.length > 0)
      const json = { ...shown().build().toJSON(), syscalls: { rules: fewer, otherwise } }
      await using box = await Sandbox.create(policy.parse(json))
      const result = await box.run('/program', ['each', '1'])
      return `${name}: ${result.status === 'violation' ? result.violation?.syscall : result.status}`
    }),
  )
  t.deepEqual(
    verdicts,
    names.map((name) => `${name}: ${name}`),
  )
})

gcc('small arguments are learned', async (t) => {
  const { filter, calls } = await learn('/program', ['variety'], { policy: shown() })
  const families = calls.filter(({ syscall }) => syscall === 'socket').map(({ args }) => args[0])
  t.deepEqual(
    families.toSorted((a = 0, b = 0) => a - b),
    [2, 10],
  )
  t.true(calls.some(({ syscall, args }) => syscall === 'ioctl' && args[1] === 0x5413))
  await using box = await Sandbox.create(shown().unixSockets('allow').syscalls(filter))
  // The same call with another family.
  const result = await box.run('/program', ['connect-unix', '/x'])
  t.is(result.status === 'violation' && result.violation?.syscall, 'socket')
})

gcc('the printed code makes the same filter', async (t) => {
  const { filter, code } = await learn('/program', ['variety'], { policy: shown() })
  t.regex(code, /arg\(0\)\.(eq|oneOf)\(.*AF_INET\b/)
  t.regex(code, /arg\(1\)\.eq\(TIOCGWINSZ\)/)
  const module = path.join(scratch(t), 'filter.ts')
  const from = (name: string): string => JSON.stringify(path.join(root, name))
  writeFileSync(
    module,
    code.replace("'nestbox'", from('index.ts')).replace("'nestbox/syscalls'", from('lib/syscalls/index.ts')),
  )
  const made = (await import(pathToFileURL(module).href)) as { filter: SyscallFilter }
  t.deepEqual(made.filter.toJSON(), filter.toJSON())
})

gcc('it says that it is no boundary', async (t) => {
  const { warning, code } = await learn('/program', ['nothing'], { policy: shown() })
  t.regex(warning, /no boundary/)
  t.regex(code, /no boundary/)
  // And it is none: what the default filter refuses is made.
  const { result } = await learn('/program', ['make'], { policy: shown().syscalls('strict') })
  t.is(result.stdout, 'made')
})

gcc('what a program is called stays a comment', async (t) => {
  const { code } = await learn('/program', ['nothing', 'a\nthrow 1 //\u2028throw 2'], { policy: shown() })
  t.false(/^\s*throw/m.test(code))
  t.false(/[\u2028\u2029]/.test(code))
})

for (const [name, args] of [
  ['sh', ['-c', 'for x in 1 2 3; do echo $x; done | sort -r | head -1; ls /usr > /dev/null']],
  [
    'python3',
    ['-c', 'import subprocess\nprint(subprocess.run(["echo", "3"], capture_output=True, text=True).stdout.strip())'],
  ],
] as const) {
  needs(name)(`${name} passes what it taught`, async (t) => {
    let lesson = await learn(name, args)
    // A signal may interrupt a call that nobody has looked at yet, and dash, whose handlers have no SA_RESTART, then gives up.
    for (let tries = 0; tries < 4 && /Cannot fork|Pipe call failed/.test(lesson.result.stderr); tries += 1) {
      // oxlint-disable-next-line no-await-in-loop
      lesson = await learn(name, args)
    }
    t.like(lesson.result, { status: 'exited', exitCode: 0, stdout: '3', stderr: '' })
    await using box = await Sandbox.create(policy('host-system').syscalls(lesson.filter))
    for (let round = 0; round < 3; round += 1) {
      // oxlint-disable-next-line no-await-in-loop
      t.like(await box.run(name, args), { status: 'exited', exitCode: 0, stdout: '3' })
    }
  })
}

test('what can’t be learned from is refused like a launch', async (t) => {
  await t.throwsAsync(learn('sh', [], { limits: { wallTime: 1e9 } }), { instanceOf: RequestError })
  await t.throwsAsync(learn('no-such-program'), { code: 'ERR_NESTBOX_EXEC' })
  const server = { pid: 1 } as unknown as NonNullable<Parameters<typeof learn>[2]>['server']
  await t.throwsAsync(learn('sh', [], { server }), { instanceOf: RequestError, message: /server/ })
})
