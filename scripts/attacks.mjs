// The table of attacks of a run: which rows of `__test__/attacks/README.md` were tried, and which were held. From what the
// tests printed, so a row is held only if every one of its tests ran, passed, and said so. Used by `npm test`.

import { readFileSync } from 'node:fs'
import path from 'node:path'

import { root } from './common.mjs'

const TABLE = path.join(root, '__test__', 'attacks', 'README.md')

/** The lines that ava prints for a test: its mark, its title, and how long it took. */
const RESULT =
  /^\s*(?<mark>[✔✘-]) (?:\[(?:fail|skip)\]: )?(?<title>.+?)(?: \((?:\d+m|(?:\d+m )?[\d.]+m?s)\))?(?: Rejected promise.*| Error thrown.*)?$/

/**
 * The rows of the table. `table.spec.ts` checks them, by this same reading of them.
 *
 * @returns for each row its id, the attack in words, and its tests: a file below `__test__`, and a title as it is written there
 */
export const attackRows = () =>
  readFileSync(TABLE, 'utf8')
    .split('\n')
    .filter((line) => /^\| [A-Z]\d+ \|/.test(line))
    .map((line) => {
      const [, id, attack, tests] = line.split(/(?<!\\)\|/).map((cell) => cell.trim())
      const named = tests.split('<br>').map((one) => /^`(.+?)` › (.+)$/.exec(one.trim()))
      return { id, attack, tests: named.map((found) => ({ file: found?.[1] ?? '', title: found?.[2] ?? '' })) }
    })

/** A title in a row, as what it is printed as: `${filter}` is whatever the test puts there. */
const pattern = (title) => {
  const parts = title.split(/\$\{[^}]*\}/).map((part) => part.replaceAll(/[$()*+.?[\\\]^{|}]/g, String.raw`\$&`))
  return new RegExp(`(?:^|› |: )${parts.join('.+')}$`)
}

/**
 * What became of each attack in the output of a whole run of ava.
 *
 * @param text - without escape sequences
 * @returns lines to print
 */
export const attackTable = (text) => {
  const results = text.split('\n').flatMap((line) => {
    const found = RESULT.exec(line)
    return found === null
      ? []
      : [{ title: found.groups.title, passed: found.groups.mark === '✔', skipped: found.groups.mark === '-' }]
  })
  const judged = attackRows().map(({ id, attack, tests }) => {
    const titles = tests.map(({ title }) => pattern(title))
    const ran = titles.map((title) => results.filter((result) => title.test(result.title) && !result.skipped))
    const tried = ran.some((found) => found.length > 0)
    const held = ran.every((found) => found.length > 0 && found.every(({ passed }) => passed))
    return { id, attack, tried, held }
  })
  const tried = judged.filter((row) => row.tried)
  const open = tried.filter((row) => !row.held)
  return [
    `Attacks tried: ${tried.length} of ${judged.length}. Attacks held: ${tried.length - open.length}.`,
    ...judged.map(
      (row) => `  ${row.id.padEnd(4)} ${row.held ? 'held     ' : row.tried ? 'NOT HELD ' : 'not tried'} ${row.attack}`,
    ),
  ]
}
