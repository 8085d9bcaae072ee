//! The Landlock rules of a nest: the same rules on the same places as the fork server's (`crates/forkserver/src/landlock.rs`).
//!
//! Where the kernel has no Landlock there is none here, as there. Promises: after [`Rules::new`] system calls only.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, RawFd};

use nestbox_protocol::{Plan, mount as kinds};
use nestbox_sys::mount::{mount, open_at};

use crate::fault::{During, Fault};
use crate::nest::c_string;

const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
const READ: u64 = 0b1101;
/// All that the fifth ABI knows.
const ALL: u64 = 0xffff;
const DEVICE: u64 = READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV;

/// The ABI that has both scopes; with an older one this has no rules.
const ABI: usize = 6;
const SCOPES: u64 = 0b11;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Attributes {
    access_fs: u64,
    access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    access: u64,
    parent: RawFd,
}

/// Places of the tree, and what may be done below them.
#[derive(Debug)]
pub(crate) struct Rules {
    places: Vec<(CString, u64)>,
    proc: Option<CString>,
}

impl Rules {
    /// None, where the kernel has none.
    pub(crate) fn new(plan: &Plan) -> Result<Option<Self>, Fault> {
        // SAFETY: with this flag the pointer is null and the size 0.
        let abi = unsafe { nestbox_sys::syscall!(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
        if abi.unwrap_or(0) < ABI {
            return Ok(None);
        }
        let mut places = vec![(c_string(b"/")?, READ), (c_string(b"/dev")?, ALL)];
        let mut proc = None;
        for step in &plan.nest_mounts {
            let access = match step.kind {
                Some(kinds::Kind::Proc(_)) => READ_FILE | WRITE_FILE | TRUNCATE,
                Some(kinds::Kind::Tmpfs(_)) => ALL,
                _ => continue,
            };
            if matches!(step.kind, Some(kinds::Kind::Proc(_))) {
                proc = Some(c_string(&step.path)?);
            }
            if !step.path.starts_with(b"/dev/") {
                places.push((c_string(&step.path)?, access));
            }
        }
        Ok(Some(Self { places, proc }))
    }

    /// Makes the ruleset, with the rule for message queues, whose file system is mounted where proc will cover it.
    pub(crate) fn create(&self) -> Result<RawFd, Fault> {
        let attributes = Attributes { access_fs: ALL, access_net: 0, scoped: SCOPES };
        let (start, size) = (&raw const attributes, size_of::<Attributes>());
        // SAFETY: a struct of ours, as long as said.
        let ruleset = unsafe { nestbox_sys::syscall!(libc::SYS_landlock_create_ruleset, start, size, 0) }
            .during("landlock_create_ruleset")? as RawFd;
        if let Some(proc) = &self.proc {
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            mount(c"mqueue", proc, c"mqueue", flags, c"").during("mount: mqueue")?;
            add(ruleset, proc, ALL)?;
        }
        Ok(ruleset)
    }

    /// Adds the rules, in a nest whose mounts are there.
    pub(crate) fn fill(&self, ruleset: RawFd) -> Result<(), Fault> {
        for (place, access) in &self.places {
            add(ruleset, place, *access)?;
        }
        add_fd(ruleset, crate::launch::NULL_FD, DEVICE)
    }
}

fn add(ruleset: RawFd, place: &CStr, access: u64) -> Result<(), Fault> {
    let place = open_at(libc::AT_FDCWD, place, libc::O_PATH, 0, 0).on("openat2", place.to_bytes())?;
    add_fd(ruleset, place.as_raw_fd(), access)
}

fn add_fd(ruleset: RawFd, parent: RawFd, access: u64) -> Result<(), Fault> {
    let rule = PathBeneath { access, parent };
    // SAFETY: a struct of ours.
    unsafe { nestbox_sys::syscall!(libc::SYS_landlock_add_rule, ruleset, 1, &raw const rule, 0) }
        .during("landlock_add_rule")
        .map(drop)
}

/// Restricts the sandboxee.
pub(crate) fn enforce(ruleset: RawFd) -> Result<(), Fault> {
    // SAFETY: numbers only.
    unsafe { nestbox_sys::syscall!(libc::SYS_landlock_restrict_self, ruleset, 0) }
        .during("landlock_restrict_self")
        .map(drop)
}
