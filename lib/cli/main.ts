#!/usr/bin/env node
// The command `nestbox`. Each command is a file of this directory; this one picks it and turns what it throws into a
// message and an exit code.

import { asError } from '../errors.ts'
import { version } from '../require.ts'
import { benchCommand } from './bench.ts'
import { doctorCommand } from './doctor.ts'
import { exitCodeOfError, UsageError } from './exit.ts'
import { mainHelp } from './help.ts'
import { complain, runCommand } from './run.ts'
import { schemaCommand } from './schema.ts'
import { write } from './terminal.ts'

const say = async (text: string): Promise<number> => {
  await write(process.stdout, text)
  return 0
}

const COMMANDS: { readonly [name: string]: (argv: readonly string[]) => Promise<number> } = {
  run: runCommand,
  doctor: doctorCommand,
  bench: benchCommand,
  schema: schemaCommand,
  help: ([command]) => (command === undefined ? say(mainHelp()) : main([command, '--help'])),
  '--help': () => say(mainHelp()),
  '-h': () => say(mainHelp()),
  '-v': () => say(`${version()}\n`),
  '--version': () => say(`${version()}\n`),
}

const main = async ([name, ...argv]: readonly string[]): Promise<number> => {
  if (name === undefined) {
    await write(process.stderr, mainHelp())
    return exitCodeOfError(new UsageError())
  }
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined
  if (command === undefined) throw new UsageError(`There is no command "${name}"; \`nestbox --help\` lists them.`)
  return command(argv)
}

// A reader that goes away (`nestbox schema | head`) is no failure of ours.
process.stdout.on('error', () => {})
process.stderr.on('error', () => {})

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (thrown) {
  const error = asError(thrown)
  await complain(error)
  process.exitCode = exitCodeOfError(error)
}
