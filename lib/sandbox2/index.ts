// `nestbox/sandbox2`: the request surface of sandbox2's fork server, for those who come from there or need a mode that
// the main entry has no word for.

export { ForkClient } from './client.ts'
export { mountTree } from './mount-tree.ts'
export { forkRequest } from './request.ts'
export type {
  CloneFlag,
  DirectoryOptions,
  Exit,
  ForkMode,
  ForkReply,
  ForkRequest,
  ForkRequestBuilder,
  InitializationType,
  MonitorType,
  MountTree,
  MountTreeEntry,
  NetnsMode,
  NodeOptions,
  Pivot,
  RequestDescriptors,
} from './types.ts'
