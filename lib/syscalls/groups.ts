// The groups of system calls that a filter allows by one method each: those of sandbox2's policy builder, and a few more.
//
// They are data, from which come the filter's methods, their documentation (`./group-methods.ts`) and
// `docs/syscall-groups.md`: see `scripts/syscall-groups.mjs`. A rule that is a fallback comes after all of a filter's other
// rules, so that a program which is allowed the call is not told that there is none.

import { arg, arg64 } from './arguments.ts'
import * as c from './constants.ts'
import type { ArgumentCondition, ErrnoName, SyscallRuleJSON } from './types.ts'

/** What one method adds. */
export interface Group {
  /** What it is for: one sentence. */
  readonly about: string
  readonly rules: readonly SyscallRuleJSON[]
  /** Rules for what nothing else in the filter matches. */
  readonly fallbacks: readonly SyscallRuleJSON[]
}

const words = (text: string): string[] => text.split(' ')

const allow = (names: string, ...when: ArgumentCondition[]): SyscallRuleJSON => ({
  syscalls: words(names),
  when,
  action: 'allow',
})

const group = (about: string, ...parts: (SyscallRuleJSON | Group)[]): Group => ({
  about,
  rules: parts.flatMap((part) => ('rules' in part ? part.rules : [part])),
  fallbacks: parts.flatMap((part) => ('rules' in part ? part.fallbacks : [])),
})

/** Calls that fail, unless a rule says otherwise. */
const fallback = (names: string, errno: ErrnoName): Group => ({
  about: '',
  rules: [],
  fallbacks: [{ syscalls: words(names), when: [], action: { errno } }],
})

const NO_EXEC = arg(2).hasNone(c.PROT_EXEC)
const READ_WRITE = c.PROT_READ | c.PROT_WRITE
const READ_EXEC = c.PROT_READ | c.PROT_EXEC
const PRIVATE_MEMORY = c.MAP_PRIVATE | c.MAP_ANONYMOUS

/** Memory that is mapped with this protection and one of these sets of flags. */
const map = (protection: number, ...flags: number[]): SyscallRuleJSON =>
  allow('mmap', arg(2).eq(protection), arg(3).oneOf(...flags))

/** The operation of a futex is what is left without its flags. */
const futex = (operation: number): SyscallRuleJSON =>
  allow('futex', arg(1).maskedEq(~(c.FUTEX_PRIVATE_FLAG | c.FUTEX_CLOCK_REALTIME), operation))

/** What `allowFutexOp` adds. */
export const futexGroup = (operation: number): Group => group('', futex(operation))

const access = group('Asks whether a path may be used.', allow('access faccessat faccessat2'))
const open = group('Opens files.', allow('creat open openat'))
const read = group('Reads from what is open.', allow('read readv preadv pread64'))
const write = group('Writes to what is open.', allow('write writev pwritev pwrite64'))
const poll = group('Waits for what is open.', allow('poll ppoll'))
const mkdir = group('Makes directories.', allow('mkdir mkdirat'))
const getPIDs = group('Asks for the ids of the process, its parent and its thread.', allow('getpid getppid gettid'))
const time = group('Asks for the time.', allow('time gettimeofday clock_gettime'))
const epollWait = group('Waits on an epoll.', allow('epoll_wait epoll_pwait epoll_pwait2'))
const stat = group('Asks about files and file systems.', allow('stat lstat fstat newfstatat statx statfs fstatfs'))
const getRandom = group('Asks for random bytes.', allow('getrandom', arg(2).oneOf(0, c.GRND_NONBLOCK)))
const getRlimit = group('Asks for limits.', allow('getrlimit'), allow('prlimit64', arg64(2).eq(0)))
const prctlSetVma = group(
  'Names memory, to be seen in `/proc/self/maps`.',
  allow('prctl', arg(0).eq(c.PR_SET_VMA), arg(1).eq(c.PR_SET_VMA_ANON_NAME)),
)
const limitedMadvise = group(
  'Advises on memory in ways that allocators do.',
  allow(
    'madvise',
    arg(2).oneOf(
      c.MADV_SEQUENTIAL,
      c.MADV_DONTNEED,
      c.MADV_REMOVE,
      c.MADV_HUGEPAGE,
      c.MADV_NOHUGEPAGE,
      c.MADV_DONTDUMP,
      c.MADV_COLLAPSE,
    ),
  ),
)
const wipeOnFork = group(
  'Marks memory to be wiped in children, and probes for that.',
  allow('madvise', arg(2).oneOf(c.MADV_WIPEONFORK, -1)),
)
const mmapWithoutExec = group('Maps memory and files that are not executable.', allow('mmap', NO_EXEC))
const safeFcntl = group(
  'Flags, locks and copies of what is open.',
  allow(
    'fcntl',
    arg(1).oneOf(
      c.F_GETFD,
      c.F_SETFD,
      c.F_GETFL,
      c.F_SETFL,
      c.F_GETLK,
      c.F_SETLK,
      c.F_SETLKW,
      c.F_DUPFD,
      c.F_DUPFD_CLOEXEC,
    ),
  ),
)

/** What `allowRestartableSequences` adds. */
export const restartableSequences = (slow: boolean): Group =>
  group(
    '',
    allow('rseq getcpu membarrier close'),
    map(READ_WRITE, PRIVATE_MEMORY),
    futex(c.FUTEX_WAIT),
    futex(c.FUTEX_WAKE),
    read,
    open,
    poll,
    allow('rt_sigprocmask', arg(0).eq(c.SIG_SETMASK)),
    prctlSetVma,
    ...(slow ? [allow('sched_getaffinity sched_setaffinity')] : []),
  )

const systemMalloc = group(
  "The C library's allocator: `malloc`, `free`.",
  allow('munmap brk'),
  futex(c.FUTEX_WAKE),
  allow('mremap', arg(3).eq(c.MREMAP_MAYMOVE)),
  map(READ_WRITE, PRIVATE_MEMORY),
  map(c.PROT_NONE, PRIVATE_MEMORY | c.MAP_NORESERVE),
)
const tcMalloc = group(
  'The allocator tcmalloc.',
  time,
  restartableSequences(false),
  allow('munmap nanosleep brk mincore membarrier lseek'),
  limitedMadvise,
  prctlSetVma,
  poll,
  getPIDs,
  allow('mprotect', arg(2).oneOf(READ_WRITE, c.PROT_NONE)),
  map(READ_WRITE, PRIVATE_MEMORY),
  map(c.PROT_NONE, PRIVATE_MEMORY | c.MAP_NORESERVE, PRIVATE_MEMORY | c.MAP_FIXED_NOREPLACE, PRIVATE_MEMORY),
)
const scudoMalloc = group(
  'The allocator scudo.',
  time,
  allow('munmap nanosleep'),
  futex(c.FUTEX_WAKE),
  limitedMadvise,
  getRandom,
  getPIDs,
  wipeOnFork,
  fallback('open openat', 'ENOENT'),
  allow('mmap', arg(2).eq(READ_WRITE), arg(3).maskedEq(~(c.MAP_FIXED | c.MAP_NORESERVE), PRIVATE_MEMORY)),
  map(c.PROT_NONE, PRIVATE_MEMORY | c.MAP_NORESERVE),
)
const staticStartup = group(
  'The start of a statically linked program, up to `main`.',
  getRlimit,
  getRandom,
  allow('uname brk set_tid_address set_robust_list rt_sigprocmask'),
  futex(c.FUTEX_WAIT_BITSET),
  // The two signals that the C library keeps for itself.
  allow('rt_sigaction', arg(0).oneOf(32, 33)),
  allow('arch_prctl', arg(0).eq(c.ARCH_SET_FS)),
  allow('mprotect', arg(2).eq(c.PROT_READ)),
  fallback('readlink readlinkat', 'ENOENT'),
  fallback('sigaltstack rseq', 'ENOSYS'),
)
const dynamicStartup = group(
  'The start of a dynamically linked program: finds, opens and maps its libraries.',
  access,
  open,
  read,
  stat,
  allow('lseek close munmap'),
  allow('mprotect', arg(2).oneOf(c.PROT_READ, c.PROT_NONE, READ_WRITE, READ_EXEC)),
  staticStartup,
  // Of a file: its segments. Memory of the program's own is never executable.
  allow(
    'mmap',
    arg(2).oneOf(c.PROT_READ, READ_WRITE, READ_EXEC),
    arg(3).maskedEq(~(c.MAP_FIXED | c.MAP_DENYWRITE), c.MAP_PRIVATE),
  ),
  allow('mmap', arg(2).eq(READ_WRITE), arg(3).maskedEq(~c.MAP_FIXED, PRIVATE_MEMORY)),
)

/** By the name of the method. */
export const GROUPS = {
  allowAccess: access,
  allowAlarm: group('Sets timers that end in a signal.', allow('alarm setitimer')),
  allowChmod: group('Changes modes.', allow('chmod fchmod fchmodat fchmodat2')),
  allowChown: group('Changes owners.', allow('chown lchown fchown fchownat')),
  allowDup: group('Copies descriptors.', allow('dup dup2 dup3')),
  allowDynamicStartup: dynamicStartup,
  allowEpoll: group('Makes an epoll and waits on it.', allow('epoll_create epoll_create1 epoll_ctl'), epollWait),
  allowEpollWait: epollWait,
  allowEventFd: group('Makes event descriptors.', allow('eventfd eventfd2')),
  allowExec: group('Executes programs, whose start has to be allowed as well.', allow('execve execveat')),
  allowExit: group('Ends a thread, and the process.', allow('exit exit_group')),
  allowFork: group('Makes processes and threads, and no namespaces.', allow('fork vfork clone clone3')),
  allowGetIDs: group(
    'Asks for user and group ids.',
    allow('getuid geteuid getresuid getgid getegid getresgid getgroups'),
  ),
  allowGetPGIDs: group('Asks for process groups.', allow('getpgid getpgrp')),
  allowGetPIDs: getPIDs,
  allowGetRandom: getRandom,
  allowGetRlimit: getRlimit,
  allowHandleSignals: group(
    'Handles and blocks signals.',
    allow('restart_syscall rt_sigaction rt_sigreturn rt_sigprocmask sigaltstack'),
  ),
  allowInotifyInit: group('Makes an inotify.', allow('inotify_init inotify_init1')),
  allowLimitedMadvise: limitedMadvise,
  allowLink: group('Makes hard links.', allow('link linkat')),
  allowLlvmCoverage: group(
    'A program built for coverage by LLVM, which writes its counts when it ends.',
    stat,
    getPIDs,
    open,
    read,
    write,
    mkdir,
    safeFcntl,
    allow('munmap close lseek'),
    tcMalloc,
    map(READ_WRITE, c.MAP_SHARED),
  ),
  allowLlvmSanitizers: group(
    "A program built with LLVM's sanitizers.",
    mmapWithoutExec,
    allow('munmap sched_yield sched_getaffinity sigaltstack set_robust_list'),
    allow('mprotect', arg(2).hasNone(~READ_WRITE)),
    allow('madvise', arg(2).oneOf(c.MADV_DONTDUMP, c.MADV_DONTNEED, c.MADV_NOHUGEPAGE)),
    open,
    getPIDs,
    dynamicStartup,
    fallback('ioctl', 'EPERM'),
  ),
  allowLogForwarding: group(
    'Writes logs, and aborts.',
    write,
    systemMalloc,
    tcMalloc,
    getPIDs,
    allow('clock_gettime gettid close'),
    allow('rt_sigprocmask', arg(0).eq(c.SIG_BLOCK)),
    getRlimit,
    allow('kill', arg(0).eq(0), arg(1).eq(6)),
  ),
  allowMadvisePopulate: group(
    'Fills memory ahead.',
    allow('madvise', arg(2).oneOf(c.MADV_POPULATE_READ, c.MADV_POPULATE_WRITE)),
  ),
  allowMkdir: mkdir,
  allowMlock: group('Keeps memory from being swapped out.', allow('mlock munlock mlock2')),
  allowMmap: group('Maps memory and files, executable ones too.', allow('mmap')),
  allowMmapWithoutExec: mmapWithoutExec,
  allowMprotect: group('Changes protection, to executable too.', allow('mprotect')),
  allowMprotectWithoutExec: group('Changes protection, but not to executable.', allow('mprotect', NO_EXEC)),
  allowOpen: open,
  allowPipe: group('Makes pipes.', allow('pipe pipe2')),
  allowPkeyMprotect: group('Changes protection and key, to executable too.', allow('pkey_mprotect')),
  allowPkeyMprotectWithoutExec: group(
    'Changes protection and key, but not to executable.',
    allow('pkey_mprotect', NO_EXEC),
  ),
  allowPoll: poll,
  allowPosixTimers: group(
    "Timers of the process's own.",
    allow('timer_create timer_delete timer_settime timer_gettime timer_getoverrun'),
  ),
  allowPrctlSetName: group('Names the thread.', allow('prctl', arg(0).eq(c.PR_SET_NAME))),
  allowPrctlSetVma: prctlSetVma,
  allowRead: read,
  allowReaddir: group('Lists directories.', allow('getdents getdents64')),
  allowReadlink: group('Reads symbolic links.', allow('readlink readlinkat')),
  allowRename: group('Renames files.', allow('rename renameat renameat2')),
  allowSafeBpf: group(
    'Looks things up in BPF maps that were passed.',
    allow(
      'bpf',
      arg(0).oneOf(
        c.BPF_MAP_LOOKUP_ELEM,
        c.BPF_OBJ_GET,
        c.BPF_MAP_GET_NEXT_KEY,
        c.BPF_MAP_GET_NEXT_ID,
        c.BPF_MAP_GET_FD_BY_ID,
        c.BPF_OBJ_GET_INFO_BY_FD,
      ),
    ),
  ),
  allowSafeFcntl: safeFcntl,
  allowScudoMalloc: scudoMalloc,
  allowSelect: group('Waits for what is open, as of old.', allow('select pselect6')),
  allowSetRlimit: group('Lowers limits.', allow('prlimit64 setrlimit')),
  allowSleep: group('Sleeps.', allow('clock_nanosleep nanosleep')),
  allowSockets: group(
    'Uses the network that the policy gives.',
    allow(
      'socket socketpair bind listen accept accept4 connect shutdown getsockname getpeername getsockopt setsockopt',
    ),
    allow('sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg'),
  ),
  allowStat: stat,
  allowStaticStartup: staticStartup,
  allowSymlink: group('Makes symbolic links.', allow('symlink symlinkat')),
  allowSystemMalloc: systemMalloc,
  allowTCGETS: group("Asks for a terminal's settings: `isatty`.", allow('ioctl', arg(1).eq(c.TCGETS))),
  allowTcMalloc: tcMalloc,
  allowThreads: group(
    'Makes threads, and no processes.',
    allow('clone', arg64(0).hasAll(c.CLONE_THREAD), arg64(0).hasNone(0x7e_02_00_00)),
    fallback('clone3', 'ENOSYS'),
    allow('futex set_robust_list set_tid_address rseq sched_yield gettid rt_sigprocmask madvise'),
    allow('mprotect', NO_EXEC),
    allow('mmap', NO_EXEC),
    allow('munmap exit'),
    allow('sched_getaffinity'),
  ),
  allowTime: time,
  allowUnlink: group('Removes files and directories.', allow('rmdir unlink unlinkat')),
  allowUtime: group('Sets the times of files.', allow('futimesat utime utimes utimensat')),
  allowWait: group('Waits for children.', allow('wait4 waitid')),
  allowWipeOnFork: wipeOnFork,
  allowWrite: write,
} as const satisfies Record<string, Group>

/** The name of a group's method. */
export type GroupName = keyof typeof GROUPS
