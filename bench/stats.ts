// Quantiles, and ratios of medians with the interval in which they are known.
//
// Launch times have a long tail that belongs to whoever else uses the machine, so nothing here is a mean. The random numbers
// of the bootstrap are always the same: the same samples give the same report.

/** An estimate and its 95 % confidence interval. */
export interface Estimate {
  readonly value: number
  readonly low: number
  readonly high: number
}

const RESAMPLES = 2000

/** The value below which the fraction `q` of the sorted values lies, interpolated. */
export const quantileOfSorted = (sorted: ArrayLike<number>, q: number): number => {
  if (sorted.length === 0) return Number.NaN
  const at = (sorted.length - 1) * q
  const below = Math.floor(at)
  const low = sorted[below] ?? Number.NaN
  const high = sorted[Math.min(below + 1, sorted.length - 1)] ?? Number.NaN
  return low + (high - low) * (at - below)
}

export const quantile = (values: readonly number[], q: number): number =>
  quantileOfSorted(Float64Array.from(values).toSorted(), q)

export const median = (values: readonly number[]): number => quantile(values, 0.5)

/** mulberry32. */
export const random = (seed: number): (() => number) => {
  let state = seed
  return () => {
    state = (state + 0x6d_2b_79_f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/**
 * Draws whole turns with replacement: launches that follow one another at once are not independent. Where both series were
 * interleaved the same turns are drawn from both, so that what disturbed both cancels out.
 */
const drawTurns = (length: number, turn: number, next: () => number): number[] => {
  const turns = Math.max(Math.ceil(length / turn), 1)
  return Array.from({ length: turns }, () => Math.floor(next() * turns) * turn)
}

const quantileOfTurns = (values: readonly number[], turn: number, starts: readonly number[], q: number): number => {
  const drawn = new Float64Array(starts.length * turn)
  let count = 0
  for (const start of starts) {
    for (let at = start; at < start + turn && at < values.length; at += 1) {
      drawn[count] = values[at] ?? 0
      count += 1
    }
  }
  return quantileOfSorted(drawn.subarray(0, count).toSorted(), q)
}

/** One series, and which of its quantiles. */
export interface Part {
  readonly values: readonly number[]
  readonly q: number
}

/** The ratio of quantiles of two series that were measured in turns. */
export const ratioOfQuantiles = (over: Part, under: Part, turn: number): Estimate => {
  const next = random(0x6e_65_73_74)
  const drawn = new Float64Array(RESAMPLES)
  const paired = over.values.length === under.values.length
  for (let index = 0; index < RESAMPLES; index += 1) {
    const starts = drawTurns(over.values.length, turn, next)
    const others = paired ? starts : drawTurns(under.values.length, turn, next)
    const top = quantileOfTurns(over.values, turn, starts, over.q)
    drawn[index] = top / quantileOfTurns(under.values, turn, others, under.q)
  }
  const ratios = drawn.toSorted()
  return {
    value: quantile(over.values, over.q) / quantile(under.values, under.q),
    low: quantileOfSorted(ratios, 0.025),
    high: quantileOfSorted(ratios, 0.975),
  }
}

/** The ratio of the medians of two series that were measured in turns. */
export const ratioOfMedians = (over: readonly number[], under: readonly number[], turn: number): Estimate =>
  ratioOfQuantiles({ values: over, q: 0.5 }, { values: under, q: 0.5 }, turn)
