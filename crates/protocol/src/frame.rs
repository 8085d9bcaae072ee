//! How a message becomes a packet.
//!
//! A packet is a four-byte header, then either the encoded message ([`Kind::Inline`]) or, where that would be more than
//! a socket buffer holds at its default size, the message's length as eight little-endian bytes ([`Kind::Spilled`]); a
//! spilled message is in a memfd, the last fd of the packet. The header's version makes a fork server of another
//! release refuse rather than misread.

use prost::Message;

/// First two bytes of each packet.
pub const MAGIC: [u8; 2] = *b"NB";

/// Version of the messages. A fork server and a host of different versions do not talk.
pub const VERSION: u8 = 1;

/// Length of the header.
pub const HEADER: usize = 4;

/// The largest encoded message that is sent inline. The default send buffer is 208 KiB (`net.core.wmem_default`), which
/// also has to hold the kernel's bookkeeping.
pub const INLINE_MAX: usize = 96 * 1024;

/// The largest packet: what a receiver's buffer must hold.
pub const PACKET_MAX: usize = HEADER + INLINE_MAX;

/// The largest message at all. argv and environment end at 6 MiB (`_STK_LIM / 4 * 3`); the rest is `files`.
pub const MESSAGE_MAX: u64 = 256 * 1024 * 1024;

/// The most fds one packet carries (`SCM_MAX_FD`).
pub const FDS_MAX: usize = 253;

/// Where the message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// In the packet.
    Inline(&'a [u8]),
    /// In the memfd that is the packet's last fd; this many bytes.
    Spilled(u64),
}

/// A packet that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Shorter than its header, or without our magic.
    #[error("not a nestbox packet ({length} bytes)")]
    NotAPacket {
        /// Its length.
        length: usize,
    },
    /// From another release.
    #[error("the packet has protocol version {version}; this is version {VERSION}")]
    Version {
        /// The version it has.
        version: u8,
    },
    /// A kind that does not exist, or a spilled packet of the wrong length.
    #[error("malformed packet header")]
    Malformed,
    /// Announces more than [`MESSAGE_MAX`].
    #[error("the packet announces a message of {length} bytes; at most {MESSAGE_MAX} are taken")]
    TooLarge {
        /// The announced length.
        length: u64,
    },
    /// The message itself does not decode.
    #[error("the message does not decode: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// Header of an inline packet.
pub const INLINE_HEADER: [u8; HEADER] = [MAGIC[0], MAGIC[1], VERSION, 0];

/// Header of a spilled packet.
pub const SPILLED_HEADER: [u8; HEADER] = [MAGIC[0], MAGIC[1], VERSION, 1];

/// The packet that announces a spilled message of `length` bytes.
#[must_use]
pub fn spilled(length: u64) -> [u8; HEADER + 8] {
    let mut packet = [0; HEADER + 8];
    packet[..HEADER].copy_from_slice(&SPILLED_HEADER);
    packet[HEADER..].copy_from_slice(&length.to_le_bytes());
    packet
}

/// The largest packet that the parked process of a warm nest takes: what is larger is init's to receive.
pub const PARKED_MAX: usize = 16 * 1024;

/// The message as one inline packet. The caller has checked that it is at most [`INLINE_MAX`] bytes.
#[must_use]
pub fn inline(message: &impl Message) -> Vec<u8> {
    let mut packet = Vec::with_capacity(HEADER + message.encoded_len());
    packet.extend_from_slice(&INLINE_HEADER);
    message.encode_raw(&mut packet);
    packet
}

/// Reads a packet's header.
pub fn parse(packet: &[u8]) -> Result<Kind<'_>, FrameError> {
    let Some((header, body)) = packet.split_at_checked(HEADER) else {
        return Err(FrameError::NotAPacket { length: packet.len() });
    };
    if header[..2] != MAGIC {
        return Err(FrameError::NotAPacket { length: packet.len() });
    }
    if header[2] != VERSION {
        return Err(FrameError::Version { version: header[2] });
    }
    match header[3] {
        0 => Ok(Kind::Inline(body)),
        1 => {
            let length = u64::from_le_bytes(body.try_into().map_err(|_| FrameError::Malformed)?);
            if length > MESSAGE_MAX {
                return Err(FrameError::TooLarge { length });
            }
            Ok(Kind::Spilled(length))
        }
        _ => Err(FrameError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Launch, LaunchEvent};
    use proptest::prelude::*;

    #[test]
    fn inline_round_trip() {
        let launch =
            Launch { args: vec![b"a".to_vec().into(), vec![0xff, 0xfe].into()], ..Launch::default() };
        let packet = inline(&launch);
        let Kind::Inline(body) = parse(&packet).expect("parses") else { panic!("inline") };
        assert_eq!(Launch::decode(body).expect("decodes"), launch);
    }

    #[test]
    fn spilled_round_trip() {
        assert_eq!(parse(&spilled(12)), Ok(Kind::Spilled(12)));
        assert_eq!(parse(&spilled(u64::MAX)), Err(FrameError::TooLarge { length: u64::MAX }));
    }

    #[test]
    fn refuses_other_versions_and_kinds() {
        assert_eq!(parse(b"NB\x02\x00"), Err(FrameError::Version { version: 2 }));
        assert_eq!(parse(b"NB\x01\x07"), Err(FrameError::Malformed));
        assert_eq!(parse(b"NB\x01\x01short"), Err(FrameError::Malformed));
        assert_eq!(parse(b"NB"), Err(FrameError::NotAPacket { length: 2 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(Kind::Inline(body)) = parse(&bytes) {
                let _ = LaunchEvent::decode(body);
            }
        }

        #[test]
        fn any_body_decodes_or_is_refused(body in proptest::collection::vec(any::<u8>(), 0..512)) {
            let packet = [&INLINE_HEADER[..], &body].concat();
            let Ok(Kind::Inline(read)) = parse(&packet) else { panic!("a good header") };
            prop_assert_eq!(read, &body[..]);
            let _ = Launch::decode(read);
            let _ = crate::ServerRequest::decode(read);
        }
    }
}
