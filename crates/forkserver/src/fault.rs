//! A step that failed, as it is known where it failed: no allocation, so that it can be made between clone and exec.
//!
//! Every fallible function of the fork server returns one of these. [`crate::report`] puts it on the wire as
//! `nestbox.Failure`; hints are added by the client, which may look at the host's state.

use nestbox_protocol::Step;
use nestbox_sys::Errno;

/// What was attempted, on what, and the kernel's answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault<'a> {
    pub(crate) step: Step,
    pub(crate) errno: Errno,
    pub(crate) syscall: &'static str,
    pub(crate) path: &'a [u8],
    /// The program can't be executed: the caller's fault.
    pub(crate) exec: bool,
    /// A further fact, where errno alone misleads.
    pub(crate) detail: &'static str,
}

impl<'a> Fault<'a> {
    pub(crate) const fn new(step: Step, errno: Errno, syscall: &'static str, path: &'a [u8]) -> Self {
        Self { step, errno, syscall, path, exec: false, detail: "" }
    }

    pub(crate) const fn detail(self, detail: &'static str) -> Self {
        Self { detail, ..self }
    }
}

/// Names the step that a failed system call belongs to.
pub(crate) trait At<T> {
    /// The failure of `syscall` on `path`, in `step`.
    fn at<'a>(self, step: Step, syscall: &'static str, path: &'a [u8]) -> Result<T, Fault<'a>>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at<'a>(self, step: Step, syscall: &'static str, path: &'a [u8]) -> Result<T, Fault<'a>> {
        self.map_err(|errno| Fault::new(step, errno, syscall, path))
    }
}
