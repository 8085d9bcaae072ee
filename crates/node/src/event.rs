//! What JavaScript is told, as types: events, results, failures.

use napi::bindgen_prelude::{Buffer, ToNapiValue, TypeName};
use napi::{Result, ValueType, sys};
use napi_derive::napi;
use nestbox_client::{Crash, Failure, Output, OutputError};

use crate::syscall::{NativeAsked, NativeLearned, NativeSystemCall};

/// Output smaller than this is copied into a JavaScript buffer, which is cheaper than one with a finalizer; larger output is
/// handed over as it is.
const COPY_BELOW: usize = 32 * 1024;

/// Bytes on their way to a `Buffer`.
#[derive(Debug)]
pub struct Bytes(pub(crate) Vec<u8>);

impl TypeName for Bytes {
    fn type_name() -> &'static str {
        "Buffer"
    }

    fn value_type() -> ValueType {
        ValueType::Object
    }
}

impl ToNapiValue for Bytes {
    unsafe fn to_napi_value(env: sys::napi_env, Self(bytes): Self) -> Result<sys::napi_value> {
        if bytes.is_empty() || bytes.len() >= COPY_BELOW {
            // SAFETY: the caller's environment.
            return unsafe { Buffer::to_napi_value(env, bytes.into()) };
        }
        let mut value = std::ptr::null_mut();
        // SAFETY: the bytes are valid for their length and copied during the call.
        let status = unsafe {
            sys::napi_create_buffer_copy(
                env,
                bytes.len(),
                bytes.as_ptr().cast(),
                std::ptr::null_mut(),
                &raw mut value,
            )
        };
        napi::check_status!(status, "a buffer could not be made")?;
        Ok(value)
    }
}

/// The record of something that failed.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeFailure {
    pub code: &'static str,
    pub errno: i32,
    pub errno_name: String,
    pub syscall: String,
    pub step: String,
    pub path: Option<String>,
    pub hint: Option<String>,
    pub exec: bool,
    pub message: String,
}

impl From<Failure> for NativeFailure {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure.code.name(),
            errno: failure.errno as i32,
            errno_name: failure.errno_name(),
            step: failure.step_name(),
            exec: failure.code == nestbox_client::Code::Exec,
            message: failure.to_string(),
            syscall: failure.syscall,
            path: failure.path,
            hint: failure.hint,
        }
    }
}

/// A file that a launch left.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeOutput {
    pub bytes: f64,
    #[napi(ts_type = "Buffer")]
    pub content: Option<Bytes>,
    pub errno: Option<i32>,
    pub errno_name: Option<String>,
    /// It is the errno of the host file.
    pub of_target: Option<bool>,
    pub too_large: Option<bool>,
}

impl From<Output> for NativeOutput {
    fn from(output: Output) -> Self {
        let (errno, of_target) = match output.error {
            None => (None, None),
            Some(OutputError::Source(errno)) => (Some(errno), None),
            Some(OutputError::Target(errno)) => (Some(errno), Some(true)),
        };
        Self {
            bytes: output.bytes as f64,
            content: output.content.map(Bytes),
            errno: errno.map(|errno| errno as i32),
            errno_name: errno.map(|errno| format!("{errno:?}")),
            of_target,
            too_large: output.too_large.then_some(true),
        }
    }
}

/// What became of the capture of a crash.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeCrash {
    /// Lines of JSON, each a report and better than the one before; from a sandbox.
    #[napi(ts_type = "Buffer")]
    pub report: Bytes,
    pub problem: Option<String>,
}

impl From<Crash> for NativeCrash {
    fn from(Crash { report, problem }: Crash) -> Self {
        Self { report: Bytes(report), problem }
    }
}

/// A step of the set-up.
// Made by `crate::result`; this names its type.
#[napi(object, object_from_js = false, object_to_js = false)]
#[allow(dead_code, reason = "a type of JavaScript")]
#[derive(Debug)]
pub struct NativeStep {
    pub step: String,
    /// Since the one before, or since the launch was asked for.
    pub ms: f64,
}

/// The result of a launch whose program ran.
// Made by `crate::result`; this names its type.
#[napi(object, object_from_js = false, object_to_js = false)]
#[allow(dead_code, reason = "a type of JavaScript")]
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
pub struct NativeEnded {
    pub pid: i32,
    pub init_pid: i32,
    #[napi(ts_type = "'exited' | 'signaled'")]
    pub ending: String,
    pub status: i32,
    #[napi(ts_type = "'wallTime' | 'cpuTime' | 'fileSize' | 'output' | undefined")]
    pub limit: Option<String>,
    pub killed_by_host: bool,
    pub violated: bool,
    #[napi(ts_type = "NativeSystemCall | undefined")]
    pub violation: Option<NativeSystemCall>,
    #[napi(ts_type = "NativeLearned | undefined")]
    pub learned: Option<NativeLearned>,
    pub disk_full: bool,
    #[napi(ts_type = "Buffer | undefined")]
    pub stdout: Option<Bytes>,
    #[napi(ts_type = "Buffer | undefined")]
    pub stderr: Option<Bytes>,
    pub stdout_bytes: f64,
    pub stderr_bytes: f64,
    pub user_cpu_us: f64,
    pub system_cpu_us: f64,
    pub max_rss_kib: f64,
    pub minor_faults: f64,
    pub major_faults: f64,
    pub voluntary_switches: f64,
    pub involuntary_switches: f64,
    pub submitted_ns: f64,
    pub exec_ns: f64,
    pub ended_ns: f64,
    pub steps: Vec<NativeStep>,
    pub outputs: Vec<NativeOutput>,
    pub skipped: Vec<String>,
    pub namespaces: Vec<String>,
    pub network: String,
    pub no_new_privs: bool,
    pub filter: String,
    /// 0: it was not enforced.
    pub landlock_abi: u32,
    /// Bit 0: abstract unix sockets, 1: signals.
    pub landlock_scopes: u32,
    /// The nest was made before its launch.
    pub warm: bool,
    #[napi(ts_type = "NativeCrash | undefined")]
    pub crash: Option<NativeCrash>,
}

/// What happened.
// Made by `crate::result`; this names its type.
#[napi(object, object_from_js = false, object_to_js = false)]
#[allow(dead_code, reason = "a type of JavaScript")]
#[derive(Debug)]
pub struct NativeEvent {
    #[napi(
        ts_type = "'server-ready' | 'server-lost' | 'prepared' | 'placed' | 'started' | 'asked' | 'limited' | 'ended' | 'failed' | 'lost'"
    )]
    pub kind: String,
    pub token: f64,
    #[napi(ts_type = "number | undefined")]
    pub pid: Option<i32>,
    #[napi(ts_type = "NativeFailure | undefined")]
    pub failure: Option<NativeFailure>,
    #[napi(ts_type = "NativeAsked | undefined")]
    pub asked: Option<NativeAsked>,
    #[napi(ts_type = "NativeEnded | undefined")]
    pub ended: Option<NativeEnded>,
}
