//! What a launch's socket says of it: where its init is, that its program runs, asks or has ended, and that it is gone.
//!
//! Promises: what comes twice or out of turn fails that launch alone; after a launch's last word nothing more of it is read.
//! Called by [`super::receive`], and when the fork server has died.

use std::os::fd::AsFd;

use nestbox_protocol::{LaunchEvent, Step, launch_event};
use nestbox_sys::packet::Credentials;
use nestbox_sys::socket;

use crate::event::Event;
use crate::failure::{Code, Failure};
use crate::launch::{Launch, Stage, killed_message};
use crate::reactor::{Interest, Key, Kind};
use crate::symbolizer;

use super::incoming::{Incoming, PACKETS};
use super::{Client, malformed};

impl Client {
    /// Reads what a launch reports.
    pub(super) fn read_launch(&mut self, token: u64) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..PACKETS {
            let Some(launch) = self.launches.get(&token) else { break };
            let Some(socket) = &launch.socket else { break };
            let Some(incoming) = Incoming::next(socket.as_fd(), &mut buffer) else { break };
            if matches!(launch.stage, Stage::Reading { .. }) {
                // Init has exited after its last word; nothing more is read.
                let _ = self.reactor.modify(socket.as_fd(), Key::new(Kind::Launch, token), Interest::Nothing);
                break;
            }
            let at_end = incoming.bytes.is_empty();
            if let Err(failure) = self.on_launch(token, incoming) {
                self.fail(token, failure);
            }
            if at_end {
                break;
            }
        }
        self.buffer = buffer;
    }

    fn on_launch(&mut self, token: u64, mut incoming: Incoming<'_>) -> Result<(), Failure> {
        let step = Step::RunProgram;
        if let Some(failure) = incoming.lost(step) {
            if incoming.errno.is_some() {
                return Err(failure);
            }
            self.launch_gone(token);
            return Ok(());
        }
        let Some(launch) = self.launches.get_mut(&token) else { return Ok(()) };
        let in_pid_namespace = launch.pid_from_sender;
        let sender = incoming.credentials.map_or(0, |who: Credentials| who.pid);
        let of_crash = if launch.crash_report { symbolizer::FDS } else { 0 };
        let (event, fds) = incoming.read::<LaunchEvent>(launch.outputs.len() + of_crash)?;
        match event.kind {
            // Zygotes are programs of users: nobody is told anything twice.
            Some(launch_event::Kind::Placed(_)) if launch.init_pid != 0 || launch.started => {
                return Err(malformed(step, "placed twice"));
            }
            Some(launch_event::Kind::Started(_)) if launch.started => {
                return Err(malformed(step, "started twice"));
            }
            // The warm nest that it was given is ready only now.
            Some(launch_event::Kind::Parked(_)) if launch.warm && launch.pid == 0 => launch.pid = sender,
            Some(launch_event::Kind::Parked(_)) => {
                return Err(malformed(step, "parked without being asked to"));
            }
            Some(launch_event::Kind::Placed(_)) => {
                launch.init_pid = sender;
                self.push(Event::Placed { token, pid: sender });
            }
            Some(launch_event::Kind::Started(started)) => {
                let pid = if in_pid_namespace { sender } else { started.pid };
                (launch.pid, launch.started) = (pid, true);
                self.push(Event::Started { token, pid });
                self.make_place(token);
            }
            Some(launch_event::Kind::Ended(ended)) if ended.named => {
                if launch.started || !in_pid_namespace {
                    return Err(malformed(step, "named without need"));
                }
                (launch.pid, launch.started) = (sender, true);
                self.ended(token, ended, fds);
            }
            Some(launch_event::Kind::Ended(ended)) => {
                if in_pid_namespace && launch.init_pid == 0 {
                    launch.init_pid = sender;
                }
                self.ended(token, ended, fds);
            }
            Some(launch_event::Kind::Asked(asked)) => return self.asked(token, asked),
            Some(launch_event::Kind::LimitsSet(answer)) => return self.limited(token, answer),
            Some(launch_event::Kind::Failure(_)) if self.server_has_died() => {}
            Some(launch_event::Kind::Failure(failure)) => return Err(Failure::from_step(failure)),
            None => return Err(malformed(step, "an event without a kind")),
        }
        Ok(())
    }

    /// A launch socket ended without a word.
    fn launch_gone(&mut self, token: u64) {
        if self.server_has_died() {
            return;
        }
        let Some(launch) = self.launches.get(&token) else { return };
        if launch.started || launch.warm {
            // Init is out of the program's reach: somebody on the host killed it, and with it the nest.
            let message = killed_message(launch.outputs.len());
            self.ended(token, message, Vec::new());
        } else {
            let failure =
                Failure::fact(Code::Spawn, Step::CloneInit, "the nest was gone before the program started");
            self.fail(token, failure);
        }
    }

    /// Reads what a launch reported before the fork server died, but not that it ended without a word: all did.
    pub(super) fn drain_launch(&mut self, token: u64) {
        let pending = |launch: &Launch| {
            matches!(launch.stage, Stage::Sent)
                && launch.socket.as_ref().is_some_and(|socket| !socket::at_end_of_file(socket.as_fd()))
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(launch) = self.launches.get(&token).filter(|launch| pending(launch)) {
            let Some(socket) = &launch.socket else { break };
            let Some(incoming) = Incoming::next(socket.as_fd(), &mut buffer) else { break };
            if incoming.bytes.is_empty() || self.on_launch(token, incoming).is_err() {
                break;
            }
        }
        self.buffer = buffer;
    }
}
