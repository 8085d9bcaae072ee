//! The one timer: it goes off when the first of those who wait for a time is due, and all are seen to whose time has come.

use std::time::Duration;

use nestbox_sys::process;

use super::Client;

impl Client {
    /// Has the timer go off at `due` or before.
    pub(super) fn set_timer(&mut self, due: u64) {
        if self.timer_due.is_none_or(|earlier| due < earlier) {
            self.timer_due = Some(due);
            self.reactor.set_timer(Duration::from_nanos(due.saturating_sub(process::monotonic_ns()).max(1)));
        }
    }

    pub(super) fn timer_went_off(&mut self) {
        self.reactor.timer_went_off();
        self.timer_due = None;
        let now = process::monotonic_ns();
        self.watch_output(now);
        self.expire_nests(now);
        let refills = self.refill(now);
        let outputs = self.unwatched.front().map(|&(due, _)| due);
        let nests = self.templates.iter().filter_map(|template| template.nests.next_expiry()).min();
        let networks = self.networks.trim(now);
        self.tend_networks();
        self.admission.expire(now);
        self.admit();
        let places = self.admission.due();
        if let Some(due) = outputs.into_iter().chain(nests).chain(refills).chain(networks).chain(places).min()
        {
            self.set_timer(due);
        }
    }
}
