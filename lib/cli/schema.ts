// `nestbox schema`: the JSON schema of policy files, made from the schema that validates them. The package ships it as
// `policy.schema.json`.

import { parseArgs } from 'node:util'

import * as z from 'zod'

import { PolicyInputSchema } from '../policy/schema.ts'
import { ActionSchema, DefaultActionSchema, FilterSchema, PresetSchema, SyscallsSchema } from '../syscalls/schema.ts'
import { UsageError } from './exit.ts'
import { schemaHelp } from './help.ts'
import { write } from './terminal.ts'

/** What an editor shows at each key. */
const DESCRIPTIONS: { readonly [key: string]: string } = {
  version: 'The version of this format.',
  base: "What there is to begin with: 'host-system' has the host's system directories read-only, 'empty' has nothing.",
  mounts: 'What is shown where, in this order. At most one entry per path.',
  proc: "'fresh': a /proc of the nest's own. 'none': no /proc.",
  dev: "'minimal': the harmless devices. 'none': no /dev.",
  rootWritable: 'Whether the program may write to its root directory; private, and gone afterwards.',
  hostname: 'The hostname that the program sees.',
  user: 'The ids that the program sees as its own.',
  env: "The environment. The host's is never read.",
  network: "'none': loopback only. 'shared-loopback': one shared by launches. 'host': no isolation of the network.",
  unixSockets: "Whether the program may make unix sockets: 'none' or 'allow'.",
  syscalls: 'The system calls that the program may make: a preset by name, or rules.',
  coreScheduling: "Whether nobody else's threads may run on the same core at the same time.",
  allowSpeculation:
    'Whether speculative execution stays as the host has it. Otherwise it is restricted, which costs time.',
  limits: 'Bytes and milliseconds; null is no limit.',
  require: 'Protections without which a launch fails.',
}

const errno = z.strictObject({ errno: z.string().regex(/^E[A-Z0-9]+$/) })

/** What those schemas that are functions, for the sake of their messages, say in words that JSON schema has. */
const IN_WORDS: ReadonlyMap<unknown, z.ZodType> = new Map<unknown, z.ZodType>([
  [SyscallsSchema, z.union([PresetSchema, FilterSchema])],
  [ActionSchema, z.union([z.enum(['allow', 'report', 'kill', 'ask']), errno])],
  [DefaultActionSchema, z.union([z.enum(['report', 'kill', 'ask']), errno])],
])

const toJSONSchema = (schema: z.ZodType): z.core.JSONSchema.BaseSchema =>
  z.toJSONSchema(schema, {
    io: 'input',
    unrepresentable: 'any',
    override: ({ zodSchema, jsonSchema }) => {
      const words = IN_WORDS.get(zodSchema)
      if (words === undefined) return
      const { $schema: _, ...said } = toJSONSchema(words)
      Object.assign(jsonSchema, said)
    },
  })

/** The JSON schema of what `policy.parse` reads, with `$schema`, which files may have besides. */
export const policyJSONSchema = (): object => {
  const { $schema, properties = {}, ...schema } = toJSONSchema(PolicyInputSchema)
  const described = Object.entries(properties).map(([key, value]) => {
    const description = DESCRIPTIONS[key]
    return [key, description === undefined || typeof value !== 'object' ? value : { description, ...value }]
  })
  return {
    $schema,
    $id: 'https://unpkg.com/nestbox/policy.schema.json',
    title: 'A policy of nestbox: what a sandboxed program may see and do',
    ...schema,
    properties: { $schema: { type: 'string' }, ...Object.fromEntries(described) },
  }
}

/** Carries out the command; returns what to exit with. */
export const schemaCommand = async (argv: readonly string[]): Promise<number> => {
  let values
  try {
    values = parseArgs({ args: [...argv], options: { help: { type: 'boolean', short: 'h' } } }).values
  } catch (error) {
    throw new UsageError((error as Error).message, { cause: error })
  }
  const text = values.help === true ? schemaHelp() : `${JSON.stringify(policyJSONSchema(), undefined, 2)}\n`
  await write(process.stdout, text)
  return 0
}
