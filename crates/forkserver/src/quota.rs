//! What the host keeps of the things that the kernel counts per user.
//!
//! Pending signals and timers, bytes of POSIX message queues, locked memory, processes, inotify and fanotify objects: a
//! user namespace counts its own, and so does every namespace above it, for the user who made the one below. So all that
//! sandboxees hold counts for the host's user too (root has no exemption), and without a bound of U0's own a single
//! program could leave the host without any.
//!
//! Promises: all sandboxees of a fork server together get at most three quarters of each, counting what the host has
//! itself. Called by [`crate::initial`], in the process that makes U0: its resource limits at that moment are U0's for
//! ever (`set_userns_rlimit_max` in the kernel), and no limit of a sandboxee can undo it.

use std::ffi::CStr;
use std::os::fd::AsRawFd;

use nestbox_sys::mount::open_at;
use nestbox_sys::process;

/// Resource limits that are counted per user and per user namespace.
const LIMITS: [libc::__rlimit_resource_t; 4] =
    [libc::RLIMIT_SIGPENDING, libc::RLIMIT_MSGQUEUE, libc::RLIMIT_MEMLOCK, libc::RLIMIT_NPROC];

/// Counts that have no resource limit: the machine's bound, and where a user namespace has its own.
const COUNTS: [(&CStr, &CStr); 4] = [
    (c"/proc/sys/fs/inotify/max_user_instances", c"/proc/sys/user/max_inotify_instances"),
    (c"/proc/sys/fs/inotify/max_user_watches", c"/proc/sys/user/max_inotify_watches"),
    (c"/proc/sys/fs/fanotify/max_user_groups", c"/proc/sys/user/max_fanotify_groups"),
    (c"/proc/sys/fs/fanotify/max_user_marks", c"/proc/sys/user/max_fanotify_marks"),
];

/// Before U0 is made: lowers this process's soft limits, which become U0's.
pub(crate) fn before_user_namespace() {
    for resource in LIMITS {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a struct of ours.
        let known = unsafe { libc::getrlimit(resource, &raw mut limit) } == 0;
        if known && limit.rlim_cur != libc::RLIM_INFINITY {
            limit.rlim_cur = three_quarters(limit.rlim_cur);
            // Lowering a soft limit is always allowed.
            // SAFETY: a struct of ours.
            unsafe { libc::setrlimit(resource, &raw const limit) };
        }
    }
}

/// In U0, with its capabilities. A kernel without one of the counts has nothing to share of it; where a container shows
/// `/proc/sys` read-only the machine's bound is all there is (docs/threat-model.md).
pub(crate) fn in_user_namespace() {
    for (machine, own) in COUNTS {
        if let Some(most) = read_number(machine) {
            let _ = process::write_file_at(libc::AT_FDCWD, own, three_quarters(most).to_string().as_bytes());
        }
    }
}

fn three_quarters(most: u64) -> u64 {
    most - most / 4
}

fn read_number(path: &CStr) -> Option<u64> {
    let file = open_at(libc::AT_FDCWD, path, libc::O_RDONLY, 0, 0).ok()?;
    let mut text = [0_u8; 32];
    // SAFETY: the buffer is ours and as long as said.
    let length =
        unsafe { nestbox_sys::syscall!(libc::SYS_read, file.as_raw_fd(), text.as_mut_ptr(), text.len()) }
            .ok()?;
    std::str::from_utf8(&text[..length]).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_stays_with_the_host() {
        assert_eq!(three_quarters(128), 96);
        assert_eq!(three_quarters(1), 1);
        assert_eq!(three_quarters(0), 0);
    }

    #[test]
    fn numbers_are_read() {
        assert!(read_number(c"/proc/sys/kernel/pid_max").is_some_and(|most| most > 100));
        assert_eq!(read_number(c"/proc/sys/kernel/ostype"), None);
        assert_eq!(read_number(c"/nonexistent"), None);
    }
}
