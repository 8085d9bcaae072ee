//! From a mount tree to the plan that builds it.
//!
//! Pure, and trusts nothing of the tree, which comes off a socket. Promises: parents are mounted first, then by `index`, the
//! order of insertion; as the plan is carried out for one process alone, all of its steps, every tmpfs included, are in
//! `template_mounts`. Called by the fork server.

use nestbox_protocol::mount::Kind;
use nestbox_protocol::mount_node::Node;
use nestbox_protocol::{Bind, Mount, MountTree, Plan};

use super::options::tmpfs_options;
use crate::path::NAME_MAX;
use crate::step::{step, target};

/// Room and inodes on the root tmpfs beyond what the plan needs.
const ROOT_SPACE: u64 = 16 << 20;
const ROOT_INODES: u64 = 16_384;

/// A tree that can't be made a plan of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", String::from_utf8_lossy(path))]
pub struct TreeError {
    /// The path inside.
    pub path: Vec<u8>,
    /// What is wrong there.
    pub reason: &'static str,
}

/// The plan that builds the tree. Ids, hostname, network, filter and limits are the caller's to fill in.
pub fn plan(tree: &MountTree) -> Result<Plan, TreeError> {
    let root_writable = match tree.node.as_ref().and_then(|node| node.node.as_ref()) {
        None => false,
        Some(Node::RootNode(root)) => root.writable,
        Some(_) => return Err(TreeError { path: b"/".to_vec(), reason: "the root can't be anything else" }),
    };
    let mut planner = Planner { steps: Vec::new() };
    planner.add(b"/proc", target(true));
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
        self.steps.push(step(path, kind));
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
        if ours {
            self.add(path, target(directory));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::insert::tests::{accepted, directory, directory_from, file, file_from, root, tmpfs};
    use crate::tree::{TreeEntry, build};
    use nestbox_protocol::{DirectoryNode, MountNode, TmpfsNode};

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
