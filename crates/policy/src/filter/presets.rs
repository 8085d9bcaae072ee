//! The filters that have a name. They are data like any policy's own: see [`super::rules`].

use std::sync::LazyLock;

use super::rules::{Action, Condition, ErrorNumber, Filter, Preset, Rule, Test, Width};

const EPERM: Action = Action::Errno(ErrorNumber::of(libc::EPERM));
const ENOSYS: Action = Action::Errno(ErrorNumber::of(libc::ENOSYS));
const ENOENT: Action = Action::Errno(ErrorNumber::of(libc::ENOENT));
const ENOTTY: Action = Action::Errno(ErrorNumber::of(libc::ENOTTY));

const PROT_EXEC: u64 = libc::PROT_EXEC as u64;
const AT_EMPTY_PATH: u64 = libc::AT_EMPTY_PATH as u64;

/// The filter of a preset; none for the one that is none.
#[must_use]
pub fn preset(name: Preset) -> Option<&'static Filter> {
    static DEFAULT: LazyLock<Filter> = LazyLock::new(default);
    static STRICT: LazyLock<Filter> = LazyLock::new(strict);
    match name {
        Preset::Default => Some(&DEFAULT),
        Preset::Strict => Some(&STRICT),
        Preset::Unfiltered => None,
    }
}

/// Calls that ordinary programs make: interpreters with threads and subprocesses, compilers, Node, a JVM, media tools. Of
/// some only what [`super::careful`] says.
const ALLOWED: &str = "
    read write pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2 dup3 fcntl
    flock fsync fdatasync sync syncfs sync_file_range ftruncate fallocate fadvise64 readahead fstat fstatfs fchmod fchown
    fchdir getdents getdents64 sendfile copy_file_range splice tee vmsplice pipe pipe2 eventfd eventfd2 signalfd signalfd4
    timerfd_create timerfd_settime timerfd_gettime memfd_create epoll_create epoll_create1 epoll_ctl epoll_wait
    epoll_pwait epoll_pwait2 poll ppoll select pselect6 inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
    ioctl cachestat

    open openat openat2 creat stat lstat newfstatat statx statfs truncate access faccessat faccessat2 readlink readlinkat
    mkdir mkdirat rmdir mknod mknodat unlink unlinkat symlink symlinkat link linkat rename renameat renameat2 chmod
    fchmodat fchmodat2 chown lchown fchownat utime utimes futimesat utimensat chdir getcwd umask getxattr lgetxattr
    fgetxattr setxattr lsetxattr fsetxattr listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr
    setxattrat getxattrat listxattrat removexattrat file_getattr file_setattr

    brk mmap munmap mremap mprotect madvise msync mincore mlock mlock2 munlock mlockall munlockall membarrier
    get_mempolicy remap_file_pages pkey_alloc pkey_free pkey_mprotect map_shadow_stack mseal

    clone clone3 fork vfork exit exit_group execve execveat wait4 waitid kill tkill tgkill pidfd_open pidfd_send_signal getpid
    getppid gettid getpgid getpgrp setpgid getsid setsid set_tid_address set_robust_list get_robust_list rseq
    restart_syscall futex futex_waitv futex_wake futex_wait futex_requeue prctl arch_prctl personality unshare getrusage
    times sysinfo uname getcpu getrlimit setrlimit prlimit64 rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending
    rt_sigsuspend rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo sigaltstack pause sched_yield sched_getaffinity
    sched_setaffinity sched_getparam sched_setparam sched_getscheduler sched_setscheduler sched_getattr sched_setattr
    sched_get_priority_max sched_get_priority_min sched_rr_get_interval getpriority setpriority ioprio_get ioprio_set

    getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid setresgid
    setfsuid setfsgid setgroups capget capset

    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time alarm getitimer setitimer timer_create
    timer_settime timer_gettime timer_getoverrun timer_delete

    socket socketpair bind listen accept accept4 connect shutdown getsockname getpeername getsockopt setsockopt sendto
    sendmsg sendmmsg recvfrom recvmsg recvmmsg

    shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend
    mq_timedreceive mq_notify mq_getsetattr

    seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self getrandom
";

/// Known, and refused: whoever asks is told that it isn't permitted.
const REFUSED: [&str; 7] = [
    // Other namespaces, other roots, other mounts.
    "setns mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick open_tree open_tree_attr move_mount mount_setattr
    name_to_handle_at open_by_handle_at",
    // Other processes' memory and descriptors.
    "ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp",
    // Large interfaces where most of the kernel's privilege escalations were.
    "bpf userfaultfd perf_event_open io_uring_setup io_uring_enter io_uring_register fanotify_init fanotify_mark",
    // Contexts of asynchronous I/O are counted for the whole machine, and its count is small.
    "io_setup io_destroy io_submit io_cancel io_getevents",
    // Keys are counted per user of the host, and nests would share them.
    "add_key request_key keyctl",
    // Memory placement acts on other processes, too.
    "mbind set_mempolicy set_mempolicy_home_node migrate_pages move_pages",
    // The machine.
    "init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct quotactl quotactl_fd
    nfsservctl syslog lookup_dcookie vhangup settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname
    iopl ioperm modify_ldt uselib ustat sysfs _sysctl",
];

/// Everything that ordinary programs need, and none of the kernel's dangerous corners. What is dangerous is refused with
/// `EPERM`; what isn't listed at all, known to this kernel or not, does not exist (`ENOSYS`), so a new system call is
/// never allowed by accident and programs fall back to the old one.
fn default() -> Filter {
    let mut rules = vec![rule(ALLOWED, &[], Action::Allow)];
    rules.extend(REFUSED.map(|names| rule(names, &[], EPERM)));
    Filter { rules, otherwise: ENOSYS }
}

/// Computation on what is open already: reading, writing, memory, time, ending. No path, no socket, no other process, no
/// exec after the launch's own. A statically linked program starts under it; a dynamic one opens its libraries, and needs
/// a filter that lets it.
const COMPUTATION: &str = "
    read write pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 lseek close fstat poll ppoll select pselect6
    brk munmap mremap madvise mincore msync mlock mlock2 munlock membarrier
    futex futex_waitv futex_wake futex_wait futex_requeue sched_yield getcpu rseq set_tid_address set_robust_list
    arch_prctl uname getpid gettid
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack restart_syscall pause
    tgkill
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time getrandom getrusage times
    exit exit_group
";

/// See [`COMPUTATION`].
fn strict() -> Filter {
    let not_executable =
        [Condition { argument: 2, width: Width::Low, test: Test::Masked { mask: PROT_EXEC, value: 0 } }];
    let only_asks = [Condition { argument: 2, width: Width::Whole, test: Test::Equal(0) }];
    // newfstatat(fd, "", AT_EMPTY_PATH) is fstat to some C libraries. That the path is empty can't be seen by a filter, so
    // they are told that there is no such call, and guess the size of their buffers.
    let empty_path = [Condition { argument: 3, width: Width::Low, test: Test::Equal(AT_EMPTY_PATH) }];
    let rules = vec![
        rule(COMPUTATION, &[], Action::Allow),
        rule("mmap mprotect", &not_executable, Action::Allow),
        rule("getrlimit", &[], Action::Allow),
        rule("prlimit64", &only_asks, Action::Allow),
        // What C libraries ask at their start, and do without.
        rule("readlink readlinkat", &[], ENOENT),
        rule("newfstatat", &empty_path, ENOSYS),
        rule("ioctl", &[], ENOTTY),
    ];
    Filter { rules, otherwise: Action::Report }
}

fn rule(names: &str, when: &[Condition], action: Action) -> Rule {
    let syscalls = names.split_ascii_whitespace().map(str::to_owned).collect();
    Rule { syscalls, when: when.to_vec(), action }
}
