//! The time that a nest has: on the clock, and of the processors.
//!
//! Promises: init keeps both by itself, so nothing that the host or the nest is busy with stretches them; the CPU time of the
//! nest is the sum over all of its processes. Called by [`crate::init`], which asks it when to look and what is over, and by
//! [`crate::limits`], which changes it.

use nestbox_protocol::{LimitKind, Limits};

use crate::census::Census;
use crate::launch::{self, Prepared};

/// How often at least the nest's CPU time is looked at, in nanoseconds.
const LOOK_MIN: u64 = 10_000_000;

/// What a nest may use, and since when.
#[derive(Clone, Copy)]
pub(crate) struct Allowance {
    /// When the clock began.
    wall_from: u64,
    wall_ns: Option<u64>,
    /// What was used when the account began.
    cpu_from_us: u64,
    cpu_us: Option<u64>,
    /// When the CPU time is looked at.
    look: Option<u64>,
}

/// How a limit is said in a message, where the largest number lifts it.
pub(crate) fn limit(number: u64) -> Option<u64> {
    (number != u64::MAX).then_some(number)
}

impl Allowance {
    /// Of a launch whose program was executed at `exec_ns`.
    pub(crate) fn new(launch: &Prepared<'_>, exec_ns: u64) -> Self {
        Self {
            wall_from: exec_ns,
            wall_ns: launch.wall_ns,
            cpu_from_us: 0,
            cpu_us: launch.cpu_us,
            look: launch.cpu_us.map(|_| exec_ns + LOOK_MIN),
        }
    }

    /// This one after a change at `now`; with `restart`, both accounts begin there.
    pub(crate) fn changed(self, limits: &Limits, restart: bool, now: u64, census: &mut Census) -> Self {
        let wall_ns = match limits.wall_time {
            Some(ms) => limit(ms).map(|ms| ms.saturating_mul(1_000_000)),
            None => self.wall_ns,
        };
        let cpu_us = match limits.cpu_time {
            Some(ms) => limit(ms).map(|ms| ms.saturating_mul(1_000)),
            None => self.cpu_us,
        };
        Self {
            wall_from: if restart { now } else { self.wall_from },
            wall_ns,
            cpu_from_us: match cpu_us {
                Some(_) if restart => census.cpu_used_us(),
                _ => self.cpu_from_us,
            },
            cpu_us,
            // What it is now may be used up already.
            look: cpu_us.map(|_| now),
        }
    }

    /// When there is something to look at.
    pub(crate) fn next(&self) -> Option<u64> {
        let wall_end = self.wall_ns.map(|limit| self.wall_from.saturating_add(limit));
        wall_end.into_iter().chain(self.look).min()
    }

    /// What is used up at `now`.
    pub(crate) fn over(&mut self, now: u64, census: &mut Census) -> LimitKind {
        if self.wall_ns.is_some_and(|limit| now >= self.wall_from.saturating_add(limit)) {
            return LimitKind::WallTime;
        }
        let (Some(limit), Some(look)) = (self.cpu_end(), self.look) else { return LimitKind::None };
        if now < look {
            return LimitKind::None;
        }
        let mut used = census.cpu_used_us();
        if used >= limit {
            // One that is reaped by its parent between the looks at both is counted twice.
            used = used.min(census.cpu_used_us());
        }
        if used >= limit {
            return LimitKind::CpuTime;
        }
        // The soonest that the rest can be used up is when every processor works for the nest.
        let soonest = (limit - used).saturating_mul(1_000) / launch::processors();
        self.look = Some(now.saturating_add(soonest.max(LOOK_MIN)));
        LimitKind::None
    }

    /// Whether a nest that is dead had used up its CPU time: its last process may have ended between two looks.
    pub(crate) fn is_spent(&self, used_us: u64) -> bool {
        self.cpu_end().is_some_and(|limit| used_us >= limit)
    }

    /// RLIMIT_CPU of each process: no process may use more than all together, counted from its own beginning.
    pub(crate) fn cpu_seconds(&self) -> u64 {
        self.cpu_end().map_or(libc::RLIM_INFINITY, launch::cpu_seconds)
    }

    /// What all that the nest has used since its exec may come to.
    fn cpu_end(&self) -> Option<u64> {
        self.cpu_us.map(|limit| self.cpu_from_us.saturating_add(limit))
    }
}
