//! Other limits for a program that runs: `SetLimits`.
//!
//! Time is init's own account ([`crate::allowance`]). The limits that the kernel keeps for each process are set by
//! prlimit(2) for every process of the nest, until a pass over all of them finds nobody left to change: whoever is forked
//! meanwhile has its parent's, and so is changed by that pass or the next. A fork that was under way when its parent was
//! changed has the old limits and is not to be seen before it is done; so the passes go on for a while, at growing
//! distances, after the host has its answer. If one of them finds such a latecomer, which by then may be forking itself, the
//! whole nest is stopped for a moment: a fork under way gives up when a signal is pending, and is begun anew afterwards.
//!
//! Promises: nothing is ever raised but the time that the nest has (and RLIMIT_CPU with it, which only follows that); if
//! something fails, what was tightened stays so, and the time is as it was. Called by [`crate::init`].

use nestbox_protocol::{Limits, SetLimits, Step};
use nestbox_sys::Errno;
use nestbox_sys::process::monotonic_ns;

use crate::allowance::Allowance;
use crate::census::Census;
use crate::fault::{At, Fault};
use crate::launch;

/// How many passes follow each other at most. The clock is not looked at meanwhile.
const PASSES_MAX: usize = 16;

/// How many processes of a nest may be stopped by the nest itself, and stay so.
const STOPPED_MAX: usize = 256;

/// The first pause before another pass, and the longest; each is twice the one before. All of them together are what a fork
/// may take that was under way: two seconds are one of tens of gigabytes.
const PAUSE_MIN: u64 = 1_000_000;
const PAUSE_MAX: u64 = 1_024_000_000;

/// What a process may have.
#[derive(Clone, Copy)]
enum Rule {
    /// At most so much, for good.
    AtMost(u32, u64),
    /// RLIMIT_CPU follows what the nest may use: the soft limit alone, which may be raised again, and not where it is below all
    /// that we ever set, which is the program's own doing.
    Cpu { seconds: u64, lowest: u64 },
}

/// What [`launch::rlimits`] has at most, and so each change and all of them together.
const RULES_MAX: usize = 7;

/// The changes of one launch so far, and when its processes are looked at again.
pub(crate) struct Changes {
    rules: [Option<Rule>; RULES_MAX],
    again: Option<u64>,
    pause: u64,
    /// The nest can be stopped: all that kill(2) reaches is its own, and nobody traces it, who would see the stops.
    stops: bool,
}

impl Changes {
    /// Of a nest that can be stopped for a moment, or not.
    pub(crate) fn new(stops: bool) -> Self {
        Self { rules: [None; RULES_MAX], again: None, pause: 0, stops }
    }

    /// Whether one of them was a limit of this resource.
    pub(crate) fn limits(&self, resource: u32) -> bool {
        let of_resource =
            |rule: &Option<Rule>| matches!(rule, Some(Rule::AtMost(limited, _)) if *limited == resource);
        self.rules.iter().any(of_resource)
    }

    /// When another pass is due.
    pub(crate) fn next(&self) -> Option<u64> {
        self.again
    }

    /// Carries out what the host asks for.
    pub(crate) fn apply(
        &mut self,
        wanted: SetLimits,
        allowance: &mut Allowance,
        census: &mut Census,
    ) -> Result<(), Fault<'static>> {
        let step = Step::SetLimits;
        let limits = wanted.limits.unwrap_or_default();
        if limits.disk.is_some() {
            let detail = "init has given up the right to mount, and so to remount";
            return Err(Fault::new(step, Errno::EPERM, "mount", b"").detail(detail));
        }
        let changed = allowance.changed(&limits, wanted.restart_clock, monotonic_ns(), census);
        let before = allowance.cpu_seconds();
        let seconds = changed.cpu_seconds();
        let of_processes = Limits { wall_time: None, cpu_time: None, ..limits };
        for (resource, value) in launch::rlimits(&of_processes) {
            self.add(Rule::AtMost(resource, value));
        }
        if seconds != before {
            self.add(Rule::Cpu { seconds, lowest: before.min(seconds) });
        }
        if seconds != before || of_processes != Limits::default() {
            self.settle(census).at(step, "prlimit", b"")?;
        }
        *allowance = changed;
        Ok(())
    }

    /// One more pass, if it is due.
    pub(crate) fn tend(&mut self, now: u64, census: &mut Census) {
        if self.again.take_if(|again| now >= *again).is_none() {
            return;
        }
        // Nobody waits for an answer; what can't be done now is tried again at the next.
        if self.pass(census) != Ok(0) {
            self.pause = PAUSE_MIN;
            let _ = self.pass_stopped(census);
        }
        self.pause_after(now);
    }

    fn pause_after(&mut self, now: u64) {
        self.again = (self.pause <= PAUSE_MAX).then(|| now + self.pause);
        self.pause *= 2;
    }

    fn add(&mut self, rule: Rule) {
        let same = |slot: &&mut Option<Rule>| match (&**slot, rule) {
            (Some(Rule::AtMost(old, _)), Rule::AtMost(new, _)) => *old == new,
            (None, _) | (Some(Rule::Cpu { .. }), Rule::Cpu { .. }) => true,
            _ => false,
        };
        // The first that is free comes after all that are not.
        let Some(slot) = self.rules.iter_mut().find(same) else { return };
        *slot = Some(match (*slot, rule) {
            (Some(Rule::AtMost(_, old)), Rule::AtMost(resource, new)) => Rule::AtMost(resource, old.min(new)),
            (Some(Rule::Cpu { lowest: old, .. }), Rule::Cpu { seconds, lowest }) => {
                Rule::Cpu { seconds, lowest: lowest.min(old) }
            }
            (_, rule) => rule,
        });
    }

    /// Passes until one changes nothing.
    fn settle(&mut self, census: &mut Census) -> Result<(), Errno> {
        let begun = monotonic_ns();
        // Whatever comes of it: what could be changed by now is not to be undone by a fork.
        self.pause = PAUSE_MIN;
        self.pause_after(begun);
        for _ in 0..PASSES_MAX {
            if self.pass(census)? == 0 {
                return Ok(());
            }
        }
        self.pass_stopped(census)
    }

    /// Passes with the nest stopped, until one changes nothing. That is all then: whoever was forking at the signal is not,
    /// and whom one of the stopped has woken again in the very moment has the limits by now, and so has what he forks.
    fn pass_stopped(&self, census: &mut Census) -> Result<(), Errno> {
        if !self.stops {
            return Err(Errno::EAGAIN);
        }
        let mut stopped = [0_i32; STOPPED_MAX];
        let mut count = 0;
        census.each(|member| {
            if member.is_stopped()
                && let (Some(pid), Some(slot)) = (member.pid(), stopped.get_mut(count))
            {
                (*slot, count) = (pid, count + 1);
            }
        })?;
        let mut result = Err(Errno::EAGAIN);
        for _ in 0..PASSES_MAX {
            signal(-1, libc::SIGSTOP);
            match self.pass(census) {
                Ok(0) => result = Ok(()),
                Ok(_) => continue,
                Err(errno) => result = Err(errno),
            }
            break;
        }
        census.each(|member| {
            if let Some(pid) = member.pid().filter(|pid| !stopped[..count].contains(pid)) {
                signal(pid, libc::SIGCONT);
            }
        })?;
        result
    }

    /// One pass over all processes; how many of their limits it changed.
    fn pass(&self, census: &mut Census) -> Result<usize, Errno> {
        let mut changed = 0;
        let mut failed = None;
        census.each(|member| {
            let Some(pid) = member.pid() else { return };
            for rule in self.rules.iter().flatten() {
                match rule.apply(pid) {
                    Ok(true) => changed += 1,
                    // It is over.
                    Ok(false) | Err(Errno::ESRCH) => {}
                    Err(errno) => failed = Some(errno),
                }
            }
        })?;
        failed.map_or(Ok(changed), Err)
    }
}

/// To a process of the nest, or with -1 to all: kill(2) from within its pid namespace.
fn signal(pid: i32, number: i32) {
    // SAFETY: numbers only.
    let _ = unsafe { nestbox_sys::syscall!(libc::SYS_kill, pid, number) };
}

impl Rule {
    /// Brings a process in line; whether it was not.
    fn apply(self, pid: i32) -> Result<bool, Errno> {
        let resource = match self {
            Self::AtMost(resource, _) => resource,
            Self::Cpu { .. } => libc::RLIMIT_CPU,
        };
        loop {
            let mut have = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: a struct of ours.
            unsafe { nestbox_sys::syscall!(libc::SYS_prlimit64, pid, resource, 0, &raw mut have) }?;
            let Some(wanted) = self.wanted(have) else { return Ok(false) };
            // SAFETY: a struct of ours.
            match unsafe { nestbox_sys::syscall!(libc::SYS_prlimit64, pid, resource, &raw const wanted, 0) } {
                Ok(_) => return Ok(true),
                // Perhaps it has lowered its own meanwhile, which can't be undone.
                Err(Errno::EPERM) => {
                    let mut now = have;
                    // SAFETY: a struct of ours.
                    unsafe { nestbox_sys::syscall!(libc::SYS_prlimit64, pid, resource, 0, &raw mut now) }?;
                    if now.rlim_max >= have.rlim_max {
                        return Err(Errno::EPERM);
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    /// What a process that has `have` is to have instead, if that differs.
    fn wanted(self, have: libc::rlimit64) -> Option<libc::rlimit64> {
        let wanted = match self {
            Self::AtMost(_, most) => {
                libc::rlimit64 { rlim_cur: have.rlim_cur.min(most), rlim_max: have.rlim_max.min(most) }
            }
            Self::Cpu { lowest, .. } if have.rlim_cur < lowest => have,
            Self::Cpu { seconds, .. } => libc::rlimit64 { rlim_cur: seconds.min(have.rlim_max), ..have },
        };
        let differs = wanted.rlim_cur != have.rlim_cur || wanted.rlim_max != have.rlim_max;
        differs.then_some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(limit: Option<libc::rlimit64>) -> Option<(u64, u64)> {
        limit.map(|limit| (limit.rlim_cur, limit.rlim_max))
    }

    fn wanted(rule: Rule, rlim_cur: u64, rlim_max: u64) -> Option<(u64, u64)> {
        pair(rule.wanted(libc::rlimit64 { rlim_cur, rlim_max }))
    }

    #[test]
    fn limits_are_tightened_and_nothing_else() {
        let rule = Rule::AtMost(libc::RLIMIT_NOFILE, 10);
        assert_eq!(wanted(rule, 20, 30), Some((10, 10)));
        assert_eq!(wanted(rule, 5, 30), Some((5, 10)));
        assert_eq!(wanted(rule, 10, 10), None);
        assert_eq!(wanted(rule, 3, 4), None, "the program's own");
    }

    #[test]
    fn the_cpu_follows_what_is_allowed_up_to_the_hard_limit() {
        let rule = Rule::Cpu { seconds: 10, lowest: 2 };
        assert_eq!(wanted(rule, 2, libc::RLIM_INFINITY), Some((10, libc::RLIM_INFINITY)));
        assert_eq!(wanted(rule, 2, 7), Some((7, 7)));
        assert_eq!(wanted(rule, 1, 7), None, "the program's own");
        assert_eq!(wanted(rule, libc::RLIM_INFINITY, libc::RLIM_INFINITY), Some((10, libc::RLIM_INFINITY)));
    }

    #[test]
    fn of_several_changes_the_tightest_counts() {
        let mut changes = Changes::new(false);
        for most in [10, 5, 8] {
            changes.add(Rule::AtMost(libc::RLIMIT_NOFILE, most));
        }
        changes.add(Rule::Cpu { seconds: 2, lowest: 2 });
        changes.add(Rule::Cpu { seconds: 9, lowest: 9 });
        let [files, cpu, rest @ ..] = changes.rules;
        assert!(matches!(files, Some(Rule::AtMost(libc::RLIMIT_NOFILE, 5))));
        assert!(matches!(cpu, Some(Rule::Cpu { seconds: 9, lowest: 2 })));
        assert!(rest.iter().all(Option::is_none));
    }
}
