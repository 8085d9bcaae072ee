//! The pool of network namespaces.
//!
//! Making one costs a launch half a millisecond and joining one nothing, so a few are kept ready. One that was used comes
//! back only if the network keeper finds it as on the day it was made; else it is dropped and replaced. One that is out
//! counts as one of the pool until then: to replace it at once, only to destroy one when it comes back, would cost every
//! launch the half millisecond on the other processor. The pool grows with the launches in flight. The namespace that
//! `shared-loopback` sandboxes share is made here too, once. Bookkeeping only: [`Networks::next_requests`] says what to ask
//! the keeper, the client asks.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use nestbox_protocol::{CheckNetwork, CreateNetwork, NetworkReply, NetworkRequest, network_request};
use nestbox_sys::process;

use crate::channel::{Channel, PassedFd};
use crate::failure::Failure;
use crate::launch::NetworkNeed;

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

/// The most namespaces that the pool grows to by itself.
const GROWN: usize = 64;

/// A namespace of the pool that is out with a launch, or is being checked after it.
#[derive(Debug)]
pub(crate) struct Lent {
    fd: OwnedFd,
    /// Counts those that are out, however they come to an end.
    _out: Arc<()>,
}

impl AsRawFd for Lent {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// What the keeper was asked.
enum Asked {
    /// To make one for the pool.
    Create,
    /// To make the shared one.
    CreateShared,
    /// Whether this one is clean.
    Check(Lent),
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
    ready: Vec<OwnedFd>,
    /// Those that came back and were not checked yet.
    used: Vec<Lent>,
    lent: Arc<()>,
    asked: HashMap<u64, Asked>,
    next_id: u64,
    size: usize,
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
            lent: Arc::default(),
            asked: HashMap::new(),
            next_id: 0,
            size,
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
        let taken = self.ready.pop().map(|fd| Lent { fd, _out: Arc::clone(&self.lent) });
        if taken.is_none() && self.size > 0 && self.coming() == 0 && matches!(self.keeper, Keeper::Running(_))
        {
            self.size = self.size.max((self.size + 1).min(GROWN));
        }
        taken
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
        self.asked.values().filter(|asked| matches!(asked, Asked::Create)).count()
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

    /// Whether the next launch would find none although some only have to be checked.
    pub(crate) fn is_pressed(&self) -> bool {
        self.ready.is_empty() && !self.used.is_empty()
    }

    /// What to ask the keeper now: replacements for the pool, and checks of those that were used. The checks wait until half
    /// of the pool is out, so that the keeper is woken once for several, and not while a launch's result is on its way.
    pub(crate) fn next_requests(&mut self) -> Vec<(NetworkRequest, Vec<PassedFd>)> {
        let mut requests = Vec::new();
        if !matches!(self.keeper, Keeper::Running(_)) {
            return requests;
        }
        if matches!(self.shared, Shared::Making)
            && !self.asked.values().any(|asked| matches!(asked, Asked::CreateShared))
        {
            requests.push((self.create(Asked::CreateShared), Vec::new()));
        }
        if self.ready.len() * 2 <= self.size {
            for used in std::mem::take(&mut self.used) {
                let Ok(copy) = used.fd.try_clone() else { continue };
                self.next_id += 1;
                let id = self.next_id;
                self.asked.insert(id, Asked::Check(used));
                let kind = Some(network_request::Kind::Check(CheckNetwork { id }));
                requests.push((NetworkRequest { kind }, vec![PassedFd::Owned(copy)]));
            }
        }
        if self.wanted && !self.discouraged {
            for _ in self.ready.len() + self.coming() + self.out()..self.size {
                requests.push((self.create(Asked::Create), Vec::new()));
            }
        }
        requests
    }

    fn create(&mut self, asked: Asked) -> NetworkRequest {
        self.next_id += 1;
        self.asked.insert(self.next_id, asked);
        NetworkRequest { kind: Some(network_request::Kind::Create(CreateNetwork { id: self.next_id })) }
    }

    /// The keeper answered. Fds that were not asked for are closed.
    pub(crate) fn reply(&mut self, reply: NetworkReply, fds: Vec<OwnedFd>) -> Outcome {
        let made = <[OwnedFd; 1]>::try_from(fds).ok().map(|[fd]| fd);
        let failure = reply.failure.map(Failure::from_step);
        match self.asked.remove(&reply.id) {
            Some(Asked::Create) => {
                match made {
                    Some(fd) if failure.is_none() => self.ready.push(fd),
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
            Some(Asked::Check(used)) => {
                if reply.clean && failure.is_none() && self.ready.len() < self.size {
                    self.ready.push(used.fd);
                }
                Outcome::Quiet
            }
            None => Outcome::Quiet,
        }
    }

    /// The keeper is gone. Returns whether somebody waits for the shared namespace. The
    /// namespaces that are ready stay good: only nobody can tell any more whether a used one is clean.
    pub(crate) fn lose_keeper(&mut self) -> bool {
        self.asked.clear();
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
        self.ready.clear();
        self.used.clear();
        self.asked.clear();
        self.shared = Shared::None;
        self.keeper = Keeper::None;
    }
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

    fn ids(requests: &[(NetworkRequest, Vec<PassedFd>)]) -> Vec<u64> {
        requests
            .iter()
            .map(|(request, _)| match request.kind {
                Some(network_request::Kind::Create(CreateNetwork { id })) => id,
                Some(network_request::Kind::Check(CheckNetwork { id })) => 1000 + id,
                None => 0,
            })
            .collect()
    }

    fn clean(id: u64, clean: bool) -> NetworkReply {
        NetworkReply { id, clean, failure: None }
    }

    #[test]
    fn is_kept_full_once_wanted() {
        let mut networks = pool(2);
        assert!(networks.next_requests().is_empty(), "nobody wants one yet");
        assert!(networks.want());
        assert_eq!(ids(&networks.next_requests()), [1, 2]);
        assert!(networks.next_requests().is_empty(), "both are coming");
        networks.reply(clean(1, true), vec![namespace()]);
        networks.reply(clean(2, true), vec![namespace()]);
        let used = networks.take().expect("ready");
        assert!(networks.next_requests().is_empty(), "the one that is out may come back");
        networks.give_back(used);
        assert_eq!(ids(&networks.next_requests()), [1003]);
        assert!(networks.next_requests().is_empty(), "it is being checked");
        networks.reply(clean(3, true), Vec::new());
        assert_eq!(networks.ready(), 2);
    }

    #[test]
    fn checks_wait_until_half_is_out() {
        let mut networks = pool(4);
        networks.want();
        assert_eq!(ids(&networks.next_requests()), [1, 2, 3, 4]);
        (1..=4).for_each(|id| drop(networks.reply(clean(id, true), vec![namespace()])));
        let first = networks.take().expect("ready");
        networks.give_back(first);
        assert!(networks.next_requests().is_empty());
        let second = networks.take().expect("ready");
        networks.give_back(second);
        assert!(!networks.is_pressed());
        assert_eq!(ids(&networks.next_requests()), [1005, 1006]);
    }

    #[test]
    fn one_that_never_comes_back_is_replaced() {
        let mut networks = pool(1);
        networks.want();
        assert_eq!(ids(&networks.next_requests()), [1]);
        networks.reply(clean(1, true), vec![namespace()]);
        drop(networks.take().expect("ready"));
        assert_eq!(ids(&networks.next_requests()), [2]);
    }

    #[test]
    fn grows_with_the_launches_in_flight() {
        let mut networks = pool(1);
        networks.want();
        assert_eq!(ids(&networks.next_requests()), [1]);
        assert!(networks.take().is_none(), "it is being made: no reason to grow");
        networks.reply(clean(1, true), vec![namespace()]);
        let _first = networks.take().expect("ready");
        assert!(networks.take().is_none());
        assert_eq!(ids(&networks.next_requests()), [2]);
    }

    fn lent(networks: &Networks) -> Lent {
        Lent { fd: namespace(), _out: Arc::clone(&networks.lent) }
    }

    #[test]
    fn what_is_not_clean_is_replaced() {
        let mut networks = pool(1);
        networks.want();
        let used = lent(&networks);
        networks.give_back(used);
        assert_eq!(ids(&networks.next_requests()), [1001]);
        networks.reply(clean(1, false), Vec::new());
        assert_eq!((networks.ready(), ids(&networks.next_requests())), (0, vec![2]));
    }

    #[test]
    fn a_failure_is_not_tried_again_at_once() {
        let mut networks = pool(1);
        networks.want();
        assert_eq!(ids(&networks.next_requests()), [1]);
        networks.reply(
            NetworkReply { id: 1, clean: false, failure: Some(nestbox_protocol::Failure::default()) },
            Vec::new(),
        );
        assert!(networks.next_requests().is_empty());
        let used = lent(&networks);
        networks.give_back(used);
        assert!(!networks.next_requests().is_empty(), "after a launch it is");
    }

    #[test]
    fn the_shared_one_is_made_once() {
        let mut networks = pool(0);
        networks.shared = Shared::Making;
        assert_eq!(ids(&networks.next_requests()), [1]);
        assert!(networks.next_requests().is_empty());
        assert!(matches!(networks.reply(clean(1, true), vec![namespace()]), Outcome::SharedReady));
    }
}
