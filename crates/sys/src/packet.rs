//! Packets of a `SOCK_SEQPACKET` socket, with fds and credentials, and messages in packets.
//!
//! Promises: whatever arrives beside what was asked for (surplus fds, truncated control data) is closed, never leaked;
//! fds are received close-on-exec; sending never raises SIGPIPE. [`send`] and [`send_as`] allocate nothing. Called on
//! both sides of every socket between host, fork server, templates and inits.

use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nestbox_protocol::frame::{self, FDS_MAX, FrameError, INLINE_MAX, Kind};
use nix::errno::Errno;
use prost::Message;
use prost::bytes::Bytes;

use crate::memfd;

/// Room for one packet's control data: fds and credentials.
const CONTROL: usize = 2048;

/// `CMSG_SPACE` of both must fit.
const _: () = assert!(CONTROL >= FDS_MAX * size_of::<RawFd>() + size_of::<libc::ucred>() + 64);

/// Control data, aligned as `struct cmsghdr` wants it.
#[repr(C, align(8))]
struct Control([MaybeUninit<u8>; CONTROL]);

/// What a packet's sender is, as the kernel vouches for it, in the receiver's namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Its pid.
    pub pid: i32,
    /// Its uid.
    pub uid: u32,
    /// Its gid.
    pub gid: u32,
}

/// Sends one packet with `fds`. Blocks unless `flags` has `MSG_DONTWAIT` or the socket is non-blocking.
pub fn send(socket: BorrowedFd<'_>, parts: &[&[u8]], fds: &[RawFd], flags: i32) -> Result<(), Errno> {
    send_with(socket, parts, fds, None, flags)
}

/// [`send`] in the name of another process: needs `CAP_SYS_ADMIN` over the sender's pid namespace (unix(7),
/// `SCM_CREDENTIALS`). Init uses it to tell the host the sandboxee's pid.
pub fn send_as(
    socket: BorrowedFd<'_>,
    parts: &[&[u8]],
    fds: &[RawFd],
    credentials: Credentials,
) -> Result<(), Errno> {
    send_with(socket, parts, fds, Some(credentials), 0)
}

fn send_with(
    socket: BorrowedFd<'_>,
    parts: &[&[u8]],
    fds: &[RawFd],
    credentials: Option<Credentials>,
    flags: i32,
) -> Result<(), Errno> {
    if parts.len() > 4 || fds.len() > FDS_MAX {
        return Err(Errno::EINVAL);
    }
    let mut slices = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 4];
    for (slice, part) in slices.iter_mut().zip(parts) {
        *slice = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
    }
    let mut control = Control([MaybeUninit::uninit(); CONTROL]);
    let start: *mut u8 = control.0.as_mut_ptr().cast();
    let mut used = 0;
    if !fds.is_empty() {
        // SAFETY: a slice of fds is plain bytes.
        let bytes = unsafe { std::slice::from_raw_parts(fds.as_ptr().cast::<u8>(), size_of_val(fds)) };
        used += put_control(start, used, libc::SCM_RIGHTS, bytes);
    }
    if let Some(who) = credentials {
        let value = libc::ucred { pid: who.pid, uid: who.uid, gid: who.gid };
        // SAFETY: struct ucred is plain bytes without padding.
        let bytes =
            unsafe { std::slice::from_raw_parts((&raw const value).cast::<u8>(), size_of::<libc::ucred>()) };
        used += put_control(start, used, libc::SCM_CREDENTIALS, bytes);
    }
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = slices.as_mut_ptr();
    header.msg_iovlen = parts.len() as _;
    if used > 0 {
        header.msg_control = start.cast();
        header.msg_controllen = used as _;
    }
    loop {
        // SAFETY: every pointer in the header is valid for its length during the call.
        let sent = unsafe {
            crate::syscall!(
                libc::SYS_sendmsg,
                socket.as_raw_fd(),
                &raw const header,
                flags | libc::MSG_NOSIGNAL
            )
        };
        match sent {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Writes one control message at `start + offset`; returns the space it takes.
fn put_control(start: *mut u8, offset: usize, kind: i32, data: &[u8]) -> usize {
    // SAFETY: only computes.
    let length = unsafe { libc::CMSG_LEN(data.len() as u32) };
    // SAFETY: only computes.
    let space = unsafe { libc::CMSG_SPACE(data.len() as u32) };
    // SAFETY: all-zero is a valid cmsghdr. (musl's has padding that can't be named, and the kernel reads it as the upper
    // half of the length.)
    let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
    header.cmsg_len = length as _;
    header.cmsg_level = libc::SOL_SOCKET;
    header.cmsg_type = kind;
    // SAFETY: the assertion at CONTROL leaves room.
    let place = unsafe { start.add(offset) };
    // `offset` is a sum of CMSG_SPACEs and `start` is aligned to 8: so is the place.
    #[expect(clippy::cast_ptr_alignment, reason = "see above")]
    let place = place.cast::<libc::cmsghdr>();
    // SAFETY: aligned, and ours.
    unsafe { place.write(header) };
    // SAFETY: CMSG_DATA of a header whose room was just reckoned.
    let target = unsafe { libc::CMSG_DATA(place) };
    // SAFETY: `space` bytes are ours from the header on.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) };
    space as usize
}

/// One received packet.
#[derive(Debug)]
pub struct Packet<'a> {
    /// Its bytes; empty means end of file.
    pub bytes: &'a [u8],
    /// Its sender, if the socket has `SO_PASSCRED`.
    pub credentials: Option<Credentials>,
}

/// Receives one packet into `buffer`, appending its fds to `fds`. A packet larger than the buffer or with more fds
/// than this process may take is an error (`EMSGSIZE`, `EMFILE`), and its fds are closed.
pub fn receive<'a>(
    socket: BorrowedFd<'_>,
    buffer: &'a mut [u8],
    fds: &mut Vec<OwnedFd>,
    flags: i32,
) -> Result<Packet<'a>, Errno> {
    let room = std::ptr::from_mut(buffer) as *mut [MaybeUninit<u8>];
    // SAFETY: the same bytes, borrowed for as long, and none is made uninitialized.
    receive_into(socket, unsafe { &mut *room }, fds, flags)
}

/// [`receive`] into memory that nobody has written to yet, and of which the rest is not written to now.
pub fn receive_into<'a>(
    socket: BorrowedFd<'_>,
    buffer: &'a mut [MaybeUninit<u8>],
    fds: &mut Vec<OwnedFd>,
    flags: i32,
) -> Result<Packet<'a>, Errno> {
    let mut control = Control([MaybeUninit::uninit(); CONTROL]);
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL as _;
    let length = loop {
        // SAFETY: every pointer in the header is valid for its length during the call.
        let received = unsafe {
            crate::syscall!(
                libc::SYS_recvmsg,
                socket.as_raw_fd(),
                &raw mut header,
                flags | libc::MSG_CMSG_CLOEXEC
            )
        };
        match received {
            // The peer closed its end with something of ours unread. That is told once, ahead of what it had sent
            // before; whoever reads on gets that, and then the end of file.
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            other => break other?,
        }
    };
    let first = fds.len();
    let mut credentials = None;
    // SAFETY: recvmsg filled the header's control data.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a header within the control data.
        let this = unsafe { &*message };
        // SAFETY: as above.
        let data = unsafe { libc::CMSG_DATA(message) };
        if this.cmsg_level == libc::SOL_SOCKET && this.cmsg_type == libc::SCM_RIGHTS {
            let bytes = this.cmsg_len as usize - (data as usize - message as usize);
            for index in 0..bytes / size_of::<RawFd>() {
                // SAFETY: the kernel wrote that many fds.
                let place = unsafe { data.add(index * size_of::<RawFd>()) };
                // SAFETY: as above.
                let fd = unsafe { place.cast::<RawFd>().read_unaligned() };
                // SAFETY: the kernel has just installed it for us, and nobody else knows it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        } else if this.cmsg_level == libc::SOL_SOCKET && this.cmsg_type == libc::SCM_CREDENTIALS {
            // SAFETY: the kernel wrote one struct ucred.
            let who = unsafe { data.cast::<libc::ucred>().read_unaligned() };
            credentials = Some(Credentials { pid: who.pid, uid: who.uid, gid: who.gid });
        }
        // SAFETY: header and message are the ones of this recvmsg.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        fds.truncate(first);
        // Control data is cut when the fd table is full (unix(7)); our buffer holds what one packet can carry.
        let errno = if header.msg_flags & libc::MSG_TRUNC != 0 { Errno::EMSGSIZE } else { Errno::EMFILE };
        return Err(errno);
    }
    // SAFETY: the kernel wrote as many bytes from there on: the packet was not cut.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast(), length) };
    Ok(Packet { bytes, credentials })
}

/// A message that can't be sent or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// A system call failed.
    #[error("{syscall}: {errno}")]
    System {
        /// Which.
        syscall: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// The packet is not one of ours.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The memfd of a spilled message is missing, not sealed, or shorter than announced.
    #[error("the spilled message can't be trusted: {0}")]
    Spill(&'static str),
}

impl MessageError {
    /// The errno that says it best.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::System { errno, .. } => *errno,
            Self::Frame(FrameError::TooLarge { .. }) => Errno::E2BIG,
            Self::Frame(_) | Self::Spill(_) => Errno::EBADMSG,
        }
    }
}

/// Sends a message with `fds`, inline or spilled into a sealed memfd.
pub fn send_message(
    socket: BorrowedFd<'_>,
    message: &impl Message,
    fds: &[RawFd],
    flags: i32,
) -> Result<(), MessageError> {
    let length = message.encoded_len();
    let sent = |errno| MessageError::System { syscall: "sendmsg", errno };
    if length <= INLINE_MAX {
        return send(socket, &[&frame::inline(message)], fds, flags).map_err(sent);
    }
    if length as u64 > frame::MESSAGE_MAX {
        return Err(FrameError::TooLarge { length: length as u64 }.into());
    }
    let spill = memfd::sealed(c"nestbox-message", &message.encode_to_vec(), false)
        .map_err(|errno| MessageError::System { syscall: "memfd_create", errno })?;
    let all: Vec<RawFd> = fds.iter().copied().chain([spill.as_raw_fd()]).collect();
    send(socket, &[&frame::spilled(length as u64)], &all, flags).map_err(sent)
}

/// Reads the message in a packet. For a spilled one takes the memfd off the end of `fds`.
pub fn read_message<M: Message + Default>(bytes: &[u8], fds: &mut Vec<OwnedFd>) -> Result<M, MessageError> {
    match frame::parse(bytes)? {
        Kind::Inline(body) => Ok(M::decode(body).map_err(FrameError::from)?),
        Kind::Spilled(length) => {
            let spill = fds.pop().ok_or(MessageError::Spill("no memfd came with it"))?;
            // What is large in it stays where it was read.
            let body = Bytes::from(memfd::read_sealed(&spill, length)?);
            Ok(M::decode(body).map_err(FrameError::from)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket;
    use nestbox_protocol::Launch;
    use std::os::fd::AsFd;

    fn open_fds() -> usize {
        std::fs::read_dir("/proc/self/fd").expect("proc").count()
    }

    #[test]
    fn message_with_fds_and_credentials() {
        let (left, right) = socket::seqpacket_pair().expect("pair");
        socket::pass_credentials(right.as_fd()).expect("passcred");
        let launch = Launch { args: vec![b"x".to_vec().into()], ..Launch::default() };
        send_message(left.as_fd(), &launch, &[0, 1], 0).expect("send");
        let mut buffer = vec![0; frame::PACKET_MAX];
        let mut fds = Vec::new();
        let packet = receive(right.as_fd(), &mut buffer, &mut fds, 0).expect("receive");
        assert_eq!(packet.credentials.expect("creds").pid, std::process::id() as i32);
        assert_eq!(fds.len(), 2);
        let bytes = packet.bytes.to_vec();
        assert_eq!(read_message::<Launch>(&bytes, &mut fds).expect("reads"), launch);
    }

    #[test]
    fn what_was_sent_before_the_end_is_read_though_the_peer_left_something_unread() {
        let (left, right) = socket::seqpacket_pair().expect("pair");
        send_message(right.as_fd(), &Launch::default(), &[], 0).expect("send");
        send_message(left.as_fd(), &Launch::default(), &[], 0).expect("send");
        drop(left);
        let mut buffer = vec![0; frame::PACKET_MAX];
        let packet = receive(right.as_fd(), &mut buffer, &mut Vec::new(), 0).expect("the last word");
        assert!(!packet.bytes.is_empty());
        let packet = receive(right.as_fd(), &mut buffer, &mut Vec::new(), 0).expect("the end");
        assert!(packet.bytes.is_empty());
    }

    #[test]
    fn large_message_is_spilled() {
        let (left, right) = socket::seqpacket_pair().expect("pair");
        let launch = Launch { args: vec![vec![b'x'; 120_000].into(); 40], ..Launch::default() };
        send_message(left.as_fd(), &launch, &[0], 0).expect("send");
        let mut buffer = vec![0; frame::PACKET_MAX];
        let mut fds = Vec::new();
        let bytes = receive(right.as_fd(), &mut buffer, &mut fds, 0).expect("receive").bytes.to_vec();
        assert_eq!(read_message::<Launch>(&bytes, &mut fds).expect("reads"), launch);
        assert_eq!(fds.len(), 1, "the memfd was taken off");
    }

    #[test]
    fn unsealed_or_missing_spill_is_refused() {
        let mut fds = vec![memfd::create(c"plain", false).expect("memfd")];
        assert!(matches!(read_message::<Launch>(&frame::spilled(4), &mut fds), Err(MessageError::Spill(_))));
        assert!(matches!(read_message::<Launch>(&frame::spilled(4), &mut fds), Err(MessageError::Spill(_))));
    }

    #[test]
    fn truncated_packet_closes_its_fds() {
        let (left, right) = socket::seqpacket_pair().expect("pair");
        let before = open_fds();
        send(left.as_fd(), &[&[0; 64]], &[0, 1, 2], 0).expect("send");
        let mut fds = Vec::new();
        let error = receive(right.as_fd(), &mut [0; 8], &mut fds, 0).expect_err("too large");
        assert_eq!(error, Errno::EMSGSIZE);
        assert!(fds.is_empty());
        assert_eq!(open_fds(), before);
    }
}
