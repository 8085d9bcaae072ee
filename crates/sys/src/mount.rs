//! The mount API of Linux 5.2 and 5.12 (open_tree(2), move_mount(2), mount_setattr(2)), which works on fds instead of
//! paths: a mount can be made, given its attributes and checked before it is visible anywhere.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttr {
    /// Attributes to set: `MOUNT_ATTR_*`.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
    /// Propagation type: `MS_PRIVATE`, `MS_SLAVE`, ... or 0.
    pub propagation: u64,
    /// For `MOUNT_ATTR_IDMAP`.
    pub userns_fd: u64,
}

/// Read-only.
pub const ATTR_RDONLY: u64 = 0x1;
/// Set-user-id bits are ignored.
pub const ATTR_NOSUID: u64 = 0x2;
/// No device nodes.
pub const ATTR_NODEV: u64 = 0x4;
/// No execution.
pub const ATTR_NOEXEC: u64 = 0x8;
/// Map ids as `userns_fd` does.
pub const ATTR_IDMAP: u64 = 0x0010_0000;

const OPEN_TREE_CLONE: u32 = 1;
const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
const AT_RECURSIVE: u32 = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;

/// Clones the mount tree at `path` (with its submounts if `recursive`) as a detached mount. Needs `CAP_SYS_ADMIN` over
/// the caller's mount namespace, in which `path` must be.
pub fn open_tree(dir: RawFd, path: &CStr, recursive: bool) -> Result<OwnedFd, Errno> {
    let flags = OPEN_TREE_CLONE
        | OPEN_TREE_CLOEXEC
        | if recursive { AT_RECURSIVE } else { 0 }
        | if path.is_empty() { libc::AT_EMPTY_PATH as u32 } else { 0 };
    // SAFETY: path is a C string.
    let fd = unsafe { crate::syscall!(libc::SYS_open_tree, dir, path.as_ptr(), flags) }?;
    // SAFETY: open_tree returned a new fd.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Changes the attributes of a mount given by fd, of its whole tree if `recursive`.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: &MountAttr, recursive: bool) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH as u32 | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, the attributes are as long as said.
    unsafe {
        crate::syscall!(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>()
        )
    }
    .map(drop)
}

/// Attaches a detached mount on what `target` is open on.
pub fn attach(mount: RawFd, target: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: both paths are empty C strings.
    unsafe {
        crate::syscall!(
            libc::SYS_move_mount,
            mount,
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        )
    }
    .map(drop)
}

/// mount(2).
pub fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: u64, options: &CStr) -> Result<(), Errno> {
    // SAFETY: all are C strings.
    unsafe {
        crate::syscall!(
            libc::SYS_mount,
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr()
        )
    }
    .map(drop)
}

/// mount(2) with a bare flag change: bind, move, remount, propagation.
pub fn mount_flags(source: &CStr, target: &CStr, flags: u64) -> Result<(), Errno> {
    // SAFETY: both are C strings; type and data are not read with these flags.
    unsafe { crate::syscall!(libc::SYS_mount, source.as_ptr(), target.as_ptr(), 0, flags, 0) }.map(drop)
}

/// `struct open_how` of openat2(2).
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// No symlink anywhere in the path.
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
/// No `/proc/PID/fd`-like links.
pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
/// Never above the directory fd.
pub const RESOLVE_BENEATH: u64 = 0x08;
/// The directory fd is the root for absolute paths, links and `..`.
pub const RESOLVE_IN_ROOT: u64 = 0x10;
/// Never above the directory fd, and by names alone.
pub const RESOLVE_WITHOUT_LINKS: u64 = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;

/// openat2(2). Always close-on-exec.
pub fn open_at(dir: RawFd, path: &CStr, flags: i32, mode: u32, resolve: u64) -> Result<OwnedFd, Errno> {
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: u64::from(mode), resolve };
    // SAFETY: path is a C string, `how` is as long as said.
    let fd = unsafe {
        crate::syscall!(libc::SYS_openat2, dir, path.as_ptr(), &raw const how, size_of::<OpenHow>())
    }?;
    // SAFETY: openat2 returned a new fd.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
