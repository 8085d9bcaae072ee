//! What a process may have the processor do ahead of time: `PR_SET_SPECULATION_CTRL`
//! (`Documentation/userspace-api/spec_ctrl.rst`).
//!
//! Promises: allocates nothing. Called by the launch child, and by the floor of the benchmark, which does the same.

use crate::process::prctl;
use crate::raw::SysResult;

/// Off, and never on again.
const PR_SPEC_FORCE_DISABLE: usize = 8;

/// What is controlled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// `PR_SPEC_STORE_BYPASS`.
    StoreBypass = 0,
    /// `PR_SPEC_INDIRECT_BRANCH`.
    IndirectBranch = 1,
}

impl Feature {
    /// All that is forbidden to a sandboxee.
    pub const ALL: [Self; 2] = [Self::StoreBypass, Self::IndirectBranch];

    /// Forbids it to this process for good, across exec and to its children: `PR_SPEC_FORCE_DISABLE`. `ENXIO`, `ENODEV`,
    /// `EINVAL`: there is no such control; `EPERM`: it is not up to programs, or forbidden already.
    pub fn forbid(self) -> SysResult {
        const PR_SET_SPECULATION_CTRL: usize = 53;
        // SAFETY: numbers only.
        unsafe {
            crate::syscall!(
                libc::SYS_prctl,
                PR_SET_SPECULATION_CTRL,
                self as usize,
                PR_SPEC_FORCE_DISABLE,
                0,
                0
            )
        }
    }

    /// Whether the kernel leaves it to programs, and this one has not been restricted.
    #[must_use]
    pub fn could_be_forbidden(self) -> bool {
        const PR_GET_SPECULATION_CTRL: i32 = 52;
        const PR_SPEC_PRCTL: usize = 1;
        const PR_SPEC_DISABLE: usize = 4;
        let state = prctl(PR_GET_SPECULATION_CTRL, self as usize).unwrap_or(PR_SPEC_PRCTL);
        state & PR_SPEC_PRCTL != 0 && state & (PR_SPEC_DISABLE | PR_SPEC_FORCE_DISABLE) == 0
    }
}
