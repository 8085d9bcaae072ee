// `npm run bench [-- arguments]`: installs and builds what is missing, then runs bench/main.ts with the arguments.

import path from 'node:path'

import { bootstrap, root, run, typescript } from './common.mjs'

bootstrap()
run(process.execPath, [...typescript, path.join(root, 'bench', 'main.ts'), ...process.argv.slice(2)])
