//! The client: one fork server, and everything that is asked of it.
//!
//! A state machine driven by readiness. Callers ask ([`Client::launch`], [`Client::fork`], [`Client::prepare`]), poll
//! [`Client::poll_fd`] until it is readable, and fetch what happened with [`Client::dispatch`]. Promises: nothing here
//! blocks or waits (what can't be sent waits in its channel, what is not there yet is waited for as state); each request
//! gets exactly one final event; when the fork server dies, all that is in flight is reported lost and every namespace,
//! template and pooled fd of it is dropped, so none is used again. The parts know nothing of each other; this module
//! connects them; its own parts are the steps of a request: [`request`] takes it, [`needs`] sees to what it waits for,
//! [`send`] sends it, [`receive`] hears what the fork server's side says, [`progress`] what the launch itself says, [`end`]
//! brings it to its end. The others are what happens beside these.

mod capture;
mod crash;
mod end;
mod incoming;
mod limits;
mod needs;
mod progress;
mod receive;
mod request;
mod send;
mod supervision;
#[cfg(test)]
mod tests;
mod timer;
mod warm;

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nestbox_policy::Resolved;
use nestbox_protocol::{ForkRequest, InitializationType, Mode, ServerRequest, Step, frame, server_request};
use nestbox_sys::packet::MessageError;
use nestbox_sys::{Errno, process, socket};
use nix::unistd::{getegid, geteuid};

use crate::admission::Admission;
use crate::capture::READ_SIZE;
use crate::channel::{Channel, PassedFd};
use crate::event::Event;
use crate::failure::{Code, Failure};
use crate::hints;
use crate::ids::{DEFAULT_HOST_ID, IdRange};
use crate::image::Image;
use crate::launch::{Launch, Stage};
use crate::nests::Warm;
use crate::networks::Networks;
use crate::numbered::Numbered;
use crate::outputs::Reader;
use crate::reactor::{Key, Kind, Reactor};
use crate::spawner::{self, ServerProcess};
use crate::templates::Templates;

pub(crate) use request::{Draft, no_free_ids};
pub(crate) use supervision::Questions;

/// How a fork server is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The executable, if not the embedded one.
    pub forkserver_path: Option<PathBuf>,
    /// The embedded executable; empty: there is none.
    pub image: &'static [u8],
    /// The embedded symboliser; empty: there is none, and crash reports say so.
    pub symbolizer: &'static [u8],
    /// Under a root host: the uid outside of sandboxees, or the first of a range.
    pub host_uid: Option<u32>,
    /// The same for the gid.
    pub host_gid: Option<u32>,
    /// The length of the range.
    pub host_id_count: u32,
    /// How many templates are kept.
    pub max_templates: usize,
    /// How many network namespaces are kept ready.
    pub network_pool: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            forkserver_path: None,
            image: &[],
            symbolizer: &[],
            host_uid: None,
            host_gid: None,
            host_id_count: 1,
            max_templates: 32,
            network_pool: 8,
        }
    }
}

/// What a fork server does at the moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Its pid; 0 when it does not run.
    pub pid: i32,
    /// Templates there are.
    pub templates: usize,
    /// Launches in flight.
    pub running: usize,
    /// Launches so far.
    pub launched: u64,
    /// Network namespaces that are ready.
    pub network_pool: usize,
    /// Warm nests that are ready.
    pub warm_nests: usize,
}

/// How far the fork server is.
enum State {
    Starting,
    Running {
        pid: i32,
    },
    /// It is dead or closed, and why.
    Gone(Failure),
}

/// The initial namespaces.
pub(crate) enum Initial {
    None,
    /// Asked for; the socket is the mounter's.
    Making(Channel),
    Ready {
        mounter: Channel,
        user: OwnedFd,
        mount: OwnedFd,
    },
}

/// A bind that the mounter was asked for.
struct BindAsked {
    token: u64,
    index: usize,
    path: Vec<u8>,
    /// It should be id-mapped: its owner inside depends on it.
    writable: bool,
}

/// A request of a caller that ends with `Prepared`.
pub(crate) enum Preparation {
    /// A template.
    Template,
    /// A template and so many warm nests of it.
    Warm(Warm),
    /// The initial namespaces.
    Initial,
    /// The network keeper.
    Keeper,
    /// A namespace that only the answer's fd keeps; the socket of the answer, once it was asked for.
    Namespace(Option<Channel>),
}

/// One fork server and all that is in flight.
pub struct Client {
    pub(crate) reactor: Reactor,
    process: Arc<ServerProcess>,
    control: Option<Channel>,
    state: State,
    pub(crate) ids: IdRange,
    pub(crate) initial: Initial,
    templates: Templates,
    pub(crate) networks: Networks,
    admission: Admission,
    /// Its turns are being given.
    admitting: bool,
    binds: Numbered<BindAsked>,
    /// Control sockets of zygotes for which a request waits for room.
    waiting_zygotes: Numbered<Channel>,
    pub(crate) launches: Numbered<Launch>,
    /// Launches whose results are told, and which still hold what they had: see [`Client::tidy`].
    over: Vec<(u64, Launch)>,
    /// Both ends of a launch's socket, made ahead; ours is watched already.
    spare_socket: Option<(OwnedFd, OwnedFd)>,
    /// Policies that were launched, and whose sources are to be looked at again.
    unlooked: Vec<Arc<Resolved>>,
    pub(crate) preparations: Numbered<Preparation>,
    symbolizer: Image,
    /// The launches that make sense of a crash, and whose.
    symbolizing: Numbered<u64>,
    reader: Option<Reader>,
    /// Launches whose output is not watched yet, and when it is to be.
    unwatched: VecDeque<(u64, u64)>,
    /// The launch without a template that ended last has written more than a pipe holds.
    much_output: bool,
    /// When the timer goes off.
    timer_due: Option<u64>,
    /// Tokens, template ids and bind ids: never used twice.
    last_id: u64,
    events: Vec<Event>,
    dispatching: bool,
    /// The fork server was found dead while something else was handled.
    dying: Option<Failure>,
    /// For packets.
    buffer: Box<[u8]>,
    /// For output.
    scratch: Box<[u8]>,
    launched: u64,
    /// When the last one was sent (`CLOCK_MONOTONIC`).
    last_launch_ns: u64,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// A shorthand for what fails in this process on the way to a launch.
pub(crate) fn spawn_failure(step: Step, syscall: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| hints::advise(Failure::system(Code::Spawn, step, syscall, errno))
}

pub(crate) fn gone(detail: &str) -> Failure {
    Failure::fact(Code::ForkServer, Step::RunProgram, detail)
}

impl Client {
    /// Starts a fork server. Does not wait for it: `ServerReady` or `ServerLost` tells, and requests may be made at once.
    /// Fails only where not even events could be told.
    pub fn start(options: &Options) -> Result<Self, Failure> {
        let (ours, theirs) =
            socket::seqpacket_pair().map_err(spawn_failure(Step::StartForkserver, "socketpair"))?;
        socket::pass_credentials(ours.as_fd()).map_err(spawn_failure(Step::StartForkserver, "setsockopt"))?;
        let image = Image::choose(options.forkserver_path.clone(), options.image);
        Self::over(ours, options, || spawner::start(image, theirs))
    }

    /// The client of a fork server that is reached through `control`. For tests, which play the fork server.
    pub(crate) fn over(
        control: OwnedFd,
        options: &Options,
        start: impl FnOnce() -> Arc<ServerProcess>,
    ) -> Result<Self, Failure> {
        let reactor = Reactor::new().map_err(spawn_failure(Step::StartForkserver, "epoll_create1"))?;
        let control = Channel::new(control, Key::new(Kind::Control, 0), &reactor)
            .map_err(spawn_failure(Step::StartForkserver, "epoll_ctl"))?;
        let (own_uid, own_gid) = (geteuid(), getegid());
        let privileged = own_uid.is_root()
            && process::has_ids_to_give().map_err(spawn_failure(Step::StartForkserver, "read"))?;
        let pick =
            |chosen: Option<u32>, own: u32| if privileged { chosen.unwrap_or(DEFAULT_HOST_ID) } else { own };
        Ok(Self {
            reactor,
            process: start(),
            control: Some(control),
            state: State::Starting,
            ids: IdRange::new(
                privileged,
                pick(options.host_uid, own_uid.as_raw()),
                pick(options.host_gid, own_gid.as_raw()),
                options.host_id_count,
            ),
            initial: Initial::None,
            templates: Templates::new(options.max_templates),
            networks: Networks::new(options.network_pool),
            admission: Admission::new(),
            admitting: false,
            binds: Numbered::default(),
            waiting_zygotes: Numbered::default(),
            launches: Numbered::default(),
            over: Vec::new(),
            spare_socket: None,
            unlooked: Vec::new(),
            preparations: Numbered::default(),
            symbolizer: Image::Embedded(options.symbolizer),
            symbolizing: Numbered::default(),
            reader: None,
            unwatched: VecDeque::new(),
            much_output: false,
            timer_due: None,
            last_id: 0,
            events: Vec::new(),
            dispatching: false,
            dying: None,
            buffer: vec![0; frame::PACKET_MAX].into(),
            scratch: vec![0; READ_SIZE].into(),
            launched: 0,
            last_launch_ns: 0,
        })
    }

    /// The fd that is readable when [`Client::dispatch`] has something to do.
    #[must_use]
    pub fn poll_fd(&self) -> i32 {
        self.reactor.fd()
    }

    /// The fork server's pid; 0 while it does not run.
    #[must_use]
    pub fn pid(&self) -> i32 {
        match self.state {
            State::Running { pid } => pid,
            State::Starting | State::Gone(_) => 0,
        }
    }

    /// How many final events are still to come: as long as that is not 0, somebody waits.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let starting = usize::from(matches!(self.state, State::Starting));
        self.launches.len() + self.preparations.len() + self.events.len() + starting
    }

    /// What it does at the moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            pid: self.pid(),
            templates: self.templates.len(),
            running: self.launches.len(),
            launched: self.launched,
            network_pool: self.networks.ready(),
            warm_nests: self.templates.iter().map(|template| template.nests.ready()).sum(),
        }
    }

    /// Closes everything: the fork server and all that it serves die. What is in flight is reported lost.
    pub fn close(&mut self) {
        if !matches!(self.state, State::Gone(_)) {
            self.bury(&Failure::closed(), false);
        }
    }

    /// The same, and kills the fork server at once, without relying on its attention.
    pub fn destroy(&mut self) {
        self.process.kill();
        self.close();
    }

    /// What every request begins with: what has ended holds nothing any more, and there is somebody to ask.
    pub(crate) fn begin_request(&mut self) -> Result<(), Failure> {
        self.tidy();
        match &self.state {
            State::Gone(failure) => Err(failure.clone()),
            State::Starting | State::Running { .. } => Ok(()),
        }
    }

    /// The token of the launch that is submitted next.
    pub(crate) fn coming_token(&self) -> u64 {
        self.last_id + 1
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Sends a request to the fork server.
    pub(crate) fn ask(
        &mut self,
        request: &ServerRequest,
        fds: Vec<PassedFd>,
        owner: u64,
    ) -> Result<(), Failure> {
        let Some(control) = &mut self.control else {
            return Err(match &self.state {
                State::Gone(failure) => failure.clone(),
                State::Starting | State::Running { .. } => gone("the fork server has gone"),
            });
        };
        match control.send(request, fds, owner, &self.reactor) {
            Ok(()) => Ok(()),
            Err(MessageError::System { errno: Errno::EPIPE | Errno::ECONNRESET, .. }) => {
                Err(self.process.failure().cloned().unwrap_or_else(|| gone("the fork server has died")))
            }
            Err(error) => Err(hints::advise(Failure::message(Code::Spawn, Step::ReceiveRequest, &error))),
        }
    }

    fn push(&mut self, event: Event) {
        let Some(event) = self.take_symbolized(event) else { return };
        if !self.dispatching && self.events.is_empty() {
            self.reactor.wake();
        }
        self.events.push(event);
    }

    /// The fork server is dead or was closed: nothing of it is used again.
    fn bury(&mut self, failure: &Failure, report: bool) {
        self.tidy();
        // Its sockets first, so that whatever is left of it dies.
        self.control = None;
        self.spare_socket = None;
        self.process.kill();
        if report {
            self.push(Event::ServerLost(failure.clone()));
        }
        // What was said before it died still counts.
        let mut tokens: Vec<u64> = self.launches.keys().copied().collect();
        tokens.sort_unstable();
        for token in &tokens {
            self.drain_launch(*token);
        }
        self.state = State::Gone(failure.clone());
        self.dying = None;
        self.initial = Initial::None;
        self.networks.clear();
        self.admission.clear();
        drop(self.templates.clear());
        self.binds.clear();
        self.waiting_zygotes.clear();
        for token in tokens {
            // A result whose outputs are still being read is complete but for those.
            if self.launches.get(&token).is_some_and(|launch| matches!(launch.stage, Stage::Reading { .. })) {
                continue;
            }
            if let Some(launch) = self.launches.remove(&token) {
                self.ids.release(launch.ids);
                self.push(Event::Lost { token, failure: failure.clone() });
            }
        }
        let mut waiting: Vec<u64> = self.preparations.drain().map(|(token, _)| token).collect();
        waiting.sort_unstable();
        for token in waiting {
            self.push(Event::Lost { token, failure: failure.clone() });
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The socket's end would do; this needs nobody's attention.
        self.process.kill();
    }
}

fn malformed(step: Step, detail: &str) -> Failure {
    Failure::system(Code::Spawn, step, "recvmsg", Errno::EBADMSG).because(detail)
}

/// The request for initial namespaces of a kind.
pub(crate) fn initialize(kind: InitializationType) -> ServerRequest {
    let request = ForkRequest {
        mode: Mode::Initialize.into(),
        initialization_type: kind.into(),
        ..ForkRequest::default()
    };
    ServerRequest { kind: Some(server_request::Kind::Fork(request)) }
}
