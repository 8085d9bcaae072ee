// `doctor()`: can programs be launched here, and if not, what has to be changed? The fork server's executable tries each
// thing that a launch needs by itself; here a whole launch is added, which has the last word.

import { release } from 'node:os'
import type { NativeBlocker, NativeCheck, NativeFailure } from '#binding'

import { native } from '../binding.ts'
import { asError, ExecError, ForkServerError, SpawnError } from '../errors.ts'
import { policy } from '../policy/policy.ts'
import { version } from '../require.ts'
import { Sandbox } from '../sandbox.ts'
import { ForkServer } from '../server.ts'
import type { DoctorBlocker, DoctorCheck, DoctorError, DoctorReport } from './types.ts'

/**
 * Examines whether programs can be launched on this system: tries every namespace, the id maps, mounts, the syscall filter
 * and the rest, each in a process that is thrown away, then a whole launch. Names the cause of whatever fails and what to
 * do about it. Changes nothing.
 *
 * @example
 * ```ts
 * const { ok, blockers } = await doctor()
 * if (!ok) for (const { name, hint } of blockers) console.error(`${name}: ${hint}`)
 * ```
 *
 * @throws `UnsupportedPlatformError`
 */
export const doctor = async (): Promise<DoctorReport> => {
  const { checks: tried, blockers, settings } = await native().examine()
  const checks = [...tried.map(toCheck), await launch(blockers)]
  return {
    ok: checks.every((check) => check.status === 'ok' || !check.required),
    system: {
      nestbox: version(),
      node: process.version,
      kernel: release(),
      arch: process.arch,
      uid: process.getuid?.() ?? 0,
    },
    checks,
    blockers: blockers.map(({ name, hint, fixes }): DoctorBlocker => {
      const to = checks.filter((check) => check.blocker === name)
      return { name, hint, checks: to.map((check) => check.name), required: to.some((check) => check.required), fixes }
    }),
    settings: Object.fromEntries(settings.map(({ name, value }) => [name, value ?? null])),
  }
}

const toCheck = ({ name, required, value, failure, blocker, skipped }: NativeCheck): DoctorCheck => ({
  name,
  required,
  status: failure !== undefined ? 'failed' : skipped !== undefined ? 'skipped' : 'ok',
  ...(value !== undefined && { value }),
  ...(skipped !== undefined && { reason: skipped }),
  ...(failure !== undefined && { error: toError(failure) }),
  ...(blocker !== undefined && { blocker }),
})

type Facts = Pick<NativeFailure, 'message'> & Partial<Omit<DoctorError, 'message'>>

const toError = ({ message, errnoName = '', syscall = '', step = '', path, hint }: Facts): DoctorError => ({
  message,
  errnoName,
  syscall,
  step,
  ...(path !== undefined && { path }),
  ...(hint !== undefined && { hint }),
})

/** A whole launch by the default policy, through a fork server of its own. */
const launch = async (blockers: readonly NativeBlocker[]): Promise<DoctorCheck> => {
  const check = { name: 'launch', required: true } as const
  try {
    await using server = await ForkServer.start()
    await using sandbox = await Sandbox.create(policy('host-system'), { server })
    const { isolation, failed, command } = await sandbox.run('true')
    if (failed) return { ...check, status: 'failed', error: toError({ message: `\`${command}\` failed` }) }
    return { ...check, status: 'ok', value: isolation.namespaces.join(', ') }
  } catch (thrown) {
    const error = asError(thrown)
    // There is no such program: everything up to its execution has worked.
    if (error instanceof ExecError) return { ...check, status: 'ok', value: 'up to the program, which is missing here' }
    if (!(error instanceof SpawnError || error instanceof ForkServerError)) {
      return { ...check, status: 'failed', error: toError({ message: error.message }) }
    }
    // The same text for the same cause.
    const blocker = blockers.find(({ hint }) => hint === error.hint)?.name
    return { ...check, status: 'failed', error: toError(error), ...(blocker !== undefined && { blocker }) }
  }
}
