// The ways to launch that are compared, each as its users would write it.
//
// A mode is opened once in the host that measures it; what comes back launches once per call, and rejects unless the program
// did what it should. JavaScript, not TypeScript: a host is started without a loader (see ./host.mjs).

import { execFile, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'

/** What users get, not the sources: those would have to be compiled in the host. */
const DIST = new URL('../dist/', import.meta.url)

const nestbox = () => import(new URL('index.js', DIST).href)
const sandbox2 = () => import(new URL('lib/sandbox2/index.js', DIST).href)

const IGNORE = Object.freeze({ stdio: 'ignore' })
const OUTPUT = 'ok'

/** What is wrong with how a program ended. */
const unexpected = (what) => new Error(`the program did not do what it should: ${JSON.stringify(what)}`)

/** `child_process.spawn` of anything, without stdio. */
const spawned = (file, args) => () =>
  new Promise((resolve, reject) => {
    const child = spawn(file, args, IGNORE)
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

/** A sandbox, made ready, on a fork server of its own. */
const opened = async (program, policyOf) => {
  const { ForkServer, Sandbox, policy } = await nestbox()
  const server = await ForkServer.start()
  const sandbox = await Sandbox.create(policyOf(policy).bind(program, '/program'), { server })
  return { sandbox, server, close: () => server.destroy() }
}

const ignoring = async (programs, policyOf) => {
  const { sandbox, server, close } = await opened(programs.trivial, policyOf)
  const launch = async () => {
    const result = await sandbox.run('/program', [], IGNORE)
    if (result.exitCode !== 0) throw unexpected(result)
    return result
  }
  return { launch, server, close }
}

const capturing = async (programs, policyOf) => {
  const { sandbox, server, close } = await opened(programs.hello, policyOf)
  const launch = async () => {
    const result = await sandbox.run('/program')
    if (result.exitCode !== 0 || result.stdout !== OUTPUT) throw unexpected(result)
    return result
  }
  return { launch, server, close }
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

export const modes = {
  // ---- nestbox --------------------------------------------------------------------------------------------------------

  /** The default policy: every namespace, the host's system read-only, all limits, the syscall filter. */
  nestbox: (programs) => ignoring(programs, (policy) => policy('host-system')),
  /** A policy that shows the program and nothing else. */
  'nestbox-empty': (programs) => ignoring(programs, (policy) => policy('empty')),
  /** The network namespace is one that launches share. */
  'nestbox-shared-loopback': (programs) =>
    ignoring(programs, (policy) => policy('host-system').network('shared-loopback')),
  'nestbox-capture': (programs) => capturing(programs, (policy) => policy('host-system')),
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

  // ---- peers ----------------------------------------------------------------------------------------------------------

  spawn: ({ trivial }) => ({ launch: spawned(trivial, []) }),
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
  bwrap({ trivial }) {
    const namespaces = ['--unshare-all', '--die-with-parent', '--clearenv', '--hostname', 'nestbox']
    const system = SYSTEM.flatMap((directory) => ['--ro-bind', directory, directory])
    const mounts = ['--ro-bind', trivial, '/program', '--proc', '/proc', '--dev', '/dev', '--tmpfs', '/tmp']
    return ifItWorks('bwrap', [...namespaces, ...system, ...mounts, '/program'])
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
}
