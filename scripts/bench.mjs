// `npm run bench [-- arguments]`: installs and builds what is missing, then runs bench/main.ts with the arguments.

import path from 'node:path'

import { bootstrap, buildStatic, root, run, typescript } from './common.mjs'

bootstrap()
const env = { NESTBOX_FLOOR: buildStatic('nestbox-floor', 'floor', { inputs: ['bench/floor'] }) }
run(process.execPath, [...typescript, path.join(root, 'bench', 'main.ts'), ...process.argv.slice(2)], { env })
