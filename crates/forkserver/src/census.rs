//! Who is in a nest, and what they have used of the processors.
//!
//! Everything here is read from proc, by numbers that the kernel gives: a process that is gone by then is skipped. Promises:
//! it asks the kernel for no memory, since init's own filter refuses that. What needs a large buffer is not inlined: a frame
//! is touched page by page when it is entered, and the callers are on the path of every launch, where a page costs 3 µs.
//! Called by [`crate::init`] for the CPU time of the nest, and by [`crate::limits`] for those whose limits change.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nestbox_sys::Errno;
use nestbox_sys::mount::{RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, open_at};

use crate::outputs::is_proc;
use crate::remains::{open_of, read_all};

/// How many processes are found where they have to be looked for one by one.
const MEMBERS_MAX: usize = 4096;

/// How proc tells of CPU time: in ticks, of which there are 100 in a second on every architecture that we run on.
const TICK_US: u64 = 10_000;

/// Where the processes of a nest are found.
pub(crate) struct Census {
    /// `None`: not opened yet.
    proc: Option<OwnedFd>,
    scope: Scope,
}

/// Who of those that a proc shows is the nest's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// All but init: it shows the nest's own pid namespace.
    Namespace,
    /// Who descends from init: it shows a namespace further out.
    Descendants,
}

/// One process of the nest, of which nothing is known but its number.
pub(crate) struct Member<'a> {
    proc: BorrowedFd<'a>,
    /// As this proc has it.
    number: i32,
    /// How many pid namespaces further in it is init's; 0: none.
    level: usize,
}

impl Census {
    /// Of a nest whose proc is in its tree, where it is opened once somebody asks.
    pub(crate) fn of_nest() -> Self {
        Self { proc: None, scope: Scope::Namespace }
    }

    /// The same, opened already.
    pub(crate) fn of_own_proc(proc: OwnedFd) -> Self {
        Self { proc: Some(proc), scope: Scope::Namespace }
    }

    /// Of a nest that has no proc; this is one of a pid namespace further out.
    pub(crate) fn of_outer_proc(proc: OwnedFd) -> Self {
        Self { proc: Some(proc), scope: Scope::Descendants }
    }

    /// Of a launch without a pid namespace, seen in the proc that is there.
    pub(crate) fn of_children() -> Self {
        Self { proc: None, scope: Scope::Descendants }
    }

    /// Calls `visit` for each process that is there. `E2BIG`: there are more than can be found.
    pub(crate) fn each(&mut self, mut visit: impl FnMut(Member<'_>)) -> Result<(), Errno> {
        if self.proc.is_none() {
            self.proc = Some(open_own(self.scope == Scope::Namespace)?);
        }
        let Some(proc) = self.proc.as_ref().map(AsFd::as_fd) else { return Err(Errno::ENOENT) };
        match self.scope {
            Scope::Namespace => numbers(proc, |number| {
                if number != 1 {
                    visit(Member { proc, number, level: 0 });
                }
            }),
            Scope::Descendants => descendants(proc, visit),
        }
    }

    /// CPU time of the nest in microseconds: of the reaped, and of the living with the children that they reaped themselves.
    pub(crate) fn cpu_used_us(&mut self) -> u64 {
        let mut ticks = 0;
        // What can't be seen is counted when it is reaped; RLIMIT_CPU holds each process until then.
        let _ = self.each(|member| ticks += member.ticks());
        reaped_cpu_us() + ticks * TICK_US
    }
}

impl Member<'_> {
    /// Its number in init's own pid namespace.
    pub(crate) fn pid(&self) -> Option<i32> {
        match self.level.checked_sub(1) {
            None => Some(self.number),
            Some(index) => namespace_pids(self.proc, self.number, |pids| pids.nth(index)),
        }
    }

    /// `utime + stime + cutime + cstime`: `/proc/PID/stat`, fields 14 to 17.
    fn ticks(&self) -> u64 {
        self.stat(|fields| fields.skip(11).take(4).filter_map(number).sum()).unwrap_or(0)
    }

    /// A signal has stopped it.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stat(|fields| fields.next().is_some_and(|state| state == b"T")).unwrap_or(false)
    }

    /// The fields of `/proc/PID/stat` from the third, the state, on.
    fn stat<T>(&self, take: impl FnOnce(&mut dyn Iterator<Item = &[u8]>) -> T) -> Option<T> {
        let file = open_of(self.proc.as_raw_fd(), self.number, b"/stat").ok()?;
        let mut text = [0_u8; 512];
        let length = read_all(&file, &mut text).ok()?;
        let text = &text[..length];
        // The name, in parentheses, may hold anything; the numbers follow the last one.
        let end = text.iter().rposition(|&byte| byte == b')')?;
        Some(take(&mut words(&text[end + 1..])))
    }
}

/// CPU time of what init has reaped, in microseconds.
pub(crate) fn reaped_cpu_us() -> u64 {
    cpu_us(&usage_of_reaped())
}

/// User and system time in microseconds.
pub(crate) fn cpu_us(usage: &libc::rusage) -> u64 {
    let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    micros(usage.ru_utime) + micros(usage.ru_stime)
}

/// What those that init has reaped, and those that they reaped, have used.
pub(crate) fn usage_of_reaped() -> libc::rusage {
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a struct of ours.
    let _ = unsafe { nestbox_sys::syscall!(libc::SYS_getrusage, libc::RUSAGE_CHILDREN, &raw mut usage) };
    usage
}

/// The proc at `/proc`; if `own`, one of this process's own pid namespace. What else a policy shows there is the program's
/// to write: a pipe would hold init up, and a link lead it elsewhere.
pub(crate) fn open_own(own: bool) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let proc = open_at(libc::AT_FDCWD, c"/proc", flags, 0, RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)?;
    if !is_proc(proc.as_fd())? {
        return Err(Errno::ENOENT);
    }
    let mut text = [0_u8; 16];
    if own {
        // A bind of another's shows init by another number.
        let status = open_at(proc.as_raw_fd(), c"self/stat", libc::O_RDONLY, 0, 0)?;
        read_all(&status, &mut text)?;
    }
    if !own || text.starts_with(b"1 ") { Ok(proc) } else { Err(Errno::ENOENT) }
}

/// Everybody who descends from this process, by the lists of children that each thread has.
#[inline(never)]
fn descendants(proc: BorrowedFd<'_>, mut visit: impl FnMut(Member<'_>)) -> Result<(), Errno> {
    let level = own_level(proc)?;
    let mut found = [0_i32; MEMBERS_MAX];
    let mut count = 0;
    let mut more = false;
    let mut add = |found: &mut [i32; MEMBERS_MAX], count: &mut usize, number: i32| {
        if found[..*count].contains(&number) {
            return;
        }
        match found.get_mut(*count) {
            Some(slot) => (*slot, *count) = (number, *count + 1),
            None => more = true,
        }
    };
    let own = open_at(proc.as_raw_fd(), c"thread-self/children", libc::O_RDONLY, 0, 0)?;
    listed(&own, |number| add(&mut found, &mut count, number));
    let mut at = 0;
    while at < count {
        let number = found[at];
        at += 1;
        visit(Member { proc, number, level });
        let Ok(threads) = open_of(proc.as_raw_fd(), number, b"/task") else { continue };
        let _ = numbers(threads.as_fd(), |thread| {
            if let Ok(list) = open_of(threads.as_raw_fd(), thread, b"/children") {
                listed(&list, |number| add(&mut found, &mut count, number));
            }
        });
    }
    if more { Err(Errno::E2BIG) } else { Ok(()) }
}

/// How many pid namespaces, from that of `proc` on inwards, this process is in.
fn own_level(proc: BorrowedFd<'_>) -> Result<usize, Errno> {
    let file = open_at(proc.as_raw_fd(), c"self/status", libc::O_RDONLY, 0, 0)?;
    pids_in(&file, |pids| Some(pids.count())).filter(|&level| level > 0).ok_or(Errno::ENOENT)
}

/// A process's number in each pid namespace that it is in, from that of `proc` on inwards.
fn namespace_pids<T>(
    proc: BorrowedFd<'_>,
    number: i32,
    take: impl FnOnce(&mut dyn Iterator<Item = i32>) -> Option<T>,
) -> Option<T> {
    pids_in(&open_of(proc.as_raw_fd(), number, b"/status").ok()?, take)
}

/// The line `NSpid` of a `status`.
#[inline(never)]
fn pids_in<T>(file: &OwnedFd, take: impl FnOnce(&mut dyn Iterator<Item = i32>) -> Option<T>) -> Option<T> {
    const NAME: &[u8] = b"NSpid:";
    let mut text = [0_u8; 4096];
    let length = read_all(file, &mut text).ok()?;
    let line = text[..length].split(|&byte| byte == b'\n').find(|line| line.starts_with(NAME))?;
    take(&mut words(&line[NAME.len()..]).filter_map(number).filter_map(|pid| i32::try_from(pid).ok()))
}

/// Calls `visit` for each entry of a directory of proc that is a number.
#[inline(never)]
fn numbers(directory: BorrowedFd<'_>, mut visit: impl FnMut(i32)) -> Result<(), Errno> {
    // A directory that was read has to be opened anew.
    let directory = open_at(directory.as_raw_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0, 0)?;
    let mut buffer = [0_u8; 4096];
    loop {
        // SAFETY: a buffer of ours.
        let length = unsafe {
            nestbox_sys::syscall!(
                libc::SYS_getdents64,
                directory.as_raw_fd(),
                buffer.as_mut_ptr(),
                buffer.len()
            )
        }?;
        if length == 0 {
            return Ok(());
        }
        let mut offset = 0;
        // struct linux_dirent64: inode 8, offset 8, length 2, type 1, name.
        while offset + 19 < length {
            let size = usize::from(u16::from_ne_bytes([buffer[offset + 16], buffer[offset + 17]]));
            let name = &buffer[offset + 19..(offset + size).min(length)];
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            if let Some(number) = number(name).and_then(|number| i32::try_from(number).ok()) {
                visit(number);
            }
            offset += size.max(1);
        }
    }
}

/// Calls `visit` for each number of a list of children, however long.
#[inline(never)]
fn listed(list: &OwnedFd, mut visit: impl FnMut(i32)) {
    let mut buffer = [0_u8; 1024];
    let mut number = 0_i32;
    loop {
        // SAFETY: a buffer of ours.
        let read = unsafe {
            nestbox_sys::syscall!(libc::SYS_read, list.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
        };
        let Ok(length @ 1..) = read else { return };
        for &byte in &buffer[..length] {
            if byte.is_ascii_digit() {
                number = number.wrapping_mul(10).wrapping_add(i32::from(byte - b'0'));
            } else {
                // Not at the end of the buffer, which may cut a number.
                match std::mem::take(&mut number) {
                    0 => {}
                    whole => visit(whole),
                }
            }
        }
    }
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}
