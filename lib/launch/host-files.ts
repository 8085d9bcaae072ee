// The host's files of one launch: opened before it and for it alone, closed when it has them or is over.
//
// Promises: nobody is waited for at a FIFO; what would be a way out, a directory, is not passed; a file is emptied only when
// all of the launch are open. What goes wrong is a `SpawnError` that names the file. Used by `./flight.ts`.

import { close, constants, fstatSync, ftruncate, open } from 'node:fs'

import { native } from '../binding.ts'
import { type NestboxError, SpawnError, type SpawnFailure } from '../errors.ts'
import type { Late, OpenFile } from './request.ts'

/** Those of one launch. */
export class HostFiles {
  readonly #fds = new Map<OpenFile, number>()

  /**
   * Opens the files among what is passed, and empties those that are to be emptied. That is last, and no flag of open(2): the
   * files of a launch that is ended before, or fails at one of them, stay as they are.
   *
   * @param isOver - whether the launch has ended meanwhile: then nothing more is done
   */
  async open(late: readonly Late[], isOver: () => boolean): Promise<void> {
    const sources = late.flatMap(({ source }) => ('file' in source ? [source] : []))
    const full = new Map<OpenFile, number>()
    /* oxlint-disable no-await-in-loop -- one after the other, so that what was opened is known if the next one fails */
    for (const source of sources) {
      if (isOver()) return
      const fd = await openAtOnce(source)
      this.#fds.set(source, fd)
      const stat = fstatSync(fd)
      if (stat.isFIFO()) throw notPassed(source, 'a FIFO', FIFO_HINT)
      // For reading, the kernel opens one. A program could walk through it, out of its sandbox.
      if (stat.isDirectory()) throw notPassed(source, 'a directory', 'Name a file in it')
      native().setBlocking(fd)
      if (source.truncate && stat.isFile() && stat.size > 0) full.set(source, fd)
    }
    for (const [source, fd] of full) {
      if (isOver()) return
      await empty(source, fd)
    }
    /* oxlint-enable no-await-in-loop */
  }

  /** The descriptor of one that is open, else -1. */
  number(file: OpenFile): number {
    return this.#fds.get(file) ?? -1
  }

  close(): void {
    for (const fd of this.#fds.values()) close(fd)
    this.#fds.clear()
  }
}

/**
 * Opens a host file without waiting for anybody. Whoever opens a FIFO waits for its other end, and here that would be a thread
 * of the pool that all of the host's files share; a sandboxee that can write to a directory on the way can have one there.
 */
const openAtOnce = ({ file, flags }: OpenFile): Promise<number> =>
  new Promise((resolve, reject) => {
    open(file, flags | constants.O_NONBLOCK, 0o666, (error, fd) => {
      if (error) reject(openError(file, error, 'open'))
      else resolve(fd)
    })
  })

const empty = ({ file }: OpenFile, fd: number): Promise<void> =>
  new Promise((resolve, reject) => {
    ftruncate(fd, 0, (error) => {
      if (error) reject(openError(file, error, 'ftruncate'))
      else resolve()
    })
  })

const openError = (file: string, error: NodeJS.ErrnoException, syscall: 'open' | 'ftruncate'): NestboxError => {
  const what = syscall === 'open' ? 'opened' : 'emptied'
  const message = `The host file ${file} could not be ${what}: ${error.message}. It failed at the step 'open-stdio'.`
  const failure: SpawnFailure = {
    errno: Math.abs(error.errno ?? 0),
    errnoName: error.code ?? '',
    syscall,
    step: 'open-stdio',
    path: file,
  }
  // What a FIFO that nobody reads says to whoever does not wait.
  if (error.code !== 'ENXIO') return new SpawnError(message, failure, { cause: error })
  return new SpawnError(`${message} ${FIFO_HINT}.`, { ...failure, hint: FIFO_HINT }, { cause: error })
}

const FIFO_HINT = 'If it is a FIFO that you mean, open it yourself and pass { fd }'

const notPassed = ({ file }: OpenFile, what: string, hint: string): NestboxError =>
  new SpawnError(`The host file ${file} was not passed: it is ${what}. It failed at the step 'open-stdio'. ${hint}.`, {
    errno: 0,
    errnoName: '',
    syscall: '',
    step: 'open-stdio',
    path: file,
    hint,
  })
