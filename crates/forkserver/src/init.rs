//! Init: pid 1 of a nest. Prepares it, starts the sandboxee, and hands over to [`crate::watch`], which ends with the nest. Also
//! the supervisor of a launch without a pid namespace, which does the same for the children it can find.
//!
//! Promises: it reports on the launch socket and nowhere else; the end of the socket (the host has gone, or let go) ends the
//! nest; it has no signal handlers, no stdio, no fd of the host but its socket. Runs in the process that [`crate::template`]
//! or [`crate::request`] cloned.

use std::cell::Cell;
use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nestbox_protocol::{LaunchControl, Network, Step, frame, launch_control};
use nestbox_sys::process::monotonic_ns;
use nestbox_sys::{Errno, packet, process};

use crate::allowance::Allowance;
use crate::boot::CONTROL_FD;
use crate::census::{self, Census};
use crate::child::{self, Child, Outcome, Task};
use crate::crash::Tracer;
use crate::fault::{At, Fault};
use crate::landlock::{Rules, Ruleset};
use crate::launch::Prepared;
use crate::limits::Changes;
use crate::nest::{self, NestMounts};
use crate::notify::Supervisor;
use crate::parked::Parking;
use crate::reap;
use crate::remains;
use crate::report::{self, Marks};
use crate::template::{LOADAVG_FD, PROC_FD};
use crate::watch::{self, Running};

/// Everything about one nest that init needs. All of it was made before the clone.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
pub(crate) struct Nest<'a> {
    pub(crate) launch: &'a Prepared<'a>,
    pub(crate) mounts: Option<&'a NestMounts<'a>>,
    pub(crate) hostname: Option<&'a str>,
    /// The sandboxee's syscall filter; empty: none, or this process is under it already.
    pub(crate) filter: &'a [u8],
    /// Init's own.
    pub(crate) guard: Option<&'a [u8]>,
    /// What Landlock adds, where the kernel has it.
    pub(crate) rules: Option<&'a Rules>,
    pub(crate) stack: *mut c_void,
    /// This process is pid 1: everything it can see is the nest's.
    pub(crate) pid_namespace: bool,
    pub(crate) sandboxed: bool,
    /// [`crate::template::LOADAVG_FD`] is there.
    pub(crate) counted: bool,
    pub(crate) speculation: bool,
    pub(crate) core_scheduling: bool,
    /// The nest is to be warm: `launch` says what it is made for, and the one that it runs comes later.
    pub(crate) park: Option<Parking>,
    /// `Plan.filter_listens`.
    pub(crate) listens: bool,
    /// See [`crate::memory::may_read`].
    pub(crate) reads: bool,
    /// [`room`].
    pub(crate) room: &'a Cell<Vec<OwnedFd>>,
    /// [`crate::notify::room`].
    pub(crate) record: &'a Cell<Vec<u8>>,
}

/// Room for what a packet may bring, made before the clone: the allocator tidies itself up for as much, and would copy ten of
/// its pages in init, 50 µs.
pub(crate) fn room() -> Cell<Vec<OwnedFd>> {
    Cell::new(Vec::with_capacity(frame::FDS_MAX))
}

/// The sandboxee's pid in its nest.
const SANDBOXEE: i32 = 2;

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
        Ok(Some(running)) => watch::supervise(nest, socket, running, &marks),
        // Its host needs this nest no longer, or has gone.
        Ok(None) => crate::exit(0),
        Err(fault) => {
            if nest.pid_namespace {
                // A launch child that failed is dead; a program that runs must not without init.
                reap::kill_all(nest.pid_namespace, 0, &mut None, None);
            }
            report::launch_failed(socket, &fault);
            crate::exit(1)
        }
    }
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
    let signals = reap::watch_signals(nest.pid_namespace)?;
    marks.add(Step::PrepareInit);
    if let Some(ruleset) = ruleset {
        ruleset.add_queues(nest.mounts.and_then(NestMounts::proc))?;
    }
    if nest.sandboxed {
        nest::set_up(nest.mounts, nest.launch, nest.hostname, marks)?;
    }
    marks.add(Step::SetHostname);
    if let (Some(rules), Some(ruleset)) = (nest.rules, ruleset) {
        rules.fill(ruleset)?;
        ruleset.add_binds(nest.launch)?;
        marks.add(Step::MakeRuleset);
    }
    let task = nest.park.map_or(Task::Launch(nest.launch), Task::Park);
    let mut own_proc = None;
    if nest.park.is_some() {
        touch_stack();
        // While nobody waits for it.
        if nest.listens
            && let Ok(proc) = census::open_own(true)
        {
            // Above where the listener goes.
            own_proc =
                Some(move_to(proc, signals.as_raw_fd() + 2).at(Step::PrepareInit, "dup3", b"/proc")?);
        }
    }
    let mut child = start_child(nest, task, ruleset, None, marks)?;
    let mut parked = nest.park.is_some();
    if matches!(child.outcome, Outcome::MadeWay) {
        // Its pid is the next one's: who looks for the program finds it where it always is.
        reap::reap(true, 0, &mut None, None);
        let Some(launch) = receive_launch(nest, socket, marks)? else { return Ok(None) };
        nest::add(launch, marks)?;
        if let Some(ruleset) = ruleset {
            ruleset.add_binds(launch)?;
        }
        child = start_child(nest, Task::Launch(launch), ruleset, Some(SANDBOXEE), marks)?;
        parked = false;
    }
    let Started { pid, exec_ns, launch, outcome, listener } = child;
    let (Outcome::Executed, Some(launch)) = (outcome, launch) else { return Ok(None) };
    marks.add_at(Step::Exec, exec_ns);
    // Before the host is told: a signal that it sends then finds the program as it stays. Here it is let go and stopped in between.
    let tracer = if launch.crash_report { Tracer::attach(pid, nest.reads)? } else { None };
    // A parked one's pid is known to the host.
    let unreported = if launch.report_start {
        report::started(socket, pid, nest.pid_namespace);
        false
    } else {
        !parked
    };
    let listener = listener.map(|listener| move_to(listener, signals.as_raw_fd() + 1)).transpose().at(
        Step::InstallFilter,
        "dup3",
        b"listener",
    )?;
    let census = close_fds(nest, launch, signals.as_raw_fd(), own_proc)?;
    let allowance = Allowance::new(launch, exec_ns);
    let proc = nest.pid_namespace.then_some(PROC_FD);
    let supervise = |listener| {
        Box::new(Supervisor::new(listener, launch.supervision, proc, nest.reads, nest.record.take()))
    };
    let supervisor = listener.map(supervise);
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
fn touch_stack() {
    const DEPTH: usize = 12 * 1024;
    std::hint::black_box([0_u8; DEPTH]);
}

/// A launch child that executed or gave up.
struct Started<'a> {
    pid: i32,
    exec_ns: u64,
    launch: Option<&'a Prepared<'a>>,
    outcome: Outcome<'a>,
    /// What it has left of [`crate::listener`].
    listener: Option<OwnedFd>,
}

/// How long an exec takes at most, in nanoseconds: it is 0.1 to 0.5 ms. Where init goes on later than that it was waiting for a
/// processor, on a busy machine for 50 ms and more, and the program had its time meanwhile.
const EXEC_MAX: u64 = 1_000_000;

/// Starts the launch child and waits until it has executed or given up.
fn start_child<'a>(
    nest: &'a Nest<'a>,
    task: Task<'a>,
    ruleset: Option<Ruleset>,
    pid: Option<i32>,
    marks: &mut Marks,
) -> Result<Started<'a>, Fault<'a>> {
    let mut child = Child {
        task,
        ids: nest.launch.ids,
        filter: nest.filter,
        listens: nest.listens,
        listener: None,
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
    let exec_ns = child.marks.last().map_or(u64::MAX, |begun| begun + EXEC_MAX).min(monotonic_ns());
    *marks = child.marks;
    match child.outcome {
        Outcome::Failed(fault) => Err(fault),
        outcome => Ok(Started { pid, exec_ns, launch: child.launch, outcome, listener: child.listener }),
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

/// Closes every fd but init's own three, the listener, which is next to the last of them, and what the census has.
fn close_fds(
    nest: &Nest<'_>,
    launch: &Prepared<'_>,
    signals: RawFd,
    own_proc: Option<OwnedFd>,
) -> Result<Census, Fault<'static>> {
    let step = Step::GuardInit;
    let spare = signals + 2;
    let (census, last) = take_proc(nest, launch, spare, own_proc).at(step, "openat2", b"/proc")?;
    let after_proc = if nest.counted { LOADAVG_FD } else { PROC_FD } as u32 + 1;
    let close = |first: RawFd, last: u32| {
        if first as u32 > last { Ok(()) } else { process::close_range(first as u32, last, 0) }
    };
    close(after_proc as RawFd, signals as u32 - 1)
        .and_then(|()| if nest.listens { Ok(()) } else { close(signals + 1, signals as u32 + 1) })
        .and_then(|()| close(last + 1, u32::MAX))
        .at(step, "close_range", b"")?;
    Ok(census)
}

/// The proc that was needed for the id maps shows the template's other nests; from now on it is the nest's own, if CPU
/// time has to be summed, threads told from processes or a crash to be seen, or none. Where the nest has none, init keeps
/// the template's as `spare`, to find the nest's processes in, and a crash is seen through the program's own directory there.
/// Answers the last fd that is to stay.
fn take_proc(
    nest: &Nest<'_>,
    launch: &Prepared<'_>,
    spare: RawFd,
    own_proc: Option<OwnedFd>,
) -> Result<(Census, RawFd), Errno> {
    let forget = || process::close_range(PROC_FD as u32, PROC_FD as u32, 0);
    if !nest.pid_namespace {
        forget()?;
        return Ok((Census::of_children(), spare - 1));
    }
    let wanted = launch.cpu_us.is_some() || nest.listens || launch.crash_report;
    if !wanted && nest.mounts.is_some_and(|mounts| mounts.proc().is_some()) {
        forget()?;
        return Ok((Census::of_nest(), spare - 1));
    }
    if let Some(own) = own_proc.or_else(|| census::open_own(true).ok()) {
        return Ok((Census::of_own_proc(move_to(own, PROC_FD)?), spare - 1));
    }
    let outer = copy_to(PROC_FD, spare)?;
    match if launch.crash_report { remains::only_child(PROC_FD) } else { None } {
        // Init's own by number.
        Some(program) => std::mem::forget(move_to(program, PROC_FD)?),
        None => forget()?,
    }
    Ok((Census::of_outer_proc(outer), spare))
}

/// The same file as fd `to`, whatever that was before.
fn move_to(from: OwnedFd, to: RawFd) -> Result<OwnedFd, Errno> {
    if from.as_raw_fd() == to { Ok(from) } else { copy_to(from.as_raw_fd(), to) }
}

/// [`move_to`] of one that stays where it is, too.
fn copy_to(from: RawFd, to: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: numbers only.
    unsafe { nestbox_sys::syscall!(libc::SYS_dup3, from, to, libc::O_CLOEXEC) }?;
    // SAFETY: it was just put there, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(to) })
}
