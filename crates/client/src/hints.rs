//! Hints: what a user can do about a failure, from the step, the errno and the state of this host.
//!
//! [`hint`] is a pure function of a failure and of [`Facts`], what this host's files say, which are read only where the
//! hint depends on them (that takes 100 µs). It names a cause only where the
//! facts show it, so that a hint is never a guess that leads away; where several causes fit, it says so. Called for every
//! failure on its way out.

use std::fs;
use std::path::Path;

use nestbox_protocol::Step;
use nestbox_sys::Errno;

use crate::failure::Failure;

/// What this host says about itself, as far as failures depend on it. `None`: the file is not there.
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not a state")]
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// `kernel.apparmor_restrict_unprivileged_userns` (Ubuntu 23.10 and later).
    pub(crate) apparmor_restricts_userns: Option<u64>,
    /// `kernel.unprivileged_userns_clone` (Debian).
    pub(crate) unprivileged_userns_clone: Option<u64>,
    /// `user.max_user_namespaces`.
    pub(crate) max_user_namespaces: Option<u64>,
    /// `vm.memfd_noexec`.
    pub(crate) memfd_noexec: Option<u64>,
    /// This process has a seccomp filter, as a container's has.
    pub(crate) seccomp: bool,
    /// This process's root is not its mount namespace's: unshare(2) refuses a user namespace to a chrooted caller.
    pub(crate) chrooted: bool,
    /// Something is mounted over parts of `/proc`, as containers do.
    pub(crate) proc_is_masked: bool,
    /// The caller is root.
    pub(crate) root: bool,
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl Facts {
    /// Looks.
    pub(crate) fn gather() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let seccomp = status
            .lines()
            .find_map(|line| line.strip_prefix("Seccomp:"))
            .is_some_and(|mode| mode.trim() != "0");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let init = fs::read_to_string("/proc/1/mountinfo").ok();
        Self {
            apparmor_restricts_userns: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            unprivileged_userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
            memfd_noexec: number("/proc/sys/vm/memfd_noexec"),
            seccomp,
            chrooted: is_chrooted(&mounts, init.as_deref()),
            proc_is_masked: mount_points(&mounts).any(|path| path.starts_with("/proc/")),
            root: nix::unistd::geteuid().is_root(),
        }
    }
}

/// Field 5 of each line of mountinfo (proc_pid_mountinfo(5)).
fn mount_points(mountinfo: &str) -> impl Iterator<Item = &str> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4))
}

/// The id of the mount at `/`.
fn root_mount(mountinfo: &str) -> Option<&str> {
    mountinfo.lines().find(|line| line.split(' ').nth(4) == Some("/"))?.split(' ').next()
}

/// As sandbox2 tells it: a chrooted process sees no mount at `/`, or another than process 1 does.
fn is_chrooted(own: &str, init: Option<&str>) -> bool {
    match (root_mount(own), init.map(root_mount)) {
        (None, _) => !own.is_empty(),
        // Unreadable, or of another mount namespace that we do not see: no evidence.
        (Some(_), None | Some(None)) => false,
        (Some(own), Some(Some(init))) => own != init,
    }
}

/// Adds the hint, if there is one and none yet.
pub(crate) fn advise(failure: Failure) -> Failure {
    if failure.hint.is_some() || failure.errno == Errno::UnknownErrno {
        return failure;
    }
    match hint(&failure, Facts::gather) {
        Some(hint) => failure.advise(hint),
        None => failure,
    }
}

/// Whether a step makes namespaces.
fn makes_namespaces(step: Step) -> bool {
    matches!(
        step,
        Step::CreateInitialNamespaces
            | Step::WriteInitialIdMaps
            | Step::CreateNetworkNamespace
            | Step::ForkTemplate
            | Step::CloneInit
            | Step::CreateUserNamespace
            | Step::WriteIdMaps
    )
}

/// What to do about a failure; `None` if nothing better can be said than what the failure says itself.
pub(crate) fn hint(failure: &Failure, facts: impl FnOnce() -> Facts) -> Option<String> {
    let path = failure.path.as_deref().unwrap_or("it");
    Some(match (failure.step, failure.errno) {
        (_, Errno::EMFILE | Errno::ENFILE | Errno::ETOOMANYREFS) => {
            "too many open fds: raise the limit (`ulimit -n`, LimitNOFILE=), or lower maxConcurrency".into()
        }
        (Step::StartForkserver, errno) => return start_hint(errno, facts),
        (step, Errno::EPERM | Errno::EACCES) if makes_namespaces(step) => return Some(no_namespaces(&facts())),
        (step, Errno::ENOSPC | Errno::EUSERS) if makes_namespaces(step) => {
            if facts().max_user_namespaces == Some(0) {
                "user namespaces are switched off: `sysctl user.max_user_namespaces` is 0".into()
            } else {
                "a namespace limit is reached: raise `sysctl user.max_*_namespaces`, or lower maxConcurrency (user \
                 namespaces also nest at most 32 deep)"
                    .into()
            }
        }
        (Step::CloneInit | Step::CloneSandboxee | Step::ForkTemplate, Errno::EAGAIN) => {
            "no more processes: raise `ulimit -u` (or the container's pids limit), or lower maxConcurrency".into()
        }
        (_, Errno::EAGAIN) if failure.syscall.starts_with("clone") => {
            "no more threads: raise `ulimit -u` (or the container's pids limit)".into()
        }
        (Step::MountTemplateProc | Step::MountProc, Errno::EPERM) => {
            let cause = if facts().proc_is_masked {
                "parts of /proc are covered by other mounts here, as in a container"
            } else {
                "the kernel gives no fresh /proc to who sees none that is complete"
            };
            format!(
                "{cause} (\"mount too revealing\"): use proc('none') in the policy, or run the container with \
                 `--security-opt systempaths=unconfined`"
            )
        }
        (Step::OpenBindSource, Errno::ENOENT) => {
            format!("{path} is not there on the host: correct the source, or make the bind optional")
        }
        // move_mount(2) says EINVAL where mount(2) says ENOTDIR.
        (
            Step::OpenBindSource | Step::AttachBind | Step::AttachLaunchBind,
            Errno::ENOTDIR | Errno::EISDIR | Errno::EINVAL,
        ) => {
            format!("{path} is a file where a directory is expected, or the other way round")
        }
        (Step::OpenBindSource, Errno::EACCES) => {
            format!("the user who runs this process may not reach {path}")
        }
        (Step::VerifyBindSource, _) => {
            format!("{path} was replaced after the policy was resolved: try again, and keep bind sources in place")
        }
        (Step::ChangeDirectory, Errno::ENOENT | Errno::ENOTDIR) => {
            format!("the sandbox has no directory {path}: cwd is a path inside; bind it, or add a tmpfs")
        }
        (Step::ChangeDirectory, Errno::EACCES) => {
            format!("the program's user may not enter {path}")
        }
        (Step::Exec, errno) => return exec_hint(failure, errno),
        (Step::IdMapBind, Errno::EINVAL | Errno::EPERM) => {
            "the file system of the source can't be id-mapped; make it writable for the ids of hostIds instead".into()
        }
        (Step::SetIds | Step::WriteIdMaps, Errno::EINVAL) => {
            if !facts().root {
                return None;
            }
            "the ids of hostIds are not mapped where this process runs (a container maps only some)".into()
        }
        (Step::MountTmpfs | Step::WriteFile | Step::WriteLaunchFile | Step::CreateDirectory, Errno::ENOSPC) => {
            "the sandbox's tmpfs is full: raise limits.disk, or the tmpfs's size".into()
        }
        _ => return None,
    })
}

fn start_hint(errno: Errno, facts: impl FnOnce() -> Facts) -> Option<String> {
    Some(match errno {
        Errno::EACCES | Errno::EPERM => {
            if facts().memfd_noexec.is_some_and(|level| level > 0) {
                "vm.memfd_noexec forbids executing the embedded fork server, and no temporary directory is executable: \
                 set TMPDIR to one that is, or name the fork server in NESTBOX_FORKSERVER"
                    .into()
            } else {
                "the system forbids executing the fork server: name an executable file in NESTBOX_FORKSERVER"
                    .into()
            }
        }
        Errno::ENOENT => "no such fork server: correct NESTBOX_FORKSERVER or forkserverPath".into(),
        Errno::ENOEXEC => "the fork server is built for another machine".into(),
        Errno::EAGAIN => {
            "no more processes or threads: raise `ulimit -u` (or the container's pids limit)".into()
        }
        _ => return None,
    })
}

/// Why no user namespace is to be had.
fn no_namespaces(facts: &Facts) -> String {
    if facts.chrooted {
        return "this process is chrooted, and the kernel gives no user namespace to a chrooted process: use \
                pivot_root or a mount namespace instead of chroot"
            .into();
    }
    if facts.unprivileged_userns_clone == Some(0) && !facts.root {
        return "unprivileged user namespaces are switched off: `sysctl kernel.unprivileged_userns_clone=1`"
            .into();
    }
    if facts.max_user_namespaces == Some(0) {
        return "user namespaces are switched off: `sysctl user.max_user_namespaces` is 0".into();
    }
    if facts.apparmor_restricts_userns == Some(1) && !facts.root {
        return "AppArmor restricts unprivileged user namespaces (Ubuntu 23.10 and later): add a profile with `userns,` \
                for the Node.js executable, or `sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
            .into();
    }
    if facts.seccomp {
        return "a seccomp filter is on this process, and those of containers refuse namespaces: run the container with \
                `--security-opt seccomp=unconfined`, or a profile that allows clone3, unshare, setns and mount"
            .into();
    }
    "the system refuses namespaces to this user; look for a security module (SELinux, AppArmor) or a missing \
     CAP_SYS_ADMIN"
        .into()
}

fn exec_hint(failure: &Failure, errno: Errno) -> Option<String> {
    let path = failure.path.as_deref().unwrap_or("the program");
    Some(match errno {
        Errno::ENOENT if failure.detail.is_some() || is_on_host(path) => format!(
            "{path}, or the interpreter that it names (an ELF interpreter such as /lib64/ld-linux-x86-64.so.2, or that of \
             a `#!` line), is not in the sandbox: add librariesFor(), or bind what is missing"
        ),
        Errno::ENOENT => {
            format!("the sandbox has no {path}: paths and PATH are those inside, not the host's")
        }
        Errno::EACCES => format!(
            "{path} is not executable, or lies on a mount without exec: bind it with {{ exec: true }}"
        ),
        Errno::ENOEXEC => {
            format!("{path} has no format that this machine executes; a script needs a `#!` line")
        }
        Errno::E2BIG => "arguments and environment together are larger than the kernel takes".into(),
        _ => return None,
    })
}

/// A file that is there on the host, so that its absence inside is not a misspelling.
fn is_on_host(path: &str) -> bool {
    Path::new(path).is_absolute() && Path::new(path).exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Code;

    fn of(step: Step, errno: Errno, facts: &Facts) -> String {
        hint(&Failure::system(Code::Spawn, step, "clone3", errno).on("/x"), || facts.clone())
            .unwrap_or_default()
    }

    #[test]
    fn forbidden_user_namespaces_name_their_cause() {
        let step = Step::CreateInitialNamespaces;
        let with = |change: fn(&mut Facts)| {
            let mut facts = Facts::default();
            change(&mut facts);
            of(step, Errno::EPERM, &facts)
        };
        assert!(with(|facts| facts.apparmor_restricts_userns = Some(1)).contains("AppArmor"));
        assert!(
            with(|facts| facts.unprivileged_userns_clone = Some(0)).contains("unprivileged_userns_clone=1")
        );
        assert!(with(|facts| facts.max_user_namespaces = Some(0)).contains("max_user_namespaces"));
        assert!(with(|facts| facts.seccomp = true).contains("seccomp=unconfined"));
        assert!(with(|facts| facts.chrooted = true).contains("chrooted"));
        assert!(with(|_| ()).contains("security module"));
    }

    #[test]
    fn limits_and_paths() {
        let none = Facts::default();
        assert!(of(Step::CloneInit, Errno::ENOSPC, &none).contains("max_*_namespaces"));
        assert!(of(Step::CloneInit, Errno::EMFILE, &none).contains("ulimit -n"));
        assert!(of(Step::CloneInit, Errno::EAGAIN, &none).contains("ulimit -u"));
        assert!(of(Step::OpenBindSource, Errno::ENOENT, &none).contains("/x is not there"));
        assert!(of(Step::ChangeDirectory, Errno::ENOENT, &none).contains("no directory /x"));
        let masked = Facts { proc_is_masked: true, ..Facts::default() };
        assert!(of(Step::MountTemplateProc, Errno::EPERM, &masked).contains("as in a container"));
        let strict = Facts { memfd_noexec: Some(2), ..Facts::default() };
        assert!(of(Step::StartForkserver, Errno::EACCES, &strict).contains("memfd_noexec"));
        assert_eq!(of(Step::SetHostname, Errno::EIO, &none), "");
    }

    #[test]
    fn exec_failures() {
        let missing = Failure::system(Code::Exec, Step::Exec, "execveat", Errno::ENOENT);
        let inside = hint(&missing.clone().on("/nonexistent/x"), Facts::default).expect("a hint");
        assert!(inside.contains("has no /nonexistent/x"));
        let host = hint(&missing.on("/proc/self/exe"), Facts::default).expect("a hint");
        assert!(host.contains("interpreter"));
    }

    #[test]
    fn a_chroot_is_told_by_mount_ids() {
        let line = |id: u32, point: &str| format!("{id} 1 8:1 / {point} rw - ext4 /dev/sda1 rw\n");
        assert!(!is_chrooted(&line(20, "/"), Some(&line(20, "/"))));
        assert!(is_chrooted(&line(25, "/"), Some(&line(20, "/"))));
        assert!(is_chrooted(&line(25, "/proc"), Some(&line(20, "/"))));
        assert!(!is_chrooted(&line(25, "/"), None), "no evidence");
    }
}
