//! What is wrong with a filter: names that nothing has, comparisons that can't come out either way, a program that the
//! kernel would not take.

use super::rules::{Action, Condition, Filter, Rule, Test};
use super::{Options, OwnCalls, Syscalls, compile};
use crate::{Issue, UnixSockets, syscalls};

/// System calls take six.
const ARGUMENTS: u32 = 6;

/// Calls that make sockets without socket(2).
const SOCKETS_UNSEEN: [&str; 1] = ["io_uring_setup"];

/// Everything that is wrong with it; paths start at the filter.
#[must_use]
pub fn check(filter: &Filter, unix_sockets: UnixSockets) -> Vec<Issue> {
    let mut issues = Vec::new();
    for (index, rule) in filter.rules.iter().enumerate() {
        check_rule(rule, &["rules", &index.to_string()], &mut issues);
    }
    if filter.otherwise == Action::Allow {
        let message = "A filter denies by default: what no rule names can't be allowed";
        issues.push(Issue::new(&["otherwise"], message));
    }
    if !issues.is_empty() {
        return issues;
    }
    if unix_sockets == UnixSockets::None {
        check_sockets(filter, &mut issues);
    }
    // With writable binds it is the longest.
    let options = Options { unix_sockets, writable_binds: true, own_calls: OwnCalls::Launch };
    if let Err(error) = compile(&Syscalls::Filter(filter.clone()), options) {
        issues.push(Issue::new(&["rules"], error.to_string()));
    }
    issues
}

/// One rule by itself.
fn check_rule(rule: &Rule, at: &[&str], issues: &mut Vec<Issue>) {
    if rule.syscalls.is_empty() {
        issues.push(Issue::new(&[at, &["syscalls"][..]].concat(), "A rule names at least one system call"));
    }
    for (index, name) in rule.syscalls.iter().enumerate() {
        if !syscalls::is_known(name) {
            let index = index.to_string();
            let path = [at, &["syscalls", &index][..]].concat();
            issues.push(Issue::new(&path, format!("There is no system call {name:?}")));
        }
    }
    for (index, condition) in rule.when.iter().enumerate() {
        let index = index.to_string();
        let path = [at, &["when", &index][..]].concat();
        if condition.argument >= ARGUMENTS {
            issues
                .push(Issue::new(&[&path[..], &["arg"][..]].concat(), "Arguments are numbered from 0 to 5"));
        }
        if let Some(message) = fault(condition) {
            issues.push(Issue::new(&path, message));
        }
    }
}

/// A comparison that says something else than it seems to, or nothing.
fn fault(condition: &Condition) -> Option<&'static str> {
    let bits = condition.width.bits();
    let values = match &condition.test {
        Test::Equal(value)
        | Test::NotEqual(value)
        | Test::Below(value)
        | Test::AtMost(value)
        | Test::Above(value)
        | Test::AtLeast(value)
        | Test::HasAny(value) => std::slice::from_ref(value),
        Test::Masked { mask, value } => &[*mask, *value],
        Test::OneOf(values) => values,
    };
    if values.iter().any(|value| value & !bits != 0) {
        return Some("The value has more than the 32 bits that are compared");
    }
    match &condition.test {
        Test::HasAny(0) => Some("No argument has any of no bits"),
        Test::Masked { mask: 0, .. } => Some("A mask without bits compares nothing"),
        Test::Masked { mask, value } if value & !mask != 0 => {
            Some("The value has bits that the mask leaves out: nothing matches")
        }
        Test::OneOf(values) if values.is_empty() => Some("The list of values is empty: nothing matches"),
        _ => None,
    }
}

/// The filter refuses unix sockets at socket(2), and there are ways around it.
fn check_sockets(filter: &Filter, issues: &mut Vec<Issue>) {
    for (index, rule) in filter.rules.iter().enumerate() {
        let named = rule.syscalls.iter().find(|name| SOCKETS_UNSEEN.contains(&name.as_str()));
        if let (Some(name), Action::Allow | Action::Ask) = (named, rule.action) {
            let message = format!(
                "With {name} a program makes sockets that no filter sees: allow unix sockets, or not this call"
            );
            issues.push(Issue::new(&["rules", &index.to_string(), "action"], message));
        }
    }
}
