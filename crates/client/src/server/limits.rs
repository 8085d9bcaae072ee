//! Other limits for a launch that runs.
//!
//! Promises: each change that was sent has one answer, in order, unless the launch ends first; what has not been answered is
//! bounded, so that init never waits for the host's attention. The policy's ceiling is the caller's to keep.

use std::os::fd::AsFd;

use nestbox_protocol::{self as protocol, LaunchControl, Limits, SetLimits, Step, launch_control};
use nestbox_sys::Errno;
use nestbox_sys::packet::{self, MessageError};

use crate::event::Event;
use crate::failure::{Code, Failure};
use crate::hints;
use crate::launch::Stage;

use super::capture::kill_if_overflowed;
use super::{Client, malformed};

/// The most changes of one launch that have no answer yet.
const UNANSWERED_MAX: usize = 16;

impl Client {
    /// Asks init for other limits; those that are not given stay. `Event::Limited` tells when they hold. With
    /// `restart_clock` the wall clock begins again when init hears of it, and so does the account of CPU time.
    pub fn limit(&mut self, token: u64, limits: Limits, restart_clock: bool) -> Result<(), Failure> {
        let step = Step::SetLimits;
        let over = || Failure::fact(Code::Request, step, "the launch does not run");
        let launch = self.launches.get_mut(&token).ok_or_else(over)?;
        let socket =
            launch.socket.as_ref().filter(|_| matches!(launch.stage, Stage::Sent)).ok_or_else(over)?;
        if launch.unanswered_limits >= UNANSWERED_MAX {
            return Err(Failure::system(Code::Spawn, step, "sendmsg", Errno::EAGAIN)
                .because("too many changes wait for their answers"));
        }
        let wanted = SetLimits { limits: Some(limits), restart_clock };
        let control = LaunchControl { kind: Some(launch_control::Kind::SetLimits(wanted)) };
        match packet::send_message(socket.as_fd(), &control, &[], libc::MSG_DONTWAIT) {
            Ok(()) => {
                launch.unanswered_limits += 1;
                Ok(())
            }
            // Init has ended, and its last word is still to be read.
            Err(MessageError::System { errno: Errno::EPIPE | Errno::ECONNRESET, .. }) => Err(over()),
            Err(error) => Err(hints::advise(Failure::message(Code::Spawn, step, &error))),
        }
    }

    /// Has another limit for captured output: of what comes from now on, and of what is kept. False: the launch is over.
    pub fn limit_output(&mut self, token: u64, limit: Option<u64>) -> bool {
        let Some(launch) = self.launches.get_mut(&token) else { return false };
        if matches!(launch.stage, Stage::Reading { .. }) {
            return false;
        }
        if let Some(capture) = &mut launch.capture {
            capture.set_limit(limit);
        }
        kill_if_overflowed(launch);
        true
    }

    /// Init's answer to [`Client::limit`].
    pub(super) fn limited(&mut self, token: u64, answer: protocol::LimitsSet) -> Result<(), Failure> {
        let Some(launch) = self.launches.get_mut(&token) else { return Ok(()) };
        let Some(rest) = launch.unanswered_limits.checked_sub(1) else {
            return Err(malformed(Step::RunProgram, "limits were set that nobody asked for"));
        };
        launch.unanswered_limits = rest;
        let failure = answer.failure.map(|failure| hints::advise(Failure::from_step(failure)));
        self.push(Event::Limited { token, failure });
        Ok(())
    }
}
