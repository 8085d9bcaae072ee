// The way to the native addon. It is loaded by the first call that needs it and not by the import, so that the package can
// be installed, imported and type-checked everywhere, and says in its own words where it can't run.

import type * as Native from '#binding'

import { UnsupportedPlatformError } from './errors.ts'
import { requireHere } from './require.ts'

let loaded: typeof Native | undefined

/**
 * The addon.
 *
 * @throws `UnsupportedPlatformError`
 */
export const native = (): typeof Native => (loaded ??= load())

const load = (): typeof Native => {
  const here = `${process.platform}-${process.arch}`
  if (process.platform !== 'linux') {
    throw new UnsupportedPlatformError(`nestbox runs on Linux only; this is ${here}.`)
  }
  // The loader that belongs to this file, as long as it is where it was installed. In a bundle there is none, but the
  // addon may have been installed beside it: its package exports what the loader does.
  const names = ['#binding', `nestbox-${here}-gnu`, `nestbox-${here}-musl`]
  const causes: unknown[] = []
  for (const name of names) {
    try {
      // require() and not import(): policies are built synchronously, and top-level await would make the package
      // impossible to require().
      const addon = requireHere(name) as typeof Native
      // In a bundle `#binding` may be something of the application's own.
      if (typeof addon.examine === 'function') return addon
      causes.push(new Error(`${name} is something else.`))
    } catch (cause) {
      causes.push(cause)
    }
  }
  throw new UnsupportedPlatformError(
    `The native addon of nestbox could not be loaded on ${here}. Prebuilt ones exist for linux-x64 and linux-arm64, ` +
      'glibc and musl; if this is one of them, reinstall with optional dependencies (`npm install --include=optional`; ' +
      '`npm ls` then shows nestbox-linux-*). In a checkout of the repository, build it with `npm run build`. What was tried:\n' +
      messagesOf(causes)
        .map((message) => `- ${message}`)
        .join('\n'),
    { cause: new AggregateError(causes, `None of ${names.join(', ')} could be loaded.`) },
  )
}

/** What the errors say, and those that caused them: the loader's own has each of its attempts there, one behind the other. */
const messagesOf = (causes: readonly unknown[]): string[] => {
  const messages = new Set<string>()
  for (const cause of causes) {
    for (let error = cause; error instanceof Error; error = error.cause) {
      // The rest of a "Cannot find module" is the stack of requires.
      messages.add(error.message.split('\n', 1)[0] ?? '')
    }
  }
  return [...messages]
}
