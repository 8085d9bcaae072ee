//! Sealed memory files: the fork server's image and messages too large for a packet.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::SealFlag;

use crate::packet::MessageError;
use crate::raw::write_all;

/// `MFD_EXEC` (Linux 6.3): says that the file is meant to be executed, for `vm.memfd_noexec=1`.
const MFD_EXEC: libc::c_uint = 0x10;

/// No writing, no resizing, and no change of these seals.
fn seals() -> SealFlag {
    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// A new, empty memory file that can be sealed. `exec`: it will be executed; older kernels, which have no such flag,
/// answer EINVAL and need none.
pub fn create(name: &CStr, exec: bool) -> Result<OwnedFd, Errno> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let attempt = |flags| {
        // SAFETY: name is a C string.
        unsafe { crate::syscall!(libc::SYS_memfd_create, name.as_ptr(), flags) }
    };
    let fd = match attempt(if exec { flags | MFD_EXEC } else { flags }) {
        Err(Errno::EINVAL) if exec => attempt(flags)?,
        other => other?,
    };
    // SAFETY: memfd_create returned a new fd.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A memory file with `content`, sealed against every change.
pub fn sealed(name: &CStr, content: &[u8], exec: bool) -> Result<OwnedFd, Errno> {
    let fd = create(name, exec)?;
    write_all(fd.as_fd(), content)?;
    // SAFETY: numbers only.
    unsafe { crate::syscall!(libc::SYS_fcntl, fd.as_raw_fd(), libc::F_ADD_SEALS, seals().bits()) }?;
    Ok(fd)
}

/// The first `length` bytes of a memory file that nobody can change any more; anything else is refused, so that what
/// was checked is what is used.
pub fn read_sealed(fd: &OwnedFd, length: u64) -> Result<Vec<u8>, MessageError> {
    // SAFETY: numbers only.
    let have = unsafe { crate::syscall!(libc::SYS_fcntl, fd.as_raw_fd(), libc::F_GET_SEALS) }
        .map_err(|_| MessageError::Spill("the fd is not a memfd"))? as i32;
    let want = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK;
    if !SealFlag::from_bits_truncate(have).contains(want) {
        return Err(MessageError::Spill("the memfd is not sealed"));
    }
    let mut body = vec![0; length as usize];
    let mut done = 0;
    while done < body.len() {
        let rest = &mut body[done..];
        // SAFETY: `rest` is ours and as long as said.
        let read = unsafe {
            crate::syscall!(libc::SYS_pread64, fd.as_raw_fd(), rest.as_mut_ptr(), rest.len(), done)
        };
        match read {
            Ok(0) => return Err(MessageError::Spill("the memfd is shorter than announced")),
            Ok(count) => done += count,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(MessageError::System { syscall: "pread", errno }),
        }
    }
    Ok(body)
}
