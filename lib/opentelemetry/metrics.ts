// Counts and distributions of launches. Seconds and bytes, as OpenTelemetry has them.

import type * as Api from '@opentelemetry/api'

import type { ExitEvent, LaunchEvent } from '../diagnostics.ts'

/** A launch takes from half a millisecond to a minute. */
const SECONDS = [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64]

const MIB = 1024 ** 2
const BYTES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096].map((count) => count * MIB)

/** Makes metrics of events. */
export class Metrics {
  readonly #active: Api.UpDownCounter
  readonly #count: Api.Counter
  readonly #duration: Api.Histogram
  readonly #setup: Api.Histogram
  readonly #queue: Api.Histogram
  readonly #cpu: Api.Histogram
  readonly #memory: Api.Histogram
  /** Those counted as active, so that each is taken off once. */
  readonly #counted = new Set<LaunchEvent>()

  constructor(api: typeof Api) {
    const meter = api.metrics.getMeter('nestbox')
    const seconds = (name: string, description: string): Api.Histogram =>
      meter.createHistogram(name, { description, unit: 's', advice: { explicitBucketBoundaries: SECONDS } })
    this.#active = meter.createUpDownCounter('nestbox.launch.active', {
      description: 'Launches that wait or run.',
      unit: '{launch}',
    })
    this.#count = meter.createCounter('nestbox.launch.count', {
      description: 'Launches that are over, by how they ended.',
      unit: '{launch}',
    })
    this.#duration = seconds('nestbox.launch.duration', 'From the end of the queue to the death of the nest.')
    this.#setup = seconds('nestbox.launch.setup.duration', 'From the end of the queue to exec.')
    this.#queue = seconds('nestbox.launch.queue.duration', 'Waiting for a place among those that run.')
    this.#cpu = seconds('nestbox.launch.cpu.time', 'CPU time of all processes of a launch.')
    this.#memory = meter.createHistogram('nestbox.launch.memory.peak', {
      description: 'The most memory that a launch had, as its result says.',
      unit: 'By',
      advice: { explicitBucketBoundaries: BYTES },
    })
  }

  launched(launch: LaunchEvent): void {
    this.#counted.add(launch)
    this.#active.add(1)
  }

  exited({ launch, result, error }: ExitEvent): void {
    if (this.#counted.delete(launch)) this.#active.add(-1)
    const attributes: Api.Attributes = { 'nestbox.isolated': launch.isolated }
    if (result !== undefined) attributes['nestbox.status'] = result.status
    if (error !== undefined && 'code' in error && typeof error.code === 'string') attributes['error.type'] = error.code
    this.#count.add(1, attributes)
    if (result === undefined) return
    const { timings, resourceUsage, durationMs } = result
    this.#duration.record(durationMs / 1000, attributes)
    this.#setup.record(timings.setupMs / 1000, attributes)
    this.#queue.record(timings.queueMs / 1000, attributes)
    this.#cpu.record((resourceUsage.userCpuMs + resourceUsage.systemCpuMs) / 1000, attributes)
    this.#memory.record(resourceUsage.peakMemoryBytes, attributes)
  }

  stopped(): void {
    for (const _ of this.#counted) this.#active.add(-1)
    this.#counted.clear()
  }
}
