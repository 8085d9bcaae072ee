//! The end of a launch: its outputs are read, its result told, and what it held given back.
//!
//! Promises: a launch gives back what it held (ids, template, network namespace) whichever way it ends, and whoever waits for
//! its result comes first.

use std::os::fd::OwnedFd;

use nestbox_protocol as protocol;
use nestbox_sys::Errno;

use crate::event::Event;
use crate::failure::Failure;
use crate::hints;
use crate::launch::{Launch, Stage};
use crate::outputs::{self, Expected, Job, Output, Progress, Reader};
use crate::reactor::{Interest, Key, Kind};

use super::Client;

impl Client {
    /// A launch has come to its end without a result.
    pub(crate) fn fail(&mut self, token: u64, failure: Failure) {
        if self.preparations.remove(&token).is_some() {
            self.push(Event::Failed { token, failure: hints::advise(failure) });
        } else if let Some(launch) = self.launches.remove(&token) {
            let outside = launch.isolation.namespaces == 0;
            let failure = if outside { hints::advise_outside(failure) } else { hints::advise(failure) };
            self.release(launch);
            self.push(Event::Failed { token, failure });
            self.make_place(token);
        }
    }

    pub(super) fn prepared(&mut self, token: u64) {
        if self.preparations.remove(&token).is_some() {
            self.push(Event::Prepared { token });
        }
    }

    /// Gives back what a launch held.
    pub(super) fn release(&mut self, launch: Launch) {
        self.ids.release(launch.ids);
        if let Some(id) = launch.template {
            let over = self.templates.release(id);
            let evicted = self.templates.evict();
            self.discard_templates(over.into_iter().chain(evicted));
            self.refill_soon(id);
        }
        if let Some(network) = launch.network {
            // A file of `/proc/self/net` that was handed on shows whatever happens there from then on.
            if launch.resolved.is_some_and(|resolved| resolved.exchanges_fds) {
                self.networks.throw_away(network);
            } else {
                self.networks.give_back(network);
            }
            if self.networks.is_pressed() {
                self.tend_networks();
            }
        }
    }

    /// Init's last word.
    pub(super) fn ended(&mut self, token: u64, message: protocol::Ended, mut fds: Vec<OwnedFd>) {
        self.finish_streams(token);
        let Some(launch) = self.launches.get_mut(&token) else { return };
        if launch.crash_report && message.crash_fds as usize <= fds.len() {
            launch.captured = fds.split_off(fds.len() - message.crash_fds as usize);
        }
        let mut outputs = Vec::with_capacity(launch.outputs.len());
        let mut later = Vec::new();
        let mut fds = fds.into_iter();
        for (index, expected) in launch.outputs.iter_mut().enumerate() {
            let errno = message.output_errnos.get(index).copied().unwrap_or(libc::ENOENT);
            outputs.push(match (errno, if errno == 0 { fds.next() } else { None }) {
                (0, Some(fd)) => match outputs::begin(expected, fd) {
                    Progress::Done(output) => Some(output),
                    Progress::Later(file) => {
                        // Whoever makes the host file has its directory, and is the last who needs it.
                        let expected = Expected { max_bytes: expected.max_bytes, to: expected.to.take() };
                        later.push(Job { token, index, file, expected });
                        None
                    }
                },
                (0, None) => Some(Output::failed(Errno::EBADMSG)),
                (errno, _) => Some(Output::failed(Errno::from_raw(errno))),
            });
        }
        if later.is_empty() {
            self.finish(token, &message, outputs.into_iter().flatten().collect());
            return;
        }
        launch.stage = Stage::Reading { message: Box::new(message), outputs };
        for job in later {
            self.read_later(job);
        }
    }

    fn read_later(&mut self, job: Job) {
        if self.reader.is_none() {
            let started = Reader::start().and_then(|reader| {
                self.reactor.add(reader.fd(), Key::new(Kind::Reader, 0), Interest::Read)?;
                Ok(reader)
            });
            match started {
                Ok(reader) => self.reader = Some(reader),
                Err(errno) => return self.output_read(job.token, job.index, Output::failed(errno)),
            }
        }
        if let Some(reader) = &self.reader
            && let Err(job) = reader.submit(job)
        {
            self.output_read(job.token, job.index, Output::failed(Errno::EIO));
        }
    }

    pub(super) fn output_read(&mut self, token: u64, index: usize, output: Output) {
        let Some(launch) = self.launches.get_mut(&token) else { return };
        let Stage::Reading { outputs, .. } = &mut launch.stage else { return };
        outputs[index] = Some(output);
        if outputs.iter().all(Option::is_some) {
            self.finish_reading(token);
        }
    }

    /// All that the result waited for is there.
    pub(super) fn finish_reading(&mut self, token: u64) {
        let Some(launch) = self.launches.get_mut(&token) else { return };
        if let Stage::Reading { message, outputs } = std::mem::replace(&mut launch.stage, Stage::Sent) {
            self.finish(token, &message, outputs.into_iter().flatten().collect());
        }
    }

    fn finish(&mut self, token: u64, message: &protocol::Ended, outputs: Vec<Output>) {
        let Some(mut launch) = self.launches.remove(&token) else { return };
        let captured = std::mem::take(&mut launch.captured);
        if !captured.is_empty() {
            let outputs = outputs.into_iter().map(Some).collect();
            launch.stage = Stage::Reading { message: Box::new(message.clone()), outputs };
            self.launches.insert(token, launch);
            self.symbolize(token, &captured);
            return;
        }
        let ended = Box::new(launch.conclude(message, outputs));
        self.push(Event::Ended { token, ended });
        self.over.push((token, launch));
    }

    /// Gives back what the launches held that have ended. Whoever waits for their results comes first, so this is called
    /// when those have been told, and before whatever may need what is given back.
    pub(crate) fn tidy(&mut self) {
        while let Some((token, launch)) = self.over.pop() {
            self.unlooked.extend(launch.resolved.clone());
            self.release(launch);
            self.make_place(token);
        }
    }

    /// Tidies up, and does ahead what the next launch would have to wait for. Called when all results have been told.
    pub fn get_ahead(&mut self) {
        self.tidy();
        for resolved in std::mem::take(&mut self.unlooked) {
            resolved.look_again();
        }
        if self.spare_socket.is_none() && self.control.is_some() {
            // What is wrong is for a launch to report.
            self.spare_socket = self.launch_socket(Key::new(Kind::Launch, 0)).ok();
        }
        self.tend_networks();
    }
}
