//! Questions of inits about calls, and the host's answers.
//!
//! Promises: an answer that can't be delivered ends the nest, and so allows nothing; a launch has a bounded number of open
//! questions; what a caller judged is what its result shows, though the program may have changed its memory since.

use std::os::fd::AsFd;

use nestbox_protocol::{self as protocol, AnswerKind, LaunchControl, Step, launch_control};
use nestbox_sys::Errno;
use nestbox_sys::packet::{self, MessageError};

use crate::event::Event;
use crate::failure::Failure;
use crate::syscall::{Answer, Supervision, SystemCall};

use super::{Client, malformed};

/// The most open questions of one launch. Init has fewer.
const QUESTIONS_MAX: usize = 64;

/// A launch's open questions, and the call that was judged a violation.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    open: Vec<(u64, SystemCall)>,
    pub(crate) judged: Option<SystemCall>,
}

impl Client {
    /// Init asks.
    pub(super) fn asked(&mut self, token: u64, asked: protocol::Asked) -> Result<(), Failure> {
        let step = Step::RunProgram;
        let Some(launch) = self.launches.get_mut(&token) else { return Ok(()) };
        let Some(call) = asked.call else { return Err(malformed(step, "a question about nothing")) };
        if launch.supervision != Supervision::Ask || launch.questions.open.len() >= QUESTIONS_MAX {
            return Err(malformed(step, "a question that nobody wanted"));
        }
        let call = SystemCall::from(call);
        launch.questions.open.push((asked.id, call.clone()));
        self.push(Event::Asked { token, id: asked.id, call: Box::new(call) });
        Ok(())
    }

    /// Decides about a call. False: there is no such question, or its launch is over.
    pub fn answer(&mut self, token: u64, id: u64, answer: Answer) -> bool {
        let Some(launch) = self.launches.get_mut(&token) else { return false };
        let Some(index) = launch.questions.open.iter().position(|(open, _)| *open == id) else {
            return false;
        };
        let (_, call) = launch.questions.open.swap_remove(index);
        let (kind, value, fd) = match answer {
            Answer::Report => {
                launch.questions.judged = Some(call);
                (AnswerKind::Report, 0, None)
            }
            Answer::Kill => (AnswerKind::Kill, 0, None),
            Answer::Allow => (AnswerKind::Allow, 0, None),
            Answer::Errno(errno) => (AnswerKind::Errno, errno.into(), None),
            Answer::Value(value) => (AnswerKind::Value, value, None),
            Answer::Fd { fd, close_on_exec } => (AnswerKind::Fd, close_on_exec.into(), Some(fd)),
        };
        let control = LaunchControl {
            kind: Some(launch_control::Kind::Answer(protocol::Answer { id, kind: kind.into(), value })),
        };
        let Some(socket) = &launch.socket else { return false };
        match packet::send_message(socket.as_fd(), &control, fd.as_slice(), libc::MSG_DONTWAIT) {
            Ok(()) => true,
            // Init has ended, and its last word is still to be read.
            Err(MessageError::System { errno: Errno::EPIPE | Errno::ECONNRESET, .. }) => false,
            // Nobody waits for an answer for ever.
            Err(_) => {
                self.kill(token, libc::SIGKILL);
                false
            }
        }
    }
}
