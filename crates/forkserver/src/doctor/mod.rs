//! `nestbox-forkserver doctor`: tries everything that a launch needs, each in a child that is thrown away, and tells what
//! happened.
//!
//! Promises: nothing of the machine or of the host process is changed (a cgroup that is made to see whether it can be is
//! removed at once); a probe that hangs or is killed, by a syscall filter for one, is told like any other failure; what
//! builds on something that failed is not tried but told to be so. Wherever it can, a probe runs the very function that
//! the launch path runs. Started by `crates/client/src/doctor.rs` with its socket as fd 3: one [`nestbox_protocol::Probe`] a
//! packet, then the end of file. Which cause a failure has and what to do about it is the client's to say.

mod calls;
mod cgroups;
mod probes;

use std::os::fd::{AsFd, BorrowedFd};

use nestbox_protocol::Probe;
use nestbox_sys::{Errno, packet, process};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::{ForkResult, Pid};

use crate::boot::CONTROL_FD;
use crate::fault::Fault;
use crate::mounter::failure;
use crate::privileged;
use crate::server::{self, Server};

/// How long a probe may take, in seconds. They take microseconds.
const PATIENCE: u32 = 5;

/// What a probe found; empty where it has nothing to say but that it works.
type Found = Result<String, Fault<'static>>;

/// One thing to try.
struct Attempt {
    name: &'static str,
    required: bool,
    /// What it builds on.
    needs: &'static str,
    run: fn(Server) -> Found,
}

const fn required(name: &'static str, needs: &'static str, run: fn(Server) -> Found) -> Attempt {
    Attempt { name, required: true, needs, run }
}

const fn optional(name: &'static str, needs: &'static str, run: fn(Server) -> Found) -> Attempt {
    Attempt { name, required: false, needs, run }
}

/// In the order of a launch, so that the first failure is the one to look at.
const ATTEMPTS: [Attempt; 20] = [
    required("system-calls", "", calls::refused),
    required("user-namespace", "", probes::user_namespace),
    required("mount-namespace", "user-namespace", probes::mount_namespace),
    required("id-maps", "mount-namespace", probes::id_maps),
    required("tmpfs", "id-maps", probes::tmpfs),
    required("pivot-root", "tmpfs", probes::pivot_root),
    required("bind-mounts", "id-maps", probes::bind_mounts),
    required("pid-namespace", "id-maps", probes::pid_namespace),
    required("proc", "pid-namespace", probes::proc),
    required("devpts", "tmpfs", probes::devpts),
    required("ipc-namespace", "id-maps", probes::ipc_namespace),
    required("uts-namespace", "id-maps", probes::uts_namespace),
    required("cgroup-namespace", "id-maps", probes::cgroup_namespace),
    required("network-namespace", "id-maps", probes::network_namespace),
    required("nested-user-namespace", "id-maps", probes::nested_user_namespace),
    required("seccomp-filter", "", probes::seccomp_filter),
    optional("seccomp-notifications", "seccomp-filter", probes::seccomp_notifications),
    optional("landlock", "", probes::landlock),
    optional("cgroup-v2", "", cgroups::version_2),
    optional("cgroup-v1", "", cgroups::version_1),
];

/// Tries it all, and exits.
pub(crate) fn run() -> ! {
    // SAFETY: the client starts us with its socket there, and it stays open until we exit.
    let socket = unsafe { BorrowedFd::borrow_raw(CONTROL_FD) };
    let _ = process::close_range(CONTROL_FD as u32 + 1, u32::MAX, 0);
    // Inherited from the host, where SIGCHLD may be ignored: our children are waited for. SIGALRM has to end a probe.
    for signal in [libc::SIGCHLD, libc::SIGALRM] {
        // SAFETY: SIG_DFL runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    crate::child::set_signal_mask(0);
    let server = server();
    let mut failed: Vec<&'static str> = Vec::new();
    for attempt in &ATTEMPTS {
        let mut probe =
            Probe { name: attempt.name.to_owned(), required: attempt.required, ..Probe::default() };
        if failed.contains(&attempt.needs) {
            attempt.needs.clone_into(&mut probe.needs);
            failed.push(attempt.name);
        } else {
            match attempt_in_child(socket, &probe, attempt, server) {
                Ok(true) => continue,
                Ok(false) => {
                    failed.push(attempt.name);
                    continue;
                }
                Err(fault) => {
                    failed.push(attempt.name);
                    probe.failure = Some(failure(&fault));
                }
            }
        }
        tell(socket, &probe);
    }
    crate::exit(0)
}

/// As the fork server sees itself, with a privileged helper where it would have one.
fn server() -> Server {
    let privileged = server::is_privileged().unwrap_or(false);
    // Without the helper the probes are those of an unprivileged host; that clone3 is refused is told by another probe.
    Server { pid: nix::unistd::getpid().as_raw(), privileged: privileged && privileged::start().is_ok() }
}

/// The child's exit status for a probe that worked, and for one that failed and has told so.
const WORKED: i32 = 0;
const FAILED: i32 = 1;

/// Runs one in a child, which tells what it found; whether it works. An error: the child could not tell.
fn attempt_in_child(
    socket: BorrowedFd<'_>,
    probe: &Probe,
    attempt: &Attempt,
    server: Server,
) -> Result<bool, Fault<'static>> {
    // fork(2), not clone3(2): many containers refuse the latter, which is a finding and not the end of the examination.
    // SAFETY: single-threaded.
    let child = match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Child) => {
            let (probe, status) = examine(probe.clone(), attempt, server);
            tell(socket, &probe);
            crate::exit(status)
        }
        Ok(ForkResult::Parent { child }) => child,
        Err(errno) => return Err(fault(errno, "fork", b"a probe's process")),
    };
    match nix::sys::wait::waitpid(child, None) {
        Ok(WaitStatus::Exited(_, WORKED)) => Ok(true),
        Ok(WaitStatus::Exited(_, FAILED)) => Ok(false),
        Ok(WaitStatus::Signaled(_, Signal::SIGSYS, _)) => Err(fault(Errno::EPERM, "", b"")
            .detail("killed by SIGSYS: a syscall filter refuses one of its calls")),
        Ok(WaitStatus::Signaled(_, Signal::SIGALRM, _)) => {
            Err(fault(Errno::ETIMEDOUT, "", b"").detail("it did not end within 5 seconds"))
        }
        _ => Err(fault(Errno::EPERM, "", b"").detail("its process was killed")),
    }
}

fn examine(mut probe: Probe, attempt: &Attempt, server: Server) -> (Probe, i32) {
    // SAFETY: takes a number; SIGALRM's default action ends this process.
    unsafe { libc::alarm(PATIENCE) };
    match (attempt.run)(server) {
        Ok(value) => {
            probe.value = value;
            (probe, WORKED)
        }
        Err(fault) => {
            probe.failure = Some(failure(&fault));
            (probe, FAILED)
        }
    }
}

/// Forks a probe's own child: `None` in it. It ends with the probe or after the same time, and does not hold the socket,
/// whose end the client waits for.
fn fork() -> Result<Option<Pid>, Errno> {
    // SAFETY: single-threaded.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => {
            let _ = process::close_range(CONTROL_FD as u32, CONTROL_FD as u32, 0);
            let _ = process::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as usize);
            // SAFETY: takes a number; SIGALRM's default action ends this process.
            unsafe { libc::alarm(PATIENCE) };
            Ok(None)
        }
    }
}

/// A client that has gone needs no answer.
fn tell(socket: BorrowedFd<'_>, probe: &Probe) {
    let _ = packet::send_message(socket.as_fd(), probe, &[], 0);
}

/// A failure outside the steps of a launch.
fn fault(errno: Errno, syscall: &'static str, path: &'static [u8]) -> Fault<'static> {
    Fault::new(nestbox_protocol::Step::Unspecified, errno, syscall, path)
}
