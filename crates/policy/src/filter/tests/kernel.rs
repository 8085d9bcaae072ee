//! The kernel, asked.

use std::io::Error;

use super::*;

/// The kernel takes the program, and does with it what the interpreter says.
#[test]
fn holds_in_a_process() {
    for unix_sockets in [UnixSockets::None, UnixSockets::Allow] {
        let program = program(default_filter(), Options { unix_sockets, ..WRITABLE });
        // SAFETY: the child makes system calls only, and ends with one.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let status = try_in_child(&program, unix_sockets == UnixSockets::Allow);
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
    let whole = |number: i64, arguments: [usize; 6]| {
        let [one, two, three, four, five, six] = arguments;
        // SAFETY: each of the calls below takes numbers, or is refused before it looks at a pointer.
        let result = unsafe { libc::syscall(number, one, two, three, four, five, six) };
        if result == -1 { Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
    };
    let call = |number, one, two, three| whole(number, [one, two, three, 0, 0, 0]);
    if call(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0) != 0 {
        return 1;
    }
    if call(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER as usize, 0, &raw const filter as usize) != 0 {
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
        whole(libc::SYS_prlimit64, [1, 7, 0, 0, 0, (COOKIE ^ 1) as usize]) == libc::EPERM,
        whole(libc::SYS_prlimit64, [i32::MAX as usize, 7, 0, 0, 0, COOKIE as usize]) == libc::ESRCH,
        call(libc::SYS_ioctl, 0, 0x5412, 0) == libc::EPERM,
        call(libc::SYS_semget, libc::IPC_PRIVATE as usize, 251, 0o600) == libc::EINVAL,
        // No such descriptor, and nobody looks.
        call(libc::SYS_syncfs, usize::MAX, 0, 0) == 0,
        call(libc::SYS_fsync, usize::MAX, 0, 0) == libc::EBADF,
        call(libc::SYS_fchmod, usize::MAX, 0o4755, 0) == libc::EPERM,
        call(libc::SYS_fchmod, usize::MAX, 0o755, 0) == libc::EBADF,
        call(libc::SYS_openat2, 0, 0, 0) == libc::ENOSYS,
    ];
    checks.iter().position(|passed| !passed).map_or(0, |position| 10 + position as i32)
}
