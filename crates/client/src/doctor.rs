//! Whether sandboxes can be launched on this system, and what keeps them from it.
//!
//! The fork server's executable, started as `doctor`, tries everything that a launch needs in processes that are thrown
//! away; this module starts it, reads what it tells, and adds the cause of each failure and the state of the system's
//! switches and limits. Promises: it always comes to a [`Diagnosis`], for what goes wrong on the way is one of its checks;
//! nothing is left behind. Blocks for some tens of milliseconds: called on a thread of its own by the layers above.

use std::fs;
use std::os::fd::AsFd;

use nestbox_protocol::{Probe, Step, frame};
use nestbox_sys::{Errno, packet, socket};

use crate::blockers::{Blocker, Facts};
use crate::failure::{Code, Failure};
use crate::hints;
use crate::image::{Image, OVERRIDE};
use crate::spawner::{is_forbidden, run_to_end};

/// How one check came out.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It works; with what there is to say about it, which may be nothing.
    Works(String),
    /// It does not.
    Fails(Failure, Option<Blocker>),
    /// It was not tried, for this reason.
    Skipped(String),
}

/// One thing that was tried.
#[derive(Clone, Debug)]
pub struct Check {
    /// A stable name: 'user-namespace'.
    pub name: String,
    /// A launch with the default policy needs it.
    pub required: bool,
    /// How it came out.
    pub outcome: Outcome,
}

/// A switch or limit of this system. `None`: it does not have it.
#[derive(Clone, Debug)]
pub struct Setting {
    /// 'user.max_user_namespaces', 'RLIMIT_NPROC'.
    pub name: String,
    /// As the system gives it.
    pub value: Option<String>,
}

/// The whole of it.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// In the order in which a launch needs them.
    pub checks: Vec<Check>,
    /// What decides about namespaces.
    pub settings: Vec<Setting>,
}

/// Examines this system. `image` is the embedded fork server.
#[must_use]
pub fn diagnose(image: &'static [u8]) -> Diagnosis {
    diagnose_by(&Image::choose(None, image))
}

fn diagnose_by(image: &Image) -> Diagnosis {
    let mut facts = Facts::gather();
    let mut checks = vec![capabilities(&facts)];
    let told = examine(image, &mut checks);
    facts.seccomp_refuses = told.iter().any(|probe| probe.name == "system-calls" && probe.failure.is_some());
    for check in &mut checks {
        explain(&mut check.outcome, &facts);
    }
    checks.extend(told.into_iter().map(|probe| understand(probe, &facts)));
    Diagnosis { checks, settings: settings() }
}

/// What every launch of a root needs. Not tried, for the host's own process would have to try it.
fn capabilities(facts: &Facts) -> Check {
    let outcome = match facts.lacking {
        None if facts.root => Outcome::Works("all that root needs".into()),
        None => Outcome::Works("none is needed".into()),
        Some(missing) => {
            let blocker = Blocker::MissingCapabilities(missing);
            let failure = Failure::fact(Code::Spawn, Step::Unspecified, format!("root without {missing}"))
                .advise(blocker.hint());
            Outcome::Fails(failure, Some(blocker))
        }
    };
    Check { name: "capabilities".into(), required: true, outcome }
}

/// Has the executable try everything. What starting it tells goes to `checks`.
fn examine(image: &Image, checks: &mut Vec<Check>) -> Vec<Probe> {
    let mut check =
        |name: &str, required, outcome| checks.push(Check { name: name.into(), required, outcome });
    let from_memory = match image {
        Image::Path(_) => {
            check("memfd-exec", false, Outcome::Skipped(format!("{OVERRIDE} names the fork server")));
            None
        }
        Image::Embedded(_) => Some("memfd-exec"),
    };
    let first = image.open().and_then(|executable| run(&executable));
    let failed = match (first, from_memory) {
        (Ok(probes), name) => {
            if let Some(name) = name {
                check(name, false, Outcome::Works(String::new()));
            }
            return probes;
        }
        (Err(failure), Some(name)) if is_forbidden(&failure) => {
            check(name, false, Outcome::Fails(failure.clone(), None));
            // What is tried next decides whether that matters.
            match image.open_as_file().map(|executable| executable.and_then(|executable| run(&executable))) {
                Some(Ok(probes)) => {
                    check("temporary-file-exec", true, Outcome::Works(String::new()));
                    return probes;
                }
                Some(Err(failure)) => failure,
                None => failure,
            }
        }
        (Err(failure), _) => failure,
    };
    check("start-forkserver", true, Outcome::Fails(failed, None));
    Vec::new()
}

/// Runs it, and returns what it told.
fn run(executable: &std::os::fd::OwnedFd) -> Result<Vec<Probe>, Failure> {
    let (ours, theirs) = socket::seqpacket_pair()
        .map_err(|errno| Failure::system(Code::ForkServer, Step::StartForkserver, "socketpair", errno))?;
    let mut probes = Vec::new();
    run_to_end(executable, c"doctor", theirs, || {
        let mut buffer = vec![0; frame::PACKET_MAX];
        loop {
            let mut fds = Vec::new();
            match packet::receive(ours.as_fd(), &mut buffer, &mut fds, 0) {
                Ok(packet) if packet.bytes.is_empty() => break,
                Ok(packet) => probes.extend(packet::read_message::<Probe>(packet.bytes, &mut fds)),
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
    })?;
    if probes.is_empty() {
        return Err(Failure::fact(Code::ForkServer, Step::StartForkserver, "it ended without a word"));
    }
    Ok(probes)
}

fn understand(probe: Probe, facts: &Facts) -> Check {
    let Probe { name, required, value, failure, needs } = probe;
    let mut outcome = match failure {
        Some(failure) => Outcome::Fails(Failure::from_step(failure), None),
        None if needs.is_empty() => Outcome::Works(value),
        None => Outcome::Skipped(format!("it needs {needs}")),
    };
    explain(&mut outcome, facts);
    if let Outcome::Fails(failure, blocker @ None) = &mut outcome {
        // Outside the steps of a launch, where only the probe's name tells what the errno means.
        *blocker = match name.as_str() {
            "system-calls" => Some(if failure.errno == Errno::ENOSYS && !facts.seccomp {
                Blocker::OldKernel
            } else {
                Blocker::Seccomp
            }),
            "cgroup-v1" | "cgroup-v2" => Some(Blocker::NoCgroups),
            "landlock" => Some(Blocker::NoLandlock),
            _ => None,
        };
    }
    if name == "landlock"
        && let Outcome::Fails(_, blocker) = &mut outcome
    {
        // ENOSYS is how a kernel says that Landlock was not compiled in, however new it is.
        *blocker = Some(if facts.seccomp_refuses { Blocker::Seccomp } else { Blocker::NoLandlock });
    }
    Check { name, required, outcome }
}

/// Adds the cause, and the hint that an error of a launch would have.
fn explain(outcome: &mut Outcome, facts: &Facts) {
    if let Outcome::Fails(failure, blocker) = outcome {
        *blocker = blocker.or_else(|| hints::blocker(failure, || facts.clone()));
        if failure.hint.is_none() {
            failure.hint = hints::hint(failure, || facts.clone());
        }
    }
}

/// Files whose content is a setting.
const SWITCHES: [(&str, &str); 4] = [
    ("kernel.unprivileged_userns_clone", "/proc/sys/kernel/unprivileged_userns_clone"),
    (
        "kernel.apparmor_restrict_unprivileged_userns",
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
    ),
    ("vm.memfd_noexec", "/proc/sys/vm/memfd_noexec"),
    ("apparmor", "/proc/self/attr/apparmor/current"),
];

fn settings() -> Vec<Setting> {
    let content = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let setting = |name: &str, value| Setting { name: name.to_owned(), value };
    let mut settings: Vec<_> = SWITCHES.iter().map(|(name, path)| setting(name, content(path))).collect();
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let path = format!("/proc/sys/user/max_{name}_namespaces");
        settings.push(setting(&format!("user.max_{name}_namespaces"), content(&path)));
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let seccomp =
        status.lines().find_map(|line| line.strip_prefix("Seccomp:")).map(|mode| match mode.trim() {
            "0" => "none".to_owned(),
            "2" => "filter".to_owned(),
            other => format!("mode {other}"),
        });
    settings.push(setting("seccomp", seccomp));
    for (name, kind) in [("RLIMIT_NPROC", libc::RLIMIT_NPROC), ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE)] {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a struct of ours.
        let known = unsafe { libc::getrlimit(kind, &raw mut limit) } == 0;
        let text = if limit.rlim_cur == libc::RLIM_INFINITY {
            "unlimited".to_owned()
        } else {
            limit.rlim_cur.to_string()
        };
        settings.push(setting(name, known.then_some(text)));
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(name: &str, step: Step, errno: Errno) -> Probe {
        let failure = nestbox_protocol::Failure {
            step: step.into(),
            errno: errno as i32,
            syscall: "mount".into(),
            ..nestbox_protocol::Failure::default()
        };
        Probe { name: name.into(), required: true, failure: Some(failure), ..Probe::default() }
    }

    fn blocker(probe: Probe, facts: &Facts) -> Option<Blocker> {
        match understand(probe, facts).outcome {
            Outcome::Fails(_, blocker) => blocker,
            outcome => panic!("{outcome:?}"),
        }
    }

    #[test]
    fn failures_have_causes() {
        let none = Facts::default();
        let masked = Facts { proc_is_masked: true, ..Facts::default() };
        let proc = probe("proc", Step::MountTemplateProc, Errno::EPERM);
        assert_eq!(blocker(proc, &masked), Some(Blocker::MaskedProc));
        let calls = probe("system-calls", Step::Unspecified, Errno::EPERM);
        assert_eq!(blocker(calls, &none), Some(Blocker::Seccomp));
        let landlock = probe("landlock", Step::Unspecified, Errno::EOPNOTSUPP);
        assert_eq!(blocker(landlock, &none), Some(Blocker::NoLandlock));
        let cgroup = probe("cgroup-v2", Step::Unspecified, Errno::EACCES);
        assert_eq!(blocker(cgroup, &none), Some(Blocker::NoCgroups));
    }

    #[test]
    fn what_was_not_tried_says_why() {
        let probe = Probe { name: "proc".into(), needs: "pid-namespace".into(), ..Probe::default() };
        let Outcome::Skipped(reason) = understand(probe, &Facts::default()).outcome else {
            panic!("skipped")
        };
        assert_eq!(reason, "it needs pid-namespace");
    }

    #[test]
    fn there_is_always_a_diagnosis() {
        let none = diagnose_by(&Image::Embedded(&[]));
        let [_, check] = &none.checks[..] else { panic!("{none:?}") };
        assert_eq!((check.name.as_str(), check.required), ("start-forkserver", true));
        let missing = diagnose_by(&Image::Path("/nonexistent/forkserver".into()));
        let [_, skipped, failed] = &missing.checks[..] else { panic!("{missing:?}") };
        assert!(matches!(skipped.outcome, Outcome::Skipped(_)));
        let Outcome::Fails(failure, None) = &failed.outcome else { panic!("{failed:?}") };
        assert_eq!(failure.errno, Errno::ENOENT);
        assert!(failure.hint.as_ref().is_some_and(|hint| hint.contains(OVERRIDE)));
    }

    #[test]
    fn what_says_nothing_is_not_well() {
        // Ends at once, and says nothing on its socket.
        let mute = diagnose_by(&Image::Path("/bin/true".into()));
        let Some(Outcome::Fails(failure, None)) = mute.checks.last().map(|check| &check.outcome) else {
            panic!("{mute:?}")
        };
        assert!(failure.to_string().contains("without a word"), "{failure}");
    }
}
