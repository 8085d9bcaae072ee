//! One launch, of each kind, with the clock around it.
//!
//! What is measured ends when the status of the program is known, as with nestbox, which reports then too; that init is
//! reaped (`reaped_us`) comes after. Called by [`crate::drive`].

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nestbox_protocol::{Limits, Plan};
use nestbox_sys::process::monotonic_ns;
use nestbox_sys::{Errno, process, socket};

use crate::child::{self, Child};
use crate::fault::{During, Fault};
use crate::nest::Nest;
use crate::tree::Template;
use crate::user::Ids;

/// What a policy has to have at this path.
pub(crate) const PROGRAM: &CStr = c"/program";

/// The null device: where stdin and stdout were, see [`crate::drive::take_stdio`].
pub(crate) const NULL_FD: RawFd = 0;

const ENVIRONMENT: [&CStr; 4] = [
    c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    c"HOME=/tmp",
    c"LANG=C.UTF-8",
    c"SANDBOX2_NOFORKSERVER=1",
];

/// Namespaces of every nest.
const NEST_FLAGS: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64;

/// How long one launch took, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Until the program's status was known.
    pub(crate) us: f64,
    /// Until init was reaped as well.
    pub(crate) reaped_us: f64,
}

impl Sample {
    fn of(start: u64, known: u64, reaped: u64) -> Self {
        let micros = |end: u64| Duration::from_nanos(end - start).as_secs_f64() * 1e6;
        Self { us: micros(known), reaped_us: micros(reaped) }
    }
}

/// A way to launch.
pub(crate) enum Launch<'a> {
    Bare(Bare),
    Nested(Box<Nested<'a>>),
}

impl Launch<'_> {
    /// Launches once, after a pause that is not measured. What is prepared ahead is prepared before the pause.
    pub(crate) fn once(&self, pause_us: u64) -> Result<Sample, Fault> {
        match self {
            Self::Bare(bare) => {
                pause(pause_us);
                bare.launch()
            }
            Self::Nested(nested) => nested.launch(pause_us),
        }
    }
}

fn pause(us: u64) {
    if us > 0 {
        std::thread::sleep(Duration::from_micros(us));
    }
}

/// Ends this process at once.
pub(crate) fn exit(status: i32) -> ! {
    loop {
        // SAFETY: takes a number; does not return.
        let _ = unsafe { nestbox_sys::syscall!(libc::SYS_exit_group, status) };
    }
}

/// Waits for a child; its wait status.
pub(crate) fn wait_for(pid: i32) -> Result<c_int, Fault> {
    let mut status: c_int = 0;
    // SAFETY: an integer of ours.
    unsafe { nestbox_sys::syscall!(libc::SYS_wait4, pid, &raw mut status, libc::__WALL, 0) }
        .during("wait4")?;
    Ok(status)
}

/// Memory for a child that shares ours; its high end.
fn stack() -> *mut c_void {
    const SIZE: usize = 64 * 1024;
    let stack = Box::leak(vec![0_u128; SIZE / 16].into_boxed_slice());
    stack.as_mut_ptr_range().end.cast()
}

fn expect_success(status: c_int) -> Result<(), Fault> {
    if status == 0 {
        Ok(())
    } else {
        Err(Fault::text(format!("the program ended with wait status {status:#x}")))
    }
}

/// vfork, exec, wait.
pub(crate) struct Bare {
    program: CString,
    stack: *mut c_void,
}

/// What [`execute`] gets.
struct Exec<'a> {
    program: &'a CStr,
    argv: [*const c_char; 2],
    envp: [*const c_char; 1],
}

extern "C" fn execute(argument: *mut c_void) -> c_int {
    // SAFETY: the parent passes an Exec of its own and is suspended until we execute or exit.
    let exec = unsafe { &*argument.cast::<Exec<'_>>() };
    let (argv, envp) = (exec.argv.as_ptr(), exec.envp.as_ptr());
    // SAFETY: the vectors are null-terminated and point to C strings.
    let _ = unsafe { nestbox_sys::syscall!(libc::SYS_execve, exec.program.as_ptr(), argv, envp) };
    exit(127)
}

impl Bare {
    pub(crate) fn new(program: &str) -> Result<Self, Fault> {
        let program = CString::new(program).map_err(|_| Fault::text("the program's path has a NUL byte"))?;
        Ok(Self { program, stack: stack() })
    }

    fn launch(&self) -> Result<Sample, Fault> {
        let mut exec = Exec {
            program: &self.program,
            argv: [self.program.as_ptr(), std::ptr::null()],
            envp: [std::ptr::null()],
        };
        let start = monotonic_ns();
        // SAFETY: the stack is nobody else's; `execute` allocates nothing and does not return.
        let pid =
            unsafe { process::vfork_on(self.stack, execute, (&raw mut exec).cast(), 0) }.during("clone")?;
        let status = wait_for(pid)?;
        let known = monotonic_ns();
        expect_success(status)?;
        Ok(Sample::of(start, known, known))
    }
}

/// A launch in a nest.
pub(crate) struct Nested<'a> {
    plan: &'a Plan,
    ids: Ids,
    nest: Nest,
    template: Template,
    warm: bool,
    rlimits: Vec<(u32, u64)>,
    maps: [String; 2],
    argv: [*const c_char; 2],
    envp: Vec<*const c_char>,
    stack: *mut c_void,
}

impl<'a> Nested<'a> {
    pub(crate) fn new(plan: &'a Plan, ids: Ids, template: Template, warm: bool) -> Result<Self, Fault> {
        let nest = Nest::new(plan, ids)?;
        let map = |at: usize| format!("{} {} 1", ids.inside[at], ids.outer[at]);
        let envp = ENVIRONMENT.iter().map(|entry| entry.as_ptr()).chain([std::ptr::null()]).collect();
        Ok(Self {
            plan,
            ids,
            nest,
            template,
            warm,
            rlimits: rlimits(&plan.limits.unwrap_or_default()),
            maps: [map(0), map(1)],
            argv: [PROGRAM.as_ptr(), std::ptr::null()],
            envp,
            stack: stack(),
        })
    }

    fn launch(&self, pause_us: u64) -> Result<Sample, Fault> {
        let (ours, theirs) = socket::seqpacket_pair().during("socketpair")?;
        if !self.warm {
            pause(pause_us);
        }
        let mut start = monotonic_ns();
        // SAFETY: single-threaded; no CLONE_VM.
        let init = unsafe { process::fork_with(NEST_FLAGS) }.during("clone3: nest")?;
        let Some(init) = init else {
            drop(ours);
            self.be_init(&theirs)
        };
        drop(theirs);
        if self.warm {
            if let Some(fault) = receive(&ours)?.fault() {
                return Err(fault);
            }
            pause(pause_us);
            start = monotonic_ns();
            send(&ours, &[1])?;
        }
        let said = receive(&ours)?;
        let known = monotonic_ns();
        wait_for(init)?;
        let reaped = monotonic_ns();
        match (said.status(), said.fault()) {
            (_, Some(fault)) => Err(fault),
            (Some(status), None) => expect_success(status).map(|()| Sample::of(start, known, reaped)),
            (None, None) => Err(Fault::text("init died without a word")),
        }
    }

    /// Pid 1 of the nest: makes what is fresh, starts the sandboxee, tells its status.
    fn be_init(&self, socket: &OwnedFd) -> ! {
        let status = self.run_in_nest(socket.as_raw_fd());
        let said = match &status {
            Ok(status) => send(socket, &status.to_ne_bytes()),
            Err(fault) => send(socket, fault.to_string().as_bytes()),
        };
        exit(i32::from(said.is_err()))
    }

    fn run_in_nest(&self, socket: RawFd) -> Result<c_int, Fault> {
        let ruleset = self.nest.set_up(self.template.network.as_raw_fd())?;
        let mut child = Child {
            ids: self.ids,
            maps: [self.maps[0].as_bytes(), self.maps[1].as_bytes()],
            ruleset,
            rlimits: &self.rlimits,
            filter: if self.plan.filter_inherited { &[] } else { &self.plan.filter },
            proc: self.template.proc.as_raw_fd(),
            park: self.warm.then_some(socket),
            argv: self.argv.as_ptr(),
            envp: self.envp.as_ptr(),
            fault: None,
        };
        // SAFETY: the stack is this process's copy, used by nobody else; the child does not return.
        let pid = unsafe { process::vfork_on(self.stack, child::run, (&raw mut child).cast(), 0) };
        let pid = pid.during("clone: sandboxee")?;
        match child.fault {
            Some(fault) => Err(fault),
            None => wait_for(pid),
        }
    }
}

/// As the fork server sets them (`crates/forkserver/src/launch.rs`).
fn rlimits(limits: &Limits) -> Vec<(u32, u64)> {
    let wanted = [
        (libc::RLIMIT_NPROC, limits.processes),
        (libc::RLIMIT_NOFILE, limits.open_files),
        (libc::RLIMIT_FSIZE, limits.file_size),
        (libc::RLIMIT_STACK, limits.stack),
        (libc::RLIMIT_AS, limits.address_space_per_process),
        (libc::RLIMIT_CORE, limits.core.map(|bytes| bytes.max(1))),
        (libc::RLIMIT_CPU, limits.cpu_time.map(|ms| ms.div_ceil(1000) + 1)),
    ];
    wanted.into_iter().filter_map(|(resource, value)| Some((resource, value?))).collect()
}

/// What init or a parked sandboxee said: four bytes are a status, one says that it is ready, anything else went wrong.
struct Said {
    bytes: [u8; 256],
    length: usize,
}

impl Said {
    fn status(&self) -> Option<c_int> {
        <[u8; 4]>::try_from(&self.bytes[..self.length]).ok().map(c_int::from_ne_bytes)
    }

    fn fault(&self) -> Option<Fault> {
        let text = &self.bytes[..self.length];
        match self.length {
            1 | 4 => None,
            0 => Some(Fault::text("the nest died without a word")),
            _ => Some(Fault::text(String::from_utf8_lossy(text).into_owned())),
        }
    }
}

fn receive(socket: &OwnedFd) -> Result<Said, Fault> {
    let mut said = Said { bytes: [0; 256], length: 0 };
    let (buffer, size) = (said.bytes.as_mut_ptr(), said.bytes.len());
    // SAFETY: a buffer of ours, as long as said.
    let read = unsafe { nestbox_sys::syscall!(libc::SYS_read, socket.as_fd().as_raw_fd(), buffer, size) };
    said.length = match read {
        Err(Errno::ECONNRESET) => 0,
        other => other.during("read: nest")?,
    };
    Ok(said)
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> Result<(), Fault> {
    let fd = socket.as_raw_fd();
    // SAFETY: the bytes are ours and as long as said.
    unsafe { nestbox_sys::syscall!(libc::SYS_sendto, fd, bytes.as_ptr(), bytes.len(), libc::MSG_NOSIGNAL, 0) }
        .during("sendto: nest")
        .map(drop)
}
