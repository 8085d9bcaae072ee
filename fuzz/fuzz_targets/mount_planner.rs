//! Any policy and any mount tree: refused, or planned so that it can be carried out.

#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use nestbox_policy::filter::Preset;
use nestbox_policy::{
    Base, Dev, Encoding, Limits, MountEntry, MountPointKinds, Network, Policy, Proc, Syscalls, UnixSockets,
    User, check, tree,
};
use nestbox_protocol::mount::Kind;
use nestbox_protocol::mount_node::Node;
use nestbox_protocol::{DirectoryNode, FileNode, Mount, MountTree, RootNode, TmpfsNode};
use prost::Message;

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    Json(&'a str),
    Policy { system: bool, dev: bool, proc: bool, root_writable: bool, entries: Vec<Entry<'a>> },
    Tree(&'a [u8]),
    Insertions(Vec<(Place<'a>, NodeKind, bool)>),
}

/// A path: mostly short and of few names, so that entries meet; sometimes any text.
#[derive(Debug, Arbitrary)]
enum Place<'a> {
    Short(Vec<u8>),
    Any(&'a str),
}

impl Place<'_> {
    fn text(&self) -> String {
        const NAMES: [&str; 12] =
            ["a", "b", "a-b", "usr", "bin", "etc", "dev", "shm", "tmp", "proc", "passwd", "null"];
        match self {
            Self::Short(bytes) => bytes
                .iter()
                .take(6)
                .map(|&byte| format!("/{}", NAMES[usize::from(byte) % NAMES.len()]))
                .collect(),
            Self::Any(text) => (*text).to_owned(),
        }
    }
}

#[derive(Debug, Arbitrary)]
enum NodeKind {
    File,
    Directory,
    Tmpfs,
    Root,
}

#[derive(Debug, Arbitrary)]
struct Entry<'a> {
    kind: u8,
    path: Place<'a>,
    source: u8,
    flag: bool,
    text: &'a str,
    number: u32,
}

impl Entry<'_> {
    fn build(&self) -> MountEntry {
        const SOURCES: [&str; 8] = [
            "/usr",
            "/usr/bin",
            "/usr/bin/env",
            "/bin/sh",
            "/dev/null",
            "/missing",
            "/proc/self",
            "/etc/../etc",
        ];
        let source = SOURCES[usize::from(self.source) % SOURCES.len()].to_owned();
        let path = self.path.text();
        match self.kind % 6 {
            0 => MountEntry::Bind {
                source,
                path,
                writable: self.flag,
                exec: !self.flag,
                optional: self.number % 2 == 0,
            },
            1 => MountEntry::Tmpfs {
                path,
                size: self.flag.then_some(self.number.into()),
                inodes: None,
                mode: self.number,
            },
            2 => {
                let encoding = if self.flag { Encoding::Utf8 } else { Encoding::Base64 };
                MountEntry::File { path, content: self.text.to_owned(), encoding, mode: self.number }
            }
            3 => MountEntry::Symlink { path, points_to: self.text.to_owned() },
            4 => MountEntry::MountPoint { path, writable: self.flag, exec: self.flag },
            _ => MountEntry::LibrariesFor { binary: source },
        }
    }
}

fn policy(system: bool, dev: bool, proc: bool, root_writable: bool, entries: &[Entry]) -> Policy {
    Policy {
        version: Policy::VERSION,
        base: if system { Base::HostSystem } else { Base::Empty },
        mounts: entries.iter().map(Entry::build).collect(),
        proc: if proc { Proc::Fresh } else { Proc::None },
        dev: if dev { Dev::Minimal } else { Dev::None },
        root_writable,
        hostname: "nestbox".to_owned(),
        user: User { uid: 1000, gid: 1000 },
        env: BTreeMap::new(),
        network: Network::None,
        unix_sockets: UnixSockets::None,
        syscalls: Syscalls::Preset(Preset::Default),
        core_scheduling: false,
        allow_speculation: false,
        limits: Limits::default(),
        require: Vec::new(),
    }
}

fn plan_policy(policy: &Policy) {
    let accepted = check(policy).is_empty();
    let Ok(resolved) = policy.resolve(&MountPointKinds::default()) else { return };
    assert!(accepted, "what is refused is not planned");
    rehearse(resolved.plan.template_mounts.iter().chain(&resolved.plan.nest_mounts));
    let again = policy.resolve(&MountPointKinds::default()).expect("resolves again");
    assert_eq!(again.hash, resolved.hash);
}

/// Parents come first, nothing is made on a bind, nothing lies outside.
fn rehearse<'a>(steps: impl Iterator<Item = &'a Mount>) {
    // What is at each path that a step made: is it a bind?
    let mut places = BTreeMap::from([(Vec::new(), false)]);
    for step in steps {
        let path = step.path.as_slice();
        assert_eq!(path.first(), Some(&b'/'));
        assert!(path.len() > 1 && !path.contains(&0));
        assert!(path[1..].split(|&byte| byte == b'/').all(|name| !matches!(name, b"" | b"." | b"..")));
        let cuts = (0..path.len()).rev().filter(|&at| path[at] == b'/');
        let above =
            cuts.map(|at| &path[..at]).find(|above| places.contains_key(*above)).expect("the root is there");
        let on_bind = places[above];
        let parent = &path[..path.iter().rposition(|&byte| byte == b'/').expect("is absolute")];
        assert!(on_bind || above == parent, "the parent is there");
        let makes = matches!(step.kind, Some(Kind::Directory(_) | Kind::File(_) | Kind::Symlink(_)));
        assert!(!(makes && on_bind), "nothing is made on a bind");
        assert!(makes || on_bind || places.contains_key(path), "a mount has its target");
        places.insert(path.to_vec(), matches!(step.kind, Some(Kind::Bind(_))));
    }
}

fn plan_tree(tree: &MountTree) {
    if let Ok(plan) = tree::plan(tree) {
        rehearse(plan.template_mounts.iter());
        assert!(plan.nest_mounts.is_empty());
    }
}

fn insertions(entries: &[(Place, NodeKind, bool)]) -> Vec<tree::TreeEntry> {
    let node = |kind: &NodeKind, writable: bool| match kind {
        NodeKind::File => {
            Node::FileNode(FileNode { outside: b"/f".to_vec(), writable, ..FileNode::default() })
        }
        NodeKind::Directory => Node::DirectoryNode(DirectoryNode {
            outside: b"/d".to_vec(),
            writable,
            ..DirectoryNode::default()
        }),
        NodeKind::Tmpfs => Node::TmpfsNode(TmpfsNode { tmpfs_options: "size=1m".to_owned() }),
        NodeKind::Root => Node::RootNode(RootNode { writable }),
    };
    entries
        .iter()
        .map(|(path, kind, flag)| tree::TreeEntry { path: path.text(), node: node(kind, *flag) })
        .collect()
}

fuzz_target!(|input: Input| match input {
    Input::Json(json) => {
        if let Ok(policy) = Policy::parse(json) {
            let _ = check(&policy);
        }
    }
    Input::Policy { system, dev, proc, root_writable, entries } => {
        plan_policy(&policy(system, dev, proc, root_writable, &entries));
    }
    Input::Tree(bytes) => {
        if let Ok(tree) = MountTree::decode(bytes) {
            plan_tree(&tree);
        }
    }
    Input::Insertions(entries) => {
        if let Ok(tree) = tree::build(&insertions(&entries)) {
            plan_tree(&tree);
        }
    }
});
