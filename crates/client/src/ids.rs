//! The ids that sandboxees have outside: in the host's user namespace.
//!
//! An unprivileged host has only its own. A root host gives them unprivileged ids, never uid 0: one for all, or from a
//! range one for each running nest, so that no two share what the kernel counts by uid. Called by the client when a
//! launch begins and ends.

/// The id that a root host's sandboxees have unless the caller says otherwise. Not 65534: that is everybody's "nobody",
/// whose files and processes they would share. 65520 to 65533 is a range that systemd leaves alone and that is mapped
/// even where a container has only 65536 ids.
pub const DEFAULT_HOST_ID: u32 = 65533;

/// The ids of one nest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct OuterIds {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Its place in the range; `None`: shared by all.
    slot: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct IdRange {
    base: OuterIds,
    /// The host may give ids that are not its own.
    privileged: bool,
    count: u32,
    /// Slots that were used and are free again; the last one used is used next, its kernel structures are warm.
    free: Vec<u32>,
    /// All slots from here on were never used.
    unused: u32,
}

impl IdRange {
    /// `count` ids from `uid` and `gid` on. An unprivileged host has only its own.
    pub(crate) fn new(privileged: bool, uid: u32, gid: u32, count: u32) -> Self {
        let count = if privileged { count.max(1) } else { 1 };
        Self { base: OuterIds { uid, gid, slot: None }, privileged, count, free: Vec::new(), unused: 0 }
    }

    /// The ids that a template is built with.
    pub(crate) fn base(&self) -> OuterIds {
        self.base
    }

    /// Whether the host is root.
    pub(crate) fn privileged(&self) -> bool {
        self.privileged
    }

    /// Whether each nest has ids of its own.
    pub(crate) fn one_each(&self) -> bool {
        self.count > 1
    }

    /// Ids for one nest; `None`: all are in use.
    pub(crate) fn acquire(&mut self) -> Option<OuterIds> {
        if self.count == 1 {
            return Some(self.base);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.unused < self.count => {
                self.unused += 1;
                self.unused - 1
            }
            None => return None,
        };
        Some(OuterIds { uid: self.base.uid + slot, gid: self.base.gid + slot, slot: Some(slot) })
    }

    /// Gives them back, once nothing of the nest is left.
    pub(crate) fn release(&mut self, ids: OuterIds) {
        self.free.extend(ids.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_id_is_shared() {
        let mut ids = IdRange::new(true, 70000, 70000, 1);
        assert_eq!(ids.acquire(), ids.acquire());
        assert_eq!(IdRange::new(false, 1000, 1000, 50).acquire().map(|ids| ids.uid), Some(1000));
    }

    #[test]
    fn a_range_gives_each_its_own() {
        let mut ids = IdRange::new(true, 70000, 80000, 2);
        let (first, second) = (ids.acquire().expect("free"), ids.acquire().expect("free"));
        assert_eq!((first.uid, first.gid, second.uid, second.gid), (70000, 80000, 70001, 80001));
        assert_eq!(ids.acquire(), None);
        ids.release(first);
        assert_eq!(ids.acquire(), Some(first));
    }
}
