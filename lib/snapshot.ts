// Copies what a caller handed over, before anything looks at it.
//
// Options come from anywhere, request bodies included, and may be objects with getters, or proxies, that answer
// differently each time. So each property is read exactly once, into plain data without a prototype; only the copy is
// validated and used. What can't be copied (streams, file handles, abort signals, bytes, our own handles) is passed on by
// identity, for the schemas to tell.

import { EventEmitter } from 'node:events'
import { types } from 'node:util'
import type { FileHandle } from 'node:fs/promises'

import type { Issue } from './errors.ts'

/** What the copy found that no input may have. */
export class SnapshotError extends Error {
  readonly issues: readonly Issue[]

  constructor(path: PropertyKey[], message: string, options?: ErrorOptions) {
    super(message, options)
    this.issues = [{ path, message }]
  }
}

/** Deeper than any option is; keeps a cyclic object from being followed forever. */
const MAX_DEPTH = 8

/**
 * A plain copy of `value`.
 *
 * @throws {@link SnapshotError}
 */
export const snapshot = (value: unknown): unknown => copy(value, [])

const copy = (value: unknown, path: PropertyKey[]): unknown => {
  if (typeof value !== 'object' || value === null) return value
  if (isOpaque(value)) return value
  if (path.length >= MAX_DEPTH) throw new SnapshotError(path, 'It is nested too deeply')
  return reading(path, () => (Array.isArray(value) ? copyArray(value, path) : copyObject(value, path)))
}

/** What has entries that are no properties: it would count as an object with nothing in it. */
export const isCollection = (value: object): boolean => types.isMap(value) || types.isSet(value)

const copyArray = (array: readonly unknown[], path: PropertyKey[]): readonly unknown[] => {
  const { length } = array
  const result: unknown[] = []
  for (let index = 0; index < length; index += 1) {
    const item: unknown = array[index]
    result.push(typeof item === 'object' && item !== null ? copy(item, [...path, index]) : item)
  }
  return result
}

const copyObject = (object: object, path: PropertyKey[]): object => {
  if (isCollection(object)) throw new SnapshotError(path, 'It must be a plain object or an array, not a Map or a Set')
  const result = Object.create(null) as Record<string, unknown>
  for (const key of Object.keys(object)) {
    // An own property of this name (JSON.parse makes one) would be read as a prototype by whoever copies carelessly.
    if (key === '__proto__') throw new SnapshotError([...path, key], 'No property can have this name')
    const item = (object as Record<string, unknown>)[key]
    result[key] = typeof item === 'object' && item !== null ? copy(item, [...path, key]) : item
  }
  return result
}

/** A getter or a proxy may throw anything; the caller is told where. */
const reading = <T>(path: PropertyKey[], read: () => T): T => {
  try {
    return read()
  } catch (cause) {
    if (cause instanceof SnapshotError) throw cause
    throw new SnapshotError(path, 'It could not be read', { cause })
  }
}

const handles = new WeakSet<object>()

/** Declares an object of ours to be a handle: passed on by identity, never copied. */
export const registerHandle = (handle: object): void => {
  handles.add(handle)
}

/** Values with an identity: bytes, what emits events (streams, file handles, abort signals), and our own handles. */
export const isOpaque = (value: object): boolean =>
  types.isUint8Array(value) ||
  value instanceof EventEmitter ||
  value instanceof EventTarget ||
  isFileHandle(value) ||
  handles.has(value)

/** Node does not export the class, which is no EventEmitter by inheritance either: it is told by its methods. */
export const isFileHandle = (value: unknown): value is FileHandle => {
  if (typeof value !== 'object' || value === null || types.isProxy(value)) return false
  const prototype = Object.getPrototypeOf(value) as { datasync?: unknown; getAsyncId?: unknown } | null
  if (prototype === null || prototype === Object.prototype) return false
  return typeof prototype.datasync === 'function' && typeof prototype.getAsyncId === 'function'
}
