//! What `proc: 'fresh'` brings: a proc of each nest's own, and what of it is covered.
//!
//! Called by [`crate::resolve`]; the fork server mounts it, and covers what is listed.

use std::fs;
use std::path::Path;

use nestbox_protocol::Proc;

use crate::layout::{Entry, Layout};

/// What of a fresh proc is covered: what anyone may read there and tells about the machine or its owner, and what acts on
/// the machine. Each costs every launch some 5 µs (a directory 13), so what is only for root's eyes is left to the kernel,
/// except where a single slip would be costly; and so are /proc/bus, /proc/fs and /proc/irq, which runtimes protect whose
/// containers have the host's root: in a nest they belong to an id that it doesn't have.
const MASKED: [&str; 9] = [
    "acpi",
    "asound",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "sysrq-trigger",
    "timer_stats",
];

/// What of a fresh proc is read-only. The sandboxee has the id that owns its namespaces' sysctls.
const READ_ONLY: [&str; 1] = ["sys"];

/// Puts it into the layout. Only what there is on this host is listed, and no empty directory, of which most hosts have one.
pub(super) fn put(layout: &mut Layout) {
    let present = |names: &[&str]| {
        let names = names.iter().filter(|name| {
            let path = Path::new("/proc").join(name);
            path.symlink_metadata().is_ok()
                && !fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
        });
        names.map(|name| name.as_bytes().to_vec()).collect()
    };
    let proc = Proc { masked: present(&MASKED), read_only: present(&READ_ONLY) };
    layout.put_base("/proc", Entry::Proc(proc));
}

#[cfg(test)]
mod tests {
    use crate::document::tests::host_system;
    use crate::resolve::tests::{name_of, resolve, step};
    use nestbox_protocol::mount::Kind;
    use std::path::Path;

    #[test]
    fn covers_what_there_is() {
        let resolved = resolve(&host_system()).expect("resolves");
        let Some(Kind::Proc(proc)) = step(&resolved.plan.nest_mounts, "/proc") else { panic!("a proc") };
        assert_eq!(proc.read_only, [b"sys"]);
        assert_eq!(proc.masked.contains(&b"kcore".to_vec()), Path::new("/proc/kcore").exists());
        assert!(proc.masked.contains(&b"keys".to_vec()) == Path::new("/proc/keys").exists());
        assert!(proc.masked.iter().all(|name| Path::new("/proc").join(name_of(name)).exists()));
    }
}
