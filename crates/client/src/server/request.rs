//! Taking requests: from what a caller asks to a registered launch, and signals to it.
//!
//! Promises: a request that is refused here leaves nothing behind, and one that is taken ends with exactly one final
//! event. The caller's fds are only lent: what can't be sent at once is duplicated before the call returns.

use std::sync::Arc;

use nestbox_policy::Resolved;
use nestbox_protocol::{self as protocol, ForkRequest, LaunchBind, Mode, Step};
use nestbox_sys::{Errno, process};

use crate::channel::PassedFd;
use crate::failure::{Code, Failure};
use crate::files;
use crate::hints;
use crate::ids::OuterIds;
use crate::launch::{
    Isolation, Launch, LaunchRequest, Launched, Pending, Route, Stage, killed_message, tighten,
};
use crate::networks::{Keeper, NetworkNeed};
use crate::outputs::Expected;
use crate::policy::{self, PlannedBind, PolicyHandle};
use crate::reactor::{Interest, Key, Kind};
use crate::stdio::{self, Wired};
use crate::templates;

use super::send::send_signal;
use super::{Client, Preparation, Questions, gone, spawn_failure};

impl Client {
    /// Launches a program. An error here is final; otherwise events follow.
    pub fn launch(&mut self, request: LaunchRequest<'_>) -> Result<Launched, Failure> {
        self.begin_request()?;
        if request.args.is_empty() {
            return Err(Failure::fact(Code::Request, Step::Unspecified, "argv is empty"));
        }
        match request.policy {
            None => {
                let wired = stdio::wire(&request.fds, None).map_err(hints::advise)?;
                let route = Route::Server(Box::new(ForkRequest {
                    mode: Mode::ForkExecve.into(),
                    ..ForkRequest::default()
                }));
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
        request: LaunchRequest<'_>,
        resolved: &Arc<Resolved>,
        ids: OuterIds,
    ) -> Result<Launched, Failure> {
        let binds =
            policy::launch_binds(resolved, &request.binds, self.ids.one_each()).map_err(hints::advise)?;
        policy::check_files(resolved, &request.files)?;
        let owner = self.ids.privileged().then_some((ids.uid, ids.gid));
        let mut wired = stdio::wire(&request.fds, owner).map_err(hints::advise)?;
        if let Some(fd) = request.exec_fd {
            wired.pass(protocol::FdRole::Exec, 0, PassedFd::Lent(fd));
        }
        let files = files::hand_over(&request.files, binds.len(), &mut wired)?;
        let template = self.template_for(resolved)?;
        let mut limits = tighten(&resolved.limits, &request.limits);
        if request.standby {
            limits.wall_time = None;
        }
        let draft = Draft {
            limits,
            ids,
            binds,
            files,
            network: NetworkNeed::of_plan(&resolved.plan),
            isolation: Isolation::of_plan(&resolved.plan, resolved.syscalls),
            resolved: Some(Arc::clone(resolved)),
            crash_report: request.crash_report,
            pid_from_sender: true,
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
        let outputs =
            request.outputs.iter().map(Expected::find).collect::<Result<_, _>>().map_err(hints::advise)?;
        let token = self.next_id();
        let Wired { roles, passed, returned, capture, input } = wired;
        if capture.is_some() {
            self.watch_output_later(token, draft.route.template());
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
                .map(|bind| LaunchBind {
                    path: bind.path.clone(),
                    directory: bind.bind.directory,
                    writable: bind.bind.writable,
                })
                .collect(),
            files: draft.files,
            outputs: request
                .outputs
                .iter()
                .map(|output| protocol::LaunchOutput { path: output.path.clone().into_bytes() })
                .collect(),
            outer_uid: draft.ids.uid,
            outer_gid: draft.ids.gid,
            comms_fd_plus_one: if has_comms { stdio::COMMS_FD + 1 } else { 0 },
            report_init: draft.report_init,
            report_start: request.report_start,
            supervision: protocol::Supervision::from(request.supervision).into(),
            park: false,
            crash_report: draft.crash_report,
        };
        let template = draft.route.template();
        let pending = Pending {
            route: draft.route,
            message,
            passed,
            network: draft.network,
            initial: draft.initial,
            mounts: draft.binds.iter().map(|_| None).collect(),
            binds: draft.binds,
            signals: Vec::new(),
            warm: request.warm,
        };
        let skipped = draft.resolved.as_ref().map(|resolved| resolved.skipped.clone()).unwrap_or_default();
        let launch = Launch {
            stage: Stage::Pending(Box::new(pending)),
            socket: None,
            template: None,
            resolved: draft.resolved,
            network: None,
            ids: draft.ids,
            capture,
            input,
            outputs,
            pid: 0,
            init_pid: 0,
            started: false,
            warm: false,
            crash_report: draft.crash_report,
            captured: Vec::new(),
            crash: None,
            submitted_ns: draft.submitted_ns,
            overflowed: false,
            killed: false,
            skipped,
            isolation: draft.isolation,
            pid_from_sender: draft.pid_from_sender,
            supervision: request.supervision,
            questions: Questions::default(),
            unanswered_limits: 0,
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
    pub fn prepare(&mut self, policy: &PolicyHandle) -> u64 {
        let token = self.next_id();
        if let Err(failure) = self.try_prepare(token, policy) {
            self.preparations.insert(token, Preparation::Template);
            self.fail(token, failure);
        }
        token
    }

    fn try_prepare(&mut self, token: u64, policy: &PolicyHandle) -> Result<(), Failure> {
        self.begin_request()?;
        let resolved = policy.resolve_for(&[])?;
        if resolved.plan.root_writable {
            // Its templates serve one launch each: there is none to make ahead, but the namespaces that all need.
            return self.prepare_initial(token);
        }
        let id = self.template_for(&resolved)?;
        self.preparations.insert(token, Preparation::Template);
        match self.templates.get_mut(id) {
            Some(template) if template.stage != templates::Stage::Ready => template.waiters.push(token),
            Some(_) => self.prepared(token),
            None => return Err(gone("the template has gone")),
        }
        Ok(())
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

    /// Ends with `Prepared` when the network keeper serves.
    pub(crate) fn prepare_keeper(&mut self, token: u64) -> Result<(), Failure> {
        self.networks.forgive_keeper(true);
        if let Keeper::Running(_) = &self.networks.keeper {
            self.preparations.insert(token, Preparation::Keeper);
            self.prepared(token);
            return Ok(());
        }
        if self.need_initial()? {
            self.need_keeper()?;
        }
        self.preparations.insert(token, Preparation::Keeper);
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
                let message = killed_message(launch.outputs.len());
                self.ended(token, message, Vec::new());
                return true;
            }
            Stage::Sent => {}
        }
        launch.killed |= signal == libc::SIGKILL;
        if !send_signal(launch, signal) && signal == libc::SIGKILL {
            // Its end of file kills as well, but nobody is left to report.
            let message = killed_message(launch.outputs.len());
            self.ended(token, message, Vec::new());
        }
        true
    }
}

/// What a launch is beside its request.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
pub(crate) struct Draft {
    pub(crate) route: Route,
    pub(crate) limits: protocol::Limits,
    pub(crate) ids: OuterIds,
    pub(crate) binds: Vec<PlannedBind>,
    pub(crate) files: Vec<protocol::LaunchFile>,
    pub(crate) network: NetworkNeed,
    pub(crate) initial: bool,
    pub(crate) isolation: Isolation,
    pub(crate) resolved: Option<Arc<Resolved>>,
    pub(crate) report_init: bool,
    pub(crate) crash_report: bool,
    /// The program's pid is its own packet's, not the one that it says.
    pub(crate) pid_from_sender: bool,
    pub(crate) submitted_ns: u64,
}

impl Draft {
    pub(crate) fn new(route: Route) -> Self {
        Self {
            route,
            limits: protocol::Limits::default(),
            ids: OuterIds::default(),
            binds: Vec::new(),
            files: Vec::new(),
            network: NetworkNeed::None,
            initial: false,
            isolation: Isolation::NONE,
            resolved: None,
            report_init: false,
            crash_report: false,
            pid_from_sender: false,
            submitted_ns: process::monotonic_ns(),
        }
    }
}

pub(crate) fn no_free_ids() -> Failure {
    Failure::system(Code::Spawn, Step::SetIds, "setresuid", Errno::EAGAIN)
        .because("every id of the range is in use")
        .advise("give ForkServerOptions.hostIds a longer range, or lower maxConcurrency")
}
