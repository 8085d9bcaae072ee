//! What was seen on the host when a policy was resolved, and whether it is still so.
//!
//! A plan is kept as long as this says that it is current, which is asked before every launch: one stat(2) for each source
//! that the policy binds, nothing allocated. The base, and files whose content went into the plan, are many (of
//! `host-system` some 70, at 1.5 to 4 µs each) and change when the system is upgraded. Before a launch no more is looked at, and
//! only every [`SELDOM`], than the directories that they are in: these tell of everything that was put in the place of something
//! else, as package managers and most editors do. At each of the files themselves [`Sources::look_again`] looks, after a launch.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, lstat, stat};
use nix::time::{ClockId, clock_gettime};

/// How long a change of the base, or of a file whose content was copied, may go unnoticed. What was written into such a file, and
/// did not replace it, is noticed after the first launch that comes later than this.
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
    /// What stands for these in between; empty before they were looked at.
    signs: Mutex<Vec<Sign>>,
    /// When the signs, or all of these, were last looked at, in nanoseconds of the coarse monotonic clock.
    glanced: AtomicU64,
    /// When all of these were.
    looked: AtomicU64,
    /// One of these has changed.
    changed: AtomicBool,
}

/// A path that changes when something in it is replaced, removed or added: a directory, or a source that is a symlink.
#[derive(Debug)]
struct Sign {
    path: CString,
    /// Device, inode, and time of the last change in seconds and nanoseconds; zeros if it led nowhere. Not that of the last
    /// modification, which whoever unpacks an archive sets back.
    seen: (u64, u64, i64, i64),
}

impl Sign {
    fn new(path: CString) -> Self {
        let seen = Self::look(&path);
        Self { path, seen }
    }

    fn look(path: &CString) -> (u64, u64, i64, i64) {
        stat(path.as_c_str()).map_or((0, 0, 0, 0), |status| {
            (status.st_dev, status.st_ino, status.st_ctime, status.st_ctime_nsec)
        })
    }

    fn refresh(&mut self) {
        self.seen = Self::look(&self.path);
    }

    fn is_current(&self) -> bool {
        Self::look(&self.path) == self.seen
    }
}

/// What stands for sources: the directories that they are in, and those themselves that are symlinks.
fn signs_of(sources: &[Source]) -> Vec<Sign> {
    let mut signs: Vec<Sign> = Vec::new();
    for source in sources {
        let path = Path::new(std::ffi::OsStr::from_bytes(source.path.to_bytes()));
        let leads_elsewhere = lstat(source.path.as_c_str())
            .map_or(true, |status| status.st_mode & libc::S_IFMT == libc::S_IFLNK);
        let sign = match path.parent().and_then(c_path) {
            Some(parent) if !leads_elsewhere => parent,
            _ => source.path.clone(),
        };
        if signs.iter().all(|known| known.path != sign) {
            signs.push(Sign::new(sign));
        }
    }
    signs
}

impl Sources {
    /// Whether nothing has changed that would be noticed.
    pub(crate) fn are_current(&self) -> bool {
        self.bound.iter().all(Source::is_current) && self.rest_is_current()
    }

    fn rest_is_current(&self) -> bool {
        if self.seldom.is_empty() {
            return true;
        }
        if self.changed.load(Ordering::Relaxed) {
            return false;
        }
        let Some(now) = now() else { return false };
        if !is_long_ago(&self.glanced, now) {
            return true;
        }
        let signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        let unchanged = !signs.is_empty() && signs.iter().all(Sign::is_current);
        drop(signs);
        if unchanged {
            self.glanced.store(now, Ordering::Relaxed);
            return true;
        }
        self.look(now)
    }

    /// Looks at all that is looked at seldom, if that was not done for a while and could tell anything new.
    pub(crate) fn look_again(&self) {
        if self.seldom.is_empty() || self.changed.load(Ordering::Relaxed) {
            return;
        }
        if let Some(now) = now().filter(|&now| is_long_ago(&self.looked, now)) {
            self.look(now);
        }
    }

    fn look(&self, now: u64) -> bool {
        let mut signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        // Before what they stand for: a change in between is then seen in one or the other.
        if signs.is_empty() {
            *signs = signs_of(&self.seldom);
        } else {
            signs.iter_mut().for_each(Sign::refresh);
        }
        let current = self.seldom.iter().all(Source::is_current);
        if current {
            self.glanced.store(now, Ordering::Relaxed);
            self.looked.store(now, Ordering::Relaxed);
        } else {
            self.changed.store(true, Ordering::Relaxed);
        }
        current
    }
}

fn is_long_ago(time: &AtomicU64, now: u64) -> bool {
    now.saturating_sub(time.load(Ordering::Relaxed)) >= SELDOM.as_nanos() as u64
}

/// Nanoseconds of the coarse monotonic clock.
fn now() -> Option<u64> {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).ok().map(|now| Duration::from(now).as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

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
        let (_directory, path) = one_file();
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

    /// A directory with a file.
    fn one_file() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("makes a directory");
        let path = directory.path().join("a");
        fs::write(&path, "one").expect("writes");
        (directory, path)
    }

    /// Sources that are looked at seldom, and were once.
    fn seldom(paths: &[&Path]) -> Sources {
        let source = |path: &&Path| {
            let name = c_path(path).expect("no NUL");
            let status = stat(name.as_c_str()).expect("is there");
            Source::copied(name, &status)
        };
        let sources = Sources { seldom: paths.iter().map(source).collect(), ..Sources::default() };
        assert!(sources.are_current());
        // Before Linux 6.13 two changes in one tick have one time.
        std::thread::sleep(Duration::from_millis(20));
        sources
    }

    #[test]
    fn the_rest_is_looked_at_now_and_then() {
        let (directory, path) = one_file();
        let sources = seldom(&[&path]);
        fs::write(directory.path().join("b"), "another").expect("writes");
        fs::rename(directory.path().join("b"), &path).expect("renames");
        std::thread::sleep(SELDOM * 2);
        assert!(!sources.are_current());
        assert!(!sources.are_current(), "a change isn't forgotten");
    }

    #[test]
    fn what_is_written_into_a_file_is_noticed_when_all_are_looked_at() {
        let (_directory, path) = one_file();
        let sources = seldom(&[&path]);
        fs::write(&path, "another").expect("writes");
        sources.look_again();
        assert!(sources.are_current(), "that was a moment ago");
        std::thread::sleep(SELDOM * 2);
        assert!(sources.are_current(), "the directory is as it was");
        sources.look_again();
        assert!(!sources.are_current());
    }

    #[test]
    fn a_directory_that_changes_without_them_changes_nothing() {
        let (directory, path) = one_file();
        let sources = seldom(&[&path]);
        for name in ["b", "c"] {
            fs::write(directory.path().join(name), "another").expect("writes");
            std::thread::sleep(SELDOM * 2);
            assert!(sources.are_current());
        }
        fs::remove_file(&path).expect("removes");
        std::thread::sleep(SELDOM * 2);
        assert!(!sources.are_current());
    }

    #[test]
    fn a_symlink_is_followed() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let elsewhere = tempfile::tempdir().expect("makes a directory");
        let (target, link) = (elsewhere.path().join("a"), directory.path().join("a"));
        fs::write(&target, "one").expect("writes");
        std::os::unix::fs::symlink(&target, &link).expect("links");
        let sources = seldom(&[&link]);
        fs::write(elsewhere.path().join("b"), "another").expect("writes");
        fs::rename(elsewhere.path().join("b"), &target).expect("renames");
        std::thread::sleep(SELDOM * 2);
        assert!(!sources.are_current());
    }
}
