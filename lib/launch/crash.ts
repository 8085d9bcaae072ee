// From the symboliser's words to a crash report. They come from a sandbox in which the remains of a program were read that may
// have been hostile, so they are checked like any other input from there before they become part of a result.

import * as z from 'zod'
import type { NativeCrash } from '#binding'

import { signalName } from '../signals.ts'
import type { CrashReport } from './crash-types.ts'

/** A 64-bit number. */
const HexSchema = z.string().regex(/^0x[\da-f]{1,16}$/)
/** Names and paths; the symboliser keeps them shorter. */
const TextSchema = z.string().max(4096)
const CountSchema = z.int().min(0).max(0xff_ff_ff_ff)

const FrameSchema = z.strictObject({
  address: HexSchema,
  module: TextSchema.optional(),
  offset: HexSchema.optional(),
  symbol: TextSchema.optional(),
  file: TextSchema.optional(),
  line: CountSchema.optional(),
  inlined: z.boolean().optional(),
})

const ThreadSchema = z.strictObject({
  tid: CountSchema,
  name: TextSchema,
  crashed: z.boolean(),
  registers: z.record(z.string().regex(/^[a-z][\d_a-z]{0,15}$/), HexSchema),
  frames: z.array(FrameSchema),
})

const MapSchema = z.strictObject({
  start: HexSchema,
  end: HexSchema,
  permissions: z.string().max(8),
  offset: HexSchema,
  path: TextSchema,
})

const WordsSchema = z.strictObject({
  signal: z.int().min(1).max(64),
  code: z.int().optional(),
  faultAddress: HexSchema.optional(),
  arch: z.enum(['x64', 'arm64']),
  threads: z.array(ThreadSchema),
  maps: z.array(MapSchema),
  truncated: z.strictObject({
    threads: z.boolean(),
    stacks: z.boolean(),
    frames: z.boolean(),
    maps: z.boolean(),
    modules: z.boolean(),
  }),
})

type Words = z.output<typeof WordsSchema>

/** The best of the reports that the symboliser printed, one a line and better than the one before. */
const best = (text: string): Words | undefined => {
  for (const line of text.split('\n').toReversed()) {
    try {
      const { success, data } = WordsSchema.safeParse(JSON.parse(line))
      if (success) return data
    } catch {
      // Cut short, or never meant to be JSON.
    }
  }
  return undefined
}

/** The report of a crash. Always one: if there is nothing else to say, then why. */
export const crashReport = ({ report, problem }: NativeCrash, status: number): CrashReport => {
  const words = best(report.toString())
  const reason = problem ?? (words === undefined ? 'the symboliser said nothing that makes sense' : undefined)
  const { signal: _, ...rest } = words ?? { ...NOTHING, signal: status }
  // The signal is the kernel's word, not the sandbox's.
  return { signal: signalName(status), ...rest, ...(reason === undefined ? {} : { problem: reason }) }
}

const NOTHING = {
  arch: process.arch === 'arm64' ? 'arm64' : 'x64',
  threads: [],
  maps: [],
  truncated: { threads: false, stacks: false, frames: false, maps: false, modules: false },
} as const
