//! Init's own syscall filter: what it needs from the moment the program runs until it has reported, and nothing else.
//!
//! Init lives in U0 beside code that nobody trusts. Should that code ever gain control over it, the kernel kills it at the
//! first call that is not on the list, and with it the nest. sandbox2 does the same, but forgot `exit_group`
//! (`forkedprocess.cc`). Assembled once per template; installed in each init right after exec, off the critical path.

use std::collections::BTreeMap;

/// Calls that a running init makes.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_waitid,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_kill,
    libc::SYS_getrusage,
    libc::SYS_clock_gettime,
    libc::SYS_prlimit64,
    libc::SYS_statfs,
    libc::SYS_openat2,
    libc::SYS_openat,
    libc::SYS_getdents64,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_fstatfs,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_getgid,
    // A debug build's standard library looks at each fd that it closes.
    #[cfg(debug_assertions)]
    libc::SYS_fcntl,
];

/// What it needs beside that as the supervisor of a filter that asks: to read what a call's pointers lead to, and of
/// ioctl(2) these requests.
const SUPERVISING: &[libc::c_long] = &[libc::SYS_process_vm_readv];

/// The one to set flags comes before the filter, when the listener does.
const REQUESTS: [libc::Ioctl; 4] = [
    libc::SECCOMP_IOCTL_NOTIF_RECV,
    libc::SECCOMP_IOCTL_NOTIF_SEND,
    libc::SECCOMP_IOCTL_NOTIF_ID_VALID,
    libc::SECCOMP_IOCTL_NOTIF_ADDFD,
];

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// The low half of the second argument. An ioctl request has no more to the kernel.
const REQUEST: u32 = 24;

const SECCOMP_RET_KILL_PROCESS: u32 = 0x8000_0000;
const SECCOMP_RET_ALLOW: u32 = 0x7fff_0000;

/// Writes the program from its end, as jumps only go forward.
struct Assembler {
    reversed: Vec<libc::sock_filter>,
}

/// An instruction's distance from the end of the program.
type Place = usize;

impl Assembler {
    fn push(&mut self, code: u32, k: u32, then: Place, otherwise: Place) -> Place {
        // A program of some sixty instructions: all of it is in reach of each.
        let distance = |place| (self.reversed.len() - 1 - place) as u8;
        let (jt, jf) = match code & 7 {
            libc::BPF_JMP => (distance(then), distance(otherwise)),
            _ => (0, 0),
        };
        self.reversed.push(libc::sock_filter { code: code as u16, jt, jf, k });
        self.reversed.len() - 1
    }

    /// Ends with `k`, or loads what is there.
    fn statement(&mut self, code: u32, k: u32) -> Place {
        self.push(code, k, 0, 0)
    }

    fn branch(&mut self, test: u32, k: u32, then: Place, otherwise: Place) -> Place {
        self.push(libc::BPF_JMP | test | libc::BPF_K, k, then, otherwise)
    }

    /// Where the run is found that the loaded number is in: each begins with its number, and the last goes on for ever.
    ///
    /// When a filter is installed the kernel tries it on every number that it has, one after the other. So halves are of
    /// numbers and not of runs: a list that is gone through from its top takes twice as long to install.
    fn search(&mut self, runs: &[(u32, Place)], end: u32) -> Place {
        if let [(_, place)] = runs {
            return *place;
        }
        let middle = runs[0].0.midpoint(end);
        let split = (1..runs.len()).min_by_key(|&split| runs[split].0.abs_diff(middle)).unwrap_or(1);
        let (low, high) = runs.split_at(split);
        let pivot = high[0].0;
        let high = self.search(high, end);
        let low = self.search(low, pivot);
        self.branch(libc::BPF_JGE, pivot, high, low)
    }
}

/// The compiled filter, which allows `others` as well; `supervises`: of an init that answers for the sandboxee's.
pub(crate) fn program(supervises: bool, others: &[libc::c_long]) -> Vec<u8> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let mut program = Assembler { reversed: Vec::with_capacity(96) };
    let allow = program.statement(RETURN, SECCOMP_RET_ALLOW);
    let kill = program.statement(RETURN, SECCOMP_RET_KILL_PROCESS);
    let allowed = [ALLOWED, others, if supervises { SUPERVISING } else { &[] }].concat();
    let mut known: BTreeMap<u32, Place> = allowed.iter().map(|&number| (number as u32, allow)).collect();
    if supervises {
        let compare =
            |next, &request: &libc::Ioctl| program.branch(libc::BPF_JEQ, request as u32, allow, next);
        REQUESTS.iter().fold(kill, compare);
        known.insert(libc::SYS_ioctl as u32, program.statement(LOAD, REQUEST));
    }
    let mut runs = vec![(0, kill)];
    for (&number, &place) in &known {
        runs.push((number, place));
        runs.push((number + 1, kill));
    }
    // The later of two that begin with one number counts; neighbours that end alike are one.
    runs.reverse();
    runs.dedup_by_key(|run| run.0);
    runs.reverse();
    runs.dedup_by_key(|run| run.1);
    let end = runs.last().map_or(0, |run| run.0);
    program.search(&runs, end);
    let ours = program.statement(LOAD, NUMBER);
    program.branch(libc::BPF_JEQ, AUDIT_ARCH, ours, kill);
    program.statement(LOAD, ARCH);
    program.reversed.reverse();
    let size = size_of_val(&program.reversed[..]);
    // SAFETY: sock_filter is plain bytes without padding.
    unsafe { std::slice::from_raw_parts(program.reversed.as_ptr().cast::<u8>(), size) }.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestbox_policy::bpf::{self, Call};
    use nestbox_sys::process;

    #[allow(clippy::unnecessary_cast, reason = "a request is an int with some C libraries")]
    #[test]
    fn exactly_what_is_listed_is_allowed() {
        let others: &[libc::c_long] = &[libc::SYS_ptrace, 0x4000_0000];
        for (supervises, others) in [(false, &[][..]), (true, &[][..]), (false, others), (true, others)] {
            let program = program(supervises, others);
            let answer = |call: &Call| bpf::evaluate(&program, call).expect("ends");
            let around_others = 0x3fff_ff00..0x4000_0100;
            for number in (0..2000).chain(around_others).chain(u32::MAX - 9..=u32::MAX) {
                let is_listed = |list: &[libc::c_long]| list.contains(&number.into());
                let allowed = is_listed(ALLOWED) || is_listed(others) || supervises && is_listed(SUPERVISING);
                let call = Call { number, architecture: bpf::ARCHITECTURE, ..Call::default() };
                assert_eq!(answer(&call) == bpf::ALLOW, allowed, "{number}");
                assert!(allowed || answer(&call) == bpf::KILL_PROCESS, "{number}");
                // The same number of i386 is another call.
                assert_eq!(answer(&Call { architecture: 0x4000_0003, ..call }), bpf::KILL_PROCESS);
            }
            for request in REQUESTS {
                let arguments = [3, request as u64 | 7 << 32, 0, 0, 0, 0];
                let number = libc::SYS_ioctl as u32;
                let call = Call { number, architecture: bpf::ARCHITECTURE, arguments, ..Call::default() };
                assert_eq!(answer(&call) == bpf::ALLOW, supervises);
            }
        }
    }

    /// Runs `body` under the filter in a child; returns its wait status.
    fn under_guard(supervises: bool, body: fn() -> !) -> i32 {
        let program = program(supervises, &[]);
        // SAFETY: the child only makes raw system calls.
        let pid = unsafe { process::fork_with(0) }.expect("fork");
        let Some(pid) = pid else {
            let _ = process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1);
            if process::install_filter(&program).is_err() {
                crate::exit(99);
            }
            body()
        };
        let mut status = 0;
        // SAFETY: a number of ours.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        status
    }

    fn exited(status: i32) -> bool {
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7
    }

    fn killed(status: i32) -> bool {
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS
    }

    fn getppid() -> ! {
        // SAFETY: takes nothing.
        let _ = unsafe { nestbox_sys::syscall!(libc::SYS_getppid) };
        crate::exit(7)
    }

    fn execve() -> ! {
        // SAFETY: null pointers give EFAULT where the call is allowed at all.
        let _ = unsafe { nestbox_sys::syscall!(libc::SYS_execve, 0, 0, 0) };
        crate::exit(7)
    }

    fn control(request: u64) {
        // SAFETY: -1 is no fd: EBADF where the call is allowed at all.
        let _ = unsafe { nestbox_sys::syscall!(libc::SYS_ioctl, -1_i32, request, 0) };
    }

    #[test]
    fn init_can_exit_and_nothing_else_works() {
        for supervises in [false, true] {
            assert!(exited(under_guard(supervises, || crate::exit(7))));
            assert!(killed(under_guard(supervises, getppid)));
            assert!(killed(under_guard(supervises, execve)));
        }
    }

    #[allow(clippy::unnecessary_cast, reason = "a request is an int with some C libraries")]
    #[test]
    fn only_a_supervisor_reads_memory_and_answers_calls() {
        let answer = || -> ! {
            for request in REQUESTS {
                control(request as u64);
                // The kernel looks at the low half.
                control(request as u64 | 7 << 32);
            }
            // SAFETY: no vectors.
            let _ = unsafe { nestbox_sys::syscall!(libc::SYS_process_vm_readv, 1, 0, 0, 0, 0, 0) };
            crate::exit(7)
        };
        assert!(killed(under_guard(false, answer)));
        assert!(exited(under_guard(true, answer)));
        let other = || -> ! {
            control(libc::TIOCSTI as u64);
            crate::exit(7)
        };
        assert!(killed(under_guard(true, other)));
        let flags = || -> ! {
            control(libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS as u64);
            crate::exit(7)
        };
        assert!(killed(under_guard(true, flags)));
    }
}
