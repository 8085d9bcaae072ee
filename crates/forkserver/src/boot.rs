//! What the fork server does before its first request: shed everything it inherited from the host.
//!
//! Promises: its own session, no terminal, no fds but the null device and its control socket; default priority,
//! affinity, personality, umask and signal dispositions; no capabilities, no session keyring, not dumpable; dead when
//! the host is. Called once, by `main`.

use std::os::fd::RawFd;

use nestbox_protocol::Step;
use nestbox_sys::{Errno, process, rseq};

use crate::capabilities;
use crate::fault::{At, Fault};

/// The control socket, in every process of ours.
pub(crate) const CONTROL_FD: RawFd = 3;

const STEP: Step = Step::StartForkserver;

const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
const KEYCTL_REVOKE: usize = 3;
const KEY_SPEC_SESSION_KEYRING: usize = -3_isize as usize;

/// Sheds what was inherited. Capabilities are kept until [`drop_capabilities`].
pub(crate) fn shed_inheritance() -> Result<(), Fault<'static>> {
    // The parent's *thread* that spawned us must live as long as the host (prctl(2)); the client sees to that. Should
    // the host have died before this line, its end of the control socket is closed and the first receive ends us.
    let set = |option, value: usize, name| process::prctl(option, value).at(STEP, "prctl", name);
    set(libc::PR_SET_PDEATHSIG, libc::SIGKILL as usize, b"PR_SET_PDEATHSIG")?;
    process::close_range(CONTROL_FD as u32 + 1, u32::MAX, 0).at(STEP, "close_range", b"")?;
    let _ = process::prctl(libc::PR_SET_NAME, c"nestbox-server".as_ptr() as usize);
    set(libc::PR_SET_DUMPABLE, 0, b"PR_SET_DUMPABLE")?;
    // Orphans of launches without namespaces come to us when their supervisor is gone, not to the host's init.
    set(libc::PR_SET_CHILD_SUBREAPER, 1, b"PR_SET_CHILD_SUBREAPER")?;
    // Each sandboxee gets a session of its own, or none is launched.
    let _ = nix::unistd::setsid();
    let _ = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    nix::unistd::chdir("/").at(STEP, "chdir", b"/")?;
    // SAFETY: takes a number.
    unsafe { libc::personality(0) };
    // Raising the own priority needs a privilege; where it is missing the host's stays.
    // SAFETY: takes numbers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
    ordinary_scheduling();
    let cpus = [0xff_u8; 1024];
    // SAFETY: the set is as long as said; processors that do not exist are passed over.
    unsafe { libc::sched_setaffinity(0, cpus.len(), cpus.as_ptr().cast()) };
    let _ = process::write_file_at(libc::AT_FDCWD, c"/proc/self/oom_score_adj", b"0");
    rseq::leave();
    reset_signals()?;
    raise_fd_limit();
    leave_session_keyring()
}

/// The ordinary scheduling class, and no right to another: a host that is in a real-time class, or may enter one, would pass it
/// on, and a sandboxee there lets nobody run who would end it (sched(7)). To give up needs no privilege.
fn ordinary_scheduling() {
    let _ = process::set_scheduling(libc::SCHED_OTHER);
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    for resource in [libc::RLIMIT_RTPRIO, libc::RLIMIT_NICE] {
        // SAFETY: a struct of ours.
        unsafe { libc::setrlimit(resource, &raw const none) };
    }
}

/// Default dispositions, everything blocked. Children are reaped by the kernel (`SA_NOCLDWAIT` by ignoring SIGCHLD):
/// nobody here waits for anyone, so nothing may become a zombie. With every signal blocked there is no handler to run
/// on the launch child's borrowed stack, and a SIGTERM meant for the host changes nothing.
fn reset_signals() -> Result<(), Fault<'static>> {
    for signal in 1..=64 {
        let disposition = if signal == libc::SIGCHLD { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: SIG_DFL and SIG_IGN run no code of ours.
        let before = unsafe { libc::signal(signal, disposition) };
        // SIGKILL, SIGSTOP and libc's own two.
        if before == libc::SIG_ERR && Errno::last() != Errno::EINVAL {
            return Err(Fault::new(STEP, Errno::last(), "rt_sigaction", b""));
        }
    }
    crate::child::set_signal_mask(u64::MAX);
    Ok(())
}

/// Joins a fresh session keyring and revokes it: descendants inherit a keyring that holds nothing and can hold nothing,
/// so no two sandboxes share keys, at no cost per launch and none of the quota of 200 keys (keyrings(7)).
///
/// Failing, it would leave them the host's: with the quota used up, say. Where the call does not exist, or a filter
/// around the host refuses it, it does so for them as well.
fn leave_session_keyring() -> Result<(), Fault<'static>> {
    // SAFETY: a null name is allowed: an anonymous keyring.
    match unsafe { nestbox_sys::syscall!(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0) } {
        Ok(_) => {}
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EACCES) => return Ok(()),
        Err(errno) => return Err(Fault::new(STEP, errno, "keyctl", b"session keyring")),
    }
    // SAFETY: numbers only.
    unsafe { nestbox_sys::syscall!(libc::SYS_keyctl, KEYCTL_REVOKE, KEY_SPEC_SESSION_KEYRING) }
        .at(STEP, "keyctl", b"session keyring")
        .map(drop)
}

/// A template holds the fds of the launch that it is just handing over; the soft limit must not be in the way.
fn raise_fd_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a struct of ours.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: a struct of ours.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}

/// Drops all capabilities. The bounding set stays: `unsandboxed` launches run as the host would, and a setuid program
/// that they execute may gain what it would have gained there.
///
/// A root without ids to give keeps the one that its own id map needs: who maps a parent's uid 0 must have had
/// `CAP_SETFCAP` when it was forked (user_namespaces(7), Linux 5.12).
pub(crate) fn drop_capabilities(privileged: bool) -> Result<(), Fault<'static>> {
    let keep = if privileged { 0 } else { capabilities::CAP_SETFCAP };
    let held = capabilities::permitted().unwrap_or(0);
    capabilities::keep_only(keep & held).at(Step::DropCapabilities, "capset", b"")
}

/// Ties this process's life to its parent's. `parent` is the parent's pid as it was before the fork: if it is another
/// by now, the parent died before the signal was armed. Must come after the last change of credentials, which would
/// clear it (prctl(2), `PR_SET_PDEATHSIG`).
pub(crate) fn die_with_parent(parent: i32) -> Result<(), Errno> {
    process::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as usize)?;
    if nix::unistd::getppid().as_raw() == parent { Ok(()) } else { Err(Errno::ESRCH) }
}
