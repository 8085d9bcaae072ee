// From calls as the core reports them to what callers see.

import type { NativeSystemCall } from '#binding'

import type { SocketAddress, SyscallCall, Violation } from './types.ts'

/** What is absent has no key, so that results compare and print as they are typed. */
const addressOf = (call: NativeSystemCall): SocketAddress | undefined => {
  const found = call.memory.find(({ kind }) => kind === 'address')?.address
  if (found === undefined) return undefined
  const { family, address, port, path } = found
  return {
    family,
    ...(address === undefined ? {} : { address }),
    ...(port === undefined ? {} : { port }),
    ...(path === undefined ? {} : { path }),
  }
}

/** The call, without the bytes that its pointers led to. */
export const toViolation = (call: NativeSystemCall): Violation => {
  const { syscall, number, args, arch, instructionPointer, pid, tid } = call
  const [path, otherPath] = call.memory.filter(({ kind }) => kind === 'path').map(({ content }) => content.toString())
  const address = addressOf(call)
  return {
    syscall,
    number,
    args,
    arch,
    instructionPointer,
    ...(pid === undefined ? {} : { pid }),
    tid,
    ...(path === undefined ? {} : { path }),
    ...(otherPath === undefined ? {} : { otherPath }),
    ...(address === undefined ? {} : { address }),
  }
}

/** The call, for a handler. */
export const toCall = (call: NativeSystemCall): SyscallCall => ({
  ...toViolation(call),
  memory: call.memory.map(({ argument, kind, content, cut }) => ({
    argument,
    kind,
    content: new Uint8Array(content.buffer, content.byteOffset, content.length),
    cut,
  })),
})
