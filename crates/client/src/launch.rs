//! One launch: what a caller asks for, its state while it runs, and what it ends with.
//!
//! Plain data and the rules that need nothing else: merging limits, building the message, judging how it ended. The
//! sequence (template, network namespace, binds, send, events) is the client's.

use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use nestbox_policy::Resolved;
use nestbox_protocol::{self as protocol, LimitKind, Limits, Step};
use prost::bytes::Bytes;

use crate::capture::{Capture, Captured, Input};
use crate::channel::{Channel, PassedFd};
use crate::failure::Failure;
use crate::ids::OuterIds;
use crate::nests::Warm;
use crate::networks::Lent;
use crate::outputs::{Expected, Output, OutputRequest};
use crate::policy::{self, PlannedBind, PolicyHandle};
use crate::server::Questions;
use crate::stdio::{Fds, Returned};
use crate::symbolizer::Crash;
use crate::syscall::{Learned, Supervision, SystemCall};

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
    pub files: Vec<protocol::LaunchFile>,
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
    /// Capture what it was doing when it dies of a signal, and make a report of that: [`Ended::crash`].
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

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With this code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

/// A limit that ended a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Time since exec.
    WallTime,
    /// CPU time of all processes.
    CpuTime,
    /// Size of one file.
    FileSize,
    /// Standard output and error.
    Output,
}

impl Limit {
    /// Its name in policies.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WallTime => "wallTime",
            Self::CpuTime => "cpuTime",
            Self::FileSize => "fileSize",
            Self::Output => "output",
        }
    }
}

/// What a launch used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Microseconds in user mode.
    pub user_cpu_us: u64,
    /// Microseconds in the kernel.
    pub system_cpu_us: u64,
    /// Largest resident set of one process.
    pub max_rss_kib: u64,
    /// Page faults without I/O.
    pub minor_faults: u64,
    /// Page faults with I/O.
    pub major_faults: u64,
    /// Context switches while waiting.
    pub voluntary_switches: u64,
    /// Context switches by preemption.
    pub involuntary_switches: u64,
}

/// The result of a launch whose program ran.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
#[derive(Debug)]
pub struct Ended {
    /// The program's pid, in the host's pid namespace; 0 if it was killed before it had one.
    pub pid: i32,
    /// Its init's; 0 where there was none.
    pub init_pid: i32,
    /// How it ended.
    pub ending: Ending,
    /// The limit that ended it.
    pub limit: Option<Limit>,
    /// The caller asked for its death.
    pub killed_by_host: bool,
    /// A call that its policy forbids ended it.
    pub violated: bool,
    /// Which, unless that was not to be told.
    pub violation: Option<SystemCall>,
    /// With [`Supervision::Learn`].
    pub learned: Option<Learned>,
    /// A tmpfs was full at the end.
    pub disk_full: bool,
    /// Captured standard output.
    pub stdout: Option<Vec<u8>>,
    /// Captured standard error.
    pub stderr: Option<Vec<u8>>,
    /// All that was written to a captured standard output.
    pub stdout_bytes: u64,
    /// All that was written to a captured standard error.
    pub stderr_bytes: u64,
    /// What it used.
    pub usage: Usage,
    /// When it was asked for (`CLOCK_MONOTONIC`, as all times here).
    pub submitted_ns: u64,
    /// When the program was executed.
    pub exec_ns: u64,
    /// When all of it was dead.
    pub ended_ns: u64,
    /// When each step was finished.
    pub marks: Vec<(Step, u64)>,
    /// One for each that was asked for.
    pub outputs: Vec<Output>,
    /// What the policy asked for and was not to be had, but optional.
    pub skipped: Vec<String>,
    /// What was enforced.
    pub isolation: Isolation,
    /// The nest was made before its launch.
    pub warm: bool,
    /// What it was doing when it crashed, if that was asked for.
    pub crash: Option<Crash>,
}

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
        let (network, without) = match policy::network(plan) {
            protocol::Network::Host => ("host", libc::CLONE_NEWNET as u64),
            protocol::Network::SharedLoopback => ("shared-loopback", 0),
            protocol::Network::None | protocol::Network::Unspecified => ("none", 0),
        };
        Self { namespaces: all & !without, network, no_new_privs: true, filter, landlock: None }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The fork server runs.
    ServerReady {
        /// Its pid.
        pid: i32,
    },
    /// It could not be started, or has died; every launch of it is told so by itself.
    ServerLost(Failure),
    /// A template that was asked for is there.
    Prepared {
        /// Whose request.
        token: u64,
    },
    /// A launch's init runs.
    Placed {
        /// Which launch.
        token: u64,
        /// Init's pid.
        pid: i32,
    },
    /// A program was executed.
    Started {
        /// Which launch.
        token: u64,
        /// Its pid.
        pid: i32,
    },
    /// Its init asks about a call, which waits for [`crate::Client::answer`].
    Asked {
        /// Which launch.
        token: u64,
        /// The call's, for the answer.
        id: u64,
        /// With a copy of what its pointers lead to.
        call: Box<SystemCall>,
    },
    /// Init has answered [`crate::Client::limit`].
    Limited {
        /// Which launch.
        token: u64,
        /// Why the limits do not hold.
        failure: Option<Failure>,
    },
    /// A program has ended, and nothing of the launch is left.
    Ended {
        /// Which launch.
        token: u64,
        /// Its result.
        ended: Box<Ended>,
    },
    /// A launch, or a template that was asked for, could not be set up.
    Failed {
        /// Whose request.
        token: u64,
        /// Why.
        failure: Failure,
    },
    /// The fork server died while this was in flight.
    Lost {
        /// Whose request.
        token: u64,
        /// How it died.
        failure: Failure,
    },
}

/// Where a launch is sent.
pub(crate) enum Route {
    /// To a template.
    Template(u64),
    /// To the fork server itself.
    Server(Box<protocol::ForkRequest>),
    /// To a zygote.
    Zygote(Box<protocol::ForkRequest>, Channel),
}

impl Route {
    /// The template, if it is one.
    pub(crate) fn template(&self) -> Option<u64> {
        match self {
            Self::Template(id) => Some(*id),
            Self::Server(_) | Self::Zygote(..) => None,
        }
    }
}

/// What a launch needs of the network pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetworkNeed {
    /// Nothing.
    None,
    /// One for itself, if there is one ready.
    Own,
    /// The one that is shared by all.
    Shared,
}

impl NetworkNeed {
    /// What every nest of a plan needs.
    pub(crate) fn of_plan(plan: &protocol::Plan) -> Self {
        match policy::network(plan) {
            protocol::Network::Host => Self::None,
            protocol::Network::SharedLoopback => Self::Shared,
            protocol::Network::None | protocol::Network::Unspecified => Self::Own,
        }
    }
}

/// A launch that was not sent yet.
pub(crate) struct Pending {
    pub(crate) route: Route,
    pub(crate) message: protocol::Launch,
    pub(crate) passed: Vec<PassedFd>,
    pub(crate) network: NetworkNeed,
    /// It needs the initial namespaces' fds.
    pub(crate) initial: bool,
    /// One for each of the message's binds; `None` until the mounter has opened it.
    pub(crate) mounts: Vec<Option<OwnedFd>>,
    /// What the mounter is still to be asked for.
    pub(crate) binds: Vec<PlannedBind>,
    /// Signals to send as soon as it is sent itself.
    pub(crate) signals: Vec<i32>,
    /// How many nests are kept for the launches after it.
    pub(crate) warm: Warm,
}

/// How far a launch is.
pub(crate) enum Stage {
    /// Something that it needs is not there yet.
    Pending(Box<Pending>),
    /// It was sent; the fork server's side has it.
    Sent,
    /// It has ended; large outputs are being read, or its crash.
    Reading { message: Box<protocol::Ended>, outputs: Vec<Option<Output>> },
}

/// A launch in flight.
#[expect(clippy::struct_excessive_bools, reason = "independent facts; the state is `stage`")]
pub(crate) struct Launch {
    pub(crate) stage: Stage,
    /// Our end of the launch socket, once it is sent.
    pub(crate) socket: Option<OwnedFd>,
    pub(crate) template: Option<u64>,
    /// Keeps the plan alive while its launch runs, and tells what was skipped.
    pub(crate) resolved: Option<Arc<Resolved>>,
    /// A network namespace of the pool, ours while it runs.
    pub(crate) network: Option<Lent>,
    pub(crate) ids: OuterIds,
    pub(crate) capture: Option<Capture>,
    pub(crate) input: Option<Input>,
    pub(crate) outputs: Vec<Expected>,
    pub(crate) pid: i32,
    pub(crate) init_pid: i32,
    pub(crate) started: bool,
    /// It was given a warm nest.
    pub(crate) warm: bool,
    /// Its crash is to be reported.
    pub(crate) crash_report: bool,
    /// What was captured of its crash, until it is made sense of.
    pub(crate) captured: Vec<OwnedFd>,
    /// What became of that.
    pub(crate) crash: Option<Crash>,
    pub(crate) submitted_ns: u64,
    /// It was killed because it wrote too much.
    pub(crate) overflowed: bool,
    /// The caller asked for SIGKILL.
    pub(crate) killed: bool,
    pub(crate) skipped: Vec<String>,
    pub(crate) isolation: Isolation,
    /// Pids are those of the packets' senders, as the kernel translates them.
    pub(crate) pid_from_sender: bool,
    pub(crate) supervision: Supervision,
    pub(crate) questions: Questions,
    /// Changes of limits that init has not answered.
    pub(crate) unanswered_limits: usize,
}

impl Launch {
    /// The result, from init's message.
    pub(crate) fn conclude(&mut self, message: &protocol::Ended, outputs: Vec<Output>) -> Ended {
        let Captured { stdout, stderr, stdout_bytes, stderr_bytes } =
            self.capture.as_mut().map(Capture::finish).unwrap_or_default();
        let ending = match message.ending() {
            protocol::Ending::Signaled => Ending::Signaled(message.status),
            protocol::Ending::Exited | protocol::Ending::Unspecified => Ending::Exited(message.status),
        };
        let by_init = match message.limit() {
            LimitKind::WallTime => Some(Limit::WallTime),
            LimitKind::CpuTime => Some(Limit::CpuTime),
            LimitKind::FileSize => Some(Limit::FileSize),
            LimitKind::None | LimitKind::Disk => None,
        };
        let marks = message.mark_steps().zip(message.mark_ns.iter().copied()).collect();
        Ended {
            pid: self.pid,
            init_pid: self.init_pid,
            ending,
            limit: by_init.or(self.overflowed.then_some(Limit::Output)),
            // Our own kill for too much output is not the caller's.
            killed_by_host: self.killed || message.killed_by_host && !self.overflowed,
            violated: message.violated,
            // What the host judged it had a copy of; init has but the numbers.
            violation: self
                .questions
                .judged
                .take()
                .or_else(|| message.violation.clone().map(SystemCall::from))
                .filter(|_| message.violated),
            learned: message.learned.clone().map(Learned::from),
            disk_full: message.disk_full || message.limit() == LimitKind::Disk,
            stdout,
            stderr,
            stdout_bytes,
            stderr_bytes,
            usage: Usage {
                user_cpu_us: message.user_cpu_us,
                system_cpu_us: message.system_cpu_us,
                max_rss_kib: message.max_rss_kib,
                minor_faults: message.minor_faults,
                major_faults: message.major_faults,
                voluntary_switches: message.voluntary_switches,
                involuntary_switches: message.involuntary_switches,
            },
            submitted_ns: self.submitted_ns,
            exec_ns: message.exec_ns,
            ended_ns: message.ended_ns,
            marks,
            outputs,
            skipped: std::mem::take(&mut self.skipped),
            isolation: self.isolation,
            warm: self.warm,
            crash: self.crash.take(),
        }
    }
}

/// A launch whose init was killed from outside, or that was cancelled before it began: it was killed by the host, if not
/// necessarily by this process of it.
pub(crate) fn killed_message(outputs: usize) -> protocol::Ended {
    protocol::Ended {
        ending: protocol::Ending::Signaled.into(),
        status: libc::SIGKILL,
        killed_by_host: true,
        ended_ns: nestbox_sys::process::monotonic_ns(),
        output_errnos: vec![libc::ENOENT; outputs],
        ..protocol::Ended::default()
    }
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
