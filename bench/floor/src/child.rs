//! The sandboxee's own part, between clone and exec: session, ids, user namespace, bounding set, Landlock, limits,
//! speculation, and the filter where it is not the template's.
//!
//! Runs on a stack of its own in the memory of its parent, which is suspended: it allocates nothing, and leaves what went
//! wrong where the parent finds it. The fork server's calls in the fork server's order
//! (`crates/forkserver/src/child.rs`).

use std::convert::Infallible;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::RawFd;

use nestbox_sys::process::{self, prctl};
use nestbox_sys::speculation::Feature;
use nestbox_sys::{Errno, landlock};

use crate::fault::{During, Fault};
use crate::launch::{NULL_FD, PROGRAM};
use crate::user::Ids;

/// What the child works on.
pub(crate) struct Child<'a> {
    pub(crate) ids: Ids,
    /// The decimal lines of its id maps.
    pub(crate) maps: [&'a [u8]; 2],
    /// What Landlock lets it do.
    pub(crate) ruleset: Option<RawFd>,
    pub(crate) rlimits: &'a [(u32, u64)],
    /// What is to be installed; empty: none, or the template has done it.
    pub(crate) filter: &'a [u8],
    pub(crate) proc: RawFd,
    /// The socket to wait at, once everything is done that is not the launch's own.
    pub(crate) park: Option<RawFd>,
    pub(crate) argv: *const *const c_char,
    pub(crate) envp: *const *const c_char,
    pub(crate) fault: Option<Fault>,
}

/// The function that the clone runs. `argument` is a `*mut Child`.
pub(crate) extern "C" fn run(argument: *mut c_void) -> c_int {
    // SAFETY: the parent passes a Child of its own and is suspended until we execute or exit.
    let child = unsafe { &mut *argument.cast::<Child<'_>>() };
    let Err(fault) = steps(child);
    child.fault = Some(fault);
    crate::launch::exit(127)
}

fn steps(child: &Child<'_>) -> Result<Infallible, Fault> {
    isolate(child)?;
    if let Some(socket) = child.park {
        install(child)?;
        wait_for_launch(socket)?;
    }
    carry_out(child)
}

fn install(child: &Child<'_>) -> Result<(), Fault> {
    if child.filter.is_empty() { Ok(()) } else { process::install_filter(child.filter).during("seccomp") }
}

fn isolate(child: &Child<'_>) -> Result<(), Fault> {
    // SAFETY: takes nothing.
    unsafe { nestbox_sys::syscall!(libc::SYS_setsid) }.during("setsid")?;
    if child.ids.privileged {
        let [uid, gid] = child.ids.outer;
        // SAFETY: numbers only.
        unsafe { nestbox_sys::syscall!(libc::SYS_setresgid, gid, gid, gid) }.during("setresgid")?;
        // SAFETY: numbers only.
        unsafe { nestbox_sys::syscall!(libc::SYS_setresuid, uid, uid, uid) }.during("setresuid")?;
    }
    // Its maps could not be written otherwise. The flag is of the memory that init has as well.
    prctl(libc::PR_SET_DUMPABLE, 1).during("prctl: PR_SET_DUMPABLE")?;
    process::unshare(libc::CLONE_NEWUSER).during("unshare: user namespace")?;
    let files: [(&CStr, &[u8]); 3] =
        [(c"self/setgroups", b"deny"), (c"self/uid_map", child.maps[0]), (c"self/gid_map", child.maps[1])];
    for (path, line) in files {
        process::write_file_at(child.proc, path, line).during("write: id maps")?;
    }
    prctl(libc::PR_SET_DUMPABLE, 0).during("prctl: PR_SET_DUMPABLE")?;
    drop_capabilities()?;
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).during("prctl: PR_SET_NO_NEW_PRIVS")?;
    // SAFETY: takes a number.
    unsafe { nestbox_sys::syscall!(libc::SYS_umask, 0o022) }.during("umask").map(drop)
}

fn drop_capabilities() -> Result<(), Fault> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(_) => {}
            // The kernel has no more.
            Err(Errno::EINVAL) if capability > 0 => break,
            Err(errno) => return Err(errno).during("prctl: PR_CAPBSET_DROP"),
        }
    }
    // struct __user_cap_header_struct: version 3, this process; two data structs of three words.
    let header = [0x2008_0522_u32, 0];
    let none = [0_u32; 6];
    // SAFETY: version 3 takes two data structs.
    unsafe { nestbox_sys::syscall!(libc::SYS_capset, header.as_ptr(), none.as_ptr()) }
        .during("capset")
        .map(drop)
}

/// Says that it is ready, and waits.
fn wait_for_launch(socket: RawFd) -> Result<(), Fault> {
    let mut byte = [0_u8];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    // SAFETY: everything in the message is ours.
    unsafe { nestbox_sys::syscall!(libc::SYS_sendmsg, socket, &raw const header, 0) }
        .during("sendmsg: parked")?;
    // SAFETY: as above.
    match unsafe { nestbox_sys::syscall!(libc::SYS_recvmsg, socket, &raw mut header, 0) }
        .during("recvmsg: launch")?
    {
        // The driver has gone.
        0 => crate::launch::exit(0),
        _ => Ok(()),
    }
}

fn carry_out(child: &Child<'_>) -> Result<Infallible, Fault> {
    if let Some(ruleset) = child.ruleset {
        landlock::restrict_self(ruleset).during("landlock_restrict_self")?;
    }
    // SAFETY: numbers only.
    unsafe { nestbox_sys::syscall!(libc::SYS_dup3, NULL_FD, 2, 0) }.during("dup3")?;
    process::close_range(3, u32::MAX, 0).during("close_range")?;
    for &(resource, value) in child.rlimits {
        let limit = libc::rlimit64 { rlim_cur: value, rlim_max: value };
        // SAFETY: a struct of ours.
        match unsafe { nestbox_sys::syscall!(libc::SYS_prlimit64, 0, resource, &raw const limit, 0) } {
            // This process's own limit is tighter.
            Ok(_) | Err(Errno::EPERM) => {}
            Err(errno) => return Err(errno).during("prlimit"),
        }
    }
    for path in [c"/", c"/tmp"] {
        // SAFETY: a C string.
        unsafe { nestbox_sys::syscall!(libc::SYS_chdir, path.as_ptr()) }.during("chdir")?;
    }
    for feature in Feature::ALL {
        // Where the processor has nothing to switch off, or the kernel does not let it be, it answers an error.
        let _ = feature.forbid();
    }
    if child.park.is_none() {
        install(child)?;
    }
    let path = PROGRAM.as_ptr();
    // SAFETY: the vectors are null-terminated and point to C strings.
    let answer = unsafe { nestbox_sys::syscall!(libc::SYS_execve, path, child.argv, child.envp) };
    Err(answer.err().unwrap_or(Errno::EIO)).during("execve")
}
