//! The launch child's half of supervision: installs a filter that asks a supervisor, and hands the listener to init.
//!
//! The child has init's memory but an fd table of its own, and its filter is in force when it gets the listener. So init
//! makes a pair of sockets before ([`Handover`]), and the child sends the listener there; sendmsg(2) carries the launch
//! cookie, by which every filter lets it pass. Promises: [`install`] allocates nothing and makes no other call under the
//! filter; init has the listener before the program's first instruction can be waited for. Called by [`crate::child`] and
//! [`crate::init`].

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nestbox_protocol::Step;
use nestbox_sys::{Errno, packet, process, socket};

use crate::fault::{At, Fault};

/// The way on which the listener comes to init.
pub(crate) struct Handover {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Handover {
    pub(crate) fn new() -> Result<Self, Fault<'static>> {
        let (ours, theirs) = socket::seqpacket_pair().at(Step::InstallFilter, "socketpair", b"")?;
        Ok(Self { ours, theirs })
    }

    /// Where the child sends it.
    pub(crate) fn to_init(&self) -> RawFd {
        self.theirs.as_raw_fd()
    }

    /// The listener, of a child that has executed, as fd `number`, whatever that was before.
    pub(crate) fn receive_as(self, number: RawFd) -> Result<OwnedFd, Fault<'static>> {
        let step = Step::InstallFilter;
        let mut fds = Vec::with_capacity(1);
        let received = packet::receive(self.ours.as_fd(), &mut [0; 1], &mut fds, libc::MSG_DONTWAIT)
            .and_then(|_| fds.pop().ok_or(Errno::EBADMSG))
            .at(step, "recvmsg", b"listener")?;
        // Either may be the one with that number.
        drop(self);
        if received.as_raw_fd() == number {
            return Ok(received);
        }
        // SAFETY: numbers only; what was there is not used any more.
        unsafe { nestbox_sys::syscall!(libc::SYS_dup3, received.as_raw_fd(), number, libc::O_CLOEXEC) }.at(
            step,
            "dup3",
            b"listener",
        )?;
        // SAFETY: it was just put there, and nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    }
}

/// A control message with one fd, as `CMSG_LEN` and `CMSG_DATA` lay it out.
#[repr(C, align(8))]
struct Rights {
    header: libc::cmsghdr,
    fd: RawFd,
}

/// The fd stands where `CMSG_DATA` looks for it.
const _: () = assert!(std::mem::offset_of!(Rights, fd) == size_of::<libc::cmsghdr>());

/// Installs `filter` with a listener and sends that to `to_init`. The fds are closed with all others that the program does
/// not get.
pub(crate) fn install(filter: &[u8], to_init: RawFd) -> Result<(), Fault<'static>> {
    let step = Step::InstallFilter;
    let listener = process::install_listening_filter(filter).map_err(|errno| {
        let fault = Fault::new(step, errno, "seccomp", b"listener");
        if errno == Errno::EBUSY {
            fault.detail("this host is itself supervised, and the kernel lets a process have one supervisor")
        } else {
            fault
        }
    })?;
    let mut byte = 0_u8;
    let mut slice = libc::iovec { iov_base: (&raw mut byte).cast::<c_void>(), iov_len: 1 };
    // SAFETY: all-zero is a valid cmsghdr.
    let mut rights = Rights { header: unsafe { std::mem::zeroed() }, fd: listener };
    // SAFETY: only computes.
    rights.header.cmsg_len = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) } as _;
    rights.header.cmsg_level = libc::SOL_SOCKET;
    rights.header.cmsg_type = libc::SCM_RIGHTS;
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut rights).cast();
    message.msg_controllen = size_of::<Rights>() as _;
    // SAFETY: everything in the message is ours and as long as said.
    unsafe {
        nestbox_sys::syscall!(
            libc::SYS_sendmsg,
            to_init,
            &raw const message,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL
        )
    }
    .at(step, "sendmsg", b"listener")
    .map(drop)
}
