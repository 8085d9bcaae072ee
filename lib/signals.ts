// Signals by number and by name.

import { constants } from 'node:os'

const names = new Map<number, NodeJS.Signals>()
for (const [name, number] of Object.entries(constants.signals)) {
  // Some numbers have two names; the first one listed is the usual one.
  if (!names.has(number)) names.set(number, name as NodeJS.Signals)
}

/** The first real-time signal that programs use: the C library keeps those before it for itself (signal(7)). */
const SIGRTMIN = 34

/** The name of a signal; what Node has no name for is called by its number. */
export const signalName = (number: number): NodeJS.Signals =>
  names.get(number) ?? ((number < SIGRTMIN ? `SIG${number}` : `SIGRTMIN+${number - SIGRTMIN}`) as NodeJS.Signals)

/** The number of a signal by such a name. */
export const signalNumber = (name: NodeJS.Signals): number => {
  const known: number | undefined = constants.signals[name]
  if (known !== undefined) return known
  const [, realTime, number = ''] = /^SIG(RTMIN\+)?(\d+)$/.exec(name) ?? []
  return Number(number) + (realTime === undefined ? 0 : SIGRTMIN)
}
