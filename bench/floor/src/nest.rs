//! What is fresh in each nest: the plan's `nest_mounts`, network and hostname, and its Landlock rules.
//!
//! [`Nest::new`] makes every string once; [`Nest::set_up`] runs in init and makes system calls only, the fork server's in
//! the fork server's order (`crates/forkserver/src/nest.rs`).

use std::ffi::{CStr, CString};
use std::fmt::Write;
use std::fs;
use std::os::fd::RawFd;

use nestbox_protocol::{Plan, Proc, Tmpfs, mount};
use nestbox_sys::mount::{mount, mount_flags, open_at};
use nestbox_sys::{Errno, process};

use crate::fault::{During, Fault};
use crate::landlock::Rules;
use crate::user::Ids;

const PROC_FLAGS: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

#[derive(Debug)]
enum Fresh {
    Mount {
        kind: &'static CStr,
        path: CString,
        flags: u64,
        options: CString,
    },
    /// Covered by the null device.
    Cover(CString),
    ReadOnly(CString),
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

/// A nest of one policy.
#[derive(Debug)]
pub(crate) struct Nest {
    fresh: Vec<Fresh>,
    hostname: String,
    owner: [u32; 2],
    rules: Option<Rules>,
}

pub(crate) fn c_string(bytes: &[u8]) -> Result<CString, Fault> {
    CString::new(bytes).map_err(|_| Errno::EINVAL).on("path", bytes)
}

impl Nest {
    /// Called in the template, whose tree and proc say which masks there is something for.
    pub(crate) fn new(plan: &Plan, ids: Ids) -> Result<Self, Fault> {
        let mut fresh = Vec::new();
        for step in &plan.nest_mounts {
            let path = c_string(&step.path)?;
            match &step.kind {
                Some(mount::Kind::Proc(proc)) => add_proc(&mut fresh, path, proc, ids)?,
                Some(mount::Kind::Tmpfs(tmpfs)) => fresh.push(fresh_tmpfs(path, tmpfs, plan, ids)?),
                Some(mount::Kind::Devpts(_)) => fresh.push(Fresh::Mount {
                    kind: c"devpts",
                    path,
                    flags: libc::MS_NOSUID | libc::MS_NOEXEC,
                    options: c"newinstance,ptmxmode=0666,mode=0620,max=64".to_owned(),
                }),
                Some(mount::Kind::Directory(directory)) => {
                    fresh.push(Fresh::Directory { path, mode: directory.mode });
                }
                Some(mount::Kind::File(file)) => {
                    fresh.push(Fresh::File { path, content: file.content.clone(), mode: file.mode });
                }
                Some(mount::Kind::Symlink(link)) => {
                    fresh.push(Fresh::Symlink { path, points_to: c_string(&link.points_to)? });
                }
                Some(mount::Kind::Bind(_)) | None => {
                    return Err(Fault::text("a policy with binds below what is fresh is not measured"));
                }
            }
        }
        Ok(Self { fresh, hostname: plan.hostname.clone(), owner: ids.outer, rules: Rules::new(plan)? })
    }

    /// Makes it, in this process's namespaces. Returns the Landlock ruleset, if the kernel has Landlock.
    pub(crate) fn set_up(&self, network: RawFd) -> Result<Option<RawFd>, Fault> {
        let ruleset = self.rules.as_ref().map(Rules::create).transpose()?;
        process::join_namespace(network, libc::CLONE_NEWNET).during("setns: network")?;
        for fresh in &self.fresh {
            self.make(fresh)?;
        }
        let name = &self.hostname;
        // SAFETY: a string as long as said.
        unsafe { nestbox_sys::syscall!(libc::SYS_sethostname, name.as_ptr(), name.len()) }
            .during("sethostname")?;
        if let (Some(rules), Some(ruleset)) = (&self.rules, ruleset) {
            rules.fill(ruleset)?;
        }
        Ok(ruleset)
    }

    fn make(&self, fresh: &Fresh) -> Result<(), Fault> {
        match fresh {
            Fresh::Mount { kind, path, flags, options } => {
                mount(kind, path, kind, *flags, options).on("mount", path.to_bytes())
            }
            Fresh::Cover(path) => mount_flags(c"/dev/null", path, libc::MS_BIND).on("cover", path.to_bytes()),
            Fresh::ReadOnly(path) => {
                mount_flags(path, path, libc::MS_BIND).on("bind", path.to_bytes())?;
                let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | PROC_FLAGS;
                mount_flags(c"none", path, flags).on("remount", path.to_bytes())
            }
            Fresh::Directory { path, mode } => {
                self.make_directory(path, *mode).on("make directory", path.to_bytes())
            }
            Fresh::File { path, content, mode } => {
                self.write_file(path, content, *mode).on("write", path.to_bytes())
            }
            Fresh::Symlink { path, points_to } => {
                let (from, to) = (points_to.as_ptr(), path.as_ptr());
                // SAFETY: C strings.
                unsafe { nestbox_sys::syscall!(libc::SYS_symlinkat, from, libc::AT_FDCWD, to) }
                    .on("symlinkat", path.to_bytes())
                    .map(drop)
            }
        }
    }

    fn make_directory(&self, path: &CStr, mode: u32) -> Result<(), Errno> {
        let [uid, gid] = self.owner;
        let (at, path) = (libc::AT_FDCWD, path.as_ptr());
        // SAFETY: a C string.
        unsafe { nestbox_sys::syscall!(libc::SYS_mkdirat, at, path, mode) }?;
        // SAFETY: as above.
        unsafe { nestbox_sys::syscall!(libc::SYS_fchownat, at, path, uid, gid, 0) }?;
        // SAFETY: as above.
        unsafe { nestbox_sys::syscall!(libc::SYS_fchmodat, at, path, mode) }.map(drop)
    }

    fn write_file(&self, path: &CStr, content: &[u8], mode: u32) -> Result<(), Errno> {
        use std::os::fd::AsRawFd;
        let [uid, gid] = self.owner;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let file = open_at(libc::AT_FDCWD, path, flags, 0o600, 0)?;
        let fd = file.as_raw_fd();
        // SAFETY: content is ours and as long as said; a tmpfs takes it in one piece.
        unsafe { nestbox_sys::syscall!(libc::SYS_write, fd, content.as_ptr(), content.len()) }?;
        // SAFETY: numbers only.
        unsafe { nestbox_sys::syscall!(libc::SYS_fchown, fd, uid, gid) }?;
        // SAFETY: numbers only.
        unsafe { nestbox_sys::syscall!(libc::SYS_fchmod, fd, mode) }.map(drop)
    }
}

fn add_proc(fresh: &mut Vec<Fresh>, path: CString, proc: &Proc, ids: Ids) -> Result<(), Fault> {
    let below = |name: &[u8]| c_string(&[path.to_bytes(), b"/", name].concat());
    let mut covers = Vec::new();
    for name in &proc.masked {
        let path = below(name)?;
        match fs::symlink_metadata(path.to_string_lossy().as_ref()) {
            Ok(found) if found.is_dir() => covers.push(Fresh::Mount {
                kind: c"tmpfs",
                path,
                flags: PROC_FLAGS | libc::MS_RDONLY,
                options: c"mode=0555,size=4k,nr_inodes=2".to_owned(),
            }),
            Ok(_) => covers.push(Fresh::Cover(path)),
            Err(_) => {}
        }
    }
    for name in &proc.read_only {
        let path = below(name)?;
        if fs::symlink_metadata(path.to_string_lossy().as_ref()).is_ok() {
            covers.push(Fresh::ReadOnly(path));
        }
    }
    let hidden = if ids.privileged { c"hidepid=invisible,gid=0" } else { c"hidepid=ptraceable" };
    fresh.push(Fresh::Mount { kind: c"proc", path, flags: PROC_FLAGS, options: hidden.to_owned() });
    fresh.append(&mut covers);
    Ok(())
}

fn fresh_tmpfs(path: CString, tmpfs: &Tmpfs, plan: &Plan, ids: Ids) -> Result<Fresh, Fault> {
    let limit = plan.limits.and_then(|limits| limits.disk);
    let size = match (tmpfs.size, limit) {
        (0, limit) => limit,
        (size, limit) => Some(limit.map_or(size, |limit| limit.min(size))),
    };
    let [uid, gid] = ids.outer;
    let mut options = format!("mode={:o},uid={uid},gid={gid}", tmpfs.mode);
    if let Some(size) = size {
        let _ = write!(options, ",size={size}");
    }
    if tmpfs.inodes > 0 {
        let _ = write!(options, ",nr_inodes={}", tmpfs.inodes);
    }
    let flags = libc::MS_NOSUID | libc::MS_NODEV | if tmpfs.exec { 0 } else { libc::MS_NOEXEC };
    Ok(Fresh::Mount { kind: c"tmpfs", path, flags, options: c_string(options.as_bytes())? })
}
