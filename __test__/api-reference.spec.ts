// The API reference: what is exported is documented, and the pages that are made of it can be read.

import test from 'ava'

// @ts-expect-error a script without types
import { render, undocumented } from '../scripts/docs.mjs'

test('every export has a documentation comment', (t) => {
  t.deepEqual((undocumented as () => string[])(), [])
})

test('each entry has a page, which has what the comments say', (t) => {
  const pages = (render as () => Map<string, string>)()
  const page = (name: string): string => pages.get(`docs/api/${name}.md`) ?? ''
  t.deepEqual(
    [...pages.keys()].filter((name) => !page('README').includes(`(${name.slice('docs/api/'.length)})`)),
    ['docs/api/README.md'],
  )
  t.regex(page('nestbox'), /^## run\n\nRuns a program in a sandbox of/m)
  t.regex(page('nestbox'), /^- ``Sandbox\.create\(policy\?: Policy \| PolicyBuilder/m)
  t.regex(
    page('nestbox'),
    /^- ``wallTime\?: number \| undefined``\n\n {2}Milliseconds on the clock, [\s\S]*?Default: 60,000/m,
  )
  t.regex(page('opentelemetry'), /^## instrument$/m)
  for (const [name, text] of pages) t.false(/\/\*\*|#private|undefined\n\n##/.test(text), name)
})
