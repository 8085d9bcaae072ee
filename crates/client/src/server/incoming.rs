//! One packet as it came in, whoever sent it.
//!
//! Promises: its fds are closed unless they are taken, with a message that may have as many. Used by whatever reads a socket of
//! the fork server's side: [`super::receive`], [`super::progress`], [`super::warm`].

use std::os::fd::{BorrowedFd, OwnedFd};

use nestbox_protocol::Step;
use nestbox_sys::Errno;
use nestbox_sys::packet::{self, Credentials};
use prost::Message;

use crate::failure::{Code, Failure};
use crate::hints;

use super::malformed;

/// How many packets of one socket are read before it is the others' turn: what is left is reported again.
pub(super) const PACKETS: usize = 64;

/// One packet, its fds and its sender.
pub(super) struct Incoming<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) credentials: Option<Credentials>,
    fds: Vec<OwnedFd>,
    pub(super) errno: Option<Errno>,
}

impl<'a> Incoming<'a> {
    /// The next packet of a socket, or that it is at its end or broken; `None`: there is nothing now.
    pub(super) fn next(socket: BorrowedFd<'_>, buffer: &'a mut [u8]) -> Option<Self> {
        let mut fds = Vec::new();
        match packet::receive(socket, buffer, &mut fds, libc::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => None,
            Ok(packet) => {
                Some(Self { bytes: packet.bytes, credentials: packet.credentials, fds, errno: None })
            }
            Err(errno) => Some(Self { bytes: &[], credentials: None, fds, errno: Some(errno) }),
        }
    }

    /// The failure that says that the channel is at its end or broken; `None`: there is a packet.
    pub(super) fn lost(&self, step: Step) -> Option<Failure> {
        match self.errno {
            Some(errno) => Some(hints::advise(Failure::system(Code::Spawn, step, "recvmsg", errno))),
            None if self.bytes.is_empty() => {
                Some(Failure::fact(Code::ForkServer, step, "the fork server died"))
            }
            None => None,
        }
    }

    /// Its message and fds, of which there may be `most`. With surplus fds, or if it does not decode, all are closed.
    pub(super) fn read<M: Message + Default>(&mut self, most: usize) -> Result<(M, Vec<OwnedFd>), Failure> {
        let mut fds = std::mem::take(&mut self.fds);
        let message = packet::read_message(self.bytes, &mut fds)
            .map_err(|error| Failure::message(Code::Spawn, Step::DecodeRequest, &error))?;
        if fds.len() > most {
            return Err(malformed(Step::DecodeRequest, "the packet has more fds than it may have"));
        }
        Ok((message, fds))
    }
}
