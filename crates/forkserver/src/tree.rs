//! Building a mount tree: carries out `Plan.template_mounts` and makes the result the root.
//!
//! Promises: the only file system that anything is created on is our own tmpfs; a target is looked up with the new tree
//! as its root (openat2(2), `RESOLVE_IN_ROOT`), so no symlink in it leads outside, and none that lies in a bind leads
//! anywhere; afterwards the mount namespace holds
//! the plan's mounts and an empty directory below them, nothing of the host. Called by templates and by requests that
//! bring their own tree.

use std::ffi::CStr;
use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nestbox_protocol::{Mount, Plan, Step, Tmpfs, mount};
use nestbox_sys::Errno;
use nestbox_sys::mount::{
    ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, MountAttr, RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS, attach, mount, mount_flags, open_at, set_attributes,
};

use crate::fault::{At, Fault};
use crate::initial::{self, REAL_ROOT, STAGING};
use crate::source::{self, IdMapping, below_root, c_path};

/// Flags of every proc mount: proc(5).
pub(crate) const PROC_FLAGS: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Where this process stands before the tree is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// In a copy of the initial mount namespace: the host's tree is at [`REAL_ROOT`], no pivot is needed.
    Initial,
    /// In a copy of the host's own mount namespace: the root has to be pivoted, as sandbox2 once did per launch.
    Host,
}

/// A tree that has become the root.
#[derive(Debug)]
pub(crate) struct Built {
    /// A proc of this process's pid namespace, whose `self` works for any descendant; for id maps.
    pub(crate) proc: OwnedFd,
    /// Paths of writable binds that could not be id-mapped.
    pub(crate) not_id_mapped: Vec<Vec<u8>>,
}

/// Builds the plan's tree and makes it the root.
pub(crate) fn build(plan: &Plan, ids: IdMapping, origin: Origin) -> Result<Built, Fault<'_>> {
    let mut not_id_mapped = Vec::new();
    let sources = open_sources(plan, ids, origin, &mut not_id_mapped)?;
    let base = mount_root(plan, ids, origin)?;
    let root = open_at(libc::AT_FDCWD, base, libc::O_PATH | libc::O_DIRECTORY, 0, 0).at(
        Step::MountRoot,
        "openat2",
        b"/",
    )?;
    // A writable root is the sandboxee's with all that is made on it; otherwise it is ours.
    let owner = plan.root_writable.then_some((ids.uid, ids.gid));
    for (step, source) in plan.template_mounts.iter().zip(&sources) {
        carry_out(root.as_fd(), step, source.as_ref(), ids, owner)?;
    }
    drop(sources);
    let proc = mount_proc(root.as_fd(), plan)?;
    seal(root.as_fd(), plan)?;
    drop(root);
    match origin {
        Origin::Initial => move_to_root(base)?,
        Origin::Host => pivot(base)?,
    }
    Ok(Built { proc, not_id_mapped })
}

/// Opens every bind source of the plan, seen from the host's root.
fn open_sources<'a>(
    plan: &'a Plan,
    ids: IdMapping,
    origin: Origin,
    not_id_mapped: &mut Vec<Vec<u8>>,
) -> Result<Vec<Option<OwnedFd>>, Fault<'a>> {
    let own_root = open_at(libc::AT_FDCWD, c"/", libc::O_PATH | libc::O_DIRECTORY, 0, 0).at(
        Step::OpenBindSource,
        "openat2",
        b"/",
    )?;
    if origin == Origin::Initial {
        initial::enter(REAL_ROOT)?;
    }
    let mut sources = Vec::with_capacity(plan.template_mounts.len());
    for step in &plan.template_mounts {
        sources.push(match &step.kind {
            Some(mount::Kind::Bind(bind)) => {
                let opened = source::open(bind, ids)?;
                if opened.not_id_mapped {
                    not_id_mapped.push(step.path.clone());
                }
                Some(opened.mount)
            }
            _ => None,
        });
    }
    if origin == Origin::Initial {
        // SAFETY: a directory fd of ours.
        Errno::result(unsafe { libc::fchdir(own_root.as_raw_fd()) }).at(
            Step::OpenBindSource,
            "fchdir",
            b"/",
        )?;
        initial::enter(c".")?;
    }
    Ok(sources)
}

/// Mounts the tmpfs that carries the tree; returns where.
fn mount_root(plan: &Plan, ids: IdMapping, origin: Origin) -> Result<&'static CStr, Fault<'static>> {
    let step = Step::MountRoot;
    let size = if plan.root_size == 0 { 16 << 20 } else { plan.root_size };
    let inodes = if plan.root_inodes == 0 { 16_384 } else { plan.root_inodes };
    // A writable root belongs to the sandboxee: its outer id is what U0 calls it.
    let owner = if plan.root_writable { format!(",uid={},gid={}", ids.uid, ids.gid) } else { String::new() };
    let options = c_path(format!("mode=0755,size={size},nr_inodes={inodes}{owner}").as_bytes())
        .at(step, "mount", b"/")?;
    match origin {
        Origin::Initial => {
            mount(c"nestbox", STAGING, c"tmpfs", libc::MS_NOSUID | libc::MS_NODEV, &options)
                .at(step, "mount", b"/")?;
            Ok(STAGING)
        }
        Origin::Host => initial::mount_scratch(step, &options),
    }
}

/// Opens the existing `path` inside the new tree. Links of the tree itself are followed, as `/bin` to `usr/bin`; those in
/// a bind are not: whoever may write there could lead a mount to another place of the tree, while it is being built or
/// before (runc's CVE-2021-30465).
fn open_inside(root: BorrowedFd<'_>, path: &CStr, flags: i32) -> Result<OwnedFd, Errno> {
    let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS;
    match open_at(root.as_raw_fd(), below_root(path), flags, 0, resolve) {
        Err(Errno::ELOOP) => walk(root, path.to_bytes(), flags),
        opened => opened,
    }
}

/// The most links that are followed on the way to one path: path_resolution(7).
const LINKS_MAX: usize = 40;

/// The same, component by component. Each is held by fd before the next is looked up, so nothing can be swapped.
fn walk(root: BorrowedFd<'_>, path: &[u8], flags: i32) -> Result<OwnedFd, Errno> {
    let own = source::status(root)?.st_dev;
    let components = |path: &[u8]| -> Vec<Vec<u8>> {
        path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).rev().map(<[u8]>::to_vec).collect()
    };
    // The next component is the last.
    let mut rest = components(path);
    // The directories from the root down to here.
    let mut trail: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == b"." {
            continue;
        }
        if name == b".." {
            // At the root it stays there.
            trail.pop();
            continue;
        }
        let here = trail.last().map_or(root.as_raw_fd(), AsRawFd::as_raw_fd);
        let found = open_at(here, &c_path(&name)?, libc::O_PATH | libc::O_NOFOLLOW, 0, RESOLVE_BENEATH)?;
        let status = source::status(found.as_fd())?;
        if status.st_mode & libc::S_IFMT != libc::S_IFLNK {
            trail.push(found);
            continue;
        }
        links += 1;
        if status.st_dev != own || links > LINKS_MAX {
            return Err(Errno::ELOOP);
        }
        let points_to = nix::fcntl::readlinkat(&found, c"")?;
        let points_to = points_to.as_encoded_bytes();
        if points_to.starts_with(b"/") {
            trail.clear();
        }
        rest.extend(components(points_to));
    }
    let is_directory = |fd: &OwnedFd| {
        source::status(fd.as_fd()).map(|status| status.st_mode & libc::S_IFMT == libc::S_IFDIR)
    };
    match trail.pop() {
        Some(found) if flags & libc::O_DIRECTORY == 0 || is_directory(&found)? => Ok(found),
        Some(_) => Err(Errno::ENOTDIR),
        None => open_at(root.as_raw_fd(), c".", flags, 0, RESOLVE_BENEATH),
    }
}

/// Opens the directory that `path` lies in, and gives the last component.
fn open_parent(root: BorrowedFd<'_>, path: &[u8]) -> Result<(OwnedFd, std::ffi::CString), Errno> {
    let cut = path.iter().rposition(|&byte| byte == b'/').ok_or(Errno::EINVAL)?;
    let parent = open_inside(root, &c_path(&path[..cut])?, libc::O_PATH | libc::O_DIRECTORY)?;
    Ok((parent, c_path(&path[cut + 1..])?))
}

/// One step of the plan.
fn carry_out<'a>(
    root: BorrowedFd<'_>,
    step: &'a Mount,
    source: Option<&OwnedFd>,
    ids: IdMapping,
    owner: Option<(u32, u32)>,
) -> Result<(), Fault<'a>> {
    let path = step.path.as_slice();
    match &step.kind {
        Some(mount::Kind::Directory(directory)) => make_directory(root, path, directory.mode, owner),
        Some(mount::Kind::File(file)) => write_file(root, path, &file.content, file.mode, owner),
        Some(mount::Kind::Symlink(link)) => make_symlink(root, path, &link.points_to),
        Some(mount::Kind::Bind(_)) => {
            let Some(source) = source else { return Ok(()) };
            let target = c_path(path)
                .and_then(|path| open_inside(root, &path, libc::O_PATH))
                .at(Step::AttachBind, "openat2", path)
                .map_err(|fault| match fault.errno {
                    Errno::ELOOP => fault.detail("no link is followed below another bind"),
                    _ => fault.detail("the target of a bind must exist below another bind"),
                })?;
            attach(source.as_raw_fd(), target.as_fd()).at(Step::AttachBind, "move_mount", path)
        }
        // Of a request that brings its own tree, which is built for one launch.
        Some(mount::Kind::Tmpfs(tmpfs)) => mount_tmpfs(root, path, tmpfs, ids),
        // What is fresh per nest does not belong in a template; the planner never puts it here.
        _ => Err(Fault::new(Step::DecodeRequest, Errno::EBADMSG, "recvmsg", path)),
    }
}

/// Makes a directory; one that exists is kept.
fn make_directory<'a>(
    root: BorrowedFd<'_>,
    path: &'a [u8],
    mode: u32,
    owner: Option<(u32, u32)>,
) -> Result<(), Fault<'a>> {
    let step = Step::CreateDirectory;
    let (parent, name) = open_parent(root, path).at(step, "openat2", path)?;
    // SAFETY: a C string and a directory fd.
    match Errno::result(unsafe { libc::mkdirat(parent.as_raw_fd(), name.as_ptr(), mode) }) {
        Ok(_) => {
            // The umask is ours, the mode the policy's.
            // SAFETY: as above.
            Errno::result(unsafe { libc::fchmodat(parent.as_raw_fd(), name.as_ptr(), mode, 0) })
                .at(step, "fchmodat", path)?;
            let Some((uid, gid)) = owner else { return Ok(()) };
            let flags = libc::AT_SYMLINK_NOFOLLOW;
            // SAFETY: as above.
            Errno::result(unsafe { libc::fchownat(parent.as_raw_fd(), name.as_ptr(), uid, gid, flags) })
                .at(step, "fchownat", path)
                .map(drop)
        }
        Err(Errno::EEXIST) => open_at(parent.as_raw_fd(), &name, libc::O_PATH | libc::O_DIRECTORY, 0, 0)
            .at(step, "openat2", path)
            .map(drop),
        Err(errno) => Err(Fault::new(step, errno, "mkdirat", path)),
    }
}

/// Writes a new file.
fn write_file<'a>(
    root: BorrowedFd<'_>,
    path: &'a [u8],
    content: &[u8],
    mode: u32,
    owner: Option<(u32, u32)>,
) -> Result<(), Fault<'a>> {
    let step = Step::WriteFile;
    let (parent, name) = open_parent(root, path).at(step, "openat2", path)?;
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    let file = open_at(parent.as_raw_fd(), &name, flags, 0o600, 0).at(step, "openat2", path)?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = nix::unistd::write(&file, rest).at(step, "write", path)?;
        rest = &rest[written..];
    }
    if let Some((uid, gid)) = owner {
        // SAFETY: an fd of ours.
        Errno::result(unsafe { libc::fchown(file.as_raw_fd(), uid, gid) }).at(step, "fchown", path)?;
    }
    // SAFETY: an fd of ours.
    Errno::result(unsafe { libc::fchmod(file.as_raw_fd(), mode) }).at(step, "fchmod", path).map(drop)
}

pub(crate) fn make_symlink<'a>(
    root: BorrowedFd<'_>,
    path: &'a [u8],
    points_to: &[u8],
) -> Result<(), Fault<'a>> {
    let step = Step::CreateSymlink;
    let (parent, name) = open_parent(root, path).at(step, "openat2", path)?;
    let target = c_path(points_to).at(step, "symlinkat", path)?;
    // SAFETY: C strings and a directory fd.
    Errno::result(unsafe { libc::symlinkat(target.as_ptr(), parent.as_raw_fd(), name.as_ptr()) })
        .at(step, "symlinkat", path)
        .map(drop)
}

/// Mounts a tmpfs that belongs to the sandboxee.
fn mount_tmpfs<'a>(
    root: BorrowedFd<'_>,
    path: &'a [u8],
    tmpfs: &Tmpfs,
    ids: IdMapping,
) -> Result<(), Fault<'a>> {
    let step = Step::MountTmpfs;
    let target = c_path(path)
        .and_then(|path| open_inside(root, &path, libc::O_PATH | libc::O_DIRECTORY))
        .at(step, "openat2", path)?;
    let mut options = format!("mode={:o},uid={},gid={}", tmpfs.mode, ids.uid, ids.gid);
    if tmpfs.size > 0 {
        let _ = write!(options, ",size={}", tmpfs.size);
    }
    if tmpfs.inodes > 0 {
        let _ = write!(options, ",nr_inodes={}", tmpfs.inodes);
    }
    let options = c_path(options.as_bytes()).at(step, "mount", path)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | if tmpfs.exec { 0 } else { libc::MS_NOEXEC };
    // SAFETY: a directory fd of ours.
    Errno::result(unsafe { libc::fchdir(target.as_raw_fd()) }).at(step, "fchdir", path)?;
    mount(c"tmpfs", c".", c"tmpfs", flags, &options).at(step, "mount", path)
}

/// The template's own proc, at `/proc` and nowhere else: a nest may mount its own only where one is fully visible, and
/// one in a hidden directory would let a sandboxee with a namespace of its own mount an unmasked one. Under
/// `proc('none')` the sandboxee sees none; ours is then a detached mount.
fn mount_proc(root: BorrowedFd<'_>, plan: &Plan) -> Result<OwnedFd, Fault<'static>> {
    let step = Step::MountTemplateProc;
    if plan.no_proc {
        return detached(c"proc", ATTR_NOSUID | ATTR_NODEV).at(step, "fsmount", b"proc");
    }
    let target =
        open_inside(root, c"/proc", libc::O_PATH | libc::O_DIRECTORY).at(step, "openat2", b"/proc")?;
    // SAFETY: a directory fd of ours.
    Errno::result(unsafe { libc::fchdir(target.as_raw_fd()) }).at(step, "fchdir", b"/proc")?;
    mount(c"proc", c".", c"proc", PROC_FLAGS, c"").at(step, "mount", b"/proc")?;
    open_inside(root, c"/proc", libc::O_PATH | libc::O_DIRECTORY).at(step, "openat2", b"/proc")
}

/// A file system of this process's namespaces that is mounted nowhere. Without the C library: also for an init.
pub(crate) fn detached(kind: &CStr, attributes: u64) -> Result<OwnedFd, Errno> {
    const FSCONFIG_CMD_CREATE: usize = 6;
    // SAFETY: a C string.
    let context = unsafe { nestbox_sys::syscall!(libc::SYS_fsopen, kind.as_ptr(), 1) }?;
    // SAFETY: the fd was just made and nobody else knows it.
    let context = unsafe { OwnedFd::from_raw_fd(context as i32) };
    let number = context.as_raw_fd();
    // SAFETY: the command takes no key and no value.
    unsafe { nestbox_sys::syscall!(libc::SYS_fsconfig, number, FSCONFIG_CMD_CREATE, 0, 0, 0) }?;
    // SAFETY: numbers only.
    let fd = unsafe { nestbox_sys::syscall!(libc::SYS_fsmount, number, 1, attributes) }?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes the root read-only, unless the policy wants it writable.
fn seal(root: BorrowedFd<'_>, plan: &Plan) -> Result<(), Fault<'static>> {
    let writable = if plan.root_writable { 0 } else { ATTR_RDONLY };
    let attributes = MountAttr { set: ATTR_NOSUID | ATTR_NODEV | writable, ..MountAttr::default() };
    set_attributes(root, &attributes, false).at(Step::SealRoot, "mount_setattr", b"/")
}

/// Moves the tree over the initial root and drops the host's tree. No `pivot_root`, which walks every thread of the
/// machine (14 µs with none, 11 ms with 30,000); sandbox2 does the same in its nested mode.
fn move_to_root(base: &'static CStr) -> Result<(), Fault<'static>> {
    let step = Step::EnterRoot;
    let host = open_at(libc::AT_FDCWD, REAL_ROOT, libc::O_PATH | libc::O_DIRECTORY, 0, 0).at(
        step,
        "openat2",
        REAL_ROOT.to_bytes(),
    )?;
    // SAFETY: a C string.
    Errno::result(unsafe { libc::chdir(base.as_ptr()) }).at(step, "chdir", base.to_bytes())?;
    mount_flags(c".", c"/", libc::MS_MOVE).at(step, "mount", b"/")?;
    initial::enter(c".")?;
    // SAFETY: a directory fd of ours.
    Errno::result(unsafe { libc::fchdir(host.as_raw_fd()) }).at(step, "fchdir", REAL_ROOT.to_bytes())?;
    detach_here()
}

/// The old way: pivot_root(2) with the old root stacked on the new one, then detached.
fn pivot(base: &'static CStr) -> Result<(), Fault<'static>> {
    // SAFETY: a C string.
    Errno::result(unsafe { libc::chdir(base.as_ptr()) }).at(Step::EnterRoot, "chdir", base.to_bytes())?;
    // SAFETY: C strings.
    unsafe { nestbox_sys::syscall!(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) }.at(
        Step::PivotRoot,
        "pivot_root",
        base.to_bytes(),
    )?;
    detach_here()
}

/// Detaches the mount tree that this process stands in, and goes to the root.
fn detach_here() -> Result<(), Fault<'static>> {
    let step = Step::DetachOldRoot;
    // SAFETY: a C string.
    Errno::result(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }).at(step, "umount2", b"/")?;
    // SAFETY: a C string.
    Errno::result(unsafe { libc::chdir(c"/".as_ptr()) }).at(step, "chdir", b"/").map(drop)
}
