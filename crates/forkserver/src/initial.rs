//! The initial namespaces: one user namespace (U0) and mount namespace, made once per fork server and pivoted once, so
//! that no launch ever has to. sandbox2: `CreateInitialNamespaces`, `forkedprocess.cc`.
//!
//! Promises: nothing is created on the host's file system (the new root is a tmpfs, mounted for a moment over an
//! existing directory in our own mount namespace); the host's tree is at [`REAL_ROOT`] and receives later host mounts
//! (slave propagation); the id map is the caller's id under an unprivileged host and the identity under root. The
//! process that makes them stays as the mounter, chrooted to the host's tree.

use std::convert::Infallible;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nestbox_protocol::{Initialized, Ready, Step, ready};
use nestbox_sys::mount::{mount, mount_flags, open_at};
use nestbox_sys::{Errno, packet, process};

use crate::boot;
use crate::fault::{At, Fault};
use crate::server::Server;
use crate::{mounter, privileged, quota};

/// Where the initial mount namespace has the host's tree.
pub(crate) const REAL_ROOT: &CStr = c"/realroot";

/// An empty directory in the initial root: templates mount their tree there before moving it to `/`.
pub(crate) const STAGING: &CStr = c"/staging";

/// Directories of the host that a tmpfs may cover for the moment until `pivot_root` uncovers them, the likeliest first.
/// Only inside our own mount namespace.
const SCRATCH: [&CStr; 5] = [c"/tmp", c"/proc", c"/dev", c"/usr", c"/etc"];

/// Makes the initial namespaces, answers with their fds and becomes the mounter.
pub(crate) fn create(server: Server, fds: Vec<OwnedFd>) -> Result<Infallible, Fault<'static>> {
    let [socket] = <[OwnedFd; 1]>::try_from(fds).map_err(|_| surplus_fds())?;
    let _ = process::prctl(libc::PR_SET_NAME, c"nestbox-mounter".as_ptr() as usize);
    quota::before_user_namespace();
    unshare_user_and_mount(server)?;
    quota::in_user_namespace();
    let user = open_namespace(c"/proc/self/ns/user")?;
    let mnt = open_namespace(c"/proc/self/ns/mnt")?;
    let host_proc = open_at(libc::AT_FDCWD, c"/proc", libc::O_PATH | libc::O_DIRECTORY, 0, 0).at(
        Step::CreateInitialNamespaces,
        "openat2",
        b"/proc",
    )?;
    pivot_to_own_root()?;
    enter(REAL_ROOT)?;
    drop(host_proc);
    let _ = process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1);
    boot::die_with_parent(server.pid).at(Step::CreateInitialNamespaces, "prctl", b"")?;
    answer_initialized(socket.as_fd(), &[user.as_raw_fd(), mnt.as_raw_fd()])?;
    drop((user, mnt));
    mounter::serve(server, &socket)
}

/// Answers a request for namespaces: they are ready.
pub(crate) fn answer_initialized(socket: BorrowedFd<'_>, fds: &[RawFd]) -> Result<(), Fault<'static>> {
    let ready = Ready { kind: Some(ready::Kind::Initialized(Initialized {})) };
    packet::send_message(socket, &ready, fds, 0)
        .map_err(|error| Fault::new(Step::CreateInitialNamespaces, error.errno(), "sendmsg", b""))
}

pub(crate) fn surplus_fds() -> Fault<'static> {
    Fault::new(Step::DecodeRequest, Errno::EBADMSG, "recvmsg", b"")
        .detail("the request came with the wrong number of fds")
}

/// New user and mount namespaces for this process, with the id maps that our own code wants in U0.
pub(crate) fn unshare_user_and_mount(server: Server) -> Result<(), Fault<'static>> {
    let step = Step::CreateInitialNamespaces;
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if !server.privileged && uid == 0 && is_initial_user_namespace() {
        return Err(Fault::new(step, Errno::EPERM, "setresuid", b"user and mount namespace").detail(
            "a root without CAP_SETUID has no id for sandboxees but its own, for which most limits are none",
        ));
    }
    // A non-dumpable process's id maps belong to root and can't be written by an unprivileged one (proc(5)).
    let _ = process::prctl(libc::PR_SET_DUMPABLE, 1);
    process::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS).at(
        step,
        "unshare",
        b"user and mount namespace",
    )?;
    let step = Step::WriteInitialIdMaps;
    if server.privileged {
        privileged::ask_identity_maps().at(step, "write", b"/proc/self/uid_map")?;
        drop_groups()?;
    } else {
        write_single_maps(
            libc::AT_FDCWD,
            c"/proc/self/setgroups",
            c"/proc/self/uid_map",
            c"/proc/self/gid_map",
            [0, 0],
            [uid, gid],
        )
        .map_err(|(errno, path)| Fault::new(step, errno, "write", path))?;
    }
    let _ = process::prctl(libc::PR_SET_DUMPABLE, 0);
    Ok(())
}

/// Whether uid 0 here is the machine's own root: the map of all ids onto themselves (user_namespaces(7)).
fn is_initial_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Writes one-line maps of this process's own user namespace: `inside` -> `outside`, uid first. setgroups(2) has to be
/// given up before an unprivileged process may write its gid map (user_namespaces(7)).
pub(crate) fn write_single_maps(
    proc: RawFd,
    setgroups: &'static CStr,
    uid_map: &'static CStr,
    gid_map: &'static CStr,
    inside: [u32; 2],
    outside: [u32; 2],
) -> Result<(), (Errno, &'static [u8])> {
    process::write_file_at(proc, setgroups, b"deny").map_err(|errno| (errno, setgroups.to_bytes()))?;
    for (path, inside, outside) in [(uid_map, inside[0], outside[0]), (gid_map, inside[1], outside[1])] {
        let mut line = Line::new();
        line.number(inside);
        line.text(b" ");
        line.number(outside);
        line.text(b" 1");
        process::write_file_at(proc, path, line.as_slice()).map_err(|errno| (errno, path.to_bytes()))?;
    }
    Ok(())
}

/// A short text made without allocating: this runs in the launch child too.
struct Line {
    bytes: [u8; 32],
    length: usize,
}

impl Line {
    const fn new() -> Self {
        Self { bytes: [0; 32], length: 0 }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn text(&mut self, text: &[u8]) {
        self.bytes[self.length..self.length + text.len()].copy_from_slice(text);
        self.length += text.len();
    }

    fn number(&mut self, mut number: u32) {
        let mut digits = [0; 10];
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.text(&digits[first..]);
    }
}

fn open_namespace(path: &'static CStr) -> Result<OwnedFd, Fault<'static>> {
    open_at(libc::AT_FDCWD, path, libc::O_RDONLY, 0, 0).at(
        Step::CreateInitialNamespaces,
        "openat2",
        path.to_bytes(),
    )
}

/// A tmpfs becomes the root, with the host's tree at [`REAL_ROOT`].
pub(crate) fn pivot_to_own_root() -> Result<(), Fault<'static>> {
    let step = Step::MountInitialRoot;
    let scratch = mount_scratch(step, c"mode=0755,size=64k,nr_inodes=8")?;
    let at = |name: &CStr| [scratch.to_bytes(), name.to_bytes(), b"\0"].concat();
    for name in [REAL_ROOT, STAGING] {
        let path = at(name);
        // SAFETY: the path ends in NUL.
        Errno::result(unsafe { libc::mkdir(path.as_ptr().cast(), 0o755) }).at(
            step,
            "mkdir",
            name.to_bytes(),
        )?;
    }
    let put_old = at(REAL_ROOT);
    // SAFETY: both paths end in NUL.
    unsafe { nestbox_sys::syscall!(libc::SYS_pivot_root, scratch.as_ptr(), put_old.as_ptr()) }.at(
        Step::PivotRoot,
        "pivot_root",
        scratch.to_bytes(),
    )?;
    // SAFETY: a C string.
    Errno::result(unsafe { libc::chdir(c"/".as_ptr()) }).at(step, "chdir", b"/")?;
    let read_only = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
    mount_flags(c"none", c"/", read_only).at(step, "mount", b"/")
}

/// Mounts a tmpfs over the first directory of [`SCRATCH`] that exists.
pub(crate) fn mount_scratch(step: Step, options: &CStr) -> Result<&'static CStr, Fault<'static>> {
    let mut last = Errno::ENOENT;
    for directory in SCRATCH {
        match mount(c"nestbox", directory, c"tmpfs", libc::MS_NOSUID | libc::MS_NODEV, options) {
            Ok(()) => return Ok(directory),
            Err(errno) => last = errno,
        }
    }
    Err(Fault::new(step, last, "mount", b"tmpfs")
        .detail("no directory of the host could be covered by a tmpfs"))
}

/// Makes `path` this process's root.
pub(crate) fn enter(path: &CStr) -> Result<(), Fault<'_>> {
    let step = Step::JoinInitialNamespaces;
    // SAFETY: a C string.
    Errno::result(unsafe { libc::chroot(path.as_ptr()) }).at(step, "chroot", path.to_bytes())?;
    // SAFETY: a C string.
    Errno::result(unsafe { libc::chdir(c"/".as_ptr()) }).at(step, "chdir", b"/").map(drop)
}

/// Drops the host's supplementary groups, which only a privileged process may; an unprivileged caller's stay with it,
/// inside too (user_namespaces(7)).
pub(crate) fn drop_groups() -> Result<(), Fault<'static>> {
    // SAFETY: an empty list.
    Errno::result(unsafe { libc::setgroups(0, std::ptr::null()) })
        .at(Step::JoinUserNamespace, "setgroups", b"")
        .map(drop)
}

/// Joins the initial namespaces by their fds. Afterwards this process is U0's root, at the initial root.
pub(crate) fn join(user: BorrowedFd<'_>, mnt: Option<BorrowedFd<'_>>) -> Result<(), Fault<'static>> {
    process::join_namespace(user.as_raw_fd(), libc::CLONE_NEWUSER).at(
        Step::JoinUserNamespace,
        "setns",
        b"user namespace",
    )?;
    if let Some(mnt) = mnt {
        process::join_namespace(mnt.as_raw_fd(), libc::CLONE_NEWNS).at(
            Step::JoinInitialNamespaces,
            "setns",
            b"mount namespace",
        )?;
    }
    Ok(())
}

/// An IPC namespace to share between launches; fds: [socket, user namespace, mount namespace].
pub(crate) fn create_ipc(fds: Vec<OwnedFd>) -> Result<Infallible, Fault<'static>> {
    let [socket, user, mnt] = <[OwnedFd; 3]>::try_from(fds).map_err(|_| surplus_fds())?;
    join(user.as_fd(), None)?;
    process::unshare(libc::CLONE_NEWIPC).at(Step::CreateInitialNamespaces, "unshare", b"ipc namespace")?;
    let ipc = open_namespace(c"/proc/self/ns/ipc")?;
    drop(mnt);
    answer_initialized(socket.as_fd(), &[ipc.as_raw_fd()])?;
    crate::exit(0)
}
