//! Which system calls are refused as such, whatever their arguments: the mark of a syscall filter, or of an old kernel.
//!
//! Each call is made with arguments that the kernel finds wrong before it looks at permissions. So "not permitted" and "no
//! such call" come from a filter (or, the latter, from a kernel that lacks it) and never from missing privileges. Called
//! as the first probe: its list is what a container's seccomp profile has to allow.

use nestbox_sys::Errno;
use nix::sys::wait::WaitStatus;

use super::{Found, fault};
use crate::fault::Fault;
use crate::server::Server;

/// A call, and arguments that are wrong. Calls whose permissions come first (pivot_root, move_mount) are not here.
const CALLS: [(&str, libc::c_long, [usize; 6]); 15] = [
    ("unshare", libc::SYS_unshare, [0; 6]),
    ("setns", libc::SYS_setns, [BAD_FD, 0, 0, 0, 0, 0]),
    ("clone3", libc::SYS_clone3, [0; 6]),
    ("mount", libc::SYS_mount, [0; 6]),
    ("open_tree", libc::SYS_open_tree, [BAD_FD, 0, 0, 0, 0, 0]),
    ("mount_setattr", libc::SYS_mount_setattr, [BAD_FD, 0, 0, 0, 0, 0]),
    ("chroot", libc::SYS_chroot, [0; 6]),
    ("openat2", libc::SYS_openat2, [BAD_FD, 0, 0, 0, 0, 0]),
    ("execveat", libc::SYS_execveat, [BAD_FD, 0, 0, 0, 0, 0]),
    ("pidfd_open", libc::SYS_pidfd_open, [BAD_FD, 0, 0, 0, 0, 0]),
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal, [BAD_FD, 0, 0, 0, 0, 0]),
    ("memfd_create", libc::SYS_memfd_create, [0; 6]),
    ("close_range", libc::SYS_close_range, [1, 0, 0, 0, 0, 0]),
    ("seccomp", libc::SYS_seccomp, [0x7fff, 0, 0, 0, 0, 0]),
    ("prctl", libc::SYS_prctl, [libc::PR_GET_NO_NEW_PRIVS as usize, 0, 0, 0, 0, 0]),
];

const BAD_FD: usize = usize::MAX;

/// The names of those refused, and how.
pub(super) fn refused(_: Server) -> Found {
    let mut refused: Vec<(&'static str, Errno)> = Vec::new();
    for (name, number, args) in CALLS {
        if let Some(errno) = refusal(number, args)? {
            refused.push((name, errno));
        }
    }
    let Some(&(first, errno)) = refused.first() else { return Ok(String::new()) };
    let names: Vec<_> = refused.iter().map(|(name, errno)| format!("{name} ({errno:?})")).collect();
    // This process ends with the probe.
    Err(fault(errno, first, b"")
        .detail(format!("refused whatever the arguments: {}", names.join(", ")).leak()))
}

/// Makes the call in a process of its own, for a filter may kill for it.
fn refusal(number: libc::c_long, args: [usize; 6]) -> Result<Option<Errno>, Fault<'static>> {
    let Some(child) = super::fork().map_err(|errno| fault(errno, "fork", b"a probe's process"))? else {
        // SAFETY: every pointer is null, which the kernel refuses to read.
        let errno = unsafe { nestbox_sys::raw::syscall(number, args) }.err();
        crate::exit(match errno {
            Some(Errno::EPERM) => libc::EPERM,
            Some(Errno::EACCES) => libc::EACCES,
            Some(Errno::ENOSYS) => libc::ENOSYS,
            _ => 0,
        })
    };
    Ok(match nix::sys::wait::waitpid(child, None) {
        Ok(WaitStatus::Exited(_, 0)) => None,
        Ok(WaitStatus::Exited(_, errno)) => Some(Errno::from_raw(errno)),
        // Killed for it.
        _ => Some(Errno::EPERM),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_refused_without_a_filter() {
        let filtered =
            std::fs::read_to_string("/proc/self/status").is_ok_and(|status| !status.contains("Seccomp:\t0"));
        let server = Server { pid: nix::unistd::getpid().as_raw(), privileged: false };
        if !filtered {
            assert_eq!(refused(server).expect("none").as_str(), "");
        }
    }
}
