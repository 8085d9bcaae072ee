//! The default syscall filter, as a classic BPF program.
//!
//! Everything that ordinary programs need (interpreters with threads and subprocesses, compilers, Node, a JVM, media
//! tools), and none of the kernel's dangerous corners. What is dangerous is refused with `EPERM`; a number that isn't
//! listed at all, known to this kernel or not, does not exist (`ENOSYS`), so a new system call is never allowed by
//! accident and programs fall back to the old one. The x32 numbers are such, and another architecture's calls kill.
//!
//! The program is a binary search over runs of numbers with one verdict, not the chain of comparisons that common
//! compilers emit (seccompiler among them). Not only is it entered for each system call that looks at arguments: when a
//! filter is installed, the kernel walks it once for every number there is, to find those that it need not run for. With
//! a chain that would be the dearest step of a launch: the whole installation took 51 µs with this program and 742 µs with
//! seccompiler's for 327 calls without conditions (Linux 6.18, JIT on). Its correctness is established by running it: the tests interpret it for every number.
//!
//! Compiled once per process; what comes out is `Plan.filter`.

use std::sync::LazyLock;

use crate::UnixSockets;

/// The program for the architecture that this runs on: an array of `struct sock_filter`, in memory layout.
#[must_use]
pub fn default(unix_sockets: UnixSockets) -> &'static [u8] {
    static NONE: LazyLock<Vec<u8>> = LazyLock::new(|| encode(&program(UnixSockets::None)));
    static ALLOW: LazyLock<Vec<u8>> = LazyLock::new(|| encode(&program(UnixSockets::Allow)));
    match unix_sockets {
        UnixSockets::None => &NONE,
        UnixSockets::Allow => &ALLOW,
    }
}

// ---- what is allowed ---------------------------------------------------------------------------------------------------

/// What becomes of a system call.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Allow,
    /// It fails with this error.
    Refuse(i32),
    /// The first rule whose conditions all hold decides; the other verdict is for when there is none.
    Examine(Vec<Rule>, Box<Verdict>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    conditions: Vec<Condition>,
    verdict: Verdict,
}

/// On the low half of an argument: all that are examined are 32 bits wide to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    argument: u32,
    test: Test,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Equals(u32),
    /// At least one of these bits is set.
    HasAny(u32),
}

macro_rules! numbers {
    ($($name:ident)*) => { [$(concat_number!($name)),*] };
}

/// `libc` names them all alike on every architecture that has them.
macro_rules! concat_number {
    ($name:ident) => {
        libc::$name as u32
    };
}

/// Calls that need no look at their arguments.
const ALLOWED: &[u32] = &numbers![
    // Files by descriptor.
    SYS_read SYS_write SYS_pread64 SYS_pwrite64 SYS_readv SYS_writev SYS_preadv SYS_pwritev SYS_preadv2 SYS_pwritev2
    SYS_lseek SYS_close SYS_close_range SYS_dup SYS_dup3 SYS_fcntl SYS_flock SYS_fsync SYS_fdatasync SYS_sync
    SYS_syncfs SYS_ftruncate SYS_fallocate SYS_fadvise64 SYS_readahead SYS_fstat SYS_fstatfs
    SYS_fchmod SYS_fchown SYS_fchdir SYS_getdents64 SYS_sendfile SYS_copy_file_range SYS_splice SYS_tee SYS_vmsplice
    SYS_pipe2 SYS_eventfd2 SYS_signalfd4 SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime SYS_memfd_create
    SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_ppoll SYS_pselect6
    SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch
    SYS_io_setup SYS_io_destroy SYS_io_submit SYS_io_cancel SYS_io_getevents
    // Files by path.
    SYS_openat SYS_openat2 SYS_newfstatat SYS_statx SYS_statfs SYS_truncate SYS_faccessat SYS_faccessat2 SYS_readlinkat
    SYS_mkdirat SYS_mknodat SYS_unlinkat SYS_symlinkat SYS_linkat SYS_renameat SYS_renameat2 SYS_fchmodat
    SYS_fchownat SYS_utimensat SYS_chdir SYS_getcwd SYS_umask
    SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_listxattr SYS_llistxattr
    SYS_flistxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr
    // Memory.
    SYS_brk SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_msync SYS_mincore SYS_mlock SYS_mlock2
    SYS_munlock SYS_mlockall SYS_munlockall SYS_membarrier SYS_get_mempolicy SYS_remap_file_pages
    SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect
    // Processes, threads and signals.
    SYS_exit SYS_exit_group SYS_execve SYS_execveat SYS_wait4 SYS_waitid SYS_kill SYS_tkill SYS_tgkill
    SYS_pidfd_open SYS_pidfd_send_signal SYS_getpid SYS_getppid SYS_gettid SYS_getpgid SYS_setpgid
    SYS_getsid SYS_setsid SYS_set_tid_address SYS_set_robust_list SYS_get_robust_list SYS_rseq SYS_restart_syscall
    SYS_futex SYS_futex_waitv SYS_prctl SYS_getrusage SYS_times SYS_sysinfo SYS_uname SYS_getcpu
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigpending SYS_rt_sigsuspend SYS_rt_sigtimedwait
    SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_sigaltstack
    SYS_sched_yield SYS_sched_getaffinity SYS_sched_setaffinity SYS_sched_getparam SYS_sched_setparam
    SYS_sched_getscheduler SYS_sched_setscheduler SYS_sched_getattr SYS_sched_setattr SYS_sched_get_priority_max
    SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_getpriority SYS_setpriority SYS_ioprio_get SYS_ioprio_set
    // Ids and capabilities: a sandboxee has one of each id, and none of the others.
    SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid SYS_getgroups SYS_setuid SYS_setgid
    SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setfsuid SYS_setfsgid SYS_setgroups SYS_capget SYS_capset
    // Time.
    SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_nanosleep SYS_gettimeofday SYS_getitimer SYS_setitimer
    SYS_timer_create SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete
    // Sockets; which ones can be made is decided at socket(2).
    SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_shutdown SYS_getsockname SYS_getpeername SYS_getsockopt
    SYS_setsockopt SYS_sendto SYS_sendmsg SYS_sendmmsg SYS_recvfrom SYS_recvmsg SYS_recvmmsg
    // System V and POSIX IPC: the nest's own.
    SYS_shmget SYS_shmat SYS_shmctl SYS_shmdt SYS_semget SYS_semop SYS_semctl SYS_semtimedop SYS_msgget SYS_msgsnd
    SYS_msgrcv SYS_msgctl SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive SYS_mq_notify
    SYS_mq_getsetattr
    // Restricting oneself further.
    SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self
    SYS_getrandom
];

/// Calls newer than the oldest libc that this is built with; the same numbers everywhere.
const ALLOWED_NEWER: &[u32] = &[
    451, // cachestat
    452, // fchmodat2
    453, // map_shadow_stack
    454, // futex_wake
    455, // futex_wait
    456, // futex_requeue
    462, // mseal
    463, // setxattrat
    464, // getxattrat
    465, // listxattrat
    466, // removexattrat
    468, // file_getattr
    469, // file_setattr
];

/// The forms that newer architectures dropped.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[u32] = &numbers![
    SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_readlink SYS_mkdir SYS_rmdir SYS_mknod SYS_unlink SYS_symlink
    SYS_link SYS_rename SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_futimesat SYS_getdents SYS_dup2
    SYS_pipe SYS_eventfd SYS_signalfd SYS_epoll_create SYS_epoll_wait SYS_poll SYS_select SYS_inotify_init
    SYS_fork SYS_vfork SYS_pause SYS_alarm SYS_time SYS_getpgrp SYS_getrlimit SYS_setrlimit SYS_arch_prctl
    SYS_sync_file_range
];

#[cfg(target_arch = "aarch64")]
const ALLOWED_HERE: &[u32] = &[84]; // sync_file_range

/// Known, and refused: whoever asks is told that it isn't permitted.
const REFUSED: &[u32] = &numbers![
    // Other namespaces, other roots, other mounts.
    SYS_setns SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_fsopen SYS_fsconfig SYS_fsmount SYS_fspick
    SYS_open_tree SYS_move_mount SYS_mount_setattr SYS_name_to_handle_at SYS_open_by_handle_at
    // Other processes' memory and descriptors.
    SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev SYS_pidfd_getfd SYS_kcmp
    // Large interfaces where most of the kernel's privilege escalations were.
    SYS_bpf SYS_userfaultfd SYS_perf_event_open SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register
    SYS_fanotify_init SYS_fanotify_mark
    // Keys are counted per user of the host, and nests would share them.
    SYS_add_key SYS_request_key SYS_keyctl
    // Memory placement acts on other processes, too.
    SYS_mbind SYS_set_mempolicy SYS_set_mempolicy_home_node SYS_migrate_pages SYS_move_pages
    // The machine.
    SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load SYS_kexec_file_load SYS_reboot SYS_swapon
    SYS_swapoff SYS_acct SYS_quotactl SYS_quotactl_fd SYS_nfsservctl SYS_syslog SYS_lookup_dcookie SYS_vhangup
    SYS_settimeofday SYS_clock_settime SYS_adjtimex SYS_clock_adjtime SYS_sethostname SYS_setdomainname
];

/// See [`ALLOWED_NEWER`].
const REFUSED_NEWER: &[u32] = &[467]; // open_tree_attr

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[u32] =
    &numbers![SYS_iopl SYS_ioperm SYS_modify_ldt SYS_uselib SYS_ustat SYS_sysfs SYS__sysctl];

#[cfg(target_arch = "aarch64")]
const REFUSED_HERE: &[u32] = &[];

/// Namespaces that clone(2) can make. `CLONE_NEWTIME` overlaps the exit signal there.
const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

const NEW_TIME_NAMESPACE: u32 = 0x80;
const SECCOMP_SET_MODE_FILTER: u32 = 1;
const SECCOMP_FILTER_FLAG_NEW_LISTENER: u32 = 1 << 3;
const ADDR_NO_RANDOMIZE: u32 = 0x0004_0000;
const ASK_PERSONALITY: u32 = 0xffff_ffff;
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
const TIOCSETD: u32 = 0x5423;
const SOCK_TYPE_BITS_OF_DATAGRAM: u32 = 0b10;

fn equals(argument: u32, value: u32) -> Condition {
    Condition { argument, test: Test::Equals(value) }
}

fn has_any(argument: u32, bits: u32) -> Condition {
    Condition { argument, test: Test::HasAny(bits) }
}

fn rule(conditions: &[Condition], verdict: Verdict) -> Rule {
    Rule { conditions: conditions.to_vec(), verdict }
}

fn examine(rules: Vec<Rule>, otherwise: Verdict) -> Verdict {
    Verdict::Examine(rules, Box::new(otherwise))
}

/// Calls whose arguments decide.
fn examined(unix_sockets: UnixSockets) -> Vec<(u32, Verdict)> {
    use Verdict::{Allow, Refuse};
    let no_namespaces = |bits| examine(vec![rule(&[has_any(0, bits)], Refuse(libc::EPERM))], Allow);
    let unix = |verdict| rule(&[equals(0, libc::AF_UNIX as u32)], verdict);
    let family = |family: i32| rule(&[equals(0, family as u32)], Allow);
    let netlink = libc::AF_NETLINK as u32;
    let sockets = examine(
        vec![
            unix(if unix_sockets == UnixSockets::Allow { Allow } else { Refuse(libc::EACCES) }),
            family(libc::AF_INET),
            family(libc::AF_INET6),
            // Interfaces and addresses; the other protocols reach parts that know of no namespaces.
            rule(&[equals(0, netlink), equals(2, libc::NETLINK_ROUTE as u32)], Allow),
            rule(&[equals(0, netlink)], Refuse(libc::EPROTONOSUPPORT)),
        ],
        Refuse(libc::EAFNOSUPPORT),
    );
    let mut pairs = vec![unix(Allow)];
    if unix_sockets == UnixSockets::None {
        // One end of a pair of datagram (2) or raw (3) sockets can be connected anew, to a socket of the host that a
        // bind shows. Streams (1) and sequenced packets (5) can't.
        let conditions = [equals(0, libc::AF_UNIX as u32), has_any(1, SOCK_TYPE_BITS_OF_DATAGRAM)];
        pairs.insert(0, rule(&conditions, Refuse(libc::EACCES)));
    }
    let terminal = [TIOCSTI, TIOCLINUX, TIOCSETD];
    let personalities = [0, ADDR_NO_RANDOMIZE, ASK_PERSONALITY];
    vec![
        (libc::SYS_socket as u32, sockets),
        (libc::SYS_socketpair as u32, examine(pairs, Refuse(libc::EAFNOSUPPORT))),
        (libc::SYS_clone as u32, no_namespaces(NEW_NAMESPACES)),
        (libc::SYS_unshare as u32, no_namespaces(NEW_NAMESPACES | NEW_TIME_NAMESPACE)),
        // Its flags are in memory, where a filter can't look. glibc and musl fall back to clone.
        (libc::SYS_clone3 as u32, Refuse(libc::ENOSYS)),
        // Typing into a terminal that was passed, a console's tricks, and line disciplines, which load modules.
        (
            libc::SYS_ioctl as u32,
            examine(terminal.map(|request| rule(&[equals(1, request)], Refuse(libc::EPERM))).to_vec(), Allow),
        ),
        (
            libc::SYS_personality as u32,
            examine(personalities.map(|kind| rule(&[equals(0, kind)], Allow)).to_vec(), Refuse(libc::EPERM)),
        ),
        // Of oneself only: init has the same id outside.
        (libc::SYS_prlimit64 as u32, examine(vec![rule(&[equals(0, 0)], Allow)], Refuse(libc::EPERM))),
        // A program may filter itself, but not become the judge of its children.
        (
            libc::SYS_seccomp as u32,
            examine(
                vec![rule(
                    &[equals(0, SECCOMP_SET_MODE_FILTER), has_any(1, SECCOMP_FILTER_FLAG_NEW_LISTENER)],
                    Refuse(libc::EPERM),
                )],
                Allow,
            ),
        ),
    ]
}

/// Every number that is known here, with its verdict, in order.
fn table(unix_sockets: UnixSockets) -> Vec<(u32, Verdict)> {
    let all = |lists: [&[u32]; 3], verdict: Verdict| {
        lists.concat().into_iter().map(|number| (number, verdict.clone())).collect::<Vec<_>>()
    };
    let mut table = all([ALLOWED, ALLOWED_NEWER, ALLOWED_HERE], Verdict::Allow);
    table.extend(all([REFUSED, REFUSED_NEWER, REFUSED_HERE], Verdict::Refuse(libc::EPERM)));
    table.extend(examined(unix_sockets));
    table.sort_by_key(|&(number, _)| number);
    table
}

// ---- the program --------------------------------------------------------------------------------------------------------

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    value: u32,
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const OUR_ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OUR_ARCHITECTURE: u32 = 0xc000_00b7;

fn statement(code: u16, value: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, value }
}

/// Where the low half of an argument is. Both architectures are little-endian.
fn low_half(argument: u32) -> u32 {
    ARGUMENTS + 8 * argument
}

fn program(unix_sockets: UnixSockets) -> Vec<Instruction> {
    let table = table(unix_sockets);
    let end = table.last().map_or(0, |&(number, _)| number + 1);
    let mut assembler = Assembler::default();
    let known = assembler.search(&runs(&table), end);
    assembler.jump_to(known);
    assembler.push(statement(LOAD, NUMBER));
    let ours = assembler.last();
    let foreign = assembler.finish(RET_KILL_PROCESS);
    assembler.branch(JUMP_EQUAL, OUR_ARCHITECTURE, ours, foreign);
    assembler.push(statement(LOAD, ARCHITECTURE));
    assembler.reversed.reverse();
    assembler.reversed
}

/// Runs of numbers with one verdict: where each starts. They cover all numbers; the last goes on for ever.
fn runs(table: &[(u32, Verdict)]) -> Vec<(u32, Verdict)> {
    let unknown = Verdict::Refuse(libc::ENOSYS);
    let mut runs = vec![(0, unknown.clone())];
    let mut put = |start: u32, verdict: Verdict| match runs.last_mut() {
        Some((last, found)) if *last == start => *found = verdict,
        Some((_, found)) if *found == verdict && !matches!(verdict, Verdict::Examine(..)) => {}
        _ => runs.push((start, verdict)),
    };
    for (index, (number, verdict)) in table.iter().enumerate() {
        put(*number, verdict.clone());
        if table.get(index + 1).is_none_or(|(next, _)| *next != number + 1) {
            put(number + 1, unknown.clone());
        }
    }
    runs
}

/// Where to split so that both sides hold about as many numbers: each counts once when the filter is installed.
fn halves(runs: &[(u32, Verdict)], end: u32) -> usize {
    let middle = runs[0].0.midpoint(end);
    (1..runs.len()).min_by_key(|&split| runs[split].0.abs_diff(middle)).unwrap_or(1)
}

/// Writes the program from its end to its start. Jumps only go forward, so each target is there before what jumps to it,
/// and all that end alike share one return: a program of half the length, and installing takes some 0.1 µs for each
/// instruction.
#[derive(Default)]
struct Assembler {
    reversed: Vec<Instruction>,
}

/// An instruction's distance from the end of the program.
type Place = usize;

impl Assembler {
    fn push(&mut self, instruction: Instruction) {
        self.reversed.push(instruction);
    }

    /// What was written last, and so comes first.
    fn last(&self) -> Place {
        self.reversed.len() - 1
    }

    /// How far the next instruction would have to jump.
    fn distance(&self, target: Place) -> usize {
        self.last() - target
    }

    /// Makes `target` what the next instruction falls through to.
    fn jump_to(&mut self, target: Place) {
        if self.distance(target) > 0 {
            self.push(statement(JUMP, self.distance(target) as u32));
        }
    }

    /// A place that leads to `target` and that a conditional jump reaches, with another such place in between.
    fn within_reach(&mut self, target: Place) -> Place {
        if self.distance(target) + 1 > usize::from(u8::MAX) {
            self.jump_to(target);
            return self.last();
        }
        target
    }

    fn branch(&mut self, test: u16, value: u32, holds: Place, fails: Place) {
        let (holds, fails) = (self.within_reach(holds), self.within_reach(fails));
        let (jump_true, jump_false) = (self.distance(holds) as u8, self.distance(fails) as u8);
        self.push(Instruction { code: test, jump_true, jump_false, value });
    }

    /// Where the program ends with `value`.
    fn finish(&mut self, value: u32) -> Place {
        let wanted = statement(RETURN, value);
        let reach = self.reversed.len().saturating_sub(usize::from(u8::MAX) - 1);
        let known = self.reversed[reach..].iter().rposition(|&instruction| instruction == wanted);
        known.map_or_else(
            || {
                self.push(wanted);
                self.last()
            },
            |place| reach + place,
        )
    }

    /// Where the run is found that the number in the accumulator is in. Runs end where the next one starts, the last one
    /// of the table at `end`.
    fn search(&mut self, runs: &[(u32, Verdict)], end: u32) -> Place {
        if let [(_, verdict)] = runs {
            return self.judge(verdict);
        }
        let (low, high) = runs.split_at(halves(runs, end));
        let pivot = high[0].0;
        let high = self.search(high, end);
        let low = self.search(low, pivot);
        self.branch(JUMP_AT_LEAST, pivot, high, low);
        self.last()
    }

    /// Where the verdict is reached.
    fn judge(&mut self, verdict: &Verdict) -> Place {
        match verdict {
            Verdict::Allow => self.finish(RET_ALLOW),
            Verdict::Refuse(errno) => self.finish(RET_ERRNO | *errno as u32),
            Verdict::Examine(rules, otherwise) => {
                let otherwise = self.judge(otherwise);
                rules.iter().rev().fold(otherwise, |next, rule| self.judge_rule(rule, next))
            }
        }
    }

    /// Where the rule is tried, and `next` if it doesn't apply.
    fn judge_rule(&mut self, rule: &Rule, next: Place) -> Place {
        let verdict = self.judge(&rule.verdict);
        rule.conditions.iter().rev().fold(verdict, |holds, condition| {
            let (test, value) = match condition.test {
                Test::Equals(value) => (JUMP_EQUAL, value),
                Test::HasAny(bits) => (JUMP_ANY_BIT, bits),
            };
            self.branch(test, value, holds, next);
            self.push(statement(LOAD, low_half(condition.argument)));
            self.last()
        })
    }
}

fn encode(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.extend(instruction.code.to_ne_bytes());
        bytes.extend([instruction.jump_true, instruction.jump_false]);
        bytes.extend(instruction.value.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::io::Error;

    const EPERM: u32 = RET_ERRNO | libc::EPERM as u32;
    const ENOSYS: u32 = RET_ERRNO | libc::ENOSYS as u32;
    const EACCES: u32 = RET_ERRNO | libc::EACCES as u32;
    const NO_FAMILY: u32 = RET_ERRNO | libc::EAFNOSUPPORT as u32;
    const NO_PROTOCOL: u32 = RET_ERRNO | libc::EPROTONOSUPPORT as u32;

    /// Runs a program as the kernel would, and insists on what the kernel's verifier does: jumps stay inside.
    fn run(program: &[u8], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let instructions: Vec<_> = program
            .chunks_exact(8)
            .map(|bytes| Instruction {
                code: u16::from_ne_bytes([bytes[0], bytes[1]]),
                jump_true: bytes[2],
                jump_false: bytes[3],
                value: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            })
            .collect();
        let mut data = Vec::new();
        data.extend(number.to_ne_bytes());
        data.extend(architecture.to_ne_bytes());
        data.extend(0_u64.to_ne_bytes());
        data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
        let (mut accumulator, mut at) = (0_u32, 0);
        loop {
            let Instruction { code, jump_true, jump_false, value } = instructions[at];
            let jump = |holds: bool| usize::from(if holds { jump_true } else { jump_false });
            at += 1;
            match code {
                LOAD => {
                    let word = &data[value as usize..value as usize + 4];
                    accumulator = u32::from_ne_bytes(word.try_into().expect("four bytes"));
                }
                JUMP => at += value as usize,
                JUMP_EQUAL => at += jump(accumulator == value),
                JUMP_AT_LEAST => at += jump(accumulator >= value),
                JUMP_ANY_BIT => at += jump(accumulator & value != 0),
                RETURN => return value,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    fn verdict(sockets: UnixSockets, number: i64, arguments: &[u64]) -> u32 {
        let mut six = [0; 6];
        six[..arguments.len()].copy_from_slice(arguments);
        run(default(sockets), OUR_ARCHITECTURE, number as u32, six)
    }

    #[test]
    fn lists_each_number_once() {
        let table = table(UnixSockets::None);
        let numbers: BTreeSet<_> = table.iter().map(|&(number, _)| number).collect();
        assert_eq!(numbers.len(), table.len());
    }

    /// Every number that there is and many that there aren't, against the lists themselves.
    #[test]
    fn knows_every_number() {
        let examined: BTreeSet<_> =
            examined(UnixSockets::None).into_iter().map(|(number, _)| number).collect();
        let listed = |lists: [&[u32]; 3], number| lists.iter().any(|list| list.contains(&number));
        let highest = table(UnixSockets::None).last().expect("not empty").0;
        let far = [0x3fff_ffff, 0x7fff_ffff, 0x8000_0000, u32::MAX];
        for number in (0..highest + 4096).chain(far) {
            if examined.contains(&number) {
                continue;
            }
            let expected = if listed([ALLOWED, ALLOWED_NEWER, ALLOWED_HERE], number) {
                RET_ALLOW
            } else if listed([REFUSED, REFUSED_NEWER, REFUSED_HERE], number) {
                EPERM
            } else {
                ENOSYS
            };
            for sockets in [UnixSockets::None, UnixSockets::Allow] {
                // Arguments are of no consequence.
                for argument in [0, 1, u64::MAX] {
                    let found = run(default(sockets), OUR_ARCHITECTURE, number, [argument; 6]);
                    assert_eq!(found, expected, "number {number} with {argument:#x}");
                }
            }
        }
    }

    /// 0x40000000 marks a call of the x32 ABI, which has another set of checks in the kernel.
    #[test]
    fn knows_no_x32() {
        for number in 0..1024_u32 {
            for sockets in [UnixSockets::None, UnixSockets::Allow] {
                assert_eq!(run(default(sockets), OUR_ARCHITECTURE, 0x4000_0000 | number, [0; 6]), ENOSYS);
            }
        }
    }

    #[test]
    fn kills_other_architectures() {
        // i386, arm, riscv64, ppc64le, and each of ours with a flipped bit.
        let flipped = (0..32).map(|bit| OUR_ARCHITECTURE ^ (1 << bit));
        for architecture in [0x4000_0003, 0x4000_0028, 0xc000_00f3, 0xc000_0015, 0].into_iter().chain(flipped)
        {
            for number in 0..512 {
                let found = run(default(UnixSockets::Allow), architecture, number, [0; 6]);
                assert_eq!(found, RET_KILL_PROCESS, "{architecture:#x}");
            }
        }
    }

    #[test]
    fn looks_at_arguments() {
        use UnixSockets::{Allow, None};
        let high = 0xdead_beef_0000_0000;
        let unix = libc::AF_UNIX as u64;
        let cases: &[(UnixSockets, i64, &[u64], u32)] = &[
            (None, libc::SYS_clone3, &[], ENOSYS),
            // fork, vfork, threads
            (None, libc::SYS_clone, &[0x0120_0011], RET_ALLOW),
            (None, libc::SYS_clone, &[0x4111], RET_ALLOW),
            (None, libc::SYS_clone, &[0x003d_0f00], RET_ALLOW),
            (None, libc::SYS_unshare, &[libc::CLONE_FS as u64 | libc::CLONE_FILES as u64], RET_ALLOW),
            (None, libc::SYS_unshare, &[0x80], EPERM),
            (None, libc::SYS_setns, &[3, 0], EPERM),
            (None, libc::SYS_seccomp, &[1, 0], RET_ALLOW),
            (None, libc::SYS_seccomp, &[1, 1], RET_ALLOW),
            (None, libc::SYS_seccomp, &[1, 8], EPERM),
            (None, libc::SYS_seccomp, &[1 | high, 8 | 1 | high], EPERM),
            (None, libc::SYS_seccomp, &[2, 0], RET_ALLOW),
            (None, libc::SYS_prlimit64, &[0, 7], RET_ALLOW),
            (None, libc::SYS_prlimit64, &[high, 7], RET_ALLOW),
            (None, libc::SYS_prlimit64, &[1, 7], EPERM),
            (None, libc::SYS_personality, &[0], RET_ALLOW),
            (None, libc::SYS_personality, &[0xffff_ffff], RET_ALLOW),
            (None, libc::SYS_personality, &[0x4_0000], RET_ALLOW),
            (None, libc::SYS_personality, &[0x40_0000], EPERM),
            (None, libc::SYS_personality, &[8], EPERM),
            (None, libc::SYS_ioctl, &[0, 0x5401], RET_ALLOW),
            (None, libc::SYS_ioctl, &[0, 0x5412], EPERM),
            // The kernel looks at 32 bits only: bubblewrap's CVE-2017-5226, once more in CVE-2019-10063.
            (None, libc::SYS_ioctl, &[0, 0x5412 | high], EPERM),
            (None, libc::SYS_ioctl, &[0, 0x541c | high], EPERM),
            (None, libc::SYS_ioctl, &[0, 0x5423], EPERM),
            (None, libc::SYS_socket, &[unix, 1, 0], EACCES),
            (Allow, libc::SYS_socket, &[unix, 1, 0], RET_ALLOW),
            (None, libc::SYS_socket, &[unix | high, 1, 0], EACCES),
            (None, libc::SYS_socket, &[libc::AF_INET as u64, 1, 6], RET_ALLOW),
            (None, libc::SYS_socket, &[libc::AF_INET6 as u64, 2, 17], RET_ALLOW),
            (None, libc::SYS_socket, &[libc::AF_NETLINK as u64, 3, 0], RET_ALLOW),
            (None, libc::SYS_socket, &[libc::AF_NETLINK as u64, 3, 9], NO_PROTOCOL),
            (None, libc::SYS_socket, &[libc::AF_NETLINK as u64, 3, 16], NO_PROTOCOL),
            (None, libc::SYS_socketpair, &[unix, 1, 0], RET_ALLOW),
            (None, libc::SYS_socketpair, &[unix, 5 | 0x80800, 0], RET_ALLOW),
            (None, libc::SYS_socketpair, &[unix, 2, 0], EACCES),
            (None, libc::SYS_socketpair, &[unix, 3 | 0x800, 0], EACCES),
            (Allow, libc::SYS_socketpair, &[unix, 2, 0], RET_ALLOW),
            (Allow, libc::SYS_socketpair, &[30, 1, 0], NO_FAMILY),
        ];
        for (sockets, number, arguments, expected) in cases {
            let found = verdict(*sockets, *number, arguments);
            assert_eq!(found, *expected, "{sockets:?} {number} {arguments:x?}: {found:#x}");
        }
    }

    #[test]
    fn refuses_each_namespace_by_each_way() {
        for bit in [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000]
        {
            for extra in [0, 17, 0x100, 0xffff_ffff_0000_0000] {
                assert_eq!(verdict(UnixSockets::Allow, libc::SYS_clone, &[bit | extra]), EPERM);
                assert_eq!(verdict(UnixSockets::Allow, libc::SYS_unshare, &[bit | extra]), EPERM);
            }
        }
    }

    #[test]
    fn refuses_families_that_know_no_namespaces() {
        let known = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
        for family in (0..128).filter(|family| !known.contains(family)) {
            for sockets in [UnixSockets::None, UnixSockets::Allow] {
                assert_eq!(verdict(sockets, libc::SYS_socket, &[family as u64, 1, 0]), NO_FAMILY, "{family}");
            }
        }
    }

    #[test]
    fn is_small() {
        // The kernel takes 4096; what it costs to install grows with the length.
        assert!(default(UnixSockets::None).len() / 8 < 160, "{}", default(UnixSockets::None).len() / 8);
    }

    /// The kernel takes the program, and does with it what the interpreter says.
    #[test]
    fn holds_in_a_process() {
        for sockets in [UnixSockets::None, UnixSockets::Allow] {
            let program = default(sockets);
            // SAFETY: the child makes system calls only, and ends with one.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let status = try_in_child(program, sockets == UnixSockets::Allow);
                // SAFETY: takes a number.
                unsafe { libc::_exit(status) };
            }
            assert!(child > 0);
            let mut status = 0;
            // SAFETY: our child, our status.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!(waited, child);
            assert!(libc::WIFEXITED(status), "{status:#x}");
            assert_eq!(libc::WEXITSTATUS(status), 0, "the line in try_in_child that failed");
        }
    }

    /// Installs the filter; 0, or the number of the first check that failed. No allocation: other threads may have held
    /// the allocator's lock when this was forked.
    fn try_in_child(program: &[u8], unix: bool) -> i32 {
        let filter = libc::sock_fprog {
            len: (program.len() / 8) as u16,
            // The kernel copies it, and does not ask for alignment.
            filter: program.as_ptr().cast_mut().cast::<std::ffi::c_void>().cast(),
        };
        let call = |number: i64, one: usize, two: usize, three: usize| {
            // SAFETY: each of the calls below takes numbers, or is refused before it looks at a pointer.
            let result = unsafe { libc::syscall(number, one, two, three, 0, 0) };
            if result == -1 { Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
        };
        if call(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0) != 0 {
            return 1;
        }
        if call(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER as usize, 0, &raw const filter as usize) != 0 {
            return 2;
        }
        let unix_socket = if unix { 0 } else { libc::EACCES };
        let checks = [
            call(libc::SYS_getpid, 0, 0, 0) == 0,
            call(libc::SYS_bpf, 0, 0, 0) == libc::EPERM,
            call(libc::SYS_io_uring_setup, 1, 0, 0) == libc::EPERM,
            call(libc::SYS_clone3, 0, 0, 0) == libc::ENOSYS,
            call(2000, 0, 0, 0) == libc::ENOSYS,
            call(libc::SYS_unshare, libc::CLONE_NEWUSER as usize, 0, 0) == libc::EPERM,
            call(libc::SYS_unshare, libc::CLONE_FS as usize, 0, 0) == 0,
            call(libc::SYS_socket, libc::AF_UNIX as usize, 1, 0) == unix_socket,
            call(libc::SYS_socket, libc::AF_INET as usize, 1, 0) == 0,
            call(libc::SYS_socket, libc::AF_VSOCK as usize, 1, 0) == libc::EAFNOSUPPORT,
            call(libc::SYS_prlimit64, 1, 7, 0) == libc::EPERM,
            call(libc::SYS_ioctl, 0, TIOCSTI as usize, 0) == libc::EPERM,
        ];
        checks.iter().position(|passed| !passed).map_or(0, |position| 10 + position as i32)
    }
}
