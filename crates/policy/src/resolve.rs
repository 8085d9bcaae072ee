//! From a policy to a plan: looks at the host for all that the planner has to know.
//!
//! Promises: nothing on the host is created, changed or run; a source that is missing or of a kind that can't be bound
//! is an error with its path, never left out (unless the policy calls it optional: then it is listed in
//! [`Resolved::skipped`]); what was seen of each source is in the plan, and compared again by whoever opens it. Called
//! by `crates/client`, on a policy's first launch and whenever [`Resolved::is_current`] says no.

mod bind;
mod copy;
pub(crate) mod dev;
pub(crate) mod host_system;
mod mounts;
mod proc;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use nestbox_protocol::{Limits, Plan, Step, Tmpfs};

use crate::check::check;
use crate::document::{Base, Dev, MountEntry, Network, Policy, Proc, Requirement, UnixSockets};
use crate::error::ResolveError;
use crate::filter::{self, OwnCalls, Program};
use crate::hash::Hash;
use crate::layout::{Entry, Layout};
use crate::path;
use crate::plan::{MountPoint, space};
use crate::source::{Source, Sources};

/// Room on the root tmpfs beyond what the plan puts there.
const ROOT_SPACE: u64 = 1 << 20;

/// Inodes of the root tmpfs beyond what the plan needs.
const ROOT_INODES: u64 = 64;

/// Room on a writable root whose policy has no disk limit.
const UNLIMITED: u64 = 1 << 40;

/// Which mount points a launch binds a file at; at all others it is a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountPointKinds {
    files: BTreeSet<String>,
}

impl MountPointKinds {
    /// A file is bound at the mount point of this (clean) path.
    pub fn add_file(&mut self, path: impl Into<String>) {
        self.files.insert(path.into());
    }

    /// Whether a file is bound there.
    #[must_use]
    pub fn is_file(&self, path: &str) -> bool {
        self.files.contains(path)
    }
}

/// A policy made concrete on this host.
#[derive(Debug)]
pub struct Resolved {
    /// What templates are built from.
    pub plan: Arc<Plan>,
    /// Hash of the plan's content: the policy's public identity.
    pub hash: Hash,
    /// Hash of the plan's content and of which files and directories its sources are: what a template is kept under.
    pub template_key: Hash,
    /// Paths inside of optional binds whose source is missing.
    pub skipped: Vec<String>,
    /// Where launches may bind.
    pub mount_points: Vec<MountPoint>,
    /// Mount points of the file systems that are fresh per nest and writable.
    pub tmpfs_paths: Vec<String>,
    /// What the plan's filter is called.
    pub syscalls: &'static str,
    /// Limits of each launch; those of the plan.
    pub limits: Limits,
    /// Bytes on stdout and stderr together, which the host keeps.
    pub output_limit: Option<u64>,
    /// Its sandboxees can hand descriptors to those of other nests: by unix sockets, at a path that both have.
    pub exchanges_fds: bool,
    sources: Sources,
}

impl Resolved {
    /// Whether every source is still what it was, as far as is looked at before a launch: the plan may be used again.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.sources.are_current()
    }

    /// Looks at the rest, if that was not done for a while: after a launch, when nobody waits. A change is what
    /// [`Resolved::is_current`] tells from then on.
    pub fn look_again(&self) {
        self.sources.look_again();
    }

    /// What was seen on the host: the policy's bind sources, then what is of the base, or whose content is in the plan.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.sources.bound.iter().chain(&self.sources.seldom)
    }

    /// The mount point that a launch names by `path`.
    #[must_use]
    pub fn mount_point(&self, path: &str) -> Option<&MountPoint> {
        let path = path::clean(path).ok()?;
        self.mount_points.iter().find(|point| point.path == path)
    }

    /// Whether a file that is written to the clean `path` before the program starts ends up on a file system of this
    /// nest alone. A bind at or above `path`, on that tmpfs or anywhere, would lead it to the host.
    #[must_use]
    pub fn is_private(&self, path: &str) -> bool {
        let lies_on = |mount: &str| path::is_at_or_below(path, mount);
        let on_tmpfs =
            self.tmpfs_paths.iter().filter(|mount| path::is_below(path, mount)).map(String::len).max();
        let on_bind = (self.plan.template_mounts.iter().chain(&self.plan.nest_mounts))
            .filter(|step| matches!(step.kind, Some(nestbox_protocol::mount::Kind::Bind(_))))
            .filter(|step| std::str::from_utf8(&step.path).is_ok_and(lies_on))
            .map(|step| step.path.len())
            .max();
        let on_point = self.mount_points.iter().any(|point| lies_on(&point.target));
        !on_point && on_tmpfs.is_some_and(|tmpfs| on_bind.is_none_or(|bind| bind < tmpfs))
    }
}

impl Policy {
    /// Makes the policy concrete on this host, for launches that bind at its mount points what `kinds` says.
    pub fn resolve(&self, kinds: &MountPointKinds) -> Result<Resolved, ResolveError> {
        if let Some(issue) = check(self).first() {
            return Err(
                ResolveError::new(Step::DecodeRequest, libc::EINVAL, "", "").detail(issue.to_string())
            );
        }
        let mut sources = Sources::default();
        let mut skipped = Vec::new();
        let layout = lay_out(self, kinds, &mut sources, &mut skipped)?;
        let steps = layout.steps()?;
        let tmpfs_paths = steps.tmpfs_paths();
        let root_size = space(&steps.template)
            + if self.root_writable { self.limits.disk.unwrap_or(UNLIMITED) } else { ROOT_SPACE };
        let root_inodes = steps.template.len() as u64 + ROOT_INODES;
        let program = compile(self)?;
        let filter_inherited = program.as_ref().is_some_and(Program::can_be_inherited);
        let bytes = |cookie| program.as_ref().map(|program| program.to_bytes(cookie)).unwrap_or_default();
        let mut plan = Plan {
            template_mounts: steps.template,
            nest_mounts: steps.nest,
            hostname: self.hostname.clone(),
            network: network(self.network).into(),
            uid: self.user.uid,
            gid: self.user.gid,
            filter: bytes(0),
            filter_listens: program.as_ref().is_some_and(Program::listens),
            filter_inherited,
            root_writable: self.root_writable,
            root_size,
            // Of a writable root the size is the limit.
            root_inodes: if self.root_writable { root_size / 4096 + root_inodes } else { root_inodes },
            limits: Some(self.limits.into()),
            no_proc: self.proc == Proc::None,
            launch_cookie: 0,
            core_scheduling: self.core_scheduling,
            allow_speculation: self.allow_speculation,
            require_landlock: self.require.contains(&Requirement::Landlock),
        };
        let (hash, template_key) = (Hash::of_content(&plan), Hash::of_identity(&plan));
        // Not before: what is random is no part of what the policy says.
        plan.launch_cookie = random()?;
        plan.filter = bytes(plan.launch_cookie);
        Ok(Resolved {
            hash,
            template_key,
            plan: Arc::new(plan),
            syscalls: self.syscalls.name(),
            skipped,
            mount_points: steps.mount_points,
            tmpfs_paths,
            limits: self.limits.into(),
            output_limit: self.limits.output,
            exchanges_fds: self.unix_sockets == UnixSockets::Allow && self.mounts.iter().any(is_of_host),
            sources,
        })
    }
}

/// Whether a mount is of the host's files, which other nests may have as well.
fn is_of_host(entry: &MountEntry) -> bool {
    matches!(entry, MountEntry::Bind { .. } | MountEntry::MountPoint { .. })
}

/// The policy's filter: one for a template to install, or else one that each launch installs for itself and that is shorter for
/// it. That this one can be compiled was checked.
fn compile(policy: &Policy) -> Result<Option<Program>, ResolveError> {
    // Launches bind to mount points alone, so nothing else leads to the host's files.
    let writable_binds = policy.mounts.iter().any(|entry| {
        matches!(
            entry,
            MountEntry::Bind { writable: true, .. } | MountEntry::MountPoint { writable: true, .. }
        )
    });
    let compile = |own_calls| {
        let options = filter::Options { unix_sockets: policy.unix_sockets, writable_binds, own_calls };
        filter::compile(&policy.syscalls, options)
    };
    match compile(OwnCalls::Template) {
        Ok(program) if program.as_ref().is_none_or(Program::can_be_inherited) => Ok(program),
        _ => compile(OwnCalls::Launch).map_err(|error| {
            ResolveError::new(Step::DecodeRequest, libc::E2BIG, "", "").detail(error.to_string())
        }),
    }
}

/// A number that nobody guesses.
fn random() -> Result<u64, ResolveError> {
    let mut bytes = [0; 8];
    // SAFETY: bytes of ours, as many as said. Below 256 they come all at once, or not at all.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if count != bytes.len() as isize {
        let errno = nix::errno::Errno::last_raw();
        return Err(ResolveError::new(Step::DecodeRequest, errno, "getrandom", ""));
    }
    Ok(u64::from_ne_bytes(bytes))
}

fn network(network: Network) -> nestbox_protocol::Network {
    match network {
        Network::None => nestbox_protocol::Network::None,
        Network::SharedLoopback => nestbox_protocol::Network::SharedLoopback,
        Network::Host => nestbox_protocol::Network::Host,
    }
}

/// The tree as the policy wants it.
fn lay_out(
    policy: &Policy,
    kinds: &MountPointKinds,
    sources: &mut Sources,
    skipped: &mut Vec<String>,
) -> Result<Layout, ResolveError> {
    let mut layout = Layout::default();
    if policy.base == Base::HostSystem {
        host_system::put(policy, &mut layout, &mut sources.seldom)?;
    }
    if policy.dev == Dev::Minimal {
        dev::put(policy, &mut layout)?;
    }
    if policy.proc == Proc::Fresh {
        proc::put(&mut layout);
    }
    mounts::put_entries(policy, kinds, &mut layout, sources, skipped)?;
    mounts::put_libraries(policy, &mut layout, sources)?;
    Ok(layout)
}

/// A tmpfs as large as the policy's disk limit, for everyone to write to.
fn default_tmpfs(policy: &Policy, exec: bool) -> Entry {
    Entry::Tmpfs(Tmpfs { size: policy.limits.disk.unwrap_or(0), inodes: 0, mode: 0o1777, exec })
}
