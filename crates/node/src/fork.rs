//! Requests of `nestbox/sandbox2` from JavaScript values.

use napi_derive::napi;
use nestbox_client::{Comms, Fds, ForkCall, TreeKind, TreeNode};

use crate::request::{split_or_none, stdio};

/// What `commsFd` is when the core is to make a packet socket pair and return its other end: for zygotes, whose control
/// socket it becomes.
const PACKETS: i32 = -3;

/// A request of sandbox2's surface; enumerations by number, as in `proto/forkserver.proto`.
#[napi(object, object_to_js = false)]
#[derive(Debug)]
pub struct NativeForkRequest {
    pub mode: i32,
    pub clone_flags: f64,
    pub tree: Option<Vec<NativeTreeEntry>>,
    pub hostname: String,
    pub monitor_type: i32,
    pub allow_speculation: bool,
    pub netns_mode: i32,
    pub initialization_type: i32,
    pub pivot: i32,
    pub args: String,
    pub env: String,
    pub uid: u32,
    pub gid: u32,
    pub exec_fd: Option<i32>,
    pub comms_fd: Option<i32>,
    pub user_ns_fd: Option<i32>,
    pub stdin: i32,
    pub stdout: i32,
    pub stderr: i32,
    pub zygote_fd: Option<i32>,
}

/// One node of a mount tree. The order of a list of them is the order of mounting.
#[napi(object, object_to_js = false)]
#[derive(Debug)]
pub struct NativeTreeEntry {
    #[napi(js_name = "type", ts_type = "'file' | 'directory' | 'tmpfs' | 'root'")]
    pub kind: String,
    pub path: String,
    pub outside: Option<String>,
    pub writable: Option<bool>,
    pub allow_write_executable: Option<bool>,
    pub allow_mount_propagation: Option<bool>,
    pub options: Option<String>,
}

impl From<&NativeTreeEntry> for TreeNode {
    fn from(entry: &NativeTreeEntry) -> Self {
        Self {
            kind: match entry.kind.as_str() {
                "directory" => TreeKind::Directory,
                "tmpfs" => TreeKind::Tmpfs,
                "root" => TreeKind::Root,
                _ => TreeKind::File,
            },
            path: entry.path.clone(),
            outside: entry.outside.clone().unwrap_or_default(),
            writable: entry.writable == Some(true),
            allow_write_executable: entry.allow_write_executable == Some(true),
            allow_mount_propagation: entry.allow_mount_propagation == Some(true),
            options: entry.options.clone().unwrap_or_default(),
        }
    }
}

/// A list of nodes.
pub(crate) fn nodes(list: &[NativeTreeEntry]) -> Vec<TreeNode> {
    list.iter().map(TreeNode::from).collect()
}

impl NativeForkRequest {
    pub(crate) fn convert(self) -> ForkCall<'static> {
        ForkCall {
            mode: self.mode,
            clone_flags: self.clone_flags as u64,
            tree: nodes(self.tree.as_deref().unwrap_or_default()),
            hostname: self.hostname,
            monitor_type: self.monitor_type,
            allow_speculation: self.allow_speculation,
            netns_mode: self.netns_mode,
            initialization_type: self.initialization_type,
            pivot: self.pivot,
            args: split_or_none(self.args),
            envs: split_or_none(self.env),
            uid: self.uid,
            gid: self.gid,
            exec_fd: self.exec_fd,
            user_ns_fd: self.user_ns_fd,
            zygote_fd: self.zygote_fd,
            fds: Fds {
                stdio: [stdio(self.stdin), stdio(self.stdout), stdio(self.stderr)],
                comms: match self.comms_fd {
                    None => Comms::None,
                    Some(PACKETS) => Comms::Packets,
                    Some(fd) => Comms::Fd(fd),
                },
                ..Fds::default()
            },
        }
    }
}
