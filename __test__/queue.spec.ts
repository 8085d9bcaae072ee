import test from 'ava'

import { QueueFullError } from '../index.ts'
import { Queue, type Waiting } from '../lib/queue.ts'
import { delay } from './helpers.ts'

class Item implements Waiting {
  readonly name: string
  readonly #over: (item: Item) => void
  error: Error | undefined
  waited = false

  constructor(name: string, over: (item: Item) => void) {
    this.name = name
    this.#over = over
  }

  wait(): void {
    this.waited = true
  }

  turnAway(error: Error): void {
    this.error = error
    this.#over(this)
  }
}

const make = (maxConcurrency: number, maxQueue: number, timeout = Infinity) => {
  const begun: string[] = []
  const queue = new Queue<Item>(maxConcurrency, maxQueue, timeout, (item) => begun.push(item.name))
  const item = (name: string): Item => new Item(name, (over) => queue.remove(over))
  return { queue, begun, item }
}

test('first in, first out, within the bound', (t) => {
  const { queue, begun, item } = make(2, Infinity)
  const items = ['a', 'b', 'c', 'd'].map(item)
  for (const each of items) queue.add(each)
  t.deepEqual(begun, ['a', 'b'])
  t.is(queue.waiting, 2)
  t.deepEqual(
    items.map(({ waited }) => waited),
    [false, false, true, true],
  )
  for (const each of items) queue.remove(each)
  t.deepEqual(begun, ['a', 'b', 'c', 'd'])
  t.is(queue.running, 0)
})

test('one too many is turned away', (t) => {
  const { queue, begun, item } = make(1, 1)
  const [a, b, c] = [item('a'), item('b'), item('c')]
  for (const each of [a, b, c]) queue.add(each)
  t.true(c.error instanceof QueueFullError)
  t.is(queue.rejected, 1)
  t.is(queue.running, 1)
  queue.remove(a)
  t.deepEqual(begun, ['a', 'b'])
})

test('one that leaves the queue makes no room, and is not begun', (t) => {
  const { queue, begun, item } = make(1, 5)
  const [a, b, c] = [item('a'), item('b'), item('c')]
  for (const each of [a, b, c]) queue.add(each)
  queue.remove(b)
  t.is(queue.running, 1)
  queue.remove(a)
  t.deepEqual(begun, ['a', 'c'])
})

test('one that waits too long is turned away', async (t) => {
  const { queue, item } = make(1, 5, 20)
  const [a, b] = [item('a'), item('b')]
  queue.add(a)
  queue.add(b)
  await delay(60)
  t.true(b.error instanceof QueueFullError)
  t.is((b.error as QueueFullError).code, 'ERR_NESTBOX_QUEUE_TIMEOUT')
  t.is(queue.waiting, 0)
  t.is(queue.running, 1)
})

test('clear() turns away all that wait, and leaves those that run', (t) => {
  const { queue, item } = make(1, 5)
  const items = [item('a'), item('b'), item('c')]
  for (const each of items) queue.add(each)
  queue.clear(() => new Error('closed'))
  t.deepEqual(
    items.map((each) => each.error?.message),
    [undefined, 'closed', 'closed'],
  )
  t.is(queue.running, 1)
})
