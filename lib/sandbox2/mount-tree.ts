// sandbox2's mount tree as an immutable builder. What conflicts is decided by the core, which can look at the files.

import type { NativeTreeEntry } from '#binding'
import * as z from 'zod'

import { native } from '../binding.ts'
import { describeIssues, RequestError, requestError } from '../errors.ts'
import { registerHandle } from '../snapshot.ts'
import { AbsolutePath, check, sizeSchema, type Tied } from '../validate.ts'
import type { DirectoryOptions, MountTree, MountTreeEntry, NodeOptions } from './types.ts'

const Target = AbsolutePath.refine((path) => path !== '/', 'The root itself can be neither added nor removed')

const NodeOptionsSchema = z.strictObject({
  writable: z.boolean().optional(),
  allowWriteExecutable: z.boolean().optional(),
})
const DirectoryOptionsSchema = NodeOptionsSchema.extend({ allowMountPropagation: z.boolean().optional() })

/** Each schema says what the hand-written type says; a difference is a compile error here. */
export const tied: {
  node: Tied<z.input<typeof NodeOptionsSchema>, NodeOptions>
  directory: Tied<z.input<typeof DirectoryOptionsSchema>, DirectoryOptions>
} = { node: true, directory: true }

const AddFile = z.strictObject({ outside: AbsolutePath, inside: Target, options: NodeOptionsSchema })
const AddDirectory = z.strictObject({ outside: AbsolutePath, inside: Target, options: DirectoryOptionsSchema })
const AddTmpfs = z.strictObject({ inside: Target, size: sizeSchema(1).refine(Number.isFinite, 'It must be finite') })
const Remove = z.strictObject({ inside: Target })

const checked = <S extends z.ZodType>(what: string, schema: S, input: unknown): z.output<S> => {
  const result = check(schema, input)
  if (result.ok) return result.value
  throw new RequestError(describeIssues(what, result.error.issues), result.error.issues, { cause: result.error.cause })
}

/** What the core calls an entry. */
export const toNative = (entry: MountTreeEntry): NativeTreeEntry => ({
  type: entry.type,
  path: entry.inside,
  writable: entry.writable,
  ...(entry.outside === undefined ? undefined : { outside: entry.outside }),
  ...(entry.allowWriteExecutable === true ? { allowWriteExecutable: true } : undefined),
  ...(entry.allowMountPropagation === true ? { allowMountPropagation: true } : undefined),
  ...(entry.size === undefined ? undefined : { options: `size=${entry.size}` }),
})

class Tree implements MountTree {
  readonly #entries: readonly MountTreeEntry[]

  constructor(entries: readonly MountTreeEntry[]) {
    this.#entries = Object.freeze(entries.map((entry) => Object.freeze(entry)))
    registerHandle(this)
    Object.freeze(this)
  }

  addFile(outside: string, inside: string = outside, options: NodeOptions = {}): MountTree {
    const what = 'mountTree.addFile()'
    const call = checked(what, AddFile, { outside, inside, options })
    return this.#add(what, { type: 'file', inside: call.inside, outside: call.outside, ...access(call.options) })
  }

  addDirectory(outside: string, inside: string = outside, options: DirectoryOptions = {}): MountTree {
    const what = 'mountTree.addDirectory()'
    const call = checked(what, AddDirectory, { outside, inside, options })
    const propagation = call.options.allowMountPropagation === true ? { allowMountPropagation: true } : undefined
    const entry = { inside: call.inside, outside: call.outside, ...access(call.options), ...propagation }
    return this.#add(what, { type: 'directory', ...entry })
  }

  addTmpfs(inside: string, options: { size: number | string }): MountTree {
    const what = 'mountTree.addTmpfs()'
    const call = checked(what, AddTmpfs, { inside, ...options })
    return this.#add(what, { type: 'tmpfs', inside: call.inside, writable: true, size: call.size })
  }

  rootWritable(): MountTree {
    return this.#add('mountTree.rootWritable()', { type: 'root', inside: '/', writable: true })
  }

  remove(inside: string): MountTree {
    const what = 'mountTree.remove()'
    const { inside: path } = checked(what, Remove, { inside })
    const kept = this.#entries.filter((entry) => entry.inside !== path && !entry.inside.startsWith(`${path}/`))
    if (kept.length === this.#entries.length) throw requestError(what, ['inside'], `Nothing is at ${path}`)
    return new Tree(kept)
  }

  list(): readonly MountTreeEntry[] {
    return this.#entries
  }

  resolve(inside: string): string | undefined {
    const { inside: path } = checked('mountTree.resolve()', Remove, { inside })
    let nearest: MountTreeEntry | undefined
    for (const entry of this.#entries) {
      const covers = path === entry.inside || path.startsWith(`${entry.inside}/`)
      if (covers && entry.inside.length >= (nearest?.inside.length ?? 0)) nearest = entry
    }
    if (nearest?.outside === undefined) return undefined
    return nearest.type === 'file' && path !== nearest.inside
      ? undefined
      : nearest.outside + path.slice(nearest.inside.length)
  }

  #add(what: string, added: MountTreeEntry): MountTree {
    const found = native().checkMountTree([...this.#entries, added].map(toNative))
    if (found.length > 0) {
      // All that was there before was right, so whatever is wrong is wrong with this one.
      const issues = found.map(({ message }) => ({ path: ['inside'], message }))
      throw new RequestError(describeIssues(what, issues), issues)
    }
    const at = this.#entries.findIndex((entry) => entry.inside === added.inside)
    const known = this.#entries[at]
    // The core has found them to be the same file: what either allows is allowed, at the place of the first.
    return new Tree(known === undefined ? [...this.#entries, added] : this.#entries.with(at, union(known, added)))
  }
}

const access = (options: NodeOptions): Pick<MountTreeEntry, 'writable' | 'allowWriteExecutable'> => ({
  writable: options.writable === true,
  ...(options.allowWriteExecutable === true ? { allowWriteExecutable: true } : undefined),
})

const union = (a: MountTreeEntry, b: MountTreeEntry): MountTreeEntry => ({
  ...a,
  writable: a.writable || b.writable,
  ...(a.allowWriteExecutable === true || b.allowWriteExecutable === true ? { allowWriteExecutable: true } : undefined),
  ...(a.allowMountPropagation === true || b.allowMountPropagation === true
    ? { allowMountPropagation: true }
    : undefined),
})

/** Is this a tree that {@link mountTree} began? */
export const isMountTree = (value: unknown): value is MountTree => value instanceof Tree

/** An empty mount tree. */
export const mountTree = (): MountTree => new Tree([])
