//! Results as JavaScript values, made fast: every launch has one, and its thirty properties would cost as many calls.
//!
//! The numbers are written into memory that JavaScript sees as a `Float64Array`, and a function of `result.js` makes the
//! object from them and hands it over: one call into JavaScript for each event. These functions are made once for each server.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

use napi::bindgen_prelude::ToNapiValue;
use napi::{Env, Result, check_status, sys};
use nestbox_client::{Ended, Ending, Event, Failure, Landlock, Limit, NAMESPACES, Step};

use crate::event::{Bytes, NativeCrash, NativeFailure, NativeOutput};
use crate::loop_poll::Call;
use crate::syscall::{NativeAsked, NativeLearned, NativeSystemCall, hexadecimal};

/// The function's source.
const SOURCE: &str = include_str!("result.js");

/// How many numbers there is room for.
const ROOM: usize = 256;

/// How many there are before the marks.
const FIXED: usize = 29;

const NETWORKS: [&str; 4] = ["none", "shared-loopback", "host", "zygote"];
const FILTERS: [&str; 4] = ["unfiltered", "default", "strict", "custom"];
const LIMITS: [Option<Limit>; 5] =
    [None, Some(Limit::WallTime), Some(Limit::CpuTime), Some(Limit::FileSize), Some(Limit::Output)];

/// The largest step's number and one.
const STEPS: i32 = 128;

/// Makes events.
pub(crate) struct ResultMaker {
    env: sys::napi_env,
    /// Holds the array, and with it the memory of `numbers`.
    array: Cell<sys::napi_ref>,
    plain: Cell<sys::napi_ref>,
    asked: Cell<sys::napi_ref>,
    ended: Cell<sys::napi_ref>,
    numbers: *mut f64,
}

/// Calls into Node-API with a value as their only result.
macro_rules! value {
    ($call:path, $env:expr $(, $argument:expr)*; $what:literal) => {{
        let mut value = ptr::null_mut();
        // SAFETY: an environment on its own thread with an open handle scope; arguments as the function takes them.
        let status = unsafe { $call($env $(, $argument)*, &raw mut value) };
        check_status!(status, $what)?;
        value
    }};
}

fn to_value<T: ToNapiValue>(env: sys::napi_env, value: T) -> Result<sys::napi_value> {
    // SAFETY: an environment on its own thread, with an open handle scope.
    unsafe { T::to_napi_value(env, value) }
}

fn put(
    env: sys::napi_env,
    object: sys::napi_value,
    name: &std::ffi::CStr,
    value: sys::napi_value,
) -> Result<()> {
    // SAFETY: an object and a value of open handle scopes.
    let status = unsafe { sys::napi_set_named_property(env, object, name.as_ptr(), value) };
    check_status!(status, "a property could not be set")
}

impl ResultMaker {
    /// `receive` is handed every event.
    pub(crate) fn new(env: Env, receive: sys::napi_value) -> Result<Self> {
        let env = env.raw();
        let mut memory: *mut c_void = ptr::null_mut();
        let buffer =
            value!(sys::napi_create_arraybuffer, env, ROOM * size_of::<f64>(), &raw mut memory; "no memory");
        let kind = sys::TypedarrayType::float64_array;
        let array = value!(sys::napi_create_typedarray, env, kind, ROOM, buffer, 0; "no typed array");

        let steps = (0..STEPS).map(|number| Step::try_from(number).map_or(String::new(), Step::name));
        let names = value!(sys::napi_create_object, env; "no object");
        put(env, names, c"steps", to_value(env, steps.collect::<Vec<_>>())?)?;
        put(env, names, c"namespaces", to_value(env, NAMESPACES.map(|(_, name)| name).to_vec())?)?;
        put(env, names, c"networks", to_value(env, NETWORKS.to_vec())?)?;
        put(env, names, c"filters", to_value(env, FILTERS.to_vec())?)?;
        let limits = LIMITS.map(|limit| limit.map(Limit::name));
        put(env, names, c"limits", to_value(env, limits.to_vec())?)?;

        let source = to_value(env, SOURCE)?;
        let factory = value!(sys::napi_run_script, env, source; "result.js does not run");
        let global = value!(sys::napi_get_global, env; "no global object");
        let given = [array, names, receive];
        let made = value!(sys::napi_call_function, env, global, factory, given.len(), given.as_ptr(); "result.js makes nothing");
        let plain = value!(sys::napi_get_named_property, env, made, c"plain".as_ptr(); "no plain()");
        let asked = value!(sys::napi_get_named_property, env, made, c"asked".as_ptr(); "no asked()");
        let ended = value!(sys::napi_get_named_property, env, made, c"ended".as_ptr(); "no ended()");
        Ok(Self {
            env,
            array: Cell::new(value!(sys::napi_create_reference, env, array, 1; "no reference")),
            plain: Cell::new(value!(sys::napi_create_reference, env, plain, 1; "no reference")),
            asked: Cell::new(value!(sys::napi_create_reference, env, asked, 1; "no reference")),
            ended: Cell::new(value!(sys::napi_create_reference, env, ended, 1; "no reference")),
            numbers: memory.cast(),
        })
    }

    /// Lets go of all that it holds. Nothing can be made afterwards.
    pub(crate) fn close(&self) {
        for reference in [&self.array, &self.plain, &self.asked, &self.ended] {
            let reference = reference.replace(ptr::null_mut());
            if !reference.is_null() {
                // SAFETY: made in this environment, deleted once.
                unsafe { sys::napi_delete_reference(self.env, reference) };
            }
        }
    }

    /// The array over the numbers, which JavaScript also writes: those of a launch.
    pub(crate) fn array(&self) -> Result<sys::napi_value> {
        Ok(value!(sys::napi_get_reference_value, self.env, self.array.get(); "closed"))
    }

    /// What JavaScript has written.
    pub(crate) fn numbers<const N: usize>(&self) -> [f64; N] {
        const { assert!(N <= ROOM) };
        if self.array.get().is_null() {
            return [0.0; N];
        }
        // SAFETY: ROOM numbers, initialised, in memory that `array` holds; JavaScript does not run meanwhile.
        unsafe { self.numbers.cast::<[f64; N]>().read() }
    }

    fn write(&self, numbers: impl IntoIterator<Item = f64>) {
        // SAFETY: ROOM numbers in memory that `array` holds; JavaScript, which sees it too, does not run meanwhile.
        let room = unsafe { std::slice::from_raw_parts_mut(self.numbers, ROOM) };
        room.iter_mut().zip(numbers).for_each(|(slot, number)| *slot = number);
    }

    fn function(&self, function: &Cell<sys::napi_ref>) -> Result<sys::napi_value> {
        Ok(value!(sys::napi_get_reference_value, self.env, function.get(); "closed"))
    }

    /// The call that hands over an event as a value of the type [`crate::event::NativeEvent`], in an open handle scope.
    pub(crate) fn call(&self, event: Event) -> Result<Call> {
        match event {
            Event::Ended { token, ended } => self.ended(token, *ended),
            Event::Asked { token, id, call } => {
                self.write([token as f64]);
                let asked = NativeAsked { id: hexadecimal(id), call: (*call).into() };
                Ok(Call::new(self.function(&self.asked)?, [to_value(self.env, asked)?]))
            }
            Event::Started { token, pid } => self.plain("started", token, Some(pid), None),
            Event::Placed { token, pid } => self.plain("placed", token, Some(pid), None),
            Event::Limited { token, failure } => self.plain("limited", token, None, failure),
            Event::Prepared { token } => self.plain("prepared", token, None, None),
            Event::Failed { token, failure } => self.plain("failed", token, None, Some(failure)),
            Event::Lost { token, failure } => self.plain("lost", token, None, Some(failure)),
            Event::ServerReady { pid } => self.plain("server-ready", 0, Some(pid), None),
            Event::ServerLost(failure) => self.plain("server-lost", 0, None, Some(failure)),
        }
    }

    fn plain(&self, kind: &str, token: u64, pid: Option<i32>, failure: Option<Failure>) -> Result<Call> {
        self.write([token as f64]);
        let env = self.env;
        let failure = to_value(env, failure.map(NativeFailure::from))?;
        Ok(Call::new(self.function(&self.plain)?, [to_value(env, kind)?, to_value(env, pid)?, failure]))
    }

    fn ended(&self, token: u64, ended: Ended) -> Result<Call> {
        self.write(numbers(token, &ended));
        let env = self.env;
        let outputs = ended.outputs.into_iter().map(NativeOutput::from).collect::<Vec<_>>();
        let arguments = [
            to_value(env, ended.stdout.map(Bytes))?,
            to_value(env, ended.stderr.map(Bytes))?,
            to_value(env, (!outputs.is_empty()).then_some(outputs))?,
            to_value(env, (!ended.skipped.is_empty()).then_some(ended.skipped))?,
            to_value(env, ended.violation.map(NativeSystemCall::from))?,
            to_value(env, ended.learned.map(NativeLearned::from))?,
            to_value(env, ended.crash.map(NativeCrash::from))?,
        ];
        Ok(Call::new(self.function(&self.ended)?, arguments))
    }
}

/// In the order in which `result.js` reads them.
fn numbers(token: u64, ended: &Ended) -> impl Iterator<Item = f64> {
    let (signaled, status) = match ended.ending {
        Ending::Exited(code) => (false, code),
        Ending::Signaled(signal) => (true, signal),
    };
    let own =
        NAMESPACES.iter().enumerate().filter(|(_, (flag, _))| ended.isolation.namespaces & *flag as u64 != 0);
    let namespaces = own.fold(0_u32, |bits, (index, _)| bits | 1 << index);
    let marks = &ended.marks[..ended.marks.len().min((ROOM - FIXED) / 2)];
    let usage = &ended.usage;
    let fixed: [f64; FIXED] = [
        token as f64,
        ended.pid.into(),
        ended.init_pid.into(),
        namespaces.into(),
        f64::from(u8::from(signaled)),
        status.into(),
        position(&LIMITS, &ended.limit),
        f64::from(u8::from(ended.killed_by_host)),
        f64::from(u8::from(ended.disk_full)),
        ended.stdout_bytes as f64,
        ended.stderr_bytes as f64,
        usage.user_cpu_us as f64,
        usage.system_cpu_us as f64,
        usage.max_rss_kib as f64,
        usage.minor_faults as f64,
        usage.major_faults as f64,
        usage.voluntary_switches as f64,
        usage.involuntary_switches as f64,
        ended.submitted_ns as f64,
        ended.exec_ns as f64,
        ended.ended_ns as f64,
        position(&NETWORKS, &ended.isolation.network),
        f64::from(u8::from(ended.isolation.no_new_privs)),
        position(&FILTERS, &ended.isolation.filter),
        f64::from(u8::from(ended.warm)),
        f64::from(u8::from(ended.violated)),
        ended.isolation.landlock.map_or(0.0, |landlock| landlock.abi.into()),
        ended.isolation.landlock.map_or(0.0, |landlock| scopes(landlock).into()),
        marks.len() as f64,
    ];
    let marks = marks.iter().flat_map(|(step, time)| [f64::from(*step as i32), *time as f64]);
    fixed.into_iter().chain(marks)
}

/// What Landlock enforced beside files, as bits.
fn scopes(landlock: Landlock) -> u8 {
    u8::from(landlock.abstract_unix_sockets) | u8::from(landlock.signals) << 1
}

/// The place of a value in its table.
fn position<T: PartialEq>(table: &[T], value: &T) -> f64 {
    table.iter().position(|entry| entry == value).unwrap_or(0) as f64
}
