//! Launch requests from JavaScript values.

use std::os::fd::{IntoRawFd, OwnedFd};
use std::path::PathBuf;

use napi::bindgen_prelude::{Either, Uint8ArraySlice};
use napi::{Error, Status};
use napi_derive::napi;
use nestbox_client::{
    BindRequest, Comms, Extra, Fds, FileRequest, LaunchRequest, Launched, Limits, OnOverflow, OutputRequest,
    Returned, Stdio, Supervision, Warm,
};
use prost::bytes::Bytes;

use crate::event::NativeFailure;
use crate::policy::NativePolicy;

/// Captured, or written from memory.
const NATIVE: i32 = -2;
/// A pipe, the other end of which is returned.
const STREAM: i32 = -3;
/// Standard error: the same pipe as standard output.
const SAME_AS_STDOUT: i32 = -4;

/// The numbers of a launch, in the order in which JavaScript writes them (`lib/connection.ts`).
const STDIN: usize = 0;
const STDOUT: usize = 1;
const STDERR: usize = 2;
const OUTPUT_LIMIT: usize = 3;
const ON_OVERFLOW: usize = 4;
const FLAGS: usize = 5;
const ARGUMENTS: usize = 6;
const WARM: usize = 7;
const WARM_IDLE: usize = 8;

/// How many there are.
pub(crate) const NUMBERS: usize = 9;

/// Bits of `FLAGS`.
const COMMS: u32 = 1;
const CHECK_FDS: u32 = 2;
const REPORT_START: u32 = 4;
const CRASH_REPORT: u32 = 8;
const STANDBY: u32 = 16;

/// Has a descriptor that was opened without waiting block again, as the program that gets it expects.
#[napi(catch_unwind)]
pub fn set_blocking(fd: i32) -> napi::Result<()> {
    nestbox_client::block(fd)
        .map_err(|errno| Error::new(Status::GenericFailure, format!("descriptor {fd}: {errno}")))
}

/// What few launches have.
#[napi(object, object_to_js = false)]
#[derive(Default)]
pub struct NativeExtras<'env> {
    pub extra_fds: Option<Vec<i32>>,
    #[napi(ts_type = "Uint8Array")]
    pub input: Option<Uint8ArraySlice<'env>>,
    pub binds: Option<Vec<NativeBind>>,
    pub files: Option<Vec<NativeFile<'env>>>,
    pub outputs: Option<Vec<NativeOutputRequest>>,
    pub limits: Option<NativeLimits>,
    #[napi(ts_type = "'ask' | 'learn'")]
    pub supervision: Option<String>,
}

/// A host path on a mount point.
#[napi(object, object_to_js = false)]
pub struct NativeBind {
    pub path: String,
    pub source: String,
}

/// A private file.
#[napi(object, object_to_js = false)]
pub struct NativeFile<'env> {
    pub path: String,
    #[napi(ts_type = "Uint8Array")]
    pub content: Uint8ArraySlice<'env>,
    pub mode: u32,
}

/// A file to return.
#[napi(object, object_to_js = false)]
pub struct NativeOutputRequest {
    pub path: String,
    pub max_bytes: f64,
    pub to: Option<String>,
}

/// Limits that a launch tightens, or that change while it runs; then `Infinity` lifts the wall time or the CPU time.
#[napi(object)]
#[derive(Default)]
pub struct NativeLimits {
    pub wall_time: Option<f64>,
    pub cpu_time: Option<f64>,
    pub processes: Option<f64>,
    pub open_files: Option<f64>,
    pub file_size: Option<f64>,
    pub disk: Option<f64>,
    pub stack: Option<f64>,
    pub core: Option<f64>,
    pub address_space_per_process: Option<f64>,
}

/// The answer to a request: its token, and the caller's ends of its fds, which are the caller's to close.
#[napi(object, object_from_js = false)]
#[derive(Debug, Default)]
pub struct NativeLaunched {
    pub token: f64,
    pub stdin: Option<i32>,
    pub stdout: Option<i32>,
    pub stderr: Option<i32>,
    pub comms: Option<i32>,
    pub extra: Option<Vec<i32>>,
    pub failure: Option<NativeFailure>,
}

/// A whole number of JavaScript; what is negative or no number is 0, what is larger than any is the largest.
pub(crate) fn whole(value: f64) -> u64 {
    value as u64
}

/// `texts` joined by NUL, as parts of one piece of memory: of two megabytes each copy costs a millisecond.
pub(crate) fn split(texts: String) -> Vec<Bytes> {
    let ends: Vec<usize> = texts.match_indices('\0').map(|(end, _)| end).chain([texts.len()]).collect();
    let whole = Bytes::from(texts);
    let starts = [0].into_iter().chain(ends.iter().map(|end| end + 1));
    starts.zip(&ends).map(|(start, &end)| whole.slice(start..end)).collect()
}

/// [`split`] where no text at all means an empty list: an environment.
pub(crate) fn split_or_none(texts: String) -> Vec<Bytes> {
    if texts.is_empty() { Vec::new() } else { split(texts) }
}

pub(crate) fn stdio(number: i32) -> Stdio {
    match number {
        NATIVE => Stdio::Native,
        STREAM => Stdio::Stream,
        SAME_AS_STDOUT => Stdio::SameAsStdout,
        fd if fd >= 0 => Stdio::Fd(fd),
        _ => Stdio::Ignore,
    }
}

fn extra(pair: &[i32]) -> Option<(u32, Extra)> {
    let [number, fd] = *pair else { return None };
    let number = u32::try_from(number).ok()?;
    Some((number, if fd == STREAM { Extra::Stream } else { Extra::Fd(fd) }))
}

/// What the limits of each process are at most on this host.
#[napi(catch_unwind)]
pub fn hard_limits() -> NativeLimits {
    let hard = nestbox_client::hard_limits();
    let number = |limit: Option<u64>| limit.map(|limit| limit as f64);
    NativeLimits {
        processes: number(hard.processes),
        open_files: number(hard.open_files),
        file_size: number(hard.file_size),
        stack: number(hard.stack),
        core: number(hard.core),
        address_space_per_process: number(hard.address_space_per_process),
        ..NativeLimits::default()
    }
}

impl NativeLimits {
    pub(crate) fn convert(&self) -> Limits {
        Limits {
            wall_time: self.wall_time.map(whole),
            cpu_time: self.cpu_time.map(whole),
            processes: self.processes.map(whole),
            open_files: self.open_files.map(whole),
            file_size: self.file_size.map(whole),
            disk: self.disk.map(whole),
            stack: self.stack.map(whole),
            core: self.core.map(whole),
            address_space_per_process: self.address_space_per_process.map(whole),
        }
    }
}

/// What to launch, as it comes from JavaScript. Not an object: to read its twenty properties took longer than all else that
/// is done for a launch on this side.
pub(crate) struct NativeLaunch<'a> {
    pub(crate) policy: Option<&'a NativePolicy>,
    /// Joined by NUL: the file, the working directory, the search path, the arguments, the environment.
    pub(crate) text: String,
    pub(crate) extras: &'a NativeExtras<'a>,
    pub(crate) numbers: [f64; NUMBERS],
}

impl<'a> NativeLaunch<'a> {
    pub(crate) fn convert(self) -> LaunchRequest<'a> {
        let Self { policy, text, extras, numbers } = self;
        let number = |index: usize| numbers[index] as i32;
        let has = |flag: u32| numbers[FLAGS] as u32 & flag != 0;
        let mut texts = split(text).into_iter();
        let mut next = || texts.next().unwrap_or_default().to_vec();
        let (file, cwd, search_path) = (next(), next(), next());
        let args = texts.by_ref().take(numbers[ARGUMENTS] as usize).collect();
        let pairs = extras.extra_fds.as_deref().unwrap_or_default().chunks(2);
        let idle = numbers[WARM_IDLE];
        LaunchRequest {
            policy: policy.map(|policy| &*policy.handle),
            file,
            args,
            envs: texts.collect(),
            search_path,
            cwd,
            fds: Fds {
                stdio: [STDIN, STDOUT, STDERR].map(|index| stdio(number(index))),
                extra: pairs.filter_map(extra).collect(),
                input: extras.input.as_deref(),
                comms: if has(COMMS) { Comms::Stream } else { Comms::None },
                check: has(CHECK_FDS),
                output_limit: (numbers[OUTPUT_LIMIT] >= 0.0).then(|| whole(numbers[OUTPUT_LIMIT])),
                on_overflow: match number(ON_OVERFLOW) {
                    1 => OnOverflow::KeepHead,
                    2 => OnOverflow::KeepTail,
                    _ => OnOverflow::Kill,
                },
            },
            binds: list(extras.binds.as_deref(), |bind| BindRequest {
                path: bind.path.clone(),
                source: bind.source.clone(),
            }),
            files: list(extras.files.as_deref(), |file| FileRequest {
                path: file.path.clone().into_bytes(),
                content: &file.content,
                mode: file.mode,
            }),
            outputs: list(extras.outputs.as_deref(), |output| OutputRequest {
                path: output.path.clone(),
                max_bytes: whole(output.max_bytes),
                to: output.to.as_ref().map(PathBuf::from),
            }),
            limits: extras.limits.as_ref().map(NativeLimits::convert).unwrap_or_default(),
            report_start: has(REPORT_START),
            supervision: match extras.supervision.as_deref() {
                Some("ask") => Supervision::Ask,
                Some("learn") => Supervision::Learn,
                _ => Supervision::Report,
            },
            crash_report: has(CRASH_REPORT),
            standby: has(STANDBY),
            warm: warm(numbers[WARM] as u32, (idle >= 0.0).then_some(idle)),
            exec_fd: None,
        }
    }
}

/// So many warm nests, which wait so many milliseconds; without a time for ever.
pub(crate) fn warm(count: u32, idle: Option<f64>) -> Warm {
    Warm { count: count as usize, idle_ns: idle.map(|ms| whole(ms * 1e6)) }
}

fn list<'a, F, T>(from: Option<&'a [F]>, convert: impl Fn(&'a F) -> T) -> Vec<T> {
    from.unwrap_or_default().iter().map(convert).collect()
}

impl NativeLaunched {
    /// The token alone, if there is nothing else to say.
    pub(crate) fn or_token(result: Result<Launched, nestbox_client::Failure>) -> Either<f64, Self> {
        match result {
            Ok(Launched { token, returned }) if returned.is_empty() => Either::A(token as f64),
            other => Either::B(Self::new(other)),
        }
    }

    pub(crate) fn new(result: Result<Launched, nestbox_client::Failure>) -> Self {
        let Launched { token, returned } = match result {
            Ok(launched) => launched,
            Err(failure) => return Self { failure: Some(failure.into()), ..Self::default() },
        };
        let Returned { stdin, stdout, stderr, comms, extra } = returned;
        Self {
            token: token as f64,
            stdin: stdin.map(OwnedFd::into_raw_fd),
            stdout: stdout.map(OwnedFd::into_raw_fd),
            stderr: stderr.map(OwnedFd::into_raw_fd),
            comms: comms.map(OwnedFd::into_raw_fd),
            extra: (!extra.is_empty()).then(|| extra.into_iter().map(OwnedFd::into_raw_fd).collect()),
            failure: None,
        }
    }
}
