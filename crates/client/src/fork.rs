//! sandbox2's request surface: requests for one process each, with clone flags and a mount tree instead of a policy.
//!
//! Turned into the same [`Draft`] that a sandbox's launch is, so everything after that is shared. `INITIALIZE` requests end
//! with `Prepared`; `FORK` requests go to a zygote's socket instead of the fork server. Called by the addon for
//! `nestbox/sandbox2`.

use std::os::fd::RawFd;

use nestbox_policy::tree::{self, TreeEntry};
use nestbox_policy::{Issue, filter};
use nestbox_protocol::mount_node::Node;
use nestbox_protocol::{
    DirectoryNode, FdRole, FileNode, ForkRequest, InitializationType, Mode, MonitorType, NetnsMode, Pivot,
    RootNode, Step, TmpfsNode,
};
use prost::bytes::Bytes;

use crate::channel::{Channel, PassedFd, duplicate};
use crate::failure::{Code, Failure};
use crate::hints;
use crate::ids::OuterIds;
use crate::launch::{Isolation, LaunchRequest, Launched, Route};
use crate::networks::NetworkNeed;
use crate::reactor::{Key, Kind};
use crate::server::{Client, Draft, Preparation, initialize, spawn_failure};
use crate::stdio::{self, Fds, Returned};

/// What a node of a mount tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeKind {
    /// A file of the host.
    File,
    /// A directory of the host.
    Directory,
    /// An empty file system.
    Tmpfs,
    /// The root's own properties.
    Root,
}

/// One node of a mount tree. The order of a list of them is the order of mounting.
#[derive(Clone, Debug)]
pub struct TreeNode {
    /// What it is.
    pub kind: TreeKind,
    /// Where it is, inside.
    pub path: String,
    /// What it is, on the host.
    pub outside: String,
    /// Writable; otherwise read-only.
    pub writable: bool,
    /// Executable in spite of being writable.
    pub allow_write_executable: bool,
    /// Mounts made later at the source show up.
    pub allow_mount_propagation: bool,
    /// Of a tmpfs, as tmpfs(5) has them.
    pub options: String,
}

impl TreeNode {
    fn entry(&self) -> TreeEntry {
        let outside = self.outside.clone().into_bytes();
        let (writable, allow_write_executable) = (self.writable, self.allow_write_executable);
        let node = match self.kind {
            TreeKind::File => Node::FileNode(FileNode { outside, writable, allow_write_executable }),
            TreeKind::Directory => Node::DirectoryNode(DirectoryNode {
                outside,
                writable,
                allow_write_executable,
                allow_mount_propagation: self.allow_mount_propagation,
            }),
            TreeKind::Tmpfs => Node::TmpfsNode(TmpfsNode { tmpfs_options: self.options.clone() }),
            TreeKind::Root => Node::RootNode(RootNode { writable }),
        };
        TreeEntry { path: self.path.clone(), node }
    }
}

fn tree_entries(nodes: &[TreeNode]) -> Vec<TreeEntry> {
    nodes.iter().map(TreeNode::entry).collect()
}

/// What is wrong with a mount tree, by the rules of sandbox2.
#[must_use]
pub fn check_mount_tree(nodes: &[TreeNode]) -> Vec<Issue> {
    tree::check(&tree_entries(nodes))
}

/// A request. Fields as in `proto/forkserver.proto`; enumerations by number.
#[derive(Debug, Default)]
pub struct ForkCall<'a> {
    /// `Mode`.
    pub mode: i32,
    /// `CLONE_NEW*` bits.
    pub clone_flags: u64,
    /// The mount tree.
    pub tree: Vec<TreeNode>,
    /// Host name inside.
    pub hostname: String,
    /// `MonitorType`.
    pub monitor_type: i32,
    /// Leave speculative execution alone.
    pub allow_speculation: bool,
    /// `NetnsMode`.
    pub netns_mode: i32,
    /// `InitializationType`.
    pub initialization_type: i32,
    /// `Pivot`.
    pub pivot: i32,
    /// argv; the program is `argv[0]` unless there is an `exec_fd`.
    pub args: Vec<Bytes>,
    /// The whole environment.
    pub envs: Vec<Bytes>,
    /// Uid inside.
    pub uid: u32,
    /// Gid inside.
    pub gid: u32,
    /// Executed instead of a path.
    pub exec_fd: Option<RawFd>,
    /// Joined instead of the initial user namespace.
    pub user_ns_fd: Option<RawFd>,
    /// The control socket of a zygote: where `FORK` requests go.
    pub zygote_fd: Option<RawFd>,
    /// Its fds.
    pub fds: Fds<'a>,
}

fn refused(detail: &str) -> Failure {
    Failure::fact(Code::Request, Step::Unspecified, detail)
}

impl ForkCall<'_> {
    fn mode(&self) -> Mode {
        Mode::try_from(self.mode).unwrap_or_default()
    }

    fn netns_mode(&self) -> NetnsMode {
        NetnsMode::try_from(self.netns_mode).unwrap_or_default()
    }

    fn has(&self, flag: i32) -> bool {
        self.clone_flags & flag as u64 != 0
    }

    /// Whether it has a network namespace of its own or a shared one.
    fn network(&self) -> (NetworkNeed, &'static str) {
        match self.netns_mode() {
            _ if !self.has(libc::CLONE_NEWNET) => (NetworkNeed::None, "host"),
            NetnsMode::PerSandboxee | NetnsMode::Unspecified => (NetworkNeed::None, "none"),
            NetnsMode::None => (NetworkNeed::None, "host"),
            NetnsMode::SharedPerForkserver => (NetworkNeed::Shared, "shared-loopback"),
        }
    }

    fn isolation(&self) -> Isolation {
        let (_, network) = self.network();
        let without_net = if network == "host" { libc::CLONE_NEWNET as u64 } else { 0 };
        let filtered = self.mode() == Mode::ForkExecveSandbox;
        Isolation {
            namespaces: self.clone_flags & !without_net,
            network,
            no_new_privs: filtered || self.has(libc::CLONE_NEWUSER),
            filter: if filtered { "default" } else { "unfiltered" },
            landlock: None,
        }
    }

    fn request(&self) -> Result<ForkRequest, Failure> {
        let mount_tree = tree::build(&tree_entries(&self.tree))
            .map_err(|issues| refused(&issues.first().map(Issue::to_string).unwrap_or_default()))?;
        Ok(ForkRequest {
            mode: self.mode().into(),
            clone_flags: self.clone_flags,
            mount_tree: Some(mount_tree),
            hostname: self.hostname.clone(),
            monitor_type: MonitorType::try_from(self.monitor_type).unwrap_or_default().into(),
            allow_speculation: self.allow_speculation,
            netns_mode: self.netns_mode().into(),
            initialization_type: self.initialization_type,
            pivot: Pivot::try_from(self.pivot).unwrap_or_default().into(),
            launch: None,
            uid: self.uid,
            gid: self.gid,
            filter: if self.mode() == Mode::ForkExecveSandbox {
                filter::default_program().to_vec()
            } else {
                Vec::new()
            },
        })
    }
}

impl Client {
    /// Serves a request of sandbox2's surface. An error here is final; otherwise events follow.
    pub fn fork(&mut self, call: ForkCall<'_>) -> Result<Launched, Failure> {
        self.begin_request()?;
        match call.mode() {
            Mode::Unspecified => Err(refused("a request without a mode")),
            Mode::Initialize => self.initialize(&call),
            Mode::Fork => self.fork_zygote(call),
            Mode::ForkExecve | Mode::ForkExecveSandbox => self.fork_execve(call),
        }
    }

    fn fork_execve(&mut self, call: ForkCall<'_>) -> Result<Launched, Failure> {
        if call.args.is_empty() {
            return Err(refused("argv is empty"));
        }
        let nested = call.has(libc::CLONE_NEWUSER);
        let ids = if nested {
            self.ids.acquire().ok_or_else(crate::server::no_free_ids)?
        } else {
            OuterIds::default()
        };
        let launched = self.fork_execve_as(call, nested, ids);
        if launched.is_err() {
            self.ids.release(ids);
        }
        launched
    }

    fn fork_execve_as(
        &mut self,
        call: ForkCall<'_>,
        nested: bool,
        ids: OuterIds,
    ) -> Result<Launched, Failure> {
        let owner = (nested && self.ids.privileged()).then_some((ids.uid, ids.gid));
        let mut wired = stdio::wire(&call.fds, owner).map_err(hints::advise)?;
        for (role, fd) in [(FdRole::Exec, call.exec_fd), (FdRole::UserNamespace, call.user_ns_fd)] {
            if let Some(fd) = fd {
                stdio::check(fd, 0, false)?;
                wired.pass(role, 0, PassedFd::Lent(fd));
            }
        }
        let (network, _) = call.network();
        let draft = Draft {
            ids,
            network,
            initial: nested && call.user_ns_fd.is_none() && call.pivot != Pivot::Direct as i32,
            isolation: call.isolation(),
            report_init: call.has(libc::CLONE_NEWPID),
            pid_from_sender: call.has(libc::CLONE_NEWPID),
            ..Draft::new(Route::Server(Box::new(call.request()?)))
        };
        self.submit(launch_request(call), wired, draft)
    }

    fn fork_zygote(&mut self, call: ForkCall<'_>) -> Result<Launched, Failure> {
        let Some(zygote) = call.zygote_fd else {
            return Err(refused("mode fork needs the control socket of a zygote"));
        };
        stdio::check(zygote, 0, false)?;
        let wired = stdio::wire(&call.fds, None).map_err(hints::advise)?;
        // A copy, because the request may have to wait for room when this call is over.
        let copy = duplicate(zygote).map_err(spawn_failure(Step::ReceiveRequest, "dup"))?;
        let channel = Channel::for_writing(copy, Key::new(Kind::Zygote, self.coming_token()));
        let draft = Draft {
            isolation: Isolation { network: "zygote", ..Isolation::NONE },
            pid_from_sender: true,
            ..Draft::new(Route::Zygote(Box::new(call.request()?), channel))
        };
        self.submit(launch_request(call), wired, draft)
    }

    fn initialize(&mut self, call: &ForkCall<'_>) -> Result<Launched, Failure> {
        let token = self.next_id();
        match InitializationType::try_from(call.initialization_type).unwrap_or_default() {
            InitializationType::InitialNamespaces => self.prepare_initial(token)?,
            InitializationType::NetworkNamespaces => self.prepare_keeper(token)?,
            InitializationType::IpcNamespace => self.prepare_ipc(token)?,
            InitializationType::Unspecified => return Err(refused("an initialize request without a type")),
        }
        Ok(Launched { token, returned: Returned::default() })
    }

    /// An IPC namespace below the initial user namespace. It lives as long as its fd, which the preparation holds.
    fn prepare_ipc(&mut self, token: u64) -> Result<(), Failure> {
        self.preparations.insert(token, Preparation::Namespace(None));
        match self.need_initial() {
            Ok(true) => self.request_ipc(token),
            Ok(false) => Ok(()),
            Err(failure) => Err(failure),
        }
        .inspect_err(|_| {
            self.preparations.remove(&token);
        })
    }

    /// Sends the request, once the initial namespaces are there.
    pub(crate) fn request_ipc(&mut self, token: u64) -> Result<(), Failure> {
        let Some([user, mount]) = self.initial_fds() else { return Ok(()) };
        let key = Key::new(Kind::Initialize, token);
        let (channel, theirs) = self.open_channel(key, Step::CreateInitialNamespaces)?;
        self.ask(&initialize(InitializationType::IpcNamespace), vec![theirs, user, mount], token)?;
        self.preparations.insert(token, Preparation::Namespace(Some(channel)));
        Ok(())
    }
}

fn launch_request(call: ForkCall<'_>) -> LaunchRequest<'_> {
    let file = call.args.first().map(|file| file.to_vec()).unwrap_or_default();
    LaunchRequest {
        file,
        args: call.args,
        envs: call.envs,
        cwd: b"/".to_vec(),
        fds: call.fds,
        report_start: true,
        ..LaunchRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isolation_is_what_was_asked_for() {
        let flags = (libc::CLONE_NEWUSER | libc::CLONE_NEWNET) as u64;
        let call = ForkCall { mode: 1, clone_flags: flags, netns_mode: 2, ..ForkCall::default() };
        let isolation = call.isolation();
        assert_eq!((isolation.network, isolation.filter), ("host", "default"));
        assert_eq!(isolation.namespaces, libc::CLONE_NEWUSER as u64);
        let call = ForkCall { mode: 2, clone_flags: flags, netns_mode: 1, ..ForkCall::default() };
        assert_eq!((call.isolation().network, call.isolation().filter), ("none", "unfiltered"));
    }
}
