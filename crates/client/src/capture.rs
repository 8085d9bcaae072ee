//! Captured output: what a program writes to its standard output and error, kept in memory up to a limit.
//!
//! Promises: all that is written is counted, kept or not; at most `limit` bytes of both streams together are kept; reads
//! never block. [`Capture::finish_stream`] takes what is there now: after the end of a nest nobody is left to write, so
//! that is all, even if a descriptor of the pipe lives on elsewhere and somebody goes on writing to it. Called by the client whenever a pipe is readable, and once
//! more when the launch has ended.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nestbox_sys::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::room;

/// The size of one read: what a pipe holds after it was widened ([`WIDE_PIPE`]).
pub(crate) const READ_SIZE: usize = 256 * 1024;

/// A pipe holds 64 KiB at first. A program that keeps filling it gets one that is four times as large: fewer wake-ups of
/// both sides.
const WIDE_PIPE: i32 = 256 * 1024;

/// How much a pipe holds at first.
const NARROW_PIPE: usize = 64 * 1024;

/// After so many reads that took all that a narrow pipe holds, there is much to come.
const MUCH: u8 = 2;

/// What to do with output past the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnOverflow {
    /// Kill the nest; what came before is kept.
    #[default]
    Kill,
    /// Keep the first bytes and drop the rest.
    KeepHead,
    /// Keep the last bytes.
    KeepTail,
}

/// Which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// One stream's pipe and what was kept of it.
#[derive(Default)]
struct Kept {
    pipe: Option<OwnedFd>,
    /// `bytes[start..]` is kept.
    bytes: Vec<u8>,
    start: usize,
    total: u64,
    /// A read that took all that a narrow pipe holds.
    full_reads: u8,
    captured: bool,
}

impl Kept {
    fn drop_front(&mut self, count: usize) {
        self.start += count;
        // Moved together when half of it is dead, so that each byte is moved at most once.
        if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.drain(..self.start);
        room::fit(&mut bytes);
        self.captured.then_some(bytes)
    }
}

/// Both streams of one launch.
pub(crate) struct Capture {
    streams: [Kept; 2],
    limit: Option<u64>,
    on_overflow: OnOverflow,
    kept: u64,
    /// For the tail: the order in which runs of bytes came, so that the oldest go first.
    runs: VecDeque<(Stream, usize)>,
}

/// What a captured launch gave.
#[derive(Debug, Default)]
pub(crate) struct Captured {
    pub(crate) stdout: Option<Vec<u8>>,
    pub(crate) stderr: Option<Vec<u8>>,
    pub(crate) stdout_bytes: u64,
    pub(crate) stderr_bytes: u64,
}

/// What a drain found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// Nothing more for now.
    ForNow,
    /// All writers have closed; the pipe is to be taken off and closed.
    ToTheEnd,
}

impl Capture {
    pub(crate) fn new(limit: Option<u64>, on_overflow: OnOverflow) -> Self {
        Self {
            streams: [Kept::default(), Kept::default()],
            limit,
            on_overflow,
            kept: 0,
            runs: VecDeque::new(),
        }
    }

    /// Takes the read end of a stream's pipe; it must be non-blocking.
    pub(crate) fn attach(&mut self, stream: Stream, pipe: OwnedFd) {
        let kept = &mut self.streams[stream as usize];
        kept.pipe = Some(pipe);
        kept.captured = true;
    }

    /// The pipe of a stream, while it is open.
    pub(crate) fn pipe(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        self.streams[stream as usize].pipe.as_ref().map(AsFd::as_fd)
    }

    /// Closes a stream's pipe.
    pub(crate) fn close(&mut self, stream: Stream) {
        self.streams[stream as usize].pipe = None;
    }

    /// Sets another limit. What was kept stays, but of the tail what is too much of it.
    pub(crate) fn set_limit(&mut self, limit: Option<u64>) {
        self.limit = limit;
        if self.on_overflow == OnOverflow::KeepTail {
            self.drop_excess();
        }
    }

    /// Whether more was written than the limit allows, and that is to end the program.
    pub(crate) fn must_kill(&self) -> bool {
        self.on_overflow == OnOverflow::Kill && self.over()
    }

    /// Whether a stream has had more than a pipe holds: its program has waited, or would have, if nobody had read.
    pub(crate) fn outgrew_a_pipe(&self) -> bool {
        self.streams.iter().any(|kept| kept.total >= NARROW_PIPE as u64)
    }

    fn over(&self) -> bool {
        self.limit.is_some_and(|limit| self.streams.iter().map(|kept| kept.total).sum::<u64>() > limit)
    }

    /// Takes one read's worth of what is there, so that one busy program does not keep the others waiting. `scratch` is
    /// at least [`READ_SIZE`] long.
    pub(crate) fn drain(&mut self, stream: Stream, scratch: &mut [u8]) -> Drained {
        match self.read(stream, scratch) {
            // Whatever else than data or "not now" it is, no more will come.
            Ok(0) => Drained::ToTheEnd,
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Drained::ForNow,
            Err(_) => Drained::ToTheEnd,
        }
    }

    /// Takes all that is there at this moment.
    pub(crate) fn finish_stream(&mut self, stream: Stream, scratch: &mut [u8]) {
        let mut left = self.pipe(stream).map_or(0, waiting_bytes);
        while left > 0 {
            match self.read(stream, scratch) {
                Ok(0) => return,
                Ok(count) => left = left.saturating_sub(count),
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    /// One read; `Ok(0)` at the end.
    fn read(&mut self, stream: Stream, scratch: &mut [u8]) -> Result<usize, Errno> {
        let most = self.limit.map(|limit| limit.saturating_sub(self.kept));
        let kept = &mut self.streams[stream as usize];
        let Some(pipe) = &kept.pipe else { return Ok(0) };
        if kept.full_reads >= MUCH && most.is_none_or(|most| most >= READ_SIZE as u64) {
            room::make_room(&mut kept.bytes, READ_SIZE, most);
            let count = append(&mut kept.bytes, pipe.as_fd(), READ_SIZE)?;
            kept.total += count as u64;
            self.kept_more(stream, count);
            return Ok(count);
        }
        let count = nix::unistd::read(pipe, scratch)?;
        if count >= NARROW_PIPE {
            kept.full_reads = kept.full_reads.saturating_add(1);
            if kept.full_reads == MUCH {
                // EPERM past `pipe-user-pages-soft`: it stays as it is.
                let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(WIDE_PIPE));
            }
        }
        self.keep(stream, &scratch[..count]);
        Ok(count)
    }

    fn keep(&mut self, stream: Stream, data: &[u8]) {
        let limit = self.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let kept = &mut self.streams[stream as usize];
        kept.total += data.len() as u64;
        let data = match self.on_overflow {
            // The last `limit` bytes of one chunk are all that can survive it.
            OnOverflow::KeepTail => &data[data.len().saturating_sub(limit)..],
            OnOverflow::Kill | OnOverflow::KeepHead => {
                &data[..limit.saturating_sub(self.kept as usize).min(data.len())]
            }
        };
        kept.bytes.extend_from_slice(data);
        self.kept_more(stream, data.len());
    }

    /// So many bytes were added to what is kept of a stream.
    fn kept_more(&mut self, stream: Stream, count: usize) {
        self.kept += count as u64;
        if self.on_overflow != OnOverflow::KeepTail {
            return;
        }
        match self.runs.back_mut() {
            Some((of, length)) if *of == stream => *length += count,
            _ => self.runs.push_back((stream, count)),
        }
        self.drop_excess();
    }

    /// Of the tail: drops the oldest bytes, until no more are kept than may be.
    fn drop_excess(&mut self) {
        let limit = self.limit.unwrap_or(u64::MAX);
        while self.kept > limit {
            let Some((of, length)) = self.runs.front_mut() else { break };
            let excess = (self.kept - limit).min(*length as u64) as usize;
            self.streams[*of as usize].drop_front(excess);
            *length -= excess;
            self.kept -= excess as u64;
            if *length == 0 {
                self.runs.pop_front();
            }
        }
    }

    /// What was kept.
    pub(crate) fn finish(&mut self) -> Captured {
        let [stdout, stderr] = &mut self.streams;
        Captured {
            stdout_bytes: stdout.total,
            stderr_bytes: stderr.total,
            stdout: stdout.take(),
            stderr: stderr.take(),
        }
    }
}

/// Reads at most `most` bytes, for which there is room, to the end of `bytes`.
fn append(bytes: &mut Vec<u8>, pipe: BorrowedFd<'_>, most: usize) -> Result<usize, Errno> {
    let room = &mut bytes.spare_capacity_mut()[..most];
    // SAFETY: `room` may be written to for its length.
    let read = unsafe { libc::read(pipe.as_raw_fd(), room.as_mut_ptr().cast(), room.len()) };
    let count = Errno::result(read)? as usize;
    let length = bytes.len() + count;
    // SAFETY: there is room for `most` more, and the kernel has written `count` of them.
    unsafe { bytes.set_len(length) };
    Ok(count)
}

/// How many bytes are in a pipe.
fn waiting_bytes(pipe: BorrowedFd<'_>) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD as _, &raw mut count) };
    if result == 0 { count as usize } else { 0 }
}

/// Standard input that is written from memory.
pub(crate) struct Input {
    pipe: OwnedFd,
    rest: Vec<u8>,
    done: usize,
}

impl Input {
    /// Writes as much of `content` as the pipe takes; `None` when that was all, or nobody reads. The pipe's write end
    /// must be non-blocking.
    pub(crate) fn start(pipe: OwnedFd, content: &[u8]) -> Option<Self> {
        let done = write_some(&pipe, content)?;
        Some(Self { pipe, rest: content[done..].to_vec(), done: 0 })
    }

    pub(crate) fn pipe(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Goes on; true when there is nothing more to do.
    pub(crate) fn resume(&mut self) -> bool {
        match write_some(&self.pipe, &self.rest[self.done..]) {
            Some(count) => {
                self.done += count;
                false
            }
            None => true,
        }
    }
}

/// Writes until there is no room (how much was taken) or no more to write to (`None`). That nobody reads any more is no
/// error: a program need not read its input.
fn write_some(pipe: &OwnedFd, content: &[u8]) -> Option<usize> {
    let mut done = 0;
    while done < content.len() {
        let rest = &content[done..];
        // Node.js and the Rust runtime ignore SIGPIPE; a host that does not must.
        // SAFETY: `rest` is valid for its length.
        let written =
            Errno::result(unsafe { libc::write(pipe.as_raw_fd(), rest.as_ptr().cast(), rest.len()) });
        match written {
            Ok(count) => done += count as usize,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Some(done),
            Err(_) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;

    fn pipe() -> (OwnedFd, OwnedFd) {
        nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("pipe")
    }

    fn captured(
        limit: Option<u64>,
        on_overflow: OnOverflow,
        chunks: &[(Stream, &[u8])],
    ) -> (Capture, Captured) {
        let mut capture = Capture::new(limit, on_overflow);
        capture.streams.iter_mut().for_each(|kept| kept.captured = true);
        for (stream, data) in chunks {
            capture.keep(*stream, data);
        }
        let result = capture.finish();
        (capture, result)
    }

    #[test]
    fn the_head_counts_both_streams_together() {
        let chunks: &[(Stream, &[u8])] =
            &[(Stream::Stdout, b"abc"), (Stream::Stderr, b"def"), (Stream::Stdout, b"ghi")];
        let (_, result) = captured(Some(5), OnOverflow::KeepHead, chunks);
        assert_eq!(result.stdout.as_deref(), Some(&b"abc"[..]));
        assert_eq!(result.stderr.as_deref(), Some(&b"de"[..]));
        assert_eq!((result.stdout_bytes, result.stderr_bytes), (6, 3));
    }

    #[test]
    fn the_tail_drops_the_oldest_first() {
        let chunks: &[(Stream, &[u8])] =
            &[(Stream::Stdout, b"abc"), (Stream::Stderr, b"def"), (Stream::Stdout, b"ghi")];
        let (_, result) = captured(Some(5), OnOverflow::KeepTail, chunks);
        assert_eq!(result.stdout.as_deref(), Some(&b"ghi"[..]));
        assert_eq!(result.stderr.as_deref(), Some(&b"ef"[..]));
        let (_, long) = captured(Some(4), OnOverflow::KeepTail, &[(Stream::Stdout, b"0123456789")]);
        assert_eq!(long.stdout.as_deref(), Some(&b"6789"[..]));
        assert_eq!(long.stdout_bytes, 10);
    }

    #[test]
    fn another_limit_holds_for_what_comes_and_for_the_tail() {
        let mut head = Capture::new(Some(3), OnOverflow::KeepHead);
        head.streams[0].captured = true;
        head.keep(Stream::Stdout, b"abcd");
        head.set_limit(Some(5));
        head.keep(Stream::Stdout, b"efg");
        assert_eq!(head.finish().stdout.as_deref(), Some(&b"abcef"[..]));
        let mut tail = Capture::new(None, OnOverflow::KeepTail);
        tail.streams[0].captured = true;
        tail.keep(Stream::Stdout, b"abcdef");
        tail.set_limit(Some(2));
        assert_eq!(tail.finish().stdout.as_deref(), Some(&b"ef"[..]));
        let mut kill = Capture::new(Some(9), OnOverflow::Kill);
        kill.keep(Stream::Stderr, b"abc");
        assert!(!kill.must_kill());
        kill.set_limit(Some(2));
        assert!(kill.must_kill());
    }

    #[test]
    fn the_tail_of_much_output_stays_small() {
        let mut capture = Capture::new(Some(1000), OnOverflow::KeepTail);
        for index in 0..10_000_u32 {
            capture.keep(if index % 2 == 0 { Stream::Stdout } else { Stream::Stderr }, &[index as u8; 100]);
        }
        assert!(capture.streams.iter().all(|kept| kept.bytes.len() < 4000));
        assert!(capture.runs.len() <= 11);
    }

    #[test]
    fn killing_keeps_what_fits() {
        let (capture, result) = captured(Some(2), OnOverflow::Kill, &[(Stream::Stdout, b"abc")]);
        assert!(capture.must_kill());
        assert_eq!(result.stdout.as_deref(), Some(&b"ab"[..]));
        let (exact, _) = captured(Some(3), OnOverflow::Kill, &[(Stream::Stdout, b"abc")]);
        assert!(!exact.must_kill(), "the limit itself is allowed");
    }

    #[test]
    fn what_a_pipe_does_not_hold_is_noticed() {
        let mut capture = Capture::new(None, OnOverflow::Kill);
        for stream in [Stream::Stdout, Stream::Stderr] {
            capture.keep(stream, &vec![b'x'; NARROW_PIPE - 1]);
        }
        assert!(!capture.outgrew_a_pipe());
        capture.keep(Stream::Stderr, b"x");
        assert!(capture.outgrew_a_pipe());
    }

    #[test]
    fn drains_without_waiting_for_the_end() {
        let (read, write) = pipe();
        let mut capture = Capture::new(None, OnOverflow::Kill);
        capture.attach(Stream::Stdout, read);
        nix::unistd::write(&write, b"hello").expect("write");
        let mut scratch = vec![0; READ_SIZE];
        capture.finish_stream(Stream::Stdout, &mut scratch);
        assert_eq!(capture.drain(Stream::Stdout, &mut scratch), Drained::ForNow);
        drop(write);
        assert_eq!(capture.drain(Stream::Stdout, &mut scratch), Drained::ToTheEnd);
        let result = capture.finish();
        assert_eq!(result.stdout.as_deref(), Some(&b"hello"[..]));
        assert_eq!(result.stderr, None, "it was not captured");
    }

    #[test]
    fn input_is_written_as_it_is_read() {
        let (read, write) = pipe();
        let content: Vec<u8> = (0..300_000_u32).map(|index| index as u8).collect();
        let mut input = Input::start(write, &content).expect("more than a pipe holds");
        let mut got = Vec::new();
        let mut buffer = vec![0; 100_000];
        loop {
            match nix::unistd::read(&read, &mut buffer) {
                Ok(0) => break,
                Ok(count) => got.extend_from_slice(&buffer[..count]),
                Err(Errno::EAGAIN) => {
                    if input.resume() {
                        break;
                    }
                }
                Err(errno) => panic!("{errno}"),
            }
        }
        while let Ok(count @ 1..) = nix::unistd::read(&read, &mut buffer) {
            got.extend_from_slice(&buffer[..count]);
        }
        assert_eq!(got, content);
        let (read, write) = pipe();
        drop(read);
        assert!(Input::start(write, b"nobody reads").is_none(), "no error");
    }
}
