//! What the arguments of system calls are: where pointers lead to strings, addresses and data, and which small arguments
//! tell one use of a call from another.
//!
//! Constant tables, by the numbers of this architecture. What is not listed has no argument of that kind. Used by
//! [`crate::notify`].

use libc::c_long;

/// What a pointer argument leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    /// A string up to its NUL.
    Path(usize),
    /// A struct sockaddr, as long as that argument says.
    Address(usize, usize),
    /// Bytes, as many as that argument says.
    Data(usize, usize),
}

/// Of aarch64, libc knows it with some C libraries only.
const RENAMEAT: c_long = if cfg!(target_arch = "aarch64") { 38 } else { 264 };

/// The regions of a call, in the order of its arguments.
pub(crate) fn regions(number: c_long) -> &'static [Region] {
    use Region::{Address, Data, Path};
    #[cfg(target_arch = "x86_64")]
    match number {
        libc::SYS_open
        | libc::SYS_creat
        | libc::SYS_stat
        | libc::SYS_lstat
        | libc::SYS_access
        | libc::SYS_readlink
        | libc::SYS_mkdir
        | libc::SYS_rmdir
        | libc::SYS_mknod
        | libc::SYS_unlink
        | libc::SYS_chmod
        | libc::SYS_chown
        | libc::SYS_lchown
        | libc::SYS_utime
        | libc::SYS_utimes
        | libc::SYS_uselib => return &[Path(0)],
        libc::SYS_futimesat => return &[Path(1)],
        libc::SYS_rename | libc::SYS_link | libc::SYS_symlink => return &[Path(0), Path(1)],
        _ => {}
    }
    match number {
        libc::SYS_execve
        | libc::SYS_chdir
        | libc::SYS_chroot
        | libc::SYS_truncate
        | libc::SYS_statfs
        | libc::SYS_umount2
        | libc::SYS_swapon
        | libc::SYS_swapoff
        | libc::SYS_acct
        | libc::SYS_mq_open
        | libc::SYS_mq_unlink
        | libc::SYS_memfd_create
        | libc::SYS_getxattr
        | libc::SYS_lgetxattr
        | libc::SYS_setxattr
        | libc::SYS_lsetxattr
        | libc::SYS_listxattr
        | libc::SYS_llistxattr
        | libc::SYS_removexattr
        | libc::SYS_lremovexattr
        | libc::SYS_fsopen => &[Path(0)],
        libc::SYS_openat
        | libc::SYS_execveat
        | libc::SYS_newfstatat
        | libc::SYS_statx
        | libc::SYS_faccessat
        | libc::SYS_faccessat2
        | libc::SYS_readlinkat
        | libc::SYS_mkdirat
        | libc::SYS_mknodat
        | libc::SYS_unlinkat
        | libc::SYS_fchmodat
        | libc::SYS_fchownat
        | libc::SYS_utimensat
        | libc::SYS_inotify_add_watch
        | libc::SYS_name_to_handle_at
        | libc::SYS_open_tree
        | libc::SYS_mount_setattr
        | libc::SYS_fspick
        | libc::SYS_quotactl => &[Path(1)],
        // How to open, behind the path.
        libc::SYS_openat2 => &[Path(1), Data(2, 3)],
        libc::SYS_fanotify_mark => &[Path(4)],
        libc::SYS_mount => &[Path(0), Path(1), Path(2)],
        libc::SYS_pivot_root => &[Path(0), Path(1)],
        RENAMEAT | libc::SYS_renameat2 | libc::SYS_linkat | libc::SYS_move_mount => &[Path(1), Path(3)],
        libc::SYS_symlinkat => &[Path(0), Path(2)],
        libc::SYS_connect | libc::SYS_bind => &[Address(1, 2)],
        libc::SYS_sendto => &[Data(1, 2), Address(4, 5)],
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_sched_setaffinity | libc::SYS_bpf => &[Data(1, 2)],
        libc::SYS_setsockopt => &[Data(3, 4)],
        // Of clone3 the flags are in memory.
        libc::SYS_clone3 | libc::SYS_sethostname | libc::SYS_setdomainname => &[Data(0, 1)],
        _ => &[],
    }
}

/// The arguments, as bits, that decide what a call does: families, requests, commands. Never pointers, sizes or fds, and
/// nothing that differs from one run of a program to the next.
pub(crate) fn telling(number: c_long) -> u32 {
    const FIRST: u32 = 1;
    const SECOND: u32 = 2;
    const THIRD: u32 = 4;
    #[cfg(target_arch = "x86_64")]
    if number == libc::SYS_arch_prctl {
        return FIRST;
    }
    match number {
        libc::SYS_socket => FIRST | THIRD,
        libc::SYS_setsockopt | libc::SYS_getsockopt => SECOND | THIRD,
        libc::SYS_ioctl | libc::SYS_fcntl | libc::SYS_setns => SECOND,
        // Whose limits, and which.
        libc::SYS_prlimit64 => FIRST | SECOND,
        libc::SYS_socketpair
        | libc::SYS_clone
        | libc::SYS_unshare
        | libc::SYS_prctl
        | libc::SYS_personality
        | libc::SYS_seccomp
        | libc::SYS_keyctl
        | libc::SYS_bpf => FIRST,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_in_the_order_of_arguments_and_exist() {
        for number in 0..600 {
            let first = |region: &Region| match *region {
                Region::Path(at) | Region::Address(at, _) | Region::Data(at, _) => at,
            };
            let regions = regions(number);
            assert!(regions.is_sorted_by_key(first), "{number}");
            for region in regions {
                let (Region::Path(last) | Region::Address(_, last) | Region::Data(_, last)) = *region;
                assert!(last < 6, "{number}");
            }
        }
        assert_eq!(regions(libc::SYS_openat), [Region::Path(1)]);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(RENAMEAT, libc::SYS_renameat);
        assert_eq!(regions(libc::SYS_getpid), []);
    }
}
