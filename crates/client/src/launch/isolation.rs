//! What a launch was kept in, as its result tells it.

use nestbox_protocol::{self as protocol, Limits};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// What Landlock enforced, beside the rules for files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Landlock {
    /// The kernel's ABI.
    pub abi: u32,
    /// Abstract unix sockets of others can't be connected to.
    pub abstract_unix_sockets: bool,
    /// Processes of others can't be signalled.
    pub signals: bool,
}

impl From<protocol::Landlock> for Landlock {
    fn from(told: protocol::Landlock) -> Self {
        let protocol::Landlock { abi, abstract_unix_sockets, signals } = told;
        Self { abi, abstract_unix_sockets, signals }
    }
}

/// What was enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// `CLONE_NEW*` bits of the namespaces that were its own.
    pub namespaces: u64,
    /// The network it had.
    pub network: &'static str,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// Its syscall filter.
    pub filter: &'static str,
    /// What Landlock added, if the kernel has it.
    pub landlock: Option<Landlock>,
}

/// What the limits of each process are at most: the hard ones of this process, which all that it starts inherits. A policy's limit
/// above one of them is as good as that.
#[must_use]
pub fn hard_limits() -> Limits {
    let hard = |resource| {
        // What can't be looked up is not known to be less than what was asked for.
        getrlimit(resource).ok().map(|(_, hard)| hard).filter(|&hard| hard != RLIM_INFINITY)
    };
    Limits {
        processes: hard(Resource::RLIMIT_NPROC),
        open_files: hard(Resource::RLIMIT_NOFILE),
        file_size: hard(Resource::RLIMIT_FSIZE),
        stack: hard(Resource::RLIMIT_STACK),
        core: hard(Resource::RLIMIT_CORE),
        address_space_per_process: hard(Resource::RLIMIT_AS),
        ..Limits::default()
    }
}

/// The namespaces and their names, in the order in which they are listed.
pub const NAMESPACES: [(i32, &str); 7] = [
    (libc::CLONE_NEWUSER, "user"),
    (libc::CLONE_NEWNS, "mnt"),
    (libc::CLONE_NEWPID, "pid"),
    (libc::CLONE_NEWNET, "net"),
    (libc::CLONE_NEWIPC, "ipc"),
    (libc::CLONE_NEWUTS, "uts"),
    (libc::CLONE_NEWCGROUP, "cgroup"),
];

impl Isolation {
    /// Of a launch without a policy.
    pub(crate) const NONE: Self =
        Self { namespaces: 0, network: "host", no_new_privs: false, filter: "unfiltered", landlock: None };

    /// Of every nest of a plan.
    pub(crate) fn of_plan(plan: &protocol::Plan, filter: &'static str) -> Self {
        let all = NAMESPACES.iter().fold(0, |all, (flag, _)| all | *flag as u64);
        let (network, without) = match plan.network() {
            protocol::Network::Host => ("host", libc::CLONE_NEWNET as u64),
            protocol::Network::SharedLoopback => ("shared-loopback", 0),
            protocol::Network::None | protocol::Network::Unspecified => ("none", 0),
        };
        Self { namespaces: all & !without, network, no_new_privs: true, filter, landlock: None }
    }
}
