// nestbox: a fork server for Node.js that launches isolated Linux processes on request. This file is the public surface;
// the request surface of sandbox2 is `nestbox/sandbox2`.

export { run, unsandboxed } from './lib/shared.ts'
export { Sandbox } from './lib/sandbox.ts'
export { ForkServer } from './lib/server.ts'
export { policy } from './lib/policy/policy.ts'
export { syscallFilter } from './lib/syscalls/filter.ts'
export { trace } from './lib/trace.ts'
export { learn } from './lib/supervision/learn.ts'
export { doctor } from './lib/doctor/doctor.ts'
export {
  AbortError,
  ExecError,
  ForkServerError,
  NestboxError,
  PolicyError,
  ProcessError,
  QueueFullError,
  RequestError,
  SpawnError,
  UnsupportedPlatformError,
} from './lib/errors.ts'
export type { Issue } from './lib/errors.ts'
export type { ExitEvent, LaunchEvent, ViolationEvent } from './lib/diagnostics.ts'
export type {
  BindOptions,
  FileOptions,
  Ids,
  LimitName,
  Limits,
  LimitsJSON,
  MountJSON,
  MountPointOptions,
  Network,
  Policy,
  PolicyBase,
  PolicyBuilder,
  PolicyFactory,
  PolicyJSON,
  Requirement,
  Size,
  Syscalls,
  TmpfsOptions,
  UnixSockets,
} from './lib/policy/types.ts'
export type { CrashFrame, CrashMap, CrashReport, CrashThread } from './lib/launch/crash-types.ts'
export type {
  ArgumentCondition,
  CpuFences,
  DefaultAction,
  ErrnoName,
  SyscallAction,
  SyscallFilter,
  SyscallFilterJSON,
  SyscallPreset,
  SyscallRuleJSON,
} from './lib/syscalls/types.ts'
export type {
  CommonResult,
  Isolation,
  LandlockIsolation,
  Launcher,
  LaunchFile,
  LaunchOptions,
  LinesOptions,
  OutputFailure,
  OutputFile,
  PassedFd,
  ResourceUsage,
  Result,
  Sandboxee,
  SandboxeeOf,
  Stdio,
  StdioExtra,
  StdioIn,
  StdioOut,
  Timings,
} from './lib/launch/types.ts'
export type {
  LearnedCall,
  LearnOptions,
  Lesson,
  SocketAddress,
  SyscallCall,
  SyscallCaller,
  SyscallDecision,
  SyscallHandler,
  SyscallMemory,
  Violation,
} from './lib/supervision/types.ts'
export type {
  ForkServerOptions,
  ForkServerStats,
  Percentiles,
  Prewarm,
  SandboxOptions,
  SandboxStats,
} from './lib/types.ts'
export type { Trace, TraceEvent } from './lib/trace.ts'
export type { DoctorBlocker, DoctorCheck, DoctorError, DoctorReport } from './lib/doctor/types.ts'
