//! What launches wait for: the initial namespaces, templates, network namespaces and binds.
//!
//! Promises: each is asked for once however many wait for it; when it can't be had, all who wait are told why, and the
//! next launch asks anew.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nestbox_policy::Resolved;
use nestbox_protocol::{
    BindOpened, InitializationType, OpenBind, ServerRequest, Step, TemplateReady, TemplateRequest,
    server_request,
};
use nestbox_sys::socket;

use crate::channel::{Channel, PassedFd};
use crate::failure::{Code, Failure};
use crate::launch::{Launch, Route, Stage};
use crate::networks::{Keeper, NetworkNeed, Shared};
use crate::policy::PlannedBind;
use crate::reactor::{Key, Kind};
use crate::templates::{self, TemplateKey};

use super::{BindAsked, Client, Initial, Preparation, initialize, malformed, spawn_failure};

impl Client {
    /// The initial namespaces: true if they are there; otherwise they are asked for, once.
    pub(crate) fn need_initial(&mut self) -> Result<bool, Failure> {
        match self.initial {
            Initial::Ready { .. } => return Ok(true),
            Initial::Making(_) => return Ok(false),
            Initial::None => {}
        }
        let key = Key::new(Kind::Mounter, self.next_id());
        let (channel, theirs) = self.open_channel(key, Step::CreateInitialNamespaces)?;
        self.ask(&initialize(InitializationType::InitialNamespaces), vec![theirs], 0)?;
        self.initial = Initial::Making(channel);
        Ok(false)
    }

    /// A channel for the answers to a request, and the end of it that goes with the request.
    pub(crate) fn open_channel(&self, key: Key, step: Step) -> Result<(Channel, PassedFd), Failure> {
        let (ours, theirs) = socket::seqpacket_pair().map_err(spawn_failure(step, "socketpair"))?;
        let channel = Channel::new(ours, key, &self.reactor).map_err(spawn_failure(step, "epoll_ctl"))?;
        Ok((channel, PassedFd::Owned(theirs)))
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
    pub(super) fn lose_initial(&mut self, failure: &Failure) {
        self.initial = Initial::None;
        let retired = self.templates.retire();
        self.discard_templates(retired);
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
        let preparing = self.preparing(|what| !matches!(what, Preparation::Template));
        self.binds.clear();
        for token in waiting.into_iter().chain(preparing) {
            self.fail(token, failure.clone());
        }
    }

    pub(super) fn initial_ready(&mut self) {
        for id in self.templates.planned() {
            self.build(id);
        }
        if let Err(failure) = self.need_keeper_if_wanted() {
            self.lose_keeper(&failure);
        }
        for token in self.preparing(|what| matches!(what, Preparation::Initial)) {
            self.prepared(token);
        }
        for token in self.preparing(|what| matches!(what, Preparation::Namespace(None))) {
            if let Err(failure) = self.request_ipc(token) {
                self.fail(token, failure);
            }
        }
        self.advance_all();
    }

    /// Tokens of the preparations of a kind, first come first.
    pub(super) fn preparing(&self, kind: impl Fn(&Preparation) -> bool) -> Vec<u64> {
        let mut tokens: Vec<u64> =
            self.preparations.iter().filter(|(_, what)| kind(what)).map(|(token, _)| *token).collect();
        tokens.sort_unstable();
        tokens
    }

    pub(super) fn advance_all(&mut self) {
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
    pub(super) fn template_for(&mut self, resolved: &Arc<Resolved>) -> Result<u64, Failure> {
        let key = (!resolved.plan.root_writable)
            .then(|| TemplateKey { hash: resolved.template_key, ids: self.ids.base() });
        if let Some(id) = key.as_ref().and_then(|key| self.templates.find(key)) {
            return Ok(id);
        }
        self.need_initial()?;
        let id = self.next_id();
        self.templates.plan(id, key, Arc::clone(resolved));
        let evicted = self.templates.evict();
        self.discard_templates(evicted);
        if let Some(fds) = self.initial_fds() {
            self.request_template(id, fds).inspect_err(|_| drop(self.templates.remove(id)))?;
        }
        Ok(id)
    }

    /// Asks for a planned template, if the initial namespaces are there.
    pub(super) fn build(&mut self, id: u64) {
        let Some(fds) = self.initial_fds() else { return };
        if let Err(failure) = self.request_template(id, fds) {
            self.fail_template(id, &failure);
        }
    }

    pub(super) fn request_template(&mut self, id: u64, initial: [PassedFd; 2]) -> Result<(), Failure> {
        let (channel, theirs) = self.open_channel(Key::new(Kind::Template, id), Step::ForkTemplate)?;
        let Some(template) = self.templates.get_mut(id) else { return Ok(()) };
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
        self.ask(&request, vec![theirs, user, mount], id)
    }

    pub(super) fn fail_template(&mut self, id: u64, failure: &Failure) {
        let Some(mut template) = self.templates.remove(id) else { return };
        let waiters = std::mem::take(&mut template.waiters);
        self.discard_templates([template]);
        for token in waiters {
            self.fail(token, failure.clone());
        }
    }

    pub(super) fn template_ready(
        &mut self,
        id: u64,
        TemplateReady { not_id_mapped, landlock, .. }: TemplateReady,
    ) {
        let Some(template) = self.templates.get_mut(id) else { return };
        template.stage = templates::Stage::Ready;
        template.skipped = not_id_mapped
            .into_iter()
            .map(|path| format!("id-mapping:{}", String::from_utf8_lossy(&path)))
            .collect();
        template.landlock = landlock.map(Into::into);
        if landlock.is_none() {
            template.skipped.push("landlock".into());
        }
        for token in std::mem::take(&mut template.waiters) {
            if let Some(Preparation::Warm(warm)) = self.preparations.get(&token) {
                let warm = *warm;
                self.keep_warm(id, warm);
            } else if self.preparations.contains_key(&token) {
                self.prepared(token);
            } else {
                self.advance(token);
            }
        }
        // One whose only launch was cancelled meanwhile goes at once.
        if self.templates.get(id).is_some_and(|template| template.key.is_none() && template.running == 0) {
            drop(self.templates.remove(id));
        }
        let evicted = self.templates.evict();
        self.discard_templates(evicted);
    }

    /// A template's socket is at its end.
    pub(super) fn template_gone(&mut self, id: u64) {
        if self.server_has_died() {
            return;
        }
        let Some(template) = self.templates.get_mut(id) else { return };
        if template.stage == templates::Stage::Building && !template.retried {
            template.retried = true;
            template.stage = templates::Stage::Planned;
            template.channel = None;
            self.build(id);
            return;
        }
        let failure =
            Failure::fact(Code::Spawn, Step::ForkTemplate, "the template died while it was being built");
        self.fail_template(id, &failure);
    }

    /// Moves a launch whose template has died to a new one.
    pub(super) fn replace_template(&mut self, token: u64, id: u64) {
        let dead = self.templates.remove(id);
        self.discard_templates(dead);
        let Some(resolved) = self.launches.get(&token).and_then(|launch| launch.resolved.clone()) else {
            return;
        };
        match self.template_for(&resolved) {
            Ok(new) => {
                if let Some(Launch { stage: Stage::Pending(pending), .. }) = self.launches.get_mut(&token) {
                    pending.route = Route::Template(new);
                }
                match self.templates.get_mut(new) {
                    Some(template) if template.stage != templates::Stage::Ready => {
                        template.waiters.push(token);
                    }
                    // Another launch had it replaced already.
                    _ => self.advance(token),
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
        let key = Key::new(Kind::Keeper, self.next_id());
        let (channel, theirs) = self.open_channel(key, Step::CreateNetworkNamespace)?;
        self.ask(&initialize(InitializationType::NetworkNamespaces), vec![theirs, user, mount], 0)?;
        self.networks.keeper = Keeper::Starting(channel);
        Ok(())
    }

    pub(super) fn need_keeper_if_wanted(&mut self) -> Result<(), Failure> {
        let waited_for = self.preparations.values().any(|what| matches!(what, Preparation::Keeper));
        if self.networks.is_wanted() || waited_for { self.need_keeper() } else { Ok(()) }
    }

    pub(super) fn lose_keeper(&mut self, failure: &Failure) {
        if self.networks.lose_keeper() {
            self.fail_shared(failure);
        }
        for token in self.preparing(|what| matches!(what, Preparation::Keeper)) {
            self.fail(token, failure.clone());
        }
    }

    /// The shared namespace can't be had.
    pub(super) fn fail_shared(&mut self, failure: &Failure) {
        self.resume_warming(Some(failure));
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

    /// Asks the keeper for what the pool lacks, and about those that were used.
    pub(super) fn tend_networks(&mut self) {
        let requests = self.networks.next_requests();
        let Keeper::Running(channel) = &mut self.networks.keeper else { return };
        for request in requests {
            if let Err(error) = channel.send(&request, Vec::new(), 0, &self.reactor) {
                let failure = Failure::message(Code::Spawn, Step::CreateNetworkNamespace, &error);
                self.lose_keeper(&failure);
                return;
            }
        }
        if let Some(due) = self.networks.trim_due() {
            self.set_timer(due);
        }
    }

    /// Whether the network that a launch needs is there; asks for it if not.
    pub(super) fn network_is_ready(&mut self, need: NetworkNeed) -> Result<bool, Failure> {
        match need {
            NetworkNeed::None => Ok(true),
            NetworkNeed::Own => {
                if self.networks.want() {
                    self.networks.forgive_keeper(false);
                    // Without a keeper the launch makes its own: slower, and no less isolated.
                    if let Err(failure) = self.need_keeper() {
                        self.lose_keeper(&failure);
                    }
                }
                Ok(true)
            }
            NetworkNeed::Shared => {
                match self.networks.shared {
                    Shared::Ready(_) => return Ok(true),
                    Shared::Making => {}
                    Shared::None => {
                        self.networks.shared = Shared::Making;
                        self.networks.forgive_keeper(true);
                        self.tend_networks();
                    }
                }
                self.need_keeper()?;
                Ok(false)
            }
        }
    }

    // ---- binds ----

    /// Asks the mounter for a launch's binds.
    pub(super) fn open_binds(&mut self, token: u64) -> Result<(), Failure> {
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

    pub(super) fn bind_opened(&mut self, opened: BindOpened, fds: Vec<OwnedFd>) -> Result<(), Failure> {
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
}
