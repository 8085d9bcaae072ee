// `npm run demo`, on a fresh clone too: installs and builds what is missing, then runs examples/demo.ts.

import path from 'node:path'

import { bootstrap, root, run, typescript } from './common.mjs'

bootstrap()
run(process.execPath, [...typescript, path.join(root, 'examples', 'demo.ts'), ...process.argv.slice(2)])
