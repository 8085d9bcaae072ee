//! The published form of a policy, version 1: what TypeScript's `build()` makes and `JSON.stringify` shows.
//!
//! Only its shape is known here; what may stand together is [`crate::check()`]'s. Every field is present after `build()`,
//! and an unknown one is refused, so that a policy never means less than its author thinks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::filter::Syscalls;

/// What a sandboxee may see and do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Version of this form; 1.
    pub version: u32,
    /// What the tree starts from.
    pub base: Base,
    /// The tree's entries. Of two for one path the later counts.
    pub mounts: Vec<MountEntry>,
    /// Whether there is a proc.
    pub proc: Proc,
    /// Whether there are device nodes.
    pub dev: Dev,
    /// The root itself may be written to.
    pub root_writable: bool,
    /// The name of the machine, as seen inside.
    pub hostname: String,
    /// Ids inside.
    pub user: User,
    /// The environment of every launch. It isn't part of the plan: the launch carries it.
    pub env: BTreeMap<String, String>,
    /// What of the network is there.
    pub network: Network,
    /// Whether unix sockets can be made.
    pub unix_sockets: UnixSockets,
    /// The syscall filter.
    pub syscalls: Syscalls,
    /// Share a core with nobody else's threads.
    #[serde(default)]
    pub core_scheduling: bool,
    /// Leave speculative execution as the host has it.
    #[serde(default)]
    pub allow_speculation: bool,
    /// Limits of each launch.
    pub limits: Limits,
    /// Protections without which launches fail.
    pub require: Vec<Requirement>,
}

/// What the tree starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Base {
    /// The host's system directories, read-only.
    HostSystem,
    /// Nothing.
    Empty,
}

/// One entry of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum MountEntry {
    /// A file or directory of the host.
    Bind {
        /// Path on the host.
        source: String,
        /// Path inside.
        path: String,
        /// May be written to.
        writable: bool,
        /// Programs on it may be executed.
        exec: bool,
        /// Leave it out where the source is missing.
        optional: bool,
    },
    /// Where a launch may bind something.
    MountPoint {
        /// Path inside.
        path: String,
        /// What is bound may be written to.
        writable: bool,
        /// Programs on it may be executed.
        exec: bool,
    },
    /// A file system in memory, fresh for each launch.
    Tmpfs {
        /// Path inside.
        path: String,
        /// Bytes; absent: the disk limit.
        size: Option<u64>,
        /// Files and directories; absent: the kernel's default.
        inodes: Option<u64>,
        /// Mode of its top directory.
        mode: u32,
    },
    /// A file made from memory.
    File {
        /// Path inside.
        path: String,
        /// Its content.
        content: String,
        /// How `content` stands for bytes.
        encoding: Encoding,
        /// Its mode.
        mode: u32,
    },
    /// A symbolic link.
    Symlink {
        /// Path inside.
        path: String,
        /// What it holds.
        points_to: String,
    },
    /// The ELF interpreter and libraries that a binary needs.
    LibrariesFor {
        /// Path on the host.
        binary: String,
    },
}

impl MountEntry {
    /// The path inside, as written; none for `librariesFor`.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Bind { path, .. }
            | Self::MountPoint { path, .. }
            | Self::Tmpfs { path, .. }
            | Self::File { path, .. }
            | Self::Symlink { path, .. } => Some(path),
            Self::LibrariesFor { .. } => None,
        }
    }
}

/// How a file's content is written in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As it is.
    Utf8,
    /// RFC 4648, with padding.
    Base64,
}

/// Whether there is a proc.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proc {
    /// The nest's own, with the dangerous parts covered.
    Fresh,
    /// None.
    None,
}

/// Whether there are device nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dev {
    /// null zero full random urandom tty, pts, shm.
    Minimal,
    /// None.
    None,
}

/// Ids inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What of the network is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// A namespace of its own.
    None,
    /// A namespace without outside links, shared by launches.
    SharedLoopback,
    /// The host's network.
    Host,
}

/// Whether unix sockets can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnixSockets {
    /// socket(2) refuses them. socketpair(2) stays.
    None,
    /// They can.
    Allow,
}

/// Limits; absent means none from us. Bytes and milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Of the nest, on the clock.
    pub wall_time: Option<u64>,
    /// Of the nest, summed over its processes.
    pub cpu_time: Option<u64>,
    /// Processes and threads at one time.
    pub processes: Option<u64>,
    /// Bytes on stdout and stderr. The host keeps it; it isn't part of the plan.
    pub output: Option<u64>,
    /// Bytes in each tmpfs.
    pub disk: Option<u64>,
    /// Bytes of the largest file.
    pub file_size: Option<u64>,
    /// Open files of each process.
    pub open_files: Option<u64>,
    /// Address space of each process.
    pub address_space_per_process: Option<u64>,
    /// Stack of each main thread.
    pub stack: Option<u64>,
    /// Bytes of a core file.
    pub core: Option<u64>,
}

impl From<Limits> for nestbox_protocol::Limits {
    fn from(limits: Limits) -> Self {
        Self {
            wall_time: limits.wall_time,
            cpu_time: limits.cpu_time,
            processes: limits.processes,
            open_files: limits.open_files,
            file_size: limits.file_size,
            disk: limits.disk,
            stack: limits.stack,
            core: limits.core,
            address_space_per_process: limits.address_space_per_process,
        }
    }
}

/// A protection that can be insisted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Requirement {
    /// Landlock rules on top of the mount tree.
    Landlock,
}

/// A policy that can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Not JSON, or not the JSON of a policy.
    #[error("this is not the JSON of a policy: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The JSON of another version.
    #[error("the policy has version {version}; this is version 1")]
    Version {
        /// The version it has.
        version: u32,
    },
}

impl Policy {
    /// The only version there is.
    pub const VERSION: u32 = 1;

    /// Reads the published form. Says nothing yet about what it asks for: see [`crate::check()`].
    pub fn parse(json: &str) -> Result<Self, PolicyError> {
        let policy: Self = serde_json::from_str(json)?;
        if policy.version != Self::VERSION {
            return Err(PolicyError::Version { version: policy.version });
        }
        Ok(policy)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What `policy(base).build()` gives.
    pub(crate) const EMPTY: &str = r#"{
        "version": 1, "base": "empty", "mounts": [], "proc": "none", "dev": "none", "rootWritable": false,
        "hostname": "nestbox", "user": {"uid": 1000, "gid": 1000}, "env": {"PATH": "/bin", "HOME": "/tmp"},
        "network": "none", "unixSockets": "none", "syscalls": "default",
        "limits": {"wallTime": 60000, "cpuTime": null, "processes": 128, "output": 10485760, "disk": 67108864,
                   "fileSize": 1073741824, "openFiles": 1024, "addressSpacePerProcess": null, "stack": null, "core": 0},
        "require": []
    }"#;

    pub(crate) fn empty() -> Policy {
        Policy::parse(EMPTY).expect("parses")
    }

    pub(crate) fn host_system() -> Policy {
        Policy { base: Base::HostSystem, proc: Proc::Fresh, dev: Dev::Minimal, ..empty() }
    }

    #[test]
    fn reads_every_kind_of_entry() {
        let json = EMPTY.replace(
            "\"mounts\": []",
            r#""mounts": [
                {"type":"bind","source":"/a","path":"/b","writable":false,"exec":true,"optional":false},
                {"type":"mountPoint","path":"/c","writable":true,"exec":false},
                {"type":"tmpfs","path":"/d","size":null,"inodes":7,"mode":1023},
                {"type":"file","path":"/e","content":"x","encoding":"utf8","mode":420},
                {"type":"symlink","path":"/f","pointsTo":"e"},
                {"type":"librariesFor","binary":"/bin/sh"}
            ]"#,
        );
        let policy = Policy::parse(&json).expect("parses");
        assert_eq!(policy.mounts.len(), 6);
        assert_eq!(policy.mounts[4], MountEntry::Symlink { path: "/f".into(), points_to: "e".into() });
        let again = Policy::parse(&serde_json::to_string(&policy).expect("is JSON")).expect("parses");
        assert_eq!(again, policy);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for (from, to) in [
            ("\"require\": []", "\"require\": [], \"surprise\": 1"),
            ("\"require\": []", "\"require\": [\"luck\"]"),
            ("\"uid\": 1000", "\"uid\": 1000, \"root\": true"),
            ("\"uid\": 1000", "\"uid\": -1"),
            ("\"core\": 0", "\"core\": 0, \"memory\": 1"),
            ("\"base\": \"empty\",", ""),
            ("\"mounts\": []", "\"mounts\": [{\"type\":\"overlay\",\"path\":\"/a\"}]"),
            (
                "\"mounts\": []",
                "\"mounts\": [{\"type\":\"symlink\",\"path\":\"/a\",\"pointsTo\":\"b\",\"mode\":1}]",
            ),
            ("\"network\": \"none\"", "\"network\": \"all\""),
        ] {
            let json = EMPTY.replace(from, to);
            assert_ne!(json, EMPTY);
            assert!(matches!(Policy::parse(&json), Err(PolicyError::Malformed(_))), "{to}");
        }
        let other = EMPTY.replace("\"version\": 1", "\"version\": 2");
        assert!(matches!(Policy::parse(&other), Err(PolicyError::Version { version: 2 })));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            let _ = Policy::parse(&text);
        }
    }
}
