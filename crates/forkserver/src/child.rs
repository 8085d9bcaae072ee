//! The launch child: from clone to exec.
//!
//! It runs on a stack of its own in its parent's memory (`CLONE_VM`), while the parent waits. So nothing here
//! allocates, locks, unwinds or touches thread-local state: system calls are made without the C library, and everything
//! they need was made ready in [`crate::launch`]. The child of a warm nest stops half-way, in [`crate::parked`], and goes
//! on when its launch is there. [`steps`] reads top to bottom; each step has its own name in the error record. Called by
//! [`crate::init`] only.

use std::convert::Infallible;
use std::ffi::{CStr, c_int, c_void};
use std::os::fd::{OwnedFd, RawFd};

use nestbox_protocol::Step;
use nestbox_sys::process::{install_filter, prctl, unshare};
use nestbox_sys::speculation::Feature;
use nestbox_sys::{Errno, process};

use crate::fault::{At, Fault};
use crate::initial::write_single_maps;
use crate::landlock::{self, Ruleset};
use crate::launch::{Ids, Prepared, Program};
use crate::listener;
use crate::parked::{self, Orders, Parking};
use crate::report::{self, Marks};
use crate::{capabilities, crash};

/// Where the child's launch comes from.
pub(crate) enum Task<'a> {
    /// It is here.
    Launch(&'a Prepared<'a>),
    /// It will come: the nest is warm.
    Park(Parking),
}

/// What became of the child.
pub(crate) enum Outcome<'a> {
    /// It executed the program.
    Executed,
    /// A step failed.
    Failed(Fault<'a>),
    /// Parked, it was dismissed without a launch.
    Dismissed,
    /// Parked, it made way: the launch has work for init first.
    MadeWay,
}

/// What the child works on, and where it leaves what became of it: its parent's memory.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
pub(crate) struct Child<'a> {
    pub(crate) task: Task<'a>,
    pub(crate) ids: Ids,
    /// The compiled syscall filter, or empty.
    pub(crate) filter: &'a [u8],
    /// The filter asks a supervisor.
    pub(crate) listens: bool,
    /// What that one listens at: see [`crate::listener`].
    pub(crate) listener: Option<OwnedFd>,
    /// What Landlock lets it do.
    pub(crate) ruleset: Option<Ruleset>,
    /// A proc in which `self` is this process.
    pub(crate) proc: RawFd,
    /// A user namespace of its own, no capabilities, no new privileges.
    pub(crate) sandboxed: bool,
    /// Leave speculation alone.
    pub(crate) speculation: bool,
    /// Share a core with nobody else's threads.
    pub(crate) core_scheduling: bool,
    /// Arm the parent-death signal: outside a pid namespace nothing else ties the child to its supervisor.
    pub(crate) die_with_parent: bool,
    pub(crate) marks: Marks,
    /// The launch that it carried out.
    pub(crate) launch: Option<&'a Prepared<'a>>,
    pub(crate) outcome: Outcome<'a>,
}

/// The function that the clone runs. `argument` is a `*mut Child`.
pub(crate) extern "C" fn run(argument: *mut c_void) -> c_int {
    // SAFETY: the parent passes a Child of its own and touches nothing of it until we execute or exit.
    let child = unsafe { &mut *argument.cast::<Child<'_>>() };
    let Err(outcome) = steps(child);
    child.outcome = outcome;
    loop {
        // SAFETY: takes a number; does not return.
        let _ = unsafe { nestbox_sys::syscall!(libc::SYS_exit_group, 127) };
    }
}

/// Every step from clone to exec, in order. What needs no launch comes first, so that a parked child has done it.
fn steps<'a>(child: &mut Child<'a>) -> Result<Infallible, Outcome<'a>> {
    isolate(child).map_err(Outcome::Failed)?;
    let launch = match child.task {
        Task::Launch(launch) => launch,
        Task::Park(parking) => wait_for_launch(child, parking)?,
    };
    child.launch = Some(launch);
    carry_out(child, launch).map_err(Outcome::Failed)
}

/// Who the sandboxee is and what it may not do.
fn isolate(child: &mut Child<'_>) -> Result<(), Fault<'static>> {
    create_session()?;
    if child.sandboxed {
        set_outer_ids(child.ids)?;
        create_user_namespace(child.proc, child.ids)?;
        child.marks.add(Step::WriteIdMaps);
    }
    reset_signals()?;
    if child.die_with_parent {
        // After the last change of credentials, which clears it.
        prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as usize).at(Step::CreateSession, "prctl", b"")?;
    }
    if child.sandboxed {
        drop_privileges()?;
        child.marks.add(Step::DropBoundingSet);
        if child.core_scheduling {
            schedule_cores()?;
        }
    }
    // SAFETY: takes a number.
    let _ = unsafe { nestbox_sys::syscall!(libc::SYS_umask, 0o022) };
    Ok(())
}

/// Waits, as ready as can be, for the launch.
fn wait_for_launch<'a>(child: &mut Child<'a>, parking: Parking) -> Result<&'a Prepared<'a>, Outcome<'a>> {
    report::parked(parking.socket());
    if parked::UNDER_FILTER {
        install(child).map_err(Outcome::Failed)?;
    }
    let orders = parked::wait(parking, child.ids, &mut child.marks);
    match orders.map_err(Outcome::Failed)? {
        Orders::Launch(launch) => Ok(launch),
        Orders::Dismissed => Err(Outcome::Dismissed),
        Orders::MakeWay => Err(Outcome::MadeWay),
    }
}

/// The launch's own part, and the exec.
fn carry_out<'a>(child: &mut Child<'a>, launch: &'a Prepared<'a>) -> Result<Infallible, Fault<'a>> {
    if launch.crash_report {
        // Before the filter; so a parked child, which has it on, makes way for such a launch.
        crash::trace_me().at(Step::TraceProgram, "ptrace", b"traceme")?;
    }
    if let Some(ruleset) = child.ruleset {
        // While the ruleset and what is passed are where they were received.
        landlock::enforce(ruleset, launch)?;
    }
    if child.listens {
        // While it has init's fd table.
        install(child)?;
    }
    map_fds(launch)?;
    // In the nested user namespace: RLIMIT_NPROC set before it counts all of the caller's sandboxes together.
    set_limits(launch)?;
    change_directory(launch)?;
    if child.sandboxed {
        if !child.speculation {
            forbid_speculation()?;
        }
        install(child)?;
    }
    child.marks.add_at(Step::InstallFilter, now());
    execute(launch)
}

/// CLOCK_MONOTONIC in nanoseconds, by the call itself: where the vDSO has no clock it would make the call without the
/// cookie.
pub(crate) fn now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a timespec of ours.
    let _ = unsafe { nestbox_sys::syscall!(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Own session and process group: no controlling terminal, and a signal to the host's group does not reach it.
fn create_session() -> Result<(), Fault<'static>> {
    // SAFETY: takes nothing.
    unsafe { nestbox_sys::syscall!(libc::SYS_setsid) }.at(Step::CreateSession, "setsid", b"").map(drop)
}

/// Gives the sandboxee exactly its own fds. 0-2 are the null device unless mapped. Comes after the id maps, whose proc fd
/// may sit where a target belongs.
///
/// Everything else is closed here and not by the exec: until then this process's `/proc/self/fd` can be named by the
/// caller's paths, and a working directory or a program below one of ours (the template's proc, a namespace, a bind
/// source) would be a way out.
fn map_fds(launch: &Prepared<'_>) -> Result<(), Fault<'static>> {
    let step = Step::MapFds;
    let copy = |from: RawFd, to: RawFd, flags: c_int| {
        // SAFETY: numbers only.
        unsafe { nestbox_sys::syscall!(libc::SYS_dup3, from, to, flags) }.at(step, "dup3", b"fd")
    };
    let close = |first: u32, last: u32| {
        // SAFETY: numbers only; nothing here uses the fds of that range any more.
        unsafe { nestbox_sys::syscall!(libc::SYS_close_range, first, last, 0) }.at(step, "close_range", b"")
    };
    let all = || launch.fds.iter().zip(0..);
    if let Some(staging) = launch.staging {
        for (&(from, _), index) in all() {
            copy(from, staging + index, libc::O_CLOEXEC)?;
        }
        if let Program::Fd(program) = launch.program {
            copy(program, staging + launch.fds.len() as RawFd, libc::O_CLOEXEC)?;
        }
    }
    for (&(from, to), index) in all() {
        copy(launch.staging.map_or(from, |staging| staging + index), to, 0)?;
    }
    let mut first = 3;
    for &fd in &launch.kept {
        let fd = fd as u32;
        if fd > first {
            close(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close(first, u32::MAX).map(drop)
}

/// Under a root host: leave the host's root for the unprivileged outer id, in U0. The host's supplementary groups are
/// gone since U0 was entered.
fn set_outer_ids(ids: Ids) -> Result<(), Fault<'static>> {
    let step = Step::SetIds;
    if ids.privileged {
        let (uid, gid) = (ids.outer_uid, ids.outer_gid);
        // SAFETY: numbers only.
        unsafe { nestbox_sys::syscall!(libc::SYS_setresgid, gid, gid, gid) }.at(step, "setresgid", b"")?;
        // SAFETY: numbers only.
        unsafe { nestbox_sys::syscall!(libc::SYS_setresuid, uid, uid, uid) }.at(step, "setresuid", b"")?;
    }
    Ok(())
}

/// U1: a user namespace nested in the one that owns the nest's other namespaces. No capability in it means anything
/// there, so the mounts, the network and the hostname are out of the sandboxee's reach even without the filter.
fn create_user_namespace(proc: RawFd, ids: Ids) -> Result<(), Fault<'static>> {
    // The id maps of a non-dumpable process can't be written by its owner. The flag belongs to the memory that we share
    // with init, so it is set for this moment alone: were it left to init to clear it after the exec, the program would
    // already run, and find `/proc/1/fd` open.
    let dumpable = |value| {
        prctl(libc::PR_SET_DUMPABLE, value).at(Step::CreateUserNamespace, "prctl", b"PR_SET_DUMPABLE")
    };
    dumpable(1)?;
    unshare(libc::CLONE_NEWUSER).at(Step::CreateUserNamespace, "unshare", b"nested user namespace")?;
    write_single_maps(
        proc,
        c"self/setgroups",
        c"self/uid_map",
        c"self/gid_map",
        [ids.inside_uid, ids.inside_gid],
        [ids.outer_uid, ids.outer_gid],
    )
    .map_err(|(errno, path)| Fault::new(Step::WriteIdMaps, errno, "write", path))?;
    dumpable(0).map(drop)
}

fn set_limits(launch: &Prepared<'_>) -> Result<(), Fault<'static>> {
    let step = Step::SetLimits;
    let hard = |resource: u32| {
        let mut have = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a struct of ours.
        unsafe { nestbox_sys::syscall!(libc::SYS_prlimit64, 0, resource, 0, &raw mut have) }
            .at(step, "prlimit", b"")
            .map(|_| have.rlim_max)
    };
    for &(resource, value) in &launch.rlimits {
        let set = |rlim_cur: u64, rlim_max: u64| {
            let limit = libc::rlimit64 { rlim_cur, rlim_max };
            // SAFETY: a struct of ours.
            unsafe { nestbox_sys::syscall!(libc::SYS_prlimit64, 0, resource, &raw const limit, 0) }
        };
        // CPU time is init's to keep; what a process gains by raising its own limit ends at that. The hard one would be for
        // good, and the host may raise what the nest has.
        if resource == libc::RLIMIT_CPU {
            let most = hard(resource)?;
            set(value.min(most), most).at(step, "prlimit", b"")?;
            continue;
        }
        match set(value, value) {
            Ok(_) => {}
            // Above the hard limit that we run under: that one is tighter than what was asked for, and holds.
            Err(Errno::EPERM) => {
                let most = hard(resource)?;
                // Or it was refused for another reason.
                if most >= value {
                    return Err(Fault::new(step, Errno::EPERM, "prlimit", b""));
                }
                set(most, most).at(step, "prlimit", b"")?;
            }
            Err(errno) => return Err(Fault::new(step, errno, "prlimit", b"")),
        }
    }
    Ok(())
}

/// From `/`, so that a relative or failing path never leaves the sandboxee where its parent stood.
fn change_directory<'a>(launch: &'a Prepared<'_>) -> Result<(), Fault<'a>> {
    let step = Step::ChangeDirectory;
    let change = |path: &CStr| {
        // SAFETY: a C string.
        unsafe { nestbox_sys::syscall!(libc::SYS_chdir, path.as_ptr()) }
    };
    change(c"/").at(step, "chdir", b"/")?;
    change(&launch.cwd).at(step, "chdir", launch.cwd.to_bytes()).map(drop)
}

/// Default dispositions and an empty mask. Our own processes ignore SIGCHLD and block everything; both would survive
/// the exec.
fn reset_signals() -> Result<(), Fault<'static>> {
    set_default(libc::SIGCHLD).at(Step::ResetSignals, "rt_sigaction", b"SIGCHLD")?;
    set_signal_mask(0);
    Ok(())
}

/// `struct sigaction` as the kernel has it: handler, flags, restorer, mask. All zero is SIG_DFL.
#[repr(C)]
struct KernelSigaction([usize; 4]);

/// Sets `signal` to its default disposition.
pub(crate) fn set_default(signal: c_int) -> Result<(), Errno> {
    let action = KernelSigaction([0; 4]);
    // SAFETY: a struct of ours; the mask has 8 bytes.
    unsafe { nestbox_sys::syscall!(libc::SYS_rt_sigaction, signal, &raw const action, 0, 8) }.map(drop)
}

/// Blocks exactly the signals of `mask`.
pub(crate) fn set_signal_mask(mask: u64) {
    // SAFETY: a mask of 8 bytes of ours. It can't fail with a valid pointer and size.
    let _ =
        unsafe { nestbox_sys::syscall!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, 0, 8) };
}

/// After the new user namespace gave us every capability there: none, in all five sets. Effective and permitted go at
/// exec, ambient and inheritable are empty; the bounding set has to be emptied by hand (capabilities(7)).
fn drop_privileges() -> Result<(), Fault<'static>> {
    capabilities::drop_bounding_set().at(Step::DropBoundingSet, "prctl", b"")?;
    capabilities::keep_only(0).at(Step::DropBoundingSet, "capset", b"")?;
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).at(Step::SetNoNewPrivs, "prctl", b"").map(drop)
}

/// No speculative store bypass, no indirect branch speculation, for good. A processor without the control has nothing
/// to switch off. Shortly before the exec, since from then on the kernel has the processor forget its branches (IBPB) with each
/// switch to another memory: 6 µs each, of which a parked process would cost its launch two.
fn forbid_speculation() -> Result<(), Fault<'static>> {
    for feature in Feature::ALL {
        match feature.forbid() {
            Ok(_) | Err(Errno::ENODEV | Errno::ENXIO | Errno::EINVAL) => {}
            // Restricted already, or nothing that a program may decide.
            Err(Errno::EPERM) if !feature.could_be_forbidden() => {}
            Err(errno) => return Err(Fault::new(Step::SetNoNewPrivs, errno, "prctl", b"speculation")),
        }
    }
    Ok(())
}

/// A core of its own: with a cookie that only the nest's processes have, which inherit it, the kernel runs nobody else's
/// threads beside theirs on one core (core scheduling). Unlike the controls of speculation it was asked for, so a machine that
/// can't do it fails the launch.
fn schedule_cores() -> Result<(), Fault<'static>> {
    const PR_SCHED_CORE: c_int = 62;
    const PR_SCHED_CORE_CREATE: usize = 1;
    // SAFETY: numbers only. The pid 0 is the caller, and so is the scope 0.
    unsafe { nestbox_sys::syscall!(libc::SYS_prctl, PR_SCHED_CORE, PR_SCHED_CORE_CREATE, 0, 0, 0) }
        .at(Step::ScheduleCores, "prctl", b"PR_SCHED_CORE")
        .map(drop)
}

/// Installs the filter, unless that was done.
fn install(child: &mut Child<'_>) -> Result<(), Fault<'static>> {
    let filter = std::mem::take(&mut child.filter);
    if filter.is_empty() {
        return Ok(());
    }
    if child.listens {
        child.listener = Some(listener::install(filter)?);
        return Ok(());
    }
    install_filter(filter).at(Step::InstallFilter, "seccomp", b"")
}

/// Executes the program; comes back only with the reason why not. Among several candidates the first errno that says
/// more than "not here" counts, as in execvp(3).
fn execute<'a>(launch: &'a Prepared<'_>) -> Result<Infallible, Fault<'a>> {
    let exec_fault = |errno, syscall, detail| {
        let oversized = errno == Errno::E2BIG && launch.has_oversized_string();
        let detail =
            if oversized { "one argument or variable is longer than the kernel takes any" } else { detail };
        Fault { exec: true, ..Fault::new(Step::Exec, errno, syscall, launch.file).detail(detail) }
    };
    match &launch.program {
        Program::Fd(fd) => {
            let fd = launch.staging.map_or(*fd, |staging| staging + launch.fds.len() as RawFd);
            // SAFETY: the vectors are null-terminated and point to C strings.
            let answer = unsafe {
                nestbox_sys::syscall!(
                    libc::SYS_execveat,
                    fd,
                    c"".as_ptr(),
                    launch.argv(),
                    launch.envp(),
                    libc::AT_EMPTY_PATH
                )
            };
            let detail = "an interpreter of a script can't open a close-on-exec fd";
            let errno = answer.err().unwrap_or(Errno::EIO);
            Err(exec_fault(errno, "execveat", if errno == Errno::ENOENT { detail } else { "" }))
        }
        Program::Paths(candidates) => {
            let mut found = Errno::ENOENT;
            let mut detail = "";
            for path in candidates {
                // SAFETY: as above.
                let answer = unsafe {
                    nestbox_sys::syscall!(libc::SYS_execve, path.as_ptr(), launch.argv(), launch.envp())
                };
                match answer.err().unwrap_or(Errno::EIO) {
                    Errno::ENOENT if exists(path) => {
                        detail =
                            "the file exists, but its interpreter (of a script or the ELF loader) does not";
                        break;
                    }
                    Errno::ENOENT | Errno::ENOTDIR => {}
                    Errno::EACCES => found = Errno::EACCES,
                    errno => return Err(exec_fault(errno, "execve", "")),
                }
            }
            Err(exec_fault(found, "execve", detail))
        }
    }
}

fn exists(path: &CStr) -> bool {
    // SAFETY: a C string.
    unsafe { nestbox_sys::syscall!(libc::SYS_faccessat, libc::AT_FDCWD, path.as_ptr(), libc::F_OK) }.is_ok()
}

/// Starts the child, as `pid` if that is given; returns its pid once it has executed or given up.
///
/// # Safety
/// `stack` must be the high end of memory that nobody else uses meanwhile, aligned to 16 bytes.
pub(crate) unsafe fn start(
    child: &mut Child<'_>,
    stack: *mut c_void,
    pid: Option<i32>,
) -> Result<i32, Errno> {
    let argument = std::ptr::from_mut(child).cast();
    let parked = matches!(child.task, Task::Park(_));
    let flags = if child.listens { listener::FLAGS } else { 0 };
    match pid {
        // SAFETY: `run` unwinds nowhere and does not return; all signals are blocked in every process of ours. A parked
        // child allocates, with its parent's allocator: that one sleeps outside of it.
        None if parked => unsafe { process::clone_and_sleep(stack, run, argument, flags) },
        // SAFETY: as above.
        None => unsafe { process::vfork_on(stack, run, argument, flags) },
        // SAFETY: as above.
        Some(pid) => unsafe { process::vfork_as(pid, stack, run, argument, flags) },
    }
}
