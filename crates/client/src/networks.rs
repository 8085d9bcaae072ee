//! The pool of network namespaces.
//!
//! Making one costs a launch half a millisecond and joining one nothing, so a few are kept ready. One that was used comes
//! back only if the network keeper finds it as on the day it was made; else it is dropped and replaced. One that is out
//! counts as one of the pool until then: to replace it at once, only to destroy one when it comes back, would cost every
//! launch the half millisecond on the other processor. The pool grows with the launches in flight, and gives up again
//! what nobody needed for a while. The namespace that `shared-loopback` sandboxes share is made here too, once. Bookkeeping
//! only: [`Networks::next_requests`] says what to ask the keeper, the client asks.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use nestbox_protocol::{
    self as protocol, CheckNetworks, CreateNetwork, ForgetNetworks, NetworkReply, NetworkRequest,
    network_request,
};
use nestbox_sys::process;

use crate::channel::Channel;
use crate::failure::Failure;
use crate::numbered::Numbered;

/// How long the pool does without a keeper that broke.
const PATIENCE_NS: u64 = 1_000_000_000;

/// The keeper's process.
pub(crate) enum Keeper {
    /// Not asked for yet.
    None,
    /// Asked for; its answer is awaited.
    Starting(Channel),
    /// Serves.
    Running(Channel),
    /// It died or could not be made, at this time (`CLOCK_MONOTONIC`): launches make their own namespaces.
    Broken { since_ns: u64 },
}

/// The most namespaces that the pool grows to by itself. Each takes some 190 KiB of the kernel's memory.
const GROWN: usize = 256;

/// How long a pool that has grown keeps what nobody needs.
const KEEP_NS: u64 = 30_000_000_000;

/// So many are checked at once, where that can wait: each time costs the keeper and the host a wake-up.
const CHECKED_TOGETHER: usize = 8;

/// What a launch needs of the network pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetworkNeed {
    /// Nothing.
    None,
    /// One for itself, if there is one ready.
    Own,
    /// The one that is shared by all.
    Shared,
}

impl NetworkNeed {
    /// What every nest of a plan needs.
    pub(crate) fn of_plan(plan: &protocol::Plan) -> Self {
        match plan.network() {
            protocol::Network::Host => Self::None,
            protocol::Network::SharedLoopback => Self::Shared,
            protocol::Network::None | protocol::Network::Unspecified => Self::Own,
        }
    }
}

/// A namespace of the pool, and what the keeper knows it by.
#[derive(Debug)]
struct Namespace {
    id: u64,
    fd: OwnedFd,
}

/// One that is out with a launch, or is being checked after it.
#[derive(Debug)]
pub(crate) struct Lent {
    namespace: Namespace,
    /// Counts those that are out, however they come to an end.
    _out: Arc<()>,
}

impl AsRawFd for Lent {
    fn as_raw_fd(&self) -> RawFd {
        self.namespace.fd.as_raw_fd()
    }
}

/// What the keeper was asked to make.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// One for the pool.
    Create,
    /// The shared one.
    CreateShared,
}

/// The namespace shared by all `shared-loopback` sandboxes.
pub(crate) enum Shared {
    /// Nobody needs it yet.
    None,
    /// It is being made.
    Making,
    /// There.
    Ready(OwnedFd),
}

pub(crate) struct Networks {
    pub(crate) keeper: Keeper,
    pub(crate) shared: Shared,
    ready: Vec<Namespace>,
    /// Those that came back and were not checked yet.
    used: Vec<Lent>,
    /// Those that the keeper looks at.
    checked: Numbered<Lent>,
    /// Those that were given up, of which the keeper does not know yet.
    given_up: Vec<u64>,
    lent: Arc<()>,
    asked: Numbered<Asked>,
    next_id: u64,
    size: usize,
    /// The size that it was given, and does not fall below.
    least: usize,
    /// Of a pool that has grown: when to look whether it is too large, and how many were always ready until then.
    trim: Option<(u64, usize)>,
    /// Some sandbox without network was used, so the pool is wanted.
    wanted: bool,
    /// The last attempt to make one failed; no more until a launch has ended.
    discouraged: bool,
}

/// What a reply changed.
pub(crate) enum Outcome {
    /// Nothing that anybody waits for.
    Quiet,
    /// The shared one is there.
    SharedReady,
    /// It could not be made.
    SharedFailed(Failure),
}

impl Networks {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            keeper: Keeper::None,
            shared: Shared::None,
            ready: Vec::new(),
            used: Vec::new(),
            checked: Numbered::default(),
            given_up: Vec::new(),
            lent: Arc::default(),
            asked: Numbered::default(),
            next_id: 0,
            size,
            least: size,
            trim: None,
            wanted: false,
            discouraged: false,
        }
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// From now on the pool is kept full. True if there is one to keep.
    pub(crate) fn want(&mut self) -> bool {
        self.wanted = true;
        self.size > 0
    }

    /// Whether anything is wanted of the keeper.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted && self.size > 0 || matches!(self.shared, Shared::Making)
    }

    /// One for a launch, if there is one. Where there is none although all are made, more launches are in flight than the
    /// pool holds: then it grows.
    pub(crate) fn take(&mut self) -> Option<Lent> {
        let taken = self.ready.pop();
        if let Some((_, fewest)) = &mut self.trim {
            *fewest = self.ready.len().min(*fewest);
        }
        if taken.is_none() && self.size > 0 && self.coming() == 0 && matches!(self.keeper, Keeper::Running(_))
        {
            self.size = self.size.max((self.size + 1).min(GROWN));
            self.trim.get_or_insert_with(|| (process::monotonic_ns() + KEEP_NS, 0));
        }
        taken.map(|namespace| Lent { namespace, _out: Arc::clone(&self.lent) })
    }

    /// Gives up what a pool that has grown did without for a while; the next requests tell the keeper. Says when to look
    /// again.
    pub(crate) fn trim(&mut self, now: u64) -> Option<u64> {
        let (due, fewest) = self.trim?;
        if due > now {
            return Some(due);
        }
        let surplus = fewest.min(self.size - self.least);
        self.size -= surplus;
        // The first ones are those that were used least.
        self.given_up.extend(self.ready.drain(..surplus).map(|namespace| namespace.id));
        self.trim = (self.size > self.least).then_some((now + KEEP_NS, self.ready.len()));
        self.trim_due()
    }

    /// When to call [`Networks::trim`].
    pub(crate) fn trim_due(&self) -> Option<u64> {
        self.trim.map(|(due, _)| due)
    }

    /// The namespace that a nest joins, and the hold on it if it is the nest's own. None: it makes one, or is the host's.
    pub(crate) fn join(&mut self, need: NetworkNeed) -> (Option<Lent>, Option<RawFd>) {
        let own = if need == NetworkNeed::Own { self.take() } else { None };
        let shared = match &self.shared {
            Shared::Ready(shared) if need == NetworkNeed::Shared => Some(shared.as_raw_fd()),
            _ => None,
        };
        let joined = own.as_ref().map(AsRawFd::as_raw_fd).or(shared);
        (own, joined)
    }

    /// How many are being made.
    fn coming(&self) -> usize {
        self.asked.values().filter(|&&asked| asked == Asked::Create).count()
    }

    /// How many are out with launches or being checked.
    fn out(&self) -> usize {
        Arc::strong_count(&self.lent) - 1
    }

    /// A launch that had one has ended. It is checked with the next requests.
    pub(crate) fn give_back(&mut self, used: Lent) {
        self.discouraged = false;
        self.used.push(used);
    }

    /// A launch that had one has ended, and it may be watched from elsewhere: nobody gets it again. The keeper is told with the
    /// next requests.
    pub(crate) fn throw_away(&mut self, used: Lent) {
        self.discouraged = false;
        let Lent { namespace, .. } = used;
        self.given_up.push(namespace.id);
    }

    /// Whether the next launch would find none although some only have to be checked.
    pub(crate) fn is_pressed(&self) -> bool {
        self.ready.is_empty() && !self.used.is_empty()
    }

    /// What to ask the keeper now: replacements for the pool, and checks of those that were used. The checks wait until half
    /// of the pool is out and there are some, so that the keeper is woken once for several, and not while a launch's result
    /// is on its way; unless there is nothing else to launch with.
    pub(crate) fn next_requests(&mut self) -> Vec<NetworkRequest> {
        let mut requests = Vec::new();
        if !matches!(self.keeper, Keeper::Running(_)) {
            return requests;
        }
        if matches!(self.shared, Shared::Making)
            && !self.asked.values().any(|&asked| asked == Asked::CreateShared)
        {
            requests.push(self.create(Asked::CreateShared));
        }
        let enough = self.used.len() >= CHECKED_TOGETHER.min(self.size / 2);
        let pressed = self.is_pressed() && self.checked.is_empty();
        if !self.used.is_empty() && self.ready.len() * 2 <= self.size && (enough || pressed) {
            let ids = self.used.iter().map(|lent| lent.namespace.id).collect();
            self.checked.extend(self.used.drain(..).map(|lent| (lent.namespace.id, lent)));
            requests.push(request(network_request::Kind::Check(CheckNetworks { ids })));
        }
        if !self.given_up.is_empty() {
            let ids = std::mem::take(&mut self.given_up);
            requests.push(request(network_request::Kind::Forget(ForgetNetworks { ids })));
        }
        if self.wanted && !self.discouraged {
            for _ in self.ready.len() + self.coming() + self.out()..self.size {
                requests.push(self.create(Asked::Create));
            }
        }
        requests
    }

    fn create(&mut self, asked: Asked) -> NetworkRequest {
        self.next_id += 1;
        self.asked.insert(self.next_id, asked);
        request(network_request::Kind::Create(CreateNetwork { id: self.next_id }))
    }

    /// The keeper answered. Fds that were not asked for are closed.
    pub(crate) fn reply(&mut self, reply: NetworkReply, fds: Vec<OwnedFd>) -> Outcome {
        let made = <[OwnedFd; 1]>::try_from(fds).ok().map(|[fd]| fd);
        let failure = reply.failure.map(Failure::from_step);
        for id in reply.clean {
            if let Some(lent) = self.checked.remove(&id) {
                self.ready.push(lent.namespace);
            }
        }
        for id in reply.used {
            self.checked.remove(&id);
        }
        match self.asked.remove(&reply.id) {
            Some(Asked::Create) => {
                match made {
                    Some(fd) if failure.is_none() => self.ready.push(Namespace { id: reply.id, fd }),
                    _ => self.discouraged = true,
                }
                Outcome::Quiet
            }
            Some(Asked::CreateShared) => {
                if let (Some(fd), None) = (made, &failure) {
                    self.shared = Shared::Ready(fd);
                    return Outcome::SharedReady;
                }
                self.shared = Shared::None;
                Outcome::SharedFailed(failure.unwrap_or_else(no_namespace))
            }
            None => Outcome::Quiet,
        }
    }

    /// The keeper is gone. Returns whether somebody waits for the shared namespace. The
    /// namespaces that are ready stay good: only nobody can tell any more whether a used one is clean.
    pub(crate) fn lose_keeper(&mut self) -> bool {
        self.asked.clear();
        self.checked.clear();
        self.given_up.clear();
        self.keeper = Keeper::Broken { since_ns: process::monotonic_ns() };
        let waited = matches!(self.shared, Shared::Making);
        if waited {
            self.shared = Shared::None;
        }
        waited
    }

    /// A keeper that broke may be started again: at once for who needs it, after a while for the pool, so that a keeper
    /// that can't be had doesn't cost every launch an attempt.
    pub(crate) fn forgive_keeper(&mut self, needed: bool) {
        if let Keeper::Broken { since_ns } = self.keeper
            && (needed || process::monotonic_ns() - since_ns > PATIENCE_NS)
        {
            self.keeper = Keeper::None;
        }
    }

    /// Forgets everything: the namespaces belong to initial namespaces that are gone.
    pub(crate) fn clear(&mut self) {
        self.size = self.least;
        self.trim = None;
        self.ready.clear();
        self.used.clear();
        self.checked.clear();
        self.given_up.clear();
        self.asked.clear();
        self.shared = Shared::None;
        self.keeper = Keeper::None;
    }
}

fn request(kind: network_request::Kind) -> NetworkRequest {
    NetworkRequest { kind: Some(kind) }
}

fn no_namespace() -> Failure {
    Failure::fact(
        crate::failure::Code::Spawn,
        nestbox_protocol::Step::CreateNetworkNamespace,
        "the network keeper sent no namespace",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::{Key, Kind};
    use nestbox_sys::socket;
    use std::fs::File;

    fn namespace() -> OwnedFd {
        File::open("/dev/null").expect("null").into()
    }

    fn pool(size: usize) -> Networks {
        let mut networks = Networks::new(size);
        let (ours, _) = socket::seqpacket_pair().expect("pair");
        networks.keeper = Keeper::Running(Channel::for_writing(ours, Key::new(Kind::Keeper, 0)));
        networks
    }

    /// The ids of those to create; of those to check plus 1000, of those to forget plus 2000.
    fn ids(requests: &[NetworkRequest]) -> Vec<u64> {
        let named = |request: &NetworkRequest| match &request.kind {
            Some(network_request::Kind::Create(CreateNetwork { id })) => vec![*id],
            Some(network_request::Kind::Check(CheckNetworks { ids })) => {
                ids.iter().map(|id| 1000 + id).collect()
            }
            Some(network_request::Kind::Forget(ForgetNetworks { ids })) => {
                ids.iter().map(|id| 2000 + id).collect()
            }
            None => Vec::new(),
        };
        requests.iter().flat_map(named).collect()
    }

    fn made(networks: &mut Networks, id: u64) {
        networks.reply(NetworkReply { id, ..NetworkReply::default() }, vec![namespace()]);
    }

    fn clean(networks: &mut Networks, ids: &[u64]) {
        networks.reply(NetworkReply { clean: ids.to_vec(), ..NetworkReply::default() }, Vec::new());
    }

    /// A pool with all of its namespaces made.
    fn full(size: usize) -> Networks {
        let mut networks = pool(size);
        networks.want();
        let wanted: Vec<u64> = (1..=size as u64).collect();
        assert_eq!(ids(&networks.next_requests()), wanted);
        for id in wanted {
            made(&mut networks, id);
        }
        networks
    }

    #[test]
    fn is_kept_full_once_wanted() {
        let mut networks = pool(2);
        assert!(networks.next_requests().is_empty(), "nobody wants one yet");
        assert!(networks.want());
        assert_eq!(ids(&networks.next_requests()), [1, 2]);
        assert!(networks.next_requests().is_empty(), "both are coming");
        made(&mut networks, 1);
        made(&mut networks, 2);
        let used = networks.take().expect("ready");
        assert!(networks.next_requests().is_empty(), "the one that is out may come back");
        networks.give_back(used);
        assert_eq!(ids(&networks.next_requests()), [1002]);
        assert!(networks.next_requests().is_empty(), "it is being checked");
        clean(&mut networks, &[2]);
        assert_eq!(networks.ready(), 2);
    }

    #[test]
    fn checks_wait_until_half_is_out() {
        let mut networks = full(4);
        let first = networks.take().expect("ready");
        networks.give_back(first);
        assert!(networks.next_requests().is_empty());
        let second = networks.take().expect("ready");
        networks.give_back(second);
        assert!(!networks.is_pressed());
        assert_eq!(ids(&networks.next_requests()), [1004, 1003]);
    }

    #[test]
    fn checks_go_together_unless_there_is_nothing_else() {
        let mut networks = full(20);
        let mut out: Vec<Lent> = (0..20).map(|_| networks.take().expect("ready")).collect();
        networks.give_back(out.pop().expect("out"));
        assert_eq!(ids(&networks.next_requests()), [1001], "there is none to launch with");
        for _ in 0..7 {
            networks.give_back(out.pop().expect("out"));
            assert!(networks.next_requests().is_empty(), "the keeper is at work");
        }
        networks.give_back(out.pop().expect("out"));
        assert_eq!(networks.next_requests().len(), 1);
        assert_eq!((networks.checked.len(), networks.used.len()), (9, 0));
    }

    #[test]
    fn one_that_never_comes_back_is_replaced() {
        let mut networks = full(1);
        drop(networks.take().expect("ready"));
        assert_eq!(ids(&networks.next_requests()), [2]);
    }

    #[test]
    fn grows_with_the_launches_in_flight() {
        let mut networks = pool(1);
        networks.want();
        assert_eq!(ids(&networks.next_requests()), [1]);
        assert!(networks.take().is_none(), "it is being made: no reason to grow");
        made(&mut networks, 1);
        let _first = networks.take().expect("ready");
        assert!(networks.take().is_none());
        assert_eq!(ids(&networks.next_requests()), [2]);
    }

    #[test]
    fn gives_up_what_it_grew_by() {
        let mut networks = full(1);
        let first = networks.take().expect("ready");
        assert!(networks.take().is_none());
        assert_eq!(ids(&networks.next_requests()), [2]);
        made(&mut networks, 2);
        let due = networks.trim_due().expect("it has grown");
        assert_eq!(networks.trim(due - 1), Some(due), "not yet");
        let again = networks.trim(due).expect("one was needed until now");
        assert_eq!((again, networks.size), (due + KEEP_NS, 2));
        networks.give_back(first);
        assert_eq!(ids(&networks.next_requests()), [1001]);
        clean(&mut networks, &[1]);
        assert_eq!(networks.trim(again), None, "back to what it was");
        assert_eq!((networks.size, networks.ready()), (1, 1));
        assert_eq!(ids(&networks.next_requests()), [2002]);
        assert!(networks.next_requests().is_empty());
    }

    #[test]
    fn what_it_grew_by_is_forgotten_with_its_namespaces() {
        let mut networks = full(1);
        let _first = networks.take().expect("ready");
        assert!(networks.take().is_none());
        assert_eq!(ids(&networks.next_requests()), [2]);
        made(&mut networks, 2);
        let due = networks.trim_due().expect("it has grown");
        let due = networks.trim(due).expect("one is always ready from now on");
        networks.clear();
        assert_eq!((networks.trim(due), networks.trim_due(), networks.size), (None, None, 1));
    }

    #[test]
    fn what_is_not_clean_is_replaced() {
        let mut networks = full(1);
        let used = networks.take().expect("ready");
        networks.give_back(used);
        assert_eq!(ids(&networks.next_requests()), [1001]);
        networks.reply(NetworkReply { used: vec![1], ..NetworkReply::default() }, Vec::new());
        assert_eq!((networks.ready(), ids(&networks.next_requests())), (0, vec![2]));
    }

    #[test]
    fn what_is_thrown_away_is_forgotten_and_replaced() {
        let mut networks = full(1);
        let used = networks.take().expect("ready");
        networks.throw_away(used);
        assert_eq!(ids(&networks.next_requests()), [2001, 2]);
        made(&mut networks, 2);
        assert_eq!(networks.take().expect("ready").namespace.id, 2);
    }

    #[test]
    fn a_failure_is_not_tried_again_at_once() {
        let mut networks = full(1);
        let used = networks.take().expect("ready");
        assert!(networks.take().is_none());
        assert_eq!(ids(&networks.next_requests()), [2]);
        let failure = Some(nestbox_protocol::Failure::default());
        networks.reply(NetworkReply { id: 2, failure, ..NetworkReply::default() }, Vec::new());
        assert!(networks.next_requests().is_empty());
        networks.give_back(used);
        assert_eq!(ids(&networks.next_requests()), [1001, 3], "after a launch it is");
    }

    #[test]
    fn the_shared_one_is_made_once() {
        let mut networks = pool(0);
        networks.shared = Shared::Making;
        assert_eq!(ids(&networks.next_requests()), [1]);
        assert!(networks.next_requests().is_empty());
        let reply = NetworkReply { id: 1, ..NetworkReply::default() };
        assert!(matches!(networks.reply(reply, vec![namespace()]), Outcome::SharedReady));
    }
}
