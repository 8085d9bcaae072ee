// The table of attacks (README.md) can't go stale: every row has a test, every test it names exists, and every test of this
// directory is in a row.

import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'

import test from 'ava'

// @ts-expect-error a script without types
import { attackRows, attackTable } from '../../scripts/attacks.mjs'

const here = import.meta.dirname

interface Row {
  readonly id: string
  readonly attack: string
  readonly tests: readonly { readonly file: string; readonly title: string }[]
}

const rows = (attackRows as () => readonly Row[])()

/** A test file, without what quotes need inside. */
const source = (file: string): string =>
  readFileSync(path.join(here, '..', file), 'utf8').replaceAll(/\\(['"`])/g, '$1')

const quoted = (text: string, title: string): boolean =>
  ["'", '"', '`'].some((quote) => text.includes(`${quote}${title}${quote}`))

test('every test that a row names exists', (t) => {
  t.true(rows.length > 50)
  t.is(new Set(rows.map(({ id }) => id)).size, rows.length, 'each row once')
  for (const { id, tests } of rows) {
    t.true(tests.length > 0, id)
    for (const { file, title } of tests) t.true(quoted(source(file), title), `${id}: ${file} › ${title}`)
  }
})

test('every test of this directory is in a row', (t) => {
  const named = new Set(rows.flatMap(({ tests }) => tests.map(({ title }) => title)))
  const titles = readdirSync(here)
    .filter((file) => file.endsWith('.spec.ts') && file !== 'table.spec.ts')
    .flatMap((file) => {
      const calls = source(`attacks/${file}`).matchAll(
        /^ *(?:attack|prepared|surviving|serially|x64|python|node|needs\('[^']+'\))\(\s*(['"`])(.+?)\1,/gm,
      )
      return [...calls].map(([, , title = '']) => title)
    })
  t.true(titles.length > 40)
  for (const title of titles) t.true(named.has(title), title)
})

test('what a run printed is told row by row: a row is held if all of its tests passed', (t) => {
  const times = ['', ' (45ms)', ' (1.2s)', ' (1m)', ' (1m 17.1s)']
  const print = (mark: string, title: string): string =>
    `  ${mark} attacks › some › ${title.replaceAll(/\$\{\w+\}/g, 'x')}${times[title.length % times.length]}`
  const table = attackTable as (text: string) => readonly string[]
  const titles = [...new Set(rows.flatMap(({ tests }) => tests.map(({ title }) => title)))]
  const held = table(titles.map((title) => print('✔', title)).join('\n'))
  t.is(held[0], `Attacks tried: ${rows.length} of ${rows.length}. Attacks held: ${rows.length}.`)
  const [broken = ''] = rows[0]?.tests.map(({ title }) => title) ?? []
  const failed = table(titles.map((title) => print(title === broken ? '✘ [fail]:' : '✔', title)).join('\n'))
  t.regex(failed[1] ?? '', new RegExp(`^ {2}${rows[0]?.id} +NOT HELD `))
  t.regex(table('')[1] ?? '', /not tried/)
})
