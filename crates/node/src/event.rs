//! Events and results as JavaScript values.

use napi::bindgen_prelude::{Buffer, ToNapiValue, TypeName};
use napi::{Result, ValueType, sys};
use napi_derive::napi;
use nestbox_client::{Ended, Ending, Event, Failure, NAMESPACES, Output};

/// Output smaller than this is copied into a JavaScript buffer, which is cheaper than one with a finalizer; larger output is
/// handed over as it is.
const COPY_BELOW: usize = 32 * 1024;

/// Bytes on their way to a `Buffer`.
#[derive(Debug)]
pub struct Bytes(Vec<u8>);

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
    pub too_large: Option<bool>,
}

impl From<Output> for NativeOutput {
    fn from(output: Output) -> Self {
        Self {
            bytes: output.bytes as f64,
            content: output.content.map(Bytes),
            errno: output.error.map(|errno| errno as i32),
            errno_name: output.error.map(|errno| format!("{errno:?}")),
            too_large: output.too_large.then_some(true),
        }
    }
}

/// The result of a launch whose program ran.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeEnded {
    pub pid: i32,
    pub init_pid: i32,
    #[napi(ts_type = "'exited' | 'signaled'")]
    pub ending: &'static str,
    pub status: i32,
    #[napi(ts_type = "'wallTime' | 'cpuTime' | 'fileSize' | 'output'")]
    pub limit: Option<&'static str>,
    pub killed_by_host: bool,
    pub disk_full: bool,
    #[napi(ts_type = "Buffer")]
    pub stdout: Option<Bytes>,
    #[napi(ts_type = "Buffer")]
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
    pub mark_steps: Vec<String>,
    pub mark_ns: Vec<f64>,
    pub outputs: Vec<NativeOutput>,
    pub skipped: Vec<String>,
    pub namespaces: Vec<&'static str>,
    pub network: &'static str,
    pub no_new_privs: bool,
    pub filter: &'static str,
}

impl From<Ended> for NativeEnded {
    fn from(ended: Ended) -> Self {
        let (ending, status) = match ended.ending {
            Ending::Exited(code) => ("exited", code),
            Ending::Signaled(signal) => ("signaled", signal),
        };
        let own = |(flag, name): &(i32, &'static str)| {
            (ended.isolation.namespaces & *flag as u64 != 0).then_some(*name)
        };
        Self {
            pid: ended.pid,
            init_pid: ended.init_pid,
            ending,
            status,
            limit: ended.limit.map(nestbox_client::Limit::name),
            killed_by_host: ended.killed_by_host,
            disk_full: ended.disk_full,
            stdout: ended.stdout.map(Bytes),
            stderr: ended.stderr.map(Bytes),
            stdout_bytes: ended.stdout_bytes as f64,
            stderr_bytes: ended.stderr_bytes as f64,
            user_cpu_us: ended.usage.user_cpu_us as f64,
            system_cpu_us: ended.usage.system_cpu_us as f64,
            max_rss_kib: ended.usage.max_rss_kib as f64,
            minor_faults: ended.usage.minor_faults as f64,
            major_faults: ended.usage.major_faults as f64,
            voluntary_switches: ended.usage.voluntary_switches as f64,
            involuntary_switches: ended.usage.involuntary_switches as f64,
            submitted_ns: ended.submitted_ns as f64,
            exec_ns: ended.exec_ns as f64,
            ended_ns: ended.ended_ns as f64,
            mark_steps: ended.marks.iter().map(|(step, _)| step.name()).collect(),
            mark_ns: ended.marks.iter().map(|(_, time)| *time as f64).collect(),
            outputs: ended.outputs.into_iter().map(NativeOutput::from).collect(),
            skipped: ended.skipped,
            namespaces: NAMESPACES.iter().filter_map(own).collect(),
            network: ended.isolation.network,
            no_new_privs: ended.isolation.no_new_privs,
            filter: ended.isolation.filter,
        }
    }
}

/// What happened.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeEvent {
    #[napi(
        ts_type = "'server-ready' | 'server-lost' | 'prepared' | 'placed' | 'started' | 'ended' | 'failed' | 'lost'"
    )]
    pub kind: &'static str,
    pub token: f64,
    pub pid: Option<i32>,
    pub failure: Option<NativeFailure>,
    pub ended: Option<NativeEnded>,
}

impl From<Event> for NativeEvent {
    fn from(event: Event) -> Self {
        let plain =
            |kind, token: u64| Self { kind, token: token as f64, pid: None, failure: None, ended: None };
        match event {
            Event::ServerReady { pid } => Self { pid: Some(pid), ..plain("server-ready", 0) },
            Event::ServerLost(failure) => Self { failure: Some(failure.into()), ..plain("server-lost", 0) },
            Event::Prepared { token } => plain("prepared", token),
            Event::Placed { token, pid } => Self { pid: Some(pid), ..plain("placed", token) },
            Event::Started { token, pid } => Self { pid: Some(pid), ..plain("started", token) },
            Event::Ended { token, ended } => Self { ended: Some((*ended).into()), ..plain("ended", token) },
            Event::Failed { token, failure } => {
                Self { failure: Some(failure.into()), ..plain("failed", token) }
            }
            Event::Lost { token, failure } => Self { failure: Some(failure.into()), ..plain("lost", token) },
        }
    }
}
