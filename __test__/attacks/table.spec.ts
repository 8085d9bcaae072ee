// The table of attacks (README.md) can't go stale: every row has a test, every test it names exists, and every test of this
// directory is in a row.

import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'

import test from 'ava'

const here = import.meta.dirname

interface Row {
  readonly id: string
  readonly tests: readonly { readonly file: string; readonly title: string }[]
}

const rows: readonly Row[] = readFileSync(path.join(here, 'README.md'), 'utf8')
  .split('\n')
  .filter((line) => /^\| [A-Z]\d+ \|/.test(line))
  .map((line) => {
    const [, id = '', , tests = ''] = line.split(/(?<!\\)\|/).map((cell) => cell.trim())
    const named = tests.split('<br>').map((one) => /^`(.+?)` › (.+)$/.exec(one.trim()))
    return { id, tests: named.map((found) => ({ file: found?.[1] ?? '', title: found?.[2] ?? '' })) }
  })

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
        /^ *(?:attack|surviving|serially|x64|python|node|needs\('[^']+'\))\(\s*(['"`])(.+?)\1,/gm,
      )
      return [...calls].map(([, , title = '']) => title)
    })
  t.true(titles.length > 40)
  for (const title of titles) t.true(named.has(title), title)
})
