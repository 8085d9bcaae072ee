// Signals by number and by name.

import { constants } from 'node:os'

const names = new Map<number, NodeJS.Signals>()
for (const [name, number] of Object.entries(constants.signals)) {
  // Some numbers have two names; the first one listed is the usual one.
  if (!names.has(number)) names.set(number, name as NodeJS.Signals)
}

/** The name of a signal; real-time ones, which Node has no names for, by their number. */
export const signalName = (number: number): NodeJS.Signals =>
  names.get(number) ?? (`SIGRTMIN+${number - 34}` as NodeJS.Signals)

/** The number of a signal that Node knows. */
export const signalNumber = (name: NodeJS.Signals): number => constants.signals[name]
