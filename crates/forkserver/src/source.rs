//! Opening a bind source: from a path in the host's tree to a detached mount with its attributes set and checked.
//!
//! Promises: what is attached later is what was verified here, because it is held by fd from now on: a source that was
//! swapped for a symlink or another directory since the policy looked at it is refused; a mount is never more than its
//! source allows (locked flags stay) and never has setuid bits or devices. Called by templates (policy binds) and the
//! mounter (launch binds), both of which see the host's tree at `/` when they call.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nestbox_protocol::{Bind, Step};
use nestbox_sys::Errno;
use nestbox_sys::mount::{
    ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, MountAttr, open_tree, set_attributes,
};

use crate::fault::{At, Fault};
use crate::privileged;

/// Whom a writable bind is id-mapped for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdMapping {
    /// There is a privileged helper to ask.
    pub(crate) available: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A bind source, ready to be attached.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) mount: OwnedFd,
    /// A writable bind of a root host whose file system can't be id-mapped.
    pub(crate) not_id_mapped: bool,
}

/// Opens `bind.source`, which must be a path in the host's tree as seen from this process's root.
pub(crate) fn open(bind: &Bind, ids: IdMapping) -> Result<Source, Fault<'_>> {
    let path = CString::new(bind.source.as_slice())
        .map_err(|_| Fault::new(Step::OpenBindSource, Errno::EINVAL, "open_tree", &bind.source))?;
    let mount = open_tree(libc::AT_FDCWD, &path, bind.directory).at(
        Step::OpenBindSource,
        "open_tree",
        &bind.source,
    )?;
    verify(bind, mount.as_fd())?;
    let mut not_id_mapped = false;
    if bind.writable && !bind.device && ids.available {
        match privileged::ask_id_map(mount.as_fd(), ids.uid, ids.gid) {
            Ok(()) => {}
            // The file system lacks FS_ALLOW_IDMAP, or the helper lacks CAP_SYS_ADMIN where it is owned: reported.
            Err(Errno::EINVAL | Errno::EPERM) => not_id_mapped = true,
            Err(errno) => {
                return Err(Fault::new(Step::IdMapBind, errno, "mount_setattr", &bind.source));
            }
        }
    }
    set_attributes(mount.as_fd(), &attributes(bind), true).at(
        Step::SetBindAttributes,
        "mount_setattr",
        &bind.source,
    )?;
    if bind.writable && !bind.device {
        refuse_read_only(bind, mount.as_fd())?;
    }
    Ok(Source { mount, not_id_mapped })
}

/// Read-only unless writable, never setuid, devices only in our own nodes; for the whole tree below.
fn attributes(bind: &Bind) -> MountAttr {
    let mut set = ATTR_NOSUID;
    if !bind.writable {
        set |= ATTR_RDONLY;
    }
    if !bind.device {
        set |= ATTR_NODEV;
    }
    if !bind.exec || bind.device {
        set |= ATTR_NOEXEC;
    }
    let propagation = if bind.propagation { libc::MS_SLAVE } else { libc::MS_PRIVATE };
    MountAttr { set, propagation, ..MountAttr::default() }
}

/// Compares what was opened with what the planner saw.
fn verify<'a>(bind: &'a Bind, mount: BorrowedFd<'_>) -> Result<(), Fault<'a>> {
    let step = Step::VerifyBindSource;
    let status = status(mount).at(step, "fstat", &bind.source)?;
    let kind = status.st_mode & libc::S_IFMT;
    let fault = |errno, detail| Err(Fault::new(step, errno, "fstat", &bind.source).detail(detail));
    if bind.device {
        // runc CVE-2025-31133: a "device" that is something else by the time it is bound.
        let ours = kind == libc::S_IFCHR && is_harmless_device(status.st_rdev);
        return if ours { Ok(()) } else { fault(Errno::ENODEV, "not the device node of that name") };
    }
    match (kind == libc::S_IFDIR, bind.directory) {
        (true, false) => return fault(Errno::EISDIR, "the source is a directory now, and was a file before"),
        (false, true) => return fault(Errno::ENOTDIR, "the source was a directory before, and is none now"),
        _ => {}
    }
    let same = status.st_dev == bind.expected_device && status.st_ino == bind.expected_inode;
    if bind.expected_inode != 0 && !same {
        return fault(Errno::ESTALE, "the source was replaced while the launch was being prepared");
    }
    Ok(())
}

pub(crate) fn status(fd: BorrowedFd<'_>) -> Result<libc::stat, Errno> {
    // SAFETY: all-zero is a valid stat.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a struct of ours.
    Errno::result(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut status) })?;
    Ok(status)
}

/// null, zero, full, random, urandom, tty.
fn is_harmless_device(device: libc::dev_t) -> bool {
    let number = (libc::major(device), libc::minor(device));
    matches!(number, (1, 3 | 5 | 7 | 8 | 9) | (5, 0))
}

/// A writable bind of something that is mounted read-only would silently be read-only. sandbox2: fatal, too.
fn refuse_read_only<'a>(bind: &'a Bind, mount: BorrowedFd<'_>) -> Result<(), Fault<'a>> {
    // SAFETY: all-zero is a valid statvfs.
    let mut status: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a struct of ours.
    Errno::result(unsafe { libc::fstatvfs(mount.as_raw_fd(), &raw mut status) }).at(
        Step::VerifyBindSource,
        "fstatvfs",
        &bind.source,
    )?;
    if status.f_flag & libc::ST_RDONLY != 0 {
        return Err(Fault::new(Step::VerifyBindSource, Errno::EROFS, "fstatvfs", &bind.source)
            .detail("a writable bind of a source that is mounted read-only"));
    }
    Ok(())
}

/// The path as the kernel wants it.
pub(crate) fn c_path(path: &[u8]) -> Result<CString, Errno> {
    CString::new(path).map_err(|_| Errno::EINVAL)
}

/// `path` below the root, as the `*at` calls want it: without the leading slash; `.` for the root itself.
pub(crate) fn below_root(path: &CStr) -> &CStr {
    let bytes = path.to_bytes_with_nul();
    let start = bytes.iter().take_while(|&&byte| byte == b'/').count();
    // The slice keeps the NUL, so it is a C string.
    match CStr::from_bytes_with_nul(&bytes[start..]) {
        Ok(rest) if !rest.is_empty() => rest,
        _ => c".",
    }
}
