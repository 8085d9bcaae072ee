//! Init: pid 1 of a nest. Prepares it, starts the sandboxee, enforces the clock, reaps, and reports when nothing runs any
//! more. Also the supervisor of a launch without a pid namespace, which does the same for the children it can find.
//!
//! Promises: it reports on the launch socket and nowhere else; after `Ended` nothing of the launch runs, because it kills
//! and reaps everybody first; the end of the socket (the host has gone, or let go) ends the nest; it has no signal
//! handlers, no stdio, no fd of the host but its socket. Runs in the process that [`crate::template`] or
//! [`crate::request`] cloned.

use std::cell::Cell;
use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nestbox_protocol::{Answer, LaunchControl, LimitKind, Network, SetLimits, Step, frame, launch_control};
use nestbox_sys::process::monotonic_ns;
use nestbox_sys::{Errno, packet, process};
use prost::Message;

use crate::allowance::Allowance;
use crate::boot::CONTROL_FD;
use crate::capabilities::{self, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE, CAP_SYS_RESOURCE};
use crate::census::{self, Census};
use crate::child::{self, Child, Outcome, Task};
use crate::crash::{self, Tracer};
use crate::fault::{At, Fault};
use crate::guard;
use crate::landlock::{Rules, Ruleset};
use crate::launch::Prepared;
use crate::limits::Changes;
use crate::listener::Handover;
use crate::nest::{self, NestMounts};
use crate::notify::{Finding, Supervisor};
use crate::outputs::Outputs;
use crate::parked::Parking;
use crate::remains;
use crate::report::{self, Ending, Marks};
use crate::template::PROC_FD;

/// Everything about one nest that init needs. All of it was made before the clone.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
pub(crate) struct Nest<'a> {
    pub(crate) launch: &'a Prepared<'a>,
    pub(crate) mounts: Option<&'a NestMounts<'a>>,
    pub(crate) hostname: Option<&'a str>,
    /// The sandboxee's syscall filter.
    pub(crate) filter: &'a [u8],
    /// Init's own.
    pub(crate) guard: Option<&'a [u8]>,
    /// What Landlock adds, where the kernel has it.
    pub(crate) rules: Option<&'a Rules>,
    pub(crate) stack: *mut c_void,
    /// This process is pid 1: everything it can see is the nest's.
    pub(crate) pid_namespace: bool,
    pub(crate) sandboxed: bool,
    pub(crate) speculation: bool,
    pub(crate) core_scheduling: bool,
    /// The nest is to be warm: `launch` says what it is made for, and the one that it runs comes later.
    pub(crate) park: Option<Parking>,
    /// `Plan.launch_cookie`.
    pub(crate) cookie: u64,
    /// `Plan.filter_listens`.
    pub(crate) listens: bool,
    /// See [`crate::memory::may_read`].
    pub(crate) reads: bool,
    /// [`room`].
    pub(crate) room: &'a Cell<Vec<OwnedFd>>,
}

/// Room for what a packet may bring, made before the clone: the allocator tidies itself up for as much, and would copy ten of
/// its pages in init, 50 µs.
pub(crate) fn room() -> Cell<Vec<OwnedFd>> {
    Cell::new(Vec::with_capacity(frame::FDS_MAX))
}

/// The sandboxee's pid in its nest.
const SANDBOXEE: i32 = 2;

/// When init settles down ([`settle`]), in nanoseconds after the exec. Reporting the start wakes the host, and installing a
/// filter has the kernel compile it and synchronise its processors: 60 µs that a program which is over sooner would wait
/// for. Init is as small a target then as later: it reads nothing that the program wrote but `/proc/PID/stat`, no earlier
/// than the CPU time is looked at.
const SETTLE_AFTER: u64 = 1_000_000;

/// How the sandboxee ended, as waitid(2) tells it.
#[derive(Clone, Copy)]
struct Ended {
    signaled: bool,
    status: i32,
}

/// Why the nest is being ended.
#[derive(Clone, Copy, Default)]
struct Verdict {
    limit: LimitKind,
    killed_by_host: bool,
    violated: bool,
}

/// Prepares the nest, runs the program, reports. `socket` is the launch socket, wherever it was received.
pub(crate) fn run(nest: &Nest<'_>, socket: RawFd, mut marks: Marks) -> ! {
    // The socket takes the place of the template's, which an init must not hold.
    // SAFETY: numbers only.
    let moved = unsafe { nestbox_sys::syscall!(libc::SYS_dup3, socket, CONTROL_FD, libc::O_CLOEXEC) };
    let number = if moved.is_ok() { CONTROL_FD } else { socket };
    // SAFETY: one of both is open, for as long as this process lives.
    let socket = unsafe { BorrowedFd::borrow_raw(number) };
    if let Err(fault) = moved.at(Step::PrepareInit, "dup3", b"") {
        report::launch_failed(socket, &fault);
        crate::exit(1);
    }
    match start(nest, socket, &mut marks) {
        Ok(Some(running)) => supervise(nest, socket, running, &marks),
        // Its host needs this nest no longer, or has gone.
        Ok(None) => crate::exit(0),
        Err(fault) => {
            if nest.pid_namespace {
                // A launch child that failed is dead; a program that runs must not without init.
                kill_all(nest, 0, &mut None, None);
            }
            report::launch_failed(socket, &fault);
            crate::exit(1)
        }
    }
}

/// A program that runs.
struct Running<'a> {
    launch: &'a Prepared<'a>,
    pid: i32,
    exec_ns: u64,
    /// Tells of children that ended.
    signals: OwnedFd,
    /// The host has not heard yet that it runs.
    unreported: bool,
    /// Init has not given up its capabilities yet.
    capable: bool,
    /// Deals with the calls that the filter stops.
    supervisor: Option<Box<Supervisor>>,
    /// It is to be seen crash.
    tracer: Option<Tracer>,
    /// The processes of the nest.
    census: Census,
    allowance: Allowance,
    changes: Changes,
    /// Room for what a packet may bring.
    fds: Vec<OwnedFd>,
}

/// From the fresh namespaces to the running program; `None` if it was a warm nest's that nobody needs.
fn start<'a>(
    nest: &'a Nest<'a>,
    socket: BorrowedFd<'_>,
    marks: &mut Marks,
) -> Result<Option<Running<'a>>, Fault<'a>> {
    if nest.launch.report_init {
        report::placed(socket);
    }
    let ruleset = nest.rules.map(Rules::create).transpose()?;
    let signals = watch_signals(nest.pid_namespace)?;
    marks.add(Step::PrepareInit);
    if nest.sandboxed {
        nest::set_up(nest.mounts, nest.launch, nest.hostname, marks)?;
    }
    marks.add(Step::SetHostname);
    if let (Some(rules), Some(ruleset)) = (nest.rules, ruleset) {
        let queues = rules.fill(ruleset)?;
        if nest.park.is_none() {
            // A launch waits: it is closed with the other fds, beside the program.
            std::mem::forget(queues);
        }
        ruleset.add_binds(nest.launch)?;
        marks.add(Step::MakeRuleset);
    }
    let task = nest.park.map_or(Task::Launch(nest.launch), Task::Park);
    if nest.park.is_some() {
        touch_stack();
    }
    let mut child = start_child(nest, task, ruleset, None, marks)?;
    let mut parked = nest.park.is_some();
    if matches!(child.outcome, Outcome::MadeWay) {
        // Its pid is the next one's: who looks for the program finds it where it always is.
        reap(true, 0, &mut None, None);
        let Some(launch) = receive_launch(nest, socket, marks)? else { return Ok(None) };
        nest::add(launch, marks)?;
        if let Some(ruleset) = ruleset {
            ruleset.add_binds(launch)?;
        }
        child = start_child(nest, Task::Launch(launch), ruleset, Some(SANDBOXEE), marks)?;
        parked = false;
    }
    let Started { pid, exec_ns, launch, outcome, handover } = child;
    let (Outcome::Executed, Some(launch)) = (outcome, launch) else { return Ok(None) };
    marks.add_at(Step::Exec, exec_ns);
    // A parked one's pid is known to the host.
    let unreported = if launch.report_start {
        report::started(socket, pid, nest.pid_namespace);
        false
    } else {
        !parked
    };
    let listener = handover.map(|handover| handover.receive_as(signals.as_raw_fd() + 1)).transpose()?;
    let census = close_fds(nest, launch, signals.as_raw_fd())?;
    let allowance = Allowance::new(launch, exec_ns);
    let proc = nest.pid_namespace.then_some(PROC_FD);
    let supervise = |listener| Box::new(Supervisor::new(listener, launch.supervision, proc, nest.reads));
    let supervisor = listener.map(supervise);
    let tracer = if launch.crash_report { Tracer::attach(pid, nest.reads)? } else { None };
    let capable = nest.guard.is_some();
    let changes = Changes::new(nest.pid_namespace && tracer.is_none());
    Ok(Some(Running {
        launch,
        pid,
        exec_ns,
        signals,
        unreported,
        capable,
        supervisor,
        tracer,
        census,
        allowance,
        changes,
        fds: nest.room.take(),
    }))
}

/// Has the kernel give this process the stack that it will use: the frames of its report are large, and each page that they
/// reach for the first time costs a launch 3 µs.
#[inline(never)]
#[expect(clippy::large_stack_arrays, reason = "the stack is what this is about")]
fn touch_stack() {
    const DEPTH: usize = 32 * 1024;
    std::hint::black_box([0_u8; DEPTH]);
}

/// A launch child that executed or gave up.
struct Started<'a> {
    pid: i32,
    exec_ns: u64,
    launch: Option<&'a Prepared<'a>>,
    outcome: Outcome<'a>,
    /// Where its listener is.
    handover: Option<Handover>,
}

/// Starts the launch child and waits until it has executed or given up.
fn start_child<'a>(
    nest: &'a Nest<'a>,
    task: Task<'a>,
    ruleset: Option<Ruleset>,
    pid: Option<i32>,
    marks: &mut Marks,
) -> Result<Started<'a>, Fault<'a>> {
    let handover = nest.listens.then(Handover::new).transpose()?;
    let mut child = Child {
        task,
        ids: nest.launch.ids,
        filter: nest.filter,
        cookie: nest.cookie,
        handover: handover.as_ref().map(Handover::to_init),
        ruleset,
        proc: PROC_FD,
        sandboxed: nest.sandboxed,
        speculation: nest.speculation,
        core_scheduling: nest.core_scheduling,
        die_with_parent: !nest.pid_namespace,
        marks: *marks,
        launch: None,
        outcome: Outcome::Executed,
    };
    // SAFETY: the stack is this process's copy, used by nobody else.
    let pid = unsafe { child::start(&mut child, nest.stack, pid) }.at(Step::CloneSandboxee, "clone", b"")?;
    let exec_ns = monotonic_ns();
    *marks = child.marks;
    match child.outcome {
        Outcome::Failed(fault) => Err(fault),
        outcome => Ok(Started { pid, exec_ns, launch: child.launch, outcome, handover }),
    }
}

/// The launch of a warm nest that has work for init. `None`: the host has gone.
fn receive_launch(
    nest: &Nest<'_>,
    socket: BorrowedFd<'_>,
    marks: &mut Marks,
) -> Result<Option<&'static Prepared<'static>>, Fault<'static>> {
    let mut buffer = vec![0; frame::PACKET_MAX];
    let mut fds = Vec::new();
    let bytes = match packet::receive(socket, &mut buffer, &mut fds, 0) {
        Ok(packet) if packet.bytes.is_empty() => return Ok(None),
        Ok(packet) => packet.bytes,
        Err(errno) => return Err(Fault::new(Step::ReceiveRequest, errno, "recvmsg", b"")),
    };
    let control = packet::read_message::<LaunchControl>(bytes, &mut fds)
        .map_err(|error| report::unreadable(error.errno()))?;
    let Some(launch_control::Kind::Launch(launch)) = control.kind else { return Ok(None) };
    // This process exists for this launch: both are leaked, and so are the fds, which [`close_fds`] ends.
    let launch = Box::leak(Box::new(launch));
    let network = nest.park.map_or(Network::Unspecified, |parking| parking.network);
    let prepared = Prepared::new(launch, &fds, network, nest.launch.ids)?;
    std::mem::forget(fds);
    marks.add(Step::DecodeRequest);
    Ok(Some(Box::leak(Box::new(prepared))))
}

/// What tells a supervisor that the fork server is dead.
const PARENT_DIED: i32 = libc::SIGTERM;

/// A signalfd for SIGCHLD. The template ignores it, and then children would vanish unseen.
///
/// Without a pid namespace it also tells of the parent's death, which must not be this process's own at once: a program
/// that gains capabilities by its exec (that of a root host does) loses its death signal there, and so has to be killed.
fn watch_signals(pid_namespace: bool) -> Result<OwnedFd, Fault<'static>> {
    let step = Step::PrepareInit;
    child::set_default(libc::SIGCHLD).at(step, "rt_sigaction", b"SIGCHLD")?;
    let mut mask = 1_u64 << (libc::SIGCHLD - 1);
    if !pid_namespace {
        // Until here it was SIGKILL: a parent that died before has taken this process along.
        process::prctl(libc::PR_SET_PDEATHSIG, PARENT_DIED as usize).at(step, "prctl", b"")?;
        mask |= 1_u64 << (PARENT_DIED - 1);
    }
    // SAFETY: a mask of 8 bytes of ours.
    let fd = unsafe {
        nestbox_sys::syscall!(
            libc::SYS_signalfd4,
            -1_i32,
            &raw const mask,
            8,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK
        )
    }
    .at(step, "signalfd4", b"SIGCHLD")?;
    // SAFETY: just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Closes every fd but init's own three, the listener, which is next to the last of them, and what the census has.
fn close_fds(nest: &Nest<'_>, launch: &Prepared<'_>, signals: RawFd) -> Result<Census, Fault<'static>> {
    let step = Step::GuardInit;
    let spare = signals + 2;
    let (census, last) = take_proc(nest, launch, spare).at(step, "openat2", b"/proc")?;
    let after_proc = PROC_FD as u32 + 1;
    let close = |first: RawFd, last: u32| {
        if first as u32 > last { Ok(()) } else { process::close_range(first as u32, last, 0) }
    };
    close(after_proc as RawFd, signals as u32 - 1)
        .and_then(|()| if nest.listens { Ok(()) } else { close(signals + 1, signals as u32 + 1) })
        .and_then(|()| close(last + 1, u32::MAX))
        .at(step, "close_range", b"")?;
    Ok(census)
}

/// What follows when the program has run for [`SETTLE_AFTER`]: the host is told (which takes `CAP_SYS_ADMIN`: init speaks in
/// the sandboxee's name), and init gives up what it has no more use for.
fn settle(nest: &Nest<'_>, socket: BorrowedFd<'_>, running: &mut Running<'_>) -> Result<(), Fault<'static>> {
    report_start(nest, socket, running);
    give_up_capabilities(running)?;
    let Some(program) = nest.guard else { return Ok(()) };
    let tracing = running.tracer.is_some().then(|| guard::program(nest.listens, crash::CALLS));
    process::install_filter(tracing.as_deref().unwrap_or(program)).at(Step::GuardInit, "seccomp", b"init")
}

/// All but those to kill, to read outputs as the sandboxee and, of one with another id, to limit it and to read what its
/// stopped calls point to, or what is traced. A supervisor of a launch without namespaces has none to give up.
fn give_up_capabilities(running: &mut Running<'_>) -> Result<(), Fault<'static>> {
    if std::mem::take(&mut running.capable) {
        let privileged = running.launch.ids.privileged;
        let reads = running.supervisor.is_some() && privileged || running.tracer.is_some();
        let limits = if privileged { CAP_SYS_RESOURCE } else { 0 };
        let keep = CAP_KILL | CAP_SETUID | CAP_SETGID | limits | if reads { CAP_SYS_PTRACE } else { 0 };
        capabilities::keep_only(keep).at(Step::GuardInit, "capset", b"")?;
    }
    Ok(())
}

/// The proc that was needed for the id maps shows the template's other nests; from now on it is the nest's own, if CPU
/// time has to be summed, threads told from processes or a crash to be seen, or none. Where the nest has none, init keeps
/// the template's as `spare`, to find the nest's processes in, and a crash is seen through the program's own directory there.
/// Answers the last fd that is to stay.
fn take_proc(nest: &Nest<'_>, launch: &Prepared<'_>, spare: RawFd) -> Result<(Census, RawFd), Errno> {
    let forget = || process::close_range(PROC_FD as u32, PROC_FD as u32, 0);
    let move_to = |from: RawFd, to: RawFd| {
        // SAFETY: numbers only.
        let moved = unsafe { nestbox_sys::syscall!(libc::SYS_dup3, from, to, libc::O_CLOEXEC) };
        // SAFETY: it was just put there, and nobody else owns it.
        moved.map(|_| unsafe { OwnedFd::from_raw_fd(to) })
    };
    if !nest.pid_namespace {
        forget()?;
        return Ok((Census::of_children(), spare - 1));
    }
    let wanted = launch.cpu_us.is_some() || nest.listens || launch.crash_report;
    if !wanted && nest.mounts.is_some_and(NestMounts::has_proc) {
        forget()?;
        return Ok((Census::of_nest(), spare - 1));
    }
    if let Ok(own) = census::open_own(true) {
        return Ok((Census::of_own_proc(move_to(own.as_raw_fd(), PROC_FD)?), spare - 1));
    }
    let outer = move_to(PROC_FD, spare)?;
    match if launch.crash_report { remains::only_child(PROC_FD) } else { None } {
        // Init's own by number.
        Some(program) => std::mem::forget(move_to(program.as_raw_fd(), PROC_FD)?),
        None => forget()?,
    }
    Ok((Census::of_outer_proc(outer), spare))
}

/// Waits for the program, the host and the clock.
fn supervise(nest: &Nest<'_>, socket: BorrowedFd<'_>, mut running: Running<'_>, marks: &Marks) -> ! {
    let mut ended = None;
    let mut fds = std::mem::take(&mut running.fds);
    let mut settle_at = Some(running.exec_ns + SETTLE_AFTER);
    let verdict = loop {
        let busy = running.tracer.as_ref().is_some_and(Tracer::is_busy);
        let due = [settle_at, running.allowance.next(), running.changes.next(), busy.then_some(0)];
        let until = due.into_iter().flatten().min();
        let Ready { message, child, room, call } = wait(socket, &running, until);
        if (room || call != 0) && deal(nest, socket, &mut running, room, call) == Finding::Violation {
            break Verdict { violated: true, ..Verdict::default() };
        }
        if child || busy {
            if next_signal(running.signals.as_fd()) == Some(PARENT_DIED) {
                kill_all(nest, running.pid, &mut ended, running.tracer.as_mut());
                crate::exit(0);
            }
            // While it can still be named: a reaped process has no pid.
            report_start(nest, socket, &mut running);
            reap(false, running.pid, &mut ended, running.tracer.as_mut());
            if ended.is_some() {
                break Verdict::default();
            }
        }
        if message {
            match receive(socket, &mut fds) {
                Control::Nothing => {}
                Control::Signal(libc::SIGKILL) => {
                    break Verdict { killed_by_host: true, ..Verdict::default() };
                }
                Control::Signal(signal) => {
                    // SAFETY: numbers only; the program has not been reaped, so the pid is its own.
                    let _ = unsafe { nestbox_sys::syscall!(libc::SYS_kill, running.pid, signal) };
                }
                Control::Answer(answer, fd) => {
                    let pid = running.pid;
                    let decided = |supervisor: &mut Supervisor| {
                        supervisor.answer(answer, fd.as_ref().map(AsFd::as_fd), pid)
                    };
                    let finding = running.supervisor.as_deref_mut().map(decided);
                    if let (Some(supervisor), Some(tracer)) = (&running.supervisor, &mut running.tracer)
                        && !supervisor.reads
                    {
                        tracer.leave_memory();
                    }
                    if finding == Some(Finding::Violation) {
                        break Verdict { violated: true, ..Verdict::default() };
                    }
                }
                Control::SetLimits(wanted) => {
                    let Running { allowance, census, changes, .. } = &mut running;
                    report::limits_set(socket, changes.apply(wanted, allowance, census));
                }
                Control::HostGone => {
                    kill_all(nest, running.pid, &mut ended, running.tracer.as_mut());
                    crate::exit(0);
                }
            }
        }
        let now = monotonic_ns();
        if settle_at.take_if(|at| now >= *at).is_some()
            && let Err(fault) = settle(nest, socket, &mut running)
        {
            kill_all(nest, running.pid, &mut ended, running.tracer.as_mut());
            report::launch_failed(socket, &fault);
            crate::exit(1);
        }
        running.changes.tend(now, &mut running.census);
        let limit = running.allowance.over(now, &mut running.census);
        if limit != LimitKind::None {
            break Verdict { limit, ..Verdict::default() };
        }
    };
    report_start(nest, socket, &mut running);
    finish(nest, socket, running, verdict, ended, marks)
}

/// Tells the host that the program runs, unless it knows.
fn report_start(nest: &Nest<'_>, socket: BorrowedFd<'_>, running: &mut Running<'_>) {
    if std::mem::take(&mut running.unreported) {
        report::started(socket, running.pid, nest.pid_namespace);
    }
}

/// What there is to do.
struct Ready {
    message: bool,
    child: bool,
    /// On the socket, for what found none.
    room: bool,
    /// What poll(2) says of the listener.
    call: i16,
}

/// Waits until `until` for a message, a child or a call that the filter stopped.
fn wait(socket: BorrowedFd<'_>, running: &Running<'_>, until: Option<u64>) -> Ready {
    let supervisor = running.supervisor.as_deref();
    let waiting = supervisor.is_some_and(Supervisor::is_waiting_for_room);
    let poll = |fd, events| libc::pollfd { fd, events, revents: 0 };
    let mut fds = [
        poll(socket.as_raw_fd(), libc::POLLIN | if waiting { libc::POLLOUT } else { 0 }),
        poll(running.signals.as_raw_fd(), libc::POLLIN),
        poll(supervisor.map_or(-1, Supervisor::poll_fd), libc::POLLIN),
    ];
    let timeout = until.map(|until| {
        let left = until.saturating_sub(monotonic_ns());
        libc::timespec { tv_sec: (left / 1_000_000_000) as _, tv_nsec: (left % 1_000_000_000) as _ }
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: three pollfds and a timespec of ours; no signal mask.
    let _ = unsafe { nestbox_sys::syscall!(libc::SYS_ppoll, fds.as_mut_ptr(), fds.len(), timeout, 0, 0) };
    let [message, child, call] = fds.map(|fd| fd.revents);
    Ready {
        message: message & !libc::POLLOUT != 0,
        child: child != 0,
        room: message & libc::POLLOUT != 0,
        call,
    }
}

/// Has the supervisor deal with what [`wait`] found for it.
fn deal(
    nest: &Nest<'_>,
    socket: BorrowedFd<'_>,
    running: &mut Running<'_>,
    room: bool,
    call: i16,
) -> Finding {
    // Whoever is asked about a program has heard of it.
    report_start(nest, socket, running);
    let pid = running.pid;
    let Some(supervisor) = &mut running.supervisor else { return Finding::Nothing };
    if room {
        supervisor.has_room(socket, pid);
    }
    if call == 0 { Finding::Nothing } else { supervisor.notified(socket, pid, call) }
}

/// Takes one signal off the signalfd. The number comes first in a `struct signalfd_siginfo`.
fn next_signal(signals: BorrowedFd<'_>) -> Option<i32> {
    let mut info = [0_u32; 32];
    // SAFETY: a buffer of ours; the fd is non-blocking.
    let read = unsafe {
        nestbox_sys::syscall!(
            libc::SYS_read,
            signals.as_raw_fd(),
            info.as_mut_ptr(),
            std::mem::size_of_val(&info)
        )
    };
    read.ok().map(|_| info[0] as i32)
}

/// What the host said.
enum Control {
    Nothing,
    Signal(i32),
    Answer(Answer, Option<OwnedFd>),
    SetLimits(SetLimits),
    HostGone,
}

/// `fds` has room for what a packet may bring: under its own filter init can't have more memory.
fn receive(socket: BorrowedFd<'_>, fds: &mut Vec<OwnedFd>) -> Control {
    let mut buffer = [0; 256];
    fds.clear();
    let body = match packet::receive(socket, &mut buffer, fds, libc::MSG_DONTWAIT) {
        Ok(packet) if packet.bytes.is_empty() => return Control::HostGone,
        Ok(packet) => match frame::parse(packet.bytes) {
            Ok(frame::Kind::Inline(body)) => body,
            _ => return Control::Nothing,
        },
        Err(Errno::ECONNRESET | Errno::EPIPE) => return Control::HostGone,
        Err(_) => return Control::Nothing,
    };
    match LaunchControl::decode(body).ok().and_then(|control| control.kind) {
        Some(launch_control::Kind::Kill(kill)) if (1..=64).contains(&kill.signal) => {
            Control::Signal(kill.signal)
        }
        Some(launch_control::Kind::Answer(answer)) => Control::Answer(answer, fds.pop()),
        Some(launch_control::Kind::SetLimits(wanted)) => Control::SetLimits(wanted),
        _ => Control::Nothing,
    }
}

/// Reaps what has ended (or, if `block`, everybody), noting how `main` ended. True if nobody is left.
fn reap(block: bool, main: i32, ended: &mut Option<Ended>, mut tracer: Option<&mut Tracer>) -> bool {
    let stops = if tracer.is_some() { libc::WSTOPPED } else { 0 };
    let options = libc::WEXITED | libc::__WALL | stops | if block { 0 } else { libc::WNOHANG };
    let mut quota = tracer.as_deref_mut().map_or(0, Tracer::quota);
    loop {
        // SAFETY: all-zero is a valid siginfo.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: a struct of ours.
        let waited =
            unsafe { nestbox_sys::syscall!(libc::SYS_waitid, libc::P_ALL, 0, &raw mut info, options, 0) };
        match waited {
            Err(Errno::EINTR) => continue,
            Err(_) => return true,
            Ok(_) => {}
        }
        // SAFETY: waitid filled in a SIGCHLD siginfo, or left the zeroes.
        let pid = unsafe { info.si_pid() };
        if pid == 0 {
            return false;
        }
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        if let Some(tracer) = tracer.as_deref_mut()
            && matches!(info.si_code, libc::CLD_TRAPPED | libc::CLD_STOPPED)
        {
            tracer.stopped(pid, PROC_FD, status);
            quota = quota.saturating_sub(1);
            if quota == 0 && !block {
                tracer.interrupted();
                return false;
            }
            continue;
        }
        if pid == main {
            *ended = Some(Ended { signaled: info.si_code != libc::CLD_EXITED, status });
        }
    }
}

/// Ends everything: kill, reap, until nobody is left.
fn kill_all(nest: &Nest<'_>, main: i32, ended: &mut Option<Ended>, mut tracer: Option<&mut Tracer>) {
    if let Some(tracer) = tracer.as_deref_mut() {
        tracer.give_up();
    }
    // Most programs leave nobody: then there is no child to wait for, and so nobody to kill.
    while !reap(false, main, ended, tracer.as_deref_mut()) {
        if nest.pid_namespace {
            // All but init itself; a process forked meanwhile has a killed parent and is reaped here: kill(2).
            // SAFETY: numbers only; in a pid namespace of ours -1 means nobody else's processes.
            let _ = unsafe { nestbox_sys::syscall!(libc::SYS_kill, -1_i32, libc::SIGKILL) };
            reap(true, main, ended, tracer);
            return;
        }
        kill_children();
        // SAFETY: all-zero is a valid siginfo.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WEXITED | libc::__WALL | libc::WNOWAIT;
        // SAFETY: a struct of ours.
        let _ = unsafe { nestbox_sys::syscall!(libc::SYS_waitid, libc::P_ALL, 0, &raw mut info, options, 0) };
    }
}

/// Kills this process's children, one generation at a time: their own become ours (`PR_SET_CHILD_SUBREAPER`).
fn kill_children() {
    // SAFETY: takes nothing.
    let own = unsafe { libc::getpid() };
    let children = std::fs::read_to_string(format!("/proc/self/task/{own}/children")).unwrap_or_default();
    for pid in children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()) {
        // SAFETY: numbers only; an unreaped child's pid is its own.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// Kills and reaps the rest, then says everything in one message.
fn finish(
    nest: &Nest<'_>,
    socket: BorrowedFd<'_>,
    mut running: Running<'_>,
    verdict: Verdict,
    mut ended: Option<Ended>,
    marks: &Marks,
) -> ! {
    if let (true, Some(tracer)) = (verdict.violated, &mut running.tracer) {
        tracer.condemn(running.supervisor.as_ref().map_or(0, |supervisor| supervisor.caller));
    }
    kill_all(nest, running.pid, &mut ended, running.tracer.as_mut());
    let ended_ns = monotonic_ns();
    let ended = ended.unwrap_or(Ended { signaled: true, status: libc::SIGKILL });
    let mut outputs = Outputs::new();
    let by_itself = verdict.limit == LimitKind::None && !verdict.killed_by_host;
    let crash = running.tracer.take().filter(|tracer| by_itself && tracer.has_captured());
    if !running.launch.outputs.is_empty() || crash.is_some() {
        // Opened with the sandboxee's rights and no more. Where that fails, nothing is opened.
        match give_up_capabilities(&mut running) {
            Ok(()) => outputs.open(running.launch, crash),
            Err(fault) => outputs.errnos.fill(fault.errno as i32),
        }
    }
    let limit = match verdict.limit {
        LimitKind::None if ended.signaled && ended.status == libc::SIGXFSZ => LimitKind::FileSize,
        LimitKind::None
            if ended.signaled && ended.status == libc::SIGXCPU && running.allowance.limits_cpu() =>
        {
            LimitKind::CpuTime
        }
        // The sum over a nest whose last process ended between two looks.
        LimitKind::None if running.allowance.is_spent() => LimitKind::CpuTime,
        limit => limit,
    };
    let (learned, violation) = running.supervisor.as_deref_mut().map_or((None, None), Supervisor::findings);
    report::ended(
        socket,
        &Ending {
            signaled: ended.signaled,
            status: ended.status,
            limit,
            killed_by_host: verdict.killed_by_host,
            disk_full: nest.mounts.is_some_and(NestMounts::is_full),
            usage: census::usage_of_reaped(),
            exec_ns: running.exec_ns,
            ended_ns,
            marks,
            output_errnos: &outputs.errnos[..running.launch.outputs.len()],
            output_fds: outputs.fds(),
            violated: verdict.violated,
            violation,
            learned,
            crash_fds: outputs.of_crash,
        },
    );
    wait_for_farewell(socket);
    crate::exit(0)
}

/// How long the host may take to let go, in nanoseconds.
const FAREWELL: i64 = 2_000_000;

/// Sleeps until the host has taken the result and closed its end. The kernel expects whoever writes to a socket to sleep
/// next, and so puts the reader that it wakes on the writer's processor: the result would wait there for 200 µs, as long as
/// it takes to free a mount and a pid namespace. sched_yield(2) does not help: it may come back at once.
fn wait_for_farewell(socket: BorrowedFd<'_>) {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
    let timeout = libc::timespec { tv_sec: 0, tv_nsec: FAREWELL };
    // SAFETY: a pollfd and a timespec of ours; no signal mask.
    let _ = unsafe { nestbox_sys::syscall!(libc::SYS_ppoll, &raw mut poll, 1, &raw const timeout, 0, 0) };
}
