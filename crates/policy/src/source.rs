//! What was seen on the host when a policy was resolved, and whether it is still so.
//!
//! A plan is kept as long as this says that it is current, which is asked before every launch: one stat(2) for each source
//! that the policy binds, nothing allocated. The base, and files whose content went into the plan, are many (a stat is
//! some 1.5 µs) and change when the system is upgraded; they are looked at only every [`SELDOM`].

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, stat};
use nix::time::{ClockId, clock_gettime};

/// How long a change of the base, or of a file whose content was copied, may go unnoticed.
pub(crate) const SELDOM: Duration = Duration::from_millis(100);

/// A file or directory of the host that a plan was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its path, symlinks and all.
    pub path: CString,
    /// Device and inode that the path led to; both 0 if it led nowhere (an optional source).
    pub device: u64,
    /// See `device`.
    pub inode: u64,
    /// Where the content itself is in the plan: when it was last modified, in seconds and nanoseconds, and its size.
    pub modified: Option<(i64, i64, i64)>,
}

impl Source {
    /// One that is bound.
    pub(crate) fn bound(path: CString, status: &FileStat) -> Self {
        Self { path, device: status.st_dev, inode: status.st_ino, modified: None }
    }

    /// One whose content was copied.
    pub(crate) fn copied(path: CString, status: &FileStat) -> Self {
        Self { modified: Some(modification(status)), ..Self::bound(path, status) }
    }

    /// One that is missing.
    pub(crate) fn missing(path: CString) -> Self {
        Self { path, device: 0, inode: 0, modified: None }
    }

    /// Whether the path still leads to the same, with the same content where that matters.
    #[must_use]
    pub fn is_current(&self) -> bool {
        match stat(self.path.as_c_str()) {
            Ok(status) => {
                self.device == status.st_dev
                    && self.inode == status.st_ino
                    && self.modified.is_none_or(|then| then == modification(&status))
            }
            Err(errno) => self.inode == 0 && is_missing(errno),
        }
    }
}

fn modification(status: &FileStat) -> (i64, i64, i64) {
    (status.st_mtime, status.st_mtime_nsec, status.st_size)
}

/// Whether a path that gives this error leads nowhere.
pub(crate) fn is_missing(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR)
}

/// The path as the kernel wants it; none if a NUL is in it.
pub(crate) fn c_path(path: impl AsRef<Path>) -> Option<CString> {
    CString::new(path.as_ref().as_os_str().as_bytes()).ok()
}

/// All sources of a plan.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// What the policy binds: looked at each time.
    pub(crate) bound: Vec<Source>,
    /// What is looked at now and then.
    pub(crate) seldom: Vec<Source>,
    /// When that was last done, in nanoseconds of the coarse monotonic clock.
    looked: AtomicU64,
}

impl Sources {
    /// Whether nothing has changed.
    pub(crate) fn are_current(&self) -> bool {
        self.bound.iter().all(Source::is_current) && self.rest_is_current()
    }

    fn rest_is_current(&self) -> bool {
        if self.seldom.is_empty() {
            return true;
        }
        let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from) else {
            return false;
        };
        let now = now.as_nanos() as u64;
        if now.saturating_sub(self.looked.load(Ordering::Relaxed)) < SELDOM.as_nanos() as u64 {
            return true;
        }
        let current = self.seldom.iter().all(Source::is_current);
        if current {
            self.looked.store(now, Ordering::Relaxed);
        }
        current
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn notices_a_replaced_source() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let path = directory.path().join("a");
        fs::create_dir(&path).expect("makes a directory");
        let name = c_path(&path).expect("no NUL");
        let source = Source::bound(name.clone(), &stat(name.as_c_str()).expect("is there"));
        assert!(source.is_current());
        fs::write(path.join("inside"), "a bind shows what is in it").expect("writes");
        assert!(source.is_current());
        fs::rename(&path, directory.path().join("b")).expect("renames");
        assert!(!source.is_current());
        fs::create_dir(&path).expect("makes a directory");
        assert!(!source.is_current());
    }

    #[test]
    fn notices_changed_content() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let path = directory.path().join("a");
        fs::write(&path, "one").expect("writes");
        let name = c_path(&path).expect("no NUL");
        let source = Source::copied(name.clone(), &stat(name.as_c_str()).expect("is there"));
        assert!(source.is_current());
        fs::write(&path, "another").expect("writes");
        assert!(!source.is_current());
    }

    #[test]
    fn notices_one_that_appears() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let path = directory.path().join("a");
        let source = Source::missing(c_path(&path).expect("no NUL"));
        assert!(source.is_current());
        fs::write(&path, "").expect("writes");
        assert!(!source.is_current());
    }

    #[test]
    fn the_rest_is_looked_at_now_and_then() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let path = directory.path().join("a");
        fs::write(&path, "one").expect("writes");
        let name = c_path(&path).expect("no NUL");
        let seldom = vec![Source::copied(name.clone(), &stat(name.as_c_str()).expect("is there"))];
        let sources = Sources { seldom, ..Sources::default() };
        assert!(sources.are_current());
        fs::write(&path, "another").expect("writes");
        std::thread::sleep(SELDOM * 2);
        assert!(!sources.are_current());
        assert!(!sources.are_current(), "a change isn't forgotten");
    }
}
