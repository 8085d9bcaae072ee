//! Socket pairs as nestbox uses them.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};

/// A connected pair of packet sockets, close-on-exec.
pub fn seqpacket_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// A connected pair of stream sockets, close-on-exec.
pub fn stream_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
}

/// Has the kernel attach each sender's credentials, in this process's namespaces, to what this end receives.
pub fn pass_credentials(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    setsockopt(&socket, sockopt::PassCred, &true)
}

/// Whether the peer has gone: a non-blocking look that takes nothing.
#[must_use]
pub fn at_end_of_file(socket: BorrowedFd<'_>) -> bool {
    let mut byte = 0_u8;
    // SAFETY: one byte of ours.
    let peeked = unsafe {
        crate::syscall!(
            libc::SYS_recvfrom,
            socket.as_raw_fd(),
            &raw mut byte,
            1,
            libc::MSG_PEEK | libc::MSG_DONTWAIT,
            0,
            0
        )
    };
    peeked == Ok(0)
}
