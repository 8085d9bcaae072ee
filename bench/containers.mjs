// OCI runtimes as modes: one bundle, and a container of it per launch.

import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, writeFileSync } from 'node:fs'
import path from 'node:path'

const mount = (destination, type, ...options) => ({ destination, type, source: type, options })

/** What such runtimes do by themselves: namespaces, a fresh /proc and /tmp, no capabilities; no filter, no cgroup. */
const configuration = () => {
  const [uid, gid] = [process.getuid(), process.getgid()]
  return {
    ociVersion: '1.0.2',
    process: {
      terminal: false,
      user: { uid: 0, gid: 0 },
      args: ['/program'],
      env: [],
      cwd: '/',
      noNewPrivileges: true,
    },
    root: { path: 'rootfs', readonly: true },
    hostname: 'nestbox',
    mounts: [
      mount('/proc', 'proc'),
      mount('/dev', 'tmpfs', 'nosuid', 'mode=755', 'size=64k'),
      mount('/tmp', 'tmpfs', 'nosuid', 'nodev', 'size=64m'),
    ],
    linux: {
      namespaces: ['user', 'mount', 'pid', 'ipc', 'uts', 'network', 'cgroup'].map((type) => ({ type })),
      uidMappings: [{ containerID: 0, hostID: uid, size: 1 }],
      gidMappings: [{ containerID: 0, hostID: gid, size: 1 }],
    },
  }
}

/**
 * @param runtime - its command
 * @param spawned - makes a launch of a command
 */
export const container = async (runtime, { trivial }, spawned) => {
  const bundle = mkdtempSync(path.join(path.dirname(trivial), `${runtime}-`))
  const root = path.join(bundle, 'rootfs')
  for (const name of ['', 'proc', 'dev', 'tmp']) mkdirSync(path.join(root, name))
  copyFileSync(trivial, path.join(root, 'program'))
  chmodSync(path.join(root, 'program'), 0o755)
  writeFileSync(path.join(bundle, 'config.json'), JSON.stringify(configuration()))
  const state = path.join(bundle, 'state')
  let count = 0
  const launch = () => {
    count += 1
    const id = `nestbox-bench-${process.pid}-${count}`
    return spawned(runtime, ['--root', state, 'run', '--bundle', bundle, id])()
  }
  await launch()
  return { launch }
}
