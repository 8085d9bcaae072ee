//! What a caller asks for, and what it is answered at once.

use std::os::fd::RawFd;

use nestbox_protocol::Limits;
use prost::bytes::Bytes;

use crate::files::FileRequest;
use crate::nests::Warm;
use crate::outputs::OutputRequest;
use crate::policy::PolicyHandle;
use crate::stdio::{Fds, Returned};
use crate::syscall::Supervision;

/// What to launch.
#[derive(Debug, Default)]
pub struct LaunchRequest<'a> {
    /// In which sandbox; `None`: in none at all.
    pub policy: Option<&'a PolicyHandle>,
    /// The program: a path inside, or a name to look up in `search_path`.
    pub file: Vec<u8>,
    /// argv, `argv[0]` first.
    pub args: Vec<Bytes>,
    /// The whole environment.
    pub envs: Vec<Bytes>,
    /// Directories to look a bare name up in.
    pub search_path: Vec<u8>,
    /// Where it starts, inside.
    pub cwd: Vec<u8>,
    /// Its fds.
    pub fds: Fds<'a>,
    /// Host paths on mount points of the policy.
    pub binds: Vec<BindRequest>,
    /// Private files.
    pub files: Vec<FileRequest<'a>>,
    /// Files to return.
    pub outputs: Vec<OutputRequest>,
    /// Tighter limits.
    pub limits: Limits,
    /// Tell as soon as the program runs, at the price of a wake-up: `Event::Started`.
    pub report_start: bool,
    /// What becomes of the calls that its filter hands to its supervisor.
    pub supervision: Supervision,
    /// How many nests of this policy are kept warm for the launches after this one.
    pub warm: Warm,
    /// Capture what it was doing when it dies of a signal, and make a report of that: [`crate::Ended::crash`].
    pub crash_report: bool,
    /// It stands by for a launch, and must not die of the wall-clock limit before: [`crate::Client::limit`] sets that.
    pub standby: bool,
    /// An fd to execute, in place of `file`.
    pub exec_fd: Option<RawFd>,
}

/// One bind of one launch.
#[derive(Clone, Debug)]
pub struct BindRequest {
    /// The policy's mount point, inside.
    pub path: String,
    /// What to bind there, on the host.
    pub source: String,
}

/// The answer to a request: its name in events, and the caller's ends of its fds.
#[derive(Debug)]
pub struct Launched {
    /// In every event of this launch.
    pub token: u64,
    /// The caller's ends.
    pub returned: Returned,
}

/// The tighter of both, for each limit.
pub(crate) fn tighten(policy: &Limits, launch: &Limits) -> Limits {
    fn least(left: Option<u64>, right: Option<u64>) -> Option<u64> {
        match (left, right) {
            (Some(left), Some(right)) => Some(left.min(right)),
            (left, right) => left.or(right),
        }
    }
    Limits {
        wall_time: least(policy.wall_time, launch.wall_time),
        cpu_time: least(policy.cpu_time, launch.cpu_time),
        processes: least(policy.processes, launch.processes),
        open_files: least(policy.open_files, launch.open_files),
        file_size: least(policy.file_size, launch.file_size),
        // The policy's is in the size of each tmpfs already, where an explicit size goes before it.
        disk: launch.disk,
        stack: least(policy.stack, launch.stack),
        core: least(policy.core, launch.core),
        address_space_per_process: least(policy.address_space_per_process, launch.address_space_per_process),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_can_only_tighten() {
        let policy = Limits { wall_time: Some(1000), processes: Some(10), ..Limits::default() };
        let launch = Limits { wall_time: Some(5000), processes: Some(3), core: Some(0), ..Limits::default() };
        let merged = tighten(&policy, &launch);
        assert_eq!((merged.wall_time, merged.processes, merged.core), (Some(1000), Some(3), Some(0)));
        assert_eq!(merged.cpu_time, None);
    }
}
