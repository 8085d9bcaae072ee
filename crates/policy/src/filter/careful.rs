//! What it means to allow a call of which a part is dangerous to everyone.
//!
//! A rule that allows one of these without conditions means its harmless part, in presets and in a policy's own filter
//! alike: nobody who writes `allow('clone')` for the sake of threads, or `allow('ioctl')` for a terminal's size, asks for
//! user namespaces and for typing into that terminal. A rule with conditions is taken at its word.

use super::Options;
use super::lower::{Branch, Check, Verdict};
use super::rules::{Action, Condition, ErrorNumber, Test, Width};

const EPERM: Action = errno(libc::EPERM);

const fn errno(number: i32) -> Action {
    Action::Errno(ErrorNumber::of(number))
}

/// Namespaces that clone(2) can make. `CLONE_NEWTIME` overlaps the exit signal there.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

const NEW_TIME_NAMESPACE: u64 = 0x80;
const SECCOMP_SET_MODE_FILTER: u64 = 1;
const SECCOMP_FILTER_FLAG_NEW_LISTENER: u64 = 1 << 3;
const F_SETLEASE: u64 = 1024;
const F_NOTIFY: u64 = 1026;
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;
const TIOCSETD: u64 = 0x5423;
const ADDR_NO_RANDOMIZE: u64 = 0x0004_0000;
const ASK_PERSONALITY: u64 = 0xffff_ffff;

/// The semaphores of a set, as of old: `SEMMSL` before Linux 3.16.
const SEMAPHORES: u64 = 250;

/// Modes that make a program run with its file's ids.
const SET_ID: u64 = (libc::S_ISUID | libc::S_ISGID) as u64;

/// Flags with which open(2) looks at its mode. `O_TMPFILE` has `O_DIRECTORY` in it, which makes nothing.
const MAKES_FILE: u64 = (libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY)) as u64;

/// It succeeds, and nothing is done.
const NOTHING: Action = errno(0);

/// What allowing the call of this name without conditions means; none: just that.
pub(super) fn careful(name: &str, options: Options) -> Option<Verdict> {
    let verdict = match name {
        "clone" => examine(vec![branch(vec![has_any(0, NEW_NAMESPACES)], EPERM)], Action::Allow),
        "unshare" => {
            examine(vec![branch(vec![has_any(0, NEW_NAMESPACES | NEW_TIME_NAMESPACE)], EPERM)], Action::Allow)
        }
        // Its flags are in memory, where a filter can't look. glibc and musl fall back to clone.
        "clone3" => Verdict::Act(errno(libc::ENOSYS)),
        // A lease on a file that a bind shows makes the host wait when it opens that file (45 seconds by default); the old
        // form of inotify signals what others do in a directory.
        "fcntl" => {
            let dangerous = Test::OneOf(vec![F_SETLEASE, F_NOTIFY]);
            examine(vec![branch(vec![low(1, dangerous)], EPERM)], Action::Allow)
        }
        // Typing into a terminal that was passed, a console's tricks, and line disciplines, which load modules. The kernel
        // looks at 32 bits of the request: bubblewrap's CVE-2017-5226, once more in CVE-2019-10063.
        "ioctl" => {
            let dangerous = Test::OneOf(vec![TIOCSTI, TIOCLINUX, TIOCSETD]);
            examine(vec![branch(vec![low(1, dangerous)], EPERM)], Action::Allow)
        }
        "personality" => {
            let harmless = Test::OneOf(vec![0, ADDR_NO_RANDOMIZE, ASK_PERSONALITY]);
            examine(vec![branch(vec![low(0, harmless)], Action::Allow)], EPERM)
        }
        // Of oneself only: init has the same id outside.
        "prlimit64" => examine(vec![branch(vec![equals(0, 0)], Action::Allow)], EPERM),
        // A program may filter itself, but not become the judge of its children.
        "seccomp" => {
            let conditions =
                vec![equals(0, SECCOMP_SET_MODE_FILTER), has_any(1, SECCOMP_FILTER_FLAG_NEW_LISTENER)];
            examine(vec![branch(conditions, EPERM)], Action::Allow)
        }
        "socket" => sockets(),
        "socketpair" => {
            let unix = branch(vec![family(libc::AF_UNIX)], Action::Allow);
            examine(vec![unix], errno(libc::EAFNOSUPPORT))
        }
        // Who made use of SEM_UNDO has the kernel walk all semaphores of those sets when it ends, 32,000 each by default, and
        // nothing interrupts that. With few of them an end is no dearer than what led to it. Above its own bound the kernel
        // says the same.
        "semget" => {
            let many = low(1, Test::Above(SEMAPHORES));
            examine(vec![branch(vec![many], errno(libc::EINVAL))], Action::Allow)
        }
        // They wait for everybody's data, not only the caller's (syncfs: of a whole file system, of which a read-only bind is
        // enough), and nothing ends that wait. No nest outlives the machine, so it is no worse off for what they don't do.
        "sync" | "syncfs" => Verdict::Act(NOTHING),
        _ => return files(name, options),
    };
    Some(verdict)
}

/// Set-user-ID and set-group-ID bits mean nothing inside (no mount has them in force), and all the more outside: of what a
/// writable bind shows, the owner is the host's root or its user. Under an unprivileged host so is that of files which were
/// passed, so mode bits are refused under every policy; files by a new name there are only in writable binds, and without any
/// the kernel need not run the filter for each open(2). mkdir(2) can't set them.
fn files(name: &str, options: Options) -> Option<Verdict> {
    let conditions = match name {
        "chmod" | "fchmod" => vec![has_any(1, SET_ID)],
        "fchmodat" | "fchmodat2" => vec![has_any(2, SET_ID)],
        _ if !options.writable_binds => return None,
        "creat" | "mknod" => vec![has_any(1, SET_ID)],
        "mknodat" => vec![has_any(2, SET_ID)],
        "open" => vec![has_any(1, MAKES_FILE), has_any(2, SET_ID)],
        "openat" => vec![has_any(2, MAKES_FILE), has_any(3, SET_ID)],
        // Its mode is in memory, where a filter can't look. Programs fall back to openat.
        "openat2" => return Some(Verdict::Act(errno(libc::ENOSYS))),
        _ => return None,
    };
    Some(examine(vec![branch(conditions, EPERM)], Action::Allow))
}

/// The families that belong to a network namespace; the others (AF_VSOCK, AF_ALG, AF_PACKET ...) reach parts of the kernel
/// or of the machine that know of none.
fn sockets() -> Verdict {
    let allowed = |conditions| branch(conditions, Action::Allow);
    let route = equals(2, libc::NETLINK_ROUTE as u64);
    let branches = vec![
        allowed(vec![family(libc::AF_UNIX)]),
        allowed(vec![family(libc::AF_INET)]),
        allowed(vec![family(libc::AF_INET6)]),
        // Interfaces and addresses.
        allowed(vec![family(libc::AF_NETLINK), route]),
        branch(vec![family(libc::AF_NETLINK)], errno(libc::EPROTONOSUPPORT)),
    ];
    examine(branches, errno(libc::EAFNOSUPPORT))
}

/// Where `unixSockets: 'none'` is enforced, whatever the filter: what else must hold of a call that would be allowed for
/// this to be the reason to refuse it. None: the call makes no sockets.
pub(super) fn makes_unix_sockets(name: &str) -> Option<Vec<Check>> {
    match name {
        "socket" => Some(Vec::new()),
        // One end of a pair of datagram (2) or raw (3) sockets can be connected anew, to a socket of the host that a bind
        // shows. Streams (1) and sequenced packets (5) can't.
        "socketpair" => Some(vec![has_any(1, 0b10)]),
        _ => None,
    }
}

/// The family of a socket is in the low half of the first argument.
pub(super) fn family(family: i32) -> Check {
    equals(0, family as u64)
}

fn examine(branches: Vec<Branch>, otherwise: Action) -> Verdict {
    Verdict::Examine(branches, Box::new(Verdict::Act(otherwise)))
}

fn branch(conditions: Vec<Check>, action: Action) -> Branch {
    Branch { conditions, verdict: Verdict::Act(action) }
}

fn low(argument: u32, test: Test) -> Check {
    Check::Argument(Condition { argument, width: Width::Low, test })
}

fn equals(argument: u32, value: u64) -> Check {
    low(argument, Test::Equal(value))
}

fn has_any(argument: u32, bits: u64) -> Check {
    low(argument, Test::HasAny(bits))
}
