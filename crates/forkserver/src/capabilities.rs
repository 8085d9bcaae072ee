//! Capability sets of this process, as plain bit masks: capset(2), capabilities(7).

use nestbox_sys::Errno;

pub(crate) const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
pub(crate) const CAP_KILL: u64 = 1 << 5;
pub(crate) const CAP_SETGID: u64 = 1 << 6;
pub(crate) const CAP_SETUID: u64 = 1 << 7;
pub(crate) const CAP_SYS_PTRACE: u64 = 1 << 19;
pub(crate) const CAP_SYS_ADMIN: u64 = 1 << 21;
pub(crate) const CAP_SYS_RESOURCE: u64 = 1 << 24;
pub(crate) const CAP_SETFCAP: u64 = 1 << 31;

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The permitted set.
pub(crate) fn permitted() -> Result<u64, Errno> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 takes two data structs.
    unsafe { nestbox_sys::syscall!(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) }?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

/// Keeps `keep` in the effective and permitted sets and nothing in the inheritable one (which empties the ambient set).
pub(crate) fn keep_only(keep: u64) -> Result<(), Errno> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let word = |bits: u64| Data { effective: bits as u32, permitted: bits as u32, inheritable: 0 };
    let data = [word(keep), word(keep >> 32)];
    // SAFETY: version 3 takes two data structs.
    unsafe { nestbox_sys::syscall!(libc::SYS_capset, &raw mut header, data.as_ptr()) }.map(drop)
}

/// Empties the bounding set. `PR_CAPBSET_DROP` of a capability that this kernel lacks answers EINVAL: the end.
pub(crate) fn drop_bounding_set() -> Result<(), Errno> {
    for capability in 0..64 {
        match nestbox_sys::process::prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(_) => {}
            Err(Errno::EINVAL) if capability > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
