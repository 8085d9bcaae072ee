//! From verdicts to a program: a binary search over runs of numbers with one verdict, and short branches for arguments.

use std::collections::{BTreeMap, HashMap};

use super::lower::{Check, Verdict};
use super::rules::{Action, Condition, Test, Width};
use crate::bpf::{self, Instruction, high_half, low_half};

/// Which argument of the launch's own calls holds the cookie: the sixth, which the kernel looks at in none of them.
pub(super) const COOKIE_ARGUMENT: u32 = 5;

/// A program in order of execution, and where the halves of the cookie are compared: index, and whether it is the high one.
pub(super) struct Assembled {
    pub(super) instructions: Vec<Instruction>,
    pub(super) cookie: Vec<(usize, bool)>,
}

/// The program for these verdicts, and `otherwise` for all other numbers.
pub(super) fn assemble(verdicts: &BTreeMap<u32, Verdict>, otherwise: &Verdict) -> Assembled {
    let end = verdicts.last_key_value().map_or(0, |(&number, _)| number + 1);
    let mut assembler = Assembler::default();
    let known = assembler.search(&runs(verdicts, otherwise), end);
    assembler.jump_to(known);
    assembler.push(statement(bpf::LOAD, bpf::NUMBER_AT));
    let ours = assembler.last();
    let foreign = assembler.finish(bpf::KILL_PROCESS);
    assembler.branch(bpf::JUMP_EQUAL, bpf::ARCHITECTURE, ours, foreign);
    assembler.push(statement(bpf::LOAD, bpf::ARCHITECTURE_AT));
    let length = assembler.reversed.len();
    assembler.reversed.reverse();
    Assembled {
        instructions: assembler.reversed,
        cookie: assembler.cookie.iter().map(|&(place, high)| (length - 1 - place, high)).collect(),
    }
}

/// Runs of numbers with one verdict: where each starts. They cover all numbers; the last goes on for ever.
fn runs(verdicts: &BTreeMap<u32, Verdict>, otherwise: &Verdict) -> Vec<(u32, Verdict)> {
    let mut runs = vec![(0, otherwise.clone())];
    let mut put = |start: u32, verdict: &Verdict| match runs.last_mut() {
        Some((_, found)) if found == verdict => {}
        Some((last, found)) if *last == start => *found = verdict.clone(),
        _ => runs.push((start, verdict.clone())),
    };
    for (&number, verdict) in verdicts {
        put(number, verdict);
        if !verdicts.contains_key(&(number + 1)) {
            put(number + 1, otherwise);
        }
    }
    runs
}

/// Where to split so that both sides hold about as many numbers: each counts once when the filter is installed.
fn halves(runs: &[(u32, Verdict)], end: u32) -> usize {
    let middle = runs[0].0.midpoint(end);
    (1..runs.len()).min_by_key(|&split| runs[split].0.abs_diff(middle)).unwrap_or(1)
}

/// What a filter returns for an action.
pub(super) fn returned(action: Action) -> u32 {
    match action {
        Action::Allow => bpf::ALLOW,
        Action::Errno(number) => bpf::ERRNO | number.number() as u32,
        Action::Kill => bpf::KILL_PROCESS,
        Action::Report => bpf::REPORT,
        Action::Ask => bpf::ASK,
    }
}

fn statement(code: u16, value: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, value }
}

/// Writes the program from its end to its start. Jumps only go forward, so each target is there before what jumps to it,
/// and all that end alike share one return, all that examine alike one examination: a program of half the length, and
/// installing takes some 0.1 µs for each instruction.
#[derive(Default)]
struct Assembler {
    reversed: Vec<Instruction>,
    /// Where a verdict that examines arguments is reached.
    examinations: HashMap<Verdict, Place>,
    /// The latest jump that leads to a place.
    relays: HashMap<Place, Place>,
    /// Where the halves of the cookie are compared.
    cookie: Vec<(Place, bool)>,
}

/// An instruction's distance from the end of the program.
type Place = usize;

impl Assembler {
    fn push(&mut self, instruction: Instruction) {
        self.reversed.push(instruction);
    }

    /// What was written last, and so comes first.
    fn last(&self) -> Place {
        self.reversed.len() - 1
    }

    /// How far the next instruction would have to jump.
    fn distance(&self, target: Place) -> usize {
        self.last() - target
    }

    /// Makes `target` what the next instruction falls through to.
    fn jump_to(&mut self, target: Place) {
        if self.distance(target) > 0 {
            self.push(statement(bpf::JUMP, self.distance(target) as u32));
        }
    }

    /// A place that leads to `target` and that a conditional jump reaches, with another such place in between.
    fn within_reach(&mut self, target: Place) -> Place {
        let near = |assembler: &Self, place| assembler.distance(place) < usize::from(u8::MAX);
        if near(self, target) {
            return target;
        }
        if let Some(&relay) = self.relays.get(&target).filter(|&&relay| near(self, relay)) {
            return relay;
        }
        self.jump_to(target);
        self.relays.insert(target, self.last());
        self.last()
    }

    /// Tests the accumulator.
    fn branch(&mut self, test: u16, value: u32, holds: Place, fails: Place) -> Place {
        let (holds, fails) = (self.within_reach(holds), self.within_reach(fails));
        let (jump_true, jump_false) = (self.distance(holds) as u8, self.distance(fails) as u8);
        self.push(Instruction { code: test, jump_true, jump_false, value });
        self.last()
    }

    /// Tests a word of the call.
    fn word(&mut self, at: u32, test: u16, value: u32, holds: Place, fails: Place) -> Place {
        self.branch(test, value, holds, fails);
        self.push(statement(bpf::LOAD, at));
        self.last()
    }

    /// Where the program ends with `value`.
    fn finish(&mut self, value: u32) -> Place {
        let wanted = statement(bpf::RETURN, value);
        let reach = self.reversed.len().saturating_sub(usize::from(u8::MAX) - 1);
        let known = self.reversed[reach..].iter().rposition(|&instruction| instruction == wanted);
        known.map_or_else(
            || {
                self.push(wanted);
                self.last()
            },
            |place| reach + place,
        )
    }

    /// Where the run is found that the number in the accumulator is in. Runs end where the next one starts, the last one
    /// of the table at `end`.
    fn search(&mut self, runs: &[(u32, Verdict)], end: u32) -> Place {
        if let [(_, verdict)] = runs {
            return self.judge(verdict);
        }
        let (low, high) = runs.split_at(halves(runs, end));
        let pivot = high[0].0;
        let high = self.search(high, end);
        let low = self.search(low, pivot);
        self.branch(bpf::JUMP_AT_LEAST, pivot, high, low)
    }

    /// Where the verdict is reached.
    fn judge(&mut self, verdict: &Verdict) -> Place {
        let (branches, otherwise) = match verdict {
            Verdict::Act(action) => return self.finish(returned(*action)),
            Verdict::Examine(branches, otherwise) => (branches, otherwise),
        };
        if let Some(&known) = self.examinations.get(verdict) {
            return known;
        }
        let otherwise = self.judge(otherwise);
        let place = branches.iter().rev().fold(otherwise, |next, branch| {
            let verdict = self.judge(&branch.verdict);
            branch.conditions.iter().rev().fold(verdict, |holds, check| self.check(check, holds, next))
        });
        self.examinations.insert(verdict.clone(), place);
        place
    }

    fn check(&mut self, check: &Check, holds: Place, fails: Place) -> Place {
        match check {
            Check::Argument(condition) => self.condition(condition, holds, fails),
            Check::Cookie => {
                let low = self.word(low_half(COOKIE_ARGUMENT), bpf::JUMP_EQUAL, 0, holds, fails);
                let high = self.word(high_half(COOKIE_ARGUMENT), bpf::JUMP_EQUAL, 0, low, fails);
                // The comparison comes after its load.
                self.cookie.extend([(low - 1, false), (high - 1, true)]);
                high
            }
        }
    }

    /// Where the condition is tried.
    fn condition(&mut self, condition: &Condition, holds: Place, fails: Place) -> Place {
        let at = Argument { low: low_half(condition.argument), high: high_half(condition.argument) };
        match condition.width {
            Width::Low => self.narrow(at, &condition.test, holds, fails),
            Width::Whole => self.wide(at, &condition.test, holds, fails),
        }
    }

    /// A condition on the low half.
    fn narrow(&mut self, at: Argument, test: &Test, holds: Place, fails: Place) -> Place {
        let value = |value: u64| value as u32;
        match test {
            Test::Equal(v) => self.word(at.low, bpf::JUMP_EQUAL, value(*v), holds, fails),
            Test::NotEqual(v) => self.word(at.low, bpf::JUMP_EQUAL, value(*v), fails, holds),
            Test::Below(v) => self.word(at.low, bpf::JUMP_AT_LEAST, value(*v), fails, holds),
            Test::AtLeast(v) => self.word(at.low, bpf::JUMP_AT_LEAST, value(*v), holds, fails),
            Test::Above(v) => self.word(at.low, bpf::JUMP_ABOVE, value(*v), holds, fails),
            Test::AtMost(v) => self.word(at.low, bpf::JUMP_ABOVE, value(*v), fails, holds),
            Test::HasAny(bits) => self.word(at.low, bpf::JUMP_ANY_BIT, value(*bits), holds, fails),
            Test::Masked { mask, value: v } => self.masked(at.low, value(*mask), value(*v), holds, fails),
            Test::OneOf(values) if values.is_empty() => fails,
            Test::OneOf(values) => {
                let equal = bpf::JUMP_EQUAL;
                values.iter().rev().fold(fails, |next, v| self.branch(equal, value(*v), holds, next));
                self.push(statement(bpf::LOAD, at.low));
                self.last()
            }
        }
    }

    /// A condition on both halves.
    fn wide(&mut self, at: Argument, test: &Test, holds: Place, fails: Place) -> Place {
        match test {
            Test::Equal(value) => self.both_equal(at, *value, holds, fails),
            Test::NotEqual(value) => self.both_equal(at, *value, fails, holds),
            Test::Below(value) => self.compared(at, bpf::JUMP_AT_LEAST, *value, fails, holds),
            Test::AtLeast(value) => self.compared(at, bpf::JUMP_AT_LEAST, *value, holds, fails),
            Test::Above(value) => self.compared(at, bpf::JUMP_ABOVE, *value, holds, fails),
            Test::AtMost(value) => self.compared(at, bpf::JUMP_ABOVE, *value, fails, holds),
            Test::HasAny(bits) => {
                let (low, high) = split(*bits);
                let place = match low {
                    0 => fails,
                    low => self.word(at.low, bpf::JUMP_ANY_BIT, low, holds, fails),
                };
                match high {
                    0 => place,
                    high => self.word(at.high, bpf::JUMP_ANY_BIT, high, holds, place),
                }
            }
            Test::Masked { mask, value } => {
                let ((mask_low, mask_high), (low, high)) = (split(*mask), split(*value));
                let place = self.masked(at.low, mask_low, low, holds, fails);
                self.masked(at.high, mask_high, high, place, fails)
            }
            Test::OneOf(values) => {
                values.iter().rev().fold(fails, |next, value| self.both_equal(at, *value, holds, next))
            }
        }
    }

    fn both_equal(&mut self, at: Argument, value: u64, holds: Place, fails: Place) -> Place {
        let (low, high) = split(value);
        let place = self.word(at.low, bpf::JUMP_EQUAL, low, holds, fails);
        self.word(at.high, bpf::JUMP_EQUAL, high, place, fails)
    }

    /// `test` decides on the low halves where the high ones are equal; else those decide.
    fn compared(&mut self, at: Argument, test: u16, value: u64, holds: Place, fails: Place) -> Place {
        let (low, high) = split(value);
        let place = self.word(at.low, test, low, holds, fails);
        let not_above = self.branch(bpf::JUMP_EQUAL, high, place, fails);
        self.word(at.high, bpf::JUMP_ABOVE, high, holds, not_above)
    }

    fn masked(&mut self, at: u32, mask: u32, value: u32, holds: Place, fails: Place) -> Place {
        match mask {
            0 => holds,
            u32::MAX => self.word(at, bpf::JUMP_EQUAL, value, holds, fails),
            mask => {
                self.branch(bpf::JUMP_EQUAL, value, holds, fails);
                self.push(statement(bpf::AND, mask));
                self.push(statement(bpf::LOAD, at));
                self.last()
            }
        }
    }
}

/// Where the halves of an argument are.
#[derive(Clone, Copy)]
struct Argument {
    low: u32,
    high: u32,
}

/// Low and high half.
fn split(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both targets of a branch at every distance around what a conditional jump reaches.
    #[test]
    fn branches_reach_any_distance() {
        let distances: Vec<usize> = [0, 1, 2, 100].into_iter().chain(250..=260).chain(505..=512).collect();
        for (&between, &after) in
            distances.iter().flat_map(|one| distances.iter().map(move |other| (one, other)))
        {
            for swapped in [false, true] {
                let mut assembler = Assembler::default();
                assembler.push(statement(bpf::RETURN, 1));
                let far = assembler.last();
                assembler.reversed.extend(vec![statement(bpf::RETURN, 3); between]);
                assembler.push(statement(bpf::RETURN, 2));
                let near = assembler.last();
                assembler.reversed.extend(vec![statement(bpf::RETURN, 3); after]);
                let (holds, fails) = if swapped { (near, far) } else { (far, near) };
                assembler.branch(bpf::JUMP_EQUAL, 6, holds, fails);
                // Once more, so that it may use the relays of the first.
                let next = assembler.last();
                assembler.branch(bpf::JUMP_EQUAL, 5, holds, next);
                assembler.push(statement(bpf::LOAD, bpf::NUMBER_AT));
                let program: Vec<u8> =
                    assembler.reversed.iter().rev().flat_map(|instruction| instruction.to_bytes()).collect();
                let (yes, no) = if swapped { (2, 1) } else { (1, 2) };
                for (number, expected) in [(5, yes), (6, yes), (7, no)] {
                    let call = bpf::Call { number, ..bpf::Call::default() };
                    assert_eq!(bpf::evaluate(&program, &call), Some(expected), "{between} {after} {swapped}");
                }
            }
        }
    }
}
