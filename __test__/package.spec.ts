// The package as users get it: packed, installed into an empty folder without scripts, network or Rust, and used from
// there in every form that is promised.

import { execFile } from 'node:child_process'
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import test, { type ExecutionContext } from 'ava'
import { build } from 'esbuild'

import { programsOf } from './docs/blocks.ts'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..')
const bin = path.join(root, 'node_modules', '.bin')

/** Installing waits for the disk of whatever machine this is. */
const PATIENCE = 120_000

/** From two tarballs to the first result, by the clock on the wall. */
const PROMISE = 60_000

const folder = mkdtempSync(path.join(tmpdir(), 'nestbox-package-'))
const app = path.join(folder, 'app')

/** Node, npm and the system's own programs; no Rust. */
const PATH = [path.dirname(process.execPath), '/usr/bin', '/bin'].join(':')
const env = { PATH, HOME: folder, TMPDIR: folder, npm_config_cache: path.join(folder, 'cache') }

interface Ended {
  readonly stdout: string
  readonly stderr: string
}

const execute = promisify(execFile)

/** Runs a program in the folder where the package is installed. */
const here = (file: string, args: readonly string[], cwd = app): Promise<Ended> =>
  execute(file, [...args], { cwd, env, timeout: PATIENCE })

const node = (...args: string[]): Promise<Ended> => here(process.execPath, args)

const write = (name: string, text: string): string => {
  const file = path.join(app, name)
  mkdirSync(path.dirname(file), { recursive: true })
  writeFileSync(file, text)
  return file
}

/** A package of its own, so that Node.js looks no further up. */
const MANIFEST = JSON.stringify({ name: 'app', private: true })

let firstResult = 0
let firstOutput = ''

test.before(async (t) => {
  t.timeout(PATIENCE)
  mkdirSync(app)
  const tarballs = path.join(folder, 'tarballs')
  mkdirSync(tarballs)
  await execute(process.execPath, [path.join(root, 'scripts', 'pack.mjs'), '--no-build', '--out', tarballs], { env })
  // What npm would fetch: this is no test of the registry.
  const zod = path.join(root, 'node_modules', 'zod')
  await execute('npm', ['pack', '--ignore-scripts', '--pack-destination', tarballs], { cwd: zod, env })
  const packed = readdirSync(tarballs).map((name) => path.join(tarballs, name))
  write('package.json', MANIFEST)
  write(
    'first.mjs',
    "import { run } from 'nestbox'\nconst { stdout } = await run('echo', ['first'])\nconsole.log(stdout)\n",
  )
  const start = performance.now()
  const flags = ['--ignore-scripts', '--offline', '--no-audit', '--no-fund']
  await here('npm', ['install', ...flags, ...packed])
  firstOutput = (await node('first.mjs')).stdout
  firstResult = performance.now() - start
})

test.after.always(() => rmSync(folder, { recursive: true, force: true }))

/** The README's three examples, to be used in every form: with programs that every system has. */
const EXAMPLES = `
const examples = async ({ run, policy, Sandbox }) => {
  const result = await run('sh', ['-c', 'echo $((6 * 7))'])
  const builder = policy('host-system').mountPoint('/src').limits({ wallTime: 10_000, processes: 32, disk: '256MiB' })
  const sandbox = await Sandbox.create(builder, { maxConcurrency: 4 })
  const { failed, outputs } = await sandbox.run('cp', ['/src/package.json', '/tmp/copy'], {
    binds: { '/src': ${JSON.stringify(app)} },
    outputs: { copy: { path: '/tmp/copy', maxBytes: '10MiB' } },
  })
  const sandboxee = await sandbox.spawn('cat', [], { stdin: 'pipe', limits: { wallTime: 1000 } })
  sandboxee.stdin.write('hello\\n')
  const lines = []
  for await (const line of sandboxee.lines()) {
    lines.push(line)
    break
  }
  await sandbox.destroy()
  return [result.stdout, failed, JSON.parse(Buffer.from(outputs.copy).toString()).name, ...lines].join(' ')
}
`
const SAID = '42 false app hello'

const saysIt = async (t: ExecutionContext, ran: Promise<Ended>): Promise<void> => {
  const { stdout, stderr } = await ran
  t.is(stdout.trim(), SAID)
  t.is(stderr, '')
}

test('installs without scripts, network or Rust, and launches', (t) => {
  t.false(PATH.split(':').some((directory) => existsSync(path.join(directory, 'cargo'))))
  t.is(firstOutput, 'first\n')
  t.true(firstResult < PROMISE, `${firstResult} ms`)
})

test('as an ES module', async (t) => {
  write('esm.mjs', `import * as nestbox from 'nestbox'\n${EXAMPLES}\nconsole.log(await examples(nestbox))\n`)
  await saysIt(t, node('esm.mjs'))
})

for (const program of programsOf('README.md')) {
  test(`as it stands there: ${program.name}`, async (t) => {
    const place = `readme-${program.name.replaceAll(/\W/g, '-')}`
    cpSync(path.join(root, '__test__', 'fixtures', 'docs'), path.join(app, place), { recursive: true })
    // Sandboxees have other ids.
    chmodSync(folder, 0o755)
    write(path.join(place, 'program.ts'), program.text)
    const checks = JSON.stringify(path.join(root, '__test__', 'docs', 'checks.ts'))
    const main = `import { print } from ${checks}\nconsole.log = print\nawait import('./program.ts')\n`
    write(path.join(place, 'main.ts'), main)
    // Types and `await using` are for newer versions of Node.js; nestbox itself stays where it is installed.
    await build({
      entryPoints: [path.join(app, place, 'main.ts')],
      outfile: path.join(app, place, 'main.mjs'),
      bundle: true,
      external: ['nestbox'],
      format: 'esm',
      platform: 'node',
      target: 'node20',
    })
    await t.notThrowsAsync(here(process.execPath, ['main.mjs'], path.join(app, place)))
  })
}

test('from CommonJS, through require', async (t) => {
  const text = `const nestbox = require('nestbox')\n${EXAMPLES}\nexamples(nestbox).then((text) => console.log(text))\n`
  write('common.cjs', text)
  await saysIt(t, node('common.cjs'))
})

test('both forms are one module', async (t) => {
  const text = `
    const nestbox = require('nestbox')
    const sandbox2 = require('nestbox/sandbox2')
    const same = async () => [
      nestbox.Sandbox === (await import('nestbox')).Sandbox,
      sandbox2.ForkClient === (await import('nestbox/sandbox2')).ForkClient,
      require('nestbox/policy.schema.json').type,
    ]
    same().then((all) => console.log(all.join()))
  `
  write('same.cjs', text)
  t.is((await node('same.cjs')).stdout, 'true,true,object\n')
})

test('in a worker thread', async (t) => {
  const text = `
    import { isMainThread, parentPort, Worker } from 'node:worker_threads'
    import { fileURLToPath } from 'node:url'
    import * as nestbox from 'nestbox'
    ${EXAMPLES}
    if (isMainThread) {
      new Worker(fileURLToPath(import.meta.url)).once('message', (text) => console.log(text))
    } else {
      parentPort.postMessage(await examples(nestbox))
    }
  `
  write('worker.mjs', text)
  await saysIt(t, node('worker.mjs'))
})

for (const format of ['esm', 'cjs'] as const) {
  test(`in a bundle (${format}), with nothing but the addon installed beside it`, async (t) => {
    const from = write(
      `bundle-${format}.mjs`,
      `import * as nestbox from 'nestbox'\n${EXAMPLES}\nexamples(nestbox).then((text) => console.log(text))\n`,
    )
    const place = path.join(folder, `bundle-${format}`)
    const outfile = path.join(place, `out.${format === 'esm' ? 'mjs' : 'cjs'}`)
    await build({
      entryPoints: [from],
      outfile,
      format,
      bundle: true,
      platform: 'node',
      absWorkingDir: app,
      // In CommonJS there is no import.meta, and esbuild says so.
      logOverride: { 'empty-import-meta': 'silent' },
    })
    mkdirSync(path.join(place, 'node_modules'))
    // Something of that name that is not ours, as an application may have.
    writeFileSync(path.join(place, 'other.cjs'), '')
    writeFileSync(path.join(place, 'package.json'), JSON.stringify({ imports: { '#binding': './other.cjs' } }))
    for (const name of readdirSync(path.join(app, 'node_modules')).filter((entry) => entry.startsWith('nestbox-'))) {
      cpSync(path.join(app, 'node_modules', name), path.join(place, 'node_modules', name), { recursive: true })
    }
    await saysIt(t, here(process.execPath, [outfile], place))
  })
}

/** The same examples with types: what is asserted is that they compile as strictly as TypeScript can. */
const TYPED = `
import { policy, run, Sandbox, syscallFilter, type Result } from 'nestbox'
import { forkRequest } from 'nestbox/sandbox2'
import { AF_UNIX, arg } from 'nestbox/syscalls'

export const examples = async (): Promise<string> => {
  const result = await run('python3', ['-c', 'print(6 * 7)'])
  const text: string = result.stdout
  const compiler = policy('host-system').mountPoint('/src').limits({ wallTime: 10_000, processes: 32, disk: '256MiB' })
  const sandbox = await Sandbox.create(compiler, { maxConcurrency: 4 })
  const compiled = await sandbox.run('gcc', ['-o', '/tmp/main', '/src/main.c'], {
    binds: { '/src': '/home/me/project' },
    outputs: { program: { path: '/tmp/main', maxBytes: '10MiB' } },
    encoding: 'buffer',
  })
  const bytes: Uint8Array = compiled.outputs.program
  const sandboxee = await sandbox.spawn('cat', [], { stdin: 'pipe', limits: { wallTime: 1000 } })
  sandboxee.stdin.write(bytes)
  const whole: Promise<Result<{ stdin: 'pipe' }, false>> = sandboxee.result
  // @ts-expect-error There is no such option.
  await run('true', [], { nope: true })
  void forkRequest().mode('fork-execve')
  void syscallFilter().allowDynamicStartup().when('socket', [arg(0).eq(AF_UNIX)], 'allow').otherwise('kill')
  void whole
  return text
}
`

const TYPESCRIPTS = [
  { title: 'ES module, nodenext', file: 'src/index.mts', options: { module: 'nodenext' } },
  { title: 'ES module, node16', file: 'src/index.mts', options: { module: 'node16' } },
  { title: 'CommonJS, node16', file: 'src/index.cts', options: { module: 'node16' } },
  { title: 'a bundler', file: 'src/index.ts', options: { module: 'esnext', moduleResolution: 'bundler' } },
] as const

for (const [index, { title, file, options }] of TYPESCRIPTS.entries()) {
  test(`from TypeScript: ${title}`, async (t) => {
    const place = `typescript-${index}`
    write(path.join(place, file), TYPED)
    const compilerOptions = {
      ...options,
      target: 'es2023',
      lib: ['es2023', 'esnext.disposable'],
      types: ['node'],
      typeRoots: [path.join(root, 'node_modules', '@types')],
      strict: true,
      exactOptionalPropertyTypes: true,
      noUncheckedIndexedAccess: true,
      skipLibCheck: false,
      noEmit: true,
    }
    write(path.join(place, 'tsconfig.json'), JSON.stringify({ compilerOptions, include: ['src'] }))
    const { stdout } = await here(path.join(bin, 'tsc'), ['-p', place]).catch((error: unknown) => error as Ended)
    t.is(stdout, '')
  })
}

test('its command', async (t) => {
  const { stdout } = await here(path.join(app, 'node_modules', '.bin', 'nestbox'), ['run', 'echo', 'hi'])
  t.is(stdout, 'hi\n')
})

const REFUSED = `
  import { run, UnsupportedPlatformError, policy } from 'nestbox'
  const error = await run('true').catch((error) => error)
  console.log(error instanceof UnsupportedPlatformError, error.code)
`

test('elsewhere it can be imported, and the first call says where it runs', async (t) => {
  const text = `Object.defineProperty(process, 'platform', { value: 'darwin' })\nconst { run } = await import('nestbox')\n`
  const call = "run('true').catch((error) => console.log(error.name, error.code, error.message))\n"
  write('darwin.mjs', text + call)
  const { stdout } = await node('darwin.mjs')
  t.regex(
    stdout,
    /^UnsupportedPlatformError ERR_NESTBOX_UNSUPPORTED_PLATFORM nestbox runs on Linux only; this is darwin-/,
  )
})

test('without its platform package the first call says what is missing', async (t) => {
  const place = path.join(folder, 'bare')
  mkdirSync(path.join(place, 'node_modules'), { recursive: true })
  for (const name of ['nestbox', 'zod']) {
    cpSync(path.join(app, 'node_modules', name), path.join(place, 'node_modules', name), { recursive: true })
  }
  writeFileSync(path.join(place, 'package.json'), MANIFEST)
  writeFileSync(path.join(place, 'refused.mjs'), REFUSED)
  const { stdout } = await here(process.execPath, ['refused.mjs'], place)
  t.is(stdout, 'true ERR_NESTBOX_UNSUPPORTED_PLATFORM\n')
})

const rootTarball = (): string => {
  const tarballs = path.join(folder, 'tarballs')
  return path.join(tarballs, readdirSync(tarballs).find((name) => /^nestbox-\d/.test(name)) ?? 'none')
}

test('publint has nothing to say', async (t) => {
  const { stdout } = await here(path.join(bin, 'publint'), ['--strict', rootTarball()])
  t.regex(stdout, /All good!/)
})

test('Are the types wrong? They are not', async (t) => {
  // In all resolutions that the supported versions of Node.js and bundlers have. Exits with 1 if anything is.
  await t.notThrowsAsync(here(path.join(bin, 'attw'), ['--profile', 'node16', '--no-emoji', rootTarball()]))
})
