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

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

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

/// The compiled filter.
pub(crate) fn program() -> Vec<u8> {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let count = ALLOWED.len() as u8;
    let mut program = vec![
        statement(load, ARCH),
        // A foreign architecture goes to the kill at the end.
        jump_if_equal(AUDIT_ARCH, 0, count + 1),
        statement(load, NUMBER),
    ];
    for (index, &number) in ALLOWED.iter().enumerate() {
        program.push(jump_if_equal(number as u32, count - index as u8, 0));
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
    fn under_guard(body: fn() -> !) -> i32 {
        let program = program();
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

    #[test]
    fn init_can_exit_and_nothing_else_works() {
        let status = under_guard(|| crate::exit(7));
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status:x}");
        let status = under_guard(|| {
            // SAFETY: takes nothing.
            let _ = unsafe { nestbox_sys::syscall!(libc::SYS_getppid) };
            crate::exit(7)
        });
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS, "{status:x}");
        let status = under_guard(|| {
            // SAFETY: null pointers give EFAULT where the call is allowed at all.
            let _ = unsafe { nestbox_sys::syscall!(libc::SYS_execve, 0, 0, 0) };
            crate::exit(7)
        });
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS, "{status:x}");
    }
}
