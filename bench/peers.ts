// Ways to launch that the user of the benchmark names: `NAME=COMMAND ... {program}`.

/**
 * The commands in words, by the name of their mode; or what is wrong with one. `{program}` is put in by the host that
 * launches.
 */
export const peersOf = (texts: readonly string[]): Readonly<Record<string, readonly string[]>> | string => {
  const peers: Record<string, readonly string[]> = {}
  for (const text of texts) {
    const cut = text.indexOf('=')
    const name = text.slice(0, Math.max(cut, 0)).trim()
    const words = text
      .slice(cut + 1)
      .split(/\s+/)
      .filter((word) => word !== '')
    if (!/^[\w.-]+$/.test(name) || words.length === 0) return `--peer wants NAME=COMMAND, and got "${text}"`
    if (!words.some((word) => word.includes('{program}'))) return `the command of --peer ${name} launches no {program}`
    peers[`peer: ${name}`] = words
  }
  return peers
}
