//! Files and directories of the sandboxee's on file systems that are the nest's own: the plan's, and a launch's private files.
//!
//! Promises: a file is written through no symlink; the mode of what the plan lists is the policy's, whatever our umask. Runs in
//! init.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};

use nestbox_protocol::Step;
use nestbox_sys::Errno;
use nestbox_sys::mount::{RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, open_at};
use nestbox_sys::raw::write_all;

use crate::fault::{At, Fault};
use crate::launch::{Ids, LaunchFile, Prepared};
use crate::source::below_root;

/// Writes a launch's private file, making the directories above it. Nothing of the user runs yet, and the client has
/// seen to it that the path lies below a tmpfs of this nest; symlinks are refused all the same.
///
/// Not inlined: [`super::add`] is on the path of every launch, and few have files.
#[inline(never)]
pub(super) fn write_private_file<'a>(
    file: &'a LaunchFile<'_>,
    launch: &Prepared<'_>,
) -> Result<(), Fault<'a>> {
    let step = Step::WriteLaunchFile;
    let mut path = [0; libc::PATH_MAX as usize];
    if file.path.len() >= path.len() || file.path.contains(&0) {
        return Err(Fault::new(step, Errno::ENAMETOOLONG, "openat2", file.path));
    }
    // Each proper prefix is a directory; those that are missing are made.
    for (index, _) in file.path.iter().enumerate().skip(1).filter(|&(_, &byte)| byte == b'/') {
        path[..index].copy_from_slice(&file.path[..index]);
        path[index] = 0;
        // SAFETY: the path ends in NUL.
        let made = unsafe { nestbox_sys::syscall!(libc::SYS_mkdirat, libc::AT_FDCWD, path.as_ptr(), 0o755) };
        match made {
            Ok(_) => {
                // SAFETY: as above.
                unsafe {
                    nestbox_sys::syscall!(
                        libc::SYS_fchownat,
                        libc::AT_FDCWD,
                        path.as_ptr(),
                        launch.ids.outer_uid,
                        launch.ids.outer_gid,
                        libc::AT_SYMLINK_NOFOLLOW
                    )
                }
                .at(step, "fchownat", file.path)?;
            }
            // On a read-only mount an existing directory answers EROFS.
            Err(Errno::EEXIST | Errno::EROFS) => {}
            Err(errno) => return Err(Fault::new(step, errno, "mkdirat", file.path)),
        }
    }
    path[..file.path.len()].copy_from_slice(file.path);
    path[file.path.len()] = 0;
    let path = CStr::from_bytes_until_nul(&path)
        .map_err(|_| Fault::new(step, Errno::EINVAL, "openat2", file.path))?;
    write_new_file(path, file.content, file.mode, launch.ids).at(step, "openat2", file.path)
}

/// Makes a directory of the sandboxee's on a file system of the nest's own. The mode is the policy's, whatever our umask.
pub(super) fn make_directory(path: &CStr, mode: u32, ids: Ids) -> Result<(), Errno> {
    // SAFETY: a C string.
    unsafe { nestbox_sys::syscall!(libc::SYS_mkdirat, libc::AT_FDCWD, path.as_ptr(), mode) }?;
    // SAFETY: as above.
    unsafe {
        nestbox_sys::syscall!(
            libc::SYS_fchownat,
            libc::AT_FDCWD,
            path.as_ptr(),
            ids.outer_uid,
            ids.outer_gid,
            libc::AT_SYMLINK_NOFOLLOW
        )
    }?;
    // SAFETY: as above.
    unsafe { nestbox_sys::syscall!(libc::SYS_fchmodat, libc::AT_FDCWD, path.as_ptr(), mode) }.map(drop)
}

/// Creates and writes a file of the sandboxee's, below this process's root.
pub(super) fn write_new_file(path: &CStr, content: &[u8], mode: u32, ids: Ids) -> Result<(), Errno> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
    let resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
    let file = open_at(libc::AT_FDCWD, below_root(path), flags, 0o600, resolve)?;
    write_all(file.as_fd(), content)?;
    // SAFETY: numbers only.
    unsafe { nestbox_sys::syscall!(libc::SYS_fchown, file.as_raw_fd(), ids.outer_uid, ids.outer_gid) }?;
    // SAFETY: numbers only.
    unsafe { nestbox_sys::syscall!(libc::SYS_fchmod, file.as_raw_fd(), mode) }.map(drop)
}
