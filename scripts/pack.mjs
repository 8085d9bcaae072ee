// `npm run pack:dry`: a release without publishing it. Makes the tarballs that would be published (the root package, with
// the optional dependencies that publishing adds, and a platform package for each addon that was built) and shows what
// is in them.
//
//   --out DIR     where the tarballs go; `target/pack` by default
//   --no-build    pack what is there
//   --all         fail unless there is an addon for every platform, as a release needs

import { spawnSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'

import { bootstrap, fail, root } from './common.mjs'

const { values } = parseArgs({
  options: {
    out: { type: 'string', default: path.join(root, 'target', 'pack') },
    'no-build': { type: 'boolean' },
    all: { type: 'boolean' },
  },
})
const out = path.resolve(values.out)

const readJSON = (file) => JSON.parse(readFileSync(file, 'utf8'))
const manifest = readJSON(path.join(root, 'package.json'))

/** A larger addon is more than people expect of a download, and likely to have its symbols still. */
const ADDON_MAX = 8_000_000

/** What is always in a package, whatever `files` says. */
const ALWAYS = ['README.md', 'LICENSE']

/** The platform packages by directory name: `linux-x64-gnu`. */
const platforms = () => {
  const names = readdirSync(path.join(root, 'npm')).toSorted()
  return names.map((name) => ({ name, manifest: readJSON(path.join(root, 'npm', name, 'package.json')) }))
}

/** As `napi pre-publish` leaves the root package: each platform package, in this very version, optional. */
const stageRoot = (stage) => {
  for (const file of [...manifest.files, ...ALWAYS]) {
    cpSync(path.join(root, file), path.join(stage, file), { recursive: true })
  }
  const optionalDependencies = Object.fromEntries(platforms().map(({ manifest: { name, version } }) => [name, version]))
  const { scripts: _, devDependencies: __, ...published } = manifest
  writeFileSync(path.join(stage, 'package.json'), JSON.stringify({ ...published, optionalDependencies }, undefined, 2))
}

const stagePlatform = (stage, { name, manifest: { main } }) => {
  cpSync(path.join(root, 'npm', name), stage, { recursive: true })
  const addon = path.join(root, main)
  const { size } = statSync(addon)
  if (size > ADDON_MAX) fail(`${main} has ${kilo(size)}, more than ${kilo(ADDON_MAX)}: is it stripped?`)
  cpSync(addon, path.join(stage, main))
}

const kilo = (bytes) => `${(bytes / 1024).toFixed(0)} KiB`

/** The files that a value of `exports` names, under whatever conditions. */
const leaves = (value) => (typeof value === 'string' ? [value] : Object.values(value).flatMap(leaves))

/** One tarball; the files that it must have and does not are an error. */
const pack = (stage) => {
  const args = ['pack', '--json', '--ignore-scripts', '--pack-destination', out]
  const { status, stdout, stderr } = spawnSync('npm', args, { cwd: stage, encoding: 'utf8' })
  if (status !== 0) fail(`npm pack failed: ${stderr}`)
  const [{ filename, size, unpackedSize, files }] = Object.values(JSON.parse(stdout))
  const { main, bin = {}, exports = {}, files: wanted } = readJSON(path.join(stage, 'package.json'))
  const paths = files.map((file) => file.path)
  const named = [main, ...Object.values(bin), ...leaves(exports)].filter((file) => file !== undefined)
  const missing = named.map((file) => path.normalize(file)).filter((file) => !paths.includes(file))
  if (missing.length > 0) fail(`${filename} lacks ${missing.join(', ')}, which its package.json names.`)
  for (const file of wanted) {
    if (!paths.some((have) => have === file || have.startsWith(`${file}/`))) fail(`${filename} lacks ${file}.`)
  }
  process.stdout.write(`${filename}: ${kilo(size)}, ${kilo(unpackedSize)} unpacked, ${files.length} files\n`)
}

const stale = platforms().filter(({ manifest: { version } }) => version !== manifest.version)
if (stale.length > 0) fail(`npm/${stale[0].name} has another version than the package; run \`npx napi version\`.`)
if (!values['no-build']) bootstrap()
mkdirSync(out, { recursive: true })
const stages = mkdtempSync(path.join(tmpdir(), 'nestbox-pack-'))
try {
  const stage = (name, fill) => {
    const directory = path.join(stages, name)
    mkdirSync(directory)
    fill(directory)
    pack(directory)
  }
  stage('nestbox', stageRoot)
  const built = platforms().filter(({ manifest: { main } }) => existsSync(path.join(root, main)))
  const wanted = values.all ? platforms().length : 1
  if (built.length < wanted) fail(`there are addons for ${built.length} platforms, not for ${wanted}.`)
  for (const platform of built) stage(platform.name, (directory) => stagePlatform(directory, platform))
} finally {
  rmSync(stages, { recursive: true, force: true })
}
