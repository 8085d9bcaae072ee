// One line that says how far the run is; on a terminal only, for it is of no use in a log.

const out = process.stderr

/** Replaces the line. */
export const progress = (text: string): void => {
  if (!out.isTTY) return
  const width = out.columns > 0 ? out.columns - 1 : 79
  out.write(`\r\u001B[2K${text.slice(0, width)}`)
}

/** How much of a scenario is done. */
export const progressBar = (scenario: string, done: number, all: number): void => {
  const width = 24
  const filled = Math.round((done / Math.max(all, 1)) * width)
  progress(`${scenario.padEnd(16)} ${'█'.repeat(filled)}${'░'.repeat(width - filled)} ${done}/${all}`)
}

/** Removes the line. */
export const progressDone = (): void => {
  if (out.isTTY) out.write('\r\u001B[2K')
}
