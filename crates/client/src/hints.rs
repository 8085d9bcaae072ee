//! Hints: what a user can do about a failure, from the step, the errno and the state of this host.
//!
//! [`hint`] is a pure function of a failure and of [`Facts`], what this host's files say, which are read only where the
//! hint depends on them (that takes 100 µs). It names a cause only where the
//! facts show it, so that a hint is never a guess that leads away; where several causes fit, it says so. What is the
//! system's doing is a [`Blocker`], whose text it is, and which [`crate::doctor`] names too. Called for every failure on
//! its way out.

use std::path::Path;

use nestbox_protocol::Step;
use nestbox_sys::Errno;

use crate::blockers::{self, Blocker, Facts};
use crate::failure::{Code, Failure};

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

/// The same for a launch without a sandbox: what a sandbox lacks is no advice to a program that has none.
pub(crate) fn advise_outside(failure: Failure) -> Failure {
    match (failure.step, failure.errno) {
        (Step::ChangeDirectory, Errno::ENOENT | Errno::ENOTDIR) => {
            let path = failure.path.as_deref().unwrap_or("it");
            let hint = format!("there is no directory {path} on the host: correct cwd");
            failure.advise(hint)
        }
        _ if failure.code == Code::Exec => failure,
        _ => advise(failure),
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

/// Whether a step uses the power over a new mount namespace, which a security module may withhold.
fn mounts_initially(step: Step) -> bool {
    matches!(step, Step::MountInitialRoot | Step::PivotRoot | Step::MountRoot)
}

/// Whether it is a call for which the kernel asks a root for a capability, and which an ordinary user does not make, or not for other
/// ids than its own.
fn needs_capability(failure: &Failure) -> bool {
    failure.errno == Errno::EPERM
        && matches!(
            (failure.step, failure.syscall.as_str()),
            (Step::WriteInitialIdMaps, _)
                | (Step::MapFds, "fchown")
                | (Step::CreateInitialNamespaces, "setresuid")
        )
}

/// Which property of this system a failure is due to, if it is.
pub(crate) fn blocker(failure: &Failure, facts: impl Fn() -> Facts) -> Option<Blocker> {
    if needs_capability(failure)
        && let Some(lacking) = facts().lacking
    {
        return Some(Blocker::MissingCapabilities(lacking));
    }
    Some(match (failure.step, failure.errno) {
        (_, Errno::EMFILE | Errno::ENFILE | Errno::ETOOMANYREFS) => Blocker::OpenFilesLimit,
        // To a number beyond the limit.
        (Step::MapFds, Errno::EBADF) if failure.syscall == "dup3" => Blocker::OpenFilesLimit,
        (Step::StartForkserver, Errno::EACCES | Errno::EPERM) => {
            return facts().memfd_noexec.is_some_and(|level| level > 0).then_some(Blocker::MemfdNoexec);
        }
        // fork(2) says ENOMEM where the pid namespace has ended, EAGAIN at a limit.
        (Step::CloneInit | Step::CloneSandboxee | Step::ForkTemplate, Errno::EAGAIN) => Blocker::ProcessLimit,
        (_, Errno::EAGAIN) if matches!(failure.syscall.as_str(), "clone" | "clone3" | "fork") => {
            Blocker::ProcessLimit
        }
        (step, Errno::EPERM | Errno::EACCES) if makes_namespaces(step) || mounts_initially(step) => {
            blockers::of_namespaces(&facts())
        }
        (step, Errno::ENOSPC | Errno::EUSERS) if makes_namespaces(step) => {
            blockers::of_namespace_limits(&facts())
        }
        (Step::WriteInitialIdMaps | Step::WriteIdMaps, Errno::ENOENT) => Blocker::NoProc,
        (Step::MakeRuleset, Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM | Errno::EACCES) => {
            if facts().seccomp_refuses { Blocker::Seccomp } else { Blocker::NoLandlock }
        }
        // Docker's profile answers it to clone3, so that C libraries fall back to clone.
        (_, Errno::ENOSYS) => {
            let facts = facts();
            if facts.seccomp || facts.seccomp_refuses { Blocker::Seccomp } else { Blocker::OldKernel }
        }
        (Step::MountTemplateProc | Step::MountProc, Errno::EPERM) => {
            if !facts().proc_is_masked {
                return None;
            }
            Blocker::MaskedProc
        }
        _ => return None,
    })
}

/// What to do about a failure; `None` if nothing better can be said than what the failure says itself.
pub(crate) fn hint(failure: &Failure, facts: impl Fn() -> Facts) -> Option<String> {
    if let Some(blocker) = blocker(failure, &facts) {
        return Some(blocker.hint().into_owned());
    }
    let path = failure.path.as_deref().unwrap_or("it");
    Some(match (failure.step, failure.errno) {
        (Step::StartForkserver, errno) => return start_hint(errno),
        (Step::MapFds, Errno::EPERM) if failure.syscall == "fchown" && !facts().root => {
            "this process was root when it launched first, and has given up rights since: do that before the first launch \
             (process.setgid(), process.setuid())"
                .into()
        }
        (Step::MapFds, Errno::EBADF) => "it is not open in this process: pass a descriptor that is".into(),
        (Step::MountTemplateProc | Step::MountProc, Errno::EPERM) => {
            "the kernel gives no fresh /proc to who sees none that is complete (\"mount too revealing\"): use \
             proc('none') in the policy, or run the container with `--security-opt systempaths=unconfined`"
                .into()
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
        (Step::OpenOutputTarget, Errno::ENOENT) => {
            format!("the directory of {path} is not there on the host: make it, or correct the output's `to`")
        }
        (Step::OpenOutputTarget, Errno::ENOTDIR) => {
            format!("what {path} is to be made in is no directory of the host: correct the output's `to`")
        }
        (Step::OpenOutputTarget, Errno::EEXIST) => {
            format!("an output never replaces a file: remove {path}, or name another file in the output's `to`")
        }
        (Step::OpenOutputTarget, Errno::EACCES | Errno::EPERM | Errno::EROFS) => {
            format!("the user who runs this process may not make a file where {path} leads: correct the output's `to`")
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
        (Step::ScheduleCores, Errno::ENODEV) => {
            "no core of this machine runs two threads at once (SMT is off, or there is none), so nothing is to be kept \
             apart: leave out coreScheduling()"
                .into()
        }
        (Step::ScheduleCores, Errno::EINVAL) => {
            "the kernel has no core scheduling: it needs Linux 5.14 and CONFIG_SCHED_CORE. Without it, switch SMT off \
             (`nosmt`) and leave out coreScheduling()"
                .into()
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

fn start_hint(errno: Errno) -> Option<String> {
    Some(match errno {
        Errno::EACCES | Errno::EPERM => {
            "the system forbids executing the fork server: name an executable file in NESTBOX_FORKSERVER"
                .into()
        }
        Errno::ENOENT => "no such fork server: correct NESTBOX_FORKSERVER or forkserverPath".into(),
        Errno::ENOEXEC => "the fork server is built for another machine".into(),
        Errno::EAGAIN => Blocker::ProcessLimit.hint().into_owned(),
        _ => return None,
    })
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
        Errno::E2BIG if failure.detail.is_some() => {
            "the kernel takes at most 128 KiB (32 pages) of each, with the NUL at its end: hand over what is longer as \
             `input`, or as one of `files`"
                .into()
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
    use crate::capabilities;

    fn of(step: Step, errno: Errno, facts: &Facts) -> String {
        hint(&Failure::system(Code::Spawn, step, "clone3", errno).on("/x"), || facts.clone())
            .unwrap_or_default()
    }

    #[test]
    fn forbidden_user_namespaces_name_their_cause() {
        let denied = |step, facts: &Facts| of(step, Errno::EPERM, facts);
        let restricted = Facts { apparmor_restricts_userns: Some(1), ..Facts::default() };
        // Ubuntu 24.04 lets the namespace be made, and withholds what it is for.
        for step in [Step::CreateInitialNamespaces, Step::WriteInitialIdMaps, Step::MountInitialRoot] {
            assert!(denied(step, &restricted).contains("AppArmor"));
        }
        let filtered = Facts { seccomp: true, ..Facts::default() };
        assert!(denied(Step::CreateInitialNamespaces, &filtered).contains("seccomp=unconfined"));
        assert!(of(Step::CloneInit, Errno::ENOSYS, &filtered).contains("seccomp=unconfined"));
        assert!(of(Step::CloneInit, Errno::ENOSYS, &Facts::default()).contains("5.12"));
        assert!(denied(Step::CloneInit, &Facts::default()).contains("security module"));
    }

    #[test]
    fn limits_and_paths() {
        let none = Facts::default();
        assert!(of(Step::CloneInit, Errno::ENOSPC, &none).contains("max_*_namespaces"));
        assert!(of(Step::CloneInit, Errno::EMFILE, &none).contains("ulimit -n"));
        assert!(of(Step::MapFds, Errno::EBADF, &none).contains("not open in this process"));
        assert!(of(Step::CloneInit, Errno::EAGAIN, &none).contains("ulimit -u"));
        assert!(of(Step::OpenBindSource, Errno::ENOENT, &none).contains("/x is not there"));
        assert!(of(Step::OpenOutputTarget, Errno::ENOENT, &none).contains("the directory of /x"));
        assert!(of(Step::OpenOutputTarget, Errno::EEXIST, &none).contains("remove /x"));
        assert!(of(Step::ChangeDirectory, Errno::ENOENT, &none).contains("no directory /x"));
        let masked = Facts { proc_is_masked: true, ..Facts::default() };
        assert!(of(Step::MountTemplateProc, Errno::EPERM, &masked).contains("as in a container"));
        let strict = Facts { memfd_noexec: Some(2), ..Facts::default() };
        assert!(of(Step::StartForkserver, Errno::EACCES, &strict).contains("memfd_noexec"));
        assert_eq!(of(Step::SetHostname, Errno::EIO, &none), "");
    }

    #[test]
    fn a_launch_without_a_sandbox_is_told_of_none() {
        let of = |step, errno| {
            let failure = Failure::system(Code::Spawn, step, "chdir", errno).on("/x");
            advise_outside(failure).hint.unwrap_or_default()
        };
        for errno in [Errno::ENOENT, Errno::ENOTDIR] {
            assert_eq!(of(Step::ChangeDirectory, errno), "there is no directory /x on the host: correct cwd");
        }
        assert!(of(Step::ChangeDirectory, Errno::EACCES).contains("may not enter /x"));
        let beyond = Failure::system(Code::Spawn, Step::MapFds, "dup3", Errno::EBADF);
        assert!(advise_outside(beyond).hint.is_some_and(|hint| hint.contains("ulimit -n")));
    }

    #[test]
    fn a_root_is_told_what_it_lacks() {
        let failed = |step, syscall, facts: &Facts| {
            let failure = Failure::system(Code::Spawn, step, syscall, Errno::EPERM);
            hint(&failure, || facts.clone()).unwrap_or_default()
        };
        let lacking = Some(capabilities::tests::SOME);
        let facts = Facts { root: true, lacking, ..Facts::default() };
        for (step, syscall) in [
            (Step::MapFds, "fchown"),
            (Step::WriteInitialIdMaps, "write"),
            (Step::CreateInitialNamespaces, "setresuid"),
        ] {
            let hint = failed(step, syscall, &facts);
            assert!(hint.contains("without CAP_CHOWN (") && hint.contains("CAP_SETFCAP"), "{hint}");
        }
        // What needs no capability fails for another reason.
        let refused = failed(Step::CreateInitialNamespaces, "unshare", &facts);
        assert!(refused.contains("security module"), "{refused}");
        let gave_up = failed(Step::MapFds, "fchown", &Facts::default());
        assert!(gave_up.contains("before the first launch"), "{gave_up}");
    }

    #[test]
    fn exec_failures() {
        let missing = Failure::system(Code::Exec, Step::Exec, "execveat", Errno::ENOENT);
        let inside = hint(&missing.clone().on("/nonexistent/x"), Facts::default).expect("a hint");
        assert!(inside.contains("has no /nonexistent/x"));
        let host = hint(&missing.on("/proc/self/exe"), Facts::default).expect("a hint");
        assert!(host.contains("interpreter"));
        let large = Failure::system(Code::Exec, Step::Exec, "execve", Errno::E2BIG);
        assert!(hint(&large, Facts::default).is_some_and(|hint| hint.contains("together")));
        let one = large.because("one is too long");
        assert!(hint(&one, Facts::default).is_some_and(|hint| hint.contains("128 KiB")));
    }
}
