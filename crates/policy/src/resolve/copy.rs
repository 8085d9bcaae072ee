//! Copies of the host's small files, whose content goes into the plan: unlike a bind, one costs launches nothing.
//!
//! Promises: only files whose mode lets anyone read them, and no more than is bounded here; what was copied is remembered as it
//! was. Called for the base, and for what the loader reads.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::stat;

use crate::layout::Entry;
use crate::source::{Source, c_path};

/// The largest file whose content is copied, and the most that a copied directory holds: the list of media types, which each Debian
/// system has, is 72 KiB.
const COPY_MAX: u64 = 128 * 1024;

/// The most files and directories that a copied directory holds, all told.
const COPY_ENTRIES_MAX: usize = 64;

/// How deep a copied directory goes.
const COPY_DEPTH_MAX: usize = 4;

/// Anyone on the host may list the directory and open what is in it. In one that is closed files need no protection of their own.
const EVERYBODY_ENTERS: u32 = 0o005;

/// Anyone on the host may read it. Under a root host this process could read more than the sandboxee may.
pub(super) fn is_public(metadata: &fs::Metadata) -> bool {
    metadata.mode() & 0o004 != 0
}

/// A copy of a small, public, regular file.
pub(super) fn copy_entry(path: &str, sources: &mut Vec<Source>) -> Option<Entry> {
    let mut copy = Copy::default();
    copy.file(path)?;
    sources.append(&mut copy.sources);
    copy.entries.pop().map(|(_, entry)| entry)
}

/// A copy of a small directory with all that is in it, each entry with its path.
pub(super) fn copy_directory(path: &str, sources: &mut Vec<Source>) -> Option<Vec<(String, Entry)>> {
    let mut copy = Copy::default();
    copy.directory(path, COPY_DEPTH_MAX)?;
    sources.append(&mut copy.sources);
    Some(copy.entries)
}

/// A copy in the making. Its steps give `None` where something speaks against a copy.
#[derive(Default)]
struct Copy {
    entries: Vec<(String, Entry)>,
    sources: Vec<Source>,
    bytes: u64,
}

impl Copy {
    fn file(&mut self, path: &str) -> Option<()> {
        let name = c_path(path)?;
        // The status first: a file that changes in between then counts as changed.
        let status = stat(name.as_c_str()).ok()?;
        let metadata = fs::metadata(path).ok()?;
        self.bytes += metadata.len();
        if !metadata.is_file() || !is_public(&metadata) || self.bytes > COPY_MAX {
            return None;
        }
        let content = fs::read(path).ok()?;
        let mode = metadata.mode() & 0o555;
        self.entries.push((path.to_owned(), Entry::File { content, mode }));
        self.sources.push(Source::copied(name, &status));
        self.fits()
    }

    fn directory(&mut self, path: &str, depth: usize) -> Option<()> {
        let name = c_path(path)?;
        let status = stat(name.as_c_str()).ok()?;
        if status.st_mode & EVERYBODY_ENTERS != EVERYBODY_ENTERS {
            return None;
        }
        self.entries.push((path.to_owned(), Entry::Directory));
        self.sources.push(Source::copied(name, &status));
        let mut children =
            fs::read_dir(path).ok()?.collect::<Result<Vec<_>, _>>().ok().filter(|_| depth > 0)?;
        children.sort_unstable_by_key(fs::DirEntry::file_name);
        for child in children {
            let path = child.path().into_os_string().into_string().ok()?;
            let kind = child.file_type().ok()?;
            if kind.is_symlink() {
                let points_to = fs::read_link(&path).ok()?.into_os_string().into_string().ok()?;
                self.entries.push((path, Entry::Symlink { points_to }));
            } else if kind.is_dir() {
                self.directory(&path, depth - 1)?;
            } else {
                self.file(&path)?;
            }
            self.fits()?;
        }
        Some(())
    }

    fn fits(&self) -> Option<()> {
        (self.entries.len() <= COPY_ENTRIES_MAX && self.bytes <= COPY_MAX).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn with_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
    }

    #[test]
    fn a_directory_that_is_closed_is_not_copied_whatever_is_in_it() {
        let below = tempfile::tempdir().expect("directory");
        let closed = below.path().join("closed");
        fs::create_dir(&closed).expect("directory");
        fs::write(closed.join("file"), "secret").expect("file");
        with_mode(below.path(), 0o755);
        with_mode(&closed.join("file"), 0o644);
        let copies = |mode| {
            with_mode(&closed, mode);
            copy_directory(below.path().to_str().expect("text"), &mut Vec::new()).map(|entries| entries.len())
        };
        assert_eq!(copies(0o755), Some(3));
        assert_eq!(copies(0o700), None);
        assert_eq!(copies(0o711), None, "names that nobody may list");
        assert_eq!(copies(0o754), None, "files that nobody may open");
        with_mode(&closed, 0o755);
    }
}
