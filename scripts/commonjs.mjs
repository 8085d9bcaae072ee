// Adds to `dist` what CommonJS needs: beside the entry of each export a `.cjs` file that requires it (Node.js loads ES
// modules by require() since 20.19 and 22.12, so there is one copy of the code and of its state), and beside every
// declaration file its twin for TypeScript's CommonJS resolution, which takes no declarations of ES modules.

import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'

import { root } from './common.mjs'

const dist = path.join(root, 'dist')

/** The declarations of the same module for CommonJS: relative imports lead to twins, too. */
const twin = (text) =>
  text.replaceAll(/((?:from|import|import\()\s*['"])(\.{1,2}\/[^'"]+)\.(?:ts|js)(['"])/g, '$1$2.cjs$3')

const writeTwins = () => {
  for (const name of readdirSync(dist, { recursive: true })) {
    if (!name.endsWith('.d.ts')) continue
    const file = path.join(dist, name)
    writeFileSync(file.replace(/\.d\.ts$/, '.d.cts'), twin(readFileSync(file, 'utf8')))
  }
  writeFileSync(path.join(root, 'binding.d.cts'), readFileSync(path.join(root, 'binding.d.ts'), 'utf8'))
}

const writeEntries = () => {
  const { exports } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  for (const entry of Object.values(exports)) {
    const file = entry.require?.default
    if (file === undefined) continue
    const module = path.basename(entry.import.default)
    writeFileSync(path.join(root, file), `'use strict'\n\nmodule.exports = require('./${module}')\n`)
  }
}

/** Adds all of it to what tsc has just made. */
export const addCommonJS = () => {
  writeTwins()
  writeEntries()
}
