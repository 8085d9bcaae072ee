//! Mount trees as sandbox2 has them: inserting into one by its rules, and making a plan of one.
//!
//! Rules ([`insert`]): paths are absolute and clean, never the root; the same target twice is fine, and becomes writable
//! if either is; a file can't be where others lie below, nor the other way round; two different targets for one path are
//! refused, except where both are the same file by another name. Order of mounting ([`plan`]): parents first, then by
//! `index`, the order of insertion.
//!
//! Making the plan is pure and trusts nothing of the tree, which comes off a socket. Unlike a policy's, such a plan is
//! carried out for one process alone, so all of its steps, every tmpfs included, are in `template_mounts`. Used by the
//! client (inserting) and by the fork server (planning), the latter without default features.

use std::os::unix::fs::MetadataExt;

use nestbox_protocol::mount::Kind;
use nestbox_protocol::mount_node::Node;
use nestbox_protocol::{Bind, Directory, File, Mount, MountNode, MountTree, Plan, Tmpfs};

use crate::{Issue, path};

/// Mode of directories on the root tmpfs.
const DIRECTORY_MODE: u32 = 0o755;

/// Mode of the file that a file bind is attached to; never seen.
const PLACEHOLDER_MODE: u32 = 0o444;

/// Longest name of a directory entry.
const NAME_MAX: usize = 255;

/// Room and inodes on the root tmpfs beyond what the plan needs.
const ROOT_SPACE: u64 = 16 << 20;
const ROOT_INODES: u64 = 16_384;

/// One entry of a mount tree, with its path.
#[derive(Clone, Debug, PartialEq)]
pub struct TreeEntry {
    /// Absolute path inside; `/` for the root node.
    pub path: String,
    /// What is there.
    pub node: Node,
}

/// A tree that can't be made a plan of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", String::from_utf8_lossy(path))]
pub struct TreeError {
    /// The path inside.
    pub path: Vec<u8>,
    /// What is wrong there.
    pub reason: &'static str,
}

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

/// The plan that builds the tree. Ids, hostname, network, filter and limits are the caller's to fill in.
pub fn plan(tree: &MountTree) -> Result<Plan, TreeError> {
    let root_writable = match tree.node.as_ref().and_then(|node| node.node.as_ref()) {
        None => false,
        Some(Node::RootNode(root)) => root.writable,
        Some(_) => return Err(TreeError { path: b"/".to_vec(), reason: "the root can't be anything else" }),
    };
    let mut planner = Planner { steps: Vec::new() };
    planner.add(b"/proc", Kind::Directory(Directory { mode: DIRECTORY_MODE }));
    planner.children(b"", tree, true)?;
    Ok(Plan {
        root_size: ROOT_SPACE,
        root_inodes: ROOT_INODES + planner.steps.len() as u64,
        template_mounts: planner.steps,
        root_writable,
        ..Plan::default()
    })
}

struct Planner {
    steps: Vec<Mount>,
}

impl Planner {
    fn add(&mut self, path: &[u8], kind: Kind) {
        self.steps.push(Mount { path: path.to_vec(), kind: Some(kind) });
    }

    /// Everything below `parent`, in the order of mounting. `ours`: it lies on a tmpfs, so that things can be made there.
    fn children(&mut self, parent: &[u8], tree: &MountTree, ours: bool) -> Result<(), TreeError> {
        let mut children: Vec<_> = tree.entries.iter().collect();
        children.sort_by_key(|(_, child)| child.index);
        for (name, child) in children {
            let path = [parent, b"/", name.as_bytes()].concat();
            if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']) || name.len() > NAME_MAX
            {
                return Err(TreeError { path, reason: "not the name of a directory entry" });
            }
            self.entry(&path, child, ours)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &[u8], tree: &MountTree, ours: bool) -> Result<(), TreeError> {
        let refuse = |reason| Err(TreeError { path: path.to_vec(), reason });
        let node = tree.node.as_ref().and_then(|node| node.node.as_ref());
        if path == b"/proc" {
            return match node {
                Some(Node::DirectoryNode(node)) if node.outside == b"/proc" && tree.entries.is_empty() => {
                    Ok(())
                }
                _ => refuse("/proc is the nest's own"),
            };
        }
        let below_ours = match node {
            None => {
                self.target(path, ours, true);
                ours
            }
            Some(Node::FileNode(file)) => {
                if !tree.entries.is_empty() {
                    return refuse("a file with entries below it");
                }
                self.target(path, ours, false);
                let exec = !file.writable || file.allow_write_executable;
                let source = file.outside.clone();
                self.bind(path, Bind { source, writable: file.writable, exec, ..Bind::default() })?;
                false
            }
            Some(Node::DirectoryNode(directory)) => {
                self.target(path, ours, true);
                let bind = Bind {
                    source: directory.outside.clone(),
                    directory: true,
                    writable: directory.writable,
                    exec: !directory.writable || directory.allow_write_executable,
                    propagation: directory.allow_mount_propagation,
                    ..Bind::default()
                };
                self.bind(path, bind)?;
                false
            }
            Some(Node::TmpfsNode(tmpfs)) => {
                self.target(path, ours, true);
                let tmpfs = tmpfs_options(&tmpfs.tmpfs_options)
                    .map_err(|reason| TreeError { path: path.to_vec(), reason })?;
                self.add(path, Kind::Tmpfs(tmpfs));
                true
            }
            Some(Node::RootNode(_)) => return refuse("only the root itself can be a root node"),
        };
        self.children(path, tree, below_ours)
    }

    /// What a mount is attached to: made where we can, else expected to be on the bind.
    fn target(&mut self, path: &[u8], ours: bool, directory: bool) {
        if ours && directory {
            self.add(path, Kind::Directory(Directory { mode: DIRECTORY_MODE }));
        } else if ours {
            self.add(path, Kind::File(File { content: Vec::new(), mode: PLACEHOLDER_MODE }));
        }
    }

    fn bind(&mut self, path: &[u8], bind: Bind) -> Result<(), TreeError> {
        let outside = bind.source.as_slice();
        let refuse = |reason| Err(TreeError { path: path.to_vec(), reason });
        if outside.first() != Some(&b'/') || outside.contains(&0) {
            return refuse("the source is no absolute path");
        }
        // The host's proc is at no other path that we could know of; the client looks closer.
        if outside == b"/proc" || outside.starts_with(b"/proc/") {
            return refuse("the host's proc can't be a source");
        }
        self.add(path, Kind::Bind(bind));
        Ok(())
    }
}

/// Reads the options of tmpfs(5) that say something about one tree alone.
fn tmpfs_options(options: &str) -> Result<Tmpfs, &'static str> {
    let mut tmpfs = Tmpfs { size: 0, inodes: 0, mode: 0o1777, exec: true };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "size" => tmpfs.size = amount(value).ok_or("size= is a number of bytes, with k, m or g")?,
            "nr_inodes" => tmpfs.inodes = amount(value).ok_or("nr_inodes= is a number, with k, m or g")?,
            "mode" => {
                tmpfs.mode = u32::from_str_radix(value, 8)
                    .ok()
                    .filter(|&mode| mode <= 0o7777)
                    .ok_or("mode= is an octal number, at most 7777")?;
            }
            _ => return Err("of the options of a tmpfs only size=, nr_inodes= and mode= are taken"),
        }
    }
    Ok(tmpfs)
}

/// A number with a binary unit, as the kernel reads it.
fn amount(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (amount > 0).then_some(amount)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestbox_protocol::{DirectoryNode, FileNode, RootNode, TmpfsNode};
    use std::fs;
    use std::os::unix::fs::symlink;

    fn file_from(path: &str, outside: &str, writable: bool) -> TreeEntry {
        let node = FileNode { outside: outside.as_bytes().to_vec(), writable, allow_write_executable: false };
        TreeEntry { path: path.to_owned(), node: Node::FileNode(node) }
    }

    fn file(path: &str) -> TreeEntry {
        file_from(path, "/f", false)
    }

    fn directory_from(path: &str, outside: &str, writable: bool) -> TreeEntry {
        let node =
            DirectoryNode { outside: outside.as_bytes().to_vec(), writable, ..DirectoryNode::default() };
        TreeEntry { path: path.to_owned(), node: Node::DirectoryNode(node) }
    }

    fn directory(path: &str) -> TreeEntry {
        directory_from(path, "/d", false)
    }

    fn tmpfs(path: &str) -> TreeEntry {
        let node = TmpfsNode { tmpfs_options: "size=1m".to_owned() };
        TreeEntry { path: path.to_owned(), node: Node::TmpfsNode(node) }
    }

    fn root(writable: bool) -> TreeEntry {
        TreeEntry { path: "/".to_owned(), node: Node::RootNode(RootNode { writable }) }
    }

    fn accepted(entries: &[TreeEntry]) -> bool {
        check(entries).is_empty()
    }

    fn told(entries: &[TreeEntry]) -> Vec<String> {
        let plan = plan(&build(entries).expect("fits")).expect("plans");
        let kind = |kind: &Kind| match kind {
            Kind::Directory(_) => "directory",
            Kind::File(_) => "file",
            Kind::Bind(bind) if bind.writable => "writable",
            Kind::Bind(_) => "bind",
            Kind::Tmpfs(_) => "tmpfs",
            _ => "other",
        };
        let steps = plan.template_mounts.iter();
        steps
            .map(|step| {
                let path = String::from_utf8_lossy(&step.path);
                format!("{} {path}", step.kind.as_ref().map_or("none", kind))
            })
            .filter(|told| told != "directory /proc")
            .collect()
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

    /// policybuilder: sources in proc.
    #[test]
    fn refuses_the_hosts_proc() {
        assert!(!accepted(&[directory_from("/a", "/proc/self", false)]));
        assert!(!accepted(&[file_from("/a", "/proc/self/exe", false)]));
        assert!(!accepted(&[file_from("/a", "//proc/1/environ", false)]));
        // All of it, where it belongs, is the nest's own.
        assert_eq!(told(&[directory_from("/proc", "/proc", false)]), [""; 0]);
        for entry in
            [directory_from("/a", "/proc", false), directory("/proc"), tmpfs("/proc"), file("/proc/x")]
        {
            let tree = build(std::slice::from_ref(&entry));
            assert!(tree.is_err() || plan(&tree.expect("fits")).is_err(), "{entry:?}");
        }
    }

    /// Parents first, then the order of insertion.
    #[test]
    fn mounts_in_order() {
        assert_eq!(
            told(&[
                file("/z/f"),
                tmpfs("/b"),
                directory_from("/b/d", "/d", true),
                directory("/a"),
                file("/a/inside")
            ]),
            [
                "directory /z",
                "file /z/f",
                "bind /z/f",
                "directory /b",
                "tmpfs /b",
                "directory /b/d",
                "writable /b/d",
                "directory /a",
                "bind /a",
                "bind /a/inside",
            ]
        );
    }

    #[test]
    fn makes_nothing_on_a_bind() {
        assert_eq!(
            told(&[directory("/a"), file("/a/b/c"), tmpfs("/a/t"), file("/a/t/f")]),
            ["directory /a", "bind /a", "bind /a/b/c", "tmpfs /a/t", "file /a/t/f", "bind /a/t/f"]
        );
    }

    /// Writable is not executable, unless asked for.
    #[test]
    fn sets_flags() {
        let node = DirectoryNode {
            outside: b"/d".to_vec(),
            writable: true,
            allow_write_executable: true,
            allow_mount_propagation: true,
        };
        let asked = TreeEntry { path: "/c".to_owned(), node: Node::DirectoryNode(node) };
        let tree = build(&[directory("/a"), directory_from("/b", "/d", true), asked]).expect("fits");
        let flags: Vec<_> = plan(&tree)
            .expect("plans")
            .template_mounts
            .into_iter()
            .filter_map(|step| match step.kind {
                Some(Kind::Bind(bind)) => Some((bind.writable, bind.exec, bind.propagation)),
                _ => None,
            })
            .collect();
        assert_eq!(flags, [(false, true, false), (true, false, false), (true, true, true)]);
    }

    #[test]
    fn the_root_is_writable_if_it_says_so() {
        for writable in [false, true] {
            let tree = build(&[directory("/a"), root(writable)]).expect("fits");
            assert_eq!(plan(&tree).expect("plans").root_writable, writable);
        }
        assert!(!plan(&MountTree::default()).expect("plans").root_writable);
        assert!(accepted(&[root(false), root(true), root(false)]));
        let elsewhere = TreeEntry { path: "/a".to_owned(), ..root(true) };
        assert!(!accepted(&[elsewhere]));
    }

    #[test]
    fn reads_options_of_tmpfs() {
        let read = |options: &str| tmpfs_options(options).map(|tmpfs| (tmpfs.size, tmpfs.inodes, tmpfs.mode));
        assert_eq!(read(""), Ok((0, 0, 0o1777)));
        assert_eq!(read("size=4096"), Ok((4096, 0, 0o1777)));
        assert_eq!(read("size=2k,nr_inodes=3m,mode=700"), Ok((2048, 3 << 20, 0o700)));
        for options in [
            "size=",
            "size=0",
            "size=-1",
            "size=50%",
            "size=99999999999g",
            "mode=8",
            "mode=17777",
            "uid=0",
            "huge",
        ] {
            assert!(read(options).is_err(), "{options}");
        }
    }

    /// What comes off a socket need not have been built by [`insert`].
    #[test]
    fn trusts_no_tree() {
        let leaf = |node| MountTree { node: Some(MountNode { node: Some(node) }), ..MountTree::default() };
        let with = |name: &str, child| MountTree {
            entries: [(name.to_owned(), child)].into(),
            ..MountTree::default()
        };
        for name in ["", ".", "..", "a/b", "a\0", &"a".repeat(256)] {
            assert!(plan(&with(name, MountTree::default())).is_err(), "{name:?}");
            assert!(plan(&with("a", with(name, MountTree::default()))).is_err(), "{name:?}");
        }
        for outside in ["", "relative", "/a\0b", "/proc", "/proc/self/root"] {
            assert!(plan(&with("a", leaf(file_from("/a", outside, false).node))).is_err(), "{outside:?}");
        }
        assert!(plan(&leaf(file("/").node)).is_err());
        assert!(plan(&with("a", leaf(root(true).node))).is_err());
        assert!(
            plan(&with("a", leaf(Node::TmpfsNode(TmpfsNode { tmpfs_options: "uid=0".into() })))).is_err()
        );
        let mut below_file = leaf(file("/a").node);
        below_file.entries.insert("b".to_owned(), MountTree::default());
        assert!(plan(&with("a", below_file)).is_err());
        // A node of no kind is a directory on the way.
        let bare = MountTree { node: Some(MountNode { node: None }), ..MountTree::default() };
        assert_eq!(plan(&with("a", bare)).expect("plans").template_mounts.len(), 2);
    }
}
