//! Has libuv poll the client's fd and calls JavaScript for each event.
//!
//! Promises: what is called runs as any other callback of Node.js does (microtasks and `nextTick`s run after the last event of
//! a wake-up, what it throws is an uncaught exception, not an abort); the handle keeps the process alive only while told to; when
//! the environment ends (exit, worker termination) the owner is closed first and the environment waits for libuv to let the handle
//! go. Used by [`crate::server`] alone.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::rc::Rc;

use napi::{Env, Error, Result, Status, sys};

use crate::uv::{self, READABLE, Uv, UvPoll};

/// What is polled.
pub(crate) trait Pollable {
    /// What JavaScript is told of.
    type Event;

    /// The fd is readable: what happened.
    fn ready(&self) -> Vec<Self::Event>;

    /// How JavaScript is told of one, in an open handle scope.
    fn call(&self, event: Self::Event) -> Result<Call>;

    /// The events were handed over: what could wait for that is done.
    fn delivered(&self);

    /// After the events were handed over, and after each request: whether somebody waits for more.
    fn interest(&self) -> Interest;

    /// The environment ends.
    fn teardown(&self);

    /// The handle is closed: what is polled is not needed any more.
    fn release(&self);
}

/// A function and its arguments, values of the open handle scope.
pub(crate) struct Call {
    function: sys::napi_value,
    arguments: [sys::napi_value; Call::MOST],
    count: usize,
}

impl Call {
    /// The most arguments that there are.
    const MOST: usize = 7;

    /// A call with these arguments.
    pub(crate) fn new<const N: usize>(function: sys::napi_value, given: [sys::napi_value; N]) -> Self {
        const { assert!(N <= Self::MOST) };
        let mut arguments = [ptr::null_mut(); Self::MOST];
        arguments[..N].copy_from_slice(&given);
        Self { function, arguments, count: N }
    }
}

/// Whether somebody waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Yes: the process stays alive.
    Waiting,
    /// No, but things may still happen.
    Idle,
    /// No, and nothing will happen any more.
    Over,
}

/// A polled object and its handle.
pub(crate) struct LoopPoll<T: Pollable> {
    pub(crate) owner: T,
    uv: &'static Uv,
    handle: *mut UvPoll,
    /// Where the handle is.
    _memory: Vec<u128>,
    env: sys::napi_env,
    hook: Cell<sys::napi_async_cleanup_hook_handle>,
    referenced: Cell<bool>,
    closing: Cell<bool>,
}

fn check(status: sys::napi_status, what: &str) -> Result<()> {
    if status == sys::Status::napi_ok {
        Ok(())
    } else {
        Err(Error::new(Status::from(status), format!("{what} failed")))
    }
}

impl<T: Pollable + 'static> LoopPoll<T> {
    /// Polls `fd` of `owner` and calls JavaScript for what [`Pollable::ready`] returns.
    pub(crate) fn start(env: Env, fd: c_int, owner: T) -> Result<Rc<Self>> {
        let uv = uv::get().ok_or_else(|| {
            Error::new(Status::GenericFailure, "this JavaScript runtime has no libuv; nestbox needs Node.js")
        })?;
        let uv_loop = env.get_uv_event_loop()?;
        // Aligned more strictly than any member of a uv_poll_t. Freed with `Self`, which the open handle holds.
        let mut memory = vec![0_u128; uv.poll_size.div_ceil(size_of::<u128>())];
        let handle = memory.as_mut_ptr().cast::<UvPoll>();
        // SAFETY: a loop and fresh memory of the size that libuv gave.
        let error = unsafe { (uv.poll_init)(uv_loop, handle, fd) };
        if error != 0 {
            return Err(Error::new(Status::GenericFailure, format!("uv_poll_init failed with {error}")));
        }
        let this = Rc::new(Self {
            owner,
            uv,
            handle,
            _memory: memory,
            env: env.raw(),
            hook: Cell::new(ptr::null_mut()),
            referenced: Cell::new(true),
            closing: Cell::new(false),
        });
        // From here on the handle holds the object; `on_closed` gives it back.
        let held = Rc::into_raw(Rc::clone(&this)).cast_mut().cast::<c_void>();
        // SAFETY: an initialized handle of ours.
        unsafe { (*handle).data = held };
        this.arm(env, held).inspect_err(|_| this.close())?;
        Ok(this)
    }

    fn arm(&self, env: Env, held: *mut c_void) -> Result<()> {
        let mut hook = ptr::null_mut();
        // SAFETY: `held` lives until `on_closed`, which removes the hook.
        let status = unsafe {
            sys::napi_add_async_cleanup_hook(env.raw(), Some(on_teardown::<T>), held, &raw mut hook)
        };
        check(status, "a cleanup hook")?;
        self.hook.set(hook);
        // SAFETY: an initialized handle; the callback reads its data, which is this object.
        let error = unsafe { (self.uv.poll_start)(self.handle, READABLE, on_ready::<T>) };
        if error != 0 {
            return Err(Error::new(Status::GenericFailure, format!("uv_poll_start failed with {error}")));
        }
        self.settle();
        Ok(())
    }

    /// Keeps the process alive while somebody waits, and lets the handle go when nothing will come.
    pub(crate) fn settle(&self) {
        if self.closing.get() {
            return;
        }
        let waiting = match self.owner.interest() {
            Interest::Waiting => true,
            Interest::Idle => false,
            Interest::Over => return self.close(),
        };
        if waiting != self.referenced.replace(waiting) {
            let change = if waiting { self.uv.reference } else { self.uv.unreference };
            // SAFETY: the handle is open: it is not closing.
            unsafe { change(self.handle) };
        }
    }

    /// Lets the handle go. Idempotent.
    pub(crate) fn close(&self) {
        if self.closing.replace(true) {
            return;
        }
        // SAFETY: the handle is open.
        unsafe { (self.uv.poll_stop)(self.handle) };
        // SAFETY: the handle is open, and closed once.
        unsafe { (self.uv.close)(self.handle, Some(on_closed::<T>)) };
    }

    /// Tells JavaScript of events.
    fn deliver(&self, events: Vec<T::Event>) {
        let mut events = events.into_iter();
        while let Some(event) = events.next() {
            let mut scope = ptr::null_mut();
            // SAFETY: on the environment's thread, outside of any other call of it.
            if unsafe { sys::napi_open_handle_scope(self.env, &raw mut scope) } != sys::Status::napi_ok {
                return;
            }
            self.tell(event, events.len() == 0);
            // SAFETY: opened above.
            unsafe { sys::napi_close_handle_scope(self.env, scope) };
        }
    }

    /// Tells JavaScript of one event, in an open handle scope.
    fn tell(&self, event: T::Event, last: bool) {
        let Ok(call) = self.owner.call(event) else { return self.rethrow() };
        let (mut receiver, mut result) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: an open handle scope.
        if unsafe { sys::napi_get_global(self.env, &raw mut receiver) } != sys::Status::napi_ok {
            return;
        }
        let (env, function, count) = (self.env, call.function, call.count);
        let (arguments, result) = (call.arguments.as_ptr(), &raw mut result);
        let status = if last {
            // Only this runs microtasks and `nextTick`s when the callback returns.
            // SAFETY: all are values of the open scope.
            unsafe {
                sys::napi_make_callback(env, ptr::null_mut(), receiver, function, count, arguments, result)
            }
        } else {
            // SAFETY: as above.
            unsafe { sys::napi_call_function(env, receiver, function, count, arguments, result) }
        };
        if status != sys::Status::napi_ok {
            self.rethrow();
        }
    }

    /// Makes a pending exception an uncaught one. Without one (a worker that is being terminated runs no JavaScript) nothing
    /// is done.
    fn rethrow(&self) {
        let mut pending = false;
        // SAFETY: this environment, on its thread.
        unsafe { sys::napi_is_exception_pending(self.env, &raw mut pending) };
        if !pending {
            return;
        }
        let mut error = ptr::null_mut();
        // SAFETY: as above, in an open handle scope.
        if unsafe { sys::napi_get_and_clear_last_exception(self.env, &raw mut error) } == sys::Status::napi_ok
        {
            // SAFETY: a value of the open scope.
            unsafe { sys::napi_fatal_exception(self.env, error) };
        }
    }
}

/// The object behind a handle, held a little longer than the call: a callback may close it.
///
/// # Safety
/// `held` is the data of a handle that is not closed yet.
unsafe fn borrow<T: Pollable>(held: *const c_void) -> Rc<LoopPoll<T>> {
    // SAFETY: `start` put an Rc there, which `on_closed` has not taken back.
    unsafe { Rc::increment_strong_count(held.cast::<LoopPoll<T>>()) };
    // SAFETY: the count that was just added is ours.
    unsafe { Rc::from_raw(held.cast::<LoopPoll<T>>()) }
}

unsafe extern "C" fn on_ready<T: Pollable + 'static>(handle: *mut UvPoll, _status: c_int, _events: c_int) {
    // SAFETY: libuv calls with our handle, which is open.
    let held = unsafe { (*handle).data };
    // SAFETY: as above.
    let this = unsafe { borrow::<T>(held) };
    // A panic may not cross libuv's frames. It has been reported by the panic hook; the state is what it was.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let events = this.owner.ready();
        if !events.is_empty() {
            this.deliver(events);
            this.owner.delivered();
        }
        this.settle();
    }));
}

unsafe extern "C" fn on_teardown<T: Pollable + 'static>(
    _hook: sys::napi_async_cleanup_hook_handle,
    held: *mut c_void,
) {
    // SAFETY: the hook is removed before the object is let go.
    let this = unsafe { borrow::<T>(held) };
    let _ = catch_unwind(AssertUnwindSafe(|| {
        this.owner.teardown();
        this.close();
    }));
}

unsafe extern "C" fn on_closed<T: Pollable>(handle: *mut UvPoll) {
    // SAFETY: libuv calls with our handle, which it is done with.
    let held = unsafe { (*handle).data };
    // SAFETY: the Rc that `start` put there; nobody looks there after this.
    let this = unsafe { Rc::from_raw(held.cast::<LoopPoll<T>>()) };
    // A panic may not cross libuv's frames.
    let _ = catch_unwind(AssertUnwindSafe(|| this.owner.release()));
    let hook = this.hook.replace(ptr::null_mut());
    if !hook.is_null() {
        // SAFETY: added by `arm`, removed once. An environment that is ending goes on from here.
        unsafe { sys::napi_remove_async_cleanup_hook(hook) };
    }
}
