// Constants of the kernel that conditions on arguments compare with: those whose value is the same on every architecture
// that this runs on (but for `ARCH_*`, of a call that only x86-64 has).

// Address families: `socket`, `socketpair`, argument 0.
export const AF_UNSPEC = 0
export const AF_UNIX = 1
export const AF_INET = 2
export const AF_IPX = 4
export const AF_INET6 = 10
export const AF_NETLINK = 16
export const AF_PACKET = 17
export const AF_PPPOX = 24
export const AF_RDS = 21
export const AF_CAN = 29
export const AF_TIPC = 30
export const AF_BLUETOOTH = 31
export const AF_RXRPC = 33
export const AF_ALG = 38
export const AF_NFC = 39
export const AF_VSOCK = 40
export const AF_KCM = 41
export const AF_QIPCRTR = 42
export const AF_SMC = 43
export const AF_XDP = 44

// Socket types, with flags: argument 1.
export const SOCK_STREAM = 1
export const SOCK_DGRAM = 2
export const SOCK_RAW = 3
export const SOCK_SEQPACKET = 5
export const SOCK_CLOEXEC = 0x08_00_00
export const SOCK_NONBLOCK = 0x0800

// Protocols: argument 2.
export const IPPROTO_IP = 0
export const IPPROTO_ICMP = 1
export const IPPROTO_TCP = 6
export const IPPROTO_UDP = 17
export const IPPROTO_ICMPV6 = 58
export const IPPROTO_RAW = 255
export const NETLINK_ROUTE = 0
export const NETLINK_SOCK_DIAG = 4
export const NETLINK_NETFILTER = 12
export const NETLINK_KOBJECT_UEVENT = 15
export const NETLINK_GENERIC = 16
export const NETLINK_AUDIT = 9

// Socket options: `getsockopt`, `setsockopt`.
export const SOL_SOCKET = 1
export const SO_TYPE = 3
export const SO_ERROR = 4
export const SO_PEERCRED = 17
export const SO_REUSEADDR = 2
export const SO_REUSEPORT = 15
export const SO_SNDBUF = 7
export const SO_RCVBUF = 8
export const SO_KEEPALIVE = 9
export const SO_BINDTODEVICE = 25

// Memory: `mmap`, `mprotect`, `pkey_mprotect`, argument 2.
export const PROT_NONE = 0x00
export const PROT_READ = 0x01
export const PROT_WRITE = 0x02
export const PROT_EXEC = 0x04

// Kinds of mappings: `mmap`, argument 3.
export const MAP_SHARED = 0x01
export const MAP_PRIVATE = 0x02
export const MAP_SHARED_VALIDATE = 0x03
export const MAP_FIXED = 0x10
export const MAP_ANONYMOUS = 0x20
export const MAP_GROWSDOWN = 0x0100
export const MAP_DENYWRITE = 0x0800
export const MAP_LOCKED = 0x2000
export const MAP_NORESERVE = 0x4000
export const MAP_POPULATE = 0x8000
export const MAP_NONBLOCK = 0x01_00_00
export const MAP_STACK = 0x02_00_00
export const MAP_HUGETLB = 0x04_00_00
export const MAP_FIXED_NOREPLACE = 0x10_00_00

// `mremap`, argument 3.
export const MREMAP_MAYMOVE = 0x01
export const MREMAP_FIXED = 0x02
export const MREMAP_DONTUNMAP = 0x04

// `madvise`, argument 2.
export const MADV_NORMAL = 0
export const MADV_RANDOM = 1
export const MADV_SEQUENTIAL = 2
export const MADV_WILLNEED = 3
export const MADV_DONTNEED = 4
export const MADV_FREE = 8
export const MADV_REMOVE = 9
export const MADV_DONTFORK = 10
export const MADV_DOFORK = 11
export const MADV_MERGEABLE = 12
export const MADV_HUGEPAGE = 14
export const MADV_NOHUGEPAGE = 15
export const MADV_DONTDUMP = 16
export const MADV_DODUMP = 17
export const MADV_WIPEONFORK = 18
export const MADV_KEEPONFORK = 19
export const MADV_COLD = 20
export const MADV_PAGEOUT = 21
export const MADV_POPULATE_READ = 22
export const MADV_POPULATE_WRITE = 23
export const MADV_COLLAPSE = 25

// `clone`, `unshare`, argument 0; `setns`, argument 1.
export const CLONE_VM = 0x0100
export const CLONE_FS = 0x0200
export const CLONE_FILES = 0x0400
export const CLONE_SIGHAND = 0x0800
export const CLONE_PIDFD = 0x1000
export const CLONE_PTRACE = 0x2000
export const CLONE_VFORK = 0x4000
export const CLONE_PARENT = 0x8000
export const CLONE_THREAD = 0x01_00_00
export const CLONE_NEWNS = 0x02_00_00
export const CLONE_SYSVSEM = 0x04_00_00
export const CLONE_SETTLS = 0x08_00_00
export const CLONE_PARENT_SETTID = 0x10_00_00
export const CLONE_CHILD_CLEARTID = 0x20_00_00
export const CLONE_DETACHED = 0x40_00_00
export const CLONE_UNTRACED = 0x80_00_00
export const CLONE_CHILD_SETTID = 0x01_00_00_00
export const CLONE_NEWCGROUP = 0x02_00_00_00
export const CLONE_NEWUTS = 0x04_00_00_00
export const CLONE_NEWIPC = 0x08_00_00_00
export const CLONE_NEWUSER = 0x10_00_00_00
export const CLONE_NEWPID = 0x20_00_00_00
export const CLONE_NEWNET = 0x40_00_00_00
export const CLONE_IO = 0x80_00_00_00
export const CLONE_NEWTIME = 0x80

// Terminals: `ioctl`, argument 1.
export const TCGETS = 0x5401
export const TCSETS = 0x5402
export const TCSETSW = 0x5403
export const TCSETSF = 0x5404
export const TIOCSCTTY = 0x540e
export const TIOCGPGRP = 0x540f
export const TIOCSPGRP = 0x5410
export const TIOCSTI = 0x5412
export const TIOCGWINSZ = 0x5413
export const TIOCSWINSZ = 0x5414
export const TIOCLINUX = 0x541c
export const TIOCCONS = 0x541d
export const TIOCSETD = 0x5423
export const TIOCNOTTY = 0x5422
export const FIONREAD = 0x541b
export const FIONBIO = 0x5421
export const FIOCLEX = 0x5451
export const FIONCLEX = 0x5450

// `fcntl`, argument 1.
export const F_DUPFD = 0
export const F_GETFD = 1
export const F_SETFD = 2
export const F_GETFL = 3
export const F_SETFL = 4
export const F_GETLK = 5
export const F_SETLK = 6
export const F_SETLKW = 7
export const F_SETOWN = 8
export const F_GETOWN = 9
export const F_SETSIG = 10
export const F_DUPFD_CLOEXEC = 1030
export const F_SETPIPE_SZ = 1031
export const F_GETPIPE_SZ = 1032
export const F_ADD_SEALS = 1033
export const F_GET_SEALS = 1034

// How a file is opened: `open`, argument 1; `openat`, argument 2. The flags that have other values on other architectures are
// left out.
export const O_RDONLY = 0x00
export const O_WRONLY = 0x01
export const O_RDWR = 0x02
export const O_ACCMODE = 0x03
export const O_CREAT = 0x40
export const O_EXCL = 0x80
export const O_NOCTTY = 0x0100
export const O_TRUNC = 0x0200
export const O_APPEND = 0x0400
export const O_NONBLOCK = 0x0800
export const O_CLOEXEC = 0x08_00_00

// Paths: what the calls whose names end in `at` take.
export const AT_FDCWD = -100
export const AT_SYMLINK_NOFOLLOW = 0x0100
export const AT_REMOVEDIR = 0x0200
export const AT_SYMLINK_FOLLOW = 0x0400
export const AT_EMPTY_PATH = 0x1000

// `futex`, argument 1, without its flags.
export const FUTEX_WAIT = 0
export const FUTEX_WAKE = 1
export const FUTEX_REQUEUE = 3
export const FUTEX_CMP_REQUEUE = 4
export const FUTEX_WAKE_OP = 5
export const FUTEX_LOCK_PI = 6
export const FUTEX_UNLOCK_PI = 7
export const FUTEX_TRYLOCK_PI = 8
export const FUTEX_WAIT_BITSET = 9
export const FUTEX_WAKE_BITSET = 10
export const FUTEX_PRIVATE_FLAG = 0x80
export const FUTEX_CLOCK_REALTIME = 0x0100

// `prctl`, argument 0; `PR_SET_VMA`: argument 1.
export const PR_SET_PDEATHSIG = 1
export const PR_GET_DUMPABLE = 3
export const PR_SET_DUMPABLE = 4
export const PR_SET_NAME = 15
export const PR_GET_NAME = 16
export const PR_SET_SECCOMP = 22
export const PR_CAPBSET_READ = 23
export const PR_SET_NO_NEW_PRIVS = 38
export const PR_GET_NO_NEW_PRIVS = 39
export const PR_SET_PTRACER = 0x59_61_6d_61
export const PR_SET_VMA = 0x53_56_4d_41
export const PR_SET_VMA_ANON_NAME = 0

// `rt_sigprocmask`, argument 0.
export const SIG_BLOCK = 0
export const SIG_UNBLOCK = 1
export const SIG_SETMASK = 2

// `getrandom`, argument 2.
export const GRND_NONBLOCK = 0x01
export const GRND_RANDOM = 0x02
export const GRND_INSECURE = 0x04

// `arch_prctl`, argument 0.
export const ARCH_SET_GS = 0x1001
export const ARCH_SET_FS = 0x1002
export const ARCH_GET_FS = 0x1003
export const ARCH_GET_GS = 0x1004

// Resources: `getrlimit`, `setrlimit`, argument 0; `prlimit64`, argument 1.
export const RLIMIT_CPU = 0
export const RLIMIT_FSIZE = 1
export const RLIMIT_DATA = 2
export const RLIMIT_STACK = 3
export const RLIMIT_CORE = 4
export const RLIMIT_RSS = 5
export const RLIMIT_NPROC = 6
export const RLIMIT_NOFILE = 7
export const RLIMIT_MEMLOCK = 8
export const RLIMIT_AS = 9

// `bpf`, argument 0.
export const BPF_MAP_LOOKUP_ELEM = 1
export const BPF_MAP_GET_NEXT_KEY = 4
export const BPF_OBJ_GET = 7
export const BPF_MAP_GET_NEXT_ID = 12
export const BPF_MAP_GET_FD_BY_ID = 14
export const BPF_OBJ_GET_INFO_BY_FD = 15

// `seccomp`, argument 0; flags: argument 1.
export const SECCOMP_SET_MODE_STRICT = 0
export const SECCOMP_SET_MODE_FILTER = 1
export const SECCOMP_GET_ACTION_AVAIL = 2
export const SECCOMP_FILTER_FLAG_TSYNC = 0x01
export const SECCOMP_FILTER_FLAG_NEW_LISTENER = 0x08
