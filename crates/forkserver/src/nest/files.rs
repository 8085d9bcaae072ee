//! Files and directories of the sandboxee's on file systems that are the nest's own: the plan's, and a launch's private files.
//!
//! Promises: no symlink is followed on the way to a file; the mode of what the plan lists is the policy's, whatever our umask. Runs in
//! init.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nestbox_protocol::Step;
use nestbox_sys::Errno;
use nestbox_sys::mount::{RESOLVE_WITHOUT_LINKS, open_at};
use nestbox_sys::raw::{copy_all, write_all};

use crate::fault::{At, Fault};
use crate::launch::{Content, Ids, LaunchFile, Prepared};

/// Writes a launch's private file, making the directories above it. Nothing of the user runs yet, and the client has seen to
/// it that the path lies below a tmpfs of this nest. That holds of the path as it is written, so no link is followed on the way:
/// one of the policy's might lead to a bind, where a directory would be made on the host.
///
/// Not inlined: [`super::add`] is on the path of every launch, and few have files.
#[inline(never)]
pub(super) fn write_private_file<'a>(
    file: &'a LaunchFile<'_>,
    launch: &Prepared<'_>,
) -> Result<(), Fault<'a>> {
    let step = Step::WriteLaunchFile;
    let mut directory = open_at(libc::AT_FDCWD, c"/", DIRECTORY, 0, 0).at(step, "openat2", b"/")?;
    let mut names = file.path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).peekable();
    let mut room = [0; NAME_MAX + 1];
    while let Some(name) = names.next() {
        let name = component(name, &mut room).at(step, "openat2", file.path)?;
        if names.peek().is_none() {
            return write_new_file(directory.as_raw_fd(), name, file.content, file.mode, launch.ids)
                .map_err(|(errno, syscall)| Fault::new(step, errno, syscall, file.path));
        }
        directory = match open_at(directory.as_raw_fd(), name, DIRECTORY, 0, RESOLVE_WITHOUT_LINKS) {
            Err(Errno::ENOENT) => {
                add_directory(directory.as_raw_fd(), name, 0o755, launch.ids)
                    .at(step, "mkdirat", file.path)?;
                open_at(directory.as_raw_fd(), name, DIRECTORY, 0, RESOLVE_WITHOUT_LINKS)
            }
            opened => opened,
        }
        .at(step, "openat2", file.path)?;
    }
    Err(Fault::new(step, Errno::EISDIR, "openat2", file.path))
}

/// How a directory is opened to go on from there.
const DIRECTORY: i32 = libc::O_PATH | libc::O_DIRECTORY;

/// The longest name of a file: limits.h(0p).
const NAME_MAX: usize = 255;

/// One component of a path, with its NUL, in `room`.
fn component<'a>(name: &[u8], room: &'a mut [u8; NAME_MAX + 1]) -> Result<&'a CStr, Errno> {
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    room[..name.len()].copy_from_slice(name);
    room[name.len()] = 0;
    CStr::from_bytes_with_nul(&room[..=name.len()]).map_err(|_| Errno::EINVAL)
}

/// Makes a directory of the sandboxee's, below another; our umask takes of the mode what it does.
fn add_directory(directory: RawFd, path: &CStr, mode: u32, ids: Ids) -> Result<(), Errno> {
    let (path, uid, gid) = (path.as_ptr(), ids.outer_uid, ids.outer_gid);
    // SAFETY: a C string.
    unsafe { nestbox_sys::syscall!(libc::SYS_mkdirat, directory, path, mode) }?;
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: as above.
    unsafe { nestbox_sys::syscall!(libc::SYS_fchownat, directory, path, uid, gid, flags) }.map(drop)
}

/// Makes a directory of the sandboxee's on a file system of the nest's own. The mode is the policy's, whatever our umask.
pub(super) fn make_directory(path: &CStr, mode: u32, ids: Ids) -> Result<(), Errno> {
    add_directory(libc::AT_FDCWD, path, mode, ids)?;
    // SAFETY: a C string.
    unsafe { nestbox_sys::syscall!(libc::SYS_fchmodat, libc::AT_FDCWD, path.as_ptr(), mode) }.map(drop)
}

/// One of several calls, and what it said.
type Failed = (Errno, &'static str);

/// Creates and writes a file of the sandboxee's, at a path below a directory.
pub(super) fn write_new_file(
    directory: RawFd,
    path: &CStr,
    content: Content<'_>,
    mode: u32,
    ids: Ids,
) -> Result<(), Failed> {
    let in_call = |syscall| move |errno| (errno, syscall);
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
    let file = open_at(directory, path, flags, 0o600, RESOLVE_WITHOUT_LINKS).map_err(in_call("openat2"))?;
    match content {
        Content::Bytes(bytes) => write_all(file.as_fd(), bytes).map_err(in_call("write")),
        Content::Of(from) => copy_all(from, file.as_fd()).map_err(in_call("sendfile")),
    }?;
    // SAFETY: numbers only.
    unsafe { nestbox_sys::syscall!(libc::SYS_fchown, file.as_raw_fd(), ids.outer_uid, ids.outer_gid) }
        .map_err(in_call("fchown"))?;
    // SAFETY: numbers only.
    unsafe { nestbox_sys::syscall!(libc::SYS_fchmod, file.as_raw_fd(), mode) }
        .map_err(in_call("fchmod"))
        .map(drop)
}
