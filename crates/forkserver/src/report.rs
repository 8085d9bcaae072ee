//! Reports on a request's socket: failures and launch events, encoded by hand into a buffer on the stack.
//!
//! prost's types own their strings and lists, and these reports are made where nothing may allocate. The field numbers
//! are those of `proto/launch.proto`, `error.proto` and `forkserver.proto`; a test decodes every report with prost.
//! Called by everything that answers a request.

use std::os::fd::{BorrowedFd, RawFd};

use nestbox_protocol::{Step, frame};
use nestbox_sys::Errno;
use nestbox_sys::packet::{self, Credentials};

use crate::fault::Fault;

/// Longest path that a report carries; a longer one is cut, not refused.
const PATH_MAX: usize = 1024;

/// The most marks a launch leaves.
pub(crate) const MARKS_MAX: usize = 40;

/// The most outputs of a launch: each may send one fd.
pub(crate) const OUTPUTS_MAX: usize = 200;

/// A protobuf message under construction.
pub(crate) struct Encoder<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Encoder<N> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; N], length: 0 }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn push(&mut self, byte: u8) {
        // The sizes below are chosen so that nothing is ever cut; a report that is cut would be refused by the host.
        if let Some(slot) = self.bytes.get_mut(self.length) {
            *slot = byte;
            self.length += 1;
        }
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    /// A varint field; zero is left out, as proto3 does.
    pub(crate) fn number(&mut self, field: u32, value: u64) {
        if value != 0 {
            self.varint(u64::from(field) << 3);
            self.varint(value);
        }
    }

    /// A signed number (int32, enum): negative ones are sign-extended.
    pub(crate) fn signed(&mut self, field: u32, value: i32) {
        self.number(field, i64::from(value) as u64);
    }

    /// A length-delimited field: string, bytes or an encoded message. An empty one is left out unless `always`.
    fn bytes(&mut self, field: u32, value: &[u8], always: bool) {
        if !value.is_empty() || always {
            self.varint(u64::from(field) << 3 | 2);
            self.varint(value.len() as u64);
            for &byte in value {
                self.push(byte);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Takes back what was encoded after `length`.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// A fixed64 field.
    pub(crate) fn fixed(&mut self, field: u32, value: u64) {
        self.varint(u64::from(field) << 3 | 1);
        for byte in value.to_le_bytes() {
            self.push(byte);
        }
    }

    /// A packed repeated fixed64 field.
    pub(crate) fn packed_fixed(&mut self, field: u32, values: &[u64]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(values.len() as u64 * 8);
        for byte in values.iter().flat_map(|value| value.to_le_bytes()) {
            self.push(byte);
        }
    }

    /// A message field.
    pub(crate) fn message<const M: usize>(&mut self, field: u32, message: &Encoder<M>) {
        self.bytes(field, message.as_slice(), true);
    }

    /// A message field that has the fields of `head` and one more, of bytes.
    pub(crate) fn nested<const M: usize>(
        &mut self,
        field: u32,
        head: &Encoder<M>,
        bytes_field: u32,
        bytes: &[u8],
    ) {
        let mut length = Encoder::<16>::new();
        length.varint(u64::from(bytes_field) << 3 | 2);
        length.varint(bytes.len() as u64);
        self.varint(u64::from(field) << 3 | 2);
        self.varint((head.length + length.length + bytes.len()) as u64);
        for &byte in head.as_slice().iter().chain(length.as_slice()).chain(bytes) {
            self.push(byte);
        }
    }

    /// A packed repeated varint field.
    pub(crate) fn packed(&mut self, field: u32, values: impl Iterator<Item = u64> + Clone) {
        let length: usize = values.clone().map(varint_length).sum();
        if length > 0 {
            self.varint(u64::from(field) << 3 | 2);
            self.varint(length as u64);
            for value in values {
                self.varint(value);
            }
        }
    }
}

const fn varint_length(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// Field numbers of `LaunchEvent.kind`.
mod event {
    pub(super) const PLACED: u32 = 1;
    pub(super) const STARTED: u32 = 2;
    pub(super) const ENDED: u32 = 3;
    pub(super) const FAILURE: u32 = 4;
    pub(super) const PARKED: u32 = 5;
    pub(super) const ASKED: u32 = 6;
    pub(super) const LIMITS_SET: u32 = 7;
}

/// Field numbers of `Ready.kind`.
mod ready {
    pub(super) const FAILURE: u32 = 3;
}

fn encode_failure(fault: &Fault<'_>) -> Encoder<2048> {
    let mut failure = Encoder::new();
    failure.signed(1, fault.step as i32);
    failure.signed(2, fault.errno as i32);
    failure.bytes(3, fault.syscall.as_bytes(), false);
    failure.bytes(4, &fault.path[..fault.path.len().min(PATH_MAX)], false);
    failure.number(5, u64::from(fault.exec));
    failure.bytes(6, fault.detail.as_bytes(), false);
    failure
}

/// Sends a `LaunchEvent` or `Ready` whose only field is `field`. An error here means that the host has gone; there is
/// nobody left to tell.
fn send(socket: BorrowedFd<'_>, field: u32, body: &[u8], fds: &[RawFd]) {
    let mut head = Encoder::<16>::new();
    head.varint(u64::from(field) << 3 | 2);
    head.varint(body.len() as u64);
    let _ = packet::send(socket, &[&frame::INLINE_HEADER, head.as_slice(), body], fds, 0);
}

/// The launch failed in a step.
pub(crate) fn launch_failed(socket: BorrowedFd<'_>, fault: &Fault<'_>) {
    send(socket, event::FAILURE, encode_failure(fault).as_slice(), &[]);
}

/// A request for a template or initial namespaces failed.
pub(crate) fn request_failed(socket: BorrowedFd<'_>, fault: &Fault<'_>) {
    send(socket, ready::FAILURE, encode_failure(fault).as_slice(), &[]);
}

/// Init runs; the kernel adds its pid.
pub(crate) fn placed(socket: BorrowedFd<'_>) {
    send(socket, event::PLACED, &[], &[]);
}

/// A warm nest is ready; the kernel adds the pid of the process that says so.
pub(crate) fn parked(socket: BorrowedFd<'_>) {
    send(socket, event::PARKED, &[], &[]);
}

/// The program runs as `pid`. In a pid namespace of ours the kernel translates the pid for the host: init may speak in
/// the sandboxee's name because it has `CAP_SYS_ADMIN` over the namespace.
pub(crate) fn started(socket: BorrowedFd<'_>, pid: i32, in_pid_namespace: bool) {
    let mut body = Encoder::<16>::new();
    body.signed(1, pid);
    let mut head = Encoder::<16>::new();
    head.varint(u64::from(event::STARTED) << 3 | 2);
    head.varint(body.as_slice().len() as u64);
    let parts = [&frame::INLINE_HEADER[..], head.as_slice(), body.as_slice()];
    let _ = if in_pid_namespace {
        packet::send_as(socket, &parts, &[], in_the_name_of(pid))
    } else {
        packet::send(socket, &parts, &[], 0)
    };
}

fn in_the_name_of(pid: i32) -> Credentials {
    // SAFETY: both take nothing.
    let own = |number| unsafe { nestbox_sys::syscall!(number) }.unwrap_or_default() as u32;
    Credentials { pid, uid: own(libc::SYS_getuid), gid: own(libc::SYS_getgid) }
}

/// When each step was finished. Fixed room, filled from template to exec.
#[derive(Clone, Copy)]
pub(crate) struct Marks {
    steps: [u8; MARKS_MAX],
    times: [u64; MARKS_MAX],
    count: usize,
}

impl Marks {
    pub(crate) const fn new() -> Self {
        Self { steps: [0; MARKS_MAX], times: [0; MARKS_MAX], count: 0 }
    }

    /// `step` is finished now.
    pub(crate) fn add(&mut self, step: Step) {
        self.add_at(step, nestbox_sys::process::monotonic_ns());
    }

    /// `step` was finished at `time`.
    pub(crate) fn add_at(&mut self, step: Step, time: u64) {
        if self.count < MARKS_MAX {
            self.steps[self.count] = step as i32 as u8;
            self.times[self.count] = time;
            self.count += 1;
        }
    }

    /// When the last step was finished.
    pub(crate) fn last(&self) -> Option<u64> {
        self.times[..self.count].last().copied()
    }
}

/// Everything that `Ended` says; see `proto/launch.proto`.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
pub(crate) struct Ending<'a> {
    pub(crate) signaled: bool,
    pub(crate) status: i32,
    pub(crate) limit: nestbox_protocol::LimitKind,
    pub(crate) killed_by_host: bool,
    pub(crate) disk_full: bool,
    pub(crate) usage: libc::rusage,
    pub(crate) exec_ns: u64,
    pub(crate) ended_ns: u64,
    pub(crate) marks: &'a Marks,
    pub(crate) output_errnos: &'a [i32],
    pub(crate) output_fds: &'a [RawFd],
    pub(crate) violated: bool,
    /// An encoded `SystemCall`.
    pub(crate) violation: Option<&'a [u8]>,
    /// An encoded `Learned`.
    pub(crate) learned: Option<&'a [u8]>,
    /// How many of them are of a crash.
    pub(crate) crash_fds: usize,
    /// The program's pid, if the host has not been told it. It must not have been reaped.
    pub(crate) unnamed: Option<i32>,
}

/// Everything of the launch is dead.
pub(crate) fn ended(socket: BorrowedFd<'_>, ending: &Ending<'_>) {
    let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    let marks = ending.marks;
    // Sixteen numbers of up to eleven bytes, the marks of up to ten each, and two for each output's errno.
    let mut body = Encoder::<{ 16 * 11 + 10 + MARKS_MAX * 11 + OUTPUTS_MAX * 2 + 10 }>::new();
    body.signed(1, if ending.signaled { 2 } else { 1 });
    body.signed(2, ending.status);
    body.signed(3, ending.limit as i32);
    body.number(4, u64::from(ending.killed_by_host));
    body.number(5, u64::from(ending.disk_full));
    body.number(6, micros(ending.usage.ru_utime));
    body.number(7, micros(ending.usage.ru_stime));
    body.number(8, ending.usage.ru_maxrss as u64);
    body.number(9, ending.usage.ru_minflt as u64);
    body.number(10, ending.usage.ru_majflt as u64);
    body.number(11, ending.usage.ru_nvcsw as u64);
    body.number(12, ending.usage.ru_nivcsw as u64);
    body.number(13, ending.exec_ns);
    body.number(14, ending.ended_ns);
    body.packed(15, marks.steps[..marks.count].iter().map(|&step| u64::from(step)));
    body.packed(16, marks.times[..marks.count].iter().copied());
    body.packed(17, ending.output_errnos.iter().map(|&errno| i64::from(errno) as u64));
    body.number(18, u64::from(ending.violated));
    body.number(21, ending.crash_fds as u64);
    body.number(22, u64::from(ending.unnamed.is_some()));
    // There is a violation or something learnt, never both: a launch that learns forbids nothing.
    let (field, last) = match (ending.violation, ending.learned) {
        (Some(violation), _) => (19, violation),
        (None, learned) => (20, learned.unwrap_or_default()),
    };
    if !last.is_empty() {
        body.varint(field << 3 | 2);
        body.varint(last.len() as u64);
    }
    let mut head = Encoder::<16>::new();
    head.varint(u64::from(event::ENDED) << 3 | 2);
    head.varint((body.length + last.len()) as u64);
    let parts = [&frame::INLINE_HEADER[..], head.as_slice(), body.as_slice(), last];
    // An error here means that the host has gone.
    let _ = match ending.unnamed {
        Some(pid) => packet::send_as(socket, &parts, ending.output_fds, in_the_name_of(pid)),
        None => packet::send(socket, &parts, ending.output_fds, 0),
    };
}

/// Asks the host about an encoded `SystemCall`. Does not wait: `EAGAIN`, there is no room.
pub(crate) fn asked(socket: BorrowedFd<'_>, id: u64, call: &[u8]) -> Result<(), Errno> {
    let mut body = Encoder::<32>::new();
    body.fixed(1, id);
    body.varint(2 << 3 | 2);
    body.varint(call.len() as u64);
    let mut head = Encoder::<16>::new();
    head.varint(u64::from(event::ASKED) << 3 | 2);
    head.varint((body.length + call.len()) as u64);
    let parts = [&frame::INLINE_HEADER[..], head.as_slice(), body.as_slice(), call];
    packet::send(socket, &parts, &[], libc::MSG_DONTWAIT)
}

/// Other limits hold, or why they do not.
pub(crate) fn limits_set(socket: BorrowedFd<'_>, result: Result<(), Fault<'_>>) {
    let mut body = Encoder::<2304>::new();
    if let Err(fault) = result {
        body.message(1, &encode_failure(&fault));
    }
    send(socket, event::LIMITS_SET, body.as_slice(), &[]);
}

/// The failure of a request that could not even be read.
pub(crate) fn unreadable(errno: Errno) -> Fault<'static> {
    Fault::new(Step::DecodeRequest, errno, "recvmsg", b"")
        .detail("the request is malformed, truncated or from another version")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestbox_protocol::{Ending as WireEnding, LaunchEvent, LimitKind, Ready, launch_event, ready};
    use nestbox_sys::socket;
    use std::os::fd::AsFd;

    fn receive<M: prost::Message + Default>(socket: BorrowedFd<'_>) -> M {
        let mut buffer = vec![0; frame::PACKET_MAX];
        let mut fds = Vec::new();
        let bytes = packet::receive(socket, &mut buffer, &mut fds, 0).expect("packet").bytes.to_vec();
        packet::read_message(&bytes, &mut fds).expect("message")
    }

    #[test]
    fn failures_decode() {
        let (ours, theirs) = socket::seqpacket_pair().expect("pair");
        let fault = Fault::new(Step::MountProc, Errno::EPERM, "mount", b"/proc").detail("why");
        launch_failed(ours.as_fd(), &fault);
        let event: LaunchEvent = receive(theirs.as_fd());
        let Some(launch_event::Kind::Failure(failure)) = event.kind else { panic!("{event:?}") };
        assert_eq!(failure.step(), Step::MountProc);
        assert_eq!((failure.errno, failure.syscall.as_str()), (libc::EPERM, "mount"));
        assert_eq!((failure.path.as_slice(), failure.detail.as_str()), (&b"/proc"[..], "why"));
        for result in [Ok(()), Err(fault)] {
            limits_set(ours.as_fd(), result);
            let event: LaunchEvent = receive(theirs.as_fd());
            let Some(launch_event::Kind::LimitsSet(set)) = event.kind else { panic!("{event:?}") };
            assert_eq!(set.failure.map(|failure| failure.errno), result.err().map(|_| libc::EPERM));
        }
        request_failed(ours.as_fd(), &fault);
        let answer: Ready = receive(theirs.as_fd());
        assert!(matches!(answer.kind, Some(ready::Kind::Failure(_))));
    }

    #[test]
    fn endings_decode() {
        let (ours, theirs) = socket::seqpacket_pair().expect("pair");
        let mut marks = Marks::new();
        for _ in 0..MARKS_MAX + 3 {
            marks.add_at(Step::Exec, u64::MAX);
        }
        // SAFETY: all-zero is a valid rusage.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        usage.ru_utime.tv_usec = 7;
        let errnos = [libc::ENOENT; OUTPUTS_MAX];
        ended(
            ours.as_fd(),
            &Ending {
                signaled: true,
                status: 9,
                limit: LimitKind::WallTime,
                killed_by_host: true,
                disk_full: false,
                usage,
                exec_ns: u64::MAX,
                ended_ns: 2,
                marks: &marks,
                output_errnos: &errnos,
                output_fds: &[],
                violated: false,
                violation: None,
                learned: None,
                crash_fds: 3,
                unnamed: Some(std::process::id() as i32),
            },
        );
        let event: LaunchEvent = receive(theirs.as_fd());
        let Some(launch_event::Kind::Ended(ended)) = event.kind else { panic!("{event:?}") };
        assert_eq!(ended.ending(), WireEnding::Signaled);
        assert_eq!(ended.limit(), LimitKind::WallTime);
        assert_eq!((ended.status, ended.user_cpu_us, ended.exec_ns), (9, 7, u64::MAX));
        assert_eq!(ended.mark_ns.len(), MARKS_MAX);
        assert_eq!((&ended.output_errnos[..], ended.crash_fds, ended.named), (&errnos[..], 3, true));
    }

    #[test]
    fn calls_decode() {
        let (ours, theirs) = socket::seqpacket_pair().expect("pair");
        let mut record = Encoder::<8192>::new();
        record.signed(1, 257);
        record.fixed(3, u64::MAX);
        record.packed_fixed(4, &[0, 1, 2, 3, 4, u64::MAX]);
        let mut numbers = Encoder::<16>::new();
        numbers.number(1, 1);
        record.nested(7, &numbers, 3, &[b'x'; 4096]);
        let before = record.len();
        record.nested(7, &numbers, 3, b"taken back");
        record.truncate(before);
        asked(ours.as_fd(), 1 << 63, record.as_slice()).expect("there is room");
        let event: LaunchEvent = receive(theirs.as_fd());
        let Some(launch_event::Kind::Asked(asked)) = event.kind else { panic!("{event:?}") };
        let call = asked.call.expect("a call");
        assert_eq!((asked.id, call.number, call.instruction_pointer), (1 << 63, 257, u64::MAX));
        assert_eq!(call.args, [0, 1, 2, 3, 4, u64::MAX]);
        assert_eq!((call.memory.len(), call.memory[0].argument), (1, 1));
        assert_eq!(call.memory[0].content, [b'x'; 4096]);
    }
}
