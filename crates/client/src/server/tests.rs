//! The client against a fork server that is played here: one thread that speaks the protocol, well or badly.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nestbox_protocol::{
    self as protocol, BindOpened, FdRole, Hello, InitializationType, Initialized, Launch, LaunchControl,
    LaunchEvent, NetworkReply, NetworkRequest, OpenBind, Ready, ServerRequest, TemplateReady, frame,
    launch_event, network_request, ready, server_request,
};
use nestbox_sys::{packet, socket};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prost::Message;

use super::{Client, Options};
use crate::event::Event;
use crate::failure::Code;
use crate::launch::{BindRequest, Ending, LaunchRequest, Limit};
use crate::outputs::OutputRequest;
use crate::policy::PolicyHandle;
use crate::policy::tests::handle;
use crate::spawner::ServerProcess;
use crate::stdio::{Fds, Stdio};
use crate::symbolizer::Crash;

/// How the played server misbehaves, and what it has seen.
#[derive(Default)]
struct Script {
    templates: AtomicUsize,
    launches: AtomicUsize,
    initials: AtomicUsize,
    checks: AtomicUsize,
    /// So many templates die instead of becoming ready.
    templates_die: AtomicUsize,
    /// So many templates answer with a failure.
    templates_fail: AtomicUsize,
    /// Surplus fds with `Started`.
    surplus_fds: AtomicUsize,
    /// Garbage instead of `Started`.
    garbage: AtomicUsize,
    /// Launches are not answered but kept.
    hold: AtomicUsize,
    held: Mutex<Vec<OwnedFd>>,
    /// So many mounters and keepers die at their first request.
    mounters_die: AtomicUsize,
    keepers_die: AtomicUsize,
    /// So many symbolisers crash themselves.
    symbolizers_die: AtomicUsize,
    /// Before the template's answer.
    delay: Mutex<Duration>,
    /// Roles of the fds of the last launch.
    roles: Mutex<Vec<FdRole>>,
}

fn count_down(counter: &AtomicUsize) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

fn file() -> OwnedFd {
    std::fs::File::open("/dev/null").expect("null").into()
}

fn say(socket: &OwnedFd, message: &impl Message, fds: &[OwnedFd]) {
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let _ = packet::send_message(socket.as_fd(), message, &raw, 0);
}

/// The next message of a socket with its fds; `None` at its end.
fn hear<M: Message + Default>(socket: &OwnedFd) -> Option<(M, Vec<OwnedFd>)> {
    let mut buffer = vec![0; frame::PACKET_MAX];
    let mut fds = Vec::new();
    let bytes = packet::receive(socket.as_fd(), &mut buffer, &mut fds, 0).ok()?.bytes;
    if bytes.is_empty() {
        return None;
    }
    let message = packet::read_message(bytes, &mut fds).ok()?;
    Some((message, fds))
}

fn event(kind: launch_event::Kind) -> LaunchEvent {
    LaunchEvent { kind: Some(kind) }
}

impl Script {
    fn serve(self: Arc<Self>, control: &OwnedFd) {
        say(control, &Hello { protocol_version: u32::from(frame::VERSION), privileged: false }, &[]);
        while let Some((request, mut fds)) = hear::<ServerRequest>(control) {
            let socket = fds.remove(0);
            let script = Arc::clone(&self);
            thread::spawn(move || match request.kind {
                Some(server_request::Kind::Template(_)) => script.template(&socket),
                Some(server_request::Kind::Fork(fork)) => match fork.initialization_type() {
                    InitializationType::InitialNamespaces => script.mounter(&socket),
                    InitializationType::NetworkNamespaces => script.keeper(&socket),
                    _ => script.launch(socket, &fork.launch.unwrap_or_default(), fds),
                },
                None => {}
            });
        }
    }

    fn mounter(&self, socket: &OwnedFd) {
        self.initials.fetch_add(1, Ordering::SeqCst);
        say(socket, &Ready { kind: Some(ready::Kind::Initialized(Initialized {})) }, &[file(), file()]);
        while let Some((OpenBind { id, .. }, _)) = hear(socket) {
            if count_down(&self.mounters_die) {
                return;
            }
            say(socket, &BindOpened { id, failure: None, id_mapped: true }, &[file()]);
        }
    }

    fn keeper(&self, socket: &OwnedFd) {
        say(socket, &Ready { kind: Some(ready::Kind::Initialized(Initialized {})) }, &[]);
        while let Some((request, _)) = hear::<NetworkRequest>(socket) {
            if count_down(&self.keepers_die) {
                return;
            }
            match request.kind {
                Some(network_request::Kind::Create(create)) => {
                    say(socket, &NetworkReply { id: create.id, ..NetworkReply::default() }, &[file()]);
                }
                Some(network_request::Kind::Check(check)) => {
                    self.checks.fetch_add(check.ids.len(), Ordering::SeqCst);
                    say(socket, &NetworkReply { clean: check.ids, ..NetworkReply::default() }, &[]);
                }
                Some(network_request::Kind::Forget(_)) | None => {}
            }
        }
    }

    fn template(self: &Arc<Self>, socket: &OwnedFd) {
        self.templates.fetch_add(1, Ordering::SeqCst);
        let delay = *self.delay.lock().expect("delay");
        thread::sleep(delay);
        if count_down(&self.templates_die) {
            return;
        }
        let kind = if count_down(&self.templates_fail) {
            ready::Kind::Failure(protocol::Failure { errno: libc::ENOENT, ..protocol::Failure::default() })
        } else {
            ready::Kind::Template(TemplateReady::default())
        };
        say(socket, &Ready { kind: Some(kind) }, &[]);
        while let Some((launch, mut fds)) = hear::<Launch>(socket) {
            let launch_socket = fds.remove(0);
            let script = Arc::clone(self);
            thread::spawn(move || script.launch(launch_socket, &launch, fds));
        }
    }

    /// Writes `out` to fd 1 and ends; with the argument `wait` only when killed.
    fn launch(&self, socket: OwnedFd, launch: &Launch, fds: Vec<OwnedFd>) {
        self.launches.fetch_add(1, Ordering::SeqCst);
        assert_eq!(launch.fds.len(), fds.len(), "each fd has a role");
        *self.roles.lock().expect("roles") = launch.fds.iter().map(protocol::PassedFd::role).collect();
        if count_down(&self.hold) {
            self.held.lock().expect("held").push(socket);
            return;
        }
        if count_down(&self.garbage) {
            let _ = packet::send(socket.as_fd(), &[b"garbage"], &[0, 1], 0);
            return;
        }
        let surplus = if count_down(&self.surplus_fds) { vec![file(), file()] } else { Vec::new() };
        say(&socket, &event(launch_event::Kind::Started(protocol::Started { pid: 7 })), &surplus);
        for (role, fd) in launch.fds.iter().zip(&fds) {
            if role.role() == FdRole::Stdio && role.number == 1 {
                let _ = nix::unistd::write(fd, b"out");
            }
        }
        drop(fds);
        let mut ended = protocol::Ended {
            status: 3,
            ending: protocol::Ending::Exited.into(),
            ..protocol::Ended::default()
        };
        if launch.args.get(1).is_some_and(|arg| **arg == *b"wait") {
            let Some((LaunchControl { kind: Some(_) }, _)) = hear(&socket) else { return };
            ended.ending = protocol::Ending::Signaled.into();
            ended.status = libc::SIGKILL;
            ended.killed_by_host = true;
        }
        ended.output_errnos = launch.outputs.iter().map(|_| libc::ENOENT).collect();
        let mut captured = Vec::new();
        if launch.crash_report {
            (ended.crash_fds, captured) = (2, vec![file(), file()]);
        }
        if launch.fds.iter().any(|fd| fd.role() == FdRole::Exec) && count_down(&self.symbolizers_die) {
            (ended.ending, ended.status) = (protocol::Ending::Signaled.into(), libc::SIGBUS);
        }
        say(&socket, &event(launch_event::Kind::Ended(ended)), &captured);
    }
}

/// A client and the server that is played for it.
struct Play {
    client: Client,
    script: Arc<Script>,
    events: Vec<Event>,
    /// A copy of the server's end, to shut it down.
    theirs: OwnedFd,
}

impl Play {
    fn start(script: Script, options: &Options) -> Self {
        Self::start_as(ServerProcess::default(), script, options)
    }

    /// The same, with the server taken to be that process.
    fn start_as(process: ServerProcess, script: Script, options: &Options) -> Self {
        let (ours, theirs) = socket::seqpacket_pair().expect("pair");
        socket::pass_credentials(ours.as_fd()).expect("passcred");
        let script = Arc::new(script);
        let (served, copy) = (Arc::clone(&script), theirs.try_clone().expect("dup"));
        let client = Client::over(ours, options, || {
            thread::spawn(move || served.serve(&theirs));
            Arc::new(process)
        })
        .expect("starts");
        Self { client, script, events: Vec::new(), theirs: copy }
    }

    /// Dispatches until `done`, as an event loop would.
    fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < Duration::from_secs(20), "nothing comes any more: {:?}", self.events);
            // SAFETY: the client lives longer than the borrow.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(self.client.poll_fd()) };
            let mut waited = [PollFd::new(fd, PollFlags::POLLIN)];
            poll(&mut waited, PollTimeout::from(100_u8)).expect("poll");
            self.client.dispatch(&mut self.events);
            self.client.tidy();
        }
    }

    fn until_idle(&mut self) {
        self.until(|play| play.client.in_flight() == 0);
    }

    /// The final event of a launch.
    fn end_of(&self, token: u64) -> &Event {
        let mut ends = self.events.iter().filter(|event| match event {
            Event::Ended { token: of, .. }
            | Event::Failed { token: of, .. }
            | Event::Lost { token: of, .. }
            | Event::Prepared { token: of } => *of == token,
            _ => false,
        });
        let end = ends.next().expect("it ended");
        assert!(ends.next().is_none(), "it ended once");
        end
    }

    fn run(&mut self, policy: &PolicyHandle) -> u64 {
        self.client.launch(request(Some(policy))).expect("taken").token
    }
}

fn request(policy: Option<&PolicyHandle>) -> LaunchRequest<'_> {
    LaunchRequest {
        policy,
        file: b"/bin/x".to_vec(),
        args: vec![b"x".to_vec().into()],
        fds: Fds { stdio: [Stdio::Ignore, Stdio::Native, Stdio::Ignore], ..Fds::default() },
        ..LaunchRequest::default()
    }
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

/// These tests count fds of the whole process, or need many: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
fn a_launch_without_a_sandbox() {
    let _alone = alone();
    let mut play = Play::start(Script::default(), &Options::default());
    let token = play.client.launch(request(None)).expect("taken").token;
    play.until_idle();
    assert!(matches!(play.events[0], Event::ServerReady { .. }));
    let Event::Ended { ended, .. } = play.end_of(token) else { panic!("{:?}", play.events) };
    assert_eq!((ended.ending, ended.pid, ended.stdout.as_deref()), (Ending::Exited(3), 7, Some(&b"out"[..])));
    assert_eq!(play.script.initials.load(Ordering::SeqCst), 0, "it needs no namespaces");
}

#[test]
fn a_crash_is_made_sense_of_in_a_launch_of_its_own() {
    let _alone = alone();
    let script = Script { symbolizers_die: AtomicUsize::new(1), ..Script::default() };
    let mut play = Play::start(script, &Options { symbolizer: b"image", ..Options::default() });
    let policy = handle(&[]);
    for (wanted, problem) in [
        (true, Some("the symboliser was killed by signal 7")),
        (true, Some("the symboliser failed with exit code 3")),
        (false, None),
    ] {
        let asked = LaunchRequest { crash_report: wanted, ..request(Some(&policy)) };
        let token = play.client.launch(asked).expect("taken").token;
        play.until_idle();
        let Event::Ended { ended, .. } = play.end_of(token) else { panic!("{:?}", play.events) };
        assert_eq!(ended.ending, Ending::Exited(3), "the program's, not the symboliser's");
        let crash = problem.map(|problem| Crash { report: b"out".to_vec(), problem: Some(problem.into()) });
        assert_eq!(ended.crash, crash);
    }
    let started = play.events.iter().filter(|event| matches!(event, Event::Started { .. })).count();
    let ended = play.events.iter().filter(|event| matches!(event, Event::Ended { .. })).count();
    assert_eq!((started, ended), (3, 3), "nothing is said of the symbolisers");
    assert_eq!((play.client.stats().launched, play.client.stats().running), (3, 0));
}

#[test]
fn without_a_symboliser_the_report_says_so() {
    let _alone = alone();
    let mut play = Play::start(Script::default(), &Options::default());
    let policy = handle(&[]);
    let asked = LaunchRequest { crash_report: true, ..request(Some(&policy)) };
    let token = play.client.launch(asked).expect("taken").token;
    play.until_idle();
    let Event::Ended { ended, .. } = play.end_of(token) else { panic!("{:?}", play.events) };
    let problem = ended.crash.as_ref().and_then(|crash| crash.problem.clone()).expect("a problem");
    assert!(problem.contains("no symboliser in it"), "{problem}");
}

#[test]
fn concurrent_first_uses_build_one_template() {
    let _alone = alone();
    let mut play = Play::start(Script::default(), &Options::default());
    *play.script.delay.lock().expect("delay") = Duration::from_millis(30);
    let policy = handle(&[]);
    let prepared = play.client.prepare(&policy);
    let tokens: Vec<u64> = (0..20).map(|_| play.run(&policy)).collect();
    play.until_idle();
    for token in tokens {
        assert!(matches!(play.end_of(token), Event::Ended { .. }));
    }
    assert!(matches!(play.end_of(prepared), Event::Prepared { .. }));
    let script = &play.script;
    assert_eq!((script.templates.load(Ordering::SeqCst), script.initials.load(Ordering::SeqCst)), (1, 1));
    assert_eq!(script.launches.load(Ordering::SeqCst), 20);
}

#[test]
fn more_launches_than_a_socket_queues() {
    let _alone = alone();
    let mut play = Play::start(Script::default(), &Options::default());
    let policy = handle(&[]);
    let first = play.run(&policy);
    play.until(|play| {
        play.events.iter().any(|event| matches!(event, Event::Ended { token, .. } if *token == first))
    });
    let null = std::fs::File::open("/dev/null").expect("null");
    let tokens: Vec<u64> = (0..600)
        .map(|_| {
            let mut request = request(Some(&policy));
            // Lent for the call only.
            request.fds.stdio[0] = Stdio::Fd(null.as_raw_fd());
            play.client.launch(request).expect("taken").token
        })
        .collect();
    drop(null);
    play.until_idle();
    for token in tokens {
        assert!(matches!(play.end_of(token), Event::Ended { .. }), "{:?}", play.end_of(token));
    }
}

#[test]
fn a_template_that_dies_is_built_once_more() {
    let _alone = alone();
    let script = Script { templates_die: AtomicUsize::new(1), ..Script::default() };
    let mut play = Play::start(script, &Options::default());
    let policy = handle(&[]);
    let token = play.run(&policy);
    play.until_idle();
    assert!(matches!(play.end_of(token), Event::Ended { .. }));
    assert_eq!(play.script.templates.load(Ordering::SeqCst), 2);

    let script = Script { templates_die: AtomicUsize::new(2), ..Script::default() };
    let mut play = Play::start(script, &Options::default());
    let (first, second) = (play.run(&policy), play.run(&policy));
    play.until_idle();
    for token in [first, second] {
        assert!(matches!(play.end_of(token), Event::Failed { .. }));
    }
    let third = play.run(&policy);
    play.until_idle();
    assert!(matches!(play.end_of(third), Event::Ended { .. }), "a failure is not kept");
}

#[test]
fn a_failed_build_is_told_to_all_and_not_kept() {
    let _alone = alone();
    let script = Script { templates_fail: AtomicUsize::new(1), ..Script::default() };
    let mut play = Play::start(script, &Options::default());
    let policy = handle(&[]);
    let (first, second) = (play.run(&policy), play.run(&policy));
    play.until_idle();
    for token in [first, second] {
        let Event::Failed { failure, .. } = play.end_of(token) else { panic!("{:?}", play.events) };
        assert_eq!(failure.errno, nestbox_sys::Errno::ENOENT);
    }
    let third = play.run(&policy);
    play.until_idle();
    assert!(matches!(play.end_of(third), Event::Ended { .. }));
}

#[test]
fn templates_stay_within_their_bound() {
    let _alone = alone();
    let mut play = Play::start(Script::default(), &Options { max_templates: 2, ..Options::default() });
    for hostname in ["a", "b", "c", "d"] {
        play.run(&handle(&[("hostname", &format!("\"{hostname}\""))]));
        play.until_idle();
    }
    assert_eq!(play.client.stats().templates, 2);
    play.run(&handle(&[("rootWritable", "true")]));
    play.until_idle();
    assert_eq!(play.client.stats().templates, 2, "one for a single launch is gone with it");
}

#[test]
fn a_dead_fork_server_loses_what_is_in_flight() {
    let _alone = alone();
    let script = Script { hold: AtomicUsize::new(2), ..Script::default() };
    let mut play = Play::start(script, &Options::default());
    let policy = handle(&[]);
    let tokens = [play.run(&policy), play.run(&policy)];
    play.until(|play| play.script.held.lock().expect("held").len() == 2);
    nix::sys::socket::shutdown(play.theirs.as_raw_fd(), nix::sys::socket::Shutdown::Both).expect("shutdown");
    play.script.held.lock().expect("held").clear();
    play.until_idle();
    for token in tokens {
        let Event::Lost { failure, .. } = play.end_of(token) else { panic!("{:?}", play.events) };
        assert_eq!(failure.code, Code::ForkServer);
    }
    assert!(play.events.iter().any(|event| matches!(event, Event::ServerLost(_))));
    assert_eq!(play.client.stats().templates, 0);
    let refused = play.client.launch(request(Some(&policy))).expect_err("it is dead");
    assert_eq!(refused.code, Code::ForkServer);
}

/// A child that it had just forked, and that did not run since, keeps the control socket open beyond its death.
#[test]
fn a_dead_fork_server_is_known_for_dead_before_its_socket_ends() {
    let _alone = alone();
    for started in [false, true] {
        let script = Script { hold: AtomicUsize::new(1), ..Script::default() };
        let mut process = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let mut play = Play::start_as(ServerProcess::of(&process), script, &Options::default());
        let token = play.run(&handle(&[]));
        play.until(|play| play.script.held.lock().expect("held").len() == 1);
        let held = play.script.held.lock().expect("held").pop().expect("held");
        if started {
            say(&held, &event(launch_event::Kind::Started(protocol::Started { pid: 7 })), &[]);
        }
        process.kill().expect("killed");
        let zombie = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
        let pid = nix::unistd::Pid::from_raw(process.id().cast_signed());
        nix::sys::wait::waitid(nix::sys::wait::Id::Pid(pid), zombie).expect("it is dead");
        drop(held);
        play.until_idle();
        let Event::Lost { failure, .. } = play.end_of(token) else { panic!("{:?}", play.events) };
        assert_eq!(failure.code, Code::ForkServer);
        assert!(play.events.iter().any(|event| matches!(event, Event::ServerLost(_))));
        process.wait().expect("reaped");
    }
}

#[test]
fn a_nest_that_vanishes_is_a_death_or_a_failure() {
    let _alone = alone();
    let script = Script { hold: AtomicUsize::new(1), ..Script::default() };
    let mut play = Play::start(script, &Options::default());
    let policy = handle(&[]);
    let token = play.run(&policy);
    play.until(|play| play.script.held.lock().expect("held").len() == 1);
    let held = play.script.held.lock().expect("held").pop().expect("held");
    say(&held, &event(launch_event::Kind::Started(protocol::Started { pid: 7 })), &[]);
    drop(held);
    play.until_idle();
    let Event::Ended { ended, .. } = play.end_of(token) else { panic!("{:?}", play.events) };
    assert_eq!(ended.ending, Ending::Signaled(libc::SIGKILL));
    play.script.hold.store(1, Ordering::SeqCst);
    let token = play.run(&policy);
    play.until(|play| play.script.held.lock().expect("held").len() == 1);
    play.script.held.lock().expect("held").clear();
    play.until_idle();
    assert!(matches!(play.end_of(token), Event::Failed { .. }), "the program never ran");
}

/// The program's pid comes with its start, or with its end if that was all there was to say; not with both.
#[test]
fn an_end_names_the_program_that_nobody_named() {
    let _alone = alone();
    let named = protocol::Ended { status: 3, named: true, ..protocol::Ended::default() };
    for started in [false, true] {
        let script = Script { hold: AtomicUsize::new(1), ..Script::default() };
        let mut play = Play::start(script, &Options::default());
        let token = play.run(&handle(&[]));
        play.until(|play| play.script.held.lock().expect("held").len() == 1);
        let held = play.script.held.lock().expect("held").pop().expect("held");
        if started {
            say(&held, &event(launch_event::Kind::Started(protocol::Started { pid: 7 })), &[]);
        }
        say(&held, &event(launch_event::Kind::Ended(named.clone())), &[]);
        play.until_idle();
        match play.end_of(token) {
            Event::Ended { ended, .. } if !started => assert_eq!(ended.pid, std::process::id() as i32),
            Event::Failed { .. } if started => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn bad_packets_fail_their_launch_and_leak_no_fd() {
    let _alone = alone();
    let script = Script { surplus_fds: AtomicUsize::new(1), ..Script::default() };
    let mut play = Play::start(script, &Options { network_pool: 0, ..Options::default() });
    let policy = handle(&[]);
    let warm = play.run(&policy);
    play.until_idle();
    assert!(matches!(play.end_of(warm), Event::Failed { .. }));
    thread::sleep(Duration::from_millis(50));
    let before = open_fds();
    for _ in 0..20 {
        play.script.surplus_fds.store(1, Ordering::SeqCst);
        let surplus = play.run(&policy);
        play.until_idle();
        play.script.garbage.store(1, Ordering::SeqCst);
        let garbage = play.run(&policy);
        play.until_idle();
        for token in [surplus, garbage] {
            let Event::Failed { failure, .. } = play.end_of(token) else {
                panic!("{:?}", play.end_of(token))
            };
            assert_eq!(failure.errno, nestbox_sys::Errno::EBADMSG);
        }
    }
    // The played server's threads close theirs a moment later.
    let start = Instant::now();
    while open_fds() > before && start.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(open_fds() <= before, "{} fds became {}", before, open_fds());
    let good = play.run(&policy);
    play.until_idle();
    assert!(matches!(play.end_of(good), Event::Ended { .. }));
}

#[test]
fn killing_before_and_after_it_was_sent() {
    let _alone = alone();
    let mut play = Play::start(Script::default(), &Options::default());
    *play.script.delay.lock().expect("delay") = Duration::from_millis(30);
    let policy = handle(&[]);
    let early = play.run(&policy);
    assert!(play.client.kill(early, libc::SIGKILL));
    assert!(!play.client.kill(early, libc::SIGKILL), "it is over");
    let mut waiting = request(Some(&policy));
    waiting.args.push(b"wait".to_vec().into());
    let late = play.client.launch(waiting).expect("taken").token;
    play.until(|play| {
        play.events.iter().any(|event| matches!(event, Event::Started { token, .. } if *token == late))
    });
    assert!(play.client.kill(late, libc::SIGKILL));
    play.until_idle();
    for token in [early, late] {
        let Event::Ended { ended, .. } = play.end_of(token) else { panic!("{:?}", play.events) };
        assert!(ended.killed_by_host);
        assert_eq!(ended.ending, Ending::Signaled(libc::SIGKILL));
    }
}

#[test]
fn too_much_output_kills() {
    let _alone = alone();
    let mut play = Play::start(Script::default(), &Options::default());
    let mut request = request(None);
    request.args.push(b"wait".to_vec().into());
    request.fds.output_limit = Some(2);
    let token = play.client.launch(request).expect("taken").token;
    play.until_idle();
    let Event::Ended { ended, .. } = play.end_of(token) else { panic!("{:?}", play.events) };
    assert_eq!((ended.limit, ended.stdout.as_deref()), (Some(Limit::Output), Some(&b"ou"[..])));
    assert!(!ended.killed_by_host, "the caller did not ask for it");
}

#[test]
fn networks_come_from_the_pool_and_go_back() {
    let _alone = alone();
    let mut play = Play::start(Script::default(), &Options { network_pool: 2, ..Options::default() });
    let alone = handle(&[("network", "\"none\"")]);
    // The first launches may be faster than the keeper, and checks wait until half of the pool is out.
    let mut from_pool = 0;
    for _ in 0..200 {
        play.run(&alone);
        play.until_idle();
        let had_one = play.script.roles.lock().expect("roles").contains(&FdRole::NetworkNamespace);
        from_pool += usize::from(had_one);
        if from_pool > 4 && play.script.checks.load(Ordering::SeqCst) > 1 {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert!(from_pool > 4 && play.script.checks.load(Ordering::SeqCst) > 1, "{from_pool} of 200");
    let shared = handle(&[("network", "\"shared-loopback\"")]);
    let token = play.run(&shared);
    play.until_idle();
    assert!(matches!(play.end_of(token), Event::Ended { .. }));
    assert!(play.script.roles.lock().expect("roles").contains(&FdRole::NetworkNamespace));
    // Making the shared one sent the checks that were due.
    thread::sleep(Duration::from_millis(50));
    let checks = play.script.checks.load(Ordering::SeqCst);
    play.run(&shared);
    play.until_idle();
    thread::sleep(Duration::from_millis(50));
    assert_eq!(play.script.checks.load(Ordering::SeqCst), checks, "the shared one is not of the pool");
}

#[test]
fn binds_are_opened_for_each_launch() {
    let _alone = alone();
    let mut play = Play::start(Script::default(), &Options::default());
    let mounts = r#"[{"type": "tmpfs", "path": "/tmp", "size": null, "inodes": null, "mode": 511},
        {"type": "bind", "source": "/usr", "path": "/tmp/usr", "writable": false, "exec": true, "optional": false}]"#;
    let policy = handle(&[("mounts", mounts)]);
    let token = play.run(&policy);
    play.until_idle();
    assert!(matches!(play.end_of(token), Event::Ended { .. }), "{:?}", play.events);
    assert!(play.script.roles.lock().expect("roles").contains(&FdRole::Bind));
    let mut undeclared = request(Some(&policy));
    undeclared.binds = vec![BindRequest { path: "/nowhere".into(), source: "/usr".into() }];
    assert_eq!(play.client.launch(undeclared).expect_err("no mount point").code, Code::Request);
}

#[test]
fn after_a_mounter_died_the_next_launch_works() {
    let _alone = alone();
    let script = Script { mounters_die: AtomicUsize::new(1), ..Script::default() };
    let mut play = Play::start(script, &Options::default());
    let mounts = r#"[{"type": "tmpfs", "path": "/tmp", "size": null, "inodes": null, "mode": 511},
        {"type": "bind", "source": "/usr", "path": "/tmp/usr", "writable": false, "exec": true, "optional": false}]"#;
    let policy = handle(&[("mounts", mounts)]);
    let first = play.run(&policy);
    play.until_idle();
    assert!(matches!(play.end_of(first), Event::Failed { .. }), "{:?}", play.events);
    let second = play.run(&policy);
    play.until_idle();
    assert!(matches!(play.end_of(second), Event::Ended { .. }), "{:?}", play.events);
    assert_eq!(play.script.initials.load(Ordering::SeqCst), 2, "nothing more is built in the old namespaces");
}

#[test]
fn after_a_keeper_died_the_next_launch_works() {
    let _alone = alone();
    let script = Script { keepers_die: AtomicUsize::new(1), ..Script::default() };
    let mut play = Play::start(script, &Options::default());
    let policy = handle(&[("network", "\"shared-loopback\"")]);
    let first = play.run(&policy);
    play.until_idle();
    assert!(matches!(play.end_of(first), Event::Failed { .. }), "{:?}", play.events);
    let second = play.run(&policy);
    play.until_idle();
    assert!(matches!(play.end_of(second), Event::Ended { .. }), "{:?}", play.events);
}

#[test]
fn closing_loses_what_is_in_flight_and_leaks_nothing() {
    let _alone = alone();
    let before = open_fds();
    for _ in 0..5 {
        let script = Script { hold: AtomicUsize::new(3), ..Script::default() };
        let mut play = Play::start(script, &Options::default());
        let policy = handle(&[]);
        let mut request = request(Some(&policy));
        request.outputs = vec![OutputRequest { path: "/tmp/o".into(), max_bytes: 1, to: None }];
        let tokens = [play.client.launch(request).expect("taken").token, play.run(&policy)];
        play.until(|play| play.script.held.lock().expect("held").len() == 2);
        play.client.close();
        play.client.close();
        play.until_idle();
        for token in tokens {
            assert!(matches!(play.end_of(token), Event::Lost { .. }));
        }
        assert!(!play.events.iter().any(|event| matches!(event, Event::ServerLost(_))), "it was asked for");
    }
    let start = Instant::now();
    while open_fds() > before && start.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(open_fds() <= before, "{} fds became {}", before, open_fds());
}

#[test]
fn a_server_that_never_comes_is_lost() {
    let _alone = alone();
    let (ours, theirs) = socket::seqpacket_pair().expect("pair");
    drop(theirs);
    let mut client =
        Client::over(ours, &Options::default(), || Arc::new(ServerProcess::default())).expect("starts");
    let _ = client.launch(request(None));
    let mut events = Vec::new();
    client.dispatch(&mut events);
    assert!(events.iter().any(|event| matches!(event, Event::ServerLost(_))), "{events:?}");
    assert_eq!(client.in_flight(), 0);
}

#[test]
fn pipes_of_the_host_are_not_inherited() {
    let _alone = alone();
    let mut play = Play::start(Script::default(), &Options::default());
    let mut request = request(None);
    request.fds.stdio = [Stdio::Stream, Stdio::Stream, Stdio::Stream];
    let launched = play.client.launch(request).expect("taken");
    for fd in [&launched.returned.stdin, &launched.returned.stdout, &launched.returned.stderr] {
        let fd = fd.as_ref().expect("returned");
        let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).expect("fcntl");
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        let status = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL).expect("fcntl");
        assert!(OFlag::from_bits_truncate(status).contains(OFlag::O_NONBLOCK));
    }
    play.until_idle();
}
