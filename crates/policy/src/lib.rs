//! A policy made concrete: what a sandboxee may see and do, as a [`nestbox_protocol::Plan`].
//!
//! A policy is data ([`Policy`], the published JSON form). [`check()`] says what is wrong with it without looking at the
//! host; [`Policy::resolve`] looks at the host (which sources exist, what a binary links against, which parts of the
//! base are there) and gives a [`Resolved`]: the plan that templates are built from, its hash, and what was seen, so
//! that the next launch can tell with a few stat(2) calls whether all of that still holds.
//!
//! Promises: nothing here creates, writes or runs anything; the same policy on the same host gives the same plan, byte
//! for byte; nothing that `check` refuses is ever planned. Called by `crates/client`. The fork server uses only
//! [`tree`] and [`bpf`], without default features.

pub mod bpf;
pub mod path;
pub mod tree;

mod issue;
mod step;
pub use issue::Issue;

#[cfg(feature = "resolve")]
mod check;
#[cfg(feature = "resolve")]
mod document;
#[cfg(feature = "resolve")]
mod error;
#[cfg(feature = "resolve")]
pub mod filter;
#[cfg(feature = "resolve")]
mod hash;
#[cfg(feature = "resolve")]
mod layout;
#[cfg(feature = "resolve")]
pub mod libraries;
#[cfg(feature = "resolve")]
mod plan;
#[cfg(feature = "resolve")]
mod resolve;
#[cfg(feature = "resolve")]
mod source;
#[cfg(feature = "resolve")]
pub mod syscalls;

#[cfg(feature = "resolve")]
pub use check::check;
#[cfg(feature = "resolve")]
pub use document::{
    Base, Dev, Encoding, Limits, MountEntry, Network, Policy, PolicyError, Proc, Requirement, UnixSockets,
    User,
};
#[cfg(feature = "resolve")]
pub use error::ResolveError;
#[cfg(feature = "resolve")]
pub use filter::Syscalls;
#[cfg(feature = "resolve")]
pub use hash::Hash;
#[cfg(feature = "resolve")]
pub use plan::{MountPoint, Stage};
#[cfg(feature = "resolve")]
pub use resolve::{MountPointKinds, Resolved};
#[cfg(feature = "resolve")]
pub use source::Source;
