//! What `dev: 'minimal'` brings: the devices that programs expect, the links beside them, a devpts and /dev/shm.
//!
//! Called by [`crate::resolve`], and by the check for the names that are taken by it.

use nestbox_protocol::Step;
use nix::sys::stat::stat;

use super::bind::{device_entry, is_harmless_device};
use super::default_tmpfs;
use crate::document::Policy;
use crate::error::ResolveError;
use crate::layout::{Entry, Layout};

/// The devices, all of them world-accessible and without a side effect.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// The links. Without a proc those into /proc lead nowhere, as on any system before it is mounted.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Names below /dev that nobody else may make. /dev/shm may be overridden.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    DEVICES.into_iter().chain(DEVICE_LINKS.map(|(name, _)| name)).chain(["pts"])
}

/// Puts all of it into the layout.
pub(super) fn put(policy: &Policy, layout: &mut Layout) -> Result<(), ResolveError> {
    layout.put_base("/dev", Entry::Directory);
    for name in DEVICES {
        let path = format!("/dev/{name}");
        let status = stat(path.as_str())
            .map_err(|errno| ResolveError::new(Step::OpenBindSource, errno as i32, "stat", &path))?;
        if !is_harmless_device(&status) {
            return Err(ResolveError::new(Step::VerifyBindSource, libc::ENODEV, "stat", &path)
                .detail("not the device node of that name"));
        }
        layout.put_base(path.clone(), device_entry(&path));
    }
    for (name, points_to) in DEVICE_LINKS {
        layout.put_base(format!("/dev/{name}"), Entry::Symlink { points_to: points_to.to_owned() });
    }
    layout.put_base("/dev/pts", Entry::Devpts);
    layout.put_base("/dev/shm", default_tmpfs(policy, false));
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::document::tests::host_system;
    use crate::resolve::tests::{resolve, step};
    use nestbox_protocol::mount::Kind;

    #[test]
    fn binds_devices_and_makes_links() {
        let resolved = resolve(&host_system()).expect("resolves");
        let template = &resolved.plan.template_mounts;
        assert!(matches!(step(template, "/dev/null"), Some(Kind::Bind(bind)) if bind.device));
        assert!(
            matches!(step(template, "/dev/ptmx"), Some(Kind::Symlink(link)) if link.points_to == b"pts/ptmx")
        );
    }
}
