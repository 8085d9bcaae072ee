//! System calls that a filter stopped, as callers see them: named, with what their pointers led to in words.
//!
//! Plain data. Everything in it comes from a program that nobody trusts, by way of init, which read it for what it is:
//! bytes. Nothing here believes more than that. Made for violations, for questions and for what a launch learns.

use std::net::{Ipv4Addr, Ipv6Addr};

use nestbox_policy::syscalls;
use nestbox_protocol::{self as protocol, MemoryKind};

/// What becomes of the calls that a launch's filter hands to its supervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Supervision {
    /// The first one is a violation.
    #[default]
    Report,
    /// [`crate::Event::Asked`], [`crate::Client::answer`].
    Ask,
    /// They are noted and made. No boundary.
    Learn,
}

impl From<Supervision> for protocol::Supervision {
    fn from(supervision: Supervision) -> Self {
        match supervision {
            Supervision::Report => Self::Report,
            Supervision::Ask => Self::Ask,
            Supervision::Learn => Self::Learn,
        }
    }
}

/// The decision about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A violation, as if nobody had been asked.
    Report,
    /// A violation of which no more is said.
    Kill,
    /// It is made.
    Allow,
    /// It fails.
    Errno(i32),
    /// It returns this.
    Value(i64),
    /// It returns an fd, which is put into the process: a copy of this one of ours.
    Fd {
        /// Ours.
        fd: i32,
        /// Whether an exec closes it.
        close_on_exec: bool,
    },
}

/// A system call that was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemCall {
    /// Its name; `syscall_1234` if there is no such call.
    pub name: String,
    /// Its number.
    pub number: i32,
    /// All six, whether it takes them or not.
    pub args: [u64; 6],
    /// `x86_64`, `aarch64`; in hexadecimal what is neither.
    pub arch: String,
    /// Where it was made.
    pub instruction_pointer: u64,
    /// The process, in its own pid namespace. `None`: the nest has no proc to look it up in.
    pub pid: Option<u32>,
    /// The thread.
    pub tid: u32,
    /// What its pointers led to, as far as that could be read.
    pub memory: Vec<Memory>,
}

/// What one pointer led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Which argument it was.
    pub argument: u32,
    /// What that means.
    pub kind: Kind,
    /// The bytes themselves.
    pub content: Vec<u8>,
    /// There is more than was read.
    pub cut: bool,
}

/// What bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A path or another string.
    Path,
    /// A socket's address.
    Address(Address),
    /// Nothing that we know.
    Data,
}

/// A `struct sockaddr`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// `AF_*`, or its number.
    pub family: String,
    /// Of `AF_INET` and `AF_INET6`.
    pub address: Option<String>,
    /// Of `AF_INET` and `AF_INET6`.
    pub port: Option<u16>,
    /// Of `AF_UNIX`; an abstract one begins with `@`.
    pub path: Option<String>,
}

/// One use of a call, of a launch that learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The call's name.
    pub name: String,
    /// The arguments that tell it apart, by index.
    pub arguments: Vec<(u32, u64)>,
}

/// What a launch learned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// In order of their numbers.
    pub uses: Vec<Use>,
    /// There were more than are kept.
    pub incomplete: bool,
}

fn name(number: i32) -> String {
    let known = u32::try_from(number).ok().and_then(syscalls::name);
    known.map_or_else(|| format!("syscall_{number}"), str::to_owned)
}

fn architecture(audit: u32) -> String {
    match audit {
        0xc000_003e => "x86_64".into(),
        0xc000_00b7 => "aarch64".into(),
        0x4000_0003 => "i386".into(),
        0x4000_0028 => "arm".into(),
        other => format!("{other:#x}"),
    }
}

impl From<protocol::SystemCall> for SystemCall {
    fn from(call: protocol::SystemCall) -> Self {
        let mut args = [0; 6];
        args.iter_mut().zip(&call.args).for_each(|(to, from)| *to = *from);
        Self {
            name: name(call.number),
            number: call.number,
            args,
            arch: architecture(call.arch),
            instruction_pointer: call.instruction_pointer,
            pid: (call.pid != 0).then_some(call.pid),
            tid: call.tid,
            memory: call.memory.into_iter().map(Memory::from).collect(),
        }
    }
}

impl From<protocol::Memory> for Memory {
    fn from(memory: protocol::Memory) -> Self {
        let kind = match memory.kind() {
            MemoryKind::Path => Kind::Path,
            MemoryKind::Address => Kind::Address(Address::read(&memory.content)),
            MemoryKind::Data | MemoryKind::Unspecified => Kind::Data,
        };
        Self { argument: memory.argument, kind, content: memory.content, cut: memory.cut }
    }
}

impl From<protocol::Learned> for Learned {
    fn from(learned: protocol::Learned) -> Self {
        let made = |call: &protocol::LearnedCall| Use {
            name: name(call.number as i32),
            arguments: (0..6)
                .filter(|index| call.arguments & 1 << index != 0)
                .zip(call.values.iter().copied())
                .collect(),
        };
        Self { uses: learned.calls.iter().map(made).collect(), incomplete: learned.incomplete }
    }
}

impl Address {
    /// Families, ports and addresses stand as `bind(2)` has them: the family as the machine writes it, the rest as the
    /// network does.
    fn read(bytes: &[u8]) -> Self {
        let Some((family, rest)) = bytes.split_first_chunk() else { return Self::default() };
        let family = i32::from(u16::from_ne_bytes(*family));
        let named = |name: &str| Self { family: name.into(), ..Self::default() };
        let port = rest.first_chunk().map(|port| u16::from_be_bytes(*port));
        match family {
            libc::AF_INET => {
                let address = rest.get(2..).and_then(<[u8]>::first_chunk::<4>);
                Self { address: address.map(|at| Ipv4Addr::from(*at).to_string()), port, ..named("AF_INET") }
            }
            libc::AF_INET6 => {
                let address = rest.get(6..).and_then(<[u8]>::first_chunk::<16>);
                Self { address: address.map(|at| Ipv6Addr::from(*at).to_string()), port, ..named("AF_INET6") }
            }
            libc::AF_UNIX => {
                let path = match rest {
                    [] => None,
                    [0, name @ ..] => Some(format!("@{}", String::from_utf8_lossy(name))),
                    path => {
                        let end = path.iter().position(|&byte| byte == 0).unwrap_or(path.len());
                        Some(String::from_utf8_lossy(&path[..end]).into_owned())
                    }
                };
                Self { path, ..named("AF_UNIX") }
            }
            libc::AF_UNSPEC => named("AF_UNSPEC"),
            libc::AF_NETLINK => named("AF_NETLINK"),
            libc::AF_PACKET => named("AF_PACKET"),
            libc::AF_VSOCK => named("AF_VSOCK"),
            other => named(&other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_names() {
        let call =
            protocol::SystemCall { number: libc::SYS_openat as i32, args: vec![1, 2], ..Default::default() };
        let call = SystemCall::from(call);
        assert_eq!((call.name.as_str(), call.args, call.pid), ("openat", [1, 2, 0, 0, 0, 0], None));
        assert_eq!(name(999_999), "syscall_999999");
        assert_eq!(name(-1), "syscall_-1");
        assert_eq!(architecture(0xc000_003e), "x86_64");
        assert_eq!(architecture(7), "0x7");
    }

    #[test]
    fn addresses_are_read() {
        let inet = Address::read(&[2, 0, 0, 80, 127, 0, 0, 1, 9, 9]);
        assert_eq!(
            (inet.family.as_str(), inet.address.as_deref(), inet.port),
            ("AF_INET", Some("127.0.0.1"), Some(80))
        );
        let mut six = [0; 28];
        (six[0], six[3], six[23]) = (10, 53, 1);
        let six = Address::read(&six);
        assert_eq!((six.address.as_deref(), six.port), (Some("::1"), Some(53)));
        assert_eq!(Address::read(b"\x01\0/run/x\0rest").path.as_deref(), Some("/run/x"));
        assert_eq!(Address::read(b"\x01\0\0abstract").path.as_deref(), Some("@abstract"));
        assert_eq!(Address::read(b"\x01\0"), Address { family: "AF_UNIX".into(), ..Address::default() });
        assert_eq!(Address::read(b"\x77\x01").family, "375");
        assert_eq!(Address::read(b"\x02"), Address::default());
    }

    #[test]
    fn any_bytes_are_an_address() {
        for family in 0..=u8::MAX {
            for length in 0..130 {
                let mut bytes = vec![0xff; length];
                bytes.iter_mut().zip([family, 0]).for_each(|(to, from)| *to = from);
                let _ = Address::read(&bytes);
            }
        }
    }
}
