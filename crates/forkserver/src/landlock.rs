//! Landlock, an added layer: what a sandboxee may do with files, whatever way it reaches them, and whom it may address.
//!
//! The mount tree is what keeps a sandboxee in. These rules stand behind it and go by the file, not by the path: a file
//! that is not below the policy's tree can't be opened, even where a descriptor leads to it, and one that was passed can't
//! be opened again for more than it was passed for, as `/proc/self/fd/0` else allows. [`probe`] and [`Rules::new`] run once
//! per template, [`Rules::create`], [`Ruleset::add_queues`] and [`Rules::fill`] once per nest in init (its file systems are new, and a rule is about
//! an inode), and [`enforce`] in the launch child. Promises: what [`probe`] found is enforced, or the launch fails; nothing
//! allocates after the clone.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, RawFd};

use nestbox_protocol::{self as protocol, FdGrant, Mount, Plan, Step, mount as plan_mount};
use nestbox_sys::Errno;
use nestbox_sys::landlock::{
    self, ALL, DEVICE, EXECUTE, FILE, IOCTL_DEV, MAKE, READ, READ_FILE, REFER, SCOPE_ABSTRACT_UNIX_SOCKET,
    SCOPE_SIGNAL, TRUNCATE, WRITE_FILE,
};
use nestbox_sys::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, RESOLVE_WITHOUT_LINKS, mount, open_at};

use crate::fault::{At, Fault};
use crate::launch::Prepared;
use crate::source::{below_root, c_path};
use crate::tree::detached;

/// No fd.
const NONE: RawFd = -1;

/// The first ABI does not let anybody move a file to another directory, which ordinary programs do.
const ABI_MIN: u32 = 2;

/// What this kernel enforces, of what is known here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Support {
    abi: u32,
    access_fs: u64,
    scoped: u64,
}

impl Support {
    /// Of an ABI of at least [`ABI_MIN`].
    const fn of(abi: u32) -> Self {
        let truncate = if abi >= 3 { TRUNCATE } else { 0 };
        let ioctl = if abi >= 5 { IOCTL_DEV } else { 0 };
        Self {
            abi,
            access_fs: READ | WRITE_FILE | MAKE | REFER | truncate | ioctl,
            scoped: if abi >= 6 { SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL } else { 0 },
        }
    }

    /// For the host, which reports it.
    pub(crate) fn told(self) -> protocol::Landlock {
        protocol::Landlock {
            abi: self.abi,
            abstract_unix_sockets: self.scoped & SCOPE_ABSTRACT_UNIX_SOCKET != 0,
            signals: self.scoped & SCOPE_SIGNAL != 0,
        }
    }
}

/// Asks the kernel, by each of the three calls and not by its version: a container's filter may refuse any of them. The
/// second and the third name no ruleset, and are told so where they can be used at all. Needs no new privileges to be set.
pub(crate) fn probe() -> Result<Support, Fault<'static>> {
    let step = Step::MakeRuleset;
    let abi = landlock::abi().at(step, "landlock_create_ruleset", b"version")?;
    if abi < ABI_MIN {
        let fault = Fault::new(step, Errno::EOPNOTSUPP, "landlock_create_ruleset", b"version");
        return Err(fault.detail("the kernel has the first ABI, under which no file can be moved"));
    }
    let added = landlock::add_rule(NONE, NONE, READ_FILE);
    let restricted = landlock::restrict_self(NONE);
    for (answer, call) in [(added, "landlock_add_rule"), (restricted, "landlock_restrict_self")] {
        match answer {
            Err(Errno::EBADF) => {}
            answer => return Err(Fault::new(step, answer.err().unwrap_or(Errno::EPROTO), call, b"probe")),
        }
    }
    Ok(Support::of(abi))
}

/// Whether this answer of [`probe`] means that there is no Landlock here: it is not built in, is switched off, or is refused to
/// this host. Any other says nothing about the kernel.
pub(crate) fn is_absent(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM | Errno::EACCES)
}

/// A ruleset as the launch child has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ruleset {
    fd: RawFd,
    support: Support,
}

/// What each nest of a policy gets.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) support: Support,
    /// Places of the tree, and what may be done below them. What is granted adds up on the way to a file, so one rule for
    /// the root lets everything be read.
    places: Vec<(CString, u64)>,
}

impl Rules {
    /// The rules for a plan.
    pub(crate) fn new(plan: &Plan, support: Support) -> Result<Self, Fault<'_>> {
        let owned = |path: &[u8]| c_path(path).at(Step::MakeRuleset, "openat2", b"a path of the policy");
        let dev_is_ours = dev_is_ours(&plan.template_mounts);
        let mut places = vec![(owned(b"/")?, if plan.root_writable { ALL } else { READ })];
        if dev_is_ours {
            places.push((owned(b"/dev")?, ALL));
        }
        for step in plan.template_mounts.iter().chain(&plan.nest_mounts) {
            let granted = match &step.kind {
                _ if dev_is_ours && step.path.starts_with(b"/dev/") => 0,
                Some(plan_mount::Kind::Bind(bind)) if bind.device => DEVICE,
                // One of a nest comes with each launch.
                Some(plan_mount::Kind::Bind(bind)) if bind.writable && is_of(&plan.template_mounts, step) => {
                    if bind.directory {
                        ALL
                    } else {
                        FILE
                    }
                }
                Some(plan_mount::Kind::Tmpfs(_)) => ALL,
                Some(plan_mount::Kind::Proc(_)) => READ_FILE | WRITE_FILE | TRUNCATE,
                Some(plan_mount::Kind::Devpts(_)) => DEVICE,
                _ => 0,
            };
            if granted != 0 {
                places.push((owned(&step.path)?, granted));
            }
        }
        Ok(Self { support, places })
    }

    /// Makes the ruleset. Before init's other fds, so that its number lies below those that init keeps.
    pub(crate) fn create(&self) -> Result<Ruleset, Fault<'static>> {
        let Support { access_fs, scoped, .. } = self.support;
        let fd = landlock::create_ruleset(access_fs, scoped).at(
            Step::MakeRuleset,
            "landlock_create_ruleset",
            b"",
        )?;
        Ok(Ruleset { fd, support: self.support })
    }

    /// Adds the rules, in a nest whose mounts are there.
    pub(crate) fn fill(&self, ruleset: Ruleset) -> Result<(), Fault<'_>> {
        for (path, access) in &self.places {
            let at = below_root(path);
            let place = open_at(libc::AT_FDCWD, at, libc::O_PATH, 0, RESOLVE_WITHOUT_LINKS).at(
                Step::MakeRuleset,
                "openat2",
                path.to_bytes(),
            )?;
            ruleset.add(place.as_raw_fd(), *access).at(
                Step::MakeRuleset,
                "landlock_add_rule",
                path.to_bytes(),
            )?;
        }
        // The null device that standard streams are unless mapped: another mount's than the nest's.
        ruleset.add(0, DEVICE).at(Step::MakeRuleset, "landlock_add_rule", b"null device").map(drop)
    }
}

/// Whether `/dev` is a directory of our own with nothing below it but what may be written to: then one rule does for all
/// that is mounted there, afresh or not.
fn dev_is_ours(mounts: &[Mount]) -> bool {
    let directory = |step: &Mount| matches!(step.kind, Some(plan_mount::Kind::Directory(_)));
    mounts.iter().any(|step| step.path == b"/dev" && directory(step))
        && mounts.iter().filter(|step| step.path.starts_with(b"/dev/")).all(|step| match &step.kind {
            Some(plan_mount::Kind::Bind(bind)) => bind.device || bind.writable,
            _ => true,
        })
}

fn is_of(mounts: &[Mount], step: &Mount) -> bool {
    mounts.iter().any(|other| std::ptr::eq(other, step))
}

impl Ruleset {
    /// Adds the rule for POSIX message queues, which have a file system of their own in each ipc namespace. Comes before the
    /// nest's mounts, because its root is nowhere to be reached: it is mounted where `proc` will cover it.
    ///
    /// A mount that is attached nowhere would do as well, and does where there is no proc. But to close that takes 50 to 100 µs,
    /// for which the kernel has all processors say that nobody looks at it any more; what a nest's end takes along is free.
    pub(crate) fn add_queues(self, proc: Option<&CStr>) -> Result<(), Fault<'static>> {
        let step = Step::MakeRuleset;
        let queues = match proc.map_or_else(
            || detached(c"mqueue", ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC),
            |place| {
                let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
                mount(c"mqueue", place, c"mqueue", flags, c"")?;
                open_at(libc::AT_FDCWD, place, libc::O_PATH, 0, 0)
            },
        ) {
            Ok(queues) => queues,
            // A container's filter refuses the call. The program then has no queues, which is no weaker a sandbox.
            Err(Errno::EPERM | Errno::EACCES | Errno::ENOSYS) => return Ok(()),
            Err(errno) => return Err(Fault::new(step, errno, "mount", b"mqueue")),
        };
        self.add(queues.as_raw_fd(), ALL).at(step, "landlock_add_rule", b"mqueue").map(drop)
    }

    /// Adds a rule. A file of a file system that nobody can name paths of (a pipe, a memfd) needs none.
    fn add(self, place: RawFd, access: u64) -> Result<(), Errno> {
        match landlock::add_rule(self.fd, place, access & self.support.access_fs) {
            Ok(()) | Err(Errno::EBADFD) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Lets a launch's writable binds be written to. Reading them is the root's rule.
    pub(crate) fn add_binds<'a>(self, launch: &'a Prepared<'_>) -> Result<(), Fault<'a>> {
        for bind in launch.binds.iter().filter(|bind| bind.writable) {
            let access = if bind.directory { ALL } else { FILE };
            self.add(bind.mount, access).at(Step::MakeRuleset, "landlock_add_rule", bind.path.to_bytes())?;
        }
        Ok(())
    }
}

/// Restricts the launch child, which then opens nothing but by the rules: those of the nest and, of the files that are
/// passed to the program, opening them again as what they were passed.
pub(crate) fn enforce(ruleset: Ruleset, launch: &Prepared<'_>) -> Result<(), Fault<'static>> {
    for &(fd, grant) in &launch.grants {
        let access = match grant {
            FdGrant::None => continue,
            FdGrant::Read => READ_FILE | EXECUTE | IOCTL_DEV,
            FdGrant::Write => WRITE_FILE | TRUNCATE | IOCTL_DEV,
            FdGrant::ReadWrite => FILE,
            FdGrant::Directory => ALL,
        };
        ruleset.add(fd, access).at(Step::EnforceRuleset, "landlock_add_rule", b"a passed fd")?;
    }
    landlock::restrict_self(ruleset.fd).at(Step::EnforceRuleset, "landlock_restrict_self", b"")
}
