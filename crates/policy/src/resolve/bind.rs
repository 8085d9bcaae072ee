//! Binds of the host's files: what may be bound, and what it is.
//!
//! Promises: nothing of the host's proc, and of its devices only those that are harmless, whatever they are called; what was
//! seen of a source is remembered, and part of the bind. Called by all that puts binds into the layout.

use nestbox_protocol::{Bind, Step};
use nix::sys::stat::{FileStat, stat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};

use crate::check::PROC_SOURCE;
use crate::error::ResolveError;
use crate::layout::Entry;
use crate::source::{Source, c_path};

/// Looks at a source and remembers what it was.
pub(super) fn bind_entry(
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
pub(super) fn device_entry(source: &str) -> Entry {
    Entry::Bind(Bind { source: source.as_bytes().to_vec(), device: true, ..Bind::default() })
}

/// null, zero, full, random, urandom, tty.
pub(super) fn is_harmless_device(status: &FileStat) -> bool {
    let number = (libc::major(status.st_rdev), libc::minor(status.st_rdev));
    status.st_mode & libc::S_IFMT == libc::S_IFCHR && matches!(number, (1, 3 | 5 | 7 | 8 | 9) | (5, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::bind;
    use crate::document::tests::empty;
    use crate::plan::tests::rehearse;
    use crate::resolve::tests::{name, resolve, step, with};
    use nestbox_protocol::mount::Kind;
    use std::fs;
    use std::os::unix::fs::symlink as make_symlink;
    use std::path::Path;

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
}
