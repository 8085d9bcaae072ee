// require() from where this file is, in whichever form it runs: as the ES module that it is, or inside a bundle, which may
// be CommonJS and then has no `import.meta.url`.

import { createRequire } from 'node:module'

/** Resolves like a `require` in this file. (Not by `typeof __filename`: `node -e` makes that a global of every module.) */
export const requireHere: NodeJS.Require = createRequire(import.meta.url ?? __filename)

/** The version of this package; `'unknown'` inside a bundle that left its package.json behind. */
export const version = (): string => {
  try {
    const { version: text } = requireHere('nestbox/package.json') as { readonly version: string }
    return text
  } catch {
    return 'unknown'
  }
}
