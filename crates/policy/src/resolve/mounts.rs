//! The policy's own entries in the layout: its `mounts`, and the libraries of the binaries that it names there.
//!
//! Promises: the policy's entries take the place of the base's, and libraries give way to both; an optional bind whose source
//! is missing is left out and told, and noticed when it appears. Called by [`crate::resolve`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nestbox_protocol::{Step, Tmpfs};
use nix::sys::stat::stat;

use super::MountPointKinds;
use super::bind::bind_entry;
use super::copy::copy_entry;
use crate::check::decode;
use crate::document::{MountEntry, Policy};
use crate::error::ResolveError;
use crate::layout::{Entry, Layout};
use crate::source::{Source, Sources, c_path};
use crate::{libraries, path};

/// The policy's own entries, parents first; of two for one path the later.
pub(super) fn put_entries(
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
pub(super) fn put_libraries(
    policy: &Policy,
    layout: &mut Layout,
    sources: &mut Sources,
) -> Result<(), ResolveError> {
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
        return match (stat(shown.as_str()), stat(library)) {
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
        let copy = copy_entry(library, &mut sources.seldom);
        let entry = copy.map_or_else(|| bind_entry(library, false, false, &mut sources.bound), Ok)?;
        layout.put_base(place, entry);
        return Ok(());
    }
    let entry = bind_entry(library, false, true, &mut sources.bound)?;
    layout.put(place, entry);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{bind, file, mount_point, tmpfs};
    use crate::document::Encoding;
    use crate::document::tests::{empty, host_system};
    use crate::plan::Stage;
    use crate::plan::tests::rehearse;
    use crate::resolve::tests::{content, name, name_of, optional, resolve, step, with};
    use nestbox_protocol::{Mount, mount::Kind};
    use std::fs;

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
}
