//! A packet socket that never blocks.
//!
//! Promises: a packet that finds no room (`EAGAIN`: the receiver's queue holds `net.unix.max_dgram_qlen` packets, ten on
//! many systems) waits here, with fds of its own, and packets leave in the order in which they were sent. The socket is
//! watched for writing only while something waits. Used for every control socket of the client.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nestbox_protocol::frame::{self, FrameError, INLINE_MAX, MESSAGE_MAX};
use nestbox_sys::packet::{self, MessageError};
use nestbox_sys::{Errno, memfd};
use nix::fcntl::{FcntlArg, fcntl};
use prost::Message;

use crate::reactor::{Interest, Key, Reactor};

/// An fd to pass: ours, closed once it is sent, or lent by the caller for the time of the call.
#[derive(Debug)]
pub(crate) enum PassedFd {
    Owned(OwnedFd),
    Lent(RawFd),
}

impl PassedFd {
    fn raw(&self) -> RawFd {
        match self {
            Self::Owned(fd) => fd.as_raw_fd(),
            Self::Lent(fd) => *fd,
        }
    }

    /// The same open file once more.
    pub(crate) fn again(&self) -> Result<Self, Errno> {
        Ok(match self {
            Self::Owned(fd) => Self::Owned(duplicate(fd.as_raw_fd())?),
            Self::Lent(fd) => Self::Lent(*fd),
        })
    }

    /// An fd that stays valid after the call: what is lent is duplicated.
    pub(crate) fn keep(&mut self) -> Result<(), Errno> {
        if let Self::Lent(raw) = *self {
            *self = Self::Owned(duplicate(raw)?);
        }
        Ok(())
    }
}

/// dup(2), close-on-exec.
pub(crate) fn duplicate(raw: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: only lent to fcntl, which answers EBADF for what is no fd; see `Launch::fds` for who vouches for it.
    let fd = unsafe { BorrowedFd::borrow_raw(raw) };
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: F_DUPFD_CLOEXEC returned a new fd.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(copy) })
}

/// A packet that waits for room.
struct Waiting {
    packet: Vec<u8>,
    fds: Vec<PassedFd>,
    /// Whose it is, for the report of a failure.
    owner: u64,
}

pub(crate) struct Channel {
    socket: OwnedFd,
    key: Key,
    waiting: VecDeque<Waiting>,
}

/// A packet that could not be sent after it had waited.
#[derive(Debug)]
pub(crate) struct Undelivered {
    pub(crate) owner: u64,
    pub(crate) errno: Errno,
}

/// One message as a packet; the memfd of a spilled one is appended to `fds`.
pub(crate) fn encode(message: &impl Message, fds: &mut Vec<PassedFd>) -> Result<Vec<u8>, MessageError> {
    let length = message.encoded_len();
    if length <= INLINE_MAX {
        return Ok(frame::inline(message));
    }
    if length as u64 > MESSAGE_MAX {
        return Err(FrameError::TooLarge { length: length as u64 }.into());
    }
    let spill = memfd::sealed(c"nestbox-message", &message.encode_to_vec(), false)
        .map_err(|errno| MessageError::System { syscall: "memfd_create", errno })?;
    fds.push(PassedFd::Owned(spill));
    Ok(frame::spilled(length as u64).to_vec())
}

impl Channel {
    /// Watches `socket` under `key`.
    pub(crate) fn new(socket: OwnedFd, key: Key, reactor: &Reactor) -> Result<Self, Errno> {
        reactor.add(socket.as_fd(), key, Interest::Read)?;
        Ok(Self { socket, key, waiting: VecDeque::new() })
    }

    /// A channel that is only written to: watched while something waits, never for reading.
    pub(crate) fn for_writing(socket: OwnedFd, key: Key) -> Self {
        Self { socket, key, waiting: VecDeque::new() }
    }

    /// What it is watched under.
    pub(crate) fn key(&self) -> Key {
        self.key
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether something waits to be sent.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends a message, now or as soon as there is room.
    pub(crate) fn send(
        &mut self,
        message: &impl Message,
        mut fds: Vec<PassedFd>,
        owner: u64,
        reactor: &Reactor,
    ) -> Result<(), MessageError> {
        let packet = encode(message, &mut fds)?;
        if self.waiting.is_empty() {
            match transmit(self.socket.as_fd(), &packet, &fds) {
                Ok(()) => return Ok(()),
                Err(Errno::EAGAIN) => {}
                Err(errno) => return Err(MessageError::System { syscall: "sendmsg", errno }),
            }
        }
        for fd in &mut fds {
            fd.keep().map_err(|errno| MessageError::System { syscall: "dup", errno })?;
        }
        if self.waiting.is_empty() {
            self.watch(reactor, Interest::ReadAndWrite)
                .map_err(|errno| MessageError::System { syscall: "epoll_ctl", errno })?;
        }
        self.waiting.push_back(Waiting { packet, fds, owner });
        Ok(())
    }

    /// Sends what waits, as far as there is room; returns what could not be sent.
    pub(crate) fn flush(&mut self, reactor: &Reactor) -> Vec<Undelivered> {
        let mut undelivered = Vec::new();
        while let Some(next) = self.waiting.front() {
            match transmit(self.socket.as_fd(), &next.packet, &next.fds) {
                Ok(()) => {}
                Err(Errno::EAGAIN) => return undelivered,
                Err(errno) => undelivered.push(Undelivered { owner: next.owner, errno }),
            }
            self.waiting.pop_front();
        }
        // Fails only for an fd that is not watched, which then needs no change.
        let _ = self.watch(reactor, Interest::Read);
        undelivered
    }

    fn watch(&self, reactor: &Reactor, interest: Interest) -> Result<(), Errno> {
        match (self.key.kind, interest) {
            (crate::reactor::Kind::Zygote, Interest::Read) => {
                reactor.remove(self.socket.as_fd());
                Ok(())
            }
            (crate::reactor::Kind::Zygote, _) => reactor.add(self.socket.as_fd(), self.key, Interest::Write),
            _ => reactor.modify(self.socket.as_fd(), self.key, interest),
        }
    }
}

/// Sends one packet without waiting.
pub(crate) fn transmit(socket: BorrowedFd<'_>, packet: &[u8], fds: &[PassedFd]) -> Result<(), Errno> {
    // Most packets carry few: no allocation for those.
    let mut few = [-1; 16];
    if let Some(few) = few.get_mut(..fds.len()) {
        few.iter_mut().zip(fds).for_each(|(raw, fd)| *raw = fd.raw());
        return packet::send(socket, &[packet], few, libc::MSG_DONTWAIT);
    }
    let raw: Vec<RawFd> = fds.iter().map(PassedFd::raw).collect();
    packet::send(socket, &[packet], &raw, libc::MSG_DONTWAIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::Kind;
    use nestbox_protocol::Kill;
    use nestbox_sys::socket;

    fn signal(packet: &[u8]) -> i32 {
        packet::read_message::<Kill>(packet, &mut Vec::new()).expect("a kill").signal
    }

    #[test]
    fn packets_without_room_wait_in_order_and_keep_their_fds() {
        let reactor = Reactor::new().expect("epoll");
        let (ours, theirs) = socket::seqpacket_pair().expect("pair");
        let mut channel = Channel::new(ours, Key::new(Kind::Control, 0), &reactor).expect("watched");
        let count = 2000;
        for signal in 0..count {
            let lent = nix::unistd::dup(theirs.as_fd()).expect("dup");
            let fds = vec![PassedFd::Lent(lent.as_raw_fd())];
            channel.send(&Kill { signal }, fds, 0, &reactor).expect("sent or queued");
            // The caller closes its own at once; what waits has a copy.
        }
        assert!(channel.is_waiting(), "2000 packets are more than a queue holds");
        let mut buffer = vec![0; frame::PACKET_MAX];
        for expected in 0..count {
            let mut fds = Vec::new();
            let packet = loop {
                match packet::receive(theirs.as_fd(), &mut buffer, &mut fds, libc::MSG_DONTWAIT) {
                    Ok(packet) => break signal(packet.bytes),
                    Err(Errno::EAGAIN) => assert!(channel.flush(&reactor).is_empty()),
                    Err(errno) => panic!("{errno}"),
                }
            };
            assert_eq!((packet, fds.len()), (expected, 1));
        }
        channel.flush(&reactor);
        assert!(!channel.is_waiting());
    }

    #[test]
    fn a_peer_that_has_gone_is_an_error_not_a_signal() {
        let reactor = Reactor::new().expect("epoll");
        let (ours, theirs) = socket::seqpacket_pair().expect("pair");
        let mut channel = Channel::new(ours, Key::new(Kind::Control, 0), &reactor).expect("watched");
        drop(theirs);
        let error = channel.send(&Kill { signal: 9 }, Vec::new(), 0, &reactor).expect_err("nobody there");
        assert_eq!(error.errno(), Errno::EPIPE);
    }
}
