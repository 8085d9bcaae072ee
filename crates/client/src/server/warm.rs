//! Warm nests: made in the background, handed to launches, thrown away.
//!
//! Promises: no launch waits for one that would not be ready sooner than a nest of its own, fails because of one, or fails
//! because there is none; nobody's process ever ran in one. What can't be made ahead is left to the launches, which report
//! why. The protocol is a launch's: a nest is asked for with the socket on which its launch will come (`Launch.park` in
//! `proto/launch.proto`).

use std::os::fd::{AsFd, OwnedFd, RawFd};

use nestbox_protocol::{
    self as protocol, FdRole, LaunchControl, LaunchEvent, Step, Unpark, frame, launch_control, launch_event,
};
use nestbox_sys::{packet, process};
use prost::Message;

use crate::channel::{self, PassedFd};
use crate::failure::{Code, Failure};
use crate::ids::OuterIds;
use crate::nests::{Nest, Warm};
use crate::networks::NetworkNeed;
use crate::policy::PolicyHandle;
use crate::reactor::{Interest, Key, Kind};
use crate::templates::{self, Template, TemplateKey};

use super::incoming::Incoming;
use super::send::pass;
use super::{Client, Preparation, gone, no_free_ids, spawn_failure};

/// How long after a launch the nest that it took is replaced, if it has not ended before.
const REFILL_AFTER_NS: u64 = 3_000_000;

/// The same after its end. Not at once: whoever waits for the result comes first, and a nest is made on the processors
/// that it is handed over on.
const REFILL_AFTER_END_NS: u64 = 300_000;

/// More launches than this in flight are many.
const BUSY: usize = 8;

impl Client {
    /// Makes a policy's template and warm nests of it. `Prepared` tells when as many are ready, or `Failed` why not.
    pub fn warm(&mut self, policy: &PolicyHandle, warm: Warm) -> u64 {
        let token = self.next_id();
        self.preparations.insert(token, Preparation::Warm(warm));
        if let Err(failure) = self.try_warm(token, policy, warm) {
            self.fail(token, failure);
        }
        token
    }

    fn try_warm(&mut self, token: u64, policy: &PolicyHandle, warm: Warm) -> Result<(), Failure> {
        self.begin_request()?;
        let resolved = policy.resolve_for(&[])?;
        if resolved.plan.root_writable {
            // Each of its templates serves one launch: there is nothing to make ahead.
            self.prepared(token);
            return Ok(());
        }
        let id = self.template_for(&resolved)?;
        let Some(template) = self.templates.get_mut(id) else { return Err(gone("the template is gone")) };
        template.warming.push(token);
        if template.stage == templates::Stage::Ready {
            self.keep_warm(id, warm);
        } else {
            template.waiters.push(token);
        }
        Ok(())
    }

    /// Throws away the warm nests of a policy. One that was never looked up on this host has none.
    pub fn cool(&mut self, policy: &PolicyHandle) {
        for resolved in policy.known() {
            let key = TemplateKey { hash: resolved.template_key, ids: self.ids.base() };
            let Some(id) = self.templates.find(&key) else { continue };
            let nests = self.templates.get_mut(id).map(|template| template.nests.clear());
            for nest in nests.into_iter().flatten() {
                self.discard(nest);
            }
        }
    }

    /// The most that anybody wants of a template's nests: `warm`, or what somebody waits for. Sandboxes of one policy share
    /// them, and a launch of one must not leave the other waiting.
    fn most_wanted(&self, id: u64, warm: Warm) -> Warm {
        let waiting = self.templates.get(id).into_iter().flat_map(|template| &template.warming);
        let wishes = waiting.filter_map(|token| match self.preparations.get(token) {
            Some(Preparation::Warm(wish)) => Some(*wish),
            _ => None,
        });
        wishes.chain([warm]).max_by_key(|wish| wish.count).unwrap_or(warm)
    }

    /// Sees to it that a template has as many warm nests as are wanted, ready or on their way.
    pub(super) fn keep_warm(&mut self, id: u64, warm: Warm) {
        let warm = self.most_wanted(id, warm);
        if warm.count == 0 {
            self.tell_warm(id);
            return;
        }
        let now = process::monotonic_ns();
        let expires_ns = warm.idle_ns.map(|idle| now.saturating_add(idle));
        loop {
            let Some(template) = self.templates.get_mut(id) else { return };
            let serves = template.stage == templates::Stage::Ready && template.key.is_some();
            // Who asks for them by name is told why there are none; launches don't try at once what has just failed.
            let discouraged = template.warming.is_empty() && template.nests.is_discouraged(now);
            if !serves || discouraged || template.nests.len() >= warm.count {
                template.nests.prolong(expires_ns);
                break;
            }
            match self.make_nest(id, expires_ns) {
                Ok(true) => {}
                Ok(false) => break,
                Err(failure) => {
                    self.fail_warm(id, &failure);
                    return;
                }
            }
        }
        if let Some(due) = expires_ns {
            self.set_timer(due);
        }
        self.tell_warm(id);
    }

    /// A launch of a template: what it takes is replaced in a while, when it does not cost that launch anything. Where
    /// launches follow each other closely there is no such while. True: then call [`Client::keep_warm`] once it is sent, so
    /// that the next nest is made beside it.
    pub(super) fn refill_later(&mut self, id: u64, warm: Warm) -> bool {
        let warm = self.most_wanted(id, warm);
        let Some(template) = self.templates.get_mut(id) else { return false };
        if warm.count <= template.nests.len() || template.key.is_none() {
            return false;
        }
        if template.refill.is_some() && template.running == 1 {
            template.refill = None;
            return true;
        }
        let due = process::monotonic_ns() + REFILL_AFTER_NS;
        template.refill = Some((due, warm));
        self.set_timer(due);
        false
    }

    /// A launch of a template has ended.
    pub(super) fn refill_soon(&mut self, id: u64) {
        let quiet = self.quiet_from();
        let refill = self.templates.get_mut(id).and_then(|template| template.refill.as_mut());
        if let Some((due, _)) = refill {
            let soon = quiet.max(process::monotonic_ns() + REFILL_AFTER_END_NS);
            *due = soon.min(*due);
            self.set_timer(soon);
        }
    }

    /// Makes the nests whose time has come; says when to look again.
    pub(super) fn refill(&mut self, now: u64) -> Option<u64> {
        let quiet = self.quiet_from();
        let mut next = None;
        for (id, (due, warm)) in self.templates.refills() {
            let due = due.max(quiet);
            if due > now {
                next = Some(next.map_or(due, |next: u64| next.min(due)));
            } else {
                if let Some(template) = self.templates.get_mut(id) {
                    template.refill = None;
                }
                self.keep_warm(id, warm);
            }
        }
        next
    }

    /// When nests may be made ahead. Where many launches follow each other closely, not before they stop to: it would only take
    /// their processors. Those that are in flight and merely live take none.
    fn quiet_from(&self) -> u64 {
        if self.launches.len() > BUSY { self.last_launch_ns + REFILL_AFTER_NS } else { 0 }
    }

    /// Asks a template for a warm nest. False: not before the network that it shares is there.
    fn make_nest(&mut self, id: u64, expires_ns: Option<u64>) -> Result<bool, Failure> {
        let Some(template) = self.templates.get(id) else { return Ok(false) };
        let need = NetworkNeed::of_plan(&template.resolved.plan);
        if !self.network_is_ready(need)? {
            return Ok(false);
        }
        let ids = self.ids.acquire().ok_or_else(no_free_ids)?;
        let (network, joined) = self.networks.join(need);
        let nest = self.next_id();
        let socket = self.request_nest(id, nest, ids, joined).inspect_err(|_| self.ids.release(ids))?;
        if let Some(template) = self.templates.get_mut(id) {
            template.nests.add(Nest { id: nest, socket, pid: 0, network, ids, expires_ns });
        }
        self.tend_networks();
        Ok(true)
    }

    /// Sends the request; returns our end of the nest's socket.
    fn request_nest(
        &mut self,
        id: u64,
        nest: u64,
        ids: OuterIds,
        network: Option<RawFd>,
    ) -> Result<OwnedFd, Failure> {
        let (socket, peer) = self.launch_socket(Key::new(Kind::Nest, nest))?;
        let mut fds = vec![PassedFd::Owned(peer)];
        let mut message =
            protocol::Launch { park: true, outer_uid: ids.uid, outer_gid: ids.gid, ..Default::default() };
        if let Some(network) = network {
            pass(&mut message, &mut fds, FdRole::NetworkNamespace, 0, PassedFd::Lent(network));
        }
        let channel = self.templates.get_mut(id).and_then(|template| template.channel.as_mut());
        let Some(channel) = channel else { return Err(gone("the template is gone")) };
        channel
            .send(&message, fds, nest, &self.reactor)
            .map_err(|error| Failure::message(Code::Spawn, Step::ReceiveRequest, &error))?;
        Ok(socket)
    }

    /// Whether there is a nest for a launch of this template already, or one is being made. A launch that is to leave none behind
    /// takes none either: they are another sandbox's.
    pub(super) fn has_warm(&self, id: u64, warm: Warm) -> bool {
        warm.count > 0 && self.templates.get(id).is_some_and(|template| template.nests.len() > 0)
    }

    /// Gives a launch to a warm nest, and sees to it that it is replaced. What comes back is for a nest that is made for it.
    ///
    /// What wakes the parked process comes last: the kernel wakes it on this very processor, where it waits until this one
    /// sleeps.
    pub(super) fn send_to_warm(
        &mut self,
        id: u64,
        token: u64,
        message: protocol::Launch,
        fds: &mut Vec<PassedFd>,
        warm: Warm,
    ) -> Result<Option<protocol::Launch>, Failure> {
        // The size of its file systems and its ids are settled, and the binds of a launch are mapped to those it was to have.
        let own_disk = message.limits.is_some_and(|limits| limits.disk.is_some());
        let own_ids = self.ids.one_each() && !message.binds.is_empty();
        if !self.has_warm(id, warm) || own_disk || own_ids || message.report_init {
            return Ok(Some(message));
        }
        // Who parks has its filter on, and may not ask to be traced any more.
        let needs_init = !message.binds.is_empty() || !message.files.is_empty() || message.crash_report;
        let control = LaunchControl { kind: Some(launch_control::Kind::Launch(message)) };
        let unpark = needs_init || control.encoded_len() > frame::PARKED_MAX - frame::HEADER;
        let passed = fds.len();
        let mut refill = None;
        if let Ok(packet) = channel::encode(&control, fds) {
            while let Some(nest) = self.templates.get_mut(id).and_then(|template| template.nests.take()) {
                self.reactor
                    .modify(nest.socket.as_fd(), Key::new(Kind::Launch, token), Interest::Read)
                    .map_err(spawn_failure(Step::ReceiveRequest, "epoll_ctl"))?;
                let at_once = refill.unwrap_or_else(|| self.refill_later(id, warm));
                refill = Some(at_once);
                if self.deliver(&nest, &packet, fds, unpark) {
                    self.adopt(token, nest, unpark);
                    if at_once {
                        self.keep_warm(id, warm);
                    }
                    return Ok(None);
                }
                // It died before its launch came.
                self.discard(nest);
            }
        }
        fds.truncate(passed);
        match control.kind {
            Some(launch_control::Kind::Launch(message)) => Ok(Some(message)),
            _ => Err(gone("the launch is gone")),
        }
    }

    /// False: nobody is there to take it.
    fn deliver(&self, nest: &Nest, packet: &[u8], fds: &[PassedFd], unpark: bool) -> bool {
        let socket = nest.socket.as_fd();
        if self.ids.one_each() {
            // Pipes belong to who may open them again through /proc/self/fd.
            let owner = (Some(nest.ids.uid.into()), Some(nest.ids.gid.into()));
            for fd in fds {
                if let PassedFd::Owned(fd) = fd
                    && nix::unistd::fchown(fd.as_fd(), owner.0, owner.1).is_err()
                {
                    return false;
                }
            }
        }
        let way = LaunchControl { kind: Some(launch_control::Kind::Unpark(Unpark {})) };
        (!unpark || packet::send_message(socket, &way, &[], libc::MSG_DONTWAIT).is_ok())
            && channel::transmit(socket, packet, fds) == Ok(())
    }

    /// The nest is the launch's from now on.
    fn adopt(&mut self, token: u64, nest: Nest, unparked: bool) {
        let Some(launch) = self.launches.get_mut(&token) else { return };
        self.ids.release(std::mem::replace(&mut launch.ids, nest.ids));
        launch.socket = Some(nest.socket);
        launch.network = nest.network;
        launch.warm = true;
        // A process that made way has a successor.
        launch.pid = if unparked { 0 } else { nest.pid };
    }

    /// Reads what a warm nest has to say before it has a launch.
    pub(super) fn read_nest(&mut self, id: u64) {
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some((template, nest)) = self.templates.of_nest(id) {
            let Some(mut incoming) = Incoming::next(nest.socket.as_fd(), &mut buffer) else { break };
            let event = incoming.read::<LaunchEvent>(0);
            match (incoming.credentials, event.ok().and_then(|(event, _)| event.kind)) {
                (Some(sender), Some(launch_event::Kind::Parked(_))) => {
                    nest.pid = sender.pid;
                    self.tell_warm(template);
                }
                (_, said) => {
                    let failure = match said {
                        Some(launch_event::Kind::Failure(failure)) => Failure::from_step(failure),
                        _ => gone("the warm nest died before it had a launch"),
                    };
                    let nest =
                        self.templates.get_mut(template).and_then(|template| template.nests.remove(id));
                    if let Some(nest) = nest {
                        self.discard(nest);
                    }
                    if !self.server_has_died() {
                        self.fail_warm(template, &failure);
                    }
                }
            }
        }
        self.buffer = buffer;
    }

    /// Tells those who asked for warm nests and have them.
    fn tell_warm(&mut self, id: u64) {
        let Some(template) = self.templates.get_mut(id) else { return };
        let ready = template.nests.ready();
        let mut told = Vec::new();
        template.warming.retain(|token| match self.preparations.get(token) {
            Some(Preparation::Warm(warm)) if warm.count > ready => true,
            Some(_) => {
                told.push(*token);
                false
            }
            None => false,
        });
        for token in told {
            self.prepared(token);
        }
    }

    /// A warm nest could not be made.
    fn fail_warm(&mut self, id: u64, failure: &Failure) {
        let Some(template) = self.templates.get_mut(id) else { return };
        template.nests.discourage(process::monotonic_ns());
        for token in std::mem::take(&mut template.warming) {
            self.fail(token, failure.clone());
        }
    }

    /// The network that sandboxes share is there, or (with why) can't be had: go on with the warm nests that wait for it.
    pub(super) fn resume_warming(&mut self, failure: Option<&Failure>) {
        for id in self.templates.warming() {
            let Some(template) = self.templates.get(id) else { continue };
            if NetworkNeed::of_plan(&template.resolved.plan) != NetworkNeed::Shared {
                continue;
            }
            match failure {
                Some(failure) => self.fail_warm(id, failure),
                None => self.keep_warm(id, Warm::default()),
            }
        }
    }

    /// Throws away the nests that nobody has launched anything in for long enough.
    pub(super) fn expire_nests(&mut self, now: u64) {
        let expired: Vec<Nest> =
            self.templates.iter_mut().flat_map(|template| template.nests.expired(now)).collect();
        for nest in expired {
            self.discard(nest);
        }
    }

    /// Lets a nest die of the end of its socket.
    fn discard(&mut self, nest: Nest) {
        let Nest { ids, network, .. } = nest;
        self.ids.release(ids);
        if let Some(network) = network {
            self.networks.give_back(network);
        }
    }

    /// Lets templates and their warm nests die of the end of their sockets.
    pub(super) fn discard_templates(&mut self, templates: impl IntoIterator<Item = Template>) {
        for mut template in templates {
            for nest in template.nests.clear() {
                self.discard(nest);
            }
            for token in template.warming {
                self.fail(token, gone("the template is gone"));
            }
        }
    }
}
