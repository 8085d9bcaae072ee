//! From a policy to a plan: looks at the host for all that the planner has to know.
//!
//! Promises: nothing on the host is created, changed or run; a source that is missing or of a kind that can't be bound
//! is an error with its path, never left out (unless the policy calls it optional: then it is listed in
//! [`Resolved::skipped`]); what was seen of each source is in the plan, and compared again by whoever opens it. Called
//! by `crates/client`, on a policy's first launch and whenever [`Resolved::is_current`] says no.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use nestbox_protocol::{Bind, Limits, Plan, Proc as ProcMount, Step, Tmpfs};
use nix::sys::stat::{FileStat, stat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};

use crate::check::{PROC_SOURCE, check, decode};
use crate::document::{Base, Dev, MountEntry, Network, Policy, Proc, Syscalls};
use crate::error::ResolveError;
use crate::hash::Hash;
use crate::libraries;
use crate::plan::{Entry, Layout, MountPoint, space};
use crate::source::{Source, Sources, c_path};
use crate::{filter, host_system, path};

/// The devices of `dev: 'minimal'`, all of them world-accessible and without a side effect.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Symlinks of `dev: 'minimal'`. Without a proc those into /proc lead nowhere, as on any system before it is mounted.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// What of a fresh proc is covered: what tells about the machine or its owner, and what acts on it. Each costs every
/// launch some 5 µs, so what the kernel itself refuses to someone without capabilities in its own user namespace is
/// covered only where one slip would be costly. Runtimes whose containers share the host's user namespace also protect
/// /proc/bus, /proc/fs and /proc/irq; in a nest all of those belong to an id that it doesn't have.
const MASKED: [&str; 12] = [
    "acpi",
    "asound",
    "kcore",
    "key-users",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "sysrq-trigger",
    "timer_list",
    "timer_stats",
    "vmallocinfo",
];

/// What of a fresh proc is read-only. The sandboxee has the id that owns its namespaces' sysctls.
const READ_ONLY: [&str; 1] = ["sys"];

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
    /// Limits of each launch; those of the plan.
    pub limits: Limits,
    /// Bytes on stdout and stderr together, which the host keeps.
    pub output_limit: Option<u64>,
    sources: Sources,
}

impl Resolved {
    /// Whether every source is still what it was: the plan may be used again.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.sources.are_current()
    }

    /// What was seen on the host: bind sources, then files whose content is in the plan.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.sources.bound.iter().chain(&self.sources.copied)
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
        let plan = Plan {
            template_mounts: steps.template,
            nest_mounts: steps.nest,
            hostname: self.hostname.clone(),
            network: network(self.network).into(),
            uid: self.user.uid,
            gid: self.user.gid,
            filter: match self.syscalls {
                Syscalls::Default => filter::default(self.unix_sockets).to_vec(),
                Syscalls::Unfiltered => Vec::new(),
            },
            root_writable: self.root_writable,
            root_size,
            // Of a writable root the size is the limit.
            root_inodes: if self.root_writable { root_size / 4096 + root_inodes } else { root_inodes },
            limits: Some(self.limits.into()),
            no_proc: self.proc == Proc::None,
        };
        Ok(Resolved {
            hash: Hash::of_content(&plan),
            template_key: Hash::of_identity(&plan),
            plan: Arc::new(plan),
            skipped,
            mount_points: steps.mount_points,
            tmpfs_paths,
            limits: self.limits.into(),
            output_limit: self.limits.output,
            sources,
        })
    }
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
        host_system::put(policy, &mut layout, sources)?;
    }
    if policy.dev == Dev::Minimal {
        put_devices(policy, &mut layout)?;
    }
    if policy.proc == Proc::Fresh {
        layout.put_base("/proc", fresh_proc());
    }
    put_entries(policy, kinds, &mut layout, sources, skipped)?;
    put_libraries(policy, &mut layout, sources)?;
    Ok(layout)
}

fn put_devices(policy: &Policy, layout: &mut Layout) -> Result<(), ResolveError> {
    layout.put_base("/dev", Entry::Directory);
    for name in DEVICES {
        let path = format!("/dev/{name}");
        let status = status_of(&path)
            .map_err(|errno| ResolveError::new(Step::OpenBindSource, errno as i32, "stat", &path))?;
        if !is_harmless_device(&status) {
            return Err(ResolveError::new(Step::VerifyBindSource, libc::ENODEV, "stat", &path)
                .detail("not the device node of that name"));
        }
        layout.put_base(path.clone(), device_entry(&path));
    }
    for (name, points_to) in DEVICE_LINKS {
        layout.put_base(format!("/dev/{name}"), Entry::Symlink { points_to: points_to.to_owned() });
    }
    layout.put_base("/dev/pts", Entry::Devpts);
    layout.put_base("/dev/shm", default_tmpfs(policy, false));
    Ok(())
}

/// A nest's own proc. Only what this host has is listed: the rest would be looked for in vain by every template.
fn fresh_proc() -> Entry {
    let present = |names: &[&str]| {
        let names = names.iter().filter(|name| Path::new("/proc").join(name).symlink_metadata().is_ok());
        names.map(|name| name.as_bytes().to_vec()).collect()
    };
    Entry::Proc(ProcMount { masked: present(&MASKED), read_only: present(&READ_ONLY) })
}

/// A tmpfs as large as the policy's disk limit, for everyone to write to.
pub(crate) fn default_tmpfs(policy: &Policy, exec: bool) -> Entry {
    Entry::Tmpfs(Tmpfs { size: policy.limits.disk.unwrap_or(0), inodes: 0, mode: 0o1777, exec })
}

/// The policy's own entries, parents first; of two for one path the later.
fn put_entries(
    policy: &Policy,
    kinds: &MountPointKinds,
    layout: &mut Layout,
    sources: &mut Sources,
    skipped: &mut Vec<String>,
) -> Result<(), ResolveError> {
    let mut entries = BTreeMap::new();
    for entry in &policy.mounts {
        if let Some(Ok(path)) = entry.path().map(path::clean) {
            entries.insert(path, entry);
        }
    }
    for (path, entry) in entries {
        let entry = match entry {
            MountEntry::Bind { source, writable, exec, optional, .. } => {
                let source = path::clean(source).unwrap_or_default();
                match bind_entry(&source, *writable, *exec, sources) {
                    Ok(entry) => entry,
                    Err(error) if *optional && matches!(error.errno, libc::ENOENT | libc::ENOTDIR) => {
                        sources.bound.extend(c_path(&source).map(Source::missing));
                        skipped.push(path);
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            MountEntry::MountPoint { writable, exec, .. } => Entry::MountPoint {
                directory: !kinds.is_file(&path),
                path: path.clone(),
                writable: *writable,
                exec: *exec,
            },
            MountEntry::Tmpfs { size, inodes, mode, .. } => Entry::Tmpfs(Tmpfs {
                size: size.or(policy.limits.disk).unwrap_or(0),
                inodes: inodes.unwrap_or(0),
                mode: *mode,
                // Compiling and running in one's own scratch space is what sandboxes are for; whoever can write here
                // can also make executable memory.
                exec: true,
            }),
            MountEntry::File { content, encoding, mode, .. } => {
                Entry::File { content: decode(content, *encoding).unwrap_or_default(), mode: *mode }
            }
            MountEntry::Symlink { points_to, .. } => Entry::Symlink { points_to: points_to.clone() },
            MountEntry::LibrariesFor { .. } => continue,
        };
        layout.put(layout.place(&path), entry);
    }
    Ok(())
}

/// The libraries of the binaries that the policy names. They give way to what else the policy puts in their place.
fn put_libraries(policy: &Policy, layout: &mut Layout, sources: &mut Sources) -> Result<(), ResolveError> {
    let mut found = BTreeSet::new();
    for entry in &policy.mounts {
        if let MountEntry::LibrariesFor { binary } = entry {
            found.extend(libraries::of(Path::new(binary))?);
        }
    }
    for library in found {
        put_library(&library, layout, sources)?;
    }
    Ok(())
}

fn put_library(library: &str, layout: &mut Layout, sources: &mut Sources) -> Result<(), ResolveError> {
    let place = layout.place(library);
    if layout.get(&place).is_some() {
        return Ok(());
    }
    if let Some((mount, Entry::Bind(bind))) = layout.mount_above(&place) {
        // What a bind shows there already need not be shown again; nothing can be made there if it shows nothing.
        let shown = String::from_utf8_lossy(&bind.source).into_owned() + &place[mount.len()..];
        return match (status_of(&shown), status_of(library)) {
            (Ok(shown), Ok(status)) if (shown.st_dev, shown.st_ino) == (status.st_dev, status.st_ino) => {
                Ok(())
            }
            (Ok(_), _) => {
                let entry = bind_entry(library, false, true, sources)?;
                layout.put(place, entry);
                Ok(())
            }
            (Err(errno), _) => Err(ResolveError::new(Step::AttachBind, errno as i32, "stat", shown).detail(
                format!("the library {library} belongs below the bind {mount}, which has no such file"),
            )),
        };
    }
    if libraries::is_loader_configuration(library) {
        // It is read by the loader, not mapped: a copy does, and costs launches nothing.
        if !host_system::put_copy(library, layout, sources) {
            let entry = bind_entry(library, false, false, sources)?;
            layout.put_base(place, entry);
        }
        return Ok(());
    }
    let entry = bind_entry(library, false, true, sources)?;
    layout.put(place, entry);
    Ok(())
}

/// Looks at a source and remembers what it was.
pub(crate) fn bind_entry(
    source: &str,
    writable: bool,
    exec: bool,
    sources: &mut Sources,
) -> Result<Entry, ResolveError> {
    let fault = |step, errno: i32, syscall| ResolveError::new(step, errno, syscall, source);
    let name = c_path(source).ok_or_else(|| fault(Step::OpenBindSource, libc::EINVAL, "stat"))?;
    let status = stat(name.as_c_str()).map_err(|errno| fault(Step::OpenBindSource, errno as i32, "stat"))?;
    // By what it is, not by how it is called: a symlink may lead there, and proc may be mounted elsewhere, too.
    let file_system =
        statfs(name.as_c_str()).map_err(|errno| fault(Step::OpenBindSource, errno as i32, "statfs"))?;
    if file_system.filesystem_type() == PROC_SUPER_MAGIC {
        return Err(fault(Step::VerifyBindSource, libc::EPERM, "statfs").detail(PROC_SOURCE));
    }
    let directory = match status.st_mode & libc::S_IFMT {
        libc::S_IFDIR => true,
        libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK => false,
        libc::S_IFCHR if is_harmless_device(&status) => return Ok(device_entry(source)),
        _ => {
            return Err(fault(Step::VerifyBindSource, libc::ENODEV, "stat")
                .detail("of devices only null, zero, full, random, urandom and tty can be bound"));
        }
    };
    let bind = Bind {
        source: source.as_bytes().to_vec(),
        directory,
        writable,
        exec,
        device: false,
        expected_device: status.st_dev,
        expected_inode: status.st_ino,
        propagation: false,
    };
    sources.bound.push(Source::bound(name, &status));
    Ok(Entry::Bind(bind))
}

/// One of our device nodes. Which one it is, is told by its number whenever it is opened, so its inode doesn't matter.
/// (Reading and writing a device is no matter of its mount being read-only.)
fn device_entry(source: &str) -> Entry {
    Entry::Bind(Bind { source: source.as_bytes().to_vec(), device: true, ..Bind::default() })
}

fn status_of(path: &str) -> Result<FileStat, nix::errno::Errno> {
    stat(path)
}

/// null, zero, full, random, urandom, tty.
fn is_harmless_device(status: &FileStat) -> bool {
    let number = (libc::major(status.st_rdev), libc::minor(status.st_rdev));
    status.st_mode & libc::S_IFMT == libc::S_IFCHR && matches!(number, (1, 3 | 5 | 7 | 8 | 9) | (5, 0))
}
