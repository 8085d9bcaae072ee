// A host in a mount namespace with more mounts than the machine has.

/**
 * Starts a host in a mount namespace of its own, with mounts added there; the machine's own are never touched. `$0` is how
 * many, `$1` an empty directory, the rest the host.
 */
const MOUNT_AND_EXEC = `
set -e
count=$0 directory=$1
shift
mount -t tmpfs -o size=1m,nr_inodes=4k nestbox-bench "$directory"
i=0
while [ "$i" -lt "$count" ]; do
  mkdir "$directory/$i"
  mount -t tmpfs -o size=4k nestbox-bench "$directory/$i"
  i=$((i + 1))
done
exec "$@"
`

export const inMountNamespace = (count: number, directory: string): string[] => {
  const isRoot = process.getuid?.() === 0
  // An unprivileged host keeps its ids, and in its own user namespace the power to mount.
  const asUser = isRoot ? [] : ['--user', '--map-current-user', '--keep-caps']
  return ['unshare', ...asUser, '-m', '--propagation', 'private', 'sh', '-c', MOUNT_AND_EXEC, String(count), directory]
}
