//! What keeps a system from running sandboxes, by name, and the fix of each: the one source of these texts.
//!
//! A [`Blocker`] has a short remedy, the hint of an error ([`crate::hints`]), and whole ones to copy (profiles, flags,
//! manifests), which `nestbox doctor` prints ([`crate::doctor`]). [`Facts`] are what this host's files say; they decide
//! between causes that look alike. A cause is named only where the facts show it.

use std::borrow::Cow;
use std::fs;

use crate::capabilities::Capabilities;

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
    /// It was seen to refuse calls whatever their arguments. Known only to the doctor: to try could be the end.
    pub(crate) seccomp_refuses: bool,
    /// This process's root is not its mount namespace's: unshare(2) refuses a user namespace to a chrooted caller.
    pub(crate) chrooted: bool,
    /// Something is mounted over parts of `/proc`, as containers do.
    pub(crate) proc_is_masked: bool,
    /// The caller is root.
    pub(crate) root: bool,
    /// And lacks these, which it needs.
    pub(crate) lacking: Option<Capabilities>,
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
        let root = nix::unistd::geteuid().is_root();
        Self {
            apparmor_restricts_userns: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            unprivileged_userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
            memfd_noexec: number("/proc/sys/vm/memfd_noexec"),
            seccomp,
            seccomp_refuses: false,
            chrooted: is_chrooted(&mounts, init.as_deref()),
            proc_is_masked: mount_points(&mounts).any(|path| path.starts_with("/proc/")),
            root,
            lacking: Capabilities::missing(&status, root),
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

/// A text to copy, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fix {
    /// What it is: 'An AppArmor profile for Node.js'.
    pub title: &'static str,
    /// The text itself: commands, a profile, a manifest.
    pub text: &'static str,
}

/// One cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blocker {
    /// The caller is chrooted.
    Chroot,
    /// `/proc` is not mounted.
    NoProc,
    /// `kernel.unprivileged_userns_clone` is 0.
    UnprivilegedUsernsClone,
    /// `user.max_user_namespaces` is 0.
    MaxUserNamespaces,
    /// Another `user.max_*_namespaces` is 0, or a limit above 0 is reached.
    MaxNamespaces,
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1.
    AppArmorUserns,
    /// A seccomp filter: a container's.
    Seccomp,
    /// Parts of `/proc` are covered by other mounts.
    MaskedProc,
    /// A root that lacks what a root host needs.
    MissingCapabilities(Capabilities),
    /// A security module, or something like it: nothing says which.
    SecurityModule,
    /// `vm.memfd_noexec`, or something like it.
    MemfdNoexec,
    /// `RLIMIT_NPROC`, or the pids limit of a cgroup.
    ProcessLimit,
    /// `RLIMIT_NOFILE`.
    OpenFilesLimit,
    /// The kernel lacks a system call.
    OldKernel,
    /// No cgroup that bounds memory may be made here.
    NoCgroups,
    /// The kernel has no Landlock, or it is switched off.
    NoLandlock,
}

/// What keeps user namespaces, or what makes use of their power, from working.
pub(crate) fn of_namespaces(facts: &Facts) -> Blocker {
    if facts.seccomp_refuses {
        Blocker::Seccomp
    } else if facts.chrooted {
        Blocker::Chroot
    } else if facts.unprivileged_userns_clone == Some(0) && !facts.root {
        Blocker::UnprivilegedUsernsClone
    } else if facts.max_user_namespaces == Some(0) {
        Blocker::MaxUserNamespaces
    } else if facts.apparmor_restricts_userns == Some(1) && !facts.root {
        Blocker::AppArmorUserns
    } else if facts.seccomp {
        Blocker::Seccomp
    } else {
        Blocker::SecurityModule
    }
}

/// What a limit on namespaces is.
pub(crate) fn of_namespace_limits(facts: &Facts) -> Blocker {
    if facts.max_user_namespaces == Some(0) { Blocker::MaxUserNamespaces } else { Blocker::MaxNamespaces }
}

impl Blocker {
    /// A stable name, for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Chroot => "chroot",
            Self::NoProc => "no-proc",
            Self::UnprivilegedUsernsClone => "unprivileged-userns-clone",
            Self::MaxUserNamespaces => "max-user-namespaces",
            Self::MaxNamespaces => "max-namespaces",
            Self::AppArmorUserns => "apparmor-userns",
            Self::Seccomp => "seccomp",
            Self::MaskedProc => "masked-proc",
            Self::MissingCapabilities(_) => "missing-capabilities",
            Self::SecurityModule => "security-module",
            Self::MemfdNoexec => "memfd-noexec",
            Self::ProcessLimit => "process-limit",
            Self::OpenFilesLimit => "open-files-limit",
            Self::OldKernel => "old-kernel",
            Self::NoCgroups => "no-cgroups",
            Self::NoLandlock => "no-landlock",
        }
    }

    /// What is wrong and what to do, in one sentence: the hint of an error.
    #[must_use]
    pub fn hint(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Chroot => {
                "this process is chrooted, and the kernel gives no user namespace to a chrooted process: use pivot_root \
                 or a mount namespace instead of chroot"
            }
            Self::NoProc => "/proc is not mounted, and id maps are written there: mount it",
            Self::UnprivilegedUsernsClone => {
                "unprivileged user namespaces are switched off: `sysctl kernel.unprivileged_userns_clone=1`"
            }
            Self::MaxUserNamespaces => {
                "user namespaces are switched off: `sysctl user.max_user_namespaces` is 0"
            }
            Self::MaxNamespaces => {
                "a namespace limit is reached: raise `sysctl user.max_*_namespaces`, or lower maxConcurrency (user \
                 namespaces also nest at most 32 deep)"
            }
            Self::AppArmorUserns => {
                "AppArmor restricts unprivileged user namespaces (Ubuntu 23.10 and later): add a profile with `userns,` \
                 for the Node.js executable, or `sysctl kernel.apparmor_restrict_unprivileged_userns=0`; `npx nestbox \
                 doctor` prints the profile"
            }
            Self::Seccomp => {
                "a seccomp filter is on this process, and those of containers refuse namespaces: run the container with \
                 `--security-opt seccomp=unconfined`, or a profile that allows clone3, unshare, setns and mount; `npx \
                 nestbox doctor` names the calls that are refused"
            }
            Self::MaskedProc => {
                "parts of /proc are covered by other mounts here, as in a container (\"mount too revealing\"): use \
                 proc('none') in the policy, or run the container with `--security-opt systempaths=unconfined`"
            }
            Self::MissingCapabilities(lacking) => {
                return Cow::Owned(format!(
                    "this process is root without {lacking}: give it what it lacks, or run it as an ordinary user, who \
                     needs no capability; `npx nestbox doctor` prints how"
                ));
            }
            Self::SecurityModule => {
                "the system refuses namespaces to this user; look for a security module (SELinux, AppArmor)"
            }
            Self::MemfdNoexec => {
                "vm.memfd_noexec forbids executing the embedded fork server, and no temporary directory is executable: \
                 set TMPDIR to one that is, or name the fork server in NESTBOX_FORKSERVER"
            }
            Self::ProcessLimit => {
                "no more processes or threads: raise `ulimit -u` (or the container's pids limit)"
            }
            Self::OpenFilesLimit => {
                "too many open fds: raise the limit (`ulimit -n`, LimitNOFILE=), or lower maxConcurrency"
            }
            Self::OldKernel => "the kernel lacks this system call: nestbox needs Linux 5.12 or newer",
            Self::NoCgroups => {
                "no cgroup can be made here, or none with the memory controller: launches need none, but the memory of \
                 all of them together is bounded only by one around this process (`systemd-run --user --scope -p \
                 MemoryMax=4G`)"
            }
            Self::NoLandlock => {
                "the kernel has no Landlock: it needs Linux 5.19, CONFIG_SECURITY_LANDLOCK and `landlock` in `lsm=`"
            }
        })
    }

    /// Whole remedies, the best one first.
    #[must_use]
    pub fn fixes(self) -> &'static [Fix] {
        match self {
            Self::Chroot => &[Fix {
                title: "Enter the directory by pivot_root instead: bubblewrap does",
                text: "bwrap --dev-bind /new/root / node app.js",
            }],
            Self::NoProc => &[Fix { title: "Mount it", text: "mount -t proc proc /proc" }],
            Self::UnprivilegedUsernsClone => &[Fix {
                title: "Switch them on, now and after the next boot",
                text: "sysctl -w kernel.unprivileged_userns_clone=1\necho kernel.unprivileged_userns_clone=1 > \
                       /etc/sysctl.d/60-userns.conf",
            }],
            Self::MaxUserNamespaces => &[Fix {
                title: "Switch them on, now and after the next boot",
                text: "sysctl -w user.max_user_namespaces=15000\necho user.max_user_namespaces=15000 > \
                       /etc/sysctl.d/60-userns.conf",
            }],
            Self::MaxNamespaces => &[Fix {
                title: "Raise the limits that are too low",
                text: "sysctl -a -r '^user.max_.*_namespaces'\nsysctl -w user.max_net_namespaces=15000   # each that is \
                       too low",
            }],
            Self::AppArmorUserns => APPARMOR,
            Self::Seccomp => CONTAINER,
            Self::MaskedProc => MASKED_PROC,
            Self::MissingCapabilities(_) => CAPABILITIES,
            Self::SecurityModule => &[Fix {
                title: "Look at what was refused",
                text: "dmesg | grep -i -e apparmor -e 'avc: *denied'\nausearch -m avc -ts recent   # SELinux",
            }],
            Self::MemfdNoexec => &[
                Fix {
                    title: "Allow it, now and after the next boot",
                    text: "sysctl -w vm.memfd_noexec=0\necho vm.memfd_noexec=0 > /etc/sysctl.d/60-memfd.conf",
                },
                Fix {
                    title: "Or have a temporary directory without noexec",
                    text: "export TMPDIR=/var/lib/app/tmp",
                },
            ],
            Self::ProcessLimit => &[
                Fix {
                    title: "In a shell, or for a service",
                    text: "ulimit -u 4096\n# systemd: LimitNPROC=4096 and TasksMax=4096",
                },
                Fix { title: "For a container", text: "docker run --pids-limit 4096 ..." },
            ],
            Self::OpenFilesLimit => &[Fix {
                title: "In a shell, or for a service",
                text: "ulimit -n 65536\n# systemd: LimitNOFILE=65536",
            }],
            Self::OldKernel => &[],
            Self::NoCgroups => CGROUPS,
            Self::NoLandlock => &[Fix {
                title: "Add it to the kernel's command line, after the modules that are there",
                text: "cat /sys/kernel/security/lsm   # then boot with lsm=landlock,<those>",
            }],
        }
    }
}

const APPARMOR: &[Fix] = &[
    Fix {
        title: "A profile that gives Node.js user namespaces and restricts nothing else",
        text: "# /etc/apparmor.d/nestbox-node; put in what `realpath \"$(which node)\"` says. Then:\n\
               #   apparmor_parser -r /etc/apparmor.d/nestbox-node\n\
               abi <abi/4.0>,\n\
               include <tunables/global>\n\
               \n\
               profile nestbox-node /usr/bin/node flags=(unconfined) {\n\
               \x20 userns,\n\
               \x20 include if exists <local/nestbox-node>\n\
               }",
    },
    Fix {
        title: "Or lift the restriction for every program",
        text: "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0\necho \
               kernel.apparmor_restrict_unprivileged_userns=0 > /etc/sysctl.d/60-userns.conf",
    },
];

const CONTAINER: &[Fix] = &[
    Fix {
        title: "Docker and Podman: Docker's own profile with the calls that are missing in it",
        text: "curl -sLo default.json https://raw.githubusercontent.com/moby/profiles/main/seccomp/default.json\n\
               jq '.syscalls |= map(select((.names | index(\"clone3\")) == null or .action == \"SCMP_ACT_ALLOW\")) | \
               .syscalls += [{\"names\": [\"clone\", \"clone3\", \"unshare\", \"setns\", \"mount\", \"umount2\", \
               \"pivot_root\", \"chroot\", \"open_tree\", \"move_mount\", \"mount_setattr\", \"sethostname\"], \"action\": \
               \"SCMP_ACT_ALLOW\"}]' default.json > nestbox.json\n\
               docker run --security-opt seccomp=nestbox.json --security-opt apparmor=unconfined --security-opt \
               systempaths=unconfined ...",
    },
    Fix {
        title: "Docker and Podman: the same with three flags; --privileged is never needed",
        text: "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt \
               systempaths=unconfined ...\n\
               # systempaths=unconfined is not needed by policies with proc('none'), apparmor=unconfined not where there \
               is no AppArmor",
    },
    Fix {
        title: "Kubernetes: the container's securityContext",
        text: "securityContext:\n\
               \x20 allowPrivilegeEscalation: false\n\
               \x20 seccompProfile: { type: Unconfined }    # or Localhost, with the profile above\n\
               \x20 appArmorProfile: { type: Unconfined }\n\
               \x20 procMount: Unmasked                     # needs hostUsers: false in the pod; not for proc('none')",
    },
];

/// All that a root host needs, whichever of them it lacks.
const CAPABILITIES: &[Fix] = &[
    Fix {
        title: "Run it as an ordinary user, who needs none",
        text: "docker run --user 1000:1000 ...    # systemd: User=; Kubernetes: runAsUser and runAsGroup",
    },
    Fix {
        title: "Docker and Podman: give root what it needs",
        text: "docker run --cap-drop=ALL --cap-add=CHOWN --cap-add=SETGID --cap-add=SETUID --cap-add=SETPCAP \
               --cap-add=SETFCAP ...\n\
               # and --cap-add=SYS_ADMIN for policies with writable binds",
    },
    Fix {
        title: "The same for a service",
        text: "[Service]\nCapabilityBoundingSet=CAP_CHOWN CAP_SETGID CAP_SETUID CAP_SETPCAP CAP_SETFCAP",
    },
    Fix {
        title: "Kubernetes: the container's securityContext",
        text: "securityContext:\n\
               \x20 capabilities: { drop: [ALL], add: [CHOWN, SETGID, SETUID, SETPCAP, SETFCAP] }",
    },
];

const MASKED_PROC: &[Fix] = &[
    Fix {
        title: "Do without /proc inside, which needs nothing of the container",
        text: "policy('host-system').proc('none')    // nestbox run --proc none",
    },
    Fix { title: "Docker and Podman", text: "docker run --security-opt systempaths=unconfined ..." },
    Fix {
        title: "Kubernetes",
        text: "spec:\n\
               \x20 hostUsers: false\n\
               \x20 containers:\n\
               \x20   - securityContext: { procMount: Unmasked }",
    },
];

const CGROUPS: &[Fix] = &[
    Fix {
        title: "To bound the memory of a service and all that it launches",
        text: "[Service]\nMemoryMax=4G\n# and for a command: systemd-run --user --scope -p MemoryMax=4G node app.js",
    },
    Fix { title: "The same of a container", text: "docker run --memory=4g ..." },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_condition_names_its_cause() {
        let with = |change: fn(&mut Facts)| {
            let mut facts = Facts::default();
            change(&mut facts);
            of_namespaces(&facts)
        };
        assert_eq!(with(|facts| facts.apparmor_restricts_userns = Some(1)), Blocker::AppArmorUserns);
        assert_eq!(with(|facts| facts.unprivileged_userns_clone = Some(0)), Blocker::UnprivilegedUsernsClone);
        assert_eq!(with(|facts| facts.max_user_namespaces = Some(0)), Blocker::MaxUserNamespaces);
        assert_eq!(with(|facts| facts.seccomp = true), Blocker::Seccomp);
        assert_eq!(with(|facts| facts.chrooted = true), Blocker::Chroot);
        assert_eq!(with(|_| ()), Blocker::SecurityModule);
        // What was seen goes before what may be.
        let both =
            |facts: &mut Facts| (facts.seccomp_refuses, facts.apparmor_restricts_userns) = (true, Some(1));
        assert_eq!(with(both), Blocker::Seccomp);
    }

    #[test]
    fn root_is_not_restricted() {
        let facts = Facts { root: true, apparmor_restricts_userns: Some(1), ..Facts::default() };
        assert_eq!(of_namespaces(&facts), Blocker::SecurityModule);
    }

    #[test]
    fn a_chroot_is_told_by_mount_ids() {
        let line = |id: u32, point: &str| format!("{id} 1 8:1 / {point} rw - ext4 /dev/sda1 rw\n");
        assert!(!is_chrooted(&line(20, "/"), Some(&line(20, "/"))));
        assert!(is_chrooted(&line(25, "/"), Some(&line(20, "/"))));
        assert!(is_chrooted(&line(25, "/proc"), Some(&line(20, "/"))));
        assert!(!is_chrooted(&line(25, "/"), None), "no evidence");
    }

    #[test]
    fn the_profile_reads_as_apparmor_wants_it() {
        let profile = Blocker::AppArmorUserns.fixes()[0].text;
        assert!(
            profile.contains("\nprofile nestbox-node /usr/bin/node flags=(unconfined) {\n  userns,\n"),
            "{profile}"
        );
    }
}
