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

/// `UV_READABLE`.
pub(crate) const READABLE: c_int = 1;

/// `UV_POLL` of `uv_handle_type`.
const POLL: c_int = 8;

/// The functions.
pub(crate) struct Uv {
    pub(crate) poll_init: unsafe extern "C" fn(*mut uv_loop_s, *mut UvPoll, c_int) -> c_int,
    pub(crate) poll_start: unsafe extern "C" fn(*mut UvPoll, c_int, PollCallback) -> c_int,
    pub(crate) poll_stop: unsafe extern "C" fn(*mut UvPoll) -> c_int,
    pub(crate) close: unsafe extern "C" fn(*mut UvPoll, Option<CloseCallback>),
    pub(crate) reference: unsafe extern "C" fn(*mut UvPoll),
    pub(crate) unreference: unsafe extern "C" fn(*mut UvPoll),
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
        ($name:literal) => {{
            let address = symbol($name)?;
            // SAFETY: libuv's function of that name has the signature of the field that it is assigned to (uv.h).
            unsafe { std::mem::transmute(address) }
        }};
    }
    let size: unsafe extern "C" fn(c_int) -> usize = function!(c"uv_handle_size");
    Some(Uv {
        poll_init: function!(c"uv_poll_init"),
        poll_start: function!(c"uv_poll_start"),
        poll_stop: function!(c"uv_poll_stop"),
        close: function!(c"uv_close"),
        reference: function!(c"uv_ref"),
        unreference: function!(c"uv_unref"),
        // SAFETY: takes a number.
        poll_size: unsafe { size(POLL) },
    })
}
