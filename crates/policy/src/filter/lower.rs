//! From the rules of a filter to one verdict for each number.
//!
//! Here is what holds on top of every filter: what `allow` means of a call that is dangerous in part, no unix sockets
//! where the policy wants none, and the launch's own calls.

use std::collections::BTreeMap;

use super::Options;
use super::careful::{careful, family, makes_unix_sockets};
use super::rules::{Action, Condition, ErrorNumber, Filter, Rule, Test, Width};
use crate::{UnixSockets, syscalls};

/// What becomes of a system call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Verdict {
    /// This.
    Act(Action),
    /// The first branch whose conditions all hold decides; the other verdict is for when there is none.
    Examine(Vec<Branch>, Box<Verdict>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Branch {
    pub(super) conditions: Vec<Check>,
    pub(super) verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Check {
    Argument(Condition),
    /// The sixth argument is the launch's cookie.
    Cookie,
}

/// Every number that is known here, with its verdict, in order. For all others see [`super::of_unknown`].
pub(super) fn lower(filter: &Filter, options: Options) -> BTreeMap<u32, Verdict> {
    let mut rules: BTreeMap<&str, Vec<&Rule>> = BTreeMap::new();
    for rule in &filter.rules {
        for name in &rule.syscalls {
            rules.entry(name).or_default().push(rule);
        }
    }
    let numbers = syscalls::numbers().filter_map(|number| Some((number, syscalls::name(number)?)));
    let verdict = |name| {
        let rules = rules.get(name).map_or(&[][..], Vec::as_slice);
        let verdict = without_unix_sockets(name, by_rules(name, rules, filter.otherwise, options), options);
        with_launch(name, verdict, options)
    };
    numbers.map(|(number, name)| (number, verdict(name))).collect()
}

/// What the rules that name a call say of it.
fn by_rules(name: &str, rules: &[&Rule], otherwise: Action, options: Options) -> Verdict {
    let unconditional = rules.iter().position(|rule| rule.when.is_empty());
    let last = match unconditional.map(|index| rules[index].action) {
        Some(Action::Allow) => careful(name, options).unwrap_or(Verdict::Act(Action::Allow)),
        Some(action) => Verdict::Act(action),
        None => Verdict::Act(otherwise),
    };
    let mut branches: Vec<_> = rules[..unconditional.unwrap_or(rules.len())]
        .iter()
        .map(|rule| Branch {
            conditions: rule.when.iter().cloned().map(Check::Argument).collect(),
            verdict: Verdict::Act(rule.action),
        })
        .collect();
    while branches.last().is_some_and(|branch| branch.verdict == last) {
        branches.pop();
    }
    examine(branches, last)
}

/// Branches before a verdict, as one verdict.
fn examine(mut branches: Vec<Branch>, otherwise: Verdict) -> Verdict {
    if branches.is_empty() {
        return otherwise;
    }
    match otherwise {
        Verdict::Examine(more, otherwise) => {
            branches.extend(more);
            Verdict::Examine(branches, otherwise)
        }
        Verdict::Act(_) => Verdict::Examine(branches, Box::new(otherwise)),
    }
}

/// The verdict, but for unix sockets that a policy without them would otherwise get.
fn without_unix_sockets(name: &str, verdict: Verdict, options: Options) -> Verdict {
    match makes_unix_sockets(name) {
        Some(also) if options.unix_sockets == UnixSockets::None => refuse_unix(verdict, None, &also),
        _ => verdict,
    }
}

/// `known`: whether the call is for a unix socket, as far as the conditions on the way here say it.
fn refuse_unix(verdict: Verdict, known: Option<bool>, also: &[Check]) -> Verdict {
    match verdict {
        Verdict::Act(Action::Allow | Action::Ask) if known != Some(false) => {
            let mut conditions = if known.is_none() { vec![family(libc::AF_UNIX)] } else { Vec::new() };
            conditions.extend_from_slice(also);
            let refused = Verdict::Act(Action::Errno(ErrorNumber::of(libc::EACCES)));
            if conditions.is_empty() {
                return refused;
            }
            examine(vec![Branch { conditions, verdict: refused }], verdict)
        }
        Verdict::Act(_) => verdict,
        Verdict::Examine(branches, otherwise) => {
            let refuse = |branch: Branch| {
                let known = known.or_else(|| branch.conditions.iter().find_map(names_unix));
                Branch { verdict: refuse_unix(branch.verdict, known, also), conditions: branch.conditions }
            };
            let branches = branches.into_iter().map(refuse).collect();
            Verdict::Examine(branches, Box::new(refuse_unix(*otherwise, known, also)))
        }
    }
}

/// Whether a condition says that the family is AF_UNIX, or that it is another; none: it says neither.
fn names_unix(check: &Check) -> Option<bool> {
    match check {
        Check::Argument(Condition { argument: 0, width: Width::Low, test: Test::Equal(family) }) => {
            Some(*family == libc::AF_UNIX as u64)
        }
        _ => None,
    }
}

/// The verdict, but for our own calls.
fn with_launch(name: &str, verdict: Verdict, options: Options) -> Verdict {
    if !options.own_calls.contain(name) || verdict == Verdict::Act(Action::Allow) {
        return verdict;
    }
    let own = Branch { conditions: vec![Check::Cookie], verdict: Verdict::Act(Action::Allow) };
    examine(vec![own], verdict)
}
