//! Landlock's three calls and the rights that its rules are about: landlock(7), `linux/landlock.h`.
//!
//! Promises: system calls only. Called by the fork server, which knows what may be done where, and by the benchmark's floor.

use std::os::fd::RawFd;

use nix::errno::Errno;

/// Execute a file.
pub const EXECUTE: u64 = 1 << 0;
/// Open a file for writing.
pub const WRITE_FILE: u64 = 1 << 1;
/// Open a file for reading.
pub const READ_FILE: u64 = 1 << 2;
/// List a directory.
pub const READ_DIR: u64 = 1 << 3;
/// Removing and making by kind, since the first ABI.
pub const MAKE: u64 = 0x1ff0;
/// Move or link a file to another directory; since the second ABI.
pub const REFER: u64 = 1 << 13;
/// Truncate a file; since the third ABI.
pub const TRUNCATE: u64 = 1 << 14;
/// ioctl(2) of a device; since the fifth ABI.
pub const IOCTL_DEV: u64 = 1 << 15;

/// What can be done with whatever is only shown.
pub const READ: u64 = EXECUTE | READ_FILE | READ_DIR;
/// What can be done with a file that is open.
pub const FILE: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
/// What can be done with a device.
pub const DEVICE: u64 = READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV;
/// All of it.
pub const ALL: u64 = READ | WRITE_FILE | MAKE | REFER | TRUNCATE | IOCTL_DEV;

/// No connection to an abstract unix socket of others; since the sixth ABI.
pub const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1 << 0;
/// No signal to others; since the sixth ABI.
pub const SCOPE_SIGNAL: u64 = 1 << 1;

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: usize = 1;
/// `LANDLOCK_RULE_PATH_BENEATH`.
const RULE_PATH_BENEATH: usize = 1;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Attributes {
    access_fs: u64,
    access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    access: u64,
    parent: RawFd,
}

/// The kernel's ABI version.
pub fn abi() -> Result<u32, Errno> {
    // SAFETY: with this flag the pointer is null and the size 0.
    let abi = unsafe { crate::syscall!(libc::SYS_landlock_create_ruleset, 0, 0, VERSION) }?;
    Ok(abi as u32)
}

/// A new ruleset, as a number that is the caller's to close: what it says nothing of is refused, of these rights.
pub fn create_ruleset(access_fs: u64, scoped: u64) -> Result<RawFd, Errno> {
    let attributes = Attributes { access_fs, access_net: 0, scoped };
    // Older kernels know fewer of the fields; those that are left out are 0.
    let known = if scoped == 0 { size_of::<u64>() } else { size_of::<Attributes>() };
    // SAFETY: a struct of ours, as long as said.
    let fd = unsafe { crate::syscall!(libc::SYS_landlock_create_ruleset, &raw const attributes, known, 0) }?;
    Ok(fd as RawFd)
}

/// Adds a rule: what may be done below `parent`.
pub fn add_rule(ruleset: RawFd, parent: RawFd, access: u64) -> Result<(), Errno> {
    let rule = PathBeneath { access, parent };
    // SAFETY: a struct of ours.
    unsafe { crate::syscall!(libc::SYS_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &raw const rule, 0) }
        .map(drop)
}

/// Restricts this thread, and all that is cloned from it.
pub fn restrict_self(ruleset: RawFd) -> Result<(), Errno> {
    // SAFETY: numbers only.
    unsafe { crate::syscall!(libc::SYS_landlock_restrict_self, ruleset, 0) }.map(drop)
}
