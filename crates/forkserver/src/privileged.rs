//! The privileged helper, and how the others ask it.
//!
//! Only a host that is root has one. It keeps the four capabilities that two jobs need and does just these: writing id
//! maps with more than one line (user_namespaces(7): `CAP_SETUID`, `CAP_SETGID` and for id 0 `CAP_SETFCAP` in the parent
//! namespace, from outside the new one), and id-mapping a detached mount (mount_setattr(2): `CAP_SYS_ADMIN` where the
//! file system is owned). It listens on a socket that only the fork server, the makers of initial namespaces and
//! templates, and the mounter hold; no sandboxee ever does. Who asks is told by the kernel, not by the request.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nestbox_protocol::Step;
use nestbox_sys::mount::{ATTR_IDMAP, MountAttr, set_attributes};
use nestbox_sys::packet::{self, Credentials};
use nestbox_sys::{Errno, process, socket};

use crate::boot;
use crate::capabilities::{self, CAP_SETFCAP, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN};
use crate::fault::{At, Fault};

/// The asking end, in processes that may ask.
pub(crate) const HELPER_FD: RawFd = 4;

const WRITE_ID_MAPS: u8 = 1;
const ID_MAP_MOUNT: u8 = 2;

/// Forks the helper and leaves its asking end at [`HELPER_FD`]. Called while the fork server still has its privileges.
pub(crate) fn start() -> Result<(), Fault<'static>> {
    let step = Step::StartForkserver;
    let (asking, serving) = socket::seqpacket_pair().at(step, "socketpair", b"")?;
    // Before anyone can ask: a packet sent earlier would come without its sender's credentials.
    socket::pass_credentials(serving.as_fd()).at(step, "setsockopt", b"SO_PASSCRED")?;
    let parent = nix::unistd::getpid().as_raw();
    // SAFETY: single-threaded; no CLONE_VM.
    if unsafe { process::fork_with(0) }.at(step, "clone3", b"privileged helper")?.is_none() {
        drop(asking);
        // SAFETY: numbers only; the serving end takes the control socket's place, which the helper must not hold.
        if unsafe { libc::dup3(serving.into_raw_fd(), boot::CONTROL_FD, libc::O_CLOEXEC) } < 0 {
            crate::exit(1);
        }
        let _ = process::close_range(boot::CONTROL_FD as u32 + 1, u32::MAX, 0);
        // SAFETY: the fd was just put there.
        serve(&unsafe { OwnedFd::from_raw_fd(boot::CONTROL_FD) }, parent)
    }
    let asking = asking.into_raw_fd();
    if asking != HELPER_FD {
        // SAFETY: numbers only.
        Errno::result(unsafe { libc::dup3(asking, HELPER_FD, libc::O_CLOEXEC) }).at(step, "dup3", b"")?;
        // SAFETY: ours since into_raw_fd.
        unsafe { libc::close(asking) };
    }
    Ok(())
}

/// The helper: serves until every asking end is closed.
fn serve(requests: &OwnedFd, parent: i32) -> ! {
    let _ = process::prctl(libc::PR_SET_NAME, c"nestbox-privil".as_ptr() as usize);
    let keep = CAP_SETUID | CAP_SETGID | CAP_SETFCAP | CAP_SYS_ADMIN;
    let held = capabilities::permitted().unwrap_or(0);
    let ready = capabilities::drop_bounding_set()
        .and_then(|()| capabilities::keep_only(keep & held))
        .and_then(|()| process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map(drop))
        .and_then(|()| boot::die_with_parent(parent));
    let mut namespaces = BTreeMap::new();
    let mut buffer = [0; 64];
    loop {
        let mut fds = Vec::new();
        let (request, asker) = match packet::receive(requests.as_fd(), &mut buffer, &mut fds, 0) {
            Ok(packet) if packet.bytes.is_empty() => crate::exit(0),
            Ok(packet) => (packet.bytes, packet.credentials),
            Err(_) => continue,
        };
        let mut fds = fds.into_iter();
        let (Some(reply), Some(asker)) = (fds.next(), asker) else { continue };
        let done = match *request {
            // One that has more power than it should does nothing with it but say why.
            _ if let Err(errno) = ready => Err(errno),
            [WRITE_ID_MAPS] => write_identity_maps(asker),
            [ID_MAP_MOUNT, ref ids @ ..] if let Ok(ids) = <[u8; 8]>::try_from(ids) => {
                let both = u64::from_ne_bytes(ids);
                let (uid, gid) = (both as u32, (both >> 32) as u32);
                fds.next()
                    .ok_or(Errno::EBADF)
                    .and_then(|mount| id_map_mount(&mut namespaces, &mount, uid, gid))
            }
            _ => Err(Errno::EBADMSG),
        };
        let errno = done.err().map_or(0, |errno| errno as i32);
        let _ = packet::send(reply.as_fd(), &[&errno.to_ne_bytes()], &[], libc::MSG_DONTWAIT);
    }
}

/// Maps every id that this namespace knows to itself, in the asker's new user namespace.
fn write_identity_maps(asker: Credentials) -> Result<(), Errno> {
    for name in ["uid_map", "gid_map"] {
        let own = std::fs::read_to_string(format!("/proc/self/{name}"))
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        let mut identity = String::new();
        for line in own.lines() {
            let mut numbers = line.split_ascii_whitespace();
            if let (Some(inside), Some(_), Some(count)) = (numbers.next(), numbers.next(), numbers.next()) {
                let _ = writeln!(identity, "{inside} {inside} {count}");
            }
        }
        write_map(asker.pid, name, &identity)?;
    }
    Ok(())
}

fn write_map(pid: i32, name: &str, map: &str) -> Result<(), Errno> {
    let path = std::ffi::CString::new(format!("/proc/{pid}/{name}")).map_err(|_| Errno::EINVAL)?;
    process::write_file_at(libc::AT_FDCWD, &path, map.as_bytes())
}

/// Makes files of the host's root appear as the sandboxee's on `mount`, and what the sandboxee creates there the host's
/// root's; every other id stays what it is.
fn id_map_mount(
    namespaces: &mut BTreeMap<(u32, u32), OwnedFd>,
    mount: &OwnedFd,
    uid: u32,
    gid: u32,
) -> Result<(), Errno> {
    let namespace = match namespaces.entry((uid, gid)) {
        std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
        std::collections::btree_map::Entry::Vacant(entry) => entry.insert(swapping_namespace(uid, gid)?),
    };
    let attributes =
        MountAttr { set: ATTR_IDMAP, userns_fd: namespace.as_raw_fd() as u64, ..MountAttr::default() };
    set_attributes(mount.as_fd(), &attributes, true)
}

/// A user namespace whose map has 0 on disk be `uid` in the mount, and leaves the rest alone.
fn swapping_namespace(uid: u32, gid: u32) -> Result<OwnedFd, Errno> {
    let map = |id: u32| match id {
        0 | u32::MAX => "0 0 4294967295\n".to_owned(),
        1 => format!("0 1 1\n2 2 {}\n", u32::MAX - 2),
        _ => format!("0 {id} 1\n1 1 {}\n{} {} {}\n", id - 1, id + 1, id + 1, u32::MAX - id - 1),
    };
    let (ours, theirs) = socket::stream_pair()?;
    // SAFETY: single-threaded; no CLONE_VM.
    let Some(pid) = (unsafe { process::fork_with(0) })? else {
        drop(ours);
        let _ = process::prctl(libc::PR_SET_DUMPABLE, 1);
        let made = process::unshare(libc::CLONE_NEWUSER).is_ok();
        let _ = nix::unistd::write(&theirs, &[u8::from(made)]);
        // Held until the parent has opened the namespace and closes its end.
        let _ = nix::unistd::read(&theirs, &mut [0]);
        crate::exit(0);
    };
    drop(theirs);
    let mut made = [0];
    if nix::unistd::read(&ours, &mut made) != Ok(1) || made[0] != 1 {
        return Err(Errno::EPERM);
    }
    write_map(pid, "uid_map", &map(uid))?;
    write_map(pid, "gid_map", &map(gid))?;
    let path = std::ffi::CString::new(format!("/proc/{pid}/ns/user")).map_err(|_| Errno::EINVAL)?;
    nestbox_sys::mount::open_at(libc::AT_FDCWD, &path, libc::O_RDONLY, 0, 0)
}

/// Asks and waits for the answer. Called only by processes that do nothing else meanwhile.
fn ask(request: &[u8], mount: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    // SAFETY: HELPER_FD is open in every process that may ask; elsewhere the send fails with EBADF.
    let helper = unsafe { BorrowedFd::borrow_raw(HELPER_FD) };
    let (ours, theirs) = socket::seqpacket_pair()?;
    let fds = [theirs.as_raw_fd(), mount.map_or(-1, |fd| fd.as_raw_fd())];
    packet::send(helper, &[request], if mount.is_some() { &fds } else { &fds[..1] }, 0)?;
    drop(theirs);
    let mut answer = [0; 4];
    let mut none = Vec::new();
    match packet::receive(ours.as_fd(), &mut answer, &mut none, 0)?.bytes.len() {
        4 => match i32::from_ne_bytes(answer) {
            0 => Ok(()),
            errno => Err(Errno::from_raw(errno)),
        },
        // The helper died or could not read the request.
        _ => Err(Errno::EPIPE),
    }
}

/// Has this process's new user namespace map every id to itself.
pub(crate) fn ask_identity_maps() -> Result<(), Errno> {
    ask(&[WRITE_ID_MAPS], None)
}

/// Has `mount` id-mapped between the host's root and the sandboxee's outer ids.
pub(crate) fn ask_id_map(mount: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<(), Errno> {
    let mut request = [ID_MAP_MOUNT; 9];
    request[1..].copy_from_slice(&(u64::from(gid) << 32 | u64::from(uid)).to_ne_bytes());
    ask(&request, Some(mount))
}
