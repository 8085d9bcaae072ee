// What is there without being made: `run` and `unsandboxed`, on a process-wide fork server that the first call starts.

import { asError } from './errors.ts'
import type { Launcher } from './launch/types.ts'
import { sharedSandbox } from './sandbox.ts'
import { sharedServer } from './server.ts'

/** A launcher that is made by its first call. What keeps it from being made is a rejection, like everything else. */
const lazily = (launcher: () => Launcher): Launcher =>
  Object.freeze({
    run: (...call) => {
      try {
        return launcher().run(...call)
      } catch (error) {
        return Promise.reject(asError(error))
      }
    },
    spawn: (...call) => {
      try {
        return launcher().spawn(...call)
      } catch (error) {
        return Promise.reject(asError(error))
      }
    },
  } satisfies Launcher)

/**
 * Runs a program in a sandbox of `policy('host-system')`: the host's system directories read-only, private /tmp, fresh /proc,
 * minimal /dev, no network, no capabilities, the default syscall filter and limits. See {@link Launcher.run}.
 *
 * @example
 * ```ts
 * const result = await run('python3', ['-c', 'print(6 * 7)'])
 * result.stdout // '42'
 * ```
 */
export const run: Launcher['run'] = lazily(sharedSandbox).run

/**
 * Launches **without isolation**, for hosts whose heap makes `child_process` slow: the host's ids, root, network and working
 * directory. `env` must be given. What needs a sandbox (`files`, `binds`, `outputs`, `limits.disk`) is refused; there is
 * no limit but `output`, 10 MiB.
 */
export const unsandboxed: Launcher = lazily(() => sharedServer().unsandboxed)
