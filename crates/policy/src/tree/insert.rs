//! Inserting into a mount tree, by sandbox2's rules.
//!
//! Paths are absolute and clean, never the root; the same target twice is fine, and becomes writable if either is; a file
//! can't be where others lie below, nor the other way round; two different targets for one path are refused, except where
//! both are the same file by another name. Called by the client.

use std::os::unix::fs::MetadataExt;

use nestbox_protocol::mount_node::Node;
use nestbox_protocol::{MountNode, MountTree};

use super::TreeEntry;
use super::options::tmpfs_options;
use crate::{Issue, path};

/// What is wrong with the entries, if they are inserted in this order; each is named by its index. Empty if nothing is.
#[must_use]
pub fn check(entries: &[TreeEntry]) -> Vec<Issue> {
    build(entries).err().unwrap_or_default()
}

/// The tree of the entries, inserted in this order, or what is wrong with them.
pub fn build(entries: &[TreeEntry]) -> Result<MountTree, Vec<Issue>> {
    let mut tree = MountTree::default();
    let mut issues = Vec::new();
    let mut index = 0;
    for (position, entry) in entries.iter().enumerate() {
        if let Err(message) = insert(&mut tree, &mut index, entry) {
            issues.push(Issue::new(&[&position.to_string(), "path"], message));
        }
    }
    if issues.is_empty() { Ok(tree) } else { Err(issues) }
}

/// Inserts one entry; `index` counts the mounts.
pub fn insert(tree: &mut MountTree, index: &mut i64, entry: &TreeEntry) -> Result<(), String> {
    let place = path::clean(&entry.path)?;
    check_node(&entry.node)?;
    if matches!(entry.node, Node::RootNode(_)) != (place == "/") {
        return Err(if place == "/" {
            "The root is always there, and can't be inserted".to_owned()
        } else {
            "Only the root itself can be a root node".to_owned()
        });
    }
    let mut current = tree;
    for (end, name) in components(&place) {
        if is_file(current) {
            let parent = &place[..end - name.len() - 1];
            return Err(format!("{place} can't be inserted: {parent} is a file"));
        }
        current = current.entries.entry(name.to_owned()).or_default();
    }
    let known = current.node.as_ref().and_then(|known| known.node.as_ref());
    if let Some(known) = known {
        if !is_same_target(known, &entry.node) {
            return Err(format!("{place} is inserted twice, with different targets"));
        }
        let wanted = merge(known, &entry.node)
            .ok_or_else(|| format!("{place} is inserted twice, with options that can't both hold"))?;
        current.node = Some(MountNode { node: Some(wanted) });
        return Ok(());
    }
    if matches!(entry.node, Node::FileNode(_)) && !current.entries.is_empty() {
        return Err(format!("{place} can't be a file: others lie below it"));
    }
    *index += 1;
    current.index = *index;
    current.node = Some(MountNode { node: Some(entry.node.clone()) });
    Ok(())
}

/// The components of a clean path, each with where it ends.
fn components(path: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut end = 0;
    path.split('/').skip(1).filter(|name| !name.is_empty()).map(move |name| {
        end += 1 + name.len();
        (end, name)
    })
}

fn is_file(tree: &MountTree) -> bool {
    matches!(tree.node, Some(MountNode { node: Some(Node::FileNode(_)) }))
}

/// What can be said of a node by itself.
fn check_node(node: &Node) -> Result<(), String> {
    match node {
        Node::FileNode(file) => check_source(&file.outside, false),
        Node::DirectoryNode(directory) => check_source(&directory.outside, true),
        Node::TmpfsNode(tmpfs) => tmpfs_options(&tmpfs.tmpfs_options).map(drop).map_err(str::to_owned),
        Node::RootNode(_) => Ok(()),
    }
}

fn check_source(outside: &[u8], directory: bool) -> Result<(), String> {
    let outside =
        std::str::from_utf8(outside).map_err(|_| "The source is not well-formed Unicode".to_owned())?;
    let outside = path::clean(outside)?;
    // All of proc as a directory stands for the nest's own.
    if path::is_below(&outside, "/proc") || (outside == "/proc" && !directory) {
        return Err(format!("{outside} can't be a source: the host's proc tells about the host"));
    }
    Ok(())
}

/// Whether both lead to the same thing: by name, or by what the names lead to.
fn is_same_target(one: &Node, other: &Node) -> bool {
    match (one, other) {
        (Node::FileNode(one), Node::FileNode(other)) => is_same_file(&one.outside, &other.outside),
        (Node::DirectoryNode(one), Node::DirectoryNode(other)) => is_same_file(&one.outside, &other.outside),
        (Node::TmpfsNode(one), Node::TmpfsNode(other)) => one == other,
        (Node::RootNode(_), Node::RootNode(_)) => true,
        _ => false,
    }
}

fn is_same_file(one: &[u8], other: &[u8]) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let identity = |path: &[u8]| {
        let metadata = std::fs::metadata(std::ffi::OsStr::from_bytes(path)).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    one == other || identity(one).is_some_and(|identity_of_one| Some(identity_of_one) == identity(other))
}

/// Two nodes for one target made one: writable if either is. What only a writable one can have comes from the writable
/// one; two writable ones must agree on it.
fn merge(known: &Node, wanted: &Node) -> Option<Node> {
    let pick =
        |known_writable: bool, wanted_writable: bool, equal: bool| match (known_writable, wanted_writable) {
            (false, true) => Some(wanted.clone()),
            (true, false) => Some(known.clone()),
            _ => equal.then(|| known.clone()),
        };
    match (known, wanted) {
        (Node::FileNode(one), Node::FileNode(other)) => {
            let equal = one.allow_write_executable == other.allow_write_executable;
            pick(one.writable, other.writable, equal)
        }
        (Node::DirectoryNode(one), Node::DirectoryNode(other)) => {
            let options = |node: &nestbox_protocol::DirectoryNode| {
                (node.allow_write_executable, node.allow_mount_propagation)
            };
            pick(one.writable, other.writable, options(one) == options(other))
        }
        (Node::RootNode(one), Node::RootNode(other)) => pick(one.writable, other.writable, true),
        _ => Some(known.clone()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use nestbox_protocol::{DirectoryNode, FileNode, RootNode, TmpfsNode};
    use std::fs;
    use std::os::unix::fs::symlink;

    pub(in crate::tree) fn file_from(path: &str, outside: &str, writable: bool) -> TreeEntry {
        let node = FileNode { outside: outside.as_bytes().to_vec(), writable, allow_write_executable: false };
        TreeEntry { path: path.to_owned(), node: Node::FileNode(node) }
    }

    pub(in crate::tree) fn file(path: &str) -> TreeEntry {
        file_from(path, "/f", false)
    }

    pub(in crate::tree) fn directory_from(path: &str, outside: &str, writable: bool) -> TreeEntry {
        let node =
            DirectoryNode { outside: outside.as_bytes().to_vec(), writable, ..DirectoryNode::default() };
        TreeEntry { path: path.to_owned(), node: Node::DirectoryNode(node) }
    }

    pub(in crate::tree) fn directory(path: &str) -> TreeEntry {
        directory_from(path, "/d", false)
    }

    pub(in crate::tree) fn tmpfs(path: &str) -> TreeEntry {
        let node = TmpfsNode { tmpfs_options: "size=1m".to_owned() };
        TreeEntry { path: path.to_owned(), node: Node::TmpfsNode(node) }
    }

    pub(in crate::tree) fn root(writable: bool) -> TreeEntry {
        TreeEntry { path: "/".to_owned(), node: Node::RootNode(RootNode { writable }) }
    }

    pub(in crate::tree) fn accepted(entries: &[TreeEntry]) -> bool {
        check(entries).is_empty()
    }

    /// mounts_test: TestInvalidFilenames.
    #[test]
    fn refuses_what_is_no_path() {
        for path in ["", "relative", "./a", "/", "//", "/a/../b", "/.."] {
            for entry in [file(path), directory(path), tmpfs(path)] {
                assert!(!accepted(&[entry]), "{path:?}");
            }
        }
        for outside in ["", "relative", "/a/../b"] {
            assert!(!accepted(&[file_from("/a", outside, false)]), "{outside:?}");
            assert!(!accepted(&[directory_from("/a", outside, false)]), "{outside:?}");
        }
    }

    /// mounts_test: TestEvilNullByte.
    #[test]
    fn refuses_nul() {
        assert!(!accepted(&[file("/a\0b")]));
        assert!(!accepted(&[directory("/a\0b")]));
        assert!(!accepted(&[tmpfs("/a\0b")]));
        assert!(!accepted(&[file_from("/a", "/f\0", false)]));
        assert!(!accepted(&[directory_from("/a", "/d\0/x", false)]));
    }

    /// mounts_test: TestAddFile, TestAddDir, TestAddTmpFs.
    #[test]
    fn accepts_nesting() {
        assert!(accepted(&[file("/a"), file("/b/c"), file("/b/d")]));
        assert!(accepted(&[directory("/a"), directory("/a/b"), file("/a/b/c")]));
        assert!(accepted(&[directory("/a/b"), directory("/a")]));
        assert!(accepted(&[tmpfs("/t"), tmpfs("/t/u"), file("/t/f"), directory("/t/u/d")]));
        assert!(accepted(&[directory("/a"), file("//a/./b/")]));
    }

    /// mounts_test: TestMultipleInsertion.
    #[test]
    fn refuses_conflicts() {
        assert!(!accepted(&[file("/a"), file("/a/b")]));
        assert!(!accepted(&[file("/a"), directory("/a/b/c")]));
        assert!(!accepted(&[file("/a"), tmpfs("/a/t")]));
        assert!(!accepted(&[file("/a/b"), file("/a")]));
        assert!(!accepted(&[directory("/a/b"), file("/a")]));
        assert!(!accepted(&[file("/a"), directory("/a")]));
        assert!(!accepted(&[directory("/a"), file("/a")]));
        assert!(!accepted(&[directory("/a"), tmpfs("/a")]));
        assert!(!accepted(&[file_from("/a", "/no/one", false), file_from("/a", "/no/other", false)]));
        let mut other = tmpfs("/t");
        other.node = Node::TmpfsNode(TmpfsNode { tmpfs_options: "size=2m".to_owned() });
        assert!(!accepted(&[tmpfs("/t"), other]));
        let issues = check(&[file("/a"), directory("/fine"), file("/a/b")]);
        assert_eq!(issues.len(), 1);
        assert_eq!(issues[0].path, ["2", "path"]);
        assert_eq!(issues[0].message, "/a/b can't be inserted: /a is a file");
    }

    /// The same twice is one mount.
    #[test]
    fn inserts_once() {
        for entry in [file("/a"), directory("/a"), tmpfs("/a")] {
            let tree = build(&[entry.clone(), entry.clone()]).expect("fits");
            assert_eq!(tree, build(&[entry]).expect("fits"));
        }
    }

    /// mounts_test: TestMultipleInsertionUpgradeToWritable.
    #[test]
    fn upgrades_to_writable() {
        for from in [file_from, directory_from] {
            let (read_only, writable) = (from("/a", "/x", false), from("/a", "/x", true));
            for order in [[&read_only, &writable], [&writable, &read_only], [&writable, &writable]] {
                let tree = build(&order.map(Clone::clone)).expect("fits");
                assert_eq!(tree.entries["a"].node, Some(MountNode { node: Some(writable.node.clone()) }));
                assert_eq!(tree.entries["a"].index, 1, "it keeps its place");
            }
        }
    }

    #[test]
    fn refuses_options_that_can_not_both_hold() {
        let writable = |allow_write_executable| TreeEntry {
            path: "/a".to_owned(),
            node: Node::FileNode(FileNode {
                outside: b"/x".to_vec(),
                writable: true,
                allow_write_executable,
            }),
        };
        assert!(!accepted(&[writable(true), writable(false)]));
        assert!(accepted(&[writable(true), writable(true)]));
    }

    /// mounts_test: TestMultipleInsertionFileSymlink, TestMultipleInsertionDirSymlink.
    #[test]
    fn knows_a_source_by_its_other_names() {
        let host = tempfile::tempdir().expect("makes a directory");
        let name = |name: &str| host.path().join(name).to_str().expect("is text").to_owned();
        fs::write(name("file"), "").expect("writes");
        fs::write(name("other"), "").expect("writes");
        fs::hard_link(name("file"), name("hard")).expect("links");
        symlink("file", name("soft")).expect("links");
        fs::create_dir(name("directory")).expect("makes a directory");
        symlink("directory", name("soft-directory")).expect("links");
        let both = |one: TreeEntry, other: TreeEntry| {
            accepted(&[one.clone(), other.clone()]) && accepted(&[other, one])
        };
        assert!(both(file_from("/a", &name("file"), false), file_from("/a", &name("soft"), false)));
        assert!(both(file_from("/a", &name("file"), false), file_from("/a", &name("hard"), true)));
        assert!(!both(file_from("/a", &name("file"), false), file_from("/a", &name("other"), false)));
        assert!(!both(file_from("/a", &name("file"), false), file_from("/a", &name("missing"), false)));
        let (plain, soft) = (name("directory"), name("soft-directory"));
        assert!(both(directory_from("/a", &plain, false), directory_from("/a", &soft, false)));
    }
}
