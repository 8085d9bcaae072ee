//! What is fresh in each nest: proc with its masks, tmpfs, devpts, launch binds and files, hostname, network.
//!
//! [`NestPlan`] is made once per template, [`NestMounts`] once per launch, both before the clone; [`set_up`] then runs in
//! init and only reads. Promises: no two launches share a writable file system; no pivot, no umount; exactly the mounts
//! that the plan lists.

mod files;
mod proc;

use std::ffi::{CStr, CString};
use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd};

use nestbox_protocol::{Plan, Step, mount};
use nestbox_sys::Errno;
use nestbox_sys::mount::{RESOLVE_WITHOUT_LINKS, attach, mount, open_at};
use nestbox_sys::process;

use crate::fault::{At, Fault};
use crate::launch::{Content, Ids, NetworkSource, Prepared};
use crate::network;
use crate::report::Marks;
use crate::source::{below_root, c_path};
use files::{make_directory, write_new_file, write_private_file};
use proc::{Masks, mount_masked};

/// What a devpts is mounted with. The machine has `kernel.pty.max` pseudo-terminals for all instances together, 4096 where
/// nobody changed it, and no other limit stops a sandboxee from taking them: four processes are enough.
pub(crate) const DEVPTS: &CStr = c"newinstance,ptmxmode=0666,mode=0620,max=64";

#[derive(Debug)]
enum NestStep {
    Proc {
        path: CString,
        masks: Masks,
    },
    /// `below_bind`: what is mounted over is not in our own tree, and whoever may write there may put a link.
    Tmpfs {
        path: CString,
        size: u64,
        inodes: u64,
        mode: u32,
        exec: bool,
        below_bind: bool,
    },
    Devpts {
        path: CString,
    },
    Directory {
        path: CString,
        mode: u32,
    },
    File {
        path: CString,
        content: Vec<u8>,
        mode: u32,
    },
    Symlink {
        path: CString,
        points_to: CString,
    },
}

/// `Plan.nest_mounts`, with C strings.
#[derive(Debug)]
pub(crate) struct NestPlan {
    steps: Vec<NestStep>,
}

/// A launch's nest mounts: the plan's, with the options that depend on the launch.
#[derive(Debug)]
pub(crate) struct NestMounts<'a> {
    plan: &'a NestPlan,
    /// One for each tmpfs, in order.
    tmpfs_options: Vec<CString>,
}

impl NestPlan {
    /// Converts the plan, and looks at this machine's proc for which masks apply. The template's own proc is at `/proc`.
    pub(crate) fn new(plan: &Plan) -> Result<Self, Fault<'_>> {
        let mut steps = Vec::with_capacity(plan.nest_mounts.len());
        for step in &plan.nest_mounts {
            let path = owned(&step.path)?;
            steps.push(match &step.kind {
                Some(mount::Kind::Proc(proc)) => {
                    NestStep::Proc { path, masks: Masks::new(&step.path, proc)? }
                }
                Some(mount::Kind::Tmpfs(tmpfs)) => NestStep::Tmpfs {
                    below_bind: device_of(&path, &step.path)? != device_of(c"/", b"/")?,
                    path,
                    size: tmpfs.size,
                    inodes: tmpfs.inodes,
                    mode: tmpfs.mode,
                    exec: tmpfs.exec,
                },
                Some(mount::Kind::Devpts(_)) => NestStep::Devpts { path },
                Some(mount::Kind::Directory(directory)) => NestStep::Directory { path, mode: directory.mode },
                Some(mount::Kind::File(file)) => {
                    NestStep::File { path, content: file.content.clone(), mode: file.mode }
                }
                Some(mount::Kind::Symlink(link)) => {
                    NestStep::Symlink { path, points_to: owned(&link.points_to)? }
                }
                // Its source is opened by the mounter for each launch and comes as a launch bind.
                Some(mount::Kind::Bind(_)) => continue,
                None => {
                    return Err(Fault::new(Step::DecodeRequest, Errno::EBADMSG, "recvmsg", &step.path));
                }
            });
        }
        Ok(Self { steps })
    }

    /// The options of this launch's file systems.
    pub(crate) fn prepare<'a>(&'a self, launch: &Prepared<'_>) -> Result<NestMounts<'a>, Fault<'a>> {
        let mut tmpfs_options = Vec::new();
        for step in &self.steps {
            if let NestStep::Tmpfs { path, size, inodes, mode, .. } = step {
                let size = match (*size, launch.disk) {
                    (0, limit) => limit,
                    (size, Some(limit)) => Some(size.min(limit)),
                    (size, None) => Some(size),
                };
                // U0's name of the sandboxee: under the identity map its outer id, else 0.
                let (uid, gid) = (launch.ids.outer_uid, launch.ids.outer_gid);
                let mut options = format!("mode={mode:o},uid={uid},gid={gid}");
                if let Some(size) = size {
                    let _ = write!(options, ",size={size}");
                }
                if *inodes > 0 {
                    let _ = write!(options, ",nr_inodes={inodes}");
                }
                tmpfs_options.push(
                    c_path(options.as_bytes())
                        .map_err(|errno| Fault::new(Step::MountTmpfs, errno, "mount", path.to_bytes()))?,
                );
            }
        }
        Ok(NestMounts { plan: self, tmpfs_options })
    }
}

impl NestMounts<'_> {
    /// Where the nest has a proc of its own, if it has one.
    pub(crate) fn proc(&self) -> Option<&CStr> {
        self.plan.steps.iter().find_map(|step| match step {
            NestStep::Proc { path, .. } => Some(path.as_c_str()),
            _ => None,
        })
    }

    /// Whether a tmpfs of this nest is full: a fact for the verdict, taken when everything is dead.
    pub(crate) fn is_full(&self) -> bool {
        self.plan.steps.iter().any(|step| {
            let NestStep::Tmpfs { path, .. } = step else { return false };
            // SAFETY: all-zero is a valid statfs.
            let mut status: libc::statfs = unsafe { std::mem::zeroed() };
            // SAFETY: a C string and a struct of ours.
            let read = unsafe { nestbox_sys::syscall!(libc::SYS_statfs, path.as_ptr(), &raw mut status) };
            read.is_ok()
                && ((status.f_blocks > 0 && status.f_bfree == 0)
                    || (status.f_files > 0 && status.f_ffree == 0))
        })
    }
}

fn owned(path: &[u8]) -> Result<CString, Fault<'_>> {
    c_path(path).map_err(|errno| Fault::new(Step::DecodeRequest, errno, "recvmsg", path))
}

fn join<'a>(base: &[u8], name: &'a [u8]) -> Result<CString, Fault<'a>> {
    c_path(&[base, b"/", name].concat())
        .map_err(|errno| Fault::new(Step::DecodeRequest, errno, "recvmsg", name))
}

/// What is at a path, links not followed; none: nothing. Not to know is a failure: what is there has to be covered.
///
/// What a security module keeps from us is kept from the sandboxee as well.
fn look_at<'a>(path: &CStr, name: &'a [u8]) -> Result<Option<libc::stat>, Fault<'a>> {
    // SAFETY: all-zero is a valid stat.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a C string and a struct of ours.
    match Errno::result(unsafe { libc::lstat(path.as_ptr(), &raw mut status) }) {
        Ok(_) => Ok(Some(status)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(None),
        Err(errno) => Err(Fault::new(Step::PrepareInit, errno, "lstat", name)),
    }
}

/// `S_IFMT` bits of an existing path.
fn kind_of<'a>(path: &CStr, name: &'a [u8]) -> Result<Option<libc::mode_t>, Fault<'a>> {
    Ok(look_at(path, name)?.map(|status| status.st_mode & libc::S_IFMT))
}

/// The file system of an existing path.
fn device_of<'a>(path: &CStr, name: &'a [u8]) -> Result<Option<libc::dev_t>, Fault<'a>> {
    Ok(look_at(path, name)?.map(|status| status.st_dev))
}

/// Everything that is fresh, in order. Runs in init, as U0's root in the nest's namespaces.
pub(crate) fn set_up<'a>(
    mounts: Option<&'a NestMounts<'_>>,
    launch: &'a Prepared<'_>,
    hostname: Option<&'a str>,
    marks: &mut Marks,
) -> Result<(), Fault<'a>> {
    match launch.network {
        NetworkSource::Fd(fd) => {
            process::join_namespace(fd, libc::CLONE_NEWNET).at(
                Step::JoinNetworkNamespace,
                "setns",
                b"network namespace",
            )?;
            marks.add(Step::JoinNetworkNamespace);
        }
        NetworkSource::New => {
            network::bring_loopback_up()?;
            marks.add(Step::BringLoopbackUp);
        }
        NetworkSource::Host => {}
    }
    if let Some(mounts) = mounts {
        mount_all(mounts, launch.ids, marks)?;
    }
    add(launch, marks)?;
    if let Some(name) = hostname {
        // SAFETY: a string as long as said.
        unsafe { nestbox_sys::syscall!(libc::SYS_sethostname, name.as_ptr(), name.len()) }.at(
            Step::SetHostname,
            "sethostname",
            name.as_bytes(),
        )?;
    }
    Ok(())
}

/// What the launch itself adds: its binds and private files.
pub(crate) fn add<'a>(launch: &'a Prepared<'_>, marks: &mut Marks) -> Result<(), Fault<'a>> {
    for bind in &launch.binds {
        attach_bind(bind)?;
    }
    for file in &launch.files {
        write_private_file(file, launch)?;
    }
    if !launch.binds.is_empty() || !launch.files.is_empty() {
        marks.add(Step::WriteLaunchFile);
    }
    Ok(())
}

fn mount_all<'a>(mounts: &'a NestMounts<'_>, ids: Ids, marks: &mut Marks) -> Result<(), Fault<'a>> {
    let mut options = mounts.tmpfs_options.iter();
    for step in &mounts.plan.steps {
        match step {
            NestStep::Proc { path, masks } => mount_masked(path, masks, ids, marks)?,
            NestStep::Tmpfs { path, exec, below_bind, .. } => {
                let flags = libc::MS_NOSUID | libc::MS_NODEV | if *exec { 0 } else { libc::MS_NOEXEC };
                let options = options.next().map_or(c"", |options| options.as_c_str());
                let step = Step::MountTmpfs;
                let target = if *below_bind { enter(path, step)? } else { path.as_c_str() };
                mount(c"tmpfs", target, c"tmpfs", flags, options).at(step, "mount", path.to_bytes())?;
                if *below_bind {
                    leave(step)?;
                }
                marks.add(Step::MountTmpfs);
            }
            NestStep::Devpts { path } => {
                let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
                mount(c"devpts", path, c"devpts", flags, DEVPTS).at(
                    Step::MountDevpts,
                    "mount",
                    path.to_bytes(),
                )?;
                marks.add(Step::MountDevpts);
            }
            NestStep::Directory { path, mode } => {
                make_directory(path, *mode, ids).at(Step::CreateDirectory, "mkdirat", path.to_bytes())?;
            }
            NestStep::File { path, content, mode } => {
                write_new_file(libc::AT_FDCWD, below_root(path), Content::Bytes(content), *mode, ids)
                    .map_err(|(errno, syscall)| {
                        Fault::new(Step::WriteFile, errno, syscall, path.to_bytes())
                    })?;
            }
            NestStep::Symlink { path, points_to } => {
                // SAFETY: C strings.
                unsafe {
                    nestbox_sys::syscall!(
                        libc::SYS_symlinkat,
                        points_to.as_ptr(),
                        libc::AT_FDCWD,
                        path.as_ptr()
                    )
                }
                .at(Step::CreateSymlink, "symlinkat", path.to_bytes())?;
            }
        }
    }
    Ok(())
}

/// Goes to a directory that no link leads to, to be mounted over by the name that this answers.
fn enter(path: &CStr, step: Step) -> Result<&'static CStr, Fault<'_>> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let directory = open_at(libc::AT_FDCWD, below_root(path), flags, 0, RESOLVE_WITHOUT_LINKS).at(
        step,
        "openat2",
        path.to_bytes(),
    )?;
    // SAFETY: numbers only.
    unsafe { nestbox_sys::syscall!(libc::SYS_fchdir, directory.as_raw_fd()) }.at(
        step,
        "fchdir",
        path.to_bytes(),
    )?;
    Ok(c".")
}

/// Goes back from there to the root.
fn leave(step: Step) -> Result<(), Fault<'static>> {
    // SAFETY: a C string.
    unsafe { nestbox_sys::syscall!(libc::SYS_chdir, c"/".as_ptr()) }.at(step, "chdir", b"/").map(drop)
}

fn attach_bind(bind: &crate::launch::LaunchBind) -> Result<(), Fault<'_>> {
    let step = Step::AttachLaunchBind;
    // Only our own mounts are there yet, but a policy's bind may hold symlinks: none is followed.
    let target = open_at(libc::AT_FDCWD, below_root(&bind.path), libc::O_PATH, 0, RESOLVE_WITHOUT_LINKS).at(
        step,
        "openat2",
        bind.path.to_bytes(),
    )?;
    attach(bind.mount, target.as_fd()).at(step, "move_mount", bind.path.to_bytes())
}
