//! The fork server as a JavaScript class.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;

use napi::bindgen_prelude::{ClassInstance, Either, FromNapiValue, Function, JsValue, Unknown};
use napi::{Env, Error, Result, Status};
use napi_derive::napi;
use nestbox_client::{Client, Event, Failure, Launched, Options};

use crate::event::NativeFailure;
use crate::fork::NativeForkRequest;
use crate::loop_poll::{Call, Interest, LoopPoll, Pollable};
use crate::policy::NativePolicy;
use crate::request::{self, NativeExtras, NativeLaunch, NativeLaunched, NativeLimits};
use crate::result::ResultMaker;
use crate::syscall::NativeAnswer;

/// The fork server that `build.rs` embedded.
pub(crate) static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/forkserver"));

/// The symboliser, embedded the same way.
static SYMBOLIZER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/symbolizer"));

/// How a fork server is started.
#[napi(object, object_to_js = false)]
#[derive(Debug)]
pub struct ServerOptions {
    pub forkserver_path: Option<String>,
    pub host_uid: Option<u32>,
    pub host_gid: Option<u32>,
    pub host_id_count: Option<u32>,
    pub max_templates: Option<u32>,
    pub network_pool: Option<u32>,
}

/// What a fork server does at the moment.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeServerStats {
    pub pid: i32,
    pub templates: u32,
    pub running: u32,
    pub launched: f64,
    pub network_pool: u32,
    pub warm_nests: u32,
}

/// A client that libuv polls.
struct Polled {
    /// `None` once it is closed and all has been told.
    client: RefCell<Option<Client>>,
    results: ResultMaker,
    /// How many launches nobody waits for.
    background: Cell<usize>,
    closed: Cell<bool>,
}

impl Pollable for Polled {
    type Event = Event;

    fn ready(&self) -> Vec<Event> {
        let mut events = Vec::new();
        // Given back before JavaScript runs, which may make requests.
        if let Some(client) = &mut *self.client.borrow_mut() {
            client.dispatch(&mut events);
        }
        events
    }

    fn call(&self, event: Event) -> Result<Call> {
        self.results.call(event)
    }

    fn delivered(&self) {
        // Taken by whoever closed it meanwhile.
        if let Some(client) = &mut *self.client.borrow_mut() {
            client.get_ahead();
        }
    }

    fn interest(&self) -> Interest {
        match (self.client.borrow().as_ref().map_or(0, Client::in_flight), self.closed.get()) {
            (0, true) => Interest::Over,
            (count, false) if count <= self.background.get() => Interest::Idle,
            _ => Interest::Waiting,
        }
    }

    fn teardown(&self) {
        if let Some(client) = &mut *self.client.borrow_mut() {
            client.destroy();
        }
        self.results.close();
    }

    fn release(&self) {
        *self.client.borrow_mut() = None;
        // What it holds holds this server.
        self.results.close();
    }
}

/// One fork server. Its events are handed to the function that the constructor takes, one by one.
#[napi]
pub struct Server {
    poll: Rc<LoopPoll<Polled>>,
}

#[napi]
impl Server {
    /// Starts one. Does not wait for it: the event `server-ready` or `server-lost` tells.
    #[napi(constructor, catch_unwind)]
    pub fn new(
        env: Env,
        options: ServerOptions,
        #[napi(ts_arg_type = "(event: NativeEvent) => void")] on_event: Function<'_, (), ()>,
    ) -> Result<Self> {
        let defaults = Options::default();
        let size = |given: Option<u32>, default: usize| given.map_or(default, |count| count as usize);
        let options = Options {
            forkserver_path: options.forkserver_path.map(PathBuf::from),
            image: IMAGE,
            symbolizer: SYMBOLIZER,
            host_uid: options.host_uid,
            host_gid: options.host_gid,
            host_id_count: options.host_id_count.unwrap_or(defaults.host_id_count),
            max_templates: size(options.max_templates, defaults.max_templates),
            network_pool: size(options.network_pool, defaults.network_pool),
        };
        let client = Client::start(&options)
            .map_err(|failure| Error::new(Status::GenericFailure, failure.to_string()))?;
        let fd = client.poll_fd();
        let owner = Polled {
            client: RefCell::new(Some(client)),
            results: ResultMaker::new(env, on_event.raw())?,
            background: Cell::new(0),
            closed: Cell::new(false),
        };
        Ok(Self { poll: LoopPoll::start(env, fd, owner)? })
    }

    /// The fork server's pid; 0 until `server-ready`.
    #[napi(getter, catch_unwind)]
    pub fn pid(&self) -> i32 {
        self.poll.owner.client.borrow().as_ref().map_or(0, Client::pid)
    }

    /// Where the numbers of a launch are written before [`Server::launch`] is called.
    #[napi(getter, catch_unwind, ts_return_type = "Float64Array")]
    pub fn numbers(&self, env: Env) -> Result<Unknown<'_>> {
        let array = self.poll.owner.results.array()?;
        // SAFETY: a value of this environment, in the open handle scope of this call.
        unsafe { Unknown::from_napi_value(env.raw(), array) }
    }

    /// Launches a program. Never blocks on the server. The answer is its token, or what more there is to say.
    #[napi(catch_unwind)]
    pub fn launch(
        &self,
        policy: Option<ClassInstance<'_, NativePolicy>>,
        text: String,
        extras: Option<NativeExtras<'_>>,
    ) -> Either<f64, NativeLaunched> {
        let extras = extras.unwrap_or_default();
        let launch = NativeLaunch {
            policy: policy.as_deref(),
            text,
            extras: &extras,
            numbers: self.poll.owner.results.numbers(),
        };
        let launched = self.asked(|client| client.launch(launch.convert())).unwrap_or_else(closed);
        NativeLaunched::or_token(launched)
    }

    /// Serves a request of sandbox2's surface.
    #[napi(catch_unwind)]
    pub fn fork(&self, request: NativeForkRequest) -> NativeLaunched {
        NativeLaunched::new(self.asked(|client| client.fork(request.convert())).unwrap_or_else(closed))
    }

    /// Builds a policy's template ahead. The event `prepared` or `failed` with the returned token tells.
    #[napi(catch_unwind)]
    pub fn prepare(&self, policy: &NativePolicy) -> Result<f64> {
        self.asked(|client| client.prepare(&policy.handle))
            .map(|token| token as f64)
            .ok_or_else(|| Error::new(Status::GenericFailure, Failure::closed().to_string()))
    }

    /// Makes warm nests of a policy; without a time they wait for ever. The event `prepared` or `failed` with the returned
    /// token tells.
    #[napi(catch_unwind)]
    pub fn warm(&self, policy: &NativePolicy, count: u32, idle: Option<f64>) -> Result<f64> {
        self.asked(|client| client.warm(&policy.handle, request::warm(count, idle)))
            .map(|token| token as f64)
            .ok_or_else(|| Error::new(Status::GenericFailure, Failure::closed().to_string()))
    }

    /// Throws away the warm nests of a policy.
    #[napi(catch_unwind)]
    pub fn cool(&self, policy: &NativePolicy) {
        self.asked(|client| client.cool(&policy.handle));
    }

    /// So many of the launches in flight are none that anybody waits for: they don't keep the process alive.
    #[napi(catch_unwind)]
    pub fn background(&self, count: u32) {
        self.poll.owner.background.set(count as usize);
        self.poll.settle();
    }

    /// Sends a signal; false if the launch is over.
    #[napi(catch_unwind)]
    pub fn kill(&self, token: f64, signal: i32) -> bool {
        self.asked(|client| client.kill(token as u64, signal)).unwrap_or(false)
    }

    /// Asks for other limits of a launch that runs; those that are absent stay. The event `limited` tells when they hold, or
    /// why not; there is one for each call that gives no failure, in order, unless the launch ends first. With `restartClock`
    /// the wall time is counted from now on, and the CPU time from what is used by now.
    #[napi(catch_unwind)]
    pub fn limit(&self, token: f64, limits: NativeLimits, restart_clock: bool) -> Option<NativeFailure> {
        let limited = self.asked(|client| client.limit(token as u64, limits.convert(), restart_clock));
        limited.unwrap_or_else(|| Err(Failure::closed())).err().map(NativeFailure::from)
    }

    /// Sets another limit for captured output; none if it is negative. False if the launch is over.
    #[napi(catch_unwind)]
    pub fn limit_output(&self, token: f64, limit: f64) -> bool {
        let limit = (limit >= 0.0).then(|| request::whole(limit));
        self.asked(|client| client.limit_output(token as u64, limit)).unwrap_or(false)
    }

    /// Decides about a call that an event `asked` is about; false if it waits no more.
    #[napi(catch_unwind)]
    pub fn answer(&self, token: f64, id: String, answer: NativeAnswer) -> bool {
        let id = id.strip_prefix("0x").and_then(|id| u64::from_str_radix(id, 16).ok());
        let answered =
            |client: &mut Client| id.is_some_and(|id| client.answer(token as u64, id, answer.convert()));
        self.asked(answered).unwrap_or(false)
    }

    /// What it does at the moment.
    #[napi(catch_unwind)]
    pub fn stats(&self) -> NativeServerStats {
        let stats = self.poll.owner.client.borrow().as_ref().map(Client::stats).unwrap_or_default();
        NativeServerStats {
            pid: stats.pid,
            templates: stats.templates as u32,
            running: stats.running as u32,
            launched: stats.launched as f64,
            network_pool: stats.network_pool as u32,
            warm_nests: stats.warm_nests as u32,
        }
    }

    /// Kills the fork server and all that it serves. What is in flight is reported lost. Idempotent.
    #[napi(catch_unwind)]
    pub fn close(&self) {
        self.poll.owner.closed.set(true);
        self.asked(Client::destroy);
    }

    /// Makes a request, and keeps the process alive if it is to have an answer. `None`: it is closed.
    fn asked<R>(&self, request: impl FnOnce(&mut Client) -> R) -> Option<R> {
        let answer = self.poll.owner.client.borrow_mut().as_mut().map(request);
        self.poll.settle();
        answer
    }
}

/// The answer to what is asked of a closed fork server.
fn closed() -> std::result::Result<Launched, Failure> {
    Err(Failure::closed())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.poll.owner.teardown();
        self.poll.close();
    }
}
