// Whether somebody else had a processor during a launch: a process that is neither the host's, nor the fork server's, nor a thread
// of the kernel that works for whoever asks it to. Another host, the benchmark itself, a daemon of the machine: what these
// take from a launch is none of its doing. Told by how often each of their threads has run, which /proc/PID/schedstat counts; who
// they are says the benchmark (scenarios/processes.ts).

import { closeSync, openSync, readSync } from 'node:fs'

/** The last number of a line. No string is made: the garbage would be collected during some launch. */
const last = (line, length) => {
  let value = 0
  for (let at = 0; at < length; at += 1) {
    const digit = line[at] - 48
    if (digit >= 0) value = value * 10 + digit
    else if (at < length - 1) value = 0
  }
  return value
}

/** Counts how often strangers have run. */
export class Strangers {
  #files = []
  #room = Buffer.alloc(128)

  /** @param paths - where the kernel counts for each of their threads */
  constructor(paths) {
    for (const path of paths) {
      try {
        this.#files.push(openSync(path))
      } catch {
        // It has ended.
      }
    }
  }

  /** How often they have run so far, all together. Those that have ended count no more. */
  runs() {
    let runs = 0
    for (let index = this.#files.length - 1; index >= 0; index -= 1) {
      const file = this.#files[index]
      try {
        runs += last(this.#room, readSync(file, this.#room, 0, this.#room.length, 0))
      } catch {
        // It has ended. Asked again it would fail again, with an error for V8 to collect.
        closeSync(file)
        this.#files.splice(index, 1)
      }
    }
    return runs
  }
}
