//! The supervisor's half of a filter that asks: seccomp_unotify(2), in init.
//!
//! Three ways to deal with a call that the filter stops ([`Supervision`]): it is a violation, recorded before the nest is
//! killed; the host is asked; or it is noted and made, which learns what a program needs. Promises: nothing here answers
//! "go on" unless the host said so or the launch is for learning; a program has init keep [`ASKS_MAX`] calls and no more,
//! however many threads it has, for the rest waits in the kernel; nothing waits for the host, and nothing for the program
//! but to read bounded bytes of its memory; what is read is a copy, checked to be of the process that made the call, and
//! believed in nothing. When init dies the kernel answers ENOSYS to whoever waits, and kills them with the nest.
//! Called by [`crate::init`].

use std::cell::Cell;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nestbox_protocol::{Answer, AnswerKind, Supervision};
use nestbox_sys::Errno;
use nestbox_sys::raw::SysResult;

use crate::arguments::regions;
use crate::learn::Learned;
use crate::memory;
use crate::report::{self, Encoder};

/// Calls that wait for the host's decision at a time: fewer packets than the shortest queue of a socket holds.
const ASKS_MAX: usize = 8;

/// The longest encoded call: its memory, its numbers.
const CALL_MAX: usize = memory::BUDGET + 512;

/// Room for a violation, made before the clone, and not touched until there is one: cleared in each nest it would cost each
/// launch a page fault for every 4 KiB, 100 µs.
pub(crate) fn room(listens: bool) -> Cell<Vec<u8>> {
    Cell::new(if listens { Vec::with_capacity(CALL_MAX) } else { Vec::new() })
}

/// An encoded `nestbox.SystemCall`.
type Record = Encoder<CALL_MAX>;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// The supervisor of one nest.
pub(crate) struct Supervisor {
    listener: OwnedFd,
    /// Nobody is under its filter any more.
    is_over: bool,
    mode: Supervision,
    /// A proc of the nest's pid namespace, if there is one.
    proc: Option<RawFd>,
    /// Memory of the nest may be read: see [`crate::memory`].
    pub(crate) reads: bool,
    asked: [Option<libc::seccomp_notif>; ASKS_MAX],
    /// Which of them was not sent yet, for lack of room.
    unsent: Option<usize>,
    /// As `nestbox.SystemCall`; empty: none.
    violation: Vec<u8>,
    /// The thread that made the call that was last decided on.
    pub(crate) caller: i32,
    learned: Option<Learned>,
}

/// What a violation is to the one who watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The program may go on.
    Nothing,
    /// The nest is to be killed.
    Violation,
}

impl Supervisor {
    /// Everything that it ever allocates is allocated here: later init may not. `room` is what a violation is recorded in.
    pub(crate) fn new(
        listener: OwnedFd,
        mode: Supervision,
        proc: Option<RawFd>,
        reads: bool,
        room: Vec<u8>,
    ) -> Self {
        let learned = (mode == Supervision::Learn).then(Learned::new);
        let supervisor = Self {
            listener,
            is_over: false,
            mode,
            proc,
            reads,
            asked: [None; ASKS_MAX],
            unsent: None,
            violation: room,
            caller: 0,
            learned,
        };
        if mode == Supervision::Learn {
            // Every call comes here: who made it and who looks at it had better share a processor. Since Linux 6.6.
            const SYNC_WAKE_UP: usize = 1;
            let _ = supervisor.control(libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS as u32, SYNC_WAKE_UP);
        }
        supervisor
    }

    /// What to poll for calls; -1: nothing, for no more are taken.
    pub(crate) fn poll_fd(&self) -> RawFd {
        let full = self.unsent.is_some() || self.asked.iter().all(Option::is_some);
        if full || self.is_over { -1 } else { self.listener.as_raw_fd() }
    }

    /// Nobody is under the filter any more. It is not let go: its end has the kernel free it, for which the result would wait.
    pub(crate) fn hung_up(&mut self) {
        self.is_over = true;
    }

    /// Whether room on the launch socket is waited for.
    pub(crate) fn is_waiting_for_room(&self) -> bool {
        self.unsent.is_some()
    }

    /// What was learnt, as `nestbox.Learned`, and the violation that was recorded, as `nestbox.SystemCall`.
    pub(crate) fn findings(&mut self) -> (Option<&[u8]>, Option<&[u8]>) {
        (
            self.learned.as_mut().map(Learned::encode),
            (!self.violation.is_empty()).then_some(&self.violation[..]),
        )
    }

    /// A call waits. `main` is the program's pid.
    pub(crate) fn notified(&mut self, socket: BorrowedFd<'_>, main: i32) -> Finding {
        // SAFETY: all-zero is a valid seccomp_notif, and what the kernel wants to be given.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        match self.control(libc::SECCOMP_IOCTL_NOTIF_RECV as u32, &raw mut call as usize) {
            Ok(_) => {}
            // Whoever made it was killed or interrupted meanwhile.
            Err(Errno::ENOENT | Errno::EINTR) => return Finding::Nothing,
            // A call that can't be looked at is not let through.
            Err(_) => return Finding::Violation,
        }
        self.caller = call.pid as i32;
        match self.mode {
            Supervision::Report => {
                self.violated(&call, main, self.reads);
                Finding::Violation
            }
            Supervision::Ask => {
                // There is one, or the listener would not have been polled.
                if let Some(index) = self.asked.iter().position(Option::is_none) {
                    self.asked[index] = Some(call);
                    self.ask(socket, index, main);
                }
                Finding::Nothing
            }
            Supervision::Learn => {
                if call.data.arch == AUDIT_ARCH
                    && let Some(learned) = &mut self.learned
                {
                    learned.note(&call.data);
                }
                self.go_on(call.id);
                Finding::Nothing
            }
        }
    }

    /// There is room on the launch socket: sends what waits.
    pub(crate) fn has_room(&mut self, socket: BorrowedFd<'_>, main: i32) {
        if let Some(index) = self.unsent.take() {
            self.ask(socket, index, main);
        }
    }

    /// The host has decided. `fd` came along.
    pub(crate) fn answer(&mut self, answer: Answer, fd: Option<BorrowedFd<'_>>, main: i32) -> Finding {
        let slot = self.asked.iter_mut().find(|slot| slot.is_some_and(|call| call.id == answer.id));
        // Nothing that was asked: nothing to decide.
        let Some(call) = slot.and_then(Option::take) else { return Finding::Nothing };
        self.caller = call.pid as i32;
        // What does not decode is a violation.
        match AnswerKind::try_from(answer.kind).unwrap_or(AnswerKind::Report) {
            AnswerKind::Allow => {
                // From here on the program may serve page faults itself.
                self.reads &= libc::c_long::from(call.data.nr) != libc::SYS_userfaultfd;
                self.go_on(call.id);
            }
            AnswerKind::Errno => self.reply(call.id, 0, -(answer.value.clamp(1, 4095) as i32), 0),
            AnswerKind::Value => self.reply(call.id, answer.value, 0, 0),
            AnswerKind::Fd => match fd {
                Some(fd) => self.inject(call.id, fd, answer.value != 0),
                None => self.reply(call.id, 0, -libc::EBADF, 0),
            },
            AnswerKind::Kill => return Finding::Violation,
            AnswerKind::Report => {
                // The host has a copy of the memory that it judged; by now there may be something else.
                self.violated(&call, main, false);
                return Finding::Violation;
            }
        }
        Finding::Nothing
    }

    fn ask(&mut self, socket: BorrowedFd<'_>, index: usize, main: i32) {
        let Some(call) = self.asked[index] else { return };
        let record = self.record(&call, main, self.reads);
        // Any other error: the host has gone, and the end of the socket says so, too.
        if report::asked(socket, call.id, record.as_slice()) == Err(Errno::EAGAIN) {
            self.unsent = Some(index);
        }
    }

    /// ioctl(2) of the listener.
    fn control(&self, request: u32, argument: usize) -> SysResult {
        // SAFETY: callers pass what the request takes: a number, or a struct of theirs.
        unsafe { nestbox_sys::syscall!(libc::SYS_ioctl, self.listener.as_raw_fd(), request, argument) }
    }

    /// ENOENT: whoever waited is gone, or was interrupted and will ask anew.
    fn reply(&self, id: u64, value: i64, error: i32, flags: u32) {
        let mut reply = libc::seccomp_notif_resp { id, val: value, error, flags };
        let _ = self.control(libc::SECCOMP_IOCTL_NOTIF_SEND as u32, &raw mut reply as usize);
    }

    fn go_on(&self, id: u64) {
        self.reply(id, 0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32);
    }

    /// Puts `fd` into the process and has the call return its number, in one step where the kernel can (Linux 5.14).
    fn inject(&self, id: u64, fd: BorrowedFd<'_>, close_on_exec: bool) {
        let put = |flags: libc::c_ulong| {
            let mut request = libc::seccomp_notif_addfd {
                id,
                flags: flags as u32,
                srcfd: fd.as_raw_fd() as u32,
                newfd: 0,
                newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
            };
            self.control(libc::SECCOMP_IOCTL_NOTIF_ADDFD as u32, &raw mut request as usize)
        };
        match put(libc::SECCOMP_ADDFD_FLAG_SEND) {
            Ok(_) => {}
            Err(Errno::EINVAL) => match put(0) {
                Ok(number) => self.reply(id, number as i64, 0, 0),
                Err(errno) => self.reply(id, 0, -(errno as i32), 0),
            },
            // No room in its table, most likely: that is the answer.
            Err(errno) => self.reply(id, 0, -(errno as i32), 0),
        }
    }

    /// Records the call as the violation, in the room that was made for it.
    fn violated(&mut self, call: &libc::seccomp_notif, main: i32, reads: bool) {
        let record = self.record(call, main, reads);
        self.violation.clear();
        let room = self.violation.capacity();
        self.violation.extend_from_slice(&record.as_slice()[..record.len().min(room)]);
    }

    /// The call, with what its pointers lead to if that is to be read and can be.
    fn record(&self, call: &libc::seccomp_notif, main: i32, reads: bool) -> Record {
        let mut record = Record::new();
        let data = &call.data;
        record.signed(1, data.nr);
        record.number(2, u64::from(data.arch));
        record.fixed(3, data.instruction_pointer);
        record.packed_fixed(4, &data.args);
        let tid = call.pid as i32;
        record.signed(5, memory::process_of(tid, main, self.proc));
        record.number(6, call.pid.into());
        if !reads || data.arch != AUDIT_ARCH {
            return record;
        }
        let before = record.len();
        let mut budget = memory::BUDGET;
        for region in regions(data.nr.into()) {
            memory::encode(&mut record, tid, *region, &data.args, &mut budget);
        }
        // Another process may have had this id by the time its memory was read.
        let mut id = call.id;
        if self.control(libc::SECCOMP_IOCTL_NOTIF_ID_VALID as u32, &raw mut id as usize).is_err() {
            record.truncate(before);
        }
        record
    }
}
