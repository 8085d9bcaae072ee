//! The user namespace that owns the nests, as the fork server makes it: the identity map under root, the caller's one id
//! otherwise.

use std::fs;
use std::io::{Read, Write};

use nestbox_protocol::Plan;
use nestbox_sys::process;

use crate::fault::{During, Fault, errno_of};

/// Who sandboxees are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ids {
    pub(crate) inside: [u32; 2],
    /// As the owning namespace calls them.
    pub(crate) outer: [u32; 2],
    /// There is more than one id: the sandboxee leaves that of its host.
    pub(crate) privileged: bool,
}

/// The unprivileged ids of a root host's sandboxees: the fork server's default.
const OUTER: u32 = 65_533;

/// Moves this process into a new user namespace, with a mount namespace of its own.
pub(crate) fn enter_user_namespace(plan: &Plan) -> Result<Ids, Fault> {
    // SAFETY: takes nothing.
    let root = unsafe { libc::geteuid() } == 0;
    let privileged = root && process::has_ids_to_give().during("read")?;
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS;
    if privileged {
        map_from_outside(flags)?;
        // SAFETY: an empty list.
        let dropped = unsafe { nestbox_sys::syscall!(libc::SYS_setgroups, 0, 0) };
        dropped.during("setgroups")?;
    } else {
        // SAFETY: takes nothing.
        let (uid, gid) = (unsafe { libc::geteuid() }, effective_gid());
        process::unshare(flags).during("unshare: user and mount namespace")?;
        write("/proc/self/setgroups", "deny")?;
        write("/proc/self/uid_map", &format!("0 {uid} 1"))?;
        write("/proc/self/gid_map", &format!("0 {gid} 1"))?;
    }
    let outer = if privileged { OUTER } else { 0 };
    Ok(Ids { inside: [plan.uid, plan.gid], outer: [outer, outer], privileged })
}

fn effective_gid() -> u32 {
    // SAFETY: takes nothing.
    unsafe { libc::getegid() }
}

/// A map of more than one's own id is written from the namespace above: by a child that stays there.
fn map_from_outside(flags: i32) -> Result<(), Fault> {
    const IDENTITY: &str = "0 0 4294967295";
    let (mut told, mut tell) = std::io::pipe().map_err(|error| errno_of(&error)).during("pipe")?;
    let parent = std::process::id();
    // SAFETY: single-threaded; no CLONE_VM.
    let writer = unsafe { process::fork_with(0) }.during("clone3: map writer")?;
    let Some(writer) = writer else {
        drop(tell);
        let mapped = told
            .read_exact(&mut [0])
            .map_err(|error| errno_of(&error))
            .during("read: namespace is there")
            .and_then(|()| write(&format!("/proc/{parent}/uid_map"), IDENTITY))
            .and_then(|()| write(&format!("/proc/{parent}/gid_map"), IDENTITY));
        if let Err(fault) = &mapped {
            eprintln!("nestbox-floor: {fault}");
        }
        std::process::exit(i32::from(mapped.is_err()));
    };
    process::unshare(flags).during("unshare: user and mount namespace")?;
    tell.write_all(&[1]).map_err(|error| errno_of(&error)).during("write: namespace is there")?;
    match crate::launch::wait_for(writer)? {
        0 => Ok(()),
        _ => Err(Fault::text("the id maps could not be written")),
    }
}

fn write(path: &str, text: &str) -> Result<(), Fault> {
    fs::write(path, text).map_err(|error| errno_of(&error)).on("write", path.as_bytes())
}
