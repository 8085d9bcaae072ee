//! Whole policies, resolved on the host that the tests run on.

use super::*;
use crate::check::tests::{bind, file, mount_point, symlink, tmpfs};
use crate::document::UnixSockets;
use crate::document::tests::empty;
use crate::filter::{Preset, Syscalls};
use crate::plan::tests::rehearse;
use nestbox_protocol::{Mount, mount::Kind};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

pub(super) fn resolve(policy: &Policy) -> Result<Resolved, ResolveError> {
    policy.resolve(&MountPointKinds::default())
}

pub(super) fn with(base: Policy, mounts: Vec<MountEntry>) -> Policy {
    Policy { mounts, ..base }
}

pub(super) fn optional(source: &str, path: &str) -> MountEntry {
    let (source, path) = (source.to_owned(), path.to_owned());
    MountEntry::Bind { source, path, writable: true, exec: false, optional: true }
}

pub(super) fn step<'a>(steps: &'a [Mount], path: &str) -> Option<&'a Kind> {
    steps.iter().rfind(|step| step.path == path.as_bytes()).and_then(|step| step.kind.as_ref())
}

pub(super) fn content(resolved: &Resolved, path: &str) -> String {
    match step(&resolved.plan.template_mounts, path) {
        Some(Kind::File(file)) => String::from_utf8_lossy(&file.content).into_owned(),
        other => panic!("{path} is {other:?}"),
    }
}

pub(super) fn name(path: &Path) -> String {
    path.to_str().expect("is text").to_owned()
}

pub(super) fn name_of(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("is text")
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

/// Nothing is changed on the host by looking at it.
#[test]
fn leaves_no_trace() {
    let host = tempfile::tempdir().expect("makes a directory");
    let mounts = vec![bind(&name(host.path()), "/a"), tmpfs("/a/t"), mount_point("/a/b/c")];
    resolve(&with(empty(), mounts)).expect("resolves");
    assert_eq!(fs::read_dir(host.path()).expect("is there").count(), 0);
    let open = Command::new("ls").arg(format!("/proc/{}/fd", std::process::id())).output();
    assert!(open.is_ok_and(|output| !String::from_utf8_lossy(&output.stdout).contains(&name(host.path()))));
}

fn entry() -> impl Strategy<Value = MountEntry> {
    let path = "(/[ab-]{1,2}){1,3}|/(usr|bin|lib|tmp|etc|dev|proc|dev/shm|etc/passwd)(/[ab])?";
    let source = prop::sample::select(vec!["/usr", "/usr/bin", "/usr/bin/env", "/dev/null", "/none", "/etc"]);
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
