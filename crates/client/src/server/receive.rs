//! Hearing: which fd is ready, what came on it, and what that means.
//!
//! Promises: a packet that is malformed, unexpected or has surplus fds closes the channel that it came on and fails what
//! depended on that; none of its fds is leaked.

use std::os::fd::OwnedFd;

use nestbox_protocol::{
    BindOpened, Hello, LaunchEvent, NetworkReply, Ready, Step, frame, launch_event, ready,
};
use nestbox_sys::socket;
use prost::Message;

use crate::capture::{Input, Stream};
use crate::channel::{Channel, Undelivered};
use crate::event::Event;
use crate::failure::{Code, Failure};
use crate::hints;
use crate::networks::{Keeper, Outcome};
use crate::outputs::{self, Reader};
use crate::reactor::{Key, Kind, Readiness};
use crate::templates;

use super::incoming::{Incoming, PACKETS};
use super::{Client, Initial, Preparation, State, gone, malformed, spawn_failure};

impl Client {
    /// Handles what is ready and appends what happened to `events`. Does not wait.
    pub fn dispatch(&mut self, events: &mut Vec<Event>) {
        self.tidy();
        self.dispatching = true;
        let mut ready = Vec::new();
        loop {
            ready.clear();
            let more = self.reactor.fetch(&mut ready);
            for readiness in &ready {
                self.handle(*readiness);
            }
            if let Some(failure) = self.dying.take() {
                self.bury(&hints::advise(failure), true);
            }
            if !more {
                break;
            }
            // The sockets of launches that are over stay readable until they are closed, and would be all that is fetched.
            self.tidy();
        }
        self.dispatching = false;
        events.append(&mut self.events);
    }

    fn handle(&mut self, Readiness { key, readable, writable }: Readiness) {
        let id = key.id;
        match key.kind {
            Kind::Wake => self.reactor.awake(),
            Kind::Timer => self.timer_went_off(),
            Kind::Nest => self.read_nest(id),
            Kind::Control => {
                if writable {
                    let undelivered = self.control.as_mut().map(|channel| channel.flush(&self.reactor));
                    self.undelivered(undelivered);
                }
                if readable {
                    self.receive(key, |client| client.control.as_ref(), Self::on_control);
                }
            }
            Kind::Mounter => {
                if let Initial::Ready { mounter, .. } = &mut self.initial
                    && writable
                {
                    let undelivered = mounter.flush(&self.reactor);
                    self.undelivered(Some(undelivered));
                }
                if readable {
                    self.receive(key, Self::mounter, Self::on_mounter);
                }
            }
            Kind::Keeper => {
                if let Keeper::Running(channel) = &mut self.networks.keeper
                    && writable
                {
                    channel.flush(&self.reactor);
                }
                if readable {
                    self.receive(key, Self::keeper, Self::on_keeper);
                }
            }
            Kind::Template => {
                if writable {
                    let channel = self.templates.get_mut(id).and_then(|template| template.channel.as_mut());
                    let undelivered = channel.map(|channel| channel.flush(&self.reactor));
                    self.undelivered(undelivered);
                }
                if readable {
                    self.receive(
                        key,
                        |client| client.templates.get(id).and_then(|template| template.channel.as_ref()),
                        |client, message| client.on_template(id, message),
                    );
                }
            }
            Kind::Initialize => self.receive(
                key,
                |client| match client.preparations.get(&id) {
                    Some(Preparation::Namespace(channel)) => channel.as_ref(),
                    _ => None,
                },
                |client, message| client.on_namespace(id, message),
            ),
            Kind::Zygote => {
                let undelivered =
                    self.waiting_zygotes.get_mut(&id).map(|channel| channel.flush(&self.reactor));
                if self.waiting_zygotes.get(&id).is_some_and(|channel| !channel.is_waiting()) {
                    self.waiting_zygotes.remove(&id);
                }
                self.undelivered(undelivered);
            }
            Kind::Launch => self.read_launch(id),
            Kind::Stdout => self.read_output(id, Stream::Stdout),
            Kind::Stderr => self.read_output(id, Stream::Stderr),
            Kind::Stdin => {
                if let Some(launch) = self.launches.get_mut(&id)
                    && launch.input.as_mut().is_none_or(Input::resume)
                {
                    launch.input = None;
                }
            }
            Kind::Reader => {
                let finished = self.reader.as_ref().map(Reader::collect).unwrap_or_default();
                for outputs::Finished { token, index, output } in finished {
                    self.output_read(token, index, output);
                }
            }
        }
    }

    /// Requests that had waited for room and then could not be sent.
    fn undelivered(&mut self, undelivered: Option<Vec<Undelivered>>) {
        for Undelivered { owner, errno } in undelivered.unwrap_or_default() {
            let failure = spawn_failure(Step::ReceiveRequest, "sendmsg")(errno);
            if self.templates.get(owner).is_some() {
                self.fail_template(owner, &failure);
            } else {
                self.fail(owner, failure);
            }
        }
    }

    fn mounter(&self) -> Option<&Channel> {
        match &self.initial {
            Initial::Making(channel) | Initial::Ready { mounter: channel, .. } => Some(channel),
            Initial::None => None,
        }
    }

    fn keeper(&self) -> Option<&Channel> {
        match &self.networks.keeper {
            Keeper::Starting(channel) | Keeper::Running(channel) => Some(channel),
            Keeper::None | Keeper::Broken { .. } => None,
        }
    }

    /// Receives all packets of a channel and has each handled; the end of file is a packet without bytes. Stops when the
    /// channel is no longer the one that was ready.
    fn receive(
        &mut self,
        key: Key,
        channel: impl Fn(&Self) -> Option<&Channel>,
        on_packet: impl Fn(&mut Self, Incoming<'_>),
    ) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..PACKETS {
            let Some(open) = channel(self).filter(|channel| channel.key() == key) else { break };
            let Some(incoming) = Incoming::next(open.as_fd(), &mut buffer) else { break };
            let at_end = incoming.bytes.is_empty();
            on_packet(self, incoming);
            if at_end {
                break;
            }
        }
        self.buffer = buffer;
    }

    /// Whether the fork server has died, seen or not. What fails then has failed of that, and is reported lost with it.
    pub(super) fn server_has_died(&mut self) -> bool {
        // The control socket's end may not have been looked at yet, and comes late where the fork server has died between
        // forking a child and that child's closing its copy.
        let is_open = |control: &Channel| !socket::at_end_of_file(control.as_fd());
        if self.control.as_ref().is_some_and(is_open) && !self.process.is_dead() {
            return false;
        }
        self.dying.get_or_insert_with(|| gone("the fork server died"));
        self.reactor.wake();
        true
    }

    fn on_control(&mut self, mut incoming: Incoming<'_>) {
        if let Some(failure) = incoming.lost(Step::StartForkserver) {
            // What it said about its own end, before it started or after, is better than that it ended.
            if self.dying.is_none() {
                self.dying = Some(self.process.failure().cloned().unwrap_or(failure));
            }
            // Not read again before it is buried.
            self.control = None;
            return;
        }
        let starting = matches!(self.state, State::Starting);
        match incoming.read::<Hello>(0) {
            Ok((hello, _)) if starting && hello.protocol_version == u32::from(frame::VERSION) => {
                let pid = incoming.credentials.map(|who| who.pid).or(self.process.pid()).unwrap_or(0);
                self.state = State::Running { pid };
                self.push(Event::ServerReady { pid });
            }
            Ok(_) => {
                // Before it is ready, it reports what it failed in.
                let event = LaunchEvent::decode(incoming.bytes.get(frame::HEADER..).unwrap_or_default());
                self.dying = Some(match event.map(|event| event.kind) {
                    Ok(Some(launch_event::Kind::Failure(failure))) => {
                        Failure { code: Code::ForkServer, ..Failure::from_step(failure) }
                    }
                    _ => malformed(Step::StartForkserver, "the fork server said something unexpected"),
                });
            }
            Err(failure) => self.dying = Some(Failure { code: Code::ForkServer, ..failure }),
        }
    }

    fn on_mounter(&mut self, mut incoming: Incoming<'_>) {
        let step = Step::CreateInitialNamespaces;
        if let Some(failure) = incoming.lost(step) {
            if !self.server_has_died() {
                self.lose_initial(&failure.because("the mounter died"));
            }
            return;
        }
        let result = match std::mem::replace(&mut self.initial, Initial::None) {
            Initial::Making(mounter) => self.on_initialized(mounter, &mut incoming),
            ready @ Initial::Ready { .. } => {
                self.initial = ready;
                incoming.read::<BindOpened>(1).and_then(|(opened, fds)| self.bind_opened(opened, fds))
            }
            Initial::None => Ok(()),
        };
        if let Err(failure) = result
            && !self.server_has_died()
        {
            self.lose_initial(&failure);
        }
    }

    fn on_initialized(&mut self, mounter: Channel, incoming: &mut Incoming<'_>) -> Result<(), Failure> {
        let step = Step::CreateInitialNamespaces;
        let (answer, fds) = incoming.read::<Ready>(2)?;
        match answer.kind {
            Some(ready::Kind::Initialized(_)) => {
                let Ok([user, mount]) = <[OwnedFd; 2]>::try_from(fds) else {
                    return Err(malformed(step, "the initial namespaces came without their fds"));
                };
                self.initial = Initial::Ready { mounter, user, mount };
                self.initial_ready();
                Ok(())
            }
            Some(ready::Kind::Failure(failure)) => Err(Failure::from_step(failure)),
            _ => Err(malformed(step, "not an answer to this request")),
        }
    }

    fn on_keeper(&mut self, mut incoming: Incoming<'_>) {
        let step = Step::CreateNetworkNamespace;
        if let Some(failure) = incoming.lost(step) {
            if !self.server_has_died() {
                self.lose_keeper(&failure.because("the network keeper died"));
            }
            return;
        }
        let result = match std::mem::replace(&mut self.networks.keeper, Keeper::None) {
            Keeper::Starting(channel) => {
                incoming.read::<Ready>(0).and_then(|(answer, _)| match answer.kind {
                    Some(ready::Kind::Initialized(_)) => {
                        self.networks.keeper = Keeper::Running(channel);
                        Ok(())
                    }
                    Some(ready::Kind::Failure(failure)) => Err(Failure::from_step(failure)),
                    _ => Err(malformed(step, "not an answer to this request")),
                })
            }
            running => {
                self.networks.keeper = running;
                incoming.read::<NetworkReply>(1).map(|(reply, fds)| match self.networks.reply(reply, fds) {
                    Outcome::Quiet => {}
                    Outcome::SharedReady => {
                        self.advance_all();
                        self.resume_warming(None);
                    }
                    Outcome::SharedFailed(failure) => self.fail_shared(&failure),
                })
            }
        };
        match result {
            Ok(()) => {
                for token in self.preparing(|what| matches!(what, Preparation::Keeper)) {
                    self.prepared(token);
                }
                self.tend_networks();
            }
            Err(failure) => self.lose_keeper(&failure),
        }
    }

    fn on_template(&mut self, id: u64, mut incoming: Incoming<'_>) {
        let step = Step::ForkTemplate;
        if incoming.lost(step).is_some() {
            self.template_gone(id);
            return;
        }
        let answer = match self.templates.get(id) {
            Some(template) if template.stage == templates::Stage::Building => incoming.read::<Ready>(0),
            _ => Err(malformed(step, "a template that is ready has nothing to say")),
        };
        match answer.map(|(answer, _)| answer.kind) {
            Ok(Some(ready::Kind::Template(ready))) => self.template_ready(id, ready),
            Ok(Some(ready::Kind::Failure(_))) if self.server_has_died() => {}
            Ok(Some(ready::Kind::Failure(failure))) => self.fail_template(id, &Failure::from_step(failure)),
            Ok(_) => self.fail_template(id, &malformed(step, "not an answer to this request")),
            Err(failure) => self.fail_template(id, &failure),
        }
    }

    fn on_namespace(&mut self, token: u64, mut incoming: Incoming<'_>) {
        let step = Step::CreateInitialNamespaces;
        if let Some(failure) = incoming.lost(step) {
            if !self.server_has_died() {
                self.fail(token, failure);
            }
            return;
        }
        match incoming.read::<Ready>(4).map(|(answer, _)| answer.kind) {
            Ok(Some(ready::Kind::Initialized(_))) => self.prepared(token),
            Ok(Some(ready::Kind::Failure(failure))) => self.fail(token, Failure::from_step(failure)),
            Ok(_) => self.fail(token, malformed(step, "not an answer to this request")),
            Err(failure) => self.fail(token, failure),
        }
    }
}
