//! The watch over a running program: waits for it, for the host and for the clock, and says at the end what became of it.
//!
//! Promises: after `Ended` nothing of the launch runs, because everybody is killed and reaped first; the end of the socket
//! ends the nest; a limit is kept whatever the program does. Called by [`crate::init`], at the end of its start.
//!
//! Most programs are over before there is anything but their end to deal with. So whatever deals with the rest is not inlined: its
//! buffers would be on the stack of every launch, a page fault for each 4 KiB of them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nestbox_protocol::{Answer, LaunchControl, LimitKind, SetLimits, Step, frame, launch_control};
use nestbox_sys::process::monotonic_ns;
use nestbox_sys::{Errno, packet, process};
use prost::Message;

use crate::allowance::Allowance;
use crate::capabilities::{
    self, CAP_DAC_READ_SEARCH, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE, CAP_SYS_RESOURCE,
};
use crate::census::{self, Census};
use crate::crash::{self, Tracer};
use crate::fault::{At, Fault};
use crate::guard;
use crate::init::Nest;
use crate::launch::Prepared;
use crate::limits::Changes;
use crate::nest::NestMounts;
use crate::notify::{Finding, Supervisor};
use crate::outputs::Outputs;
use crate::reap::{self, Ended, Left};
use crate::report::{self, Ending, Marks};
use crate::template::LOADAVG_FD;

/// When init settles down ([`settle`]), in nanoseconds after it has seen the exec. Reporting the start wakes the host, and installing a
/// filter has the kernel compile it and synchronise its processors: 60 µs that a program which is over sooner would wait
/// for. Init is as small a target then as later: it reads nothing that the program wrote but `/proc/PID/stat`, no earlier
/// than the CPU time is looked at.
const SETTLE_AFTER: u64 = 1_000_000;

/// Why the nest is being ended.
#[derive(Clone, Copy, Default)]
struct Verdict {
    limit: LimitKind,
    killed_by_host: bool,
    violated: bool,
}

/// A program that runs.
pub(crate) struct Running<'a> {
    pub(crate) launch: &'a Prepared<'a>,
    pub(crate) pid: i32,
    pub(crate) exec_ns: u64,
    /// Tells of children that ended.
    pub(crate) signals: OwnedFd,
    /// The host has not heard yet that it runs.
    pub(crate) unreported: bool,
    /// Init has not given up its capabilities yet.
    pub(crate) capable: bool,
    /// Deals with the calls that the filter stops.
    pub(crate) supervisor: Option<Box<Supervisor>>,
    /// It is to be seen crash.
    pub(crate) tracer: Option<Tracer>,
    /// The processes of the nest.
    pub(crate) census: Census,
    pub(crate) allowance: Allowance,
    pub(crate) changes: Changes,
    /// Room for what a packet may bring.
    pub(crate) fds: Vec<OwnedFd>,
}

impl Running<'_> {
    /// Whether there is a limit of the size of files.
    fn limits_file_size(&self) -> bool {
        let limits = |&(resource, value): &(u32, u64)| resource == libc::RLIMIT_FSIZE && value != u64::MAX;
        self.launch.rlimits.iter().any(limits) || self.changes.limits(libc::RLIMIT_FSIZE)
    }
}

/// What follows when the program has run for [`SETTLE_AFTER`]: the host is told (which takes `CAP_SYS_ADMIN`: init speaks in
/// the sandboxee's name), and init gives up what it has no more use for.
#[inline(never)]
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
        let traces = running.tracer.is_some();
        let reads = running.supervisor.is_some() && privileged || traces;
        let limits = if privileged { CAP_SYS_RESOURCE } else { 0 };
        // `/proc/PID/mem` is its owner's alone.
        let of_owner = if traces { CAP_DAC_READ_SEARCH } else { 0 };
        let reads = if reads { CAP_SYS_PTRACE } else { 0 };
        let keep = CAP_KILL | CAP_SETUID | CAP_SETGID | limits | reads | of_owner;
        capabilities::keep_only(keep).at(Step::GuardInit, "capset", b"")?;
    }
    Ok(())
}

/// Waits for the program, the host and the clock.
pub(crate) fn supervise(
    nest: &Nest<'_>,
    socket: BorrowedFd<'_>,
    mut running: Running<'_>,
    marks: &Marks,
) -> ! {
    let mut ended = None;
    let mut alone = None;
    let mut settle_at = Some(monotonic_ns() + SETTLE_AFTER);
    let mut left = Left::Alive;
    let verdict = loop {
        let unreaped = left == Left::Unreaped;
        let due = [settle_at, running.allowance.next(), running.changes.next(), unreaped.then_some(0)];
        let until = due.into_iter().flatten().min();
        let Ready { message, child, room, call } = wait(socket, &running, until);
        if let (Listener::HungUp, Some(supervisor)) = (call, &mut running.supervisor) {
            supervisor.hung_up();
        }
        let called = call == Listener::Called;
        if (room || called) && deal(nest, socket, &mut running, room, called) == Finding::Violation {
            break Verdict { violated: true, ..Verdict::default() };
        }
        if child
            && nest.counted
            && running.tracer.is_none()
            && let Some((how, used)) = reap::alone(running.pid, LOADAVG_FD)
        {
            (ended, alone) = (Some(how), Some(used));
            break Verdict::default();
        }
        if child || unreaped {
            if reap::next_signal(running.signals.as_fd()) == Some(reap::PARENT_DIED) {
                reap::kill_all(nest.pid_namespace, running.pid, &mut ended, running.tracer.as_mut());
                crate::exit(0);
            }
            // While it can still be named: a reaped process has no pid.
            report_start(nest, socket, &mut running);
            left = reap::reap(false, running.pid, &mut ended, running.tracer.as_mut());
            if ended.is_some() {
                break Verdict::default();
            }
        }
        if message && let Some(ending) = obey(nest, socket, &mut running, &mut ended) {
            break ending;
        }
        let now = monotonic_ns();
        if settle_at.take_if(|at| now >= *at).is_some()
            && let Err(fault) = settle(nest, socket, &mut running)
        {
            reap::kill_all(nest.pid_namespace, running.pid, &mut ended, running.tracer.as_mut());
            report::launch_failed(socket, &fault);
            crate::exit(1);
        }
        running.changes.tend(now, &mut running.census);
        let limit = running.allowance.over(now, &mut running.census);
        if limit != LimitKind::None {
            break Verdict { limit, ..Verdict::default() };
        }
    };
    // With outputs init gives up what it takes to speak in the program's name, before it says how that ended.
    if alone.is_none() || !running.launch.outputs.is_empty() {
        report_start(nest, socket, &mut running);
    }
    finish(nest, socket, running, verdict, ended, alone, marks)
}

/// Does what the host says. Answers why the nest is to be ended, if it is.
#[inline(never)]
fn obey(
    nest: &Nest<'_>,
    socket: BorrowedFd<'_>,
    running: &mut Running<'_>,
    ended: &mut Option<Ended>,
) -> Option<Verdict> {
    match receive(socket, &mut running.fds) {
        Control::Nothing => {}
        Control::Signal(libc::SIGKILL) => {
            return Some(Verdict { killed_by_host: true, ..Verdict::default() });
        }
        Control::Signal(signal) => {
            // SAFETY: numbers only; the program has not been reaped, so the pid is its own.
            let _ = unsafe { nestbox_sys::syscall!(libc::SYS_kill, running.pid, signal) };
        }
        Control::Answer(answer, fd) => {
            let pid = running.pid;
            let decided =
                |supervisor: &mut Supervisor| supervisor.answer(answer, fd.as_ref().map(AsFd::as_fd), pid);
            let finding = running.supervisor.as_deref_mut().map(decided);
            if let (Some(supervisor), Some(tracer)) = (&running.supervisor, &mut running.tracer)
                && !supervisor.reads
            {
                tracer.leave_memory();
            }
            if finding == Some(Finding::Violation) {
                return Some(Verdict { violated: true, ..Verdict::default() });
            }
        }
        Control::SetLimits(wanted) => {
            let Running { allowance, census, changes, .. } = running;
            report::limits_set(socket, changes.apply(wanted, allowance, census));
        }
        Control::HostGone => {
            reap::kill_all(nest.pid_namespace, running.pid, ended, running.tracer.as_mut());
            crate::exit(0);
        }
    }
    None
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
    call: Listener,
}

/// What poll(2) says of the listener.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listener {
    Silent,
    /// A call waits.
    Called,
    /// Nobody can call any more.
    HungUp,
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
        call: match call {
            0 => Listener::Silent,
            events if events & libc::POLLIN != 0 => Listener::Called,
            _ => Listener::HungUp,
        },
    }
}

/// Has the supervisor deal with what [`wait`] found for it.
#[inline(never)]
fn deal(
    nest: &Nest<'_>,
    socket: BorrowedFd<'_>,
    running: &mut Running<'_>,
    room: bool,
    called: bool,
) -> Finding {
    // Whoever is asked about a program has heard of it.
    report_start(nest, socket, running);
    let pid = running.pid;
    let Some(supervisor) = &mut running.supervisor else { return Finding::Nothing };
    if room {
        supervisor.has_room(socket, pid);
    }
    if called { supervisor.notified(socket, pid) } else { Finding::Nothing }
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

/// Kills and reaps the rest, then says everything in one message. `alone`: there is nobody, and what the program, which was
/// not reaped, has used.
fn finish(
    nest: &Nest<'_>,
    socket: BorrowedFd<'_>,
    mut running: Running<'_>,
    verdict: Verdict,
    mut ended: Option<Ended>,
    alone: Option<libc::rusage>,
    marks: &Marks,
) -> ! {
    if let (true, Some(tracer)) = (verdict.violated, &mut running.tracer) {
        tracer.condemn(running.supervisor.as_ref().map_or(0, |supervisor| supervisor.caller));
    }
    if alone.is_none() {
        reap::kill_all(nest.pid_namespace, running.pid, &mut ended, running.tracer.as_mut());
    }
    let ended_ns = monotonic_ns();
    let usage = alone.unwrap_or_else(census::usage_of_reaped);
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
        // Anybody may raise the signal, so it counts only where there is such a limit.
        LimitKind::None if ended.signaled && ended.status == libc::SIGXFSZ && running.limits_file_size() => {
            LimitKind::FileSize
        }
        // The sum over a nest whose last process ended between two looks, or of SIGXCPU: RLIMIT_CPU is above the limit.
        LimitKind::None if running.allowance.is_spent(census::cpu_us(&usage)) => LimitKind::CpuTime,
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
            usage,
            exec_ns: running.exec_ns,
            ended_ns,
            marks,
            output_errnos: &outputs.errnos[..running.launch.outputs.len()],
            output_fds: outputs.fds(),
            violated: verdict.violated,
            violation,
            learned,
            crash_fds: outputs.of_crash,
            unnamed: running.unreported.then_some(running.pid),
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
