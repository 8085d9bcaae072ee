//! The launch child's half of supervision: installs a filter that asks a supervisor, and leaves the listener to init.
//!
//! The child is cloned with init's fd table ([`FLAGS`]), so that the listener is init's as well, and takes a table of its own right
//! after it has installed the filter; unshare(2) carries the launch cookie, by which every filter lets it pass. Promises:
//! [`install`] allocates nothing and makes no other call under the filter; init has the listener before the program's first
//! instruction. Called by [`crate::child`] and [`crate::init`].

use std::os::fd::{FromRawFd, OwnedFd};

use nestbox_protocol::Step;
use nestbox_sys::{Errno, process};

use crate::fault::{At, Fault};

/// What a child that will [`install`] is cloned with.
pub(crate) const FLAGS: i32 = libc::CLONE_FILES;

/// Installs `filter` with a listener, and answers that: init's, for the child's own is closed with all others that the program does
/// not get.
pub(crate) fn install(filter: &[u8]) -> Result<OwnedFd, Fault<'static>> {
    let step = Step::InstallFilter;
    let listener = process::install_listening_filter(filter).map_err(|errno| {
        let fault = Fault::new(step, errno, "seccomp", b"listener");
        if errno == Errno::EBUSY {
            fault.detail("this host is itself supervised, and the kernel lets a process have one supervisor")
        } else {
            fault
        }
    })?;
    process::unshare(libc::CLONE_FILES).at(step, "unshare", b"descriptors")?;
    // SAFETY: by this number it is init's as well, and nobody else there owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}
