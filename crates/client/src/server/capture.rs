//! The captured output of launches: when it is watched, read, and found to be too much.
//!
//! Promises: a short program's output wakes nobody before its end; whoever writes more than it may is killed once.

use nestbox_protocol::Step;
use nestbox_sys::process;

use crate::capture::{Capture, Drained, Stream};
use crate::launch::Launch;
use crate::reactor::{Interest, Key, Kind};

use super::send::send_signal;
use super::{Client, spawn_failure};

/// How long output waits to be watched: longer than a short program takes.
const WATCH_AFTER_NS: u64 = 3_000_000;

impl Client {
    /// Has a launch's output watched in a while. A short program is over by then, and what it wrote is in the pipes, which
    /// are emptied at the end anyway: without this, the end of each of its streams would wake the host once more, at the
    /// very moment at which its result is being made. A program that fills its pipe waits for that long, though; so where the
    /// launch of the same template that ended last wrote so much, it is watched as soon as may be.
    pub(super) fn watch_output_later(&mut self, token: u64, template: Option<u64>) {
        let due = process::monotonic_ns() + if *self.much_output(template) { 0 } else { WATCH_AFTER_NS };
        // The first of them is due first.
        let place = self.unwatched.partition_point(|&(other, _)| other <= due);
        self.unwatched.insert(place, (due, token));
        self.set_timer(due);
    }

    /// Whether the captured launch that ended last, of those like this one, has written more than a pipe holds.
    fn much_output(&mut self, template: Option<u64>) -> &mut bool {
        match template.and_then(|id| self.templates.get_mut(id)) {
            Some(template) => &mut template.much_output,
            None => &mut self.much_output,
        }
    }

    /// Watches the output of those launches whose time has come.
    pub(super) fn watch_output(&mut self, now: u64) {
        while let Some(&(due, token)) = self.unwatched.front() {
            if due > now {
                return;
            }
            self.unwatched.pop_front();
            let Some(capture) = self.launches.get(&token).and_then(|launch| launch.capture.as_ref()) else {
                continue;
            };
            let watched = [(Kind::Stdout, Stream::Stdout), (Kind::Stderr, Stream::Stderr)]
                .into_iter()
                .filter_map(|(kind, stream)| Some((kind, capture.pipe(stream)?)))
                .try_for_each(|(kind, pipe)| self.reactor.add(pipe, Key::new(kind, token), Interest::Read));
            if let Err(errno) = watched {
                self.fail(token, spawn_failure(Step::ReceiveRequest, "epoll_ctl")(errno));
            }
        }
    }

    /// There is something to read.
    pub(super) fn read_output(&mut self, token: u64, stream: Stream) {
        let Some(launch) = self.launches.get_mut(&token) else { return };
        let Some(capture) = &mut launch.capture else { return };
        if capture.drain(stream, &mut self.scratch) == Drained::ToTheEnd {
            capture.close(stream);
        }
        kill_if_overflowed(launch);
    }

    /// Empties the pipes of a launch when nobody is left to write: what is in them now is all.
    pub(super) fn finish_streams(&mut self, token: u64) {
        let Some(launch) = self.launches.get_mut(&token) else { return };
        let Some(capture) = &mut launch.capture else { return };
        for stream in [Stream::Stdout, Stream::Stderr] {
            capture.finish_stream(stream, &mut self.scratch);
        }
        launch.overflowed |= capture.must_kill() && !launch.killed;
        let (template, much) = (launch.template, capture.outgrew_a_pipe());
        *self.much_output(template) = much;
    }
}

/// Kills a launch that has written more than it may.
pub(super) fn kill_if_overflowed(launch: &mut Launch) {
    if launch.capture.as_ref().is_some_and(Capture::must_kill) && !launch.overflowed {
        launch.overflowed = true;
        send_signal(launch, libc::SIGKILL);
    }
}
