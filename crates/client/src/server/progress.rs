//! The way of a launch: sent when all that it needs is there, brought to its end when init has spoken.
//!
//! Promises: a launch gives back what it held (ids, template, network namespace) whichever way it ends.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nestbox_protocol::{
    self as protocol, FdRole, LaunchControl, ServerRequest, Step, launch_control, server_request,
};
use nestbox_sys::{Errno, packet, process, socket};

use crate::capture::Stream;
use crate::channel::PassedFd;
use crate::event::Event;
use crate::failure::{Code, Failure};
use crate::hints;
use crate::launch::{Launch, Launched, Pending, Route, Stage};
use crate::networks::NetworkNeed;
use crate::outputs::{self, Expected, Job, Output, Progress, Reader};
use crate::reactor::{Interest, Key, Kind};
use crate::symbolizer::{self, Crash};
use crate::templates::{self, Template};

use super::{Client, Initial, gone, spawn_failure};

/// How long output waits to be watched: longer than a short program takes.
const WATCH_AFTER_NS: u64 = 3_000_000;

impl Client {
    /// Sends a launch if all that it needs is there; asks for what is not.
    pub(crate) fn advance(&mut self, token: u64) {
        match self.try_advance(token) {
            Ok(()) => {}
            Err(failure) => self.fail(token, failure),
        }
    }

    pub(super) fn try_advance(&mut self, token: u64) -> Result<(), Failure> {
        let Some(Launch { stage: Stage::Pending(pending), .. }) = self.launches.get(&token) else {
            return Ok(());
        };
        let (need, unasked) = (pending.network, !pending.binds.is_empty());
        let template = pending.route.template();
        let needs_initial = pending.initial || template.is_some();
        if needs_initial && !self.need_initial()? {
            return Ok(());
        }
        if unasked {
            self.open_binds(token)?;
        }
        if !self.network_is_ready(need)? {
            return Ok(());
        }
        let Some(Launch { stage: Stage::Pending(pending), .. }) = self.launches.get(&token) else {
            return Ok(());
        };
        if pending.mounts.iter().any(Option::is_none) {
            return Ok(());
        }
        if let Some(id) = template {
            match self.templates.get(id) {
                Some(Template { stage: templates::Stage::Ready, channel: Some(channel), .. }) => {
                    // It may have been killed while it was idle, and that not been seen yet.
                    if socket::at_end_of_file(channel.as_fd()) {
                        self.replace_template(token, id);
                        return Ok(());
                    }
                }
                Some(_) => return Ok(()),
                None => {
                    self.replace_template(token, id);
                    return Ok(());
                }
            }
        }
        if let Some(id) = template
            && !self.has_warm(id)
        {
            let admitted = self.admission.enter(id, token, process::monotonic_ns());
            if let Some(due) = self.admission.due() {
                self.set_timer(due);
            }
            if !admitted {
                return Ok(());
            }
        }
        self.transmit(token)
    }

    /// A launch needs its place no longer: others may be set up.
    pub(super) fn make_place(&mut self, token: u64) {
        self.admission.leave(token);
        self.admit();
    }

    /// Sends those that there are places for. One that fails makes a place itself, for which this is not entered again: there
    /// may be thousands.
    fn admit(&mut self) {
        if std::mem::replace(&mut self.admitting, true) {
            return;
        }
        while let Some(token) = self.admission.next(process::monotonic_ns()) {
            self.advance(token);
            let waits = |launch: &Launch| matches!(launch.stage, Stage::Pending(_));
            if self.launches.get(&token).is_none_or(waits) {
                // It is over, or something else that it needs has gone; then it comes again.
                self.admission.leave(token);
            }
        }
        self.admitting = false;
    }

    /// Sends a launch that has all it needs.
    pub(super) fn transmit(&mut self, token: u64) -> Result<(), Failure> {
        let Some(launch) = self.launches.get_mut(&token) else { return Ok(()) };
        let Stage::Pending(pending) = std::mem::replace(&mut launch.stage, Stage::Sent) else {
            return Ok(());
        };
        let Pending { route, mut message, passed, network, initial, mounts, signals, warm, .. } = *pending;
        let mut fds = passed;
        for (number, mount) in mounts.into_iter().flatten().enumerate() {
            pass(&mut message, &mut fds, FdRole::Bind, number, PassedFd::Owned(mount));
        }
        let template = route.template();
        if let Some(id) = template {
            self.count_in(id, token)?;
            let Some(refused) = self.send_to_warm(id, token, message, &mut fds, warm)? else {
                self.send_signals(token, signals);
                return Ok(());
            };
            message = refused;
        }
        let Some(launch) = self.launches.get_mut(&token) else { return Ok(()) };
        let (own, joined) = self.networks.join(network);
        launch.network = own;
        if let Some(namespace) = joined {
            pass(&mut message, &mut fds, FdRole::NetworkNamespace, 0, PassedFd::Lent(namespace));
        }
        if initial && let Initial::Ready { user, mount, .. } = &self.initial {
            let roles = [FdRole::InitialUserNamespace, FdRole::InitialMountNamespace];
            for (role, fd) in roles.into_iter().zip([user, mount]) {
                pass(&mut message, &mut fds, role, 0, PassedFd::Lent(fd.as_raw_fd()));
            }
        }
        let (socket, peer) = self.take_launch_socket(Key::new(Kind::Launch, token))?;
        let Some(launch) = self.launches.get_mut(&token) else { return Ok(()) };
        launch.socket = Some(socket);
        fds.insert(0, PassedFd::Owned(peer));
        let sent = match route {
            Route::Template(id) => {
                let channel = self.templates.get_mut(id).and_then(|template| template.channel.as_mut());
                let Some(channel) = channel else { return Err(gone("the template is gone")) };
                channel
                    .send(&message, fds, token, &self.reactor)
                    .map_err(|error| Failure::message(Code::Spawn, Step::ReceiveRequest, &error))
            }
            Route::Server(mut request) => {
                request.launch = Some(message);
                self.ask(&ServerRequest { kind: Some(server_request::Kind::Fork(*request)) }, fds, token)
            }
            Route::Zygote(mut request, mut channel) => {
                request.launch = Some(message);
                let request = ServerRequest { kind: Some(server_request::Kind::Fork(*request)) };
                let sent = channel
                    .send(&request, fds, token, &self.reactor)
                    .map_err(|error| Failure::message(Code::Spawn, Step::ReceiveRequest, &error));
                if channel.is_waiting() {
                    self.waiting_zygotes.insert(token, channel);
                }
                sent
            }
        };
        if let Err(failure) = sent {
            // Who should have had it went with the fork server, whose end was not looked at yet.
            if matches!(failure.errno, Errno::EPIPE | Errno::ECONNRESET) && self.server_has_died() {
                return Ok(());
            }
            return Err(hints::advise(failure));
        }
        // Checks and replacements can wait until the result is told, unless the next launch would find nothing.
        if network == NetworkNeed::Own && self.networks.ready() == 0 {
            self.tend_networks();
        }
        if let Some(id) = template
            && self.refill_later(id, warm)
        {
            self.keep_warm(id, warm);
        }
        self.send_signals(token, signals);
        Ok(())
    }

    /// A launch's socket, watched, and the end that its init gets.
    pub(super) fn launch_socket(&self, key: Key) -> Result<(OwnedFd, OwnedFd), Failure> {
        let step = Step::ReceiveRequest;
        let (socket, peer) = socket::seqpacket_pair().map_err(spawn_failure(step, "socketpair"))?;
        socket::pass_credentials(socket.as_fd()).map_err(spawn_failure(step, "setsockopt"))?;
        self.reactor.add(socket.as_fd(), key, Interest::Read).map_err(spawn_failure(step, "epoll_ctl"))?;
        Ok((socket, peer))
    }

    /// The same, made ahead if there is one: to make it is 40 µs of a launch that comes after a pause.
    fn take_launch_socket(&mut self, key: Key) -> Result<(OwnedFd, OwnedFd), Failure> {
        let Some((socket, peer)) = self.spare_socket.take() else { return self.launch_socket(key) };
        self.reactor
            .modify(socket.as_fd(), key, Interest::Read)
            .map_err(spawn_failure(Step::ReceiveRequest, "epoll_ctl"))?;
        Ok((socket, peer))
    }

    /// From now on the template serves this launch.
    fn count_in(&mut self, id: u64, token: u64) -> Result<(), Failure> {
        let Some(template) = self.templates.get_mut(id) else { return Err(gone("the template is gone")) };
        let Some(launch) = self.launches.get_mut(&token) else { return Ok(()) };
        template.running += 1;
        launch.template = Some(id);
        launch.skipped.extend_from_slice(&template.skipped);
        launch.isolation.landlock = template.landlock;
        Ok(())
    }

    /// Sends the signals that were to be sent before there was somebody to send them to.
    fn send_signals(&self, token: u64, signals: Vec<i32>) {
        let Some(launch) = self.launches.get(&token) else { return };
        for signal in signals {
            send_signal(launch, signal);
        }
    }

    /// A launch has come to its end without a result.
    pub(crate) fn fail(&mut self, token: u64, failure: Failure) {
        if self.preparations.remove(&token).is_some() {
            self.push(Event::Failed { token, failure: hints::advise(failure) });
        } else if let Some(launch) = self.launches.remove(&token) {
            // What a sandbox lacks is no advice to a program that has none.
            let outside = launch.isolation.namespaces == 0 && failure.code == Code::Exec;
            let failure = if outside { failure } else { hints::advise(failure) };
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
            self.networks.give_back(network);
            if self.networks.is_pressed() {
                self.tend_networks();
            }
        }
    }

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

    /// Has the timer go off at `due` or before.
    pub(super) fn set_timer(&mut self, due: u64) {
        if self.timer_due.is_none_or(|earlier| due < earlier) {
            self.timer_due = Some(due);
            self.reactor.set_timer(Duration::from_nanos(due.saturating_sub(process::monotonic_ns()).max(1)));
        }
    }

    pub(super) fn timer_went_off(&mut self) {
        self.reactor.timer_went_off();
        self.timer_due = None;
        let now = process::monotonic_ns();
        self.watch_output(now);
        self.expire_nests(now);
        let refills = self.refill(now);
        let outputs = self.unwatched.front().map(|&(due, _)| due);
        let nests = self.templates.iter().filter_map(|template| template.nests.next_expiry()).min();
        let networks = self.networks.trim(now);
        self.tend_networks();
        self.admission.expire(now);
        self.admit();
        let places = self.admission.due();
        if let Some(due) = outputs.into_iter().chain(nests).chain(refills).chain(networks).chain(places).min()
        {
            self.set_timer(due);
        }
    }

    /// Watches the output of those launches whose time has come.
    fn watch_output(&mut self, now: u64) {
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

    /// Empties the pipes of a launch when nobody is left to write: what is in them now is all.
    fn finish_streams(&mut self, token: u64) {
        let Some(launch) = self.launches.get_mut(&token) else { return };
        let Some(capture) = &mut launch.capture else { return };
        for stream in [Stream::Stdout, Stream::Stderr] {
            capture.finish_stream(stream, &mut self.scratch);
        }
        launch.overflowed |= capture.must_kill() && !launch.killed;
        let (template, much) = (launch.template, capture.outgrew_a_pipe());
        *self.much_output(template) = much;
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

    pub(super) fn read_later(&mut self, job: Job) {
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
        if outputs.iter().any(Option::is_none) {
            return;
        }
        if let Stage::Reading { message, outputs } = std::mem::replace(&mut launch.stage, Stage::Sent) {
            self.finish(token, &message, outputs.into_iter().flatten().collect());
        }
    }

    pub(super) fn finish(&mut self, token: u64, message: &protocol::Ended, outputs: Vec<Output>) {
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
        while let Some((token, mut launch)) = self.over.pop() {
            self.unlooked.extend(launch.resolved.take());
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

impl Client {
    /// Has a crash made sense of, in a sandbox.
    fn symbolize(&mut self, token: u64, captured: &[OwnedFd]) {
        let launched = symbolizer::policy().and_then(|policy| {
            let program = symbolizer::program(&self.symbolizer)?;
            self.launch(symbolizer::request(&policy, &program, captured))
        });
        match launched {
            Ok(Launched { token: reader, .. }) => {
                // None of the caller's.
                self.launched -= 1;
                self.symbolizing.insert(reader, token);
            }
            Err(failure) => self.symbolized(token, symbolizer::failed(&failure)),
        }
    }

    /// Takes what is said of a launch of [`Client::symbolize`]; gives back what is said of others.
    pub(super) fn take_symbolized(&mut self, event: Event) -> Option<Event> {
        let (reader, crash) = match event {
            Event::Ended { token, ended } if self.symbolizing.contains_key(&token) => {
                (token, symbolizer::conclude(*ended))
            }
            Event::Failed { token, failure } | Event::Lost { token, failure }
                if self.symbolizing.contains_key(&token) =>
            {
                (token, symbolizer::failed(&failure))
            }
            Event::Started { token, .. } if self.symbolizing.contains_key(&token) => return None,
            other => return Some(other),
        };
        if let Some(token) = self.symbolizing.remove(&reader) {
            self.symbolized(token, crash);
        }
        None
    }

    /// The last thing that the result waited for.
    fn symbolized(&mut self, token: u64, crash: Crash) {
        let Some(launch) = self.launches.get_mut(&token) else { return };
        launch.crash = Some(crash);
        if let Stage::Reading { message, outputs } = std::mem::replace(&mut launch.stage, Stage::Sent) {
            self.finish(token, &message, outputs.into_iter().flatten().collect());
        }
    }
}

/// Adds an fd to a launch.
pub(super) fn pass(
    message: &mut protocol::Launch,
    fds: &mut Vec<PassedFd>,
    role: FdRole,
    number: usize,
    fd: PassedFd,
) {
    message.fds.push(protocol::PassedFd {
        role: role.into(),
        number: number as u32,
        grant: protocol::FdGrant::None.into(),
    });
    fds.push(fd);
}

/// Sends a signal to a launch; false if it can't be sent.
pub(super) fn send_signal(launch: &Launch, signal: i32) -> bool {
    let kill = LaunchControl { kind: Some(launch_control::Kind::Kill(protocol::Kill { signal })) };
    launch
        .socket
        .as_ref()
        .is_some_and(|socket| packet::send_message(socket.as_fd(), &kill, &[], libc::MSG_DONTWAIT).is_ok())
}
