//! The few functions of libuv that the addon needs.
//!
//! Node-API hands out the event loop but wraps none of its handles. The symbols are looked up when first needed, so that a
//! runtime without libuv gets an error instead of a library that does not load.

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

use napi::sys::uv_loop_s;

/// `uv_poll_t`, whose size only libuv knows.
#[repr(C)]
pub(crate) struct UvPoll {
    /// The first member of every handle is for its user: `void* data`.
    pub(crate) data: *mut c_void,
}

/// `uv_poll_cb`.
pub(crate) type PollCallback = unsafe extern "C" fn(handle: *mut UvPoll, status: c_int, events: c_int);

/// `uv_close_cb`.
pub(crate) type CloseCallback = unsafe extern "C" fn(handle: *mut UvPoll);

type HandleSize = unsafe extern "C" fn(c_int) -> usize;
type PollInit = unsafe extern "C" fn(*mut uv_loop_s, *mut UvPoll, c_int) -> c_int;
type PollStart = unsafe extern "C" fn(*mut UvPoll, c_int, PollCallback) -> c_int;
type PollStop = unsafe extern "C" fn(*mut UvPoll) -> c_int;
type Close = unsafe extern "C" fn(*mut UvPoll, Option<CloseCallback>);
type Reference = unsafe extern "C" fn(*mut UvPoll);

/// `UV_READABLE`.
pub(crate) const READABLE: c_int = 1;

/// `UV_POLL` of `uv_handle_type`.
const POLL: c_int = 8;

/// The functions.
pub(crate) struct Uv {
    pub(crate) poll_init: PollInit,
    pub(crate) poll_start: PollStart,
    pub(crate) poll_stop: PollStop,
    pub(crate) close: Close,
    pub(crate) reference: Reference,
    pub(crate) unreference: Reference,
    /// The size of a `uv_poll_t`.
    pub(crate) poll_size: usize,
}

static UV: OnceLock<Option<Uv>> = OnceLock::new();

/// libuv of this runtime; `None` if it has none.
pub(crate) fn get() -> Option<&'static Uv> {
    UV.get_or_init(find).as_ref()
}

fn find() -> Option<Uv> {
    let symbol = |name: &CStr| {
        // SAFETY: a C string, and the default search order.
        let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!address.is_null()).then_some(address)
    };
    macro_rules! function {
        ($name:literal as $type:ty) => {{
            let address = symbol($name)?;
            // SAFETY: libuv's function of that name has that signature (uv.h).
            unsafe { std::mem::transmute::<*mut c_void, $type>(address) }
        }};
    }
    let size = function!(c"uv_handle_size" as HandleSize);
    Some(Uv {
        poll_init: function!(c"uv_poll_init" as PollInit),
        poll_start: function!(c"uv_poll_start" as PollStart),
        poll_stop: function!(c"uv_poll_stop" as PollStop),
        close: function!(c"uv_close" as Close),
        reference: function!(c"uv_ref" as Reference),
        unreference: function!(c"uv_unref" as Reference),
        // SAFETY: takes a number.
        poll_size: unsafe { size(POLL) },
    })
}
