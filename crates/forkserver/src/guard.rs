//! Init's own syscall filter: what it needs from the moment the program runs until it has reported, and nothing else.
//!
//! Init lives in U0 beside code that nobody trusts. Should that code ever gain control over it, the kernel kills it at the
//! first call that is not on the list, and with it the nest. sandbox2 does the same, but forgot `exit_group`
//! (`forkedprocess.cc`). Assembled once per template; installed in each init right after exec, off the critical path.

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

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

const fn jump_if_equal(k: u32, then: u8, otherwise: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: then,
        jf: otherwise,
        k,
    }
}

/// The compiled filter, which allows `others` as well; `supervises`: of an init that answers for the sandboxee's.
pub(crate) fn program(supervises: bool, others: &[libc::c_long]) -> Vec<u8> {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let (more, requests) = if supervises { (SUPERVISING, &REQUESTS[..]) } else { (&[][..], &[][..]) };
    let numbers: Vec<libc::c_long> = [ALLOWED, more, others].concat();
    // ioctl(2) itself and the requests, behind the numbers.
    let tail = if requests.is_empty() { 0 } else { requests.len() as u8 + 2 };
    let count = numbers.len() as u8 + tail;
    let mut program = vec![
        statement(load, ARCH),
        // A foreign architecture goes to the kill at the end.
        jump_if_equal(AUDIT_ARCH, 0, count + 1),
        statement(load, NUMBER),
    ];
    for (index, &number) in numbers.iter().enumerate() {
        program.push(jump_if_equal(number as u32, count - index as u8, 0));
    }
    if !requests.is_empty() {
        program.push(jump_if_equal(libc::SYS_ioctl as u32, 0, tail - 1));
        program.push(statement(load, REQUEST));
        for (index, &request) in requests.iter().enumerate() {
            program.push(jump_if_equal(request as u32, (requests.len() - index) as u8, 0));
        }
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, SECCOMP_RET_KILL_PROCESS));
    program.push(statement(libc::BPF_RET | libc::BPF_K, SECCOMP_RET_ALLOW));
    let size = size_of_val(&program[..]);
    // SAFETY: sock_filter is plain bytes without padding.
    unsafe { std::slice::from_raw_parts(program.as_ptr().cast::<u8>(), size) }.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestbox_sys::process;

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
