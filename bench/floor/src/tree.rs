//! The template: the policy's tree as the root of a process that nests are cloned from.
//!
//! As the fork server's templates: pid 1 of its own pid namespace, a mount namespace with the plan's mounts and nothing
//! else, a network namespace that nests don't get, a proc. How it came to be is not measured, so this takes the shortest
//! way. Promises: the same mounts in the same order, since each costs every clone its copy.

use std::ffi::CString;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};

use nestbox_policy::{MountPointKinds, Policy};
use nestbox_protocol::{Bind, Mount, Plan, mount};
use nestbox_sys::mount::{
    ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, MountAttr, attach, mount, mount_flags, open_at,
    open_tree, set_attributes,
};
use nestbox_sys::{Errno, process};
use prost::Message;

use crate::fault::{During, Fault, errno_of};

/// Resolves the policy in a child, and reads its plan.
pub(crate) fn plan_of(file: &str) -> Result<Plan, Fault> {
    let (mut from, mut to) = std::io::pipe().map_err(|error| errno_of(&error)).during("pipe")?;
    // SAFETY: single-threaded; no CLONE_VM.
    let child = unsafe { process::fork_with(0) }.during("clone3: resolver")?;
    let Some(child) = child else {
        let sent = resolve(file).and_then(|plan| {
            to.write_all(&plan.encode_to_vec()).map_err(|error| Fault::text(format!("the plan: {error}")))
        });
        if let Err(fault) = &sent {
            eprintln!("nestbox-floor: {fault}");
        }
        std::process::exit(i32::from(sent.is_err()));
    };
    drop(to);
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).map_err(|error| errno_of(&error)).during("read: plan")?;
    if crate::launch::wait_for(child)? != 0 {
        return Err(Fault::text("the policy could not be resolved"));
    }
    Plan::decode(&bytes[..]).map_err(|error| Fault::text(format!("the plan: {error}")))
}

fn resolve(file: &str) -> Result<Plan, Fault> {
    let json = fs::read_to_string(file).map_err(|error| errno_of(&error)).on("read", file.as_bytes())?;
    let policy = Policy::parse(&json).map_err(|error| Fault::text(format!("{file}: {error}")))?;
    let resolved = policy
        .resolve(&MountPointKinds::default())
        .map_err(|error| Fault::text(format!("{file}: {error}")))?;
    Ok(Plan::clone(&resolved.plan))
}

/// A template: this process.
#[derive(Debug)]
pub(crate) struct Template {
    /// A proc in which `self` is whoever asks.
    pub(crate) proc: OwnedFd,
    /// The network namespace that nests join: not this process's own.
    pub(crate) network: OwnedFd,
}

static TEMPLATE: AtomicI32 = AtomicI32::new(0);

/// Forks the template-to-be; false in the process that stays outside.
pub(crate) fn fork_template() -> Result<bool, Fault> {
    let flags = (libc::CLONE_NEWNS | libc::CLONE_NEWPID) as u64;
    // SAFETY: single-threaded; no CLONE_VM.
    if let Some(pid) = unsafe { process::fork_with(flags) }.during("clone3: template")? {
        TEMPLATE.store(pid, Ordering::Relaxed);
        return Ok(false);
    }
    process::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as usize).during("prctl: PR_SET_PDEATHSIG")?;
    Ok(true)
}

/// The other process's part.
pub(crate) fn wait_for_template() -> Result<ExitCode, Fault> {
    let status = crate::launch::wait_for(TEMPLATE.load(Ordering::Relaxed))?;
    Ok(if status == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Template {
    /// Makes this process one.
    pub(crate) fn build(plan: &Plan) -> Result<Self, Fault> {
        let network = make_network()?;
        mount_flags(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE).during("mount: private")?;
        let sources = plan.template_mounts.iter().map(open_source).collect::<Result<Vec<_>, _>>()?;
        enter_own_root(plan)?;
        for (step, source) in plan.template_mounts.iter().zip(sources) {
            carry_out(step, source)?;
        }
        let proc = open(c"/proc", libc::O_PATH | libc::O_DIRECTORY)?;
        let root = open(c"/", libc::O_PATH | libc::O_DIRECTORY)?;
        let sealed = MountAttr { set: ATTR_NOSUID | ATTR_NODEV | ATTR_RDONLY, ..MountAttr::default() };
        set_attributes(root.as_fd(), &sealed, false).during("mount_setattr: /")?;
        process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).during("prctl: PR_SET_NO_NEW_PRIVS")?;
        Ok(Self { proc, network })
    }
}

fn open(path: &'static std::ffi::CStr, flags: i32) -> Result<OwnedFd, Fault> {
    open_at(libc::AT_FDCWD, path, flags, 0, 0).on("openat2", path.to_bytes())
}

/// Two: the first is what nests join, the second where this process stays.
fn make_network() -> Result<OwnedFd, Fault> {
    process::unshare(libc::CLONE_NEWNET).during("unshare: network namespace")?;
    let network = open(c"/proc/thread-self/ns/net", libc::O_RDONLY)?;
    process::unshare(libc::CLONE_NEWNET).during("unshare: network namespace")?;
    Ok(network)
}

fn c_string(bytes: &[u8]) -> Result<CString, Fault> {
    CString::new(bytes).map_err(|_| Errno::EINVAL).on("path", bytes)
}

fn text(bytes: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(bytes).map_err(|_| Fault::text("a path that is not UTF-8"))
}

fn open_source(step: &Mount) -> Result<Option<OwnedFd>, Fault> {
    let Some(mount::Kind::Bind(bind)) = &step.kind else { return Ok(None) };
    let opened =
        open_tree(libc::AT_FDCWD, &c_string(&bind.source)?, bind.directory).on("open_tree", &bind.source)?;
    set_attributes(opened.as_fd(), &attributes(bind), true).on("mount_setattr", &bind.source)?;
    Ok(Some(opened))
}

fn attributes(bind: &Bind) -> MountAttr {
    let mut set = ATTR_NOSUID;
    for (unset, attribute) in
        [(bind.writable, ATTR_RDONLY), (bind.device, ATTR_NODEV), (bind.exec && !bind.device, ATTR_NOEXEC)]
    {
        if !unset {
            set |= attribute;
        }
    }
    MountAttr { set, propagation: libc::MS_PRIVATE, ..MountAttr::default() }
}

/// A tmpfs as large as the plan says, and on it a proc: one may be mounted only where another can be seen, so before the
/// host's is gone.
fn enter_own_root(plan: &Plan) -> Result<(), Fault> {
    let size = if plan.root_size == 0 { 16 << 20 } else { plan.root_size };
    let inodes = if plan.root_inodes == 0 { 16_384 } else { plan.root_inodes };
    let options = c_string(format!("mode=0755,size={size},nr_inodes={inodes}").as_bytes())?;
    mount(c"nestbox", c"/tmp", c"tmpfs", libc::MS_NOSUID | libc::MS_NODEV, &options).during("mount: root")?;
    fs::create_dir("/tmp/proc").map_err(|error| errno_of(&error)).during("mkdir: /proc")?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(c"proc", c"/tmp/proc", c"proc", flags, c"").during("mount: /proc")?;
    std::env::set_current_dir("/tmp").map_err(|error| errno_of(&error)).during("chdir: root")?;
    // SAFETY: C strings.
    unsafe { nestbox_sys::syscall!(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) }
        .during("pivot_root")?;
    // SAFETY: a C string.
    unsafe { nestbox_sys::syscall!(libc::SYS_umount2, c".".as_ptr(), libc::MNT_DETACH) }
        .during("umount2: old root")?;
    std::env::set_current_dir("/").map_err(|error| errno_of(&error)).during("chdir: /")
}

/// One step of the plan. The root is the new one, so paths are what they say.
fn carry_out(step: &Mount, source: Option<OwnedFd>) -> Result<(), Fault> {
    let path = text(&step.path)?;
    let done = match (&step.kind, source) {
        (Some(mount::Kind::Directory(directory)), _) => {
            match fs::DirBuilder::new().mode(directory.mode).create(path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                made => made.and_then(|()| set_mode(path, directory.mode)),
            }
        }
        (Some(mount::Kind::File(file)), _) => {
            fs::write(path, &file.content).and_then(|()| set_mode(path, file.mode))
        }
        (Some(mount::Kind::Symlink(link)), _) => symlink(text(&link.points_to)?, path),
        (Some(mount::Kind::Bind(_)), Some(source)) => {
            let target = open_at(libc::AT_FDCWD, &c_string(&step.path)?, libc::O_PATH, 0, 0)
                .on("openat2", &step.path)?;
            return attach(source.as_raw_fd(), target.as_fd()).on("move_mount", &step.path);
        }
        _ => return Err(Fault::text(format!("the plan has something else at {path}"))),
    };
    done.map_err(|error| errno_of(&error)).on("make", &step.path)
}

fn set_mode(path: &str, mode: u32) -> std::io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}
