//! From a policy to a plan: looks at the host for all that the planner has to know.
//!
//! Promises: nothing on the host is created, changed or run; a source that is missing or of a kind that can't be bound
//! is an error with its path, never left out (unless the policy calls it optional: then it is listed in
//! [`Resolved::skipped`]); what was seen of each source is in the plan, and compared again by whoever opens it. Called
//! by `crates/client`, on a policy's first launch and whenever [`Resolved::is_current`] says no.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use nestbox_protocol::{Bind, Limits, Plan, Proc as ProcMount, Step, Tmpfs};
use nix::sys::stat::{FileStat, stat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};

use crate::check::{PROC_SOURCE, check, decode};
use crate::document::{Base, Dev, MountEntry, Network, Policy, Proc, Requirement};
use crate::error::ResolveError;
use crate::filter::{self, OwnCalls, Program};
use crate::hash::Hash;
use crate::layout::{Entry, Layout};
use crate::libraries;
use crate::plan::{MountPoint, space};
use crate::source::{Source, Sources, c_path};
use crate::{host_system, path};

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

/// What of a fresh proc is covered: what anyone may read there and tells about the machine or its owner, and what acts on
/// the machine. Each costs every launch some 5 µs (a directory 13), so what is only for root's eyes is left to the kernel,
/// except where a single slip would be costly; and so are /proc/bus, /proc/fs and /proc/irq, which runtimes protect whose
/// containers have the host's root: in a nest they belong to an id that it doesn't have.
const MASKED: [&str; 9] = [
    "acpi",
    "asound",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "sysrq-trigger",
    "timer_stats",
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
    /// What the plan's filter is called.
    pub syscalls: &'static str,
    /// Limits of each launch; those of the plan.
    pub limits: Limits,
    /// Bytes on stdout and stderr together, which the host keeps.
    pub output_limit: Option<u64>,
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
            sources,
        })
    }
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

/// A nest's own proc. Only what there is on this host is listed, and no empty directory, of which most hosts have one.
fn fresh_proc() -> Entry {
    let present = |names: &[&str]| {
        let names = names.iter().filter(|name| {
            let path = Path::new("/proc").join(name);
            path.symlink_metadata().is_ok()
                && !fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
        });
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
                match bind_entry(&source, *writable, *exec, &mut sources.bound) {
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
                let entry = bind_entry(library, false, true, &mut sources.bound)?;
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
        let copy = host_system::copy_entry(library, &mut sources.seldom);
        let entry = copy.map_or_else(|| bind_entry(library, false, false, &mut sources.bound), Ok)?;
        layout.put_base(place, entry);
        return Ok(());
    }
    let entry = bind_entry(library, false, true, &mut sources.bound)?;
    layout.put(place, entry);
    Ok(())
}

/// Looks at a source and remembers what it was.
pub(crate) fn bind_entry(
    source: &str,
    writable: bool,
    exec: bool,
    sources: &mut Vec<Source>,
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
    sources.push(Source::bound(name, &status));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{bind, file, mount_point, symlink, tmpfs};
    use crate::document::tests::{empty, host_system};
    use crate::document::{Encoding, UnixSockets, User};
    use crate::filter::{Preset, Syscalls};
    use crate::plan::Stage;
    use crate::plan::tests::rehearse;
    use nestbox_protocol::{Mount, mount::Kind};
    use proptest::prelude::*;
    use std::os::unix::fs::symlink as make_symlink;
    use std::process::Command;

    fn resolve(policy: &Policy) -> Result<Resolved, ResolveError> {
        policy.resolve(&MountPointKinds::default())
    }

    fn with(base: Policy, mounts: Vec<MountEntry>) -> Policy {
        Policy { mounts, ..base }
    }

    fn optional(source: &str, path: &str) -> MountEntry {
        let (source, path) = (source.to_owned(), path.to_owned());
        MountEntry::Bind { source, path, writable: true, exec: false, optional: true }
    }

    fn step<'a>(steps: &'a [Mount], path: &str) -> Option<&'a Kind> {
        steps.iter().rfind(|step| step.path == path.as_bytes()).and_then(|step| step.kind.as_ref())
    }

    fn content(resolved: &Resolved, path: &str) -> String {
        match step(&resolved.plan.template_mounts, path) {
            Some(Kind::File(file)) => String::from_utf8_lossy(&file.content).into_owned(),
            other => panic!("{path} is {other:?}"),
        }
    }

    fn name(path: &Path) -> String {
        path.to_str().expect("is text").to_owned()
    }

    #[test]
    fn an_empty_policy_has_an_empty_tree() {
        let resolved = resolve(&empty()).expect("resolves");
        assert_eq!(resolved.plan.template_mounts, []);
        assert_eq!(resolved.plan.nest_mounts, []);
        assert!(resolved.plan.no_proc);
        assert!(!resolved.plan.filter.is_empty() && !resolved.plan.filter_listens);
        assert_eq!(resolved.syscalls, "default");
        assert_eq!(resolved.plan.limits.and_then(|limits| limits.wall_time), Some(60_000));
        assert_eq!(resolved.output_limit, Some(10 << 20));
        assert_eq!(resolved.sources().count(), 0);
        assert!(resolved.is_current());
    }

    #[test]
    fn unfiltered_has_no_filter() {
        let syscalls = Syscalls::Preset(Preset::Unfiltered);
        let policy = Policy { syscalls, unix_sockets: UnixSockets::Allow, ..empty() };
        assert_eq!(resolve(&policy).expect("resolves").plan.filter, b"");
    }

    /// Where nothing leads to the host's files no open(2) is looked at.
    #[test]
    fn a_filter_knows_of_writable_binds() {
        let length = |mounts| resolve(&with(empty(), mounts)).expect("resolves").plan.filter.len();
        let bind = |writable| MountEntry::Bind {
            source: "/usr".into(),
            path: "/a".into(),
            writable,
            exec: false,
            optional: false,
        };
        let point = |writable| MountEntry::MountPoint { path: "/a".into(), writable, exec: false };
        let plain = length(Vec::new());
        assert_eq!((length(vec![bind(false)]), length(vec![point(false)])), (plain, plain));
        assert!(length(vec![bind(true)]) > plain);
        assert!(length(vec![point(true)]) > plain);
    }

    /// Two plans of one policy have one identity, and each a secret of its own.
    #[test]
    fn a_cookie_is_no_part_of_the_hash() {
        let policy = Policy { syscalls: Syscalls::Preset(Preset::Strict), ..empty() };
        let (one, other) = (resolve(&policy).expect("resolves"), resolve(&policy).expect("resolves"));
        assert_eq!((one.hash, one.template_key), (other.hash, other.template_key));
        assert_ne!(one.plan.launch_cookie, other.plan.launch_cookie);
        assert_ne!(one.plan.filter, other.plan.filter);
        assert!(one.plan.filter_listens);
        assert_ne!(one.hash, resolve(&empty()).expect("resolves").hash);
    }

    #[test]
    fn refuses_what_check_refuses() {
        let error = resolve(&with(empty(), vec![tmpfs("/a/../b")])).expect_err("refuses");
        assert_eq!((error.step, error.errno), (Step::DecodeRequest, libc::EINVAL));
        assert!(error.detail.starts_with("mounts.0.path: "), "{error}");
    }

    #[test]
    fn binds_what_the_source_is() {
        let host = tempfile::tempdir().expect("makes a directory");
        let (plain, link) = (host.path().join("file"), host.path().join("link"));
        fs::write(&plain, "").expect("writes");
        make_symlink(host.path(), &link).expect("links");
        let mounts = vec![bind(&name(&plain), "/f"), bind(&name(&link), "/d")];
        let resolved = resolve(&with(empty(), mounts)).expect("resolves");
        let Some(Kind::Bind(file)) = step(&resolved.plan.template_mounts, "/f") else { panic!("a bind") };
        let Some(Kind::Bind(directory)) = step(&resolved.plan.template_mounts, "/d") else {
            panic!("a bind")
        };
        assert!(!file.directory && directory.directory);
        // The source stays as it was given; what it leads to is what is expected to be found.
        assert_eq!(directory.source, name(&link).as_bytes());
        let there = stat(host.path()).expect("is there");
        assert_eq!((directory.expected_device, directory.expected_inode), (there.st_dev, there.st_ino));
        rehearse(&resolved.plan.template_mounts, &resolved.plan.nest_mounts);
    }

    #[test]
    fn a_missing_source_is_an_error_or_listed() {
        let host = tempfile::tempdir().expect("makes a directory");
        let missing = name(&host.path().join("missing"));
        let error = resolve(&with(empty(), vec![bind(&missing, "/a")])).expect_err("fails");
        assert_eq!((error.step, error.errno, &error.path), (Step::OpenBindSource, libc::ENOENT, &missing));
        let resolved = resolve(&with(empty(), vec![optional(&missing, "/a")])).expect("resolves");
        assert_eq!(resolved.skipped, ["/a"]);
        assert_eq!(resolved.plan.template_mounts, []);
        assert!(resolved.is_current());
        fs::write(&missing, "").expect("writes");
        assert!(!resolved.is_current());
    }

    #[test]
    fn refuses_sources_that_are_not_to_be_shown() {
        let host = tempfile::tempdir().expect("makes a directory");
        let link = host.path().join("link");
        make_symlink("/proc/self", &link).expect("links");
        for source in [name(&link), format!("{}/root", link.display())] {
            // By way of /proc/self/root one comes out of proc again: then it is no part of it.
            if let Err(error) = resolve(&with(empty(), vec![bind(&source, "/a")])) {
                assert_eq!((error.step, error.errno), (Step::VerifyBindSource, libc::EPERM), "{source}");
            } else {
                assert!(source.ends_with("/root"));
            }
        }
        if Path::new("/dev/loop-control").exists() {
            let error = resolve(&with(empty(), vec![bind("/dev/loop-control", "/a")])).expect_err("refuses");
            assert_eq!(error.errno, libc::ENODEV);
        }
        let resolved = resolve(&with(empty(), vec![bind("/dev/null", "/dev/null")])).expect("resolves");
        let Some(Kind::Bind(null)) = step(&resolved.plan.template_mounts, "/dev/null") else {
            panic!("a bind")
        };
        assert!(null.device);
    }

    #[test]
    fn notices_changes() {
        let host = tempfile::tempdir().expect("makes a directory");
        let source = host.path().join("a");
        fs::create_dir(&source).expect("makes a directory");
        let policy = with(empty(), vec![bind(&name(&source), "/a")]);
        let before = resolve(&policy).expect("resolves");
        fs::rename(&source, host.path().join("b")).expect("renames");
        assert!(!before.is_current());
        fs::create_dir(&source).expect("makes a directory");
        assert!(!before.is_current());
        let after = resolve(&policy).expect("resolves");
        assert_eq!(before.hash, after.hash, "the content is the same");
        assert_ne!(before.template_key, after.template_key, "a template is not");
    }

    #[test]
    fn the_hash_depends_on_the_tree_alone() {
        let mounts = vec![tmpfs("/t"), bind("/usr", "/u"), file("/f"), symlink("/s")];
        let one = resolve(&with(empty(), mounts.clone())).expect("resolves");
        let other = resolve(&with(empty(), mounts.into_iter().rev().collect())).expect("resolves");
        assert_eq!(one.hash, other.hash);
        let named = |hostname: &str| {
            resolve(&Policy { hostname: hostname.to_owned(), ..empty() }).expect("resolves").hash
        };
        assert_ne!(named("a"), named("b"));
        // The environment comes with each launch.
        let bare = Policy { env: BTreeMap::default(), ..empty() };
        assert_eq!(resolve(&bare).expect("resolves").hash, resolve(&empty()).expect("resolves").hash);
    }

    #[test]
    fn mount_points_are_what_launches_bind() {
        let policy = with(empty(), vec![mount_point("/in"), tmpfs("/t"), mount_point("/t/in")]);
        let mut kinds = MountPointKinds::default();
        kinds.add_file("/in");
        let resolved = policy.resolve(&kinds).expect("resolves");
        assert!(matches!(step(&resolved.plan.template_mounts, "/in"), Some(Kind::File(_))));
        assert!(matches!(step(&resolved.plan.nest_mounts, "/t/in"), Some(Kind::Directory(_))));
        let point = resolved.mount_point("/t//in/").expect("is one");
        assert_eq!((point.stage, point.directory), (Stage::Nest, true));
        assert_eq!(resolved.mount_point("/t"), None);
        assert_ne!(resolved.hash, resolve(&policy).expect("resolves").hash);
    }

    #[test]
    fn tells_what_is_private() {
        let mounts = vec![
            tmpfs("/t"),
            bind("/usr", "/t/usr"),
            tmpfs("/t/usr2"),
            mount_point("/t/in"),
            bind("/usr", "/u"),
            tmpfs("/u/share"),
        ];
        let resolved = resolve(&with(empty(), mounts)).expect("resolves");
        for path in ["/t/a", "/t/a/b", "/t/usr2/a", "/t/usrs", "/u/share/a"] {
            assert!(resolved.is_private(path), "{path}");
        }
        for path in ["/", "/a", "/t", "/t/usr", "/t/usr/a", "/t/in", "/t/in/a", "/u/a", "/u/share"] {
            assert!(!resolved.is_private(path), "{path}");
        }
    }

    #[test]
    fn sizes_follow_the_limits() {
        let mut policy = with(empty(), vec![tmpfs("/t"), file("/f")]);
        let size = |policy: &Policy| {
            let resolved = resolve(policy).expect("resolves");
            let Some(Kind::Tmpfs(tmpfs)) = step(&resolved.plan.nest_mounts, "/t") else { panic!("a tmpfs") };
            (tmpfs.size, resolved.plan.root_size)
        };
        assert_eq!(size(&policy), (64 << 20, ROOT_SPACE + 4096));
        policy.root_writable = true;
        assert_eq!(size(&policy), (64 << 20, (64 << 20) + 4096));
        policy.limits.disk = None;
        assert_eq!(size(&policy), (0, UNLIMITED + 4096));
    }

    #[test]
    fn contents_are_decoded() {
        let entry = MountEntry::File {
            path: "/f".into(),
            content: "AP8=".into(),
            encoding: Encoding::Base64,
            mode: 0o600,
        };
        let resolved = resolve(&with(empty(), vec![entry])).expect("resolves");
        let Some(Kind::File(file)) = step(&resolved.plan.template_mounts, "/f") else { panic!("a file") };
        assert_eq!((file.content.as_slice(), file.mode), (&[0, 255][..], 0o600));
    }

    #[test]
    fn host_system_is_what_programs_need() {
        let resolved = resolve(&host_system()).expect("resolves");
        rehearse(&resolved.plan.template_mounts, &resolved.plan.nest_mounts);
        let template = &resolved.plan.template_mounts;
        let Some(Kind::Bind(usr)) = step(template, "/usr") else { panic!("a bind") };
        assert!(usr.directory && usr.exec && !usr.writable);
        for path in ["/bin", "/lib"] {
            match fs::read_link(path) {
                Ok(target) => {
                    let Some(Kind::Symlink(link)) = step(template, path) else { panic!("a symlink") };
                    assert_eq!(link.points_to, name(&target).as_bytes());
                }
                Err(_) => assert!(matches!(step(template, path), Some(Kind::Bind(_)))),
            }
        }
        assert_eq!(
            content(&resolved, "/etc/passwd"),
            "root:x:0:0:root:/:/bin/sh\nsandbox:x:1000:1000:sandbox:/tmp:/bin/sh\n\
             nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
        );
        assert_eq!(content(&resolved, "/etc/group"), "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n");
        assert_eq!(content(&resolved, "/etc/hostname"), "nestbox\n");
        assert!(matches!(step(template, "/dev/null"), Some(Kind::Bind(bind)) if bind.device));
        assert!(
            matches!(step(template, "/dev/ptmx"), Some(Kind::Symlink(link)) if link.points_to == b"pts/ptmx")
        );
        let nest = &resolved.plan.nest_mounts;
        let order: Vec<_> =
            nest.iter().map(|step| String::from_utf8_lossy(&step.path).into_owned()).collect();
        assert_eq!(order, ["/proc", "/dev/pts", "/dev/shm", "/tmp"]);
        let Some(Kind::Proc(proc)) = step(nest, "/proc") else { panic!("a proc") };
        assert_eq!(proc.read_only, [b"sys"]);
        assert_eq!(proc.masked.contains(&b"kcore".to_vec()), Path::new("/proc/kcore").exists());
        assert!(proc.masked.contains(&b"keys".to_vec()) == Path::new("/proc/keys").exists());
        assert!(proc.masked.iter().all(|name| Path::new("/proc").join(name_of(name)).exists()));
        assert_eq!(resolved.tmpfs_paths, ["/dev/shm", "/tmp"]);
        assert_eq!(resolved.skipped, [""; 0]);
        assert!(resolved.is_current());
    }

    fn name_of(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).expect("is text")
    }

    /// Nothing that tells about users, secrets or services of the host.
    #[test]
    fn host_system_shows_no_secrets() {
        let resolved = resolve(&host_system()).expect("resolves");
        for path in [
            "/etc/shadow",
            "/etc/gshadow",
            "/etc/sudoers",
            "/etc/ssh",
            "/etc/ssl/private",
            "/etc/machine-id",
            "/etc/resolv.conf",
            "/etc/fstab",
            "/etc/environment",
            "/etc/gitconfig",
            "/root",
            "/home",
            "/opt",
            "/sys",
            "/boot",
        ] {
            let shown = resolved.plan.template_mounts.iter().chain(&resolved.plan.nest_mounts).any(|step| {
                path::is_at_or_below(name_of(&step.path), path)
                    || matches!(&step.kind, Some(Kind::Bind(bind)) if path::is_at_or_below(path, name_of(&bind.source)))
            });
            assert!(!shown, "{path}");
        }
        let host = fs::read_to_string("/etc/hostname").unwrap_or_default();
        let hosts = content(&resolved, "/etc/hosts");
        assert!(host.trim().is_empty() || host.trim() == "nestbox" || !hosts.contains(host.trim()));
    }

    #[test]
    fn host_system_knows_the_sandboxee() {
        let user = |uid, gid, home: &str| {
            let env = BTreeMap::from([("HOME".to_owned(), home.to_owned())]);
            let resolved =
                resolve(&Policy { user: User { uid, gid }, env, ..host_system() }).expect("resolves");
            (content(&resolved, "/etc/passwd"), content(&resolved, "/etc/group"))
        };
        let (passwd, group) = user(0, 0, "/home/me");
        assert!(passwd.starts_with("sandbox:x:0:0:sandbox:/home/me:/bin/sh\n"), "{passwd}");
        assert!(group.starts_with("sandbox:x:0:\n"), "{group}");
        let (passwd, _) = user(7, 7, "/a\nroot::0:0::/:/bin/sh");
        assert!(passwd.contains("sandbox:x:7:7:sandbox:/tmp:/bin/sh\n"), "{passwd}");
    }

    #[test]
    fn the_hosts_resolver_goes_with_the_hosts_network() {
        let resolved = resolve(&Policy { network: Network::Host, ..host_system() }).expect("resolves");
        assert!(content(&resolved, "/etc/nsswitch.conf").contains("hosts: files dns\n"));
        if let Ok(host) = fs::read_to_string("/etc/resolv.conf") {
            assert_eq!(content(&resolved, "/etc/resolv.conf"), host);
        }
    }

    #[test]
    fn entries_override_the_base() {
        let mounts =
            vec![file("/etc/passwd"), tmpfs("/tmp"), bind("/usr/share", "/etc/fonts"), tmpfs("/dev/shm")];
        let resolved = resolve(&with(host_system(), mounts)).expect("resolves");
        assert_eq!(content(&resolved, "/etc/passwd"), "content");
        rehearse(&resolved.plan.template_mounts, &resolved.plan.nest_mounts);
        let whole = resolve(&with(host_system(), vec![bind("/usr/share", "/etc")])).expect("resolves");
        let below = |step: &&Mount| path::is_below(name_of(&step.path), "/etc");
        assert_eq!(whole.plan.template_mounts.iter().find(below), None);
    }

    #[test]
    fn entries_below_a_system_symlink_lie_where_it_leads() {
        if fs::read_link("/bin").is_ok_and(|target| target == Path::new("usr/bin")) {
            let resolved =
                resolve(&with(host_system(), vec![mount_point("/bin/x"), bind("/usr/bin/env", "/bin/y")]));
            let resolved = resolved.expect("resolves");
            assert_eq!(resolved.mount_point("/bin/x").expect("is one").target, "/usr/bin/x");
            assert!(step(&resolved.plan.template_mounts, "/usr/bin/y").is_some());
            rehearse(&resolved.plan.template_mounts, &resolved.plan.nest_mounts);
        }
    }

    #[test]
    fn libraries_are_placed_where_the_loader_looks() {
        let binary = "/proc/self/exe";
        let binary = name(&fs::canonicalize(binary).expect("is there"));
        let libraries = libraries::of(Path::new(&binary)).expect("finds");
        let mounts = vec![MountEntry::LibrariesFor { binary: binary.clone() }];
        let resolved = resolve(&with(empty(), mounts.clone())).expect("resolves");
        rehearse(&resolved.plan.template_mounts, &resolved.plan.nest_mounts);
        for library in &libraries {
            let kind = step(&resolved.plan.template_mounts, library);
            assert!(matches!(kind, Some(Kind::Bind(_) | Kind::File(_))), "{library}");
        }
        // What the base shows already is not shown twice.
        let resolved = resolve(&with(host_system(), mounts.clone())).expect("resolves");
        let base = resolve(&host_system()).expect("resolves");
        assert_eq!(resolved.plan.template_mounts.len(), base.plan.template_mounts.len());
        // What the policy says itself comes first.
        let mut overridden = mounts;
        overridden.extend(libraries.iter().map(|library| file(library)));
        let resolved = resolve(&with(empty(), overridden)).expect("resolves");
        assert!(libraries.iter().all(|library| content(&resolved, library) == "content"));
    }

    #[test]
    fn a_library_that_can_not_be_placed_is_an_error() {
        let host = tempfile::tempdir().expect("makes a directory");
        let mounts = ["/lib", "/lib64", "/usr", "/etc", "/nix"].map(|path| bind(&name(host.path()), path));
        let mut mounts = mounts.to_vec();
        mounts.push(MountEntry::LibrariesFor { binary: "/bin/sh".into() });
        let static_shell = libraries::of(Path::new("/bin/sh")).expect("finds").is_empty();
        assert!(static_shell || resolve(&with(empty(), mounts)).expect_err("fails").step == Step::AttachBind);
    }

    /// Nothing is changed on the host by looking at it.
    #[test]
    fn leaves_no_trace() {
        let host = tempfile::tempdir().expect("makes a directory");
        let mounts = vec![bind(&name(host.path()), "/a"), tmpfs("/a/t"), mount_point("/a/b/c")];
        resolve(&with(empty(), mounts)).expect("resolves");
        assert_eq!(fs::read_dir(host.path()).expect("is there").count(), 0);
        let open = Command::new("ls").arg(format!("/proc/{}/fd", std::process::id())).output();
        assert!(
            open.is_ok_and(|output| !String::from_utf8_lossy(&output.stdout).contains(&name(host.path())))
        );
    }

    fn entry() -> impl Strategy<Value = MountEntry> {
        let path = "(/[ab-]{1,2}){1,3}|/(usr|bin|lib|tmp|etc|dev|proc|dev/shm|etc/passwd)(/[ab])?";
        let source =
            prop::sample::select(vec!["/usr", "/usr/bin", "/usr/bin/env", "/dev/null", "/none", "/etc"]);
        (0..6_u8, path, source, any::<bool>()).prop_map(|(kind, path, source, flag)| match kind {
            0 if flag => optional(source, &path),
            0 => bind(source, &path),
            1 => tmpfs(&path),
            2 => file(&path),
            3 => symlink(&path),
            4 => mount_point(&path),
            _ => MountEntry::LibrariesFor { binary: source.to_owned() },
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// What is not refused has a plan that can be carried out, the same each time.
        #[test]
        fn any_accepted_policy_has_a_sound_plan(
            mounts in prop::collection::vec(entry(), 0..10),
            (system, dev, proc) in any::<(bool, bool, bool)>(),
        ) {
            let policy = Policy {
                base: if system { Base::HostSystem } else { Base::Empty },
                dev: if dev { Dev::Minimal } else { Dev::None },
                proc: if proc { Proc::Fresh } else { Proc::None },
                mounts,
                ..empty()
            };
            let accepted = check(&policy).is_empty();
            match resolve(&policy) {
                Ok(resolved) => {
                    prop_assert!(accepted);
                    rehearse(&resolved.plan.template_mounts, &resolved.plan.nest_mounts);
                    let again = resolve(&policy).expect("resolves");
                    prop_assert_eq!(&again.plan.template_mounts, &resolved.plan.template_mounts);
                    prop_assert_eq!(&again.plan.nest_mounts, &resolved.plan.nest_mounts);
                    prop_assert_eq!(again.hash, resolved.hash);
                    prop_assert_eq!(again.template_key, resolved.template_key);
                    prop_assert!(resolved.is_current());
                }
                // What check can't know: what there is on the host, and of which kind.
                Err(error) if accepted => prop_assert!(
                    matches!(error.errno, libc::ENOENT | libc::ENOTDIR | libc::ENOEXEC | libc::EROFS),
                    "{error}"
                ),
                Err(error) => prop_assert_eq!(error.step, Step::DecodeRequest),
            }
        }
    }
}
