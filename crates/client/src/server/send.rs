//! Sending a launch: when all that it needs is there, to whoever is to start it.
//!
//! Promises: no more launches are sent to templates at once than [`crate::admission`] has places for; what is sent to one that
//! has died meanwhile goes to another.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nestbox_protocol::{
    self as protocol, FdRole, LaunchControl, ServerRequest, Step, launch_control, server_request,
};
use nestbox_sys::{Errno, packet, process, socket};

use crate::channel::PassedFd;
use crate::failure::{Code, Failure};
use crate::hints;
use crate::launch::{Launch, Pending, Route, Stage};
use crate::nests::Warm;
use crate::networks::NetworkNeed;
use crate::reactor::{Interest, Key, Kind};
use crate::templates::{self, Template};

use super::{Client, Initial, gone, spawn_failure};

impl Client {
    /// Sends a launch if all that it needs is there; asks for what is not.
    pub(crate) fn advance(&mut self, token: u64) {
        match self.try_advance(token) {
            Ok(()) => {}
            Err(failure) => self.fail(token, failure),
        }
    }

    fn try_advance(&mut self, token: u64) -> Result<(), Failure> {
        let Some(Launch { stage: Stage::Pending(pending), .. }) = self.launches.get(&token) else {
            return Ok(());
        };
        let (need, warm, unasked) = (pending.network, pending.warm, !pending.binds.is_empty());
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
        if let Some(id) = template
            && !(self.template_serves(id, token) && self.is_admitted(id, token, warm))
        {
            return Ok(());
        }
        self.transmit(token)
    }

    /// Whether the template of a launch is there to serve it. One that has died is replaced.
    fn template_serves(&mut self, id: u64, token: u64) -> bool {
        let died = match self.templates.get(id) {
            // It may have been killed while it was idle, and that not been seen yet.
            Some(Template { stage: templates::Stage::Ready, channel: Some(channel), .. }) => {
                socket::at_end_of_file(channel.as_fd())
            }
            Some(_) => return false,
            None => true,
        };
        if died {
            self.replace_template(token, id);
        }
        !died
    }

    /// Whether a launch may be sent to its template now; otherwise it is in line.
    fn is_admitted(&mut self, id: u64, token: u64, warm: Warm) -> bool {
        if self.has_warm(id, warm) {
            return true;
        }
        let admitted = self.admission.enter(id, token, process::monotonic_ns());
        if let Some(due) = self.admission.due() {
            self.set_timer(due);
        }
        admitted
    }

    /// A launch needs its place no longer: others may be set up.
    pub(super) fn make_place(&mut self, token: u64) {
        self.admission.leave(token);
        self.admit();
    }

    /// Sends those that there are places for. One that fails makes a place itself, for which this is not entered again: there
    /// may be thousands.
    pub(super) fn admit(&mut self) {
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
    fn transmit(&mut self, token: u64) -> Result<(), Failure> {
        let Some(launch) = self.launches.get_mut(&token) else { return Ok(()) };
        let Stage::Pending(pending) = std::mem::replace(&mut launch.stage, Stage::Sent) else {
            return Ok(());
        };
        self.last_launch_ns = process::monotonic_ns();
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
        if let Err(failure) = self.hand_over(route, message, fds, token) {
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

    /// Hands a launch to whoever is to start it.
    fn hand_over(
        &mut self,
        route: Route,
        message: protocol::Launch,
        fds: Vec<PassedFd>,
        token: u64,
    ) -> Result<(), Failure> {
        let failure = |error| Failure::message(Code::Spawn, Step::ReceiveRequest, &error);
        match route {
            Route::Template(id) => {
                let channel = self.templates.get_mut(id).and_then(|template| template.channel.as_mut());
                let Some(channel) = channel else { return Err(gone("the template is gone")) };
                channel.send(&message, fds, token, &self.reactor).map_err(failure)
            }
            Route::Server(mut request) => {
                request.launch = Some(message);
                self.ask(&ServerRequest { kind: Some(server_request::Kind::Fork(*request)) }, fds, token)
            }
            Route::Zygote(mut request, mut channel) => {
                request.launch = Some(message);
                let request = ServerRequest { kind: Some(server_request::Kind::Fork(*request)) };
                let sent = channel.send(&request, fds, token, &self.reactor).map_err(failure);
                if channel.is_waiting() {
                    self.waiting_zygotes.insert(token, channel);
                }
                sent
            }
        }
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
