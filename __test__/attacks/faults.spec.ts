// Every system call that our own processes make on the way to a running program is refused in turn, with each of five errors:
// from the first on, and each single one of those that a launch makes. Whatever happens then, the launch fails with a record of
// why, or the program runs in exactly the sandbox that it would have had: as the host sees it in proc, field by field. What of
// it is left afterwards is nothing. Single refusals with the step they have to name are in `../invariants/death.spec.ts`.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { constants } from 'node:os'

import {
  CALLS,
  ERRORS,
  judged,
  last,
  look,
  NONE,
  nothingLeft,
  refusing,
  shown,
  type Trial,
  trialOf,
  x64,
} from './faults.ts'

const launchOptions = { binds: { '/point': '/usr/lib' }, files: { '/tmp/a/b': 'x' }, cwd: '/tmp' }

/**
 * Two launches on a fork server of its own, for which what the settings say is refused: one that prepares its nest with
 * all that there is to prepare, and one in a nest that was kept warm, if that could be had.
 */
const attempt = (): Promise<Trial> =>
  trialOf(shown(), {}, async (sandbox) => {
    const cold = await look(sandbox, launchOptions)
    await sandbox.warm(1)
    const warm = await look(sandbox, {})
    return cold !== undefined && warm !== undefined ? { cold, warm } : undefined
  })

x64('every refused call makes the launch fail with a reason, or changes nothing of the sandbox', async (t) => {
  t.timeout(600_000)
  const { refuse } = refusing(t)
  refuse(NONE, 1)
  const { found: whole, error: none } = await attempt()
  t.is(none, undefined)
  t.true(last.warm)
  t.like(whole, { cold: { shared: [] }, warm: { shared: [] } })
  const told: string[] = []
  for (const [name, number] of Object.entries(CALLS)) {
    for (const errnoName of ERRORS) {
      const what = `${name} ${errnoName}`
      refuse(number, constants.errno[errnoName])
      told.push(`${what}: ${await judged(t, what, await attempt(), whole)}`)
    }
  }
  t.log(told.join('\n'))
  t.true(told.filter((line) => !/: (?:over|whole)$/.test(line)).length > 20 * ERRORS.length, 'most are needed')
  refuse(NONE, 1)
  t.deepEqual((await attempt()).found, whole)
  await nothingLeft(t)
})

/** Steps of a launch that finds nothing ready: each of them fails by itself. */
const STEPS = [
  'start-forkserver',
  'create-initial-namespaces',
  'join-initial-namespaces',
  'fork-template',
  'mount-root',
  'create-directory',
  'open-bind-source',
  'verify-bind-source',
  'set-bind-attributes',
  'attach-bind',
  'write-file',
  'create-symlink',
  'enter-root',
  'detach-old-root',
  'seal-root',
  'mount-template-proc',
  'clone-init',
  'prepare-init',
  'mount-proc',
  'mask-proc',
  'mount-tmpfs',
  'mount-devpts',
  'attach-launch-bind',
  'write-launch-file',
  'set-hostname',
  'clone-sandboxee',
  'create-session',
  'map-fds',
  'create-user-namespace',
  'write-id-maps',
  'set-limits',
  'change-directory',
  'reset-signals',
  'drop-bounding-set',
  'set-no-new-privs',
  'install-filter',
  'exec',
]

/**
 * One launch on a fork server of its own that makes all of its nest, and its template: one with a root that is written to is for
 * one launch only. What else is made ahead of a launch (the initial namespaces, networks) is tried again for it.
 */
const attemptCold = (): Promise<Trial> =>
  trialOf(shown().rootWritable(), { warm: 0 }, async (sandbox) => {
    const cold = await look(sandbox, launchOptions)
    return cold && { cold }
  })

x64(
  'every single call that is refused makes the launch fail at its step, or changes nothing of the sandbox',
  async (t) => {
    t.timeout(600_000)
    const { refuse, wasMade } = refusing(t)
    refuse(NONE, 1)
    const { found: whole, error: none } = await attemptCold()
    t.is(none, undefined)
    const told: string[] = []
    let index = 0
    const sweep = async (): Promise<void> => {
      for (const [name, number] of Object.entries(CALLS)) {
        // Not every launch makes as many: some is work in the background.
        for (let skip = 0, misses = 0; misses < 4; skip += 1) {
          const errnoName = ERRORS[index++ % ERRORS.length] ?? 'EPERM'
          const what = `${name} ${skip} ${errnoName}`
          refuse(number, constants.errno[errnoName], skip)
          const trial = await attemptCold()
          misses = wasMade() ? 0 : misses + 1
          if (misses === 0) told.push(`${what}: ${await judged(t, what, trial, whole)}`)
        }
      }
    }
    const missed = (): string[] => {
      const failed = new Set(told.map((line) => /: (\S+) /.exec(line)?.[1]))
      return STEPS.filter((step) => !failed.has(step))
    }
    // On a machine that is busy the work in the background may hide a step, above all one that has a single call which several
    // processes make: what was missed gets another chance.
    for (let chance = 0; chance < 5 && (chance === 0 || missed().length > 0); chance += 1) {
      await sweep()
    }
    t.log(told.join('\n'))
    t.deepEqual(missed(), [])
    await nothingLeft(t)
  },
)
