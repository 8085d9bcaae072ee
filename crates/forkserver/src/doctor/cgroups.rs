//! Whether this process may make cgroups below its own, and with which controllers: what it takes to bound the memory of many
//! processes together.
//!
//! The only way to know is to make one; it is empty and removed at once.

use std::ffi::CString;
use std::fs;

use nestbox_sys::Errno;

use super::{Found, fault};
use crate::fault::Fault;
use crate::server::Server;

/// The controllers that limits are made of.
const WANTED: [&str; 3] = ["memory", "pids", "cpu"];

/// One mounted hierarchy, from a line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy<'a> {
    /// The cgroup that is shown at `point`.
    root: &'a str,
    point: &'a str,
    version: u8,
    /// Of a version 1 hierarchy: its controllers, among other options.
    options: &'a str,
}

fn hierarchy(line: &str) -> Option<Hierarchy<'_>> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, mount.next()?);
    let mut file_system = file_system.split(' ');
    let version = match file_system.next()? {
        "cgroup2" => 2,
        "cgroup" => 1,
        _ => return None,
    };
    let options = file_system.nth(1).unwrap_or_default();
    Some(Hierarchy { root, point, version, options })
}

impl Hierarchy<'_> {
    /// Where a cgroup of this hierarchy is found; `None` if it lies outside of what is mounted.
    fn directory(&self, cgroup: &str) -> Option<String> {
        let below = if self.root == "/" { Some(cgroup) } else { cgroup.strip_prefix(self.root) }?;
        Some(format!("{}{}", self.point, below.trim_end_matches('/')))
    }
}

/// This process's cgroup in the hierarchy with that controller; of version 2 with an empty name.
fn own_cgroup<'a>(list: &'a str, controller: &str) -> Option<&'a str> {
    list.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

fn read(path: &'static str) -> Result<String, Fault<'static>> {
    fs::read_to_string(path).map_err(|error| {
        fault(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)), "open", path.as_bytes())
    })
}

/// A fact that no system call has told.
fn absent(detail: &'static str) -> Fault<'static> {
    fault(Errno::UnknownErrno, "", b"").detail(detail)
}

/// Makes a cgroup in `directory` and removes it.
fn try_to_make(directory: &str) -> Result<(), Fault<'static>> {
    let path = format!("{directory}/nestbox-doctor-{}", nix::unistd::getpid());
    let failed = |syscall, errno| fault(errno, syscall, path.clone().into_bytes().leak());
    let name = CString::new(path.clone()).map_err(|_| failed("mkdir", Errno::EINVAL))?;
    // SAFETY: a C string.
    Errno::result(unsafe { libc::mkdir(name.as_ptr(), 0o755) }).map_err(|errno| failed("mkdir", errno))?;
    // SAFETY: a C string.
    Errno::result(unsafe { libc::rmdir(name.as_ptr()) }).map_err(|errno| failed("rmdir", errno)).map(drop)
}

pub(super) fn version_2(_: Server) -> Found {
    let (own, mounts) = (read("/proc/self/cgroup")?, read("/proc/self/mountinfo")?);
    let cgroup = own_cgroup(&own, "").ok_or_else(|| absent("there is no cgroup of version 2"))?;
    let mounted = mounts
        .lines()
        .filter_map(hierarchy)
        .find(|hierarchy| hierarchy.version == 2)
        .ok_or_else(|| absent("no cgroup file system of version 2 is mounted"))?;
    let directory = mounted
        .directory(cgroup)
        .ok_or_else(|| absent("what is mounted does not show this process's cgroup"))?;
    try_to_make(&directory)?;
    let controllers = fs::read_to_string(format!("{directory}/cgroup.controllers")).unwrap_or_default();
    let have: Vec<_> =
        WANTED.into_iter().filter(|name| controllers.split_whitespace().any(|it| it == *name)).collect();
    if have.contains(&"memory") {
        return Ok(format!("{} in {directory}", have.join(", ")));
    }
    Err(absent(
        "cgroups can be made, but without the memory controller (version 1 has it, or it is not delegated)",
    ))
}

pub(super) fn version_1(_: Server) -> Found {
    let (own, mounts) = (read("/proc/self/cgroup")?, read("/proc/self/mountinfo")?);
    let mut have = Vec::new();
    let mut failed = None;
    for controller in WANTED {
        let Some(cgroup) = own_cgroup(&own, controller) else { continue };
        let mounted = mounts.lines().filter_map(hierarchy).find(|hierarchy| {
            hierarchy.version == 1 && hierarchy.options.split(',').any(|option| option == controller)
        });
        let Some(directory) = mounted.and_then(|mounted| mounted.directory(cgroup)) else { continue };
        match try_to_make(&directory) {
            Ok(()) => have.push(controller),
            Err(fault) => failed = failed.or(Some(fault)),
        }
    }
    match failed {
        _ if !have.is_empty() => Ok(have.join(", ")),
        Some(fault) => Err(fault),
        None => Err(absent("no controller is in a mounted hierarchy of version 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
    const MEMORY: &str = "41 30 0:33 /docker/a /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";

    #[test]
    fn lines_of_mountinfo() {
        let unified = hierarchy(UNIFIED).expect("one");
        assert_eq!((unified.version, unified.point), (2, "/sys/fs/cgroup"));
        assert_eq!(unified.directory("/").as_deref(), Some("/sys/fs/cgroup"));
        assert_eq!(unified.directory("/a/b").as_deref(), Some("/sys/fs/cgroup/a/b"));
        let memory = hierarchy(MEMORY).expect("one");
        assert_eq!((memory.version, memory.options), (1, "rw,memory"));
        assert_eq!(memory.directory("/docker/a/b").as_deref(), Some("/sys/fs/cgroup/memory/b"));
        assert_eq!(memory.directory("/other"), None);
        assert_eq!(hierarchy("30 24 0:26 / /proc rw - proc proc rw"), None);
    }

    #[test]
    fn own_cgroups() {
        let list = "9:name=systemd:/\n4:cpu,memory:/a:b\n0::/c\n";
        assert_eq!(own_cgroup(list, "memory"), Some("/a:b"));
        assert_eq!(own_cgroup(list, ""), Some("/c"));
        assert_eq!(own_cgroup(list, "pids"), None);
    }
}
