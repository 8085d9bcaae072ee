import { PassThrough, Readable } from 'node:stream'

import test from 'ava'

import { LineSplitter } from '../lib/launch/lines.ts'

const collect = async (stream: Readable, maxLength = 64): Promise<string[]> => {
  const lines: string[] = []
  for await (const line of new LineSplitter(stream).lines(maxLength)) lines.push(line)
  return lines
}

const bytes = (...chunks: (string | number[])[]): Readable =>
  Readable.from(
    chunks.map((chunk) => Buffer.from(chunk as string)),
    { objectMode: false },
  )

test('lines end at newlines, however the chunks fall', async (t) => {
  t.deepEqual(await collect(bytes('a\nb', 'c\r\n', '\n', 'd')), ['a', 'bc', '', 'd'])
  t.deepEqual(await collect(bytes('a\n')), ['a'])
  t.deepEqual(await collect(bytes()), [])
})

test('characters that are split between chunks stay whole', async (t) => {
  t.deepEqual(await collect(bytes([0xf0, 0x9f], [0x98, 0x80, 10])), ['\u{1F600}'])
})

test('a long line comes in pieces', async (t) => {
  t.deepEqual(await collect(bytes('abcdefg\nh\n'), 3), ['abc', 'def', 'g', 'h'])
  t.deepEqual(await collect(bytes('abc\n'), 3), ['abc'])
  t.deepEqual(await collect(bytes('a\u{1F600}b'), 2), ['a', '\u{1F600}', 'b'])
})

test('an endless line takes no more than it may', async (t) => {
  let produced = 0
  const endless = new Readable({
    read() {
      produced += 1
      this.push(Buffer.alloc(16_384, 97))
    },
  })
  for await (const line of new LineSplitter(endless).lines(1024)) {
    t.is(line.length, 1024)
    break
  }
  t.true(produced < 20)
  t.false(endless.destroyed)
})

test('the next iteration goes on where one was left', async (t) => {
  const splitter = new LineSplitter(bytes('a\nb\nc'))
  for await (const line of splitter.lines(64)) {
    t.is(line, 'a')
    break
  }
  const rest: string[] = []
  for await (const line of splitter.lines(64)) rest.push(line)
  t.deepEqual(rest, ['b', 'c'])
})

test('the error of the stream is the error of the iteration', async (t) => {
  const stream = new PassThrough()
  stream.write('a\n')
  const lines = new LineSplitter(stream).lines(64)
  t.deepEqual(await lines.next(), { value: 'a', done: false })
  const next = lines.next()
  stream.destroy(new Error('broken'))
  await t.throwsAsync(next, { message: 'broken' })
})
