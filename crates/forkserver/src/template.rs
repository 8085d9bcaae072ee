//! A template: a policy made ready. A resident process, pid 1 of its own pid namespace, whose mount namespace holds only
//! the policy's mounts. Each launch is one packet on its socket and one clone3(2) here.
//!
//! Promises: it holds no fd of a launch after handing it to the nest's init, so its fd table, and with it the cost of the
//! clone, never grows; it waits for no nest; it ends with its socket and with the fork server, and then the kernel kills
//! all its nests, which live in pid namespaces below its own. Made by [`crate::server`] on request.

use std::cell::Cell;
use std::convert::Infallible;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nestbox_protocol::{Launch, Plan, Ready, Step, TemplateReady, TemplateRequest, frame, ready};
use nestbox_sys::mount::open_at;
use nestbox_sys::{packet, process, raw, socket};

use crate::arena;
use crate::boot::CONTROL_FD;
use crate::fault::{At, Fault};
use crate::init::Nest;
use crate::initial::surplus_fds;
use crate::landlock::{self, Rules};
use crate::launch::{Ids, NetworkSource, Prepared};
use crate::nest::NestPlan;
use crate::parked::{self, Parking};
use crate::report::Marks;
use crate::server::Server;
use crate::source::IdMapping;
use crate::tree::{self, Origin};
use crate::{guard, init, initial, memory, notify, outputs, report, stack};

/// Where a template and its inits have their proc.
pub(crate) const PROC_FD: RawFd = 4;

/// Where they have `/proc/loadavg`, for [`crate::reap::alone`]; the last fd that is not a launch's.
pub(crate) const LOADAVG_FD: RawFd = 5;

/// Namespaces of every nest. The network's are decided per launch; the user namespace comes last, in the launch child.
const NEST_FLAGS: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64;

/// Forks the template as a child of the fork server; fds: [socket, user namespace, mount namespace].
pub(crate) fn create(
    server: Server,
    request: TemplateRequest,
    fds: Vec<OwnedFd>,
) -> Result<Infallible, Fault<'static>> {
    let [socket, user, mnt] = <[OwnedFd; 3]>::try_from(fds).map_err(|_| surplus_fds())?;
    let plan = request.plan.ok_or_else(surplus_fds)?;
    let outer = (request.outer_uid, request.outer_gid);
    initial::join(user.as_fd(), Some(mnt.as_fd()))?;
    drop((user, mnt));
    if server.privileged {
        initial::drop_groups()?;
    }
    let flags = (libc::CLONE_NEWNS | libc::CLONE_NEWPID) as u64;
    match fork_sibling(server, flags, Step::ForkTemplate)? {
        Sibling::Parent => crate::exit(0),
        Sibling::Child => run(server, outer, plan, socket),
    }
}

/// Which side of [`fork_sibling`] this is.
pub(crate) enum Sibling {
    Parent,
    Child,
}

/// Forks a child of the *fork server* (`CLONE_PARENT`), so that its parent-death signal is tied to that and not to this
/// passing process. In a new pid namespace the child can't see whether its parent is still there when it arms the
/// signal; so this process looks afterwards, and kills the child if the fork server has gone.
pub(crate) fn fork_sibling(server: Server, flags: u64, step: Step) -> Result<Sibling, Fault<'static>> {
    let (ours, theirs) = socket::stream_pair().at(step, "socketpair", b"")?;
    // SAFETY: single-threaded; no CLONE_VM.
    match unsafe { process::fork_with(flags | libc::CLONE_PARENT as u64) }.at(
        step,
        "clone3",
        b"namespaces",
    )? {
        None => {
            drop(ours);
            process::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as usize).at(step, "prctl", b"")?;
            nix::unistd::write(&theirs, &[1]).at(step, "write", b"")?;
            Ok(Sibling::Child)
        }
        Some(child) => {
            drop(theirs);
            let armed = nix::unistd::read(&ours, &mut [0]) == Ok(1);
            let orphaned = nix::unistd::getppid().as_raw() != server.pid;
            if !armed || orphaned {
                // SAFETY: takes numbers; the child can't have been reaped and its pid reused: it is alive or, as the
                // fork server's child, gone with ESRCH.
                unsafe { libc::kill(child, libc::SIGKILL) };
            }
            Ok(Sibling::Parent)
        }
    }
}

fn run(
    server: Server,
    outer: (u32, u32),
    mut plan: Plan,
    socket: OwnedFd,
) -> Result<Infallible, Fault<'static>> {
    let _ = process::prctl(libc::PR_SET_NAME, c"nestbox-templat".as_ptr() as usize);
    let (outer_uid, outer_gid) = if server.privileged { outer } else { (0, 0) };
    let (inside_uid, inside_gid) = (plan.uid, plan.gid);
    let ids = Ids { inside_uid, inside_gid, privileged: server.privileged, outer_uid, outer_gid };
    let Made { proc, nest, rules, ready } = match make(&plan, ids) {
        Ok(made) => made,
        Err(fault) => {
            report::request_failed(socket.as_fd(), &fault);
            crate::exit(1);
        }
    };
    // Carried out. Each launch copies what it finds in this memory, page by page: the less, the better.
    plan.template_mounts = Vec::new();
    plan.nest_mounts = Vec::new();
    arena::give_back();
    let stack = stack::map().at(Step::ForkTemplate, "mmap", b"stack")?;
    let buffer = arena::unshared(frame::PACKET_MAX).at(Step::ForkTemplate, "mmap", b"")?;
    parked::reserve_memory();
    // From here on what is called by the C library and not by us has to be what any filter to be inherited lets pass.
    raw::carry(plan.launch_cookie);
    if plan.filter_inherited {
        // Not in each launch: to install it and to free it takes the kernel 200 µs.
        process::install_filter(&plan.filter).at(Step::InstallFilter, "seccomp", b"template")?;
    }
    let (socket, counted) = settle(socket, proc)?;
    let answer = Ready { kind: Some(ready::Kind::Template(ready)) };
    packet::send_message(socket.as_fd(), &answer, &[], 0)
        .map_err(|error| Fault::new(Step::ForkTemplate, error.errno(), "sendmsg", b""))?;
    let template = Template {
        nest,
        ids,
        rules,
        counted,
        guard: guard::program(plan.filter_listens, &[]),
        reads: memory::may_read(&plan.filter),
        stack,
        room: init::room(),
        record: notify::room(plan.filter_listens),
        plan,
    };
    template.serve(socket.as_fd(), buffer)
}

/// What becomes of a plan.
struct Made {
    proc: OwnedFd,
    nest: NestPlan,
    rules: Option<Rules>,
    ready: TemplateReady,
}

/// Builds the tree, and makes what each launch is going to need of the plan.
fn make(plan: &Plan, ids: Ids) -> Result<Made, Fault<'_>> {
    let mapping = IdMapping { available: ids.privileged, uid: ids.outer_uid, gid: ids.outer_gid };
    let built = tree::build(plan, mapping, Origin::Initial)?;
    process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).at(Step::SetNoNewPrivs, "prctl", b"")?;
    let rules = match landlock::probe() {
        Ok(support) => Some(Rules::new(plan, support)?),
        // The host is told that nothing of it is enforced.
        Err(fault) if landlock::is_absent(fault.errno) && !plan.require_landlock => None,
        Err(fault) => return Err(fault),
    };
    let ready = TemplateReady {
        mounts: plan.template_mounts.len() as u32,
        not_id_mapped: built.not_id_mapped,
        landlock: rules.as_ref().map(|rules| rules.support.told()),
    };
    Ok(Made { proc: built.proc, nest: NestPlan::new(plan)?, rules, ready })
}

/// Puts the socket, proc and loadavg where every nest expects them, and closes everything else. Tells whether there is a
/// loadavg: one of the kernel's own, for some containers put another file in its place.
fn settle(socket: OwnedFd, proc: OwnedFd) -> Result<(OwnedFd, bool), Fault<'static>> {
    let step = Step::ForkTemplate;
    // All are moved out of the way first: each may sit where another belongs. From here on they are numbers, since
    // the close_range below closes the originals.
    let high = |fd: OwnedFd| {
        // SAFETY: numbers only.
        unsafe { nestbox_sys::syscall!(libc::SYS_fcntl, fd.into_raw_fd(), libc::F_DUPFD_CLOEXEC, 64) }
            .at(step, "fcntl", b"")
            .map(|high| high as RawFd)
    };
    let loadavg = open_at(proc.as_raw_fd(), c"loadavg", libc::O_RDONLY, 0, 0)
        .ok()
        .filter(|file| outputs::is_proc(file.as_fd()) == Ok(true))
        .map(high)
        .transpose()?;
    let (socket, proc) = (high(socket)?, high(proc)?);
    let places = [(socket, CONTROL_FD), (proc, PROC_FD)];
    for (from, to) in places.into_iter().chain(loadavg.map(|loadavg| (loadavg, LOADAVG_FD))) {
        // SAFETY: numbers only; what was there is not used any more.
        unsafe { nestbox_sys::syscall!(libc::SYS_dup3, from, to, libc::O_CLOEXEC) }.at(step, "dup3", b"")?;
    }
    let first = if loadavg.is_some() { LOADAVG_FD } else { PROC_FD } + 1;
    process::close_range(first as u32, u32::MAX, 0).at(step, "close_range", b"")?;
    // SAFETY: it was just put there, and nobody else owns it.
    Ok((unsafe { OwnedFd::from_raw_fd(CONTROL_FD) }, loadavg.is_some()))
}

struct Template {
    /// Without its mounts.
    plan: Plan,
    nest: NestPlan,
    ids: Ids,
    /// What Landlock adds, where the kernel has it.
    rules: Option<Rules>,
    /// [`LOADAVG_FD`] is there.
    counted: bool,
    /// Init's own syscall filter.
    guard: Vec<u8>,
    /// See [`memory::may_read`].
    reads: bool,
    /// High end of the launch child's stack; each init has its own copy.
    stack: *mut std::ffi::c_void,
    /// See [`init::room`]; likewise.
    room: Cell<Vec<OwnedFd>>,
    /// See [`notify::room`]; likewise.
    record: Cell<Vec<u8>>,
}

impl Template {
    /// Nothing of the `buffer` is there in an init: what is decoded from it is copied.
    fn serve(&self, socket: BorrowedFd<'_>, buffer: &mut [MaybeUninit<u8>]) -> ! {
        arena::open();
        loop {
            let mut fds = Vec::new();
            let bytes = match packet::receive_into(socket, buffer, &mut fds, 0) {
                Ok(packet) if packet.bytes.is_empty() => crate::exit(0),
                Ok(packet) => packet.bytes,
                Err(_) => continue,
            };
            let mut marks = Marks::new();
            marks.add(Step::ReceiveRequest);
            match packet::read_message::<Launch>(bytes, &mut fds) {
                Ok(request) => self.launch(&request, &fds, marks),
                Err(error) => {
                    if let Some(socket) = fds.first() {
                        report::launch_failed(socket.as_fd(), &report::unreadable(error.errno()));
                    }
                }
            }
        }
    }

    /// One launch: all that allocates, then one clone3.
    ///
    /// Not inlined, and so not on the stack while the request is received and decoded: fewer pages are copied.
    #[inline(never)]
    fn launch(&self, request: &Launch, fds: &[OwnedFd], mut marks: Marks) {
        if fds.is_empty() {
            return;
        }
        let prepared = match Prepared::new(request, &fds[1..], self.plan.network(), self.ids) {
            Ok(prepared) => prepared,
            Err(fault) => return report::launch_failed(fds[0].as_fd(), &fault),
        };
        let nest_mounts = match self.nest.prepare(&prepared) {
            Ok(mounts) => mounts,
            Err(fault) => return report::launch_failed(fds[0].as_fd(), &fault),
        };
        marks.add(Step::DecodeRequest);
        let own_network = prepared.network == NetworkSource::New;
        let flags = NEST_FLAGS | if own_network { libc::CLONE_NEWNET as u64 } else { 0 };
        // SAFETY: single-threaded; no CLONE_VM.
        match unsafe { process::fork_with(flags) } {
            Ok(Some(_)) => {}
            Ok(None) => {
                marks.add(Step::CloneInit);
                init::run(
                    &Nest {
                        launch: &prepared,
                        mounts: Some(&nest_mounts),
                        hostname: Some(&self.plan.hostname),
                        filter: if self.plan.filter_inherited { &[] } else { &self.plan.filter },
                        listens: self.plan.filter_listens,
                        reads: self.reads,
                        room: &self.room,
                        record: &self.record,
                        guard: Some(&self.guard),
                        rules: self.rules.as_ref(),
                        stack: self.stack,
                        pid_namespace: true,
                        sandboxed: true,
                        counted: self.counted,
                        speculation: self.plan.allow_speculation,
                        core_scheduling: self.plan.core_scheduling,
                        park: request.park.then_some(Parking { network: self.plan.network() }),
                    },
                    fds[0].as_raw_fd(),
                    marks,
                )
            }
            Err(errno) => {
                let fault = Fault::new(Step::CloneInit, errno, "clone3", b"namespaces of a nest");
                report::launch_failed(fds[0].as_fd(), &fault);
            }
        }
    }
}
