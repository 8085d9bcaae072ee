//! What a dying program was doing: raw facts, taken at the moment of death.
//!
//! Asked for per launch. Init then traces the program (ptrace(2)), passes on whatever it is sent, and stops it for one thing
//! only: the end of each of its threads. If that end is a signal's, the thread's registers and stack, and once the memory
//! map, are copied to a memfd that goes to the host with `Ended`. Promises: nothing that the program made is interpreted
//! here (it is copied byte for byte; `crates/symbolize` makes sense of it, in a sandbox); all of it is bounded, in
//! size and in the time that init gives to a program which has nothing but stops to offer; how the program ends, and what
//! is said of it, are as they would be untraced. Called by [`crate::init`].

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nestbox_protocol::crash::MODULES;
use nestbox_protocol::{Step, crash};
use nestbox_sys::mount::open_at;
use nestbox_sys::raw::write_all;
use nestbox_sys::{Errno, memfd};

use crate::fault::{At, Fault};
use crate::remains::{CHUNK, PAGE, executable, open_of, read_all, read_memory, unescape};

/// Calls that tracing takes, beside those of every init.
pub(crate) const CALLS: &[libc::c_long] =
    &[libc::SYS_ptrace, libc::SYS_tgkill, libc::SYS_memfd_create, libc::SYS_write, libc::SYS_fcntl];

/// How many threads are captured: the first that die, and the one that was hit.
const THREADS: usize = 64;

/// How much of each stack, from the stack pointer up.
const STACK: usize = 256 << 10;

/// How far above a stack pointer that points to nothing (a stack that overflowed) the stack is looked for.
const SEARCH: usize = 1 << 20;

/// How much of the memory map.
const MAPS: usize = 256 << 10;

const PTRACE_TRACEME: libc::c_long = 0;
const PTRACE_CONT: libc::c_long = 7;
const PTRACE_DETACH: libc::c_long = 17;
const PTRACE_GETEVENTMSG: libc::c_long = 0x4201;
const PTRACE_GETSIGINFO: libc::c_long = 0x4202;
const PTRACE_GETREGSET: libc::c_long = 0x4204;
const PTRACE_SEIZE: libc::c_long = 0x4206;
const PTRACE_LISTEN: libc::c_long = 0x4208;
const PTRACE_O_TRACECLONE: libc::c_long = 1 << 3;
const PTRACE_O_TRACEEXIT: libc::c_long = 1 << 6;
const PTRACE_O_EXITKILL: libc::c_long = 1 << 20;
const PTRACE_EVENT_EXIT: i32 = 6;
const PTRACE_EVENT_STOP: i32 = 128;
const NT_PRSTATUS: libc::c_long = 1;

/// What a signal says of itself.
const SIGINFO: usize = 128;

/// Room for any machine's general registers.
const REGISTERS: usize = 512;

/// # Safety
/// `data` must be what the request takes.
unsafe fn ptrace(request: libc::c_long, tid: i32, address: usize, data: usize) -> Result<usize, Errno> {
    // SAFETY: the caller's promise.
    unsafe { nestbox_sys::syscall!(libc::SYS_ptrace, request, tid, address, data) }
}

/// Has the caller's parent trace it. Its exec then stops before the program's first instruction. Called in the launch
/// child, before its filter.
pub(crate) fn trace_me() -> Result<(), Errno> {
    // SAFETY: takes nothing.
    unsafe { ptrace(PTRACE_TRACEME, 0, 0, 0) }.map(drop)
}

/// Opens a file of a thread in proc, or of its process where `proc` is that one's own directory.
fn open_one(proc: RawFd, tid: i32, of_thread: &[u8], own: &CStr) -> Result<OwnedFd, Errno> {
    open_of(proc, tid, of_thread).or_else(|_| open_at(proc, own, libc::O_RDONLY, 0, 0))
}

/// A program that is traced, and what was captured of it.
pub(crate) struct Tracer {
    main: i32,
    /// Its end is to be captured.
    wanted: bool,
    /// Its memory may be read: see [`crate::memory`].
    reads: bool,
    /// Init kills it because of what this thread did; that is to be captured as well.
    culprit: Option<i32>,
    /// The last signal that was on its way to the program: thread, number.
    signal: (i32, i32),
    siginfo: [u8; SIGINFO],
    /// The last thread that was at fault, and its stack pointer then: a handler may have a stack of its own.
    fault: (i32, u64),
    file: Option<OwnedFd>,
    threads: usize,
    /// `crash::TRUNCATED_*`.
    truncated: u64,
    /// The memory map as the kernel wrote it, and how much of it there is. Made before init may ask for no more memory.
    maps: Vec<u8>,
    mapped: usize,
    chunk: Vec<u8>,
}

impl Tracer {
    /// Takes over the program that has just been executed, which asked to be traced. `None`: it is dead already. If that
    /// fails, it is killed.
    pub(crate) fn attach(pid: i32, reads: bool) -> Result<Option<Self>, Fault<'static>> {
        seize(pid).map(|alive| alive.then(|| Self::new(pid, reads))).inspect_err(|_| {
            // SAFETY: numbers only; it has not been reaped.
            let _ = unsafe { nestbox_sys::syscall!(libc::SYS_kill, pid, libc::SIGKILL) };
        })
    }

    fn new(main: i32, reads: bool) -> Self {
        Self {
            main,
            wanted: true,
            reads,
            culprit: None,
            signal: (0, 0),
            siginfo: [0; SIGINFO],
            fault: (0, 0),
            file: None,
            threads: 0,
            truncated: 0,
            maps: vec![0; MAPS],
            mapped: 0,
            chunk: vec![0; CHUNK],
        }
    }

    /// Its memory may not be read any more.
    pub(crate) fn leave_memory(&mut self) {
        self.reads = false;
    }

    /// It is about to be killed for a violation that `tid` has committed.
    pub(crate) fn condemn(&mut self, tid: i32) {
        self.culprit = Some(tid);
    }

    /// It is being killed: no crash, if not for a violation.
    pub(crate) fn give_up(&mut self) {
        self.wanted = self.culprit.is_some();
    }

    /// Whether it was seen to crash.
    pub(crate) fn has_captured(&self) -> bool {
        self.file.is_some()
    }

    /// A thread has stopped, with `status` as waitid(2) has it. What fails here fails because the thread has been killed:
    /// its next stop, or its end, is on its way.
    pub(crate) fn stopped(&mut self, tid: i32, proc: RawFd, status: i32) {
        let (signal, event) = (status & 0xff, status >> 8);
        let _ = match event {
            // SAFETY: numbers only. A process that was forked so as to inherit its parent's tracer is let go.
            _ if !self.has(tid) => unsafe { ptrace(PTRACE_DETACH, tid, 0, pass_on(signal, event)) },
            PTRACE_EVENT_EXIT => {
                self.end_of(tid, proc);
                resume(tid, 0)
            }
            // SAFETY: numbers only. Stopped as SIGSTOP stops; it is to stay so until SIGCONT.
            PTRACE_EVENT_STOP if is_stop(signal) => unsafe { ptrace(PTRACE_LISTEN, tid, 0, 0) },
            0 => {
                self.note(tid, signal);
                resume(tid, signal)
            }
            _ => resume(tid, 0),
        };
    }

    /// Whether it is a thread of the program.
    fn has(&self, tid: i32) -> bool {
        // SAFETY: numbers only.
        tid == self.main || unsafe { nestbox_sys::syscall!(libc::SYS_tgkill, self.main, tid, 0) }.is_ok()
    }

    /// A signal is on its way to a thread: perhaps it dies of it.
    fn note(&mut self, tid: i32, signal: i32) {
        // Of these nobody dies.
        if is_stop(signal) || matches!(signal, libc::SIGCHLD | libc::SIGCONT | libc::SIGURG | libc::SIGWINCH)
        {
            return;
        }
        let mut info = [0_u8; SIGINFO];
        // SAFETY: as many bytes as the kernel writes.
        if unsafe { ptrace(PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr() as usize) }.is_ok() {
            (self.signal, self.siginfo) = ((tid, signal), info);
            if is_fault(signal, &info)
                && let Ok((registers, _)) = registers_of(tid)
            {
                self.fault = (tid, crash::register(&registers, crash::STACK_POINTER));
            }
        }
    }

    /// A thread ends. Its memory and registers are still there.
    fn end_of(&mut self, tid: i32, proc: RawFd) {
        let mut code = 0_usize;
        // SAFETY: a number of ours.
        let told = unsafe { ptrace(PTRACE_GETEVENTMSG, tid, 0, &raw mut code as usize) };
        let signal = code as i32 & 0x7f;
        // SIGKILL comes from outside, or has nothing to say.
        let crash = signal != 0 && (signal != libc::SIGKILL || self.culprit.is_some());
        if told.is_err() || !self.wanted || !crash {
            return;
        }
        let hit = self.culprit.or((self.signal.1 == signal).then_some(self.signal.0));
        // The last place is kept for the one that was hit.
        if self.threads >= THREADS - usize::from(hit.is_some_and(|hit| hit != tid)) {
            self.truncated |= crash::TRUNCATED_THREADS;
            return;
        }
        // Without memory for it there is no report, and the host is told so by its absence.
        let _ = self.capture(tid, proc, signal);
    }

    fn capture(&mut self, tid: i32, proc: RawFd, signal: i32) -> Result<(), Errno> {
        if self.file.is_none() {
            self.file = Some(memfd::create(c"nestbox-crash", false)?);
            self.write(crash::HEAD, self.culprit.unwrap_or(tid), signal as u64, crash::MACHINE)?;
            let siginfo = self.siginfo;
            if self.signal.1 == signal {
                self.write(crash::SIGNAL, self.signal.0, signal as u64, &siginfo)?;
            }
            self.mapped = open_one(proc, tid, b"/maps", c"maps")
                .and_then(|maps| read_all(&maps, &mut self.maps))
                .unwrap_or(0);
            if self.mapped == MAPS {
                self.truncated |= crash::TRUNCATED_MAPS;
            }
            let maps = std::mem::take(&mut self.maps);
            let written = self.write(crash::MAPS, tid, 0, &maps[..self.mapped]);
            self.maps = maps;
            written?;
        }
        let (registers, length) = registers_of(tid)?;
        let mut name = [0_u8; 16];
        let named = open_of(proc, tid, b"/comm").and_then(|comm| read_all(&comm, &mut name)).unwrap_or(0);
        self.threads += 1;
        self.write(crash::THREAD, tid, 0, &registers[..length])?;
        self.write(crash::NAME, tid, 0, &name[..named])?;
        let pointer = crash::register(&registers, crash::STACK_POINTER);
        let memory = if self.reads { open_one(proc, tid, b"/mem", c"mem").ok() } else { None };
        let Some(memory) = memory else {
            self.truncated |= crash::TRUNCATED_STACKS;
            return Ok(());
        };
        let end = self.copy_stack(tid, &memory, pointer)?;
        // It died in the handler of a fault, which has a stack of its own.
        if self.fault.0 == tid && !(pointer..end).contains(&self.fault.1) {
            self.copy_stack(tid, &memory, self.fault.1)?;
        }
        Ok(())
    }

    /// Copies the pages from the stack pointer's up to the first that can't be read. Returns its address.
    fn copy_stack(&mut self, tid: i32, memory: &OwnedFd, pointer: u64) -> Result<u64, Errno> {
        let mut address = pointer as usize & !(PAGE - 1);
        let (mut searched, mut copied) = (0, 0);
        let mut chunk = std::mem::take(&mut self.chunk);
        let mut outcome = Ok(());
        while copied < STACK {
            let read = read_memory(memory, address, &mut chunk);
            if read == 0 {
                searched += PAGE;
                if copied > 0 || searched > SEARCH {
                    break;
                }
                let Some(next) = address.checked_add(PAGE) else { break };
                address = next;
                continue;
            }
            outcome = self.write(crash::STACK, tid, address as u64, &chunk[..read]);
            copied += read;
            let Some(next) = address.checked_add(read) else { break };
            address = next;
            if outcome.is_err() || read < CHUNK {
                break;
            }
        }
        self.chunk = chunk;
        if copied >= STACK {
            self.truncated |= crash::TRUNCATED_STACKS;
        }
        outcome.map(|()| address as u64)
    }

    fn write(&self, kind: u32, tid: i32, value: u64, body: &[u8]) -> Result<(), Errno> {
        let Some(file) = &self.file else { return Ok(()) };
        write_all(file.as_fd(), &crash::head(kind, tid as u32, value, body.len()))?;
        write_all(file.as_fd(), body)
    }

    /// Everything is dead: opens the files that were mapped, with `open`, names them in the capture, and seals it. Returns
    /// the fds for the host, the capture's first; none if there is nothing to tell.
    pub(crate) fn finish(mut self, open: impl Fn(&CStr) -> Result<OwnedFd, Errno>) -> Vec<OwnedFd> {
        let mut modules = Vec::new();
        if self.file.is_none() {
            return modules;
        }
        let maps = std::mem::take(&mut self.maps);
        let mut last: &[u8] = b"";
        for path in maps[..self.mapped].split(|&byte| byte == b'\n').filter_map(executable) {
            if path == last {
                continue;
            }
            last = path;
            if modules.len() == MODULES {
                self.truncated |= crash::TRUNCATED_MODULES;
                break;
            }
            let mut name = [0_u8; libc::PATH_MAX as usize];
            let Some(file) = unescape(path, &mut name).and_then(|path| open(path).ok()) else { continue };
            if self.write(crash::MODULE, modules.len() as i32, 0, path).is_ok() {
                modules.push(file);
            }
        }
        let _ = self.write(crash::TRUNCATED, 0, self.truncated, b"");
        let Some(capture) = self.file.take() else { return Vec::new() };
        let seals = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: numbers only.
        let sealed =
            unsafe { nestbox_sys::syscall!(libc::SYS_fcntl, capture.as_raw_fd(), libc::F_ADD_SEALS, seals) };
        if sealed.is_err() {
            return Vec::new();
        }
        modules.insert(0, capture);
        modules
    }
}

/// Has a program that stopped at its exec traced as one that was seized. False: it is dead.
///
/// It was attached by its own request, because it must not run untraced; but a program that was attached so can't be
/// stopped and continued as others can. So it is let go, stopped, and seized: ptrace(2).
fn seize(pid: i32) -> Result<bool, Fault<'static>> {
    let step = Step::TraceProgram;
    loop {
        let options = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT | libc::__WALL;
        // SAFETY: all-zero is a valid siginfo.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: a struct of ours.
        let waited =
            unsafe { nestbox_sys::syscall!(libc::SYS_waitid, libc::P_PID, pid, &raw mut info, options, 0) };
        match waited {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Fault::new(step, errno, "waitid", b"")),
            Ok(_) if info.si_code == libc::CLD_TRAPPED => break,
            Ok(_) => return Ok(false),
        }
    }
    // SAFETY: numbers only.
    unsafe { ptrace(PTRACE_DETACH, pid, 0, libc::SIGSTOP as usize) }.at(step, "ptrace", b"detach")?;
    let options = PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXIT | PTRACE_O_EXITKILL;
    // SAFETY: numbers only.
    unsafe { ptrace(PTRACE_SEIZE, pid, 0, options as usize) }.at(step, "ptrace", b"seize")?;
    // SAFETY: numbers only; it has not been reaped.
    unsafe { nestbox_sys::syscall!(libc::SYS_kill, pid, libc::SIGCONT) }.at(step, "kill", b"SIGCONT")?;
    Ok(true)
}

/// The general registers of a stopped thread, and how many bytes they are.
fn registers_of(tid: i32) -> Result<([u8; REGISTERS], usize), Errno> {
    let mut registers = [0_u8; REGISTERS];
    let mut vector = libc::iovec { iov_base: registers.as_mut_ptr().cast(), iov_len: registers.len() };
    // SAFETY: an iovec of ours.
    unsafe { ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS as usize, &raw mut vector as usize) }?;
    Ok((registers, vector.iov_len.min(REGISTERS)))
}

/// Whether the kernel sends a signal for what the thread itself has just tried.
fn is_fault(signal: i32, info: &[u8; SIGINFO]) -> bool {
    let code = i32::from_ne_bytes([info[8], info[9], info[10], info[11]]);
    code > 0 && matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGTRAP)
}

/// Continues a stopped thread, with a signal or none.
fn resume(tid: i32, signal: i32) -> Result<usize, Errno> {
    // SAFETY: numbers only.
    unsafe { ptrace(PTRACE_CONT, tid, 0, signal as usize) }
}

/// The signal that a stop is about, if it is about one.
fn pass_on(signal: i32, event: i32) -> usize {
    if event == 0 { signal as usize } else { 0 }
}

fn is_stop(signal: i32) -> bool {
    matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
}
