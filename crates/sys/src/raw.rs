//! System calls without the C library.
//!
//! The launch child shares its parent's memory (`CLONE_VM`), the thread-local `errno` included: a failing libc call
//! there would write into its parent. These calls touch registers only, return the errno as a value, and may be used at
//! any point between clone and exec. Called by the fork server's launch path; everything else may use libc.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nix::errno::Errno;

/// A register-sized result: the value, or the errno.
pub type SysResult = Result<usize, Errno>;

/// Turns the kernel's answer (`-4095..=-1` is a negated errno) into a result.
pub(crate) const fn result(answer: isize) -> SysResult {
    if answer < 0 && answer >= -4095 { Err(Errno::from_raw(-answer as i32)) } else { Ok(answer as usize) }
}

/// Makes system call `number`.
///
/// # Safety
/// The arguments must be what the call with that number takes: pointers valid for what the kernel reads or writes.
#[cfg(target_arch = "x86_64")]
#[inline]
pub unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> SysResult {
    let answer: isize;
    // SAFETY: the x86-64 system call convention; rcx and r11 are overwritten by the instruction.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => answer,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result(answer)
}

/// Makes system call `number`.
///
/// # Safety
/// The arguments must be what the call with that number takes: pointers valid for what the kernel reads or writes.
#[cfg(target_arch = "aarch64")]
#[inline]
pub unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> SysResult {
    let answer: isize;
    // SAFETY: the AArch64 system call convention.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") args[0] as isize => answer,
            in("x1") args[1], in("x2") args[2], in("x3") args[3], in("x4") args[4], in("x5") args[5],
            options(nostack),
        );
    }
    result(answer)
}

/// What calls of fewer than six arguments carry in the sixth, which the kernel looks at in none of them.
static COOKIE: AtomicU64 = AtomicU64::new(0);

/// From now on the calls of this process, and of those that are cloned from it, carry this in their sixth argument: a syscall
/// filter can tell them by it from those of a program that it is meant for.
pub fn carry(cookie: u64) {
    COOKIE.store(cookie, Relaxed);
}

/// What [`carry`] was told.
#[must_use]
#[inline]
pub fn carried() -> usize {
    COOKIE.load(Relaxed) as usize
}

/// `syscall!(number, a, b, ...)`: [`syscall`] with up to six arguments, each cast to a register. With fewer than six it carries
/// the cookie ([`carry`]). Needs `unsafe`.
#[macro_export]
macro_rules! syscall {
    ($number:expr $(, $arg:expr)* $(,)?) => {{
        let given = [$($arg as usize),*];
        let mut args = [0, 0, 0, 0, 0, $crate::raw::carried()];
        let mut index = 0;
        while index < given.len() {
            args[index] = given[index];
            index += 1;
        }
        $crate::raw::syscall($number, args)
    }};
}

/// write(2) until all of `content` is written.
pub fn write_all(file: BorrowedFd<'_>, mut content: &[u8]) -> Result<(), Errno> {
    while !content.is_empty() {
        // SAFETY: content is ours and as long as said.
        let written =
            unsafe { crate::syscall!(libc::SYS_write, file.as_raw_fd(), content.as_ptr(), content.len()) };
        match written {
            Err(Errno::EINTR) => {}
            other => content = &content[other?..],
        }
    }
    Ok(())
}

/// sendfile(2) until all that `from` has, from its start on, is written.
pub fn copy_all(from: RawFd, to: BorrowedFd<'_>) -> Result<(), Errno> {
    /// More than this it copies in none of its calls.
    const MOST: usize = 0x7fff_f000;
    let mut offset: libc::off_t = 0;
    loop {
        // SAFETY: a number of ours; the kernel checks the rest.
        let copied =
            unsafe { crate::syscall!(libc::SYS_sendfile, to.as_raw_fd(), from, &raw mut offset, MOST) };
        match copied {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_value_or_errno() {
        // SAFETY: getpid takes nothing.
        let pid = unsafe { syscall(libc::SYS_getpid, [0; 6]) }.expect("getpid can't fail");
        assert_eq!(pid, std::process::id() as usize);
        // SAFETY: -1 is no fd; close reads no memory.
        let error = unsafe { syscall(libc::SYS_close, [usize::MAX, 0, 0, 0, 0, 0]) };
        assert_eq!(error, Err(Errno::EBADF));
    }
}
