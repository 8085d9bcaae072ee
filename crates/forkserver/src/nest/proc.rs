//! The nest's own proc, and what of it is covered.
//!
//! Promises: what the plan lists and this machine has is covered, or the launch fails. [`Masks`] are made once per template;
//! [`mount_masked`] runs in init and only reads.

use std::ffi::{CStr, CString};

use nestbox_protocol::{Proc, Step};
use nestbox_sys::mount::{mount, mount_flags, open_at};

use super::{join, kind_of, leave};
use crate::fault::{At, Fault};
use crate::launch::Ids;
use crate::report::Marks;
use crate::tree::PROC_FLAGS;

/// What covers a file of proc, where the tree has it.
const NULL_DEVICE: &CStr = c"/dev/null";

/// How one entry of proc is covered.
#[derive(Debug)]
enum Mask {
    /// By the null device, or by an empty file where the policy shows no devices.
    File(CString),
    /// By an empty, read-only tmpfs.
    Directory(CString),
    /// By itself, read-only.
    ReadOnly(CString),
}

/// What of proc is covered.
#[derive(Debug)]
pub(super) struct Masks {
    entries: Vec<Mask>,
    /// The tree has a null device to cover files with.
    null_device: bool,
}

impl Masks {
    /// Those of the plan that apply to the proc at `path`, which is the template's for now.
    pub(super) fn new<'a>(path: &[u8], proc: &'a Proc) -> Result<Self, Fault<'a>> {
        let mut entries = Vec::new();
        for masked in &proc.masked {
            entries.extend(mask(path, masked)?);
        }
        for read_only in &proc.read_only {
            let inside = join(path, read_only)?;
            if kind_of(&inside, read_only)?.is_some() {
                entries.push(Mask::ReadOnly(inside));
            }
        }
        let null_device = kind_of(NULL_DEVICE, NULL_DEVICE.to_bytes())? == Some(libc::S_IFCHR);
        Ok(Self { entries, null_device })
    }
}

fn mask<'a>(base: &[u8], name: &'a [u8]) -> Result<Option<Mask>, Fault<'a>> {
    let inside = join(base, name)?;
    Ok(match kind_of(&inside, name)? {
        Some(libc::S_IFDIR) => Some(Mask::Directory(inside)),
        Some(_) => Some(Mask::File(inside)),
        None => None,
    })
}

/// Mounts it at `path` and covers what is to be covered.
pub(super) fn mount_masked<'a>(
    path: &'a CStr,
    masks: &'a Masks,
    ids: Ids,
    marks: &mut Marks,
) -> Result<(), Fault<'a>> {
    let cover_with = if masks.null_device { NULL_DEVICE } else { empty_file(path)? };
    mount(c"proc", path, c"proc", PROC_FLAGS, hidden_from(ids)).at(
        Step::MountProc,
        "mount",
        path.to_bytes(),
    )?;
    marks.add(Step::MountProc);
    for mask in &masks.entries {
        cover(mask, cover_with)?;
    }
    if !masks.null_device {
        leave(Step::MaskProc)?;
    }
    marks.add(Step::MaskProc);
    Ok(())
}

/// The options of a nest's proc: it shows who reads it the processes that they could trace, so not init, but init all.
/// Under an unprivileged host init owns the sandboxee's user namespace and may trace whoever is there. Under a root host it
/// may not, and is told apart by its group, which no sandboxee has.
fn hidden_from(ids: Ids) -> &'static CStr {
    if ids.privileged { c"hidepid=invisible,gid=0" } else { c"hidepid=ptraceable" }
}

/// Makes an empty, read-only file that no path leads to: on a tmpfs at `path`, which proc is then mounted over. Goes
/// there, so that the name it answers leads to the file all the same.
fn empty_file(path: &CStr) -> Result<&'static CStr, Fault<'_>> {
    const NAME: &CStr = c"empty";
    let step = Step::MaskProc;
    mount(c"tmpfs", path, c"tmpfs", PROC_FLAGS, c"mode=0555,size=4k,nr_inodes=2").at(
        step,
        "mount",
        path.to_bytes(),
    )?;
    // SAFETY: a C string.
    unsafe { nestbox_sys::syscall!(libc::SYS_chdir, path.as_ptr()) }.at(step, "chdir", path.to_bytes())?;
    open_at(libc::AT_FDCWD, NAME, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o444, 0).at(
        step,
        "openat2",
        path.to_bytes(),
    )?;
    mount(c"tmpfs", c".", c"tmpfs", libc::MS_REMOUNT | libc::MS_RDONLY | PROC_FLAGS, c"").at(
        step,
        "mount",
        path.to_bytes(),
    )?;
    Ok(NAME)
}

fn cover<'a>(mask: &'a Mask, with: &CStr) -> Result<(), Fault<'a>> {
    let step = Step::MaskProc;
    match mask {
        Mask::File(path) => mount_flags(with, path, libc::MS_BIND).at(step, "mount", path.to_bytes()),
        Mask::Directory(path) => {
            let flags = PROC_FLAGS | libc::MS_RDONLY;
            mount(c"tmpfs", path, c"tmpfs", flags, c"mode=0555,size=4k,nr_inodes=2").at(
                step,
                "mount",
                path.to_bytes(),
            )
        }
        Mask::ReadOnly(path) => {
            mount_flags(path, path, libc::MS_BIND).at(step, "mount", path.to_bytes())?;
            let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | PROC_FLAGS;
            mount_flags(c"none", path, flags).at(step, "mount", path.to_bytes())
        }
    }
}
