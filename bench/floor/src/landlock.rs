//! The Landlock rules of a nest: the same rules on the same places as the fork server's (`crates/forkserver/src/landlock.rs`).
//!
//! Where the kernel has no Landlock there is none here, as there. Promises: after [`Rules::new`] system calls only.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, RawFd};

use nestbox_protocol::{Plan, mount as kinds};
use nestbox_sys::landlock::{
    self, ALL, DEVICE, READ, READ_FILE, SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL, TRUNCATE, WRITE_FILE,
};
use nestbox_sys::mount::{mount, open_at};

use crate::fault::{During, Fault};
use crate::nest::c_string;

/// The ABI that has both scopes; with an older one this has no rules.
const ABI: u32 = 6;

/// Places of the tree, and what may be done below them.
#[derive(Debug)]
pub(crate) struct Rules {
    places: Vec<(CString, u64)>,
    proc: Option<CString>,
}

impl Rules {
    /// None, where the kernel has none.
    pub(crate) fn new(plan: &Plan) -> Result<Option<Self>, Fault> {
        if landlock::abi().unwrap_or(0) < ABI {
            return Ok(None);
        }
        let mut places = vec![(c_string(b"/")?, READ), (c_string(b"/dev")?, ALL)];
        let mut proc = None;
        for step in &plan.nest_mounts {
            let access = match step.kind {
                Some(kinds::Kind::Proc(_)) => {
                    proc = Some(c_string(&step.path)?);
                    READ_FILE | WRITE_FILE | TRUNCATE
                }
                Some(kinds::Kind::Tmpfs(_)) => ALL,
                _ => continue,
            };
            if !step.path.starts_with(b"/dev/") {
                places.push((c_string(&step.path)?, access));
            }
        }
        Ok(Some(Self { places, proc }))
    }

    /// Makes the ruleset, with the rule for message queues, whose file system is mounted where proc will cover it.
    pub(crate) fn create(&self) -> Result<RawFd, Fault> {
        let scopes = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL;
        let ruleset = landlock::create_ruleset(ALL, scopes).during("landlock_create_ruleset")?;
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
    landlock::add_rule(ruleset, parent, access).during("landlock_add_rule")
}
