// A host: the Node.js process that launches, told what to do over IPC by the benchmark's own process.
//
// It is a process of its own, and plain JavaScript, because what a process costs to fork depends on the memory of the one that
// forks it: the benchmark with its samples, and a TypeScript loader alone, make child_process.spawn half as slow again.
// For the same reason every mode gets a host to itself, so that child_process never pays for the size of nestbox.

import { performance } from 'node:perf_hooks'
import { getHeapStatistics } from 'node:v8'

import { openMode } from './modes.mjs'
import { Strangers } from './strangers.mjs'

/** What is measured: see ./modes.mjs. */
let mode
const ballast = []

/** Small enough that the allocator can't answer with huge pages, which no heap of small objects gets. */
const BALLAST = 64 * 1024

const sleep = (ms) => new Promise((resolve) => void setTimeout(resolve, ms))

const heapUsed = () => getHeapStatistics().used_heap_size

const launchTimed = async (size) => {
  const start = performance.now()
  const answer = await mode.launch(size)
  return { us: mode.holdsClock === true ? answer : (performance.now() - start) * 1000 }
}

/**
 * The same, with the event loop watched. What the loop was busy with, from the call until the result, is all that the launch
 * did to it: an upper bound for its longest block. It is read around the launch, so what gets in between there (V8 that compiles
 * these very lines, in each host at the same launch) was counted too, 2 ms in a launch that took 0.3: no block is longer than the
 * launch.
 */
const launchWatched = async (size) => {
  const heap = heapUsed()
  const switches = process.resourceUsage().involuntaryContextSwitches
  const before = performance.eventLoopUtilization()
  const start = performance.now()
  const launched = mode.launch(size)
  const called = performance.now()
  await launched
  const end = performance.now()
  const { active } = performance.eventLoopUtilization(before)
  return {
    us: (end - start) * 1000,
    syncUs: (called - start) * 1000,
    busyUs: Math.min(active, end - start) * 1000,
    preempted: process.resourceUsage().involuntaryContextSwitches > switches ? 1 : 0,
    // A launch adds to the heap, and nothing else takes from it. An observer would be told in the midst of the launch.
    collected: heapUsed() < heap ? 1 : 0,
  }
}

/** Those who might disturb a launch that is watched. */
let strangers

/** A launch and the pause before it. */
const takeTimed = async (pause, size) => {
  await rest(pause)
  return launchTimed(size)
}

/** The same, watched. Who else runs is looked at before the pause, so as not to be what the launch comes after. */
const takeWatched = async (pause, size) => {
  const before = strangers.runs()
  await rest(pause)
  const sample = await launchWatched(size)
  return { ...sample, strangers: strangers.runs() === before ? 0 : 1 }
}

/**
 * Waits until this mode has nothing left to do: what replaces a warm nest in the background is to be in nobody's sample, its
 * own or another mode's.
 */
const settle = async () => mode.settle?.()

/** What comes between two launches, in all modes alike: nothing is left to do, and then nothing happens for a while. */
const rest = async (pause) => {
  if (pause === 0) return
  await settle()
  await sleep(pause)
}

/** For how long timers are used before launches are watched, in milliseconds. */
const RESTS = 2000

/** Rests for so long, in thousands of short rests: what paces launches is not to be compiled during one of them. */
const warmUpRests = async () => {
  const start = performance.now()
  while (performance.now() - start < RESTS) {
    await Promise.all(Array.from({ length: 64 }, (_, index) => sleep(1 + (index % 8))))
  }
}

const calls = {
  async open({ name, programs }) {
    mode = await openMode(name, programs)
  },

  /**
   * Launches for so long, each after a pause: V8 compiles what runs often, and gets in the way of it meanwhile. Launches that find
   * everything ready, as they do after a pause, take another path than those without.
   */
  async warmUp({ ms, pause, size }) {
    // A mode that launches by itself has no V8.
    if (mode.turn !== undefined) return
    const start = performance.now()
    while (performance.now() - start < ms) await takeTimed(pause, size)
    await settle()
  },

  /**
   * Makes ready for launches that are watched, by so many milliseconds of them: V8 takes some 3,000 to compile what they run. Who the
   * strangers are from now on: see ./strangers.mjs.
   */
  async watch({ paths, ms }) {
    strangers = new Strangers(paths)
    await warmUpRests()
    const start = performance.now()
    while (performance.now() - start < ms) await takeWatched(1)
  },

  /** Launches one after the other, with a pause before each. */
  async turn({ launches, pause, size, watch = false }) {
    if (mode.turn !== undefined) return mode.turn(launches, pause)
    const take = watch ? takeWatched : takeTimed
    const samples = []
    for (let index = 0; index < launches; index += 1) samples.push(await take(pause, size))
    await settle()
    return samples
  },

  /** Launches with `inFlight` of them under way at any moment; milliseconds for all. */
  async flood({ launches, inFlight }) {
    if (mode.flood !== undefined) return mode.flood(launches, inFlight)
    let left = launches
    const worker = async () => {
      while (left > 0) {
        left -= 1
        await mode.launch()
      }
    }
    const start = performance.now()
    await Promise.all(Array.from({ length: inFlight }, worker))
    const ms = performance.now() - start
    await settle()
    return ms
  },

  /** Launches one after the other; what each says of itself, and how long it took from here. */
  async steps({ launches, pause }) {
    const found = []
    for (let index = 0; index < launches; index += 1) {
      await rest(pause)
      const start = performance.now()
      const { timings } = await mode.launch()
      found.push({ totalMs: performance.now() - start, timings })
    }
    await settle()
    return found
  },

  /** The events of a trace: launches one after the other, and then some at once. */
  async trace({ launches, inFlight, pause }) {
    return mode.trace(async (launch) => {
      for (let index = 0; index < launches; index += 1) {
        await rest(pause)
        await launch()
      }
      await rest(pause)
      await Promise.all(Array.from({ length: inFlight }, launch))
    })
  },

  /** Touches memory, and keeps it. */
  async grow({ bytes }) {
    const slack = bytes - process.memoryUsage.rss()
    for (let made = 0; made < slack; made += BALLAST) ballast.push(Buffer.allocUnsafeSlow(BALLAST).fill(1))
    return process.memoryUsage.rss()
  },

  /** Has the fork server keep so many nests alive that nobody launches in. */
  async crowd({ count }) {
    await mode.crowd(count)
  },

  /** The fork server's process id. */
  async server() {
    return mode.server.pid
  },

  async close() {
    await mode?.close?.()
  },
}

process.on('message', async ({ call, parameters }) => {
  try {
    process.send({ value: await calls[call](parameters) })
  } catch (error) {
    process.send({ error: error instanceof Error ? error.message : String(error) })
  }
})

// The benchmark is gone: so is the reason to be here.
process.on('disconnect', () => process.exit())
