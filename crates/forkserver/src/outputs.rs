//! What is opened of a nest when everything in it is dead: the launch's outputs, and the files that a crash was in.
//!
//! Promises: regular files alone, opened as the sandboxee could have, whatever it left in their places; nothing is read.
//! Called by [`crate::init`], which sends the fds with its last word.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use nestbox_protocol::crash::MODULES;
use nestbox_sys::Errno;
use nestbox_sys::mount::{RESOLVE_WITHOUT_LINKS, open_at};

use crate::crash::Tracer;
use crate::launch::Prepared;
use crate::report::OUTPUTS_MAX;
use crate::source::{below_root, status};

/// The output files, opened, and what was captured of a crash.
pub(crate) struct Outputs {
    /// Why each could not be opened; 0: it was.
    pub(crate) errnos: [i32; OUTPUTS_MAX],
    fds: [RawFd; OUTPUTS_MAX + 1 + MODULES],
    count: usize,
    /// How many of the fds, the last ones, belong to a crash.
    pub(crate) of_crash: usize,
}

impl Outputs {
    pub(crate) const fn new() -> Self {
        let fds = [-1; OUTPUTS_MAX + 1 + MODULES];
        Self { errnos: [0; OUTPUTS_MAX], fds, count: 0, of_crash: 0 }
    }

    /// Those that were opened.
    pub(crate) fn fds(&self) -> &[RawFd] {
        &self.fds[..self.count]
    }

    /// Opens each, as the sandboxee could have: with its file-system ids, following no symlink, waiting for no FIFO.
    #[inline(never)]
    pub(crate) fn open(&mut self, launch: &Prepared<'_>, crash: Option<Tracer>) {
        if launch.ids.privileged {
            // SAFETY: numbers only. They answer the previous id; a failure shows as EACCES on the open.
            let _ = unsafe { nestbox_sys::syscall!(libc::SYS_setfsgid, launch.ids.outer_gid) };
            // SAFETY: as above.
            let _ = unsafe { nestbox_sys::syscall!(libc::SYS_setfsuid, launch.ids.outer_uid) };
        }
        let (fds, count) = (&mut self.fds, &mut self.count);
        let mut add = |fd: OwnedFd| {
            // Open until this process ends, right after the report.
            fds[*count] = fd.into_raw_fd();
            *count += 1;
        };
        for (path, errno) in launch.outputs.iter().zip(&mut self.errnos) {
            match open_output(path) {
                Ok(fd) => add(fd),
                Err(error) => *errno = error as i32,
            }
        }
        let of_crash = crash.map(|tracer| tracer.finish(open_output)).unwrap_or_default();
        self.of_crash = of_crash.len();
        of_crash.into_iter().for_each(add);
    }
}

/// Whether a file is on a proc.
pub(crate) fn is_proc(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    // SAFETY: all-zero is a valid statfs.
    let mut system: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a struct of ours.
    unsafe { nestbox_sys::syscall!(libc::SYS_fstatfs, file.as_raw_fd(), &raw mut system) }?;
    Ok(system.f_type == PROC_SUPER_MAGIC)
}

/// Opens a regular file of the nest for reading. ELOOP: a symlink somewhere in the path; EMEDIUMTYPE: not a regular file.
fn open_output(path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW;
    let file = open_at(libc::AT_FDCWD, below_root(path), flags, 0, RESOLVE_WITHOUT_LINKS)?;
    if status(file.as_fd())?.st_mode & libc::S_IFMT != libc::S_IFREG || is_proc(file.as_fd())? {
        return Err(Errno::EMEDIUMTYPE);
    }
    Ok(file)
}
