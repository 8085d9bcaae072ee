//! The messages between the host, the fork server, templates, inits, the mounter and the network keeper.
//!
//! The types are generated from `proto/` (the comments there are the reference); [`frame`] says how a message becomes
//! one packet of a `SOCK_SEQPACKET` socket. Pure data: nothing here does I/O. Used by every other crate.

pub mod crash;
pub mod frame;
mod step;

/// The generated message types. Documented in `proto/`.
#[allow(missing_docs, clippy::pedantic, clippy::large_enum_variant)]
mod messages {
    include!(concat!(env!("OUT_DIR"), "/nestbox.rs"));
}

pub use messages::*;
