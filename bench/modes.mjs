// The ways to launch that are compared, each as its users would write it.
//
// A mode is opened once in the host that measures it; what comes back launches once per call, and rejects unless the program
// did what it should. JavaScript, not TypeScript: a host is started without a loader (see ./host.mjs).
//
// - `launch(size)`: one launch; `size` is what a sweep varies;
// - `holdsClock`, where a launch answers with the microseconds that count: of something else than all of it;
// - `settle()`, where something goes on after a launch: resolves when nothing does;
// - `turn(launches, pause)` and `flood(launches, inFlight)`, where somebody else holds the clock;
// - `server`, `crowd(count)`, `trace(work)`: of modes with a fork server.

import { execFile, spawn } from 'node:child_process'
import { channel } from 'node:diagnostics_channel'
import { existsSync } from 'node:fs'

import { container } from './containers.mjs'
import { floor } from './floor.mjs'
import { slow } from './slow.mjs'

/** What users get, not the sources: those would have to be compiled in the host. */
const DIST = new URL('../dist/', import.meta.url)

const nestbox = () => import(new URL('index.js', DIST).href)
const sandbox2 = () => import(new URL('lib/sandbox2/index.js', DIST).href)

const IGNORE = Object.freeze({ stdio: 'ignore' })
const OUTPUT = 'ok'

/** What is wrong with how a program ended. */
const unexpected = (what) => new Error(`the program did not do what it should: ${JSON.stringify(what)}`)

/** `child_process.spawn` of anything, without stdio. */
const spawned =
  (file, args, options = IGNORE) =>
  () =>
    new Promise((resolve, reject) => {
      const child = spawn(file, args, options)
      child.once('error', reject)
      child.once('exit', (code, signal) => (code === 0 ? resolve() : reject(unexpected({ file, code, signal }))))
    })

/** A program of the system, if it is there and can do this at all. */
const ifItWorks = async (file, args) => {
  const launch = spawned(file, args)
  await launch()
  return { launch }
}

/** The host's directories that a sandbox of the host's system shows. */
const SYSTEM = ['/usr', '/bin', '/sbin', '/lib', '/lib64', '/etc'].filter((directory) => existsSync(directory))

// ---- nestbox ----------------------------------------------------------------------------------------------------------------

const sleep = (ms) => new Promise((resolve) => void setTimeout(resolve, ms))

/** How long a warm nest may take to be replaced, in milliseconds, before it is taken for one that nobody replaces. */
const REFILL = 50

/**
 * Waits until as many nests are warm as are to be. None is before the first launch, and later one may have gone because nobody
 * launched for a while (other modes had their turn); then a launch that is not counted brings it back.
 */
const settled = async (server, wanted, launch) => {
  for (let attempt = 0; attempt < 100; attempt += 1) {
    const end = performance.now() + REFILL
    while (performance.now() < end) {
      if (server.stats().warmNests >= wanted) return
      await sleep(1)
    }
    await launch()
  }
  throw new Error(`of ${wanted} warm nests only ${server.stats().warmNests} are there`)
}

/** A sandbox of `policyOf` with the program in it, made ready, on a fork server of its own. */
const opened = async (program, options, policyOf) => {
  const { ForkServer, Sandbox, policy, syscallFilter, trace } = await nestbox()
  const server = await ForkServer.start()
  const shown = (base) => policyOf(base, syscallFilter).bind(program, '/program')
  const sandbox = await Sandbox.create(shown(policy), { server, ...options })
  return { sandbox, server, trace, policy: () => shown(policy), Sandbox }
}

/** A mode of nestbox: `launching(launcher)` gives what launches once. */
const ours = async (program, options, policyOf, launching) => {
  const { sandbox, server, trace, policy, Sandbox } = await opened(program, options, policyOf)
  const launch = launching(sandbox)
  const warm = options.warm ?? 1
  const crowds = []
  let crowded = 0
  return {
    launch,
    server,
    settle: warm === 0 ? undefined : () => settled(server, warm + crowded, launch),
    async crowd(count) {
      // A sandbox keeps no more than that.
      const most = 1000
      for (let index = 0; index * most < count; index += 1) {
        crowds[index] ??= await Sandbox.create(policy().hostname(`crowd-${index}`), { server, warm: 0 })
        await crowds[index].warm(Math.min(count - index * most, most))
      }
      crowded = count
    },
    async trace(work) {
      const recorder = trace()
      await work(launching(recorder.record(sandbox)))
      return recorder.toJSON().traceEvents
    },
    close: () => server.destroy(),
  }
}

const hostSystem = (policy) => policy('host-system')

const ignoring = (programs, options = {}, policyOf = hostSystem) =>
  ours(programs.trivial, options, policyOf, (launcher) => async () => {
    const result = await launcher.run('/program', [], IGNORE)
    if (result.exitCode !== 0) throw unexpected(result)
    return result
  })

const capturing = (programs, options = {}) =>
  ours(programs.hello, options, hostSystem, (launcher) => async () => {
    const result = await launcher.run('/program')
    if (result.exitCode !== 0 || result.stdout !== OUTPUT) throw unexpected(result)
    return result
  })

// ---- syscall filters

const unfiltered = (policy) => policy('host-system').syscalls('unfiltered')

/** What the default filter does not list is reported, so that there is a listener, and an init that polls it. */
const reporting = (policy, filter) => policy('host-system').syscalls(filter().preset('default').otherwise('report'))

/** The call that ./programs/violate.c makes. */
const FORBIDDEN = 'mkdirat'

const violations = channel('nestbox:violation')

const micros = (nanoseconds) => Number(nanoseconds) / 1000

/** From the forbidden call until JavaScript hears of it: the program and the host read one clock, CLOCK_MONOTONIC. */
const violating = async ({ violate }, forbid, args, stampOf) => {
  const forbidding = (policy, filter) => policy('host-system').syscalls(forbid(filter()).preset('default'))
  const options = Object.freeze({ stdin: 'ignore', stderr: 'ignore', encoding: 'buffer' })
  const mode = await ours(violate, {}, forbidding, (launcher) => async () => {
    let heard
    const hear = () => {
      heard = micros(process.hrtime.bigint())
    }
    violations.subscribe(hear)
    const result = await launcher.run('/program', args, options)
    violations.unsubscribe(hear)
    if (result.status !== 'violation' || heard === undefined) throw unexpected(result)
    return heard - micros(stampOf(result))
  })
  return { ...mode, holdsClock: true }
}

const TEXT = 64 * 1024

/** So many bytes of arguments and environment, half of each, in strings of at most 64 KiB. */
const vectors = (bytes) => {
  const args = []
  const env = {}
  for (let left = Math.floor(bytes / 2), index = 0; left > 0; left -= TEXT, index += 1) {
    const text = 'x'.repeat(Math.min(left, TEXT))
    args.push(text)
    env[`BENCH_${index}`] = text
  }
  return { args, env }
}

/** Made once per size: what is measured is the launch. */
const remembered = (make) => {
  const made = new Map()
  return (size) => {
    if (!made.has(size)) made.set(size, make(size))
    return made.get(size)
  }
}

const muchOutput = (policy) => policy('host-system').limits({ output: '128MiB' })

const MOUNT_POINTS = 64

const mountPoint = (index) => `/mnt/${index}`

/** As many as a launch of a sweep binds at the most. */
const mountPoints = (policy) => {
  let made = policy('host-system')
  for (let index = 0; index < MOUNT_POINTS; index += 1) made = made.mountPoint(mountPoint(index))
  return made
}

/** sandbox2's own request: no template, all mounts made for each launch. */
const requesting = async (programs, pivot) => {
  const { ForkServer } = await nestbox()
  const { ForkClient, forkRequest, mountTree } = await sandbox2()
  const server = await ForkServer.start()
  const client = new ForkClient(server)
  const request = forkRequest()
    .mode('fork-execve-sandbox')
    .args('/program')
    .mountTree(mountTree().addFile(programs.trivial, '/program').addTmpfs('/tmp', { size: '64MiB' }))
    .pivot(pivot)
    .build()
  const launch = async () => {
    const reply = await client.sendRequest(request)
    const exit = await reply.exited
    if (exit.exitCode !== 0) throw unexpected(exit)
  }
  return { launch, server, close: () => server.destroy() }
}

const BWRAP = ['--unshare-all', '--die-with-parent', '--clearenv', '--hostname', 'nestbox']
  .concat(SYSTEM.flatMap((directory) => ['--ro-bind', directory, directory]))
  .concat('--proc', '/proc', '--dev', '/dev', '--tmpfs', '/tmp')

const modes = {
  /** The default: every namespace, the host's system read-only, all limits, the syscall filter; one nest kept warm. */
  nestbox: (programs) => ignoring(programs),
  /** The same with nothing made ahead: each launch makes its nest. */
  'nestbox-cold': (programs) => ignoring(programs, { warm: 0 }),
  'nestbox-warm-4': (programs) => ignoring(programs, { warm: 4 }),
  /** A policy that shows the program and nothing else. */
  'nestbox-cold-empty': (programs) => ignoring(programs, { warm: 0 }, (policy) => policy('empty')),
  /** The network namespace is one that launches share. */
  'nestbox-cold-shared-loopback': (programs) =>
    ignoring(programs, { warm: 0 }, (policy) => policy('host-system').network('shared-loopback')),
  /** The namespaces and limits alone. */
  'nestbox-unfiltered': (programs) => ignoring(programs, {}, unfiltered),
  'nestbox-cold-unfiltered': (programs) => ignoring(programs, { warm: 0 }, unfiltered),
  'nestbox-report': (programs) => ignoring(programs, {}, reporting),
  'nestbox-cold-report': (programs) => ignoring(programs, { warm: 0 }, reporting),
  'nestbox-violation': (programs) =>
    violating(
      programs,
      (filter) => filter.report(FORBIDDEN),
      [],
      ({ violation }) => BigInt(violation.args[5]),
    ),
  /** The kernel kills, and there is nothing to tell but that: the program has written the time before. */
  'nestbox-violation-kill': (programs) =>
    violating(
      programs,
      (filter) => filter.kill(FORBIDDEN),
      ['write'],
      ({ stdout }) => Buffer.from(stdout).readBigInt64LE(),
    ),
  'nestbox-capture': (programs) => capturing(programs),
  'nestbox-cold-capture': (programs) => capturing(programs, { warm: 0 }),
  /** No isolation, only somebody else's fork. */
  async unsandboxed({ trivial }) {
    const { ForkServer } = await nestbox()
    const server = await ForkServer.start()
    const options = Object.freeze({ stdio: 'ignore', env: Object.freeze({}) })
    const launch = async () => {
      const result = await server.unsandboxed.run(trivial, [], options)
      if (result.exitCode !== 0) throw unexpected(result)
      return result
    }
    return { launch, server, close: () => server.destroy() }
  },
  'sandbox2-nested': (programs) => requesting(programs, 'nested'),
  'sandbox2-direct': (programs) => requesting(programs, 'direct'),

  // ---- nestbox, with what sweeps vary ----------------------------------------------------------------------------------------

  /** `size` bytes of output, captured. */
  'nestbox-output': ({ emit }) => {
    return ours(emit, {}, muchOutput, (launcher) => async (size = 0) => {
      const { exitCode, stdout } = await launcher.run('/program', [String(size)], { encoding: 'buffer' })
      if (exitCode !== 0 || stdout.length !== size) throw unexpected({ exitCode, size })
    })
  },
  /** `size` bytes of arguments and environment. */
  'nestbox-arguments': ({ trivial }) => {
    const sized = remembered((size) => {
      const { args, env } = vectors(size)
      return { args, options: Object.freeze({ stdio: 'ignore', env }) }
    })
    return ours(trivial, {}, hostSystem, (launcher) => async (size = 0) => {
      const { args, options } = sized(size)
      const { exitCode } = await launcher.run('/program', args, options)
      if (exitCode !== 0) throw unexpected({ exitCode, size })
    })
  },
  /** `size` binds of the launch's own. */
  'nestbox-binds': ({ trivial, scratch }) => {
    const sized = remembered((size) => {
      const binds = Object.fromEntries(Array.from({ length: size }, (_, index) => [mountPoint(index), scratch]))
      return Object.freeze({ stdio: 'ignore', binds })
    })
    return ours(trivial, {}, mountPoints, (launcher) => async (size = 0) => {
      const { exitCode } = await launcher.run('/program', [], sized(size))
      if (exitCode !== 0) throw unexpected({ exitCode, size })
    })
  },

  // ---- a program that is slow to start ----------------------------------------------------------------------------------------

  'slow-spawn': () => slow('spawn'),
  /** The program is started when its work is there. */
  'slow-nestbox': () => slow('cold', nestbox),
  'slow-prewarmed': () => slow('prewarmed', nestbox),

  // ---- the floor --------------------------------------------------------------------------------------------------------------

  'floor-bare': (programs) => floor('bare', programs),
  'floor-cold': (programs) => floor('cold', programs, nestbox),
  'floor-warm': (programs) => floor('warm', programs, nestbox),

  // ---- peers ------------------------------------------------------------------------------------------------------------------

  spawn: ({ trivial }) => ({ launch: spawned(trivial, []) }),
  'spawn-arguments': ({ trivial }) => {
    const sized = remembered((size) => {
      const { args, env } = vectors(size)
      return spawned(trivial, args, { stdio: 'ignore', env })
    })
    return { launch: (size = 0) => sized(size)() }
  },
  /** As most programs collect output. */
  'spawn-output': ({ emit }) => ({
    launch: (size = 0) =>
      new Promise((resolve, reject) => {
        const child = spawn(emit, [String(size)], { stdio: ['ignore', 'pipe', 'pipe'] })
        const chunks = []
        child.stdout.on('data', (chunk) => chunks.push(chunk))
        child.stderr.resume()
        child.once('error', reject)
        child.once('close', (code) => {
          const { length } = Buffer.concat(chunks)
          if (code === 0 && length === size) resolve()
          else reject(unexpected({ code, length, size }))
        })
      }),
  }),
  execFile: ({ hello }) => ({
    launch: () =>
      new Promise((resolve, reject) => {
        execFile(hello, (error, stdout) => {
          if (error) reject(error)
          else if (stdout !== `${OUTPUT}\n`) reject(unexpected(stdout))
          else resolve()
        })
      }),
  }),
  async execa({ trivial }) {
    const { execa } = await import('execa')
    return { launch: () => execa(trivial, [], IGNORE) }
  },
  async 'execa-capture'({ hello }) {
    const { execa } = await import('execa')
    return {
      async launch() {
        // Its types are a riddle to the linter: it is a promise as well as a process.
        // oxlint-disable-next-line typescript/await-thenable
        const { stdout } = await execa(hello)
        if (stdout !== OUTPUT) throw unexpected(stdout)
      },
    }
  },
  /** As close to the default policy as its options go; without a syscall filter and without limits. */
  bwrap: ({ trivial }) => ifItWorks('bwrap', [...BWRAP, '--ro-bind', trivial, '/program', '/program']),
  'bwrap-binds': async ({ trivial, scratch }) => {
    const sized = remembered((size) => {
      const binds = Array.from({ length: size }, (_, index) => ['--ro-bind', scratch, `/mnt/${index}`])
      return spawned('bwrap', [...BWRAP, ...binds.flat(), '--ro-bind', trivial, '/program', '/program'])
    })
    await sized(0)()
    return { launch: (size = 0) => sized(size)() }
  },
  /** Namespaces alone: the host's whole tree, writable. */
  unshare: ({ trivial }) =>
    ifItWorks('unshare', [
      '-U',
      '-r',
      '-m',
      '-p',
      '-f',
      '-i',
      '-u',
      '-n',
      '-C',
      '--mount-proc',
      '--kill-child',
      trivial,
    ]),
  crun: (programs) => container('crun', programs, spawned),
  runc: (programs) => container('runc', programs, spawned),
}

/** A command that the user of the benchmark names: words, of which `{program}` is the program. */
const peer = async (words, { trivial }) => {
  const [file, ...args] = words.map((word) => word.replaceAll('{program}', trivial))
  return ifItWorks(file, args)
}

/** Makes a mode ready. */
export const openMode = async (name, programs) => {
  const words = programs.peers[name]
  if (words !== undefined) return peer(words, programs)
  const open = modes[name]
  if (open === undefined) throw new Error(`there is no mode ${name}`)
  return open(programs)
}
