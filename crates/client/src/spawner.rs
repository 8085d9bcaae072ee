//! The thread that starts fork servers.
//!
//! A fork server dies with the *thread* that started it (`PR_SET_PDEATHSIG`, prctl(2)), so this thread lives as long as
//! the process: it is never a Node.js worker or a pool thread. It also reaps the fork servers, so none is left a zombie
//! whoever closes it and when. Promises: the host is never forked (clone(2) with `CLONE_VM | CLONE_VFORK` on a stack of
//! its own: the size of the heap does not matter), and the child gets an empty environment, `/dev/null` as fds 0 to 2,
//! its socket as fd 3 and nothing else; none is started for a host with borrowed rights. Called by the client when it starts a
//! server.

use std::ffi::{CStr, CString, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use nestbox_protocol::Step;
use nestbox_sys::{Errno, process};
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{getegid, geteuid, getgid, getuid};

use crate::failure::{Code, Failure};
use crate::image::Image;

/// Room for the child's few frames between clone and exec.
const STACK: usize = 64 * 1024;

/// The child's fd of its socket.
const SOCKET_FD: c_int = 3;

/// One fork server as a process. Shared between the client that asked for it and the spawner.
#[derive(Debug, Default)]
pub(crate) struct ServerProcess {
    outcome: OnceLock<Result<Running, Failure>>,
    cancelled: AtomicBool,
}

#[derive(Debug)]
struct Running {
    pid: i32,
    pidfd: OwnedFd,
}

impl ServerProcess {
    /// Why it could not be started, if so. The client looks when the socket is at its end.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.outcome.get().and_then(|outcome| outcome.as_ref().err())
    }

    /// Its pid, once it runs.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.outcome.get().and_then(|outcome| outcome.as_ref().ok()).map(|running| running.pid)
    }

    /// SIGKILL, by pidfd: never another process with its number. If it has not started yet it never will.
    pub(crate) fn kill(&self) {
        self.cancelled.store(true, Ordering::Release);
        if let Some(Ok(running)) = self.outcome.get() {
            // ESRCH: it is dead already.
            let _ = process::pidfd_send_signal(running.pidfd.as_fd(), libc::SIGKILL);
        }
    }
}

/// What the thread is asked to start.
struct Order {
    image: Image,
    socket: OwnedFd,
    server: Arc<ServerProcess>,
}

struct Spawner {
    orders: Mutex<Vec<Order>>,
    wake: EventFd,
}

/// The thread's mailbox; an error if the thread could not be started, kept so that every caller hears of it.
static SPAWNER: OnceLock<Result<Arc<Spawner>, Errno>> = OnceLock::new();

/// Has a fork server started. Never blocks: the end of file on the other end of `socket` tells of a failure, which is
/// then in the returned [`ServerProcess`].
pub(crate) fn start(image: Image, socket: OwnedFd) -> Arc<ServerProcess> {
    let server = Arc::new(ServerProcess::default());
    if process::has_borrowed_rights() {
        // The socket is dropped here, so its end of file tells.
        let _ = server.outcome.set(Err(borrowed_rights()));
        return server;
    }
    match SPAWNER.get_or_init(Spawner::launch) {
        Ok(spawner) => {
            let order = Order { image, socket, server: Arc::clone(&server) };
            spawner.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
            // EAGAIN would mean 2^64 - 1 wake-ups that nobody took; the thread is awake then.
            let _ = spawner.wake.write(1);
        }
        Err(errno) => {
            // The socket is dropped here, so its end of file tells.
            let _ = server.outcome.set(Err(failure("clone", *errno)));
        }
    }
    server
}

/// A host with an effective user that is not its own. Sandboxees would keep the real one, root's for example, of which the
/// kernel asks who may send a signal and whose processes are counted.
fn borrowed_rights() -> Failure {
    let (uid, gid, acting_uid, acting_gid) = (getuid(), getgid(), geteuid(), getegid());
    let detail = format!(
        "this process is of user {uid}, group {gid}, and acts as user {acting_uid}, group {acting_gid}"
    );
    Failure::fact(Code::ForkServer, Step::StartForkserver, detail).advise(
        "be one user for good before the first launch: process.setgid() and process.setuid(), not setegid() and seteuid(); \
         and never make a host a set-user-ID program",
    )
}

fn failure(syscall: &str, errno: Errno) -> Failure {
    Failure::system(Code::ForkServer, Step::StartForkserver, syscall, errno)
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN))
}

impl Spawner {
    fn launch() -> Result<Arc<Self>, Errno> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let spawner = Arc::new(Self { orders: Mutex::default(), wake });
        let own = Arc::clone(&spawner);
        thread::Builder::new()
            .name("nestbox-spawner".into())
            .stack_size(256 * 1024)
            .spawn(move || own.run())
            .map_err(|error| errno_of(&error))?;
        Ok(spawner)
    }

    /// Waits for orders and for deaths, for as long as the process lives.
    fn run(&self) {
        // No signal handler of the host may run on this thread, least of all in the child that shares its memory.
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
        let mut stack = vec![0_u8; STACK];
        let mut alive: Vec<Arc<ServerProcess>> = Vec::new();
        loop {
            let mut waited = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            waited.extend(
                alive.iter().filter_map(|server| Some(PollFd::new(server.pidfd()?, PollFlags::POLLIN))),
            );
            // EINTR can't be (all signals are blocked); ENOMEM passes.
            let _ = poll(&mut waited, PollTimeout::NONE);
            drop(waited);
            let _ = self.wake.read();
            alive.retain(|server| !server.reap());
            let orders = std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner));
            for Order { image, socket, server } in orders {
                let outcome = if server.cancelled.load(Ordering::Acquire) {
                    Err(Failure::fact(Code::ForkServer, Step::StartForkserver, "closed before it started"))
                } else {
                    spawn(&image, &socket, &mut stack)
                };
                let started = outcome.is_ok();
                let _ = server.outcome.set(outcome);
                if server.cancelled.load(Ordering::Acquire) {
                    server.kill();
                }
                if started {
                    alive.push(server);
                }
                // Only now: the client looks at the outcome when it sees the end of file.
                drop(socket);
            }
        }
    }
}

impl ServerProcess {
    fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.outcome.get()?.as_ref().ok().map(|running| running.pidfd.as_fd())
    }

    /// Whether it ran and is dead, reaped or not. Who has seen one of its children die with it is told so: wait(2) and the
    /// sending of parent-death signals exclude each other (`tasklist_lock` in the kernel's `exit_notify`), which the
    /// readiness of a pidfd does not promise.
    pub(crate) fn is_dead(&self) -> bool {
        let Some(pidfd) = self.pidfd() else { return false };
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::PIDFd(pidfd), look) {
            // `StillAlive` has no pid.
            Ok(status) => status.pid().is_some(),
            // Reaped: by the spawner, or by someone in the host who waited for any child at all.
            Err(errno) => errno == Errno::ECHILD,
        }
    }

    /// Reaps it if it is dead; true if there is nothing left to reap.
    fn reap(&self) -> bool {
        let Some(pidfd) = self.pidfd() else { return true };
        let dead = self.is_dead();
        if dead {
            // ECHILD: somebody else has.
            let _ = waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
        }
        dead
    }

    /// That of a process of the test's own.
    #[cfg(test)]
    pub(crate) fn of(child: &std::process::Child) -> Self {
        let pid = child.id().cast_signed();
        let pidfd = process::pidfd_open(pid).expect("pidfd_open");
        let server = Self::default();
        assert!(server.outcome.set(Ok(Running { pid, pidfd })).is_ok(), "it is new");
        server
    }
}

/// Runs `executable` for its own sake rather than as a server, until it ends: what it sends is handed to `read`, whose end
/// of the socket the executable has as fd 3. Blocks.
pub(crate) fn run_to_end(
    executable: &OwnedFd,
    argument: &CStr,
    socket: OwnedFd,
    read: impl FnOnce() + Send,
) -> Result<(), Failure> {
    let ended = thread::scope(|scope| {
        let thread = thread::Builder::new().name("nestbox-doctor".into()).spawn_scoped(scope, || {
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
            let running = execute(executable, argument, &socket, &mut vec![0; STACK])?;
            drop(socket);
            read();
            // It may not outlive the reading, whatever it does.
            let _ = process::pidfd_send_signal(running.pidfd.as_fd(), libc::SIGKILL);
            let _ = waitid(Id::PIDFd(running.pidfd.as_fd()), WaitPidFlag::WEXITED);
            Ok(())
        });
        thread.map(thread::ScopedJoinHandle::join)
    });
    match ended {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => Err(failure("clone", errno_of(&error))),
    }
}

/// Starts one fork server, from a memfd or where that is forbidden from a file.
fn spawn(image: &Image, socket: &OwnedFd, stack: &mut [u8]) -> Result<Running, Failure> {
    let argument = CString::new(std::process::id().to_string()).unwrap_or_default();
    let first = image.open().and_then(|executable| execute(&executable, &argument, socket, stack));
    match first {
        Err(error) if is_forbidden(&error) => match image.open_as_file() {
            Some(executable) => execute(&executable?, &argument, socket, stack),
            None => Err(error),
        },
        other => other,
    }
    .map_err(|error| if error.path.is_some() { error } else { error.on(image.describe()) })
}

/// Executing memfds is what some systems forbid: `vm.memfd_noexec`, hardened kernels.
pub(crate) fn is_forbidden(failure: &Failure) -> bool {
    matches!(failure.errno, Errno::EACCES | Errno::EPERM)
}

/// Everything that the child needs, made before it exists: it may not allocate.
struct ChildPlan {
    null: RawFd,
    socket: RawFd,
    executable: RawFd,
    argv: [*const libc::c_char; 3],
    environment: [*const libc::c_char; 1],
    /// The errno of the call that failed, and which it was; written by the child, whose memory this is too.
    errno: c_int,
    failed: &'static str,
}

/// Runs the executable with one argument and the socket as its fd 3. All signals must be blocked in this thread.
fn execute(
    executable: &OwnedFd,
    argument: &CStr,
    socket: &OwnedFd,
    stack: &mut [u8],
) -> Result<Running, Failure> {
    // All above the numbers that the child fills, so that none is overwritten before it is used.
    let high = |fd: BorrowedFd<'_>| -> Result<OwnedFd, Failure> {
        let raw =
            fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(SOCKET_FD + 1)).map_err(|errno| failure("dup", errno))?;
        // SAFETY: F_DUPFD_CLOEXEC returned a new fd.
        Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) })
    };
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| failure("open", errno).on("/dev/null"))?;
    let (null, socket, executable) = (high(null.as_fd())?, high(socket.as_fd())?, high(executable.as_fd())?);
    let name = c"nestbox-forkserver";
    let mut plan = ChildPlan {
        null: null.as_raw_fd(),
        socket: socket.as_raw_fd(),
        executable: executable.as_raw_fd(),
        argv: [name.as_ptr(), argument.as_ptr(), std::ptr::null()],
        environment: [std::ptr::null()],
        errno: 0,
        failed: "",
    };
    let mut tries = 0;
    loop {
        plan.errno = 0;
        // Stacks grow down, from an address aligned as both ABIs want it.
        let end = stack.as_mut_ptr_range().end as usize & !63;
        // SAFETY: the stack is ours alone while this thread waits for the child; `child` calls nothing but system
        // calls; all signals are blocked (see `run`).
        let cloned = unsafe { process::vfork_on(end as *mut c_void, child, (&raw mut plan).cast(), 0) };
        let pid = cloned.map_err(|errno| failure("clone", errno))?;
        // SAFETY: `plan` is ours again; the compiler does not know that the child wrote to it.
        let errno = unsafe { std::ptr::read_volatile(&raw const plan.errno) };
        if errno == 0 {
            let pidfd = process::pidfd_open(pid).map_err(|errno| failure("pidfd_open", errno))?;
            return Ok(Running { pid, pidfd });
        }
        let _ = waitid(Id::Pid(nix::unistd::Pid::from_raw(pid)), WaitPidFlag::WEXITED);
        // A child that the host forked at that moment still holds the temporary file open for writing: until it
        // executes, which is soon.
        if errno != libc::ETXTBSY || tries == 50 {
            // SAFETY: as above.
            let failed = unsafe { std::ptr::read_volatile(&raw const plan.failed) };
            return Err(failure(failed, Errno::from_raw(errno)));
        }
        tries += 1;
        thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// The child, between clone and exec: system calls only.
extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: the parent passed its ChildPlan, and waits.
    let plan = unsafe { &mut *plan.cast::<ChildPlan>() };
    let (failed, errno) = run_child(plan);
    plan.failed = failed;
    plan.errno = errno as c_int;
    loop {
        // SAFETY: takes a number; does not return.
        let _ = unsafe { nestbox_sys::syscall!(libc::SYS_exit, 127) };
    }
}

/// Returns only on failure: the call and its errno.
fn run_child(plan: &ChildPlan) -> (&'static str, Errno) {
    // Without CLONE_FILES the fd table is the child's own.
    for (from, to) in [(plan.null, 0), (plan.null, 1), (plan.null, 2), (plan.socket, SOCKET_FD)] {
        // SAFETY: no memory is passed. (dup3, not dup2: arm64 has no dup2. Without O_CLOEXEC: the new fd stays open.)
        if let Err(errno) = unsafe { nestbox_sys::syscall!(libc::SYS_dup3, from, to, 0) } {
            return ("dup3", errno);
        }
    }
    if let Err(errno) = process::close_range(SOCKET_FD as u32 + 1, u32::MAX, process::CLOSE_RANGE_CLOEXEC) {
        return ("close_range", errno);
    }
    // All signals stay blocked: one that is sent to the host's process group must not end the fork server before it has
    // a session of its own, where it unblocks them.
    // SAFETY: an empty path, and null-terminated arrays of C strings that the waiting parent owns.
    let result = unsafe {
        nestbox_sys::syscall!(
            libc::SYS_execveat,
            plan.executable,
            c"".as_ptr(),
            plan.argv.as_ptr(),
            plan.environment.as_ptr(),
            libc::AT_EMPTY_PATH
        )
    };
    ("execveat", result.err().unwrap_or(Errno::UnknownErrno))
}

impl Image {
    /// Its name in a failure.
    fn describe(&self) -> String {
        match self {
            Self::Path(path) => path.to_string_lossy().into_owned(),
            Self::Embedded(_) => "nestbox-forkserver".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestbox_sys::socket;
    use std::time::{Duration, Instant};

    fn wait_for(what: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if what() {
                return true;
            }
            thread::sleep(Duration::from_millis(2));
        }
        false
    }

    #[test]
    fn starts_kills_and_reaps() {
        let (ours, theirs) = socket::seqpacket_pair().expect("pair");
        // Reads the socket's end of file as standard input never comes: sleeps until killed.
        let server = start(Image::Path("/bin/cat".into()), theirs);
        // `cat PID` fails at once, which is a death like any other.
        assert!(wait_for(|| server.pid().is_some()), "{:?}", server.failure());
        let pid = server.pid().expect("runs");
        server.kill();
        assert!(wait_for(|| !std::path::Path::new(&format!("/proc/{pid}")).exists()), "reaped");
        assert!(socket::at_end_of_file(ours.as_fd()));
    }

    #[test]
    fn a_temporary_file_runs_too() {
        let image = Image::Embedded(std::fs::read("/bin/cat").expect("cat").leak());
        let executable = image.open_as_file().expect("embedded").expect("written");
        let (_ours, theirs) = socket::seqpacket_pair().expect("pair");
        let running = execute(&executable, c"0", &theirs, &mut vec![0; STACK]).expect("runs");
        let _ = process::pidfd_send_signal(running.pidfd.as_fd(), libc::SIGKILL);
        waitid(Id::PIDFd(running.pidfd.as_fd()), WaitPidFlag::WEXITED).expect("reaped");
    }

    #[test]
    fn a_failed_exec_is_told_through_the_socket() {
        let (ours, theirs) = socket::seqpacket_pair().expect("pair");
        let server = start(Image::Path("/etc/passwd".into()), theirs);
        assert!(wait_for(|| socket::at_end_of_file(ours.as_fd())));
        let failure = server.failure().expect("failed");
        assert_eq!((failure.errno, failure.syscall.as_str()), (Errno::EACCES, "execveat"));
        assert_eq!(failure.path.as_deref(), Some("/etc/passwd"));
    }
}
