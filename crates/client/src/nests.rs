//! Warm nests: how many a template keeps, and which one a launch gets.
//!
//! A warm nest is one that was made before its launch was known: namespaces, file systems, init, and a process that lacks
//! nothing but what to execute. A launch takes one whether it is ready or still being made (what it waits for then is less
//! than all of it), and is given a whole nest otherwise. Used once. Plain bookkeeping; the client makes and watches them.

use std::os::fd::OwnedFd;

use crate::ids::OuterIds;
use crate::networks::Lent;

/// How many nests a sandbox keeps warm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Warm {
    /// As many.
    pub count: usize,
    /// How long one waits for a launch before it goes, in nanoseconds; `None`: for ever.
    pub idle_ns: Option<u64>,
}

/// A nest that waits for its launch.
pub(crate) struct Nest {
    /// The id of its key.
    pub(crate) id: u64,
    /// Our end of what will be its launch's socket.
    pub(crate) socket: OwnedFd,
    /// The parked process, once it has said that it is ready; 0 before.
    pub(crate) pid: i32,
    pub(crate) network: Option<Lent>,
    pub(crate) ids: OuterIds,
    /// When it goes unused (`CLOCK_MONOTONIC`).
    pub(crate) expires_ns: Option<u64>,
}

/// The warm nests of one template.
#[derive(Default)]
pub(crate) struct Nests {
    all: Vec<Nest>,
    /// No more are made until then: the last one failed.
    discouraged_until: u64,
}

/// How long nothing is made ahead after a failure: the launches meet and report it themselves.
const PATIENCE_NS: u64 = 1_000_000_000;

impl Nests {
    /// How many there are, ready or not.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.all.iter().filter(|nest| nest.pid != 0).count()
    }

    pub(crate) fn add(&mut self, nest: Nest) {
        self.all.push(nest);
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Nest> {
        self.all.iter_mut().find(|nest| nest.id == id)
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, id: u64) -> Option<Nest> {
        let index = self.all.iter().position(|nest| nest.id == id)?;
        Some(self.all.remove(index))
    }

    /// The one that a launch gets: of those that are ready the latest, whose memory is warmest; else the one that will be
    /// ready first.
    pub(crate) fn take(&mut self) -> Option<Nest> {
        match self.all.iter().rposition(|nest| nest.pid != 0) {
            Some(index) => Some(self.all.remove(index)),
            None if self.all.is_empty() => None,
            None => Some(self.all.remove(0)),
        }
    }

    /// They are wanted until then, at least.
    pub(crate) fn prolong(&mut self, expires_ns: Option<u64>) {
        for nest in &mut self.all {
            nest.expires_ns = nest.expires_ns.zip(expires_ns).map(|(old, new)| old.max(new));
        }
    }

    /// Takes out those whose time is over.
    pub(crate) fn expired(&mut self, now: u64) -> Vec<Nest> {
        let over = |nest: &mut Nest| nest.expires_ns.is_some_and(|at| at <= now);
        self.all.extract_if(.., over).collect()
    }

    /// When the next one goes.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.all.iter().filter_map(|nest| nest.expires_ns).min()
    }

    /// Takes out all.
    pub(crate) fn clear(&mut self) -> Vec<Nest> {
        std::mem::take(&mut self.all)
    }

    pub(crate) fn discourage(&mut self, now: u64) {
        self.discouraged_until = now + PATIENCE_NS;
    }

    pub(crate) fn is_discouraged(&self, now: u64) -> bool {
        now < self.discouraged_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn nest(id: u64, pid: i32, expires_ns: Option<u64>) -> Nest {
        let socket = File::open("/dev/null").expect("null").into();
        Nest { id, socket, pid, network: None, ids: OuterIds::default(), expires_ns }
    }

    fn take(nests: &mut Nests) -> Option<u64> {
        nests.take().map(|nest| nest.id)
    }

    #[test]
    fn ready_ones_are_taken_first_and_then_the_oldest() {
        let mut nests = Nests::default();
        for (id, pid) in [(1, 0), (2, 20), (3, 30), (4, 0)] {
            nests.add(nest(id, pid, None));
        }
        assert_eq!((nests.len(), nests.ready()), (4, 2));
        let order: Vec<_> = std::iter::from_fn(|| take(&mut nests)).collect();
        assert_eq!(order, [3, 2, 1, 4]);
    }

    #[test]
    fn they_go_when_their_time_is_over() {
        let mut nests = Nests::default();
        for (id, expires) in [(1, Some(10)), (2, None), (3, Some(20))] {
            nests.add(nest(id, 1, expires));
        }
        assert_eq!(nests.next_expiry(), Some(10));
        assert_eq!(nests.expired(10).iter().map(|nest| nest.id).collect::<Vec<_>>(), [1]);
        assert_eq!(nests.next_expiry(), Some(20));
        assert_eq!(nests.expired(30).len(), 1);
        assert_eq!(nests.len(), 1);
    }
}
