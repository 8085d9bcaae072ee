//! The probes of namespaces, mounts and filters. Each runs in a process of its own, which ends with it, so nothing is
//! undone here. Each starts from what the fork server does first ([`initial::unshare_user_and_mount`]) and goes one step
//! further, by the launch path's own function where there is one.

use std::os::fd::{AsFd, AsRawFd};

use nestbox_protocol::Step;
use nestbox_sys::mount::{
    ATTR_NOSUID, ATTR_RDONLY, MountAttr, attach, mount, open_at, open_tree, set_attributes,
};
use nestbox_sys::{Errno, process};
use nix::sys::wait::WaitStatus;

use super::{Found, fault};
use crate::fault::{At, Fault};
use crate::nest::DEVPTS;
use crate::server::Server;
use crate::{initial, network};

/// What a probe without more to say returns.
const WORKS: Found = Ok(String::new());

fn unshare(step: Step, flags: i32, name: &'static [u8]) -> Found {
    process::unshare(flags).at(step, "unshare", name).and(WORKS)
}

pub(super) fn user_namespace(_: Server) -> Found {
    unshare(Step::CreateInitialNamespaces, libc::CLONE_NEWUSER, b"user namespace")
}

pub(super) fn mount_namespace(_: Server) -> Found {
    unshare(
        Step::CreateInitialNamespaces,
        libc::CLONE_NEWUSER | libc::CLONE_NEWNS,
        b"user and mount namespace",
    )
}

pub(super) fn id_maps(server: Server) -> Found {
    initial::unshare_user_and_mount(server)?;
    Ok(if server.privileged { "every id" } else { "one id" }.into())
}

/// Another namespace on top of the first two.
fn further(server: Server, step: Step, flags: i32, name: &'static [u8]) -> Found {
    initial::unshare_user_and_mount(server)?;
    unshare(step, flags, name)
}

pub(super) fn pid_namespace(server: Server) -> Found {
    further(server, Step::CloneInit, libc::CLONE_NEWPID, b"pid namespace")?;
    in_child(|| WORKS)
}

pub(super) fn ipc_namespace(server: Server) -> Found {
    further(server, Step::CloneInit, libc::CLONE_NEWIPC, b"ipc namespace")
}

pub(super) fn uts_namespace(server: Server) -> Found {
    further(server, Step::CloneInit, libc::CLONE_NEWUTS, b"uts namespace")?;
    let name = b"nestbox";
    // SAFETY: the name is as long as said.
    Errno::result(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })
        .at(Step::SetHostname, "sethostname", b"")
        .and(WORKS)
}

pub(super) fn cgroup_namespace(server: Server) -> Found {
    further(server, Step::CloneInit, libc::CLONE_NEWCGROUP, b"cgroup namespace")
}

pub(super) fn network_namespace(server: Server) -> Found {
    further(server, Step::CreateNetworkNamespace, libc::CLONE_NEWNET, b"network namespace")?;
    network::bring_loopback_up()?;
    WORKS
}

/// U1 in U0: what every sandboxee is put into.
pub(super) fn nested_user_namespace(server: Server) -> Found {
    further(server, Step::CreateUserNamespace, libc::CLONE_NEWUSER, b"user namespace")?;
    let _ = process::prctl(libc::PR_SET_DUMPABLE, 1);
    initial::write_single_maps(
        libc::AT_FDCWD,
        c"/proc/self/setgroups",
        c"/proc/self/uid_map",
        c"/proc/self/gid_map",
        [1000, 1000],
        [0, 0],
    )
    .map_err(|(errno, path)| Fault::new(Step::WriteIdMaps, errno, "write", path))?;
    WORKS
}

pub(super) fn tmpfs(server: Server) -> Found {
    initial::unshare_user_and_mount(server)?;
    initial::mount_scratch(Step::MountInitialRoot, c"mode=0755,size=64k")?;
    WORKS
}

pub(super) fn pivot_root(server: Server) -> Found {
    initial::unshare_user_and_mount(server)?;
    initial::pivot_to_own_root()?;
    WORKS
}

/// A clone of a mount, made read-only while nobody sees it, then attached: the calls of Linux 5.12.
pub(super) fn bind_mounts(server: Server) -> Found {
    initial::unshare_user_and_mount(server)?;
    // With what is mounted below: the kernel lets a less privileged mount namespace take no tree apart.
    let tree = open_tree(libc::AT_FDCWD, c"/", true).at(Step::OpenBindSource, "open_tree", b"/")?;
    let attributes = MountAttr { set: ATTR_RDONLY | ATTR_NOSUID, ..MountAttr::default() };
    set_attributes(tree.as_fd(), &attributes, true).at(Step::SetBindAttributes, "mount_setattr", b"/")?;
    let target = open_at(libc::AT_FDCWD, c"/", libc::O_PATH | libc::O_DIRECTORY, 0, 0).at(
        Step::AttachBind,
        "openat2",
        b"/",
    )?;
    attach(tree.as_raw_fd(), target.as_fd()).at(Step::AttachBind, "move_mount", b"/")?;
    WORKS
}

/// The kernel gives a fresh proc only to who sees one that is complete ("mount too revealing").
pub(super) fn proc(server: Server) -> Found {
    further(server, Step::CloneInit, libc::CLONE_NEWPID, b"pid namespace")?;
    let scratch = initial::mount_scratch(Step::MountInitialRoot, c"mode=0755,size=64k")?;
    in_child(|| {
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        mount(c"proc", scratch, c"proc", flags, c"").at(Step::MountTemplateProc, "mount", b"proc")?;
        WORKS
    })
}

pub(super) fn devpts(server: Server) -> Found {
    initial::unshare_user_and_mount(server)?;
    let scratch = initial::mount_scratch(Step::MountInitialRoot, c"mode=0755,size=64k")?;
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    mount(c"devpts", scratch, c"devpts", flags, DEVPTS).at(Step::MountDevpts, "mount", b"devpts")?;
    WORKS
}

/// Goes on in a child, the first process of a new pid namespace, and returns what it found. Its value is not brought back:
/// none has one.
fn in_child(body: impl FnOnce() -> Found) -> Found {
    let (ours, theirs) =
        nestbox_sys::socket::stream_pair().map_err(|errno| fault(errno, "socketpair", b""))?;
    let Some(child) = super::fork().at(Step::CloneInit, "fork", b"pid namespace")? else {
        let failed = body().err();
        let words = failed.map_or([0; 2], |fault| [fault.step as i32, fault.errno as i32]);
        let _ = nix::unistd::write(&theirs, words.map(i32::to_ne_bytes).as_flattened());
        crate::exit(0)
    };
    drop(theirs);
    let mut words = [0; 8];
    let read = nix::unistd::read(&ours, &mut words);
    match (read, nix::sys::wait::waitpid(child, None)) {
        (Ok(8), Ok(WaitStatus::Exited(..))) => {}
        _ => return Err(fault(Errno::EPERM, "", b"").detail("its process was killed")),
    }
    let [step, errno] =
        [0, 4].map(|at| i32::from_ne_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]));
    if errno == 0 {
        return WORKS;
    }
    let step = Step::try_from(step).unwrap_or(Step::Unspecified);
    Err(Fault::new(step, Errno::from_raw(errno), "mount", b"proc"))
}

// ---- filters ---------------------------------------------------------------------------------------------------------

const LOAD_NUMBER: libc::sock_filter = libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };

const fn answer(k: u32) -> libc::sock_filter {
    libc::sock_filter { code: 0x06, jt: 0, jf: 0, k }
}

const ALLOW: libc::sock_filter = answer(libc::SECCOMP_RET_ALLOW);

/// Installs a filter, and returns what seccomp(2) does: 0, or the listener's fd.
fn install(filter: &[libc::sock_filter], flags: libc::c_ulong) -> Result<usize, Fault<'static>> {
    process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).at(Step::SetNoNewPrivs, "prctl", b"")?;
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program is as long as said; the kernel copies and verifies it.
    unsafe {
        nestbox_sys::syscall!(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    }
    .at(Step::InstallFilter, "seccomp", b"")
}

pub(super) fn seccomp_filter(_: Server) -> Found {
    install(&[LOAD_NUMBER, ALLOW], 0)?;
    WORKS
}

/// `_IOWR('!', 0, struct seccomp_notif)` and `_IOWR('!', 1, struct seccomp_notif_resp)`: the same on both architectures.
const NOTIFICATION_RECEIVE: usize = 0xc050_2100;
const NOTIFICATION_SEND: usize = 0xc018_2101;

/// What the asked-for call is made to return.
const SECRET: usize = 4242;

/// A whole round: a call is held, told of, and answered with a value of ours.
pub(super) fn seccomp_notifications(_: Server) -> Found {
    let is_getppid = libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: libc::SYS_getppid as u32 };
    let ask = answer(libc::SECCOMP_RET_USER_NOTIF);
    let listener = install(&[LOAD_NUMBER, is_getppid, ask, ALLOW], libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    let Some(child) = super::fork().map_err(|errno| fault(errno, "fork", b"a probe's process"))? else {
        // SAFETY: getppid takes nothing.
        let answered = unsafe { nestbox_sys::syscall!(libc::SYS_getppid) };
        crate::exit(i32::from(answered != Ok(SECRET)))
    };
    // struct seccomp_notif: it must come zeroed; its first word is the id.
    let mut held = [0_u64; 10];
    // SAFETY: as long as the request says.
    unsafe { nestbox_sys::syscall!(libc::SYS_ioctl, listener, NOTIFICATION_RECEIVE, held.as_mut_ptr()) }.at(
        Step::InstallFilter,
        "ioctl",
        b"SECCOMP_IOCTL_NOTIF_RECV",
    )?;
    // struct seccomp_notif_resp: id, value, error and flags.
    let response = [held[0], SECRET as u64, 0];
    // SAFETY: as long as the request says.
    unsafe { nestbox_sys::syscall!(libc::SYS_ioctl, listener, NOTIFICATION_SEND, response.as_ptr()) }.at(
        Step::InstallFilter,
        "ioctl",
        b"SECCOMP_IOCTL_NOTIF_SEND",
    )?;
    match nix::sys::wait::waitpid(child, None) {
        Ok(WaitStatus::Exited(_, 0)) => WORKS,
        _ => {
            Err(fault(Errno::EPROTO, "ioctl", b"SECCOMP_IOCTL_NOTIF_SEND")
                .detail("the answer did not arrive"))
        }
    }
}

pub(super) fn landlock(_: Server) -> Found {
    process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).at(Step::SetNoNewPrivs, "prctl", b"")?;
    let support = crate::landlock::probe()?.told();
    let scopes = [(support.abstract_unix_sockets, ", abstract unix sockets"), (support.signals, ", signals")];
    let scopes = scopes.map(|(there, name)| if there { name } else { "" }).concat();
    Ok(format!("ABI {}: files{scopes}", support.abi))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_brings_its_failure_back() {
        assert!(in_child(|| WORKS).is_ok());
        let failed = in_child(|| Err(Fault::new(Step::MountTemplateProc, Errno::EPERM, "mount", b"proc")));
        let fault = failed.expect_err("as said");
        assert_eq!((fault.step, fault.errno), (Step::MountTemplateProc, Errno::EPERM));
    }
}
