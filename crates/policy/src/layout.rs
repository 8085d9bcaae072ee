//! The tree as a policy wants it: what is to be at which path, before anything is known of how it is made.
//!
//! Pure: whatever has to be learnt from the host is in the entries already. Promises: at most one entry for a clean path; an
//! entry of the policy takes the place of all that the base has put there or below. Filled by [`crate::resolve`];
//! [`crate::plan`] makes steps of it.

use std::collections::BTreeMap;

use nestbox_protocol::{Bind, Proc, Tmpfs};

use crate::path;

/// How many symlinks are followed in one path, as in the kernel.
const SYMLINKS_MAX: usize = 40;

/// What is wanted at a path.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Entry {
    Directory,
    File { content: Vec<u8>, mode: u32 },
    Symlink { points_to: String },
    Bind(Bind),
    Tmpfs(Tmpfs),
    MountPoint { path: String, directory: bool, writable: bool, exec: bool },
    Proc(Proc),
    Devpts,
}

/// Who wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The base, or the policy's proc or dev.
    Base,
    /// An entry of the policy.
    Policy,
}

/// The tree as it is wanted: at most one entry per clean path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    entries: BTreeMap<String, (Entry, Origin)>,
}

impl Layout {
    /// Puts what the base brings.
    pub(crate) fn put_base(&mut self, path: impl Into<String>, entry: Entry) {
        self.entries.insert(path.into(), (entry, Origin::Base));
    }

    /// Puts an entry of the policy, and takes away what the base would have put there or below.
    pub(crate) fn put(&mut self, path: String, entry: Entry) {
        self.entries.retain(|other, &mut (_, origin)| {
            origin == Origin::Policy || !path::is_at_or_below(other, &path)
        });
        self.entries.insert(path, (entry, Origin::Policy));
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path).map(|(entry, _)| entry)
    }

    /// The place of `path` with the tree's own symlinks above it followed, as the kernel would follow them. Those in
    /// binds are the host's, and unknown here.
    pub(crate) fn place(&self, path: &str) -> String {
        let mut place = path.to_owned();
        for _ in 0..SYMLINKS_MAX {
            let link = path::ancestors(&place).find_map(|ancestor| match self.get(ancestor) {
                Some(Entry::Symlink { points_to }) => Some((ancestor.to_owned(), points_to)),
                _ => None,
            });
            let Some((link, points_to)) = link else { break };
            let rest = &place[link.len()..];
            let parent = link.rfind('/').map_or("", |end| &link[..end]);
            place = resolve_dots(&if points_to.starts_with('/') {
                format!("{points_to}{rest}")
            } else {
                format!("{parent}/{points_to}{rest}")
            });
        }
        place
    }

    /// The innermost mount that `path` lies on, if that isn't the root.
    pub(crate) fn mount_above(&self, path: &str) -> Option<(String, &Entry)> {
        path::ancestors(path)
            .filter_map(|ancestor| self.get(ancestor).map(|entry| (ancestor.to_owned(), entry)))
            .filter(|(_, entry)| matches!(entry, Entry::Bind(_) | Entry::Tmpfs(_) | Entry::MountPoint { .. }))
            .last()
    }

    /// All of it, parents first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, (entry, _))| (path.as_str(), entry))
    }
}

impl Entry {
    /// What it is called in a sentence.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Directory => "a directory",
            Self::File { .. } => "a file",
            Self::Symlink { .. } => "a symlink",
            Self::Bind(bind) if bind.directory => "a directory",
            Self::Bind(_) => "a file of the host",
            Self::Tmpfs(_) => "a tmpfs",
            Self::MountPoint { .. } => "a mount point",
            Self::Proc(_) => "the nest's own proc",
            Self::Devpts => "the nest's own devpts",
        }
    }
}

/// The path without `.` and with `..` taken back, `/..` being `/`, as the kernel does where no symlinks are.
fn resolve_dots(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn bind(directory: bool) -> Entry {
        Entry::Bind(Bind { source: b"/source".to_vec(), directory, ..Bind::default() })
    }

    pub(crate) fn tmpfs() -> Entry {
        Entry::Tmpfs(Tmpfs { mode: 0o1777, ..Tmpfs::default() })
    }

    pub(crate) fn file() -> Entry {
        Entry::File { content: b"content".to_vec(), mode: 0o644 }
    }

    pub(crate) fn symlink(points_to: &str) -> Entry {
        Entry::Symlink { points_to: points_to.to_owned() }
    }

    pub(crate) fn mount_point(directory: bool) -> Entry {
        Entry::MountPoint { path: "/named".to_owned(), directory, writable: true, exec: false }
    }

    pub(crate) fn layout(entries: &[(&str, Entry)]) -> Layout {
        let mut layout = Layout::default();
        for (path, entry) in entries {
            layout.put((*path).to_owned(), entry.clone());
        }
        layout
    }

    #[test]
    fn follows_its_own_symlinks() {
        let mut layout = Layout::default();
        layout.put_base("/bin", symlink("usr/bin"));
        layout.put_base("/lib", symlink("/usr/./lib"));
        layout.put_base("/var/tmp", symlink("../tmp"));
        layout.put_base("/loop", symlink("loop"));
        for (path, place) in [
            ("/bin/a", "/usr/bin/a"),
            ("/lib/x/y", "/usr/lib/x/y"),
            ("/var/tmp/a", "/tmp/a"),
            ("/bin", "/bin"),
            ("/binary", "/binary"),
            ("/usr/bin/a", "/usr/bin/a"),
        ] {
            assert_eq!(layout.place(path), place);
        }
        // No end, no matter.
        let _ = layout.place("/loop/a");
    }

    #[test]
    fn the_policy_overrides_the_base() {
        let mut layout = Layout::default();
        layout.put_base("/etc/a", file());
        layout.put_base("/etc/b/c", file());
        layout.put_base("/other", file());
        layout.put("/etc/a/b".to_owned(), bind(true));
        layout.put("/etc".to_owned(), bind(true));
        let left: Vec<_> = layout.entries.keys().map(String::as_str).collect();
        assert_eq!(left, ["/etc", "/etc/a/b", "/other"]);
    }
}
