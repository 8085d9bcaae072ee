// What the builders of policies and of filters refuse, and how their tests say it.

import test from 'ava'

import { PolicyError } from '../index.ts'

/** A policy or filter that is refused where it is made. */
export const broken = test.macro({
  exec: (t, build: () => unknown, at: PropertyKey[], message: RegExp) => {
    const error = t.throws(build, { instanceOf: PolicyError, code: 'ERR_NESTBOX_POLICY', message })
    t.deepEqual(error.issues[0]?.path, at)
  },
  title: (name = '') => `refused: ${name}`,
})

/** What a JavaScript caller, or a JSON.parse, might pass. */
export const wrong = (value: unknown): never => value as never
