// Whether somebody else had a processor during a launch: a process that is neither the host's, nor the fork server's, nor a thread
// of the kernel that works for whoever asks it to. Another host, the benchmark itself, a daemon of the machine: what these
// take from a launch is none of its doing. Told by how often each of their threads has run, which /proc/PID/schedstat counts.

import { openSync, readdirSync, readFileSync, readSync } from 'node:fs'

/** Threads of the kernel that do what processes have it do: deferred work, what is freed late, moves to another processor. */
const SERVING = /^(?:kworker|ksoftirqd|rcu|migration|kthreadd|pool_workqueue)/

const numbers = (directory) => readdirSync(directory).filter((name) => /^\d+$/.test(name))

/** Name and parent of a process; undefined if it has ended. */
const look = (pid) => {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const end = stat.lastIndexOf(')')
    return {
      pid: Number(pid),
      name: stat.slice(stat.indexOf('(') + 1, end),
      parent: Number(stat.slice(end + 4).split(' ', 1)[0]),
    }
  } catch {
    return undefined
  }
}

/** The threads of all who are strangers to this process. */
const strangers = () => {
  const all = numbers('/proc')
    .map(look)
    .filter((found) => found !== undefined)
  const own = new Set([process.pid])
  for (let before = 0; before !== own.size;) {
    before = own.size
    for (const { pid, parent } of all) if (own.has(parent)) own.add(pid)
  }
  return all
    .filter(({ pid, name }) => !own.has(pid) && !SERVING.test(name))
    .flatMap(({ pid }) => {
      try {
        return numbers(`/proc/${pid}/task`).map((thread) => `/proc/${pid}/task/${thread}/schedstat`)
      } catch {
        return []
      }
    })
}

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

/** Counts how often strangers have run: those who are there when it is made. */
export class Strangers {
  #files = []
  #room = Buffer.alloc(128)

  constructor() {
    for (const path of strangers()) {
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
    for (const file of this.#files) {
      try {
        runs += last(this.#room, readSync(file, this.#room, 0, this.#room.length, 0))
      } catch {
        // It has ended.
      }
    }
    return runs
  }
}
