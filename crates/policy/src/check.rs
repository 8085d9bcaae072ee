//! What is wrong with a policy, said without looking at the host: paths that are no paths, entries that can't stand
//! together, values that the kernel or our own set-up can't take.
//!
//! Promises: never panics, whatever is in the policy; a policy without issues can be laid out (what then still fails is
//! the host's doing: a missing source, a file where a directory was). Called on every change by the TypeScript builder,
//! and once more before a policy is resolved.

use std::collections::BTreeMap;

use base64::Engine;

use crate::document::{Base, Dev, Encoding, MountEntry, Policy, Proc, Syscalls, UnixSockets};
use crate::{Issue, host_system, path};

/// Names below /dev that `dev: 'minimal'` makes and nobody else may.
const DEVICE_NAMES: [&str; 12] =
    ["null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "ptmx", "pts"];

/// Bits of a mode.
const MODE_MAX: u32 = 0o7777;

/// The least that a tmpfs holds: a page. (Zero would be one without a limit.)
const PAGE: u64 = 4096;

/// The largest time, some 30 years: fits nanoseconds in 64 bits.
const TIME_MAX: u64 = 1_000_000_000_000;

/// The largest size: fits a signed offset.
const SIZE_MAX: u64 = i64::MAX as u64;

/// Everything that is wrong with the policy; empty if nothing is.
#[must_use]
pub fn check(policy: &Policy) -> Vec<Issue> {
    let mut issues = Vec::new();
    check_entries(policy, &mut issues);
    check_conflicts(policy, &mut issues);
    check_scalars(policy, &mut issues);
    check_limits(policy, &mut issues);
    issues
}

/// Each entry by itself.
fn check_entries(policy: &Policy, issues: &mut Vec<Issue>) {
    for (index, entry) in policy.mounts.iter().enumerate() {
        let index = index.to_string();
        let mut issue = |key: &str, message: &str| {
            issues.push(Issue::new(&["mounts", &index, key], message));
        };
        if let Some(inside) = entry.path() {
            match path::clean(inside) {
                Ok(clean) if clean == "/" => issue("path", "The root itself can't be an entry"),
                Ok(_) => {}
                Err(fault) => issue("path", fault),
            }
        }
        match entry {
            MountEntry::Bind { source, .. } => {
                if let Some(fault) = host_path_fault(source) {
                    issue("source", fault);
                }
            }
            MountEntry::LibrariesFor { binary } => {
                if let Some(fault) = host_path_fault(binary) {
                    issue("binary", fault);
                }
            }
            MountEntry::Tmpfs { size, inodes, mode, .. } => {
                if size.is_some_and(|size| !(PAGE..=SIZE_MAX).contains(&size)) {
                    issue("size", "The size of a tmpfs is at least 4096 bytes, and at most 2^63-1");
                }
                if inodes.is_some_and(|inodes| !(1..=SIZE_MAX).contains(&inodes)) {
                    issue("inodes", "A tmpfs has at least one inode, and at most 2^63-1");
                }
                if *mode > MODE_MAX {
                    issue("mode", "A mode is at most 0o7777");
                }
            }
            MountEntry::File { content, encoding, mode, .. } => {
                if *mode > MODE_MAX {
                    issue("mode", "A mode is at most 0o7777");
                }
                if decode(content, *encoding).is_none() {
                    issue("content", "The content is not base64");
                }
            }
            MountEntry::Symlink { points_to, .. } => {
                if points_to.is_empty() || points_to.len() > 4095 || points_to.contains('\0') {
                    issue("pointsTo", "A symlink holds 1 to 4095 bytes, none of them NUL");
                }
            }
            MountEntry::MountPoint { .. } => {}
        }
    }
}

/// The bytes of a file's content.
pub(crate) fn decode(content: &str, encoding: Encoding) -> Option<Vec<u8>> {
    match encoding {
        Encoding::Utf8 => Some(content.as_bytes().to_vec()),
        Encoding::Base64 => base64::engine::general_purpose::STANDARD.decode(content).ok(),
    }
}

/// The host's proc tells about, and leads into, the host's processes; a nest has its own.
pub(crate) const PROC_SOURCE: &str = "Nothing of the host's /proc can be shown: a nest has its own";

fn host_path_fault(source: &str) -> Option<&'static str> {
    match path::clean(source) {
        Ok(clean) if path::is_at_or_below(&clean, "/proc") => Some(PROC_SOURCE),
        Ok(_) => None,
        Err(fault) => Some(fault),
    }
}

/// What lies at a path, as far as it can be known without the host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bind,
    MountPoint,
    Tmpfs,
    File,
    Symlink,
}

impl Kind {
    fn of(entry: &MountEntry) -> Option<Self> {
        Some(match entry {
            MountEntry::Bind { .. } => Self::Bind,
            MountEntry::MountPoint { .. } => Self::MountPoint,
            MountEntry::Tmpfs { .. } => Self::Tmpfs,
            MountEntry::File { .. } => Self::File,
            MountEntry::Symlink { .. } => Self::Symlink,
            MountEntry::LibrariesFor { .. } => return None,
        })
    }
}

/// The entries together.
fn check_conflicts(policy: &Policy, issues: &mut Vec<Issue>) {
    let mut tree = BTreeMap::new();
    if policy.base == Base::HostSystem {
        tree.insert("/tmp".to_owned(), (Kind::Tmpfs, None));
        for path in host_system::SYSTEM_DIRECTORIES {
            tree.insert(path.to_owned(), (Kind::Bind, None));
        }
    }
    if policy.dev == Dev::Minimal {
        tree.insert("/dev/shm".to_owned(), (Kind::Tmpfs, None));
    }
    for (index, entry) in policy.mounts.iter().enumerate() {
        if let (Some(kind), Some(Ok(path))) = (Kind::of(entry), entry.path().map(path::clean)) {
            tree.insert(path, (kind, Some(index)));
        }
    }
    for (path, &(kind, index)) in &tree {
        // What the base brings gives way to the policy's own entries, so it is never at fault.
        let Some(index) = index else { continue };
        if let Some(message) = reserved(policy, path).or_else(|| misplaced(&tree, path, kind)) {
            issues.push(Issue::new(&["mounts", &index.to_string(), "path"], message));
        }
    }
}

/// Paths that the policy's own /proc and /dev take.
fn reserved(policy: &Policy, inside: &str) -> Option<String> {
    if policy.proc == Proc::Fresh && path::is_at_or_below(inside, "/proc") {
        return Some("/proc is the nest's own; with proc 'none' the path is free".to_owned());
    }
    if policy.dev == Dev::Minimal {
        if inside == "/dev" {
            return Some("/dev is the nest's own; with dev 'none' the path is free".to_owned());
        }
        let taken = DEVICE_NAMES.iter().find(|name| path::is_at_or_below(inside, &format!("/dev/{name}")));
        if let Some(name) = taken {
            return Some(format!("/dev/{name} is the nest's own; with dev 'none' the path is free"));
        }
    }
    None
}

/// What keeps an entry from lying where it lies.
fn misplaced(tree: &BTreeMap<String, (Kind, Option<usize>)>, inside: &str, kind: Kind) -> Option<String> {
    let mut below_tmpfs = false;
    // The innermost mount that the entry lies on, and whether that is a bind that lies on a tmpfs.
    let mut on: Option<(&str, Kind, bool)> = None;
    for ancestor in path::ancestors(inside) {
        let Some(&(found, _)) = tree.get(ancestor) else { continue };
        match found {
            Kind::File => return Some(format!("{inside} lies below {ancestor}, which is a file")),
            Kind::Symlink => return Some(format!("{inside} lies below {ancestor}, which is a symlink")),
            Kind::MountPoint => {
                return Some(format!(
                    "{inside} lies below the mount point {ancestor}, where a launch's bind would hide it"
                ));
            }
            Kind::Tmpfs => below_tmpfs = true,
            Kind::Bind => {}
        }
        on = Some((ancestor, found, below_tmpfs));
    }
    let (ancestor, Kind::Bind, on_tmpfs) = on? else { return None };
    match kind {
        Kind::File | Kind::Symlink => Some(format!(
            "{inside} lies below the bind {ancestor}, and nothing is ever created on the host's file systems"
        )),
        // Binds on a tmpfs are attached after every tmpfs is mounted.
        Kind::Tmpfs if on_tmpfs => {
            Some(format!("{inside} lies below {ancestor}, a bind that is itself below a tmpfs"))
        }
        _ => None,
    }
}

fn check_scalars(policy: &Policy, issues: &mut Vec<Issue>) {
    let name = policy.hostname.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if !(1..=64).contains(&name.len()) || !name.iter().all(plain) || matches!(name[0], b'.' | b'-') {
        let message = "A hostname has 1 to 64 letters, digits, \".\", \"-\" and \"_\", and starts with none of the first two";
        issues.push(Issue::new(&["hostname"], message));
    }
    for (key, id) in [("uid", policy.user.uid), ("gid", policy.user.gid)] {
        if id == u32::MAX {
            issues.push(Issue::new(&["user", key], "4294967295 is no id: it means \"leave it as it is\""));
        }
    }
    for (name, value) in &policy.env {
        if name.is_empty() || name.contains(['=', '\0']) {
            issues.push(Issue::new(&["env", name], "A name is not empty and has neither \"=\" nor NUL"));
        }
        if value.contains('\0') {
            issues.push(Issue::new(&["env", name], "The value must not contain a NUL byte"));
        }
    }
    if policy.syscalls == Syscalls::Unfiltered && policy.unix_sockets == UnixSockets::None {
        let message = "\"none\" is enforced by the syscall filter, and \"unfiltered\" is none: say \"allow\"";
        issues.push(Issue::new(&["unixSockets"], message));
    }
}

fn check_limits(policy: &Policy, issues: &mut Vec<Issue>) {
    let limits = &policy.limits;
    for (key, value, least, most) in [
        ("wallTime", limits.wall_time, 1, TIME_MAX),
        ("cpuTime", limits.cpu_time, 1, TIME_MAX),
        ("processes", limits.processes, 1, SIZE_MAX),
        ("output", limits.output, 0, SIZE_MAX),
        ("disk", limits.disk, PAGE, SIZE_MAX),
        ("fileSize", limits.file_size, 0, SIZE_MAX),
        // stdin, stdout and stderr.
        ("openFiles", limits.open_files, 3, SIZE_MAX),
        ("addressSpacePerProcess", limits.address_space_per_process, PAGE, SIZE_MAX),
        ("stack", limits.stack, PAGE, SIZE_MAX),
        ("core", limits.core, 0, SIZE_MAX),
    ] {
        if let Some(value) = value.filter(|value| !(least..=most).contains(value)) {
            let message = format!("{value} is not between {least} and {most}");
            issues.push(Issue::new(&["limits", key], message));
        }
    }
}
