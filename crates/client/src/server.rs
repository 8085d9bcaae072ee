//! The client: one fork server, and everything that is asked of it.
//!
//! A state machine driven by readiness. Callers ask ([`Client::launch`], [`Client::fork`], [`Client::prepare`]), poll
//! [`Client::poll_fd`] until it is readable, and fetch what happened with [`Client::dispatch`]. Promises: nothing here
//! blocks or waits (what can't be sent waits in its channel, what is not there yet is waited for as state); each request
//! gets exactly one final event; when the fork server dies, all that is in flight is reported lost and every namespace,
//! template and pooled fd of it is dropped, so none is used again. The parts know nothing of each other; this module
//! connects them.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nestbox_protocol::{
    self as protocol, BindOpened, FdRole, ForkRequest, Hello, InitializationType, LaunchBind, LaunchControl,
    LaunchEvent, Mode, NetworkReply, OpenBind, Ready, ServerRequest, Step, TemplateRequest, frame,
    launch_control, launch_event, ready, server_request,
};
use nestbox_sys::packet::{self, Credentials, MessageError};
use nestbox_sys::{Errno, process, socket};
use nix::unistd::{getegid, geteuid};
use prost::Message;

use crate::capture::{Drained, READ_SIZE, Stream};
use crate::channel::{Channel, PassedFd, Undelivered};
use crate::failure::{Code, Failure};
use crate::hints;
use crate::ids::{DEFAULT_HOST_ID, IdRange, OuterIds};
use crate::image::Image;
use crate::launch::{
    Event, Isolation, Launch, LaunchRequest, Launched, NetworkNeed, Pending, Route, Stage, killed_message, tighten,
};
use crate::networks::{Keeper, Networks, Outcome, Shared};
use crate::outputs::{self, Job, Output, Progress, Reader};
use crate::policy::{PlannedBind, PolicyHandle, Resolved};
use crate::reactor::{Interest, Key, Kind, Reactor, Readiness};
use crate::spawner::{self, ServerProcess};
use crate::stdio::{self, Wired};
use crate::templates::{self, Template, TemplateKey, Templates};

/// How a fork server is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The executable, if not the embedded one.
    pub forkserver_path: Option<PathBuf>,
    /// The embedded executable; empty: there is none.
    pub image: &'static [u8],
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
            host_uid: None,
            host_gid: None,
            host_id_count: 1,
            max_templates: 32,
            network_pool: 4,
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
}

/// How far the fork server is.
enum State {
    Starting,
    Running { pid: i32 },
    /// It is dead or closed, and why.
    Gone(Failure),
}

/// The initial namespaces.
pub(crate) enum Initial {
    None,
    /// Asked for; the socket is the mounter's.
    Making(Channel),
    Ready { mounter: Channel, user: OwnedFd, mount: OwnedFd },
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
    /// The initial namespaces.
    Initial,
    /// The network keeper.
    Keeper,
    /// Namespaces that only the answer's fds keep; its answer socket.
    Namespace(Channel),
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
    binds: HashMap<u64, BindAsked>,
    /// Control sockets of zygotes for which a request waits for room.
    waiting_zygotes: HashMap<u64, Channel>,
    pub(crate) launches: HashMap<u64, Launch>,
    pub(crate) preparations: HashMap<u64, Preparation>,
    reader: Option<Reader>,
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

fn gone(detail: &str) -> Failure {
    Failure::fact(Code::ForkServer, Step::RunProgram, detail)
}

impl Client {
    /// Starts a fork server. Does not wait for it: `ServerReady` or `ServerLost` tells, and requests may be made at once.
    /// Fails only where not even events could be told.
    pub fn start(options: Options) -> Result<Self, Failure> {
        let (ours, theirs) = socket::seqpacket_pair().map_err(spawn_failure(Step::StartForkserver, "socketpair"))?;
        socket::pass_credentials(ours.as_fd()).map_err(spawn_failure(Step::StartForkserver, "setsockopt"))?;
        let image = Image::choose(options.forkserver_path.clone(), options.image);
        Self::over(ours, &options, || spawner::start(image, theirs))
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
        let privileged = own_uid.is_root();
        let pick = |chosen: Option<u32>, own: u32| if privileged { chosen.unwrap_or(DEFAULT_HOST_ID) } else { own };
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
            binds: HashMap::new(),
            waiting_zygotes: HashMap::new(),
            launches: HashMap::new(),
            preparations: HashMap::new(),
            reader: None,
            last_id: 0,
            events: Vec::new(),
            dispatching: false,
            dying: None,
            buffer: vec![0; frame::PACKET_MAX].into(),
            scratch: vec![0; READ_SIZE].into(),
            launched: 0,
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
        }
    }

    // ---- requests ----

    /// Launches a program. An error here is final; otherwise events follow.
    pub fn launch(&mut self, request: LaunchRequest<'_>) -> Result<Launched, Failure> {
        self.check_alive()?;
        if request.args.is_empty() {
            return Err(Failure::fact(Code::Request, Step::Unspecified, "argv is empty"));
        }
        match request.policy {
            None => {
                let wired = stdio::wire(&request.fds, None).map_err(hints::advise)?;
                let route = Route::Server(Box::new(ForkRequest { mode: Mode::ForkExecve.into(), ..ForkRequest::default() }));
                let limits = request.limits;
                self.submit(request, wired, Draft { limits, ..Draft::new(route) })
            }
            Some(policy) => {
                let resolved = policy.resolve_for(&request.binds).map_err(hints::advise)?;
                let ids = self.ids.acquire().ok_or_else(no_free_ids)?;
                let launched = self.launch_sandboxed(request, &resolved, ids);
                if launched.is_err() {
                    self.ids.release(ids);
                }
                launched
            }
        }
    }

    fn launch_sandboxed(
        &mut self,
        mut request: LaunchRequest<'_>,
        resolved: &Arc<Resolved>,
        ids: OuterIds,
    ) -> Result<Launched, Failure> {
        let binds = resolved.launch_binds(std::mem::take(&mut request.binds), self.ids.one_each())?;
        let owner = self.ids.privileged().then_some((ids.uid, ids.gid));
        let wired = stdio::wire(&request.fds, owner).map_err(hints::advise)?;
        let template = self.template_for(resolved)?;
        let network = match resolved.plan.network() {
            protocol::Network::Host => NetworkNeed::None,
            protocol::Network::SharedLoopback => NetworkNeed::Shared,
            protocol::Network::None | protocol::Network::Unspecified => NetworkNeed::Own,
        };
        let limits = tighten(&resolved.limits, &request.limits);
        let draft = Draft {
            limits,
            ids,
            binds,
            network,
            isolation: Isolation::of_plan(&resolved.plan),
            resolved: Some(Arc::clone(resolved)),
            ..Draft::new(Route::Template(template))
        };
        self.submit(request, wired, draft)
    }

    /// Registers a launch and sends it, at once if all that it needs is there.
    pub(crate) fn submit(
        &mut self,
        request: LaunchRequest<'_>,
        wired: Wired,
        draft: Draft,
    ) -> Result<Launched, Failure> {
        let step = Step::ReceiveRequest;
        let (socket, peer) = socket::seqpacket_pair().map_err(spawn_failure(step, "socketpair"))?;
        socket::pass_credentials(socket.as_fd()).map_err(spawn_failure(step, "setsockopt"))?;
        let token = self.next_id();
        self.reactor
            .add(socket.as_fd(), Key::new(Kind::Launch, token), Interest::Read)
            .map_err(spawn_failure(step, "epoll_ctl"))?;
        let Wired { roles, passed, returned, capture, input } = wired;
        for (kind, stream) in [(Kind::Stdout, Stream::Stdout), (Kind::Stderr, Stream::Stderr)] {
            if let Some(pipe) = capture.as_ref().and_then(|capture| capture.pipe(stream)) {
                self.reactor
                    .add(pipe, Key::new(kind, token), Interest::Read)
                    .map_err(spawn_failure(step, "epoll_ctl"))?;
            }
        }
        if let Some(input) = &input {
            self.reactor
                .add(input.pipe(), Key::new(Kind::Stdin, token), Interest::Write)
                .map_err(spawn_failure(step, "epoll_ctl"))?;
        }
        let has_comms = returned.comms.is_some() || matches!(request.fds.comms, stdio::Comms::Fd(_));
        let message = protocol::Launch {
            args: request.args,
            envs: request.envs,
            file: request.file,
            search_path: request.search_path,
            cwd: request.cwd,
            fds: roles,
            limits: Some(draft.limits),
            binds: draft
                .binds
                .iter()
                .map(|bind| LaunchBind { path: bind.path.clone(), directory: bind.bind.directory })
                .collect(),
            files: request.files,
            outputs: request
                .outputs
                .iter()
                .map(|output| protocol::LaunchOutput { path: output.path.clone().into_bytes() })
                .collect(),
            outer_uid: draft.ids.uid,
            outer_gid: draft.ids.gid,
            comms_fd_plus_one: if has_comms { stdio::COMMS_FD + 1 } else { 0 },
            report_init: draft.report_init,
        };
        let template = match &draft.route {
            Route::Template(id) => Some(*id),
            Route::Server(_) | Route::Zygote(..) => None,
        };
        let pending = Pending {
            route: draft.route,
            message,
            passed,
            peer,
            network: draft.network,
            initial: draft.initial,
            mounts: draft.binds.iter().map(|_| None).collect(),
            binds: draft.binds,
            signals: Vec::new(),
        };
        let skipped = draft.resolved.as_ref().map(|resolved| resolved.skipped.clone()).unwrap_or_default();
        let launch = Launch {
            stage: Stage::Pending(Box::new(pending)),
            socket,
            template: None,
            resolved: draft.resolved,
            network: None,
            ids: draft.ids,
            capture,
            input,
            outputs: request.outputs,
            pid: 0,
            init_pid: 0,
            started: false,
            submitted_ns: draft.submitted_ns,
            overflowed: false,
            killed: false,
            skipped,
            isolation: draft.isolation,
        };
        self.launches.insert(token, launch);
        self.launched += 1;
        if let Some(template) = template.and_then(|id| self.templates.get_mut(id))
            && template.stage != templates::Stage::Ready
        {
            template.waiters.push(token);
        }
        self.advance(token);
        // The caller's fds are only lent to this call.
        if let Some(Launch { stage: Stage::Pending(pending), .. }) = self.launches.get_mut(&token)
            && let Err(errno) = pending.passed.iter_mut().try_for_each(PassedFd::keep)
        {
            self.fail(token, spawn_failure(step, "dup")(errno));
        }
        Ok(Launched { token, returned })
    }

    /// Has a template built ahead of its first launch. `Prepared` or `Failed` tells.
    pub fn prepare(&mut self, policy: &PolicyHandle) -> Result<u64, Failure> {
        self.check_alive()?;
        let resolved = policy.resolve_for(&[]).map_err(hints::advise)?;
        let token = self.next_id();
        if resolved.plan.root_writable {
            // Its templates serve one launch each: there is none to make ahead, but the namespaces that all need.
            return self.prepare_initial(token).map(|()| token);
        }
        let id = self.template_for(&resolved)?;
        self.preparations.insert(token, Preparation::Template);
        match self.templates.get_mut(id) {
            Some(template) if template.stage != templates::Stage::Ready => template.waiters.push(token),
            Some(_) => self.prepared(token),
            None => self.fail(token, gone("the template is gone")),
        }
        Ok(token)
    }

    /// Ends with `Prepared` when the initial namespaces are there.
    pub(crate) fn prepare_initial(&mut self, token: u64) -> Result<(), Failure> {
        self.preparations.insert(token, Preparation::Initial);
        match self.need_initial() {
            Ok(true) => self.prepared(token),
            Ok(false) => {}
            Err(failure) => {
                self.preparations.remove(&token);
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Sends a signal: SIGKILL to the whole nest, others to the program. False if it is over.
    pub fn kill(&mut self, token: u64, signal: i32) -> bool {
        let Some(launch) = self.launches.get_mut(&token) else { return false };
        match &mut launch.stage {
            Stage::Reading { .. } => return false,
            Stage::Pending(pending) => {
                if signal != libc::SIGKILL {
                    pending.signals.push(signal);
                    return true;
                }
                // Nothing of it exists yet.
                launch.killed = true;
                let message = killed_message(true, launch.outputs.len());
                self.ended(token, message, Vec::new());
                return true;
            }
            Stage::Sent => {}
        }
        launch.killed |= signal == libc::SIGKILL;
        if !send_signal(launch, signal) && signal == libc::SIGKILL {
            // Its end of file kills as well, but nobody is left to report.
            let message = killed_message(true, launch.outputs.len());
            self.ended(token, message, Vec::new());
        }
        true
    }

    /// Closes everything: the fork server and all that it serves die. What is in flight is reported lost.
    pub fn close(&mut self) {
        if !matches!(self.state, State::Gone(_)) {
            self.bury(gone("the fork server was closed"), false);
        }
    }

    /// The same, and kills the fork server at once, without relying on its attention.
    pub fn destroy(&mut self) {
        self.process.kill();
        self.close();
    }

    fn check_alive(&self) -> Result<(), Failure> {
        match &self.state {
            State::Gone(failure) => Err(failure.clone()),
            State::Starting | State::Running { .. } => Ok(()),
        }
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    // ---- the fork server ----

    /// Sends a request to the fork server.
    pub(crate) fn ask(&mut self, request: &ServerRequest, fds: Vec<PassedFd>, owner: u64) -> Result<(), Failure> {
        let Some(control) = &mut self.control else {
            return Err(match &self.state {
                State::Gone(failure) => failure.clone(),
                State::Starting | State::Running { .. } => gone("the fork server has gone"),
            });
        };
        match control.send(request, fds, owner, &self.reactor) {
            Ok(()) => Ok(()),
            Err(MessageError::System { errno: Errno::EPIPE | Errno::ECONNRESET, .. }) => {
                Err(gone("the fork server has died"))
            }
            Err(error) => Err(hints::advise(Failure::message(Code::Spawn, Step::ReceiveRequest, &error))),
        }
    }

    /// The initial namespaces: true if they are there; otherwise they are asked for, once.
    pub(crate) fn need_initial(&mut self) -> Result<bool, Failure> {
        match self.initial {
            Initial::Ready { .. } => return Ok(true),
            Initial::Making(_) => return Ok(false),
            Initial::None => {}
        }
        let step = Step::CreateInitialNamespaces;
        let (ours, theirs) = socket::seqpacket_pair().map_err(spawn_failure(step, "socketpair"))?;
        let key = Key::new(Kind::Mounter, self.next_id());
        let channel = Channel::new(ours, key, &self.reactor).map_err(spawn_failure(step, "epoll_ctl"))?;
        self.ask(&initialize(InitializationType::InitialNamespaces), vec![PassedFd::Owned(theirs)], 0)?;
        self.initial = Initial::Making(channel);
        Ok(false)
    }

    /// The initial namespaces as fds of a request.
    pub(crate) fn initial_fds(&self) -> Option<[PassedFd; 2]> {
        match &self.initial {
            Initial::Ready { user, mount, .. } => {
                Some([PassedFd::Lent(user.as_raw_fd()), PassedFd::Lent(mount.as_raw_fd())])
            }
            Initial::None | Initial::Making(_) => None,
        }
    }

    /// The initial namespaces can't be had, or their mounter has gone: nothing may be built in them any more.
    fn lose_initial(&mut self, failure: &Failure) {
        self.initial = Initial::None;
        drop(self.templates.retire());
        self.networks.clear();
        for id in self.templates.planned() {
            self.fail_template(id, failure);
        }
        let waiting: Vec<u64> = self
            .launches
            .iter()
            .filter(|(_, launch)| match &launch.stage {
                Stage::Pending(pending) => pending.initial || pending.mounts.iter().any(Option::is_none),
                Stage::Sent | Stage::Reading { .. } => false,
            })
            .map(|(token, _)| *token)
            .collect();
        let prepared = self.preparations.iter().filter(|(_, what)| {
            matches!(what, Preparation::Initial | Preparation::Keeper)
        });
        let waiting: Vec<u64> = waiting.into_iter().chain(prepared.map(|(token, _)| *token)).collect();
        self.binds.clear();
        for token in waiting {
            self.fail(token, failure.clone());
        }
    }

    fn initial_ready(&mut self) {
        for id in self.templates.planned() {
            self.build(id);
        }
        if let Err(failure) = self.need_keeper_if_wanted() {
            self.lose_keeper(failure);
        }
        let prepared: Vec<u64> = self
            .preparations
            .iter()
            .filter(|(_, what)| matches!(what, Preparation::Initial))
            .map(|(token, _)| *token)
            .collect();
        for token in prepared {
            self.prepared(token);
        }
        self.advance_all();
    }

    fn advance_all(&mut self) {
        let mut pending: Vec<u64> = self
            .launches
            .iter()
            .filter(|(_, launch)| matches!(launch.stage, Stage::Pending(_)))
            .map(|(token, _)| *token)
            .collect();
        // First come, first served.
        pending.sort_unstable();
        for token in pending {
            self.advance(token);
        }
    }

    // ---- templates ----

    /// The template of a plan: one that there is, or a new one that is being built.
    fn template_for(&mut self, resolved: &Arc<Resolved>) -> Result<u64, Failure> {
        let key = (!resolved.plan.root_writable)
            .then(|| TemplateKey { hash: resolved.hash.clone(), ids: self.ids.base() });
        if let Some(id) = key.as_ref().and_then(|key| self.templates.find(key)) {
            return Ok(id);
        }
        self.need_initial()?;
        let id = self.next_id();
        self.templates.plan(id, key, Arc::clone(resolved));
        drop(self.templates.evict());
        self.build(id);
        Ok(id)
    }

    /// Asks for a planned template, if the initial namespaces are there.
    fn build(&mut self, id: u64) {
        let Some(fds) = self.initial_fds() else { return };
        if let Err(failure) = self.request_template(id, fds) {
            self.fail_template(id, &failure);
        }
    }

    fn request_template(&mut self, id: u64, initial: [PassedFd; 2]) -> Result<(), Failure> {
        let Some(template) = self.templates.get_mut(id) else { return Ok(()) };
        let step = Step::ForkTemplate;
        let (ours, theirs) = socket::seqpacket_pair().map_err(spawn_failure(step, "socketpair"))?;
        let channel =
            Channel::new(ours, Key::new(Kind::Template, id), &self.reactor).map_err(spawn_failure(step, "epoll_ctl"))?;
        template.channel = Some(channel);
        template.stage = templates::Stage::Building;
        let ids = self.ids.base();
        let request = TemplateRequest {
            plan: Some((*template.resolved.plan).clone()),
            outer_uid: ids.uid,
            outer_gid: ids.gid,
        };
        let [user, mount] = initial;
        let request = ServerRequest { kind: Some(server_request::Kind::Template(request)) };
        self.ask(&request, vec![PassedFd::Owned(theirs), user, mount], id)
    }

    fn fail_template(&mut self, id: u64, failure: &Failure) {
        let Some(template) = self.templates.remove(id) else { return };
        for token in template.waiters {
            self.fail(token, failure.clone());
        }
    }

    fn template_ready(&mut self, id: u64, not_id_mapped: Vec<Vec<u8>>) {
        let Some(template) = self.templates.get_mut(id) else { return };
        template.stage = templates::Stage::Ready;
        template.not_id_mapped =
            not_id_mapped.into_iter().map(|path| format!("id-mapping:{}", String::from_utf8_lossy(&path))).collect();
        for token in std::mem::take(&mut template.waiters) {
            if self.preparations.contains_key(&token) {
                self.prepared(token);
            } else {
                self.advance(token);
            }
        }
        // One whose only launch was cancelled meanwhile goes at once.
        if self.templates.get(id).is_some_and(|template| template.key.is_none() && template.running == 0) {
            drop(self.templates.remove(id));
        }
        drop(self.templates.evict());
    }

    /// A template's socket is at its end.
    fn template_gone(&mut self, id: u64) {
        let Some(template) = self.templates.get_mut(id) else { return };
        let was_building = template.stage == templates::Stage::Building;
        if was_building && !template.retried && self.control_is_open() {
            let Some(template) = self.templates.get_mut(id) else { return };
            template.retried = true;
            template.stage = templates::Stage::Planned;
            template.channel = None;
            self.build(id);
            return;
        }
        let failure = Failure::fact(Code::Spawn, Step::ForkTemplate, "the template died while it was being built");
        self.fail_template(id, &failure);
    }

    /// Moves a launch whose template has died to a new one.
    fn replace_template(&mut self, token: u64, id: u64) {
        if let Some(template) = self.templates.get_mut(id) {
            template.channel = None;
            drop(self.templates.remove(id));
        }
        let Some(resolved) = self.launches.get(&token).and_then(|launch| launch.resolved.clone()) else { return };
        match self.template_for(&resolved) {
            Ok(new) => {
                if let Some(template) = self.templates.get_mut(new) {
                    template.waiters.push(token);
                }
                if let Some(Launch { stage: Stage::Pending(pending), .. }) = self.launches.get_mut(&token) {
                    pending.route = Route::Template(new);
                }
            }
            Err(failure) => self.fail(token, failure),
        }
    }

    // ---- the network keeper ----

    /// Starts the keeper if the pool or the shared namespace is wanted and the initial namespaces are there.
    pub(crate) fn need_keeper(&mut self) -> Result<(), Failure> {
        if !matches!(self.networks.keeper, Keeper::None) {
            return Ok(());
        }
        let Some([user, mount]) = self.initial_fds() else { return Ok(()) };
        let step = Step::CreateNetworkNamespace;
        let (ours, theirs) = socket::seqpacket_pair().map_err(spawn_failure(step, "socketpair"))?;
        let key = Key::new(Kind::Keeper, self.next_id());
        let channel = Channel::new(ours, key, &self.reactor).map_err(spawn_failure(step, "epoll_ctl"))?;
        let request = initialize(InitializationType::NetworkNamespaces);
        self.ask(&request, vec![PassedFd::Owned(theirs), user, mount], 0)?;
        self.networks.keeper = Keeper::Starting(channel);
        Ok(())
    }

    fn need_keeper_if_wanted(&mut self) -> Result<(), Failure> {
        let waited_for = self.preparations.values().any(|what| matches!(what, Preparation::Keeper));
        if self.networks.is_wanted() || waited_for { self.need_keeper() } else { Ok(()) }
    }

    fn lose_keeper(&mut self, failure: Failure) {
        let (_, shared) = self.networks.lose_keeper(failure.clone());
        if shared {
            self.fail_shared(&failure);
        }
        let waiting: Vec<u64> = self
            .preparations
            .iter()
            .filter(|(_, what)| matches!(what, Preparation::Keeper))
            .map(|(token, _)| *token)
            .collect();
        for token in waiting {
            self.fail(token, failure.clone());
        }
    }

    /// The shared namespace can't be had.
    fn fail_shared(&mut self, failure: &Failure) {
        let waiting: Vec<u64> = self
            .launches
            .iter()
            .filter(|(_, launch)| match &launch.stage {
                Stage::Pending(pending) => pending.network == NetworkNeed::Shared,
                Stage::Sent | Stage::Reading { .. } => false,
            })
            .map(|(token, _)| *token)
            .collect();
        for token in waiting {
            self.fail(token, failure.clone());
        }
    }

    /// Asks the keeper for what the pool lacks, and about one that was used.
    fn tend_networks(&mut self, used: Option<OwnedFd>) {
        let requests = self.networks.next_requests(used);
        let Keeper::Running(channel) = &mut self.networks.keeper else { return };
        for (request, fds) in requests {
            if let Err(error) = channel.send(&request, fds, 0, &self.reactor) {
                let failure = Failure::message(Code::Spawn, Step::CreateNetworkNamespace, &error);
                self.lose_keeper(failure);
                return;
            }
        }
    }

    /// Whether the network that a launch needs is there; asks for it if not.
    fn network_is_ready(&mut self, need: NetworkNeed) -> Result<bool, Failure> {
        match need {
            NetworkNeed::None => Ok(true),
            NetworkNeed::Own => {
                if self.networks.want() {
                    // Without a keeper the launch makes its own: slower, and no less isolated.
                    if let Err(failure) = self.need_keeper() {
                        self.lose_keeper(failure);
                    }
                }
                Ok(true)
            }
            NetworkNeed::Shared => {
                match (&self.networks.shared, &self.networks.keeper) {
                    (Shared::Ready(_), _) => return Ok(true),
                    (_, Keeper::Broken(failure)) => return Err(failure.clone()),
                    (Shared::Making, _) => {}
                    (Shared::None, _) => {
                        self.networks.shared = Shared::Making;
                        self.tend_networks(None);
                    }
                }
                self.need_keeper()?;
                Ok(false)
            }
        }
    }

    // ---- binds ----

    /// Asks the mounter for a launch's binds.
    fn open_binds(&mut self, token: u64) -> Result<(), Failure> {
        let Some(launch) = self.launches.get_mut(&token) else { return Ok(()) };
        let ids = launch.ids;
        let Stage::Pending(pending) = &mut launch.stage else { return Ok(()) };
        let binds = std::mem::take(&mut pending.binds);
        for (index, PlannedBind { path, bind }) in binds.into_iter().enumerate() {
            let id = self.next_id();
            let writable = bind.writable && self.ids.privileged();
            let request = OpenBind { id, bind: Some(bind), outer_uid: ids.uid, outer_gid: ids.gid };
            let Initial::Ready { mounter, .. } = &mut self.initial else { return Ok(()) };
            mounter
                .send(&request, Vec::new(), token, &self.reactor)
                .map_err(|error| Failure::message(Code::Spawn, Step::OpenBindSource, &error))?;
            self.binds.insert(id, BindAsked { token, index, path, writable });
        }
        Ok(())
    }

    fn bind_opened(&mut self, opened: BindOpened, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let Some(BindAsked { token, index, path, writable }) = self.binds.remove(&opened.id) else {
            // The launch was cancelled meanwhile, and its mount goes with `fds`.
            return Ok(());
        };
        if let Some(failure) = opened.failure {
            self.fail(token, Failure::from_step(failure));
            return Ok(());
        }
        let Ok([mount]) = <[OwnedFd; 1]>::try_from(fds) else {
            return Err(malformed(Step::OpenBindSource, "the mounter's answer has no mount"));
        };
        let Some(launch) = self.launches.get_mut(&token) else { return Ok(()) };
        if writable && !opened.id_mapped {
            launch.skipped.push(format!("id-mapping:{}", String::from_utf8_lossy(&path)));
        }
        if let Stage::Pending(pending) = &mut launch.stage {
            pending.mounts[index] = Some(mount);
        }
        self.advance(token);
        Ok(())
    }

    // ---- launches ----

    /// Sends a launch if all that it needs is there; asks for what is not.
    pub(crate) fn advance(&mut self, token: u64) {
        match self.try_advance(token) {
            Ok(()) => {}
            Err(failure) => self.fail(token, failure),
        }
    }

    fn try_advance(&mut self, token: u64) -> Result<(), Failure> {
        let Some(Launch { stage: Stage::Pending(pending), .. }) = self.launches.get(&token) else { return Ok(()) };
        let (need, unasked) = (pending.network, !pending.binds.is_empty());
        let template = match pending.route {
            Route::Template(id) => Some(id),
            Route::Server(_) | Route::Zygote(..) => None,
        };
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
        let Some(Launch { stage: Stage::Pending(pending), .. }) = self.launches.get(&token) else { return Ok(()) };
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
        self.transmit(token)
    }

    /// Sends a launch that has all it needs.
    fn transmit(&mut self, token: u64) -> Result<(), Failure> {
        let Some(launch) = self.launches.get_mut(&token) else { return Ok(()) };
        let Stage::Pending(pending) = std::mem::replace(&mut launch.stage, Stage::Sent) else { return Ok(()) };
        let Pending { route, mut message, passed, peer, network, initial, mounts, signals, .. } = *pending;
        let mut fds = Vec::with_capacity(passed.len() + mounts.len() + 4);
        fds.push(PassedFd::Owned(peer));
        fds.extend(passed);
        let mut pass = |role: FdRole, number: usize, fd: PassedFd| {
            message.fds.push(protocol::PassedFd { role: role.into(), number: number as u32 });
            fds.push(fd);
        };
        for (number, mount) in mounts.into_iter().flatten().enumerate() {
            pass(FdRole::Bind, number, PassedFd::Owned(mount));
        }
        let shared = match (network, &self.networks.shared) {
            (NetworkNeed::Shared, Shared::Ready(shared)) => Some(Arc::clone(shared)),
            _ => None,
        };
        if network == NetworkNeed::Own {
            launch.network = self.networks.take();
        }
        if let Some(namespace) = launch.network.as_ref().or(shared.as_deref()) {
            pass(FdRole::NetworkNamespace, 0, PassedFd::Lent(namespace.as_raw_fd()));
        }
        if initial && let Initial::Ready { user, mount, .. } = &self.initial {
            pass(FdRole::InitialUserNamespace, 0, PassedFd::Lent(user.as_raw_fd()));
            pass(FdRole::InitialMountNamespace, 0, PassedFd::Lent(mount.as_raw_fd()));
        }
        let sent = match route {
            Route::Template(id) => {
                launch.template = Some(id);
                let Some(template) = self.templates.get_mut(id) else { return Err(gone("the template is gone")) };
                template.running += 1;
                launch.skipped.extend_from_slice(&template.not_id_mapped);
                let Some(channel) = &mut template.channel else { return Err(gone("the template is gone")) };
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
        sent.map_err(hints::advise)?;
        if network == NetworkNeed::Own {
            self.tend_networks(None);
        }
        if let Some(launch) = self.launches.get(&token) {
            for signal in signals {
                send_signal(launch, signal);
            }
        }
        Ok(())
    }

    /// A launch has come to its end without a result.
    pub(crate) fn fail(&mut self, token: u64, failure: Failure) {
        let failure = hints::advise(failure);
        if self.preparations.remove(&token).is_some() {
            self.push(Event::Failed { token, failure });
        } else if let Some(launch) = self.launches.remove(&token) {
            self.release(launch);
            self.push(Event::Failed { token, failure });
        }
    }

    fn prepared(&mut self, token: u64) {
        if self.preparations.remove(&token).is_some() {
            self.push(Event::Prepared { token });
        }
    }

    /// Gives back what a launch held.
    fn release(&mut self, launch: Launch) {
        self.ids.release(launch.ids);
        if let Some(id) = launch.template {
            drop(self.templates.release(id));
            drop(self.templates.evict());
        }
        if launch.network.is_some() {
            self.tend_networks(launch.network);
        }
    }

    /// Init's last word.
    fn ended(&mut self, token: u64, message: protocol::Ended, fds: Vec<OwnedFd>) {
        let Some(launch) = self.launches.get_mut(&token) else { return };
        // Nobody is left to write: what is in the pipes now is all.
        if let Some(capture) = &mut launch.capture {
            for stream in [Stream::Stdout, Stream::Stderr] {
                capture.drain(stream, &mut self.scratch, true);
            }
            launch.overflowed |= capture.must_kill() && !launch.killed;
        }
        let mut outputs = Vec::with_capacity(launch.outputs.len());
        let mut later = Vec::new();
        let mut fds = fds.into_iter();
        for (index, request) in launch.outputs.iter().enumerate() {
            let errno = message.output_errnos.get(index).copied().unwrap_or(libc::ENOENT);
            outputs.push(match (errno, if errno == 0 { fds.next() } else { None }) {
                (0, Some(fd)) => match outputs::begin(request, fd) {
                    Progress::Done(output) => Some(output),
                    Progress::Later(file) => {
                        later.push(Job { token, index, file, request: request.clone() });
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

    fn output_read(&mut self, token: u64, index: usize, output: Output) {
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

    fn finish(&mut self, token: u64, message: &protocol::Ended, outputs: Vec<Output>) {
        let Some(mut launch) = self.launches.remove(&token) else { return };
        let ended = Box::new(launch.conclude(message, outputs));
        self.push(Event::Ended { token, ended });
        self.release(launch);
    }

    // ---- events ----

    fn push(&mut self, event: Event) {
        if !self.dispatching && self.events.is_empty() {
            self.reactor.wake();
        }
        self.events.push(event);
    }

    /// Handles what is ready and appends what happened to `events`. Does not wait.
    pub fn dispatch(&mut self, events: &mut Vec<Event>) {
        self.dispatching = true;
        let mut ready = Vec::new();
        loop {
            ready.clear();
            let more = self.reactor.fetch(&mut ready);
            for readiness in &ready {
                self.handle(*readiness);
            }
            if let Some(failure) = self.dying.take() {
                self.bury(failure, true);
            }
            if !more {
                break;
            }
        }
        self.dispatching = false;
        events.append(&mut self.events);
    }

    fn handle(&mut self, Readiness { key, readable, writable }: Readiness) {
        let id = key.id;
        match key.kind {
            Kind::Wake => self.reactor.awake(),
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
                    Some(Preparation::Namespace(channel)) => Some(channel),
                    _ => None,
                },
                |client, message| client.on_namespace(id, message),
            ),
            Kind::Zygote => {
                let undelivered = self.waiting_zygotes.get_mut(&id).map(|channel| channel.flush(&self.reactor));
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
                    && launch.input.as_mut().is_none_or(crate::capture::Input::resume)
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
            Keeper::None | Keeper::Broken(_) => None,
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
        while let Some(open) = channel(self).filter(|channel| channel.key() == key) {
            let mut fds = Vec::new();
            let incoming = match open.receive(&mut buffer, &mut fds) {
                Ok(None) => break,
                Ok(Some(packet)) => Incoming { bytes: packet.bytes, credentials: packet.credentials, fds, errno: None },
                Err(errno) => Incoming { bytes: &[], credentials: None, fds: Vec::new(), errno: Some(errno) },
            };
            let at_end = incoming.bytes.is_empty();
            on_packet(self, incoming);
            if at_end {
                break;
            }
        }
        self.buffer = buffer;
    }

    fn control_is_open(&self) -> bool {
        self.control.as_ref().is_some_and(|control| !socket::at_end_of_file(control.as_fd()))
    }

    fn on_control(&mut self, mut incoming: Incoming<'_>) {
        if let Some(failure) = incoming.lost(Step::StartForkserver) {
            self.dying = Some(self.process.failure().cloned().unwrap_or(failure));
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
            // With the fork server itself dead, everything is lost, and that is said instead.
            if self.control_is_open() {
                self.lose_initial(&failure.because("the mounter died"));
            } else {
                self.initial = Initial::None;
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
        if let Err(failure) = result {
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
            self.lose_keeper(failure.because("the network keeper died"));
            return;
        }
        let result = match std::mem::replace(&mut self.networks.keeper, Keeper::None) {
            Keeper::Starting(channel) => incoming.read::<Ready>(0).and_then(|(answer, _)| match answer.kind {
                Some(ready::Kind::Initialized(_)) => {
                    self.networks.keeper = Keeper::Running(channel);
                    Ok(())
                }
                Some(ready::Kind::Failure(failure)) => Err(Failure::from_step(failure)),
                _ => Err(malformed(step, "not an answer to this request")),
            }),
            running => {
                self.networks.keeper = running;
                incoming.read::<NetworkReply>(1).map(|(reply, fds)| match self.networks.reply(reply, fds) {
                    Outcome::Quiet => {}
                    Outcome::SharedReady => self.advance_all(),
                    Outcome::SharedFailed(failure) => self.fail_shared(&failure),
                })
            }
        };
        match result {
            Ok(()) => {
                let waiting: Vec<u64> = self
                    .preparations
                    .iter()
                    .filter(|(_, what)| matches!(what, Preparation::Keeper))
                    .map(|(token, _)| *token)
                    .collect();
                for token in waiting {
                    self.prepared(token);
                }
                self.tend_networks(None);
            }
            Err(failure) => self.lose_keeper(failure),
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
            Ok(Some(ready::Kind::Template(ready))) => self.template_ready(id, ready.not_id_mapped),
            Ok(Some(ready::Kind::Failure(failure))) => self.fail_template(id, &Failure::from_step(failure)),
            Ok(_) => self.fail_template(id, &malformed(step, "not an answer to this request")),
            Err(failure) => self.fail_template(id, &failure),
        }
    }

    fn on_namespace(&mut self, token: u64, mut incoming: Incoming<'_>) {
        let step = Step::CreateInitialNamespaces;
        if let Some(failure) = incoming.lost(step) {
            self.fail(token, failure);
            return;
        }
        match incoming.read::<Ready>(4).map(|(answer, _)| answer.kind) {
            Ok(Some(ready::Kind::Initialized(_))) => self.prepared(token),
            Ok(Some(ready::Kind::Failure(failure))) => self.fail(token, Failure::from_step(failure)),
            Ok(_) => self.fail(token, malformed(step, "not an answer to this request")),
            Err(failure) => self.fail(token, failure),
        }
    }

    /// Reads what a launch reports.
    fn read_launch(&mut self, token: u64) {
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(launch) = self.launches.get(&token) {
            let mut fds = Vec::new();
            let incoming = match packet::receive(launch.socket.as_fd(), &mut buffer, &mut fds, libc::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) => break,
                Ok(packet) => Incoming { bytes: packet.bytes, credentials: packet.credentials, fds, errno: None },
                Err(errno) => Incoming { bytes: &[], credentials: None, fds: Vec::new(), errno: Some(errno) },
            };
            if matches!(launch.stage, Stage::Reading { .. }) {
                // Init has exited after its last word; nothing more is read.
                let _ = self.reactor.modify(launch.socket.as_fd(), Key::new(Kind::Launch, token), Interest::Nothing);
                break;
            }
            if let Err(failure) = self.on_launch(token, incoming) {
                self.fail(token, failure);
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
        let in_pid_namespace = launch.isolation.namespaces & libc::CLONE_NEWPID as u64 != 0;
        let sender = incoming.credentials.map_or(0, |who: Credentials| who.pid);
        let (event, fds) = incoming.read::<LaunchEvent>(launch.outputs.len())?;
        match event.kind {
            Some(launch_event::Kind::Placed(_)) => {
                launch.init_pid = sender;
                self.push(Event::Placed { token, pid: sender });
            }
            Some(launch_event::Kind::Started(started)) => {
                let pid = if in_pid_namespace { sender } else { started.pid };
                (launch.pid, launch.started) = (pid, true);
                self.push(Event::Started { token, pid });
            }
            Some(launch_event::Kind::Ended(ended)) => {
                if in_pid_namespace && launch.init_pid == 0 {
                    launch.init_pid = sender;
                }
                self.ended(token, ended, fds);
            }
            Some(launch_event::Kind::Failure(failure)) => return Err(Failure::from_step(failure)),
            None => return Err(malformed(step, "an event without a kind")),
        }
        Ok(())
    }

    /// A launch socket ended without a word.
    fn launch_gone(&mut self, token: u64) {
        // The fork server's end of file always comes first (its fds are closed before its children hear of its death),
        // but perhaps it was not looked at yet.
        if !self.control_is_open() {
            self.dying.get_or_insert_with(|| gone("the fork server died"));
            return;
        }
        let Some(launch) = self.launches.get(&token) else { return };
        if launch.started {
            let message = killed_message(launch.killed, launch.outputs.len());
            self.ended(token, message, Vec::new());
        } else {
            let failure =
                Failure::fact(Code::Spawn, Step::CloneInit, "the nest was gone before the program started");
            self.fail(token, failure);
        }
    }

    fn read_output(&mut self, token: u64, stream: Stream) {
        let Some(launch) = self.launches.get_mut(&token) else { return };
        let Some(capture) = &mut launch.capture else { return };
        if capture.drain(stream, &mut self.scratch, false) == Drained::ToTheEnd {
            capture.close(stream);
        }
        if capture.must_kill() && !launch.overflowed {
            launch.overflowed = true;
            send_signal(launch, libc::SIGKILL);
        }
    }

    /// The fork server is dead or was closed: nothing of it is used again.
    fn bury(&mut self, failure: Failure, report: bool) {
        // Its sockets first, so that whatever is left of it dies.
        self.control = None;
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

    /// Reads what a launch reported before the fork server died, but not that it ended without a word: all did.
    fn drain_launch(&mut self, token: u64) {
        let pending = |launch: &Launch| matches!(launch.stage, Stage::Sent) && !socket::at_end_of_file(launch.socket.as_fd());
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(launch) = self.launches.get(&token).filter(|launch| pending(launch)) {
            let mut fds = Vec::new();
            let Ok(packet) = packet::receive(launch.socket.as_fd(), &mut buffer, &mut fds, libc::MSG_DONTWAIT) else {
                break;
            };
            let incoming = Incoming { bytes: packet.bytes, credentials: packet.credentials, fds, errno: None };
            if incoming.bytes.is_empty() || self.on_launch(token, incoming).is_err() {
                break;
            }
        }
        self.buffer = buffer;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The socket's end would do; this needs nobody's attention.
        self.process.kill();
    }
}

/// What a launch is beside its request.
pub(crate) struct Draft {
    pub(crate) route: Route,
    pub(crate) limits: protocol::Limits,
    pub(crate) ids: OuterIds,
    pub(crate) binds: Vec<PlannedBind>,
    pub(crate) network: NetworkNeed,
    pub(crate) initial: bool,
    pub(crate) isolation: Isolation,
    pub(crate) resolved: Option<Arc<Resolved>>,
    pub(crate) report_init: bool,
    pub(crate) submitted_ns: u64,
}

impl Draft {
    pub(crate) fn new(route: Route) -> Self {
        Self {
            route,
            limits: protocol::Limits::default(),
            ids: OuterIds::default(),
            binds: Vec::new(),
            network: NetworkNeed::None,
            initial: false,
            isolation: Isolation::NONE,
            resolved: None,
            report_init: false,
            submitted_ns: process::monotonic_ns(),
        }
    }
}

/// One packet, its fds and its sender.
struct Incoming<'a> {
    bytes: &'a [u8],
    credentials: Option<Credentials>,
    fds: Vec<OwnedFd>,
    errno: Option<Errno>,
}

impl Incoming<'_> {
    /// The failure that says that the channel is at its end or broken; `None`: there is a packet.
    fn lost(&self, step: Step) -> Option<Failure> {
        match self.errno {
            Some(errno) => Some(hints::advise(Failure::system(Code::Spawn, step, "recvmsg", errno))),
            None if self.bytes.is_empty() => Some(Failure::fact(Code::ForkServer, step, "the fork server died")),
            None => None,
        }
    }

    /// Its message and fds, of which there may be `most`. With surplus fds, or if it does not decode, all are closed.
    fn read<M: Message + Default>(&mut self, most: usize) -> Result<(M, Vec<OwnedFd>), Failure> {
        let mut fds = std::mem::take(&mut self.fds);
        let message = packet::read_message(self.bytes, &mut fds)
            .map_err(|error| Failure::message(Code::Spawn, Step::DecodeRequest, &error))?;
        if fds.len() > most {
            return Err(malformed(Step::DecodeRequest, "the packet has more fds than it may have"));
        }
        Ok((message, fds))
    }
}

fn malformed(step: Step, detail: &str) -> Failure {
    Failure::system(Code::Spawn, step, "recvmsg", Errno::EBADMSG).because(detail)
}

fn no_free_ids() -> Failure {
    Failure::system(Code::Spawn, Step::SetIds, "setresuid", Errno::EAGAIN)
        .because("every id of the range is in use")
        .advise("give ForkServerOptions.hostIds a longer range, or lower maxConcurrency")
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

/// Sends a signal to a launch; false if it can't be sent.
fn send_signal(launch: &Launch, signal: i32) -> bool {
    let kill = LaunchControl { kind: Some(launch_control::Kind::Kill(protocol::Kill { signal })) };
    packet::send_message(launch.socket.as_fd(), &kill, &[], libc::MSG_DONTWAIT).is_ok()
}
