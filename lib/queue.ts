// Who may launch now, who waits, and who is turned away: the queue of a sandbox.

import { QueueFullError } from './errors.ts'

/** What the queue needs to know of a launch. */
export interface Waiting {
  /** It has to wait. */
  wait(): void
  turnAway(error: Error): void
}

/** First in, first out, with a bound on those that run and on those that wait. */
export class Queue<T extends Waiting> {
  readonly #maxConcurrency: number
  readonly #maxQueue: number
  readonly #timeout: number
  readonly #begin: (item: T) => void
  /** In order of arrival. Those that were aborted or timed out leave at once. */
  readonly #waiting = new Map<T, NodeJS.Timeout | undefined>()
  #running = 0
  /** Turned away so far. */
  rejected = 0

  constructor(maxConcurrency: number, maxQueue: number, timeout: number, begin: (item: T) => void) {
    this.#maxConcurrency = maxConcurrency
    this.#maxQueue = maxQueue
    this.#timeout = timeout
    this.#begin = begin
  }

  get running(): number {
    return this.#running
  }

  get waiting(): number {
    return this.#waiting.size
  }

  /** Begins it now or later, or turns it away. */
  add(item: T): void {
    if (this.#running < this.#maxConcurrency) {
      this.#start(item)
    } else if (this.#waiting.size < this.#maxQueue) {
      item.wait()
      this.#waiting.set(item, this.#timer(item))
    } else {
      this.turnAway(
        item,
        new QueueFullError(
          `The sandbox runs ${this.#running} launches, and ${this.#waiting.size} wait: no more may (maxQueue).`,
        ),
      )
    }
  }

  /** It is over: one that ran makes room for the next, one that waited leaves. */
  remove(item: T): void {
    if (this.#waiting.has(item)) {
      clearTimeout(this.#waiting.get(item))
      this.#waiting.delete(item)
      return
    }
    this.#running -= 1
    while (this.#running < this.#maxConcurrency) {
      const next = this.#shift()
      if (next === undefined) return
      this.#start(next)
    }
  }

  /** Turns away all that wait. */
  clear(error: () => Error): void {
    for (let next = this.#shift(); next !== undefined; next = this.#shift()) this.turnAway(next, error())
  }

  #start(item: T): void {
    this.#running += 1
    this.#begin(item)
  }

  #shift(): T | undefined {
    for (const [item, timer] of this.#waiting) {
      clearTimeout(timer)
      this.#waiting.delete(item)
      return item
    }
    return undefined
  }

  #timer(item: T): NodeJS.Timeout | undefined {
    // A timer's largest delay is 24 days; who waits longer than that waits for ever.
    if (this.#timeout > 0x7f_ff_ff_ff) return undefined
    return setTimeout(() => {
      this.#waiting.delete(item)
      const message = `The launch waited for ${this.#timeout} ms without getting its turn (queueTimeout).`
      this.turnAway(item, new QueueFullError(message, 'ERR_NESTBOX_QUEUE_TIMEOUT'))
    }, this.#timeout)
  }

  /** Ends one that has not begun. */
  turnAway(item: T, error: Error): void {
    this.rejected += 1
    // Counted as running for as long as it takes to be told, for `remove` will be called for it.
    this.#running += 1
    item.turnAway(error)
  }
}
