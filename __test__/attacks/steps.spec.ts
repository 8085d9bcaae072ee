// Steps that only some launches have, refused in turn: a network namespace that is made or joined, a writable bind that is
// id-mapped, an init that guards itself. What `faults.spec.ts` sweeps over has none of them to fail, or hides it.

// One after the other is what these are about.
/* oxlint-disable no-await-in-loop */

import { mkdtempSync } from 'node:fs'
import { constants } from 'node:os'
import path from 'node:path'

import { ForkServer, NestboxError, type PolicyBuilder, Sandbox } from '../../index.ts'
import { isRoot, until } from '../helpers.ts'
import { workshop } from '../invariants/support.ts'
import {
  CALLS,
  ERRORS,
  judged,
  last,
  look,
  NONE,
  nothingLeft,
  type Refusing,
  refusing,
  shown,
  type Trial,
  trialOf,
  x64,
} from './faults.ts'

const CLONE_NEWNET = 0x40_00_00_00

const call = (name: string): number => CALLS[name] ?? NONE

/** One launch of this policy on a fork server of its own, in a nest that is made for it. */
const attemptOf = (from: PolicyBuilder): Promise<Trial> => trialOf(from, { warm: 0 }, (sandbox) => look(sandbox, {}))

x64('a network namespace that can not be made or joined fails its step, or the launch makes its own', async (t) => {
  t.timeout(600_000)
  const { refuse } = refusing(t)
  const shared = shown().network('shared-loopback')
  refuse(NONE, 1)
  const wholes = { shared: (await attemptOf(shared)).found, own: (await attemptOf(shown())).found }
  t.like(wholes, { shared: { shared: [] }, own: { shared: [] } })
  for (const errnoName of ERRORS) {
    const errno = constants.errno[errnoName]
    refuse(call('unshare'), errno, undefined, [0, CLONE_NEWNET])
    const made = await judged(t, `unshare ${errnoName}`, await attemptOf(shared), wholes.shared)
    t.is(made, `create-network-namespace unshare ${errnoName}`)
    t.is(await judged(t, `own, unshare ${errnoName}`, await attemptOf(shown()), wholes.own), 'whole')

    refuse(call('setns'), errno, undefined, [1, CLONE_NEWNET])
    const joined = await judged(t, `setns ${errnoName}`, await attemptOf(shared), wholes.shared)
    t.is(joined, `join-network-namespace setns ${errnoName}`)
    // One from the pool, as soon as there is one: until then a launch makes its own.
    await using server = await ForkServer.start()
    await using sandbox = await Sandbox.create(shown(), { server, warm: 0 })
    const refused = await until(async () => {
      try {
        t.deepEqual(await look(sandbox, {}), wholes.own)
        return false
      } catch (error) {
        if (!(error instanceof NestboxError)) throw error
        t.like(error, { step: 'join-network-namespace', syscall: 'setns', errnoName })
        return true
      }
    })
    t.true(refused, errnoName)
  }
  await nothingLeft(t)
})

/** Refuses each single call of this kind in turn, until a launch makes no more of them; tells what became of each. */
const sweepOf = async (
  { refuse, wasMade }: Refusing,
  name: string,
  errnoName: (typeof ERRORS)[number],
  launch: () => Promise<string>,
): Promise<string[]> => {
  const told: string[] = []
  for (let skip = 0, misses = 0; misses < 3; skip += 1) {
    refuse(call(name), constants.errno[errnoName], skip)
    const became = await launch()
    misses = wasMade() ? 0 : misses + 1
    if (misses === 0) told.push(became)
  }
  return told
}

x64('a writable bind that can not be id-mapped fails its step, or is said not to be', async (t) => {
  t.timeout(600_000)
  const how = refusing(t)
  const directory = mkdtempSync(path.join(workshop(), 'id-mapped-'))
  // One with a root that is written to is for one launch only: else what fails ahead of a launch is tried again for it.
  const from = shown().rootWritable().bind(directory, '/writable', { writable: true })
  how.refuse(NONE, 1)
  const { found: whole } = await attemptOf(from)
  t.truthy(whole)
  const idMapped = (found: Trial['found']): boolean => JSON.stringify(found?.['mounts']).includes('idmapped')
  const without = (found: Trial['found']) => JSON.parse(JSON.stringify(found).replaceAll(',idmapped', '')) as object
  const told: string[] = []
  for (const errnoName of ERRORS) {
    const became = await sweepOf(how, 'mount_setattr', errnoName, async () => {
      const trial = await attemptOf(from)
      // What the kernel says of a file system that has no such maps is no failure, but it is no id map either.
      const lacks = trial.found !== undefined && idMapped(whole) && !idMapped(trial.found)
      if (lacks) t.deepEqual([errnoName, last.skipped], ['EPERM', ['id-mapping:/writable']])
      if (!lacks) return judged(t, `mount_setattr ${errnoName}`, trial, whole)
      t.deepEqual(without(trial.found), without(whole))
      return 'not id-mapped'
    })
    told.push(...became)
    // The binds of an unprivileged host are its own files, and stay them.
    const mapped = isRoot && errnoName !== 'EPERM'
    t.is(became.includes(`id-map-bind mount_setattr ${errnoName}`), mapped, became.join('\n'))
  }
  t.log(told.join('\n'))
  await nothingLeft(t)
})

x64('an init that can not guard itself ends its launch, and says so', async (t) => {
  t.timeout(600_000)
  const how = refusing(t)
  const told = new Set<string>()
  for (const name of ['capset', 'seccomp', 'close_range']) {
    const became = await sweepOf(how, name, 'ENOMEM', async () => {
      let pid = 0
      try {
        await using server = await ForkServer.start()
        pid = server.pid
        await using sandbox = await Sandbox.create(shown().limits({ wallTime: 300 }), { server, warm: 0 })
        const { status } = await sandbox.run('/attack', ['processes', 'victim'])
        return status
      } catch (error) {
        return await judged(t, name, { error, server: pid }, undefined)
      }
    })
    for (const one of became) told.add(one)
  }
  t.log([...told].join('\n'))
  for (const name of ['capset', 'seccomp', 'close_range']) t.true(told.has(`guard-init ${name} ENOMEM`), name)
  // A program that did run was ended by the limit, and by nothing less.
  for (const one of told) t.true(one === 'limit-exceeded' || one.includes(' '), one)
  await nothingLeft(t)
})
