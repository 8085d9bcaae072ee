//! A launch made ready to be carried out without allocating: everything that becomes a C string, a pointer array or a
//! number is made here, by the process that will clone, before it clones.
//!
//! Promises: after [`Prepared::new`] the launch path only reads. Called by templates and by [`crate::request`]; read by
//! [`crate::nest`], [`crate::child`] and [`crate::init`].

use std::ffi::{CString, c_char};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::LazyLock;

use nestbox_protocol::{self as protocol, FdGrant, FdRole, Launch, Limits, Network, Step, Supervision};
use nestbox_sys::Errno;
use prost::bytes::Bytes;

use crate::fault::Fault;
use crate::report::OUTPUTS_MAX;
use crate::source::c_path;
use crate::stack::page_size;

/// Who the sandboxee is. `outer_*` are ids as U0 calls them: under a root host, whose U0 has the identity map, the
/// host's; under an unprivileged one 0, which is the caller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ids {
    pub(crate) inside_uid: u32,
    pub(crate) inside_gid: u32,
    pub(crate) privileged: bool,
    pub(crate) outer_uid: u32,
    pub(crate) outer_gid: u32,
}

/// Where the nest's network namespace comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetworkSource {
    /// Join this one.
    Fd(RawFd),
    /// Made by the clone; its loopback is still down.
    New,
    /// The host's.
    Host,
}

/// What to execute.
#[derive(Debug)]
pub(crate) enum Program {
    /// Paths to try in order, as execvp(3) does.
    Paths(Vec<CString>),
    /// execveat(2) with an empty path.
    Fd(RawFd),
}

/// A per-launch bind: a detached mount and where it goes.
#[derive(Debug)]
pub(crate) struct LaunchBind {
    pub(crate) mount: RawFd,
    pub(crate) path: CString,
    pub(crate) directory: bool,
    pub(crate) writable: bool,
}

/// What is in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'a> {
    Bytes(&'a [u8]),
    /// All that this file has.
    Of(RawFd),
}

/// A private file.
#[derive(Debug)]
pub(crate) struct LaunchFile<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) content: Content<'a>,
    pub(crate) mode: u32,
}

impl<'a> LaunchFile<'a> {
    /// With what the message has of it.
    fn new(file: &'a protocol::LaunchFile) -> Self {
        Self { path: &file.path, content: Content::Bytes(&file.content), mode: file.mode }
    }
}

/// A launch, ready.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    pub(crate) program: Program,
    /// What the caller asked to run, for error records.
    pub(crate) file: &'a [u8],
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    /// Keeps what `argv` and `envp` point to.
    strings: Vec<CString>,
    pub(crate) cwd: CString,
    /// (fd as received, number in the sandboxee).
    pub(crate) fds: Vec<(RawFd, RawFd)>,
    /// What may be opened again of the files that are passed, by the fds as received: see [`crate::landlock`].
    pub(crate) grants: Vec<(RawFd, FdGrant)>,
    /// Set if an fd as received sits where the sandboxee gets one: first free number above all of them, where they are
    /// moved first, in order, the program's fd last.
    pub(crate) staging: Option<RawFd>,
    /// From 3 up, in order: the numbers that stay open until exec. Everything else is closed before.
    pub(crate) kept: Vec<RawFd>,
    pub(crate) ids: Ids,
    /// (RLIMIT_*, value).
    pub(crate) rlimits: Vec<(u32, u64)>,
    pub(crate) wall_ns: Option<u64>,
    pub(crate) cpu_us: Option<u64>,
    pub(crate) disk: Option<u64>,
    pub(crate) network: NetworkSource,
    pub(crate) binds: Vec<LaunchBind>,
    pub(crate) files: Vec<LaunchFile<'a>>,
    pub(crate) outputs: Vec<CString>,
    pub(crate) report_init: bool,
    pub(crate) report_start: bool,
    pub(crate) supervision: Supervision,
    /// Trace it, to see it crash.
    pub(crate) crash_report: bool,
}

impl<'a> Prepared<'a> {
    /// Prepares `request`, whose fds (the launch socket left out) are `fds`, for a nest with the network that its policy
    /// has.
    pub(crate) fn new(
        request: &'a Launch,
        fds: &[OwnedFd],
        network: Network,
        ids: Ids,
    ) -> Result<Self, Fault<'a>> {
        let refuse =
            |detail| Err(Fault::new(Step::DecodeRequest, Errno::EBADMSG, "recvmsg", b"").detail(detail));
        if request.fds.len() != fds.len() {
            return refuse("the launch came with another number of fds than it says");
        }
        if request.outputs.len() > OUTPUTS_MAX {
            return refuse("too many outputs");
        }
        let mut mapped = Vec::with_capacity(fds.len());
        let mut network = match network {
            Network::Host => NetworkSource::Host,
            _ => NetworkSource::New,
        };
        let mut mounts = vec![None; request.binds.len()];
        let mut files: Vec<_> = request.files.iter().map(LaunchFile::new).collect();
        let mut grants = Vec::new();
        let mut exec = None;
        for (passed, fd) in request.fds.iter().zip(fds) {
            let fd = fd.as_raw_fd();
            if passed.grant() != FdGrant::None {
                grants.push((fd, passed.grant()));
            }
            match passed.role() {
                FdRole::Stdio => mapped.push((fd, passed.number as RawFd)),
                FdRole::Bind => match mounts.get_mut(passed.number as usize) {
                    Some(slot) => *slot = Some(fd),
                    None => return refuse("a mount came for a bind that does not exist"),
                },
                FdRole::File => match files.get_mut(passed.number as usize) {
                    Some(file) => file.content = Content::Of(fd),
                    None => return refuse("a file came that the launch does not name"),
                },
                FdRole::NetworkNamespace => network = NetworkSource::Fd(fd),
                FdRole::Exec => exec = Some(fd),
                // Taken by crate::request before it comes here.
                FdRole::UserNamespace | FdRole::InitialUserNamespace | FdRole::InitialMountNamespace => {}
                FdRole::Unspecified => return refuse("an fd without a role"),
            }
        }
        let mut binds = Vec::with_capacity(mounts.len());
        for (bind, mount) in request.binds.iter().zip(mounts) {
            let Some(mount) = mount else { return refuse("a bind without its mount") };
            let (directory, writable) = (bind.directory, bind.writable);
            binds.push(LaunchBind { mount, path: string(&bind.path)?, directory, writable });
        }
        let ids = Ids {
            outer_uid: if ids.privileged { request.outer_uid } else { ids.outer_uid },
            outer_gid: if ids.privileged { request.outer_gid } else { ids.outer_gid },
            ..ids
        };
        let limits = request.limits.unwrap_or_default();
        let mut strings = Vec::with_capacity(request.args.len() + request.envs.len());
        let argv = pointers(&request.args, &mut strings)?;
        let envp = pointers(&request.envs, &mut strings)?;
        Ok(Self {
            program: match exec {
                Some(fd) => Program::Fd(fd),
                None => Program::Paths(candidates(&request.file, &request.search_path)?),
            },
            file: &request.file,
            argv,
            envp,
            strings,
            kept: kept(&mapped, exec),
            staging: staging(&mapped, exec),
            cwd: string(if request.cwd.is_empty() { b"/" } else { &request.cwd })?,
            fds: mapped,
            grants,
            ids,
            rlimits: rlimits(&limits).collect(),
            wall_ns: limits.wall_time.map(|ms| ms.saturating_mul(1_000_000)),
            cpu_us: limits.cpu_time.map(|ms| ms.saturating_mul(1_000)),
            disk: limits.disk,
            network,
            binds,
            files,
            outputs: request.outputs.iter().map(|output| string(&output.path)).collect::<Result<_, _>>()?,
            report_init: request.report_init,
            report_start: request.report_start,
            supervision: request.supervision(),
            crash_report: request.crash_report,
        })
    }

    /// The argument vector, as execve(2) wants it.
    pub(crate) fn argv(&self) -> *const *const c_char {
        self.argv.as_ptr()
    }

    /// Whether execve(2) refuses one argument or variable for its length alone: `MAX_ARG_STRLEN`, 32 pages with the NUL.
    pub(crate) fn has_oversized_string(&self) -> bool {
        let most = 32 * page_size();
        self.strings.iter().any(|string| string.as_bytes_with_nul().len() > most)
    }

    /// The environment, as execve(2) wants it.
    pub(crate) fn envp(&self) -> *const *const c_char {
        self.envp.as_ptr()
    }
}

fn staging(mapped: &[(RawFd, RawFd)], exec: Option<RawFd>) -> Option<RawFd> {
    let above = mapped.iter().map(|&(_, to)| to + 1).max()?;
    let sources = || mapped.iter().map(|&(from, _)| from).chain(exec);
    sources().any(|from| from < above).then(|| sources().fold(above, |base, from| base.max(from + 1)))
}

/// What the launch child leaves open: the sandboxee's fds, and the program's where [`staging`] puts it.
fn kept(mapped: &[(RawFd, RawFd)], exec: Option<RawFd>) -> Vec<RawFd> {
    let moved = staging(mapped, exec).map(|base| base + mapped.len() as RawFd);
    let mut kept: Vec<RawFd> = mapped.iter().map(|&(_, to)| to).filter(|&to| to > 2).collect();
    kept.extend(exec.map(|exec| moved.unwrap_or(exec)));
    kept.sort_unstable();
    kept.dedup();
    kept
}

fn string(bytes: &[u8]) -> Result<CString, Fault<'_>> {
    c_path(bytes).map_err(|errno| {
        Fault::new(Step::DecodeRequest, errno, "recvmsg", bytes).detail("a string with a NUL byte")
    })
}

/// Pointers to C strings of `texts`, null-terminated. The strings go to `keep`: a CString's bytes do not move with it.
fn pointers<'a>(texts: &'a [Bytes], keep: &mut Vec<CString>) -> Result<Vec<*const c_char>, Fault<'a>> {
    let mut all = Vec::with_capacity(texts.len() + 1);
    for text in texts {
        let text = string(text)?;
        all.push(text.as_ptr());
        keep.push(text);
    }
    all.push(std::ptr::null());
    Ok(all)
}

/// Where execvp(3) would look: the name itself if it has a slash, else each directory of the path.
fn candidates<'a>(file: &'a [u8], search_path: &[u8]) -> Result<Vec<CString>, Fault<'a>> {
    if file.contains(&b'/') || file.is_empty() {
        return Ok(vec![string(file)?]);
    }
    search_path
        .split(|&byte| byte == b':')
        .filter(|directory| directory.starts_with(b"/"))
        .map(|directory| {
            c_path(&[directory, b"/", file].concat())
                .map_err(|errno| Fault::new(Step::DecodeRequest, errno, "recvmsg", file))
        })
        .collect()
}

/// Resource limits of the sandboxee and its children: getrlimit(2).
pub(crate) fn rlimits(limits: &Limits) -> impl Iterator<Item = (u32, u64)> {
    [
        (libc::RLIMIT_NPROC, limits.processes),
        (libc::RLIMIT_NOFILE, limits.open_files),
        (libc::RLIMIT_FSIZE, limits.file_size),
        (libc::RLIMIT_STACK, limits.stack),
        (libc::RLIMIT_AS, limits.address_space_per_process),
        // A core_pattern that is a pipe ignores a limit of 0 and honours 1: core(5).
        (libc::RLIMIT_CORE, limits.core.map(|bytes| bytes.max(1))),
        // Init sums the nest's CPU time; this stops a single process even between two looks.
        (libc::RLIMIT_CPU, limits.cpu_time.map(|ms| cpu_seconds(ms.saturating_mul(1_000)))),
    ]
    .into_iter()
    .filter_map(|(resource, value)| Some((resource, value?)))
}

/// What RLIMIT_CPU, which counts whole seconds, has to be so as to end nobody who has used no more than this.
pub(crate) fn cpu_seconds(us: u64) -> u64 {
    us.div_ceil(1_000_000).saturating_add(1)
}

/// How many processors are online. Looked up once, by the fork server: a process with a filter on may not.
pub(crate) fn processors() -> u64 {
    static COUNT: LazyLock<u64> = LazyLock::new(|| {
        // SAFETY: takes a number.
        let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        u64::try_from(count).unwrap_or(1).max(1)
    });
    *COUNT
}
