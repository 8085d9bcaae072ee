//! How many nests are set up at once.
//!
//! To set up a nest is work for the kernel and waits for nothing, so more of them at once than keep the processors busy get into
//! each other's way: with 64 under way on two processors each took a tenth more of their time than with six. So a
//! launch that goes to a template takes a place, or waits in line for one, and gives it back when its program runs or its
//! launch is over. Promises: the launches of one template come in order, and templates take turns, so that whoever floods
//! one does not hold up the others; nobody waits for a launch that does not get on, whose place is another's after
//! [`PATIENCE_NS`]. A warm nest has been set up, and needs no place. Bookkeeping only; called by `server/send.rs`.

use std::collections::{HashSet, VecDeque};
use std::num::NonZero;
use std::thread;

use crate::numbered::Numbered;

/// How long a launch keeps its place at the most: some three times what it takes where all places are taken.
const PATIENCE_NS: u64 = 30_000_000;

pub(crate) struct Admission {
    places: usize,
    /// Who has one, and until when at the most (`CLOCK_MONOTONIC`).
    held: Numbered<u64>,
    /// Who waits, by template, in the order in which templates have their turn.
    lines: VecDeque<(u64, VecDeque<u64>)>,
    /// The same, without those that have left.
    waiting: HashSet<u64>,
}

impl Admission {
    /// Places for as many as keep all processors busy, though some of them wait for the kernel at any time.
    pub(crate) fn new() -> Self {
        Self::with_places(2 * thread::available_parallelism().map_or(1, NonZero::get) + 2)
    }

    fn with_places(places: usize) -> Self {
        Self { places, held: Numbered::default(), lines: VecDeque::new(), waiting: HashSet::new() }
    }

    /// Whether a launch may be sent to its template now. If not, it is in line: [`Admission::next`] names it.
    pub(crate) fn enter(&mut self, template: u64, token: u64, now: u64) -> bool {
        if self.held.contains_key(&token) {
            return true;
        }
        if self.waiting.contains(&token) {
            return false;
        }
        if self.waiting.is_empty() && self.held.len() < self.places {
            self.held.insert(token, now + PATIENCE_NS);
            return true;
        }
        self.waiting.insert(token);
        match self.lines.iter_mut().find(|(of, _)| *of == template) {
            Some((_, line)) => line.push_back(token),
            None => self.lines.push_back((template, VecDeque::from([token]))),
        }
        false
    }

    /// The next launch that may be sent, if there is a place for it.
    pub(crate) fn next(&mut self, now: u64) -> Option<u64> {
        while self.held.len() < self.places {
            let (template, mut line) = self.lines.pop_front()?;
            let first = line.pop_front();
            if !line.is_empty() {
                self.lines.push_back((template, line));
            }
            if let Some(token) = first.filter(|token| self.waiting.remove(token)) {
                self.held.insert(token, now + PATIENCE_NS);
                return Some(token);
            }
        }
        None
    }

    /// A launch needs its place no longer, or will never need one.
    pub(crate) fn leave(&mut self, token: u64) {
        self.held.remove(&token);
        self.waiting.remove(&token);
    }

    /// Takes their places from those that have had them for long enough.
    pub(crate) fn expire(&mut self, now: u64) {
        self.held.retain(|_, due| *due > now);
    }

    /// When to do that, if anybody waits for it.
    pub(crate) fn due(&self) -> Option<u64> {
        if self.waiting.is_empty() { None } else { self.held.values().copied().min() }
    }

    /// Forgets everybody.
    pub(crate) fn clear(&mut self) {
        self.held.clear();
        self.lines.clear();
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: u64 = 100;
    const OTHER: u64 = 200;

    #[test]
    fn who_finds_no_place_waits_for_one() {
        let mut admission = Admission::with_places(2);
        assert!(admission.enter(ONE, 1, 0) && admission.enter(ONE, 2, 0));
        assert!(admission.enter(ONE, 1, 0), "it has its place already");
        assert!(!admission.enter(ONE, 3, 0) && !admission.enter(ONE, 3, 0));
        assert_eq!(admission.next(0), None);
        admission.leave(1);
        assert!(!admission.enter(ONE, 4, 0), "others came first");
        assert_eq!((admission.next(0), admission.next(0)), (Some(3), None));
        admission.leave(2);
        admission.leave(3);
        assert_eq!((admission.next(0), admission.next(0)), (Some(4), None));
        assert!(admission.enter(ONE, 5, 0), "nobody waits");
    }

    #[test]
    fn templates_take_turns() {
        let mut admission = Admission::with_places(1);
        assert!(admission.enter(ONE, 1, 0));
        for token in 2..5 {
            assert!(!admission.enter(ONE, token, 0));
        }
        assert!(!admission.enter(OTHER, 5, 0));
        let mut order = Vec::new();
        let mut last = 1;
        while order.len() < 4 {
            admission.leave(last);
            last = admission.next(0).expect("somebody waits");
            order.push(last);
        }
        assert_eq!(order, [2, 5, 3, 4]);
    }

    #[test]
    fn who_leaves_the_line_is_not_called() {
        let mut admission = Admission::with_places(1);
        assert!(admission.enter(ONE, 1, 0));
        assert!(!admission.enter(ONE, 2, 0) && !admission.enter(OTHER, 3, 0));
        admission.leave(2);
        admission.leave(1);
        assert_eq!((admission.next(0), admission.next(0)), (Some(3), None));
    }

    #[test]
    fn nobody_keeps_a_place_for_ever() {
        let mut admission = Admission::with_places(1);
        assert!(admission.enter(ONE, 1, 7));
        assert_eq!(admission.due(), None, "nobody waits");
        assert!(!admission.enter(OTHER, 2, 8));
        let due = admission.due().expect("somebody waits");
        assert_eq!(due, 7 + PATIENCE_NS);
        admission.expire(due - 1);
        assert_eq!(admission.next(due - 1), None);
        admission.expire(due);
        assert_eq!(admission.next(due), Some(2));
    }
}
