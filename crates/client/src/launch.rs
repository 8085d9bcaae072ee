//! One launch: what a caller asks for ([`request`]), its state while it runs, and what it ends with ([`result`]).
//!
//! Plain data and the rules that need nothing else. The sequence (template, network namespace, binds, send, events) is the
//! client's.

mod isolation;
mod request;
mod result;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nestbox_policy::Resolved;
use nestbox_protocol as protocol;

use crate::capture::{Capture, Input};
use crate::channel::{Channel, PassedFd};
use crate::ids::OuterIds;
use crate::nests::Warm;
use crate::networks::{Lent, NetworkNeed};
use crate::outputs::{Expected, Output};
use crate::policy::PlannedBind;
use crate::server::Questions;
use crate::symbolizer::Crash;
use crate::syscall::Supervision;

pub use isolation::{Isolation, Landlock, NAMESPACES, hard_limits};
pub(crate) use request::tighten;
pub use request::{BindRequest, LaunchRequest, Launched};
pub(crate) use result::killed_message;
pub use result::{Ended, Ending, Limit, Usage};

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
