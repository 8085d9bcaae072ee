// What is measured. Each scenario opens the hosts that it needs, measures them interleaved, and closes them; what it returns
// goes into the file of the run as it is.

import type { Scenario } from '../measure.ts'
import { filter, filterCold, violation } from './filters.ts'
import { backToBack, capture, ignore, prewarm, tail } from './latency.ts'
import { memory } from './memory.ts'
import { steps } from './steps.ts'
import { heap, mounts, threads } from './surroundings.ts'
import { sweeps } from './sweeps.ts'
import { throughput } from './throughput.ts'

export const scenarios: readonly Scenario[] = [
  ignore,
  backToBack,
  tail,
  capture,
  filter,
  filterCold,
  violation,
  prewarm,
  heap,
  threads,
  mounts,
  memory,
  throughput,
  steps,
  ...sweeps,
]
