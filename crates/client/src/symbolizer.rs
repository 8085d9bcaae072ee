//! The sandbox in which a crash is made sense of, and what comes out of it.
//!
//! What was captured of a crash goes, unread, to a launch of its own: the embedded symboliser (`crates/symbolize`), in a policy
//! that has nothing but the capture and the files that were mapped, as fds. Promises: nobody outside of that sandbox
//! interprets what a crashed program left behind; the result waits for it no longer than [`WALL_TIME`]; a report that could
//! not be had, or only in part, says why.

use std::os::fd::{AsRawFd, OwnedFd};

use nestbox_protocol::Step;
use nestbox_protocol::crash::{CAPTURE_FD, MODULES};

use crate::failure::{Code, Failure};
use crate::image::Image;
use crate::launch::{Ended, Ending, LaunchRequest};
use crate::policy::PolicyHandle;
use crate::stdio::{Extra, Fds, Stdio};

/// The most fds that come of a crash: the capture and the files.
pub(crate) const FDS: usize = 1 + MODULES;

/// How long it may take, in milliseconds. A large program with all its debug information takes half a second.
const WALL_TIME: u64 = 5_000;

/// The most that a report may have: it bounds itself far below.
const OUTPUT: u64 = 8 << 20;

/// What became of the capture of a crash.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Crash {
    /// Lines of JSON, each a whole report and better than the one before. From a sandbox: to be checked.
    pub report: Vec<u8>,
    /// Why it is less than it could be.
    pub problem: Option<String>,
}

/// The symboliser's policy: no file, no network, no device, and only calls that compute.
pub(crate) fn policy() -> Result<PolicyHandle, Failure> {
    let json = format!(
        r#"{{"version": 1, "base": "empty", "mounts": [], "proc": "none", "dev": "none", "rootWritable": false,
        "hostname": "nestbox", "user": {{"uid": 1000, "gid": 1000}}, "env": {{}}, "network": "none",
        "unixSockets": "none", "syscalls": "strict", "limits": {{"wallTime": {WALL_TIME}, "cpuTime": {WALL_TIME},
        "processes": 1, "output": {OUTPUT}, "disk": 4096, "fileSize": 0, "openFiles": 64,
        "addressSpacePerProcess": {ADDRESS_SPACE}, "stack": null, "core": 0}}, "require": []}}"#
    );
    PolicyHandle::parse(&json).map_err(|error| crate::server::gone(&error))
}

/// For the files, which are mapped, and for what a hostile one has it allocate.
const ADDRESS_SPACE: u64 = 2 << 30;

/// Its executable.
pub(crate) fn program(image: &Image) -> Result<OwnedFd, Failure> {
    if let Image::Embedded([]) = image {
        let missing = "this build of the addon has no symboliser in it";
        return Err(Failure::fact(Code::Spawn, Step::TraceProgram, missing));
    }
    image.open()
}

/// The launch that reads `crash`.
pub(crate) fn request<'a>(
    policy: &'a PolicyHandle,
    program: &'a OwnedFd,
    crash: &'a [OwnedFd],
) -> LaunchRequest<'a> {
    let name = b"nestbox-symbolize".to_vec();
    LaunchRequest {
        policy: Some(policy),
        file: name.clone(),
        args: vec![name.into()],
        exec_fd: Some(program.as_raw_fd()),
        fds: Fds {
            stdio: [Stdio::Ignore, Stdio::Native, Stdio::Ignore],
            extra: (CAPTURE_FD..).zip(crash.iter().map(|fd| Extra::Fd(fd.as_raw_fd()))).collect(),
            output_limit: Some(OUTPUT),
            ..Fds::default()
        },
        ..LaunchRequest::default()
    }
}

/// What is made of how it ended.
pub(crate) fn conclude(ended: Ended) -> Crash {
    let problem = match (ended.limit, ended.ending) {
        (Some(limit), _) => Some(format!("the symboliser reached its limit {}", limit.name())),
        (None, Ending::Exited(0)) => None,
        (None, Ending::Exited(code)) => Some(format!("the symboliser failed with exit code {code}")),
        (None, Ending::Signaled(signal)) => Some(format!("the symboliser was killed by signal {signal}")),
    };
    Crash { report: ended.stdout.unwrap_or_default(), problem }
}

/// There was none.
pub(crate) fn failed(failure: &Failure) -> Crash {
    Crash { report: Vec::new(), problem: Some(format!("the symboliser could not be launched: {failure}")) }
}
