//! What a launch ends with: made of init's last message and of what was seen here.

use nestbox_protocol::{self as protocol, LimitKind, Step};

use super::{Isolation, Launch};
use crate::capture::{Capture, Captured};
use crate::outputs::Output;
use crate::symbolizer::Crash;
use crate::syscall::{Learned, SystemCall};

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
    /// With [`crate::Supervision::Learn`].
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
