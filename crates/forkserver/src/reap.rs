//! The processes of a nest as their init has them: hears of those that ended, reaps them, and kills those that are left.
//!
//! Promises: nobody is signalled who may have been reaped; after [`kill_all`] nobody of the nest is alive. In a pid namespace that
//! is everybody; without one, whoever can be found (`PR_SET_CHILD_SUBREAPER` has their parents' children come to us). Called by
//! [`crate::init`] and [`crate::watch`].

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nestbox_protocol::Step;
use nestbox_sys::{Errno, process};

use crate::child;
use crate::crash::Tracer;
use crate::fault::{At, Fault};
use crate::template::PROC_FD;

/// How the sandboxee ended, as waitid(2) tells it.
#[derive(Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) signaled: bool,
    pub(crate) status: i32,
}

impl Ended {
    /// As the siginfo of a child that has ended tells.
    fn of(info: &libc::siginfo_t) -> Self {
        // SAFETY: waitid filled in a SIGCHLD siginfo.
        let status = unsafe { info.si_status() };
        Self { signaled: info.si_code != libc::CLD_EXITED, status }
    }
}

/// What tells a supervisor that the fork server is dead.
pub(crate) const PARENT_DIED: i32 = libc::SIGTERM;

/// Takes one signal off the signalfd. The number comes first in a `struct signalfd_siginfo`.
pub(crate) fn next_signal(signals: BorrowedFd<'_>) -> Option<i32> {
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

/// How the program `main` ended and what it used, if it has ended and there was never anybody else in this nest. Then nobody is
/// left, and init need not reap it to find that out: to take down what the kernel and proc have of a process takes 40 µs,
/// which the result would wait for. It goes with init.
///
/// The kernel tells in `loadavg` which number it gave out last in the reader's pid namespace (fs/proc/loadavg.c): `main`'s, the
/// first after init's, if no other process or thread was ever made. Numbers start over at 300 (kernel/pid.c), and nobody in
/// the nest has the power to choose one.
pub(crate) fn alone(main: i32, loadavg: RawFd) -> Option<(Ended, libc::rusage)> {
    // SAFETY: all-zero is a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    let (to, used) = (&raw mut info, &raw mut usage);
    // SAFETY: structs of ours.
    unsafe { nestbox_sys::syscall!(libc::SYS_waitid, libc::P_PID, main, to, options, used) }.ok()?;
    // SAFETY: waitid filled in a SIGCHLD siginfo, or left the zeroes.
    if unsafe { info.si_pid() } != main || last_number(loadavg) != Some(main) {
        return None;
    }
    Some((Ended::of(&info), usage))
}

/// The last field of `loadavg`.
fn last_number(loadavg: RawFd) -> Option<i32> {
    let mut text = [0_u8; 64];
    let (to, room) = (text.as_mut_ptr(), text.len());
    // SAFETY: a buffer of ours, as long as said.
    let length = unsafe { nestbox_sys::syscall!(libc::SYS_pread64, loadavg, to, room, 0) }.ok()?;
    let line = text.get(..length)?.strip_suffix(b"\n")?;
    std::str::from_utf8(line.rsplit(|&byte| byte == b' ').next()?).ok()?.parse().ok()
}

/// How many children that ended or stopped are dealt with before init looks at the clock and the host again: on many
/// processors a nest can make them as fast as they are reaped, for ever.
const TOGETHER: usize = 64;

/// Who is left after [`reap`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Nobody,
    /// Children of which none has ended.
    Alive,
    /// Children of which more may have ended: nothing else will tell of them.
    Unreaped,
}

/// Reaps what has ended, or, if `block`, everybody; notes how `main` ended.
pub(crate) fn reap(
    block: bool,
    main: i32,
    ended: &mut Option<Ended>,
    mut tracer: Option<&mut Tracer>,
) -> Left {
    let stops = if tracer.is_some() { libc::WSTOPPED } else { 0 };
    let options = libc::WEXITED | libc::__WALL | stops | if block { 0 } else { libc::WNOHANG };
    let mut dealt_with = 0;
    while block || dealt_with < TOGETHER {
        // SAFETY: all-zero is a valid siginfo.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: a struct of ours.
        let waited =
            unsafe { nestbox_sys::syscall!(libc::SYS_waitid, libc::P_ALL, 0, &raw mut info, options, 0) };
        match waited {
            Err(Errno::EINTR) => continue,
            Err(_) => return Left::Nobody,
            Ok(_) => dealt_with += 1,
        }
        // SAFETY: waitid filled in a SIGCHLD siginfo, or left the zeroes.
        let pid = unsafe { info.si_pid() };
        if pid == 0 {
            return Left::Alive;
        }
        if let Some(tracer) = tracer.as_deref_mut()
            && matches!(info.si_code, libc::CLD_TRAPPED | libc::CLD_STOPPED)
        {
            // For a stop it is the signal.
            tracer.stopped(pid, PROC_FD, Ended::of(&info).status);
        } else if pid == main {
            *ended = Some(Ended::of(&info));
        }
    }
    Left::Unreaped
}

/// Ends everything: kill, reap, until nobody is left.
pub(crate) fn kill_all(
    pid_namespace: bool,
    main: i32,
    ended: &mut Option<Ended>,
    mut tracer: Option<&mut Tracer>,
) {
    if let Some(tracer) = tracer.as_deref_mut() {
        tracer.give_up();
    }
    // Most programs leave nobody: then there is no child to wait for, and so nobody to kill.
    while reap(false, main, ended, tracer.as_deref_mut()) != Left::Nobody {
        if pid_namespace {
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

/// A signalfd for SIGCHLD. The template ignores it, and then children would vanish unseen.
///
/// Without a pid namespace it also tells of the parent's death, which must not be this process's own at once: a program
/// that gains capabilities by its exec (that of a root host does) loses its death signal there, and so has to be killed.
pub(crate) fn watch_signals(pid_namespace: bool) -> Result<OwnedFd, Fault<'static>> {
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
