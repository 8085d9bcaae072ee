//! What [`crate::Client::dispatch`] tells: of the fork server, of launches, and of what was asked to be prepared.
//!
//! Promises: `Ended`, `Failed`, `Lost` and `Prepared` are final, and each request gets exactly one of them.

use crate::failure::Failure;
use crate::launch::Ended;
use crate::syscall::SystemCall;

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
