//! Syscall filters: from rules to a classic BPF program.
//!
//! A filter is data ([`Filter`]): rules of which the first that matches decides, and what happens if none does. The presets
//! are such filters. On top of each, whatever it says: another architecture's calls kill; a number that isn't known here,
//! the x32 ones among them, is never allowed; a call of which a part is dangerous to everyone is allowed in its harmless
//! part, unless a condition asks for the rest; unix sockets are refused where the policy wants none; and our own calls pass, by a
//! secret that never enters the sandboxee.
//!
//! The program is a binary search over runs of numbers with one verdict, not the chain of comparisons that common
//! compilers emit (seccompiler among them). Not only is it entered for each system call that looks at arguments: when a
//! filter is installed, the kernel walks it once for every number there is, to find those that it need not run for. With
//! a chain that would be the dearest step of a launch that installs one, as all do that are supervised: the whole installation
//! took 51 µs with this program and 742 µs with seccompiler's for 327 calls without conditions (Linux 6.18, JIT on). Its
//! correctness is established by running it: the tests interpret it for every number, and random filters with random
//! arguments.
//!
//! Compiled once per policy; what comes out is `Plan.filter`.

mod assemble;
mod careful;
mod check;
mod lower;
mod presets;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

pub use check::check;
pub use presets::preset;
pub use rules::{Action, Condition, ErrorNumber, Filter, Preset, Rule, Syscalls, Test, Width};

use crate::bpf::{self, Instruction};
use crate::{UnixSockets, syscalls};
use lower::Verdict;

/// Calls that the launch child makes once it has installed the filter. The kernel looks at the sixth argument of none of
/// them, so there they carry the launch's cookie.
const LAUNCH_CALLS: &[&str] = &[
    "execve",
    "execveat",
    "recvmsg",
    "dup3",
    "close_range",
    "close",
    "prctl",
    "prlimit64",
    "chdir",
    "umask",
    "faccessat",
    "exit_group",
    "clock_gettime",
    "landlock_add_rule",
    "landlock_restrict_self",
    "unshare",
];

/// Calls that a template and its inits make beside those, where the template has installed the filter for all that is cloned
/// from it. Of futex(2) the kernel looks at the sixth argument in operations that they don't use.
const TEMPLATE_CALLS: &[&str] = &[
    "capset",
    "clone",
    "clone3",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchown",
    "fchownat",
    "fcntl",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fstat",
    "fstatfs",
    "futex",
    "getdents64",
    "getgid",
    "getrusage",
    "getuid",
    "ioctl",
    "kill",
    "landlock_create_ruleset",
    "memfd_create",
    "mkdirat",
    "mount",
    "mount_setattr",
    "move_mount",
    "newfstatat",
    "open_tree",
    "openat",
    "openat2",
    "ppoll",
    "pread64",
    "ptrace",
    "read",
    "rt_sigaction",
    "rt_sigprocmask",
    "seccomp",
    "sendfile",
    "sendmsg",
    "setfsgid",
    "setfsuid",
    "sethostname",
    "setns",
    "setresgid",
    "setresuid",
    "setsid",
    "signalfd4",
    "socket",
    "statfs",
    "symlinkat",
    "tgkill",
    "waitid",
    "write",
];

/// Calls that they make without the cookie, since the C library makes them: its allocator, its descriptors, its clock.
const LIBRARY_CALLS: &[&str] =
    &["brk", "clock_gettime", "close", "madvise", "mmap", "mprotect", "mremap", "munmap"];

/// Whose calls pass by the launch's cookie, whatever the filter says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnCalls {
    /// Nobody's: whoever installs the filter needs no more than it lets everybody.
    None,
    /// The launch child's.
    Launch,
    /// The template's and its inits' as well.
    Template,
}

impl OwnCalls {
    fn contain(self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::Launch => LAUNCH_CALLS.contains(&name),
            Self::Template => LAUNCH_CALLS.contains(&name) || TEMPLATE_CALLS.contains(&name),
        }
    }
}

/// What holds beside the filter's own rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether unix sockets can be made, whatever the filter says.
    pub unix_sockets: UnixSockets,
    /// Whether the mount tree leads to files of the host that can be written to, or can in some launch.
    pub writable_binds: bool,
    /// What passes by the launch's cookie.
    pub own_calls: OwnCalls,
}

/// A filter that can't be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The filter comes to {instructions} instructions, and the kernel takes {}", bpf::INSTRUCTIONS_MAX)]
pub struct TooLong {
    /// How many it would have.
    pub instructions: usize,
}

/// A compiled filter.
#[derive(Clone, Debug)]
pub struct Program {
    instructions: Vec<Instruction>,
    /// Where a half of the cookie is compared, and whether it is the high one.
    cookie: Vec<(usize, bool)>,
    /// [`Self::can_be_inherited`].
    inheritable: bool,
}

impl Program {
    /// An array of `struct sock_filter`, in memory layout, that lets launches with this cookie pass.
    #[must_use]
    pub fn to_bytes(&self, cookie: u64) -> Vec<u8> {
        let mut instructions = self.instructions.clone();
        for &(index, high) in &self.cookie {
            instructions[index].value = (if high { cookie >> 32 } else { cookie }) as u32;
        }
        instructions.into_iter().flat_map(Instruction::to_bytes).collect()
    }

    /// Whether a template can install it once, for all that is cloned from it: it was compiled for that, nobody has to be given
    /// a listener of their own, and it lets pass what the C library does for a template and its inits.
    #[must_use]
    pub fn can_be_inherited(&self) -> bool {
        self.inheritable && !self.listens()
    }

    /// Whether it can answer that the supervisor is to be asked: it has to be installed with a listener.
    #[must_use]
    pub fn listens(&self) -> bool {
        let asks = |instruction: &Instruction| {
            instruction.code == bpf::RETURN
                && instruction.value & bpf::ACTION == bpf::USER_NOTIF & bpf::ACTION
        };
        self.instructions.iter().any(asks)
    }
}

/// Compiles the filter of a policy; none, if it wants none. What [`check()`] refuses has no meaning here.
pub fn compile(syscalls: &Syscalls, options: Options) -> Result<Option<Program>, TooLong> {
    let filter = match syscalls {
        Syscalls::Preset(name) => preset(*name),
        Syscalls::Filter(filter) => Some(filter),
    };
    filter.map(|filter| compile_filter(filter, options)).transpose()
}

fn compile_filter(filter: &Filter, options: Options) -> Result<Program, TooLong> {
    let verdicts = lower::lower(filter, options);
    let assembled = assemble::assemble(&verdicts, &Verdict::Act(of_unknown(filter)));
    let instructions = assembled.instructions.len();
    if instructions > bpf::INSTRUCTIONS_MAX {
        return Err(TooLong { instructions });
    }
    let passes = |name: &&str| {
        syscalls::number(name).and_then(|number| verdicts.get(&number)) == Some(&Verdict::Act(Action::Allow))
    };
    let inheritable = options.own_calls == OwnCalls::Template && LIBRARY_CALLS.iter().all(passes);
    Ok(Program { instructions: assembled.instructions, cookie: assembled.cookie, inheritable })
}

/// What becomes of numbers that aren't known: nobody can be asked to allow what nobody knows.
fn of_unknown(filter: &Filter) -> Action {
    match filter.otherwise {
        Action::Ask | Action::Allow => Action::Report,
        otherwise => otherwise,
    }
}

/// The default preset, for launches that have no policy and no cookie: it lets their exec pass by itself.
#[must_use]
pub fn default_program() -> &'static [u8] {
    static PROGRAM: LazyLock<Vec<u8>> = LazyLock::new(|| {
        // Whatever is there.
        let options =
            Options { unix_sockets: UnixSockets::Allow, writable_binds: true, own_calls: OwnCalls::None };
        let filter = preset(Preset::Default).expect("it is a filter");
        compile_filter(filter, options).expect("it is short").to_bytes(0)
    });
    &PROGRAM
}
