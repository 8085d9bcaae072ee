//! What is wrong with a policy, said without looking at the host: paths that are no paths, entries that can't stand
//! together, values that the kernel or our own set-up can't take.
//!
//! Promises: never panics, whatever is in the policy; a policy without issues can be laid out (what then still fails is
//! the host's doing: a missing source, a file where a directory was). Called on every change by the TypeScript builder,
//! and once more before a policy is resolved.

use std::collections::BTreeMap;

use base64::Engine;

use crate::document::{Base, Dev, Encoding, MountEntry, Policy, Proc, UnixSockets};
use crate::filter::{self, Preset, Syscalls};
use crate::resolve::{dev, host_system};
use crate::{Issue, path};

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
        let taken = dev::names().find(|name| path::is_at_or_below(inside, &format!("/dev/{name}")));
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
    if policy.syscalls == Syscalls::Preset(Preset::Unfiltered) && policy.unix_sockets == UnixSockets::None {
        let message = "\"none\" is enforced by the syscall filter, and \"unfiltered\" is none: say \"allow\"";
        issues.push(Issue::new(&["unixSockets"], message));
    }
    if let Syscalls::Filter(filter) = &policy.syscalls {
        issues.extend(
            filter::check(filter, policy.unix_sockets).into_iter().map(|issue| issue.below("syscalls")),
        );
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::document::tests::{empty, host_system};
    use crate::document::{Limits, User};
    use proptest::prelude::*;

    pub(crate) fn bind(source: &str, path: &str) -> MountEntry {
        MountEntry::Bind {
            source: source.to_owned(),
            path: path.to_owned(),
            writable: false,
            exec: true,
            optional: false,
        }
    }

    pub(crate) fn tmpfs(path: &str) -> MountEntry {
        MountEntry::Tmpfs { path: path.to_owned(), size: None, inodes: None, mode: 0o1777 }
    }

    pub(crate) fn file(path: &str) -> MountEntry {
        MountEntry::File {
            path: path.to_owned(),
            content: "content".to_owned(),
            encoding: Encoding::Utf8,
            mode: 0o644,
        }
    }

    pub(crate) fn symlink(path: &str) -> MountEntry {
        MountEntry::Symlink { path: path.to_owned(), points_to: "to".to_owned() }
    }

    pub(crate) fn mount_point(path: &str) -> MountEntry {
        MountEntry::MountPoint { path: path.to_owned(), writable: false, exec: true }
    }

    fn libraries_for(binary: &str) -> MountEntry {
        MountEntry::LibrariesFor { binary: binary.to_owned() }
    }

    fn paths(policy: &Policy) -> Vec<String> {
        check(policy).into_iter().map(|issue| issue.path.join(".")).collect()
    }

    fn with(base: Policy, mounts: &[MountEntry]) -> Policy {
        Policy { mounts: mounts.to_vec(), ..base }
    }

    #[test]
    fn accepts_ordinary_policies() {
        assert_eq!(check(&empty()), []);
        assert_eq!(check(&host_system()), []);
        let mounts = [
            bind("/opt/data", "/data"),
            bind("/opt/data/more", "/data/more"),
            tmpfs("/data/scratch"),
            file("/data/scratch/a/b"),
            symlink("/link"),
            mount_point("/work"),
            mount_point("/tmp/input"),
            bind("/usr/bin/true", "/usr/bin/false"),
            bind("/x", "/tmp/x"),
            file("/etc/passwd"),
            tmpfs("/dev/shm"),
            tmpfs("/tmp"),
            libraries_for("/usr/bin/env"),
        ];
        assert_eq!(check(&with(host_system(), &mounts)), []);
    }

    #[test]
    fn names_what_is_no_path() {
        for path in ["", "relative", "./a", "/a/../b", "/..", "/a\0b", "/", "//", "/./"] {
            for entry in [bind("/a", path), tmpfs(path), file(path), symlink(path), mount_point(path)] {
                assert_eq!(paths(&with(empty(), &[tmpfs("/fine"), entry])), ["mounts.1.path"], "{path:?}");
            }
        }
        for path in ["", "relative", "/a/../b", "/a\0b", "/proc", "/proc/self/root", "//proc/1/./fd"] {
            assert_eq!(paths(&with(empty(), &[bind(path, "/a")])), ["mounts.0.source"], "{path:?}");
            assert_eq!(paths(&with(empty(), &[libraries_for(path)])), ["mounts.0.binary"], "{path:?}");
        }
        assert_eq!(check(&with(empty(), &[bind("/processes", "/a")])), []);
    }

    #[test]
    fn names_conflicts() {
        let cases: &[(&[MountEntry], &[&str])] = &[
            (&[file("/a"), tmpfs("/a/b")], &["mounts.1.path"]),
            (&[tmpfs("/a/b"), file("/a")], &["mounts.0.path"]),
            (&[file("/a/"), bind("/x", "/a//b")], &["mounts.1.path"]),
            (&[symlink("/a"), bind("/x", "/a/b/c")], &["mounts.1.path"]),
            (&[mount_point("/a"), bind("/x", "/a/b")], &["mounts.1.path"]),
            (&[bind("/x", "/a"), file("/a/b")], &["mounts.1.path"]),
            (&[bind("/x", "/a"), symlink("/a/b")], &["mounts.1.path"]),
            (&[bind("/x", "/a"), tmpfs("/a/b"), file("/a/b/c")], &[]),
            (&[bind("/x", "/a"), mount_point("/a/b")], &[]),
            (&[tmpfs("/a"), bind("/x", "/a/b"), tmpfs("/a/b/c")], &["mounts.2.path"]),
            (&[tmpfs("/a"), bind("/x", "/a/b"), bind("/y", "/a/b/c")], &[]),
            (&[tmpfs("/a"), tmpfs("/a/b")], &[]),
            // The last one for a path counts, and no other.
            (&[file("/a"), tmpfs("/a"), file("/a/b")], &[]),
        ];
        for (mounts, expected) in cases {
            assert_eq!(paths(&with(empty(), mounts)), *expected, "{mounts:?}");
        }
    }

    #[test]
    fn names_what_the_base_takes() {
        for path in ["/usr/new", "/bin/new", "/lib64/a/b"] {
            assert_eq!(paths(&with(host_system(), &[file(path)])), ["mounts.0.path"], "{path}");
            assert_eq!(paths(&with(empty(), &[file(path)])), [""; 0], "{path}");
        }
        assert_eq!(paths(&with(host_system(), &[tmpfs("/usr"), file("/usr/new")])), [""; 0]);
    }

    #[test]
    fn names_what_proc_and_dev_take() {
        let own = Policy { proc: Proc::Fresh, dev: Dev::Minimal, ..empty() };
        for path in ["/proc", "/proc/self", "/dev", "/dev/null", "/dev/fd/0", "/dev/pts/1", "/dev/ptmx"] {
            assert_eq!(paths(&with(own.clone(), &[bind("/x", path)])), ["mounts.0.path"], "{path}");
            assert_eq!(paths(&with(empty(), &[bind("/x", path)])), [""; 0], "{path}");
        }
        for path in ["/dev/shm", "/dev/log", "/process", "/device"] {
            assert_eq!(paths(&with(own.clone(), &[bind("/x", path)])), [""; 0], "{path}");
        }
    }

    #[test]
    fn names_hostnames_ids_and_environments() {
        for name in ["", "a\0b", "a b", "a/b", "ä", "-a", ".a", &"a".repeat(65)] {
            assert_eq!(paths(&Policy { hostname: name.to_owned(), ..empty() }), ["hostname"], "{name:?}");
        }
        for name in ["a", "a-1.b_c", &"a".repeat(64)] {
            assert_eq!(paths(&Policy { hostname: name.to_owned(), ..empty() }), [""; 0], "{name:?}");
        }
        assert_eq!(paths(&Policy { user: User { uid: u32::MAX, gid: 0 }, ..empty() }), ["user.uid"]);
        assert_eq!(paths(&Policy { user: User { uid: 0, gid: 0 }, ..empty() }), [""; 0]);
        for (name, value) in [("", ""), ("A=B", ""), ("A\0", ""), ("A", "\0")] {
            let env = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            assert_eq!(paths(&Policy { env, ..empty() }), [format!("env.{name}")]);
        }
    }

    #[test]
    fn names_values_that_nothing_can_take() {
        let entry = MountEntry::Tmpfs { path: "/a".into(), size: Some(0), inodes: Some(0), mode: 0o10000 };
        assert_eq!(paths(&with(empty(), &[entry])), ["mounts.0.size", "mounts.0.inodes", "mounts.0.mode"]);
        let entry = MountEntry::File {
            path: "/a".into(),
            content: "no base64".into(),
            encoding: Encoding::Base64,
            mode: u32::MAX,
        };
        assert_eq!(paths(&with(empty(), &[entry])), ["mounts.0.mode", "mounts.0.content"]);
        let limits =
            Limits { wall_time: Some(0), open_files: Some(2), disk: Some(u64::MAX), ..Limits::default() };
        let named = paths(&Policy { limits, ..empty() });
        assert_eq!(named, ["limits.wallTime", "limits.disk", "limits.openFiles"]);
        let unfiltered = Policy { syscalls: Syscalls::Preset(Preset::Unfiltered), ..empty() };
        assert_eq!(paths(&unfiltered), ["unixSockets"]);
        assert_eq!(paths(&Policy { unix_sockets: UnixSockets::Allow, ..unfiltered }), [""; 0]);
    }

    /// Any JSON at all, with the keys that policies have more often than others.
    fn json() -> impl Strategy<Value = serde_json::Value> {
        let text =
            prop_oneof!["[/a-c.\0=]{0,8}", "bind|tmpfs|file|symlink|empty|none|utf8|default", ".{0,8}"];
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<u64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            text.prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map("type|path|source|mode|.{0,4}", inner, 0..6)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_is_checked_or_refused(
            key in "mounts|hostname|user|env|limits|base|require|version",
            value in json(),
        ) {
            let mut policy = serde_json::to_value(empty()).expect("is JSON");
            policy[key] = value;
            if let Ok(policy) = Policy::parse(&policy.to_string()) {
                let _ = check(&policy);
            }
        }

        #[test]
        fn any_entries_are_checked(
            entries in prop::collection::vec((0..6_u8, "[/a-b.\0]{0,6}", "[/a-b.\0]{0,6}"), 0..12),
            system in any::<bool>(),
        ) {
            let mounts = entries.iter().map(|(kind, path, other)| match kind {
                0 => bind(other, path),
                1 => tmpfs(path),
                2 => file(path),
                3 => MountEntry::Symlink { path: path.clone(), points_to: other.clone() },
                4 => mount_point(path),
                _ => libraries_for(other),
            });
            let base = if system { host_system() } else { empty() };
            let _ = check(&Policy { mounts: mounts.collect(), ..base });
        }
    }
}
