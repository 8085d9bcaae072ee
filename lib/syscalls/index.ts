// `nestbox/syscalls`: what conditions on the arguments of system calls are made of.

export { arg, arg64 } from './arguments.ts'
export type { ArgumentMatcher, ArgumentValue } from './arguments.ts'
export type { ArgumentCondition } from './types.ts'
export * from './constants.ts'
