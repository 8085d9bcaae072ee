//! Making, signalling and limiting processes: clone3(2), clone(2) with shared memory, pidfds, prctl(2).

use std::ffi::{CStr, c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

use crate::raw::SysResult;

/// `struct clone_args`, the part that Linux 5.7 knows.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks with clone3(2): `None` in the child, its pid in the parent. With `CLONE_PARENT` the exit signal is the
/// caller's own, as the kernel demands.
///
/// # Safety
/// `flags` must not contain `CLONE_VM` or `CLONE_SETTLS`: the child goes on in a copy of this memory. The caller must be
/// single-threaded, or the child may only make async-signal-safe calls.
pub unsafe fn fork_with(flags: u64) -> Result<Option<i32>, Errno> {
    let signal = if flags & libc::CLONE_PARENT as u64 != 0 { 0 } else { libc::SIGCHLD as u64 };
    let args = CloneArgs { flags, exit_signal: signal, ..CloneArgs::default() };
    // SAFETY: the arguments are as long as said; the caller upholds the rest.
    let pid = unsafe { crate::syscall!(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) }?;
    Ok((pid != 0).then_some(pid as i32))
}

/// Runs `body(argument)` in a child that shares this process's memory and holds it suspended until it executes or
/// exits (vfork(2), but on a stack of its own, so that it can't clobber its parent's frames). Returns the child's pid.
///
/// # Safety
/// `stack` must be the high end of memory that nobody else uses until this returns, aligned to 16 bytes. `body` must
/// not return, allocate, or touch thread-local state (the C library's errno is its parent's). All signals should be blocked.
pub unsafe fn vfork_on(
    stack: *mut c_void,
    body: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
    flags: c_int,
) -> Result<i32, Errno> {
    let flags = flags | libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the caller upholds it.
    unsafe { clone(flags, stack, std::ptr::null_mut(), body, argument) }
}

/// [`vfork_on`] for a child that takes its time: the parent sleeps, where vfork(2) would have it blocked (state D, which
/// counts as load). It is woken at the same moment, when the child lets go of the shared memory by its exec or its end: the
/// kernel then clears the word of `CLONE_CHILD_CLEARTID` and wakes who waits for it (set_tid_address(2)).
///
/// # Safety
/// As of [`vfork_on`]; and the caller must be single-threaded, for `body` may allocate.
pub unsafe fn clone_and_sleep(
    stack: *mut c_void,
    body: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
    flags: c_int,
) -> Result<i32, Errno> {
    const SHARED: u32 = 1;
    let shared = AtomicU32::new(SHARED);
    let flags = flags | libc::CLONE_VM | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
    // SAFETY: the caller upholds it; the word lives until it was cleared.
    let pid = unsafe { clone(flags, stack, shared.as_ptr(), body, argument) }?;
    while shared.load(Ordering::Acquire) == SHARED {
        // Not private: the kernel's own wake-up is not.
        // SAFETY: a word of ours; no timeout.
        let _ = unsafe { crate::syscall!(libc::SYS_futex, shared.as_ptr(), libc::FUTEX_WAIT, SHARED, 0, 0) };
    }
    Ok(pid)
}

/// [`vfork_on`], with a chosen pid in the caller's own pid namespace (clone3(2), `set_tid`): needs
/// `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN` over that namespace, and the pid must be free.
///
/// # Safety
/// As of [`vfork_on`].
pub unsafe fn vfork_as(
    pid: i32,
    stack: *mut c_void,
    body: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
    flags: c_int,
) -> Result<i32, Errno> {
    let args = CloneArgs {
        flags: (flags | libc::CLONE_VM | libc::CLONE_VFORK) as u64,
        exit_signal: libc::SIGCHLD as u64,
        // The kernel starts at `stack + stack_size`, and only wants the size not to be 0.
        stack: stack as u64 - 16,
        stack_size: 16,
        set_tid: &raw const pid as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    let given = [&raw const args as usize, size_of::<CloneArgs>(), 0, 0, 0];
    // SAFETY: the arguments are as long as said; the caller upholds the rest.
    unsafe { clone_onto_stack(libc::SYS_clone3, given, body, argument) }
}

/// clone(2) of a child that runs `body(argument)` on `stack` and has the word `child_tid`.
///
/// # Safety
/// As of [`clone_onto_stack`]; `flags` must say what is the caller's to promise.
unsafe fn clone(
    flags: c_int,
    stack: *mut c_void,
    child_tid: *mut u32,
    body: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
) -> Result<i32, Errno> {
    let (flags, stack, child_tid) = (flags as usize, stack as usize, child_tid as usize);
    // The last two are child_tid and tls, in an order of the architecture's own.
    #[cfg(target_arch = "x86_64")]
    let given = [flags, stack, 0, child_tid, 0];
    #[cfg(target_arch = "aarch64")]
    let given = [flags, stack, 0, 0, child_tid];
    // SAFETY: the caller upholds it.
    unsafe { clone_onto_stack(libc::SYS_clone, given, body, argument) }
}

/// Makes a clone call, after which the child calls `body(argument)` on its new stack. Not by the C library: it carries the
/// cookie ([`crate::raw::carry`]).
///
/// # Safety
/// `args` must be what the call takes, and give the child a stack of its own, aligned to 16 bytes; `body` must not return.
unsafe fn clone_onto_stack(
    number: libc::c_long,
    args: [usize; 5],
    body: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
) -> Result<i32, Errno> {
    let answer: isize;
    // SAFETY: only the parent leaves the block, with the kernel's answer; the child has its own stack pointer, and its
    // other registers are copies.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") number as isize => answer,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") crate::raw::carried(),
            in("r12") body, in("r13") argument,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    // SAFETY: as on x86-64.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x21",
            "blr x20",
            "brk 1",
            "2:",
            inlateout("x0") args[0] as isize => answer,
            in("x1") args[1], in("x2") args[2], in("x3") args[3], in("x4") args[4],
            in("x5") crate::raw::carried(), in("x8") number,
            in("x20") body, in("x21") argument,
        );
    }
    crate::raw::result(answer).map(|pid| pid as i32)
}

/// A pidfd of `pid`: pidfd_open(2).
pub fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: no memory is passed.
    let fd = unsafe { crate::syscall!(libc::SYS_pidfd_open, pid, 0) }?;
    // SAFETY: pidfd_open returned a new fd.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Signals the process behind a pidfd: pidfd_send_signal(2). ESRCH once it has been reaped.
pub fn pidfd_send_signal(process: BorrowedFd<'_>, signal: c_int) -> Result<(), Errno> {
    // SAFETY: a null siginfo is allowed.
    unsafe { crate::syscall!(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, 0, 0) }.map(drop)
}

/// prctl(2) with plain numbers.
pub fn prctl(option: c_int, value: usize) -> SysResult {
    // SAFETY: callers pass options whose arguments are numbers; a wrong number gives EINVAL.
    unsafe { crate::syscall!(libc::SYS_prctl, option, value, 0, 0, 0) }
}

/// Closes (or with `CLOSE_RANGE_CLOEXEC` marks) every fd from `first` to `last`.
pub fn close_range(first: u32, last: u32, flags: u32) -> Result<(), Errno> {
    // SAFETY: no memory is passed; the callers own the fds of that range.
    unsafe { crate::syscall!(libc::SYS_close_range, first, last, flags) }.map(drop)
}

/// `CLOSE_RANGE_CLOEXEC`: mark, don't close.
pub const CLOSE_RANGE_CLOEXEC: u32 = 4;

/// Installs a compiled syscall filter on this thread: seccomp(2), `SECCOMP_SET_MODE_FILTER`.
///
/// `filter` is an array of `struct sock_filter`.
pub fn install_filter(filter: &[u8]) -> Result<(), Errno> {
    let program = libc::sock_fprog {
        len: (filter.len() / size_of::<libc::sock_filter>()) as u16,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the program is as long as said; the kernel copies and verifies it.
    unsafe { crate::syscall!(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) }
        .map(drop)
}

/// The same for a filter that can answer `SECCOMP_RET_USER_NOTIF`; returns the listener: seccomp_unotify(2). `EBUSY`: this
/// process is itself under a filter with a listener.
pub fn install_listening_filter(filter: &[u8]) -> Result<RawFd, Errno> {
    let program = libc::sock_fprog {
        len: (filter.len() / size_of::<libc::sock_filter>()) as u16,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    let install = |flags: libc::c_ulong| {
        // SAFETY: as in `install_filter`.
        unsafe {
            crate::syscall!(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
        }
    };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // Since Linux 5.19: a call that the supervisor has received is interrupted by a deadly signal only.
    let fd = match install(flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(Errno::EINVAL) => install(flags)?,
        answer => answer?,
    };
    Ok(fd as RawFd)
}

/// Joins the namespace behind `fd`: setns(2).
pub fn join_namespace(fd: RawFd, kind: c_int) -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    unsafe { crate::syscall!(libc::SYS_setns, fd, kind) }.map(drop)
}

/// unshare(2).
pub fn unshare(flags: c_int) -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    unsafe { crate::syscall!(libc::SYS_unshare, flags) }.map(drop)
}

/// Writes `text` in one write(2) to the file `path` below `dir`.
pub fn write_file_at(dir: RawFd, path: &CStr, text: &[u8]) -> Result<(), Errno> {
    // SAFETY: path is a C string.
    let fd = unsafe {
        crate::syscall!(libc::SYS_openat, dir, path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC, 0)
    }?;
    // SAFETY: text is ours and as long as said.
    let written = unsafe { crate::syscall!(libc::SYS_write, fd, text.as_ptr(), text.len()) };
    // SAFETY: fd was opened above and nobody else knows it.
    let closed = unsafe { crate::syscall!(libc::SYS_close, fd) };
    written.and(closed).map(drop)
}

/// Whether this user namespace has more than one id, so that a sandboxee can have another than its host. The root of
/// `unshare -r` has not: it is an unprivileged user by another name, and is served like one (user_namespaces(7)).
///
/// What can't be read is an error and not a no: for want of a descriptor nobody shall run as the host's root.
pub fn has_ids_to_give() -> Result<bool, Errno> {
    let read = |path| match std::fs::read_to_string(path) {
        // A kernel without user namespaces.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
        Ok(text) => Ok(text),
    };
    let (map, setgroups) = (read("/proc/self/uid_map")?, read("/proc/self/setgroups")?);
    let count = |line: &str| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok();
    Ok(map.lines().filter_map(count).sum::<u64>() > 1 && setgroups.trim() == "allow")
}

/// Puts this process into one of the scheduling classes that have no priorities: `SCHED_OTHER`, `SCHED_BATCH` (sched(7)).
pub fn set_scheduling(class: c_int) -> Result<(), Errno> {
    // SAFETY: all-zero is a valid sched_param, and the only one that these classes take.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: a struct of ours.
    unsafe { crate::syscall!(libc::SYS_sched_setscheduler, 0, class, &raw const parameters) }.map(drop)
}

/// Whether this process acts with another user's or group's rights than those it belongs to: a set-user-ID program, or one
/// that took on other ids for a while. Whatever it starts keeps the one it belongs to, and the rights of that.
#[must_use]
pub fn has_borrowed_rights() -> bool {
    use nix::unistd::{getegid, geteuid, getgid, getuid};
    getuid() != geteuid() || getgid() != getegid()
}

/// Whether the program of this process was given rights by its file that whoever executed it may not have (`AT_SECURE`,
/// getauxval(3)): then nothing in the environment may choose what runs.
#[must_use]
pub fn is_executed_securely() -> bool {
    // SAFETY: takes a number.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// CLOCK_MONOTONIC in nanoseconds.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a timespec of ours; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
