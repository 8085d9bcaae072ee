// The example programs do what they say.

import { execFile, execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import test, { type ExecutionContext } from 'ava'

import { codeRunner } from '../examples/code-runner/server.ts'
import { imageConverter } from '../examples/image-converter/server.ts'
import { Judge } from '../examples/judge/judge.ts'
import { readProblem } from '../examples/judge/main.ts'
import { browserProgram, Page } from './browser.ts'
import { have, scratch, until } from './helpers.ts'

const EXAMPLES = fileURLToPath(new URL('../examples', import.meta.url))

/** Where a server listens until the test is over. */
const listening = async (t: ExecutionContext, server: Server): Promise<string> => {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

// ---- the demo -------------------------------------------------------------------------------------------------------------

test('demo: shows what programs see, and compares', async (t) => {
  const { stdout } = await promisify(execFile)(process.execPath, [...process.execArgv, path.join(EXAMPLES, 'demo.ts')])
  if (have('python3')) t.regex(stdout, /^ {2}pid {9}2\n {2}uid, gid {4}1000 1000\n {2}hostname {4}nestbox$/m)
  t.regex(stdout, /^ {2}500500\n {2}pid 2, nestbox, 1000:1000\nIt ended: set up in [\d.]+ ms/m)
  if (have('gcc')) t.regex(stdout, /^ {2}compiled and run inside: pid 2, uid 1000$/m)
  t.regex(stdout, /cat: \/etc\/shadow: No such file/)
  t.regex(stdout, /^It was killed at its limit wallTime:/m)
  t.regex(stdout, /^ +nestbox, isolated +child_process\.spawn\n(?: {2}\S.* [\d.]+ ms +[\d.]+ ms\n)+Medians/m)
})

// ---- the code runner ------------------------------------------------------------------------------------------------------

interface RunReply {
  readonly status: string
  readonly stdout: string
  readonly stderr: string
  readonly exitCode?: number
  readonly error?: string
  readonly timings: { readonly setupMs: number; readonly steps: readonly { step: string; ms: number }[] }
}

test('code runner: runs what it is sent, and says where the time went', async (t) => {
  const url = await listening(t, await codeRunner())
  const languages = (await (await fetch(`${url}/languages`)).json()) as string[]
  t.true(languages.includes('Shell'))
  const run = async (language: string, code: string, input = ''): Promise<RunReply> => {
    const response = await fetch(`${url}/run`, { method: 'POST', body: JSON.stringify({ language, code, input }) })
    return (await response.json()) as RunReply
  }
  const hello = await run('Shell', 'read name; echo "Hello, $name"; id -u; exit 3', 'Ada\n')
  t.like(hello, { status: 'exited', exitCode: 3, stdout: 'Hello, Ada\n1000', stderr: '' })
  t.true(hello.timings.setupMs > 0 && hello.timings.steps.some(({ step }) => step === 'exec'))
  if (languages.includes('Python')) t.is((await run('Python', 'print(6 * 7)')).stdout, '42')
  if (languages.includes('C')) {
    t.is((await run('C', '#include <stdio.h>\nint main(void) { puts("compiled"); }')).stdout, 'compiled')
  }
  const flood = await run('Shell', 'head -c 1000000 /dev/zero | tr "\\0" x; echo nobody reads this')
  t.is(flood.stdout.length, 256 * 1024)
  t.is((await run('Shell', `cat ${path.join(EXAMPLES, 'demo.ts')} /etc/shadow`)).stdout, '')
})

test('code runner: refuses what makes no sense', async (t) => {
  const url = await listening(t, await codeRunner())
  const post = (body: string): Promise<Response> => fetch(`${url}/run`, { method: 'POST', body })
  for (const body of ['', 'null', '{}', '{"language":"Cobol","code":""}', '{"language":"Shell","code":1}']) {
    // oxlint-disable-next-line no-await-in-loop
    t.is((await post(body)).status, 400, body)
  }
  const long = await post(JSON.stringify({ language: 'Shell', code: 'x'.repeat(100_000) }))
  t.deepEqual([long.status, await long.json()], [400, { error: 'That is too long.' }])
  t.is((await fetch(`${url}/nothing`)).status, 404)
})

test('code runner: its page, in a browser', async (t) => {
  const url = await listening(t, await codeRunner())
  const response = await fetch(url)
  t.regex(response.headers.get('content-security-policy') ?? '', /default-src 'none'/)
  t.false(/(?:src|href)="/.test(await response.text()), 'it loads nothing')

  const program = browserProgram()
  if (program === undefined) return t.log('Skipped in part: there is no browser (Debian: chromium-headless-shell).')
  const page = await Page.open(t, program, url)
  const text = (id: string): Promise<unknown> => page.evaluate(`document.getElementById('${id}').textContent`)
  const ready = `document.readyState === 'complete' && document.getElementById('language')?.options.length > 0`
  t.true(await until(async () => (await page.evaluate(ready)) === true, 20_000), 'the languages are there')
  await page.evaluate(`(() => { const language = document.getElementById('language'); language.value = 'Shell'
    language.dispatchEvent(new Event('change')); const code = document.getElementById('code'); code.focus(); code.select() })()`)
  await page.type('echo "from $(hostname)"; echo trouble >&2; exit 7')
  await page.click('#run')
  t.true(
    await until(async () => String(await text('status')).startsWith('Exit code 7.'), 20_000),
    String(await text('status')),
  )
  t.is(await text('stdout'), 'from nestbox')
  t.is(await text('stderr'), 'trouble')

  // The picture has a bar for each step and one for the program, none of which is outside of it.
  const picture = (await page.evaluate(`(() => {
    const svg = document.querySelector('#timings svg')
    const all = svg.getBoundingClientRect()
    const inside = (box) => box.left >= all.left - 1 && box.right <= all.right + 1 && box.bottom <= all.bottom + 1
    return {
      title: svg.querySelector('title').textContent,
      setup: svg.querySelectorAll('rect.setup').length,
      exec: svg.querySelectorAll('rect.exec').length,
      labels: [...svg.querySelectorAll('text')].map((label) => label.textContent),
      outside: [...svg.querySelectorAll('rect, text')].filter((element) => !inside(element.getBoundingClientRect())).length,
    }
  })()`)) as { title: string; setup: number; exec: number; labels: string[]; outside: number }
  t.regex(picture.title, /^Set up in [\d.]+ ms, ran for [\d.]+ ms$/)
  t.true(picture.setup > 2)
  t.is(picture.exec, 1)
  t.true(picture.labels.includes('exec') && picture.labels.includes('the program'))
  t.is(picture.outside, 0)
  // Bars are to one scale, and one that is not whole has a gap.
  const bars = (await page.evaluate(`[0.05, 1000].map((execMs) => {
    const svg = draw({ steps: [{ step: 'exec', ms: 1 }], setupMs: 1, execMs })
    const [setup, exec] = ['setup', 'exec'].map((kind) => Number(svg.querySelector('rect.' + kind).getAttribute('width')))
    return { ratio: exec / setup, gap: svg.querySelector('.gap') !== null }
  })`)) as { ratio: number; gap: boolean }[]
  t.true(Math.abs((bars[0]?.ratio ?? 0) - 0.05) < 1e-9)
  t.deepEqual(
    bars.map(({ gap }) => gap),
    [false, true],
  )
  const directory = process.env['NESTBOX_TEST_SCREENSHOTS']
  if (directory !== undefined) writeFileSync(path.join(directory, 'code-runner.png'), await page.screenshot())
  return undefined
})

// ---- the judge ------------------------------------------------------------------------------------------------------------

const VERDICTS = {
  'accepted.cpp': 'AC',
  'wrong-answer.cpp': 'WA',
  'time-limit.cpp': 'TLE',
  'memory-limit.cpp': 'MLE',
  'memory-refused.cpp': 'MLE',
  'output-limit.cpp': 'OLE',
  'runtime-error.cpp': 'RE',
  'compile-error.cpp': 'CE',
  'cheat.cpp': 'WA',
} as const

const SUBMISSIONS = path.join(EXAMPLES, 'judge', 'submissions')

// Alone: verdicts are about time, and a host that is held up reads no output.
test.serial('judge: every submission gets its verdict', async (t) => {
  if (!have('g++')) return t.log('Skipped: there is no g++.')
  t.deepEqual(readdirSync(SUBMISSIONS).toSorted(), Object.keys(VERDICTS).toSorted())
  const problem = readProblem(path.join(EXAMPLES, 'judge', 'problem'))
  await using judge = await Judge.create(2)
  const reports = await Promise.all(
    Object.entries(VERDICTS).map(async ([name, verdict]) => {
      const report = await judge.judge(readFileSync(path.join(SUBMISSIONS, name), 'utf8'), problem)
      t.is(report.verdict, verdict, `${name}: ${JSON.stringify(report)}`)
      return [name, report] as const
    }),
  )
  const of = Object.fromEntries(reports)
  t.deepEqual(
    of['accepted.cpp']?.tests.map(({ verdict }) => verdict),
    ['AC', 'AC', 'AC'],
  )
  t.deepEqual(
    of['wrong-answer.cpp']?.tests.map(({ verdict }) => verdict),
    ['AC', 'AC', 'WA'],
  )
  t.regex(of['compile-error.cpp']?.message ?? '', /invalid conversion/)
  const timedOut = of['time-limit.cpp']?.tests[0]?.time ?? 0
  t.true(timedOut > 400 && timedOut < 2000, `${timedOut} ms`)
  return undefined
})

test('judge: what attacks through the compiler', async (t) => {
  if (!have('g++')) return t.log('Skipped: there is no g++.')
  const problem = readProblem(path.join(EXAMPLES, 'judge', 'problem'))
  const secret = path.join(scratch(t), 'secret')
  writeFileSync(secret, 'the answer is forty-two\n')
  await using judge = await Judge.create(2)
  const [read, endless] = await Promise.all([
    judge.judge(`#include "${secret}"\nint main() {}`, problem),
    judge.judge('#include "/dev/zero"\nint main() {}', problem),
  ])
  t.is(read.verdict, 'CE')
  t.regex(read.message ?? '', /No such file/)
  t.false((read.message ?? '').includes('forty-two'))
  t.is(endless.verdict, 'CE')
  return undefined
})

test('judge: its command', async (t) => {
  if (!have('g++')) return t.log('Skipped: there is no g++.')
  const args = [...process.execArgv, path.join(EXAMPLES, 'judge', 'main.ts'), path.join(SUBMISSIONS, 'accepted.cpp')]
  const { stdout } = await promisify(execFile)(process.execPath, args)
  t.regex(stdout, /^AC {3}.*accepted\.cpp\n {5}AC {3}1 {2}[\d.]+ ms {2}[\d.]+ MiB\n/)
  return undefined
})

// ---- the image converter ----------------------------------------------------------------------------------------------------

const MAGICK = ['/usr/bin/magick', '/usr/bin/convert'].find((file) => existsSync(file))

const NO_MAGICK = 'Skipped: there is no ImageMagick (Debian: imagemagick).'

test('image converter: converts, and isolates every request', async (t) => {
  if (MAGICK === undefined) return t.log(NO_MAGICK)
  const url = await listening(t, await imageConverter())
  const post = (query: string, body: Buffer | string): Promise<Response> =>
    fetch(`${url}/convert?${query}`, { method: 'POST', body: new Uint8Array(Buffer.from(body)) })
  const directory = scratch(t)
  // Of the host's, and nobody else's business: red all over.
  const secret = path.join(directory, 'secret.png')
  execFileSync(MAGICK, ['-size', '60x40', 'xc:red', secret])
  /** Size and colour of the middle of an image. */
  const look = (bytes: Uint8Array): string => {
    const args = ['-', '-format', '%m %wx%h %[pixel:p{5,5}]', 'info:']
    return execFileSync(MAGICK, args, { input: bytes, encoding: 'utf8' })
  }

  const converted = await post('to=gif&size=30', readFileSync(secret))
  t.is(converted.status, 200)
  t.is(converted.headers.get('content-type'), 'image/gif')
  t.regex(converted.headers.get('server-timing') ?? '', /^setup;dur=[\d.]+, convert;dur=[\d.]+$/)
  t.regex(look(new Uint8Array(await converted.arrayBuffer())), /^GIF 30x20 (?:red|srgb\(255,0,0\))/)

  // A picture that names another file. Without isolation it brings that out:
  const hostile = `push graphic-context\nviewbox 0 0 60 40\nimage over 0,0 60,40 "${secret}"\npop graphic-context\n`
  const upload = path.join(directory, 'upload')
  writeFileSync(upload, hostile)
  const bare = execFileSync(MAGICK, [`mvg:${upload}`, 'png:-'], { stdio: ['ignore', 'pipe', 'ignore'] })
  t.regex(look(bare), /60x40 (?:red|srgb\(255,0,0\))/, 'the attack works without a sandbox')
  const stopped = await post('to=png&from=mvg', hostile)
  if (stopped.status === 200) t.notRegex(look(new Uint8Array(await stopped.arrayBuffer())), /red|srgb\(255,0,0\)/)
  else t.is(stopped.status, 422)

  const broken = await post('to=png', 'no image')
  t.is(broken.status, 422)
  t.regex(await broken.text(), /no decode delegate/)
  for (const query of ['to=exe', 'size=0', 'size=99999', 'from=../x', 'from=a.b']) {
    // oxlint-disable-next-line no-await-in-loop
    t.is((await post(query, 'x')).status, 400, query)
  }
  t.is((await post('', Buffer.alloc(33 * 1024 * 1024))).status, 400)
  return undefined
})
