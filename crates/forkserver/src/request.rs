//! Launches that no template serves: sandbox2's request surface, and programs without isolation.
//!
//! The process forked for the request becomes the launch's init (or, without a pid namespace, its supervisor). With
//! `PIVOT_NESTED` it starts from the initial namespaces, as sandbox2's `ForkedProcess::Setup` does; with `PIVOT_DIRECT`
//! it makes its own and pivots, as sandbox2 once did for every launch. Called by [`crate::server`].

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nestbox_protocol::{FdRole, ForkRequest, Launch, Mode, NetnsMode, Network, Pivot, Plan, Step, mount};
use nestbox_sys::mount::open_at;
use nestbox_sys::{Errno, process};

use crate::boot::{self, CONTROL_FD};
use crate::fault::{At, Fault};
use crate::init::Nest;
use crate::launch::{Ids, Prepared};
use crate::nest::NestPlan;
use crate::report::Marks;
use crate::server::Server;
use crate::source::IdMapping;
use crate::template::{PROC_FD, Sibling, fork_sibling};
use crate::tree::{self, Origin};
use crate::{guard, init, initial, notify, report, stack};

/// Namespaces that the clone makes; the user namespace is joined or made before it, and again after it.
const CLONED: u64 = (libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u64;

const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
const NEWNS: u64 = libc::CLONE_NEWNS as u64;
const NEWPID: u64 = libc::CLONE_NEWPID as u64;
const NEWNET: u64 = libc::CLONE_NEWNET as u64;
const NEWUTS: u64 = libc::CLONE_NEWUTS as u64;

/// Serves one request; fds: [launch socket, as `Launch.fds` says].
pub(crate) fn launch<'a>(
    server: Server,
    request: &'a ForkRequest,
    fds: &[OwnedFd],
) -> Result<Infallible, Fault<'a>> {
    let mut marks = Marks::new();
    marks.add(Step::ReceiveRequest);
    let wanted = request.launch.as_ref().ok_or_else(|| refused("a request without a launch"))?;
    if request.clone_flags & !(NEWUSER | NEWNS | CLONED) != 0 {
        return Err(refused("clone flags that are no namespace"));
    }
    if request.clone_flags & NEWUSER != 0 {
        return isolated(server, request, wanted, fds, marks);
    }
    if request.clone_flags != 0 {
        return Err(refused("a namespace without a user namespace"));
    }
    unsandboxed(request, wanted, fds, marks)
}

fn refused(detail: &'static str) -> Fault<'static> {
    Fault::new(Step::DecodeRequest, Errno::EINVAL, "recvmsg", b"").detail(detail)
}

/// A program as the host itself would run it: its ids, its root, its network. Only the spawn is ours.
fn unsandboxed<'a>(
    request: &'a ForkRequest,
    wanted: &'a Launch,
    fds: &[OwnedFd],
    mut marks: Marks,
) -> Result<Infallible, Fault<'a>> {
    let _ = process::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
    let plan = Plan { network: Network::Host.into(), ..Plan::default() };
    let ids = Ids { inside_uid: 0, inside_gid: 0, privileged: false, outer_uid: 0, outer_gid: 0 };
    let prepared = Prepared::new(wanted, &fds[1..], plan.network(), ids)?;
    marks.add(Step::DecodeRequest);
    let nest = Nest {
        launch: &prepared,
        mounts: None,
        hostname: None,
        filter: &request.filter,
        listens: false,
        reads: false,
        room: &init::room(),
        record: &notify::room(false),
        guard: None,
        rules: None,
        stack: stack::map().at(Step::PrepareInit, "mmap", b"stack")?,
        pid_namespace: false,
        sandboxed: false,
        speculation: true,
        counted: false,
        core_scheduling: false,
        park: None,
    };
    init::run(&nest, fds[0].as_raw_fd(), marks)
}

/// The fds of a namespaced request that are used up before the launch.
struct NamespaceFds {
    user: Option<OwnedFd>,
    mnt: Option<OwnedFd>,
    /// A user namespace of the caller's, joined instead of the initial one.
    own_user: Option<OwnedFd>,
}

fn take_namespaces(wanted: &Launch, fds: &[OwnedFd]) -> Result<NamespaceFds, Fault<'static>> {
    let take = |role| {
        let index = wanted.fds.iter().position(|passed| passed.role() == role);
        index
            .and_then(|index| fds.get(index + 1))
            .map(OwnedFd::try_clone)
            .transpose()
            .map_err(|_| Fault::new(Step::ReceiveRequest, Errno::EMFILE, "fcntl", b""))
    };
    Ok(NamespaceFds {
        user: take(FdRole::InitialUserNamespace)?,
        mnt: take(FdRole::InitialMountNamespace)?,
        own_user: take(FdRole::UserNamespace)?,
    })
}

/// Where the mount tree starts from, once the user namespace is entered.
fn enter_user_namespace(
    server: Server,
    request: &ForkRequest,
    namespaces: &NamespaceFds,
) -> Result<Origin, Fault<'static>> {
    let own_mounts = request.clone_flags & NEWNS != 0;
    if let Some(user) = &namespaces.own_user {
        initial::join(user.as_fd(), None)?;
        if own_mounts {
            process::unshare(libc::CLONE_NEWNS).at(Step::JoinUserNamespace, "unshare", b"mount namespace")?;
        }
        return Ok(Origin::Host);
    }
    if request.pivot() == Pivot::Direct {
        initial::unshare_user_and_mount(server)?;
        return Ok(Origin::Host);
    }
    let Some(user) = &namespaces.user else {
        return Err(refused("a nested request came without the initial namespaces"));
    };
    initial::join(user.as_fd(), namespaces.mnt.as_ref().filter(|_| own_mounts).map(AsFd::as_fd))?;
    Ok(Origin::Initial)
}

fn isolated<'a>(
    server: Server,
    request: &'a ForkRequest,
    wanted: &'a Launch,
    fds: &[OwnedFd],
    mut marks: Marks,
) -> Result<Infallible, Fault<'a>> {
    let namespaces = take_namespaces(wanted, fds)?;
    // Of the host's pid namespace, for id maps where no other proc will do.
    let host_proc = open_at(libc::AT_FDCWD, c"/proc", libc::O_PATH | libc::O_DIRECTORY, 0, 0).at(
        Step::MountTemplateProc,
        "openat2",
        b"/proc",
    )?;
    let origin = enter_user_namespace(server, request, &namespaces)?;
    let privileged = server.privileged && namespaces.own_user.is_none();
    if privileged {
        initial::drop_groups()?;
    }
    drop(namespaces);
    marks.add(Step::JoinInitialNamespaces);
    let mut flags = request.clone_flags & CLONED;
    if request.netns_mode() != NetnsMode::PerSandboxee && request.netns_mode() != NetnsMode::Unspecified {
        flags &= !NEWNET;
    }
    let own_mounts = request.clone_flags & NEWNS != 0;
    if own_mounts && origin == Origin::Initial {
        flags |= NEWNS;
    }
    if let Sibling::Parent = fork_sibling(server, flags, Step::CloneInit)? {
        crate::exit(0);
    }
    marks.add(Step::CloneInit);
    let Err(fault) = nest(request, wanted, fds, Parts { host_proc, origin, privileged, flags, marks });
    report::launch_failed(fds[0].as_fd(), &fault);
    crate::exit(1)
}

/// What the clone hands on to the nest.
struct Parts {
    host_proc: OwnedFd,
    origin: Origin,
    privileged: bool,
    flags: u64,
    marks: Marks,
}

/// The nest of one request, in its namespaces: build the tree, prepare, run.
fn nest<'a>(
    request: &'a ForkRequest,
    wanted: &'a Launch,
    fds: &[OwnedFd],
    parts: Parts,
) -> Result<Infallible, Fault<'a>> {
    let Parts { host_proc, origin, privileged, flags, mut marks } = parts;
    let pid_namespace = flags & NEWPID != 0;
    let (own_uid, own_gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let ids = Ids {
        inside_uid: request.uid,
        inside_gid: request.gid,
        privileged,
        outer_uid: if privileged { wanted.outer_uid } else { own_uid },
        outer_gid: if privileged { wanted.outer_gid } else { own_gid },
    };
    let network = if flags & NEWNET != 0 { Network::None } else { Network::Host };
    let tree = request.mount_tree.clone().unwrap_or_default();
    let mut plan = nestbox_policy::tree::plan(&tree).map_err(|error| refused(error.reason))?;
    plan.network = network.into();
    // A proc can only be mounted by the owner of its pid namespace.
    plan.no_proc = !pid_namespace;
    // This process is in its own pid namespace already: the proc that the tree is built with is the nest's own.
    plan.nest_mounts.retain(|step| !matches!(step.kind, Some(mount::Kind::Proc(_))));
    // The plan is leaked: this process exists for this launch, and its faults may point into the plan.
    let plan: &'static Plan = Box::leak(Box::new(plan));
    let proc = if request.clone_flags & NEWNS == 0 {
        host_proc
    } else {
        let mapping = IdMapping { available: privileged, uid: ids.outer_uid, gid: ids.outer_gid };
        let built = tree::build(plan, mapping, origin)?;
        if pid_namespace { built.proc } else { host_proc }
    };
    marks.add(Step::EnterRoot);
    let prepared = Prepared::new(wanted, &fds[1..], plan.network(), ids)?;
    // Leaked like the plan, which they point into.
    let nest_plan: &'static NestPlan = Box::leak(Box::new(NestPlan::new(plan)?));
    let mounts = nest_plan.prepare(&prepared)?;
    place_proc(&proc, fds)?;
    process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).at(Step::SetNoNewPrivs, "prctl", b"")?;
    let guard = guard::program(false, &[]);
    let nest = Nest {
        launch: &prepared,
        mounts: (request.clone_flags & NEWNS != 0).then_some(&mounts),
        hostname: (flags & NEWUTS != 0 && !request.hostname.is_empty()).then_some(request.hostname.as_str()),
        filter: if request.mode() == Mode::ForkExecveSandbox { &request.filter } else { &[] },
        listens: false,
        reads: false,
        room: &init::room(),
        record: &notify::room(false),
        guard: pid_namespace.then_some(&guard),
        rules: None,
        stack: stack::map().at(Step::PrepareInit, "mmap", b"stack")?,
        pid_namespace,
        sandboxed: true,
        speculation: request.allow_speculation,
        counted: false,
        core_scheduling: false,
        park: None,
    };
    if !pid_namespace {
        let _ = process::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
    }
    init::run(&nest, fds[0].as_raw_fd(), marks)
}

/// Puts proc where init expects it. The launch's fds were received above it: 3 and 4 belong to the control socket and
/// the privileged helper in every process of ours that receives.
fn place_proc(proc: &OwnedFd, fds: &[OwnedFd]) -> Result<(), Fault<'static>> {
    let lowest = fds.iter().map(AsRawFd::as_raw_fd).min().unwrap_or(RawFd::MAX);
    if lowest <= PROC_FD.max(CONTROL_FD) {
        return Err(Fault::new(Step::PrepareInit, Errno::EBADF, "dup3", b"/proc"));
    }
    if proc.as_raw_fd() != PROC_FD {
        // SAFETY: numbers only.
        Errno::result(unsafe { libc::dup3(proc.as_raw_fd(), PROC_FD, libc::O_CLOEXEC) }).at(
            Step::PrepareInit,
            "dup3",
            b"/proc",
        )?;
    }
    Ok(())
}

/// Both numbers are reserved from the fork server's start.
const _: () = assert!(boot::CONTROL_FD < PROC_FD);
