//! The system calls that nestbox needs and nix lacks, and packets with fds.
//!
//! Promises: every fallible function returns the errno of the call it names; nothing here allocates but where a
//! signature shows it (`Vec`, `OwnedFd` lists), so the launch path of the fork server may call it between clone and
//! exec; fds are always close-on-exec. Used by the client (host side) and the fork server.

pub mod landlock;
pub mod memfd;
pub mod mount;
pub mod packet;
pub mod process;
pub mod raw;
pub mod rseq;
pub mod socket;
pub mod speculation;

pub use nix::errno::Errno;
