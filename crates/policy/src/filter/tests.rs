//! The programs, run: by the interpreter against a plain reading of the rules, and by the kernel.

use proptest::prelude::*;

use super::lower::{Branch, Check, lower};
use super::*;
use crate::bpf::{ALLOW, ARCHITECTURE, ASK, Call, ERRNO, KILL_PROCESS, REPORT, evaluate};

const EPERM: u32 = ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = ERRNO | libc::ENOSYS as u32;
const EINVAL: u32 = ERRNO | libc::EINVAL as u32;
/// Told to have succeeded.
const DONE: u32 = ERRNO;
const EACCES: u32 = ERRNO | libc::EACCES as u32;
const NO_FAMILY: u32 = ERRNO | libc::EAFNOSUPPORT as u32;
const NO_PROTOCOL: u32 = ERRNO | libc::EPROTONOSUPPORT as u32;

mod form;
mod kernel;
mod on_top;
mod presets;

const COOKIE: u64 = 0x0123_4567_89ab_cdef;
const HIGH: u64 = 0xdead_beef_0000_0000;

const PLAIN: Options =
    Options { unix_sockets: UnixSockets::Allow, writable_binds: false, own_calls: OwnCalls::None };
const OWN_CALLS: [OwnCalls; 3] = [OwnCalls::None, OwnCalls::Launch, OwnCalls::Template];
const LAUNCH: Options =
    Options { unix_sockets: UnixSockets::None, writable_binds: false, own_calls: OwnCalls::Launch };
const WRITABLE: Options = Options { writable_binds: true, ..LAUNCH };

fn program(filter: &Filter, options: Options) -> Vec<u8> {
    compile_filter(filter, options).expect("is short enough").to_bytes(COOKIE)
}

fn default_filter() -> &'static Filter {
    preset(Preset::Default).expect("is a filter")
}

fn run(program: &[u8], number: u32, arguments: [u64; 6]) -> u32 {
    let call = Call { number, architecture: ARCHITECTURE, arguments, ..Call::default() };
    evaluate(program, &call).expect("a filter returns")
}

fn six(arguments: &[u64]) -> [u64; 6] {
    let mut six = [0; 6];
    six[..arguments.len()].copy_from_slice(arguments);
    six
}

fn number(name: &str) -> u32 {
    syscalls::number(name).expect("is known here")
}

// ---- what the rules say ------------------------------------------------------------------------------------------------

/// What the verdicts say, read plainly.
fn judged(verdict: &Verdict, arguments: [u64; 6]) -> u32 {
    match verdict {
        Verdict::Act(action) => assemble::returned(*action),
        Verdict::Examine(branches, otherwise) => {
            let holds =
                |branch: &&Branch| branch.conditions.iter().all(|check| check_holds(check, arguments));
            judged(branches.iter().find(holds).map_or(otherwise, |branch| &branch.verdict), arguments)
        }
    }
}

fn check_holds(check: &Check, arguments: [u64; 6]) -> bool {
    match check {
        Check::Cookie => arguments[5] == COOKIE,
        Check::Argument(condition) => holds(condition, arguments),
    }
}

fn holds(condition: &Condition, arguments: [u64; 6]) -> bool {
    let argument = arguments[condition.argument as usize] & condition.width.bits();
    match &condition.test {
        Test::Equal(value) => argument == *value,
        Test::NotEqual(value) => argument != *value,
        Test::Below(value) => argument < *value,
        Test::AtMost(value) => argument <= *value,
        Test::Above(value) => argument > *value,
        Test::AtLeast(value) => argument >= *value,
        Test::Masked { mask, value } => argument & mask == *value,
        Test::HasAny(bits) => argument & bits != 0,
        Test::OneOf(values) => values.contains(&argument),
    }
}

/// What the rules of a filter say of a call that is dangerous to nobody, read plainly.
fn by_rules(filter: &Filter, name: &str, arguments: [u64; 6]) -> u32 {
    let applies = |rule: &&Rule| {
        rule.syscalls.iter().any(|named| named == name)
            && rule.when.iter().all(|condition| holds(condition, arguments))
    };
    let action = filter.rules.iter().find(applies).map_or(filter.otherwise, |rule| rule.action);
    assemble::returned(action)
}

/// Numbers to try: all that are known and what lies around and far above them.
fn tried() -> impl Iterator<Item = u32> {
    let last = syscalls::numbers().max().expect("there are some");
    (0..=last + 64).chain([0x3fff_ffff, 0x4000_0000, 0x4000_0001, 0x7fff_ffff, 0x8000_0000, u32::MAX])
}

/// Every number with every vector: the program does what the verdicts say, and no number that isn't known is allowed.
fn agrees(filter: &Filter, options: Options, vectors: &[[u64; 6]]) {
    let verdicts = lower(filter, options);
    let program = program(filter, options);
    for number in tried() {
        for &arguments in vectors {
            let expected = verdicts
                .get(&number)
                .map_or_else(|| assemble::returned(of_unknown(filter)), |verdict| judged(verdict, arguments));
            let found = run(&program, number, arguments);
            assert_eq!(found, expected, "{:?} ({number}) {arguments:x?}", syscalls::name(number));
            if let Some(name) = syscalls::name(number) {
                if careful::careful(name, options).is_none() && options.own_calls == OwnCalls::None {
                    assert_eq!(found, by_rules(filter, name, arguments), "{name} {arguments:x?}");
                }
            } else {
                assert!(found != ALLOW && found != ASK, "{number}");
            }
        }
    }
}

fn vectors() -> Vec<[u64; 6]> {
    let mut vectors: Vec<_> = [0, 1, 2, 7, 0xffff_ffff, HIGH, u64::MAX].map(|value| [value; 6]).to_vec();
    vectors.push([0, 1, 2, 3, 4, COOKIE]);
    vectors.push([0, 1, 2, 3, 4, COOKIE ^ 1]);
    vectors.push([0, 1, 2, 3, 4, COOKIE ^ (1 << 32)]);
    vectors
}

fn conditions() -> impl Strategy<Value = Condition> {
    // Few values, close to each other and to where halves meet, so that they are met.
    let value = prop_oneof![
        0..4_u64,
        Just(u64::from(u32::MAX)),
        (0..4_u64).prop_map(|value| value << 32),
        (0..4_u64).prop_map(|value| (1 << 32) | value),
        any::<u64>(),
    ]
    .boxed();
    let several = prop::collection::vec(value.clone(), 1..6);
    let test = prop_oneof![
        value.clone().prop_map(Test::Equal),
        value.clone().prop_map(Test::NotEqual),
        value.clone().prop_map(Test::Below),
        value.clone().prop_map(Test::AtMost),
        value.clone().prop_map(Test::Above),
        value.clone().prop_map(Test::AtLeast),
        value.clone().prop_filter("bits", |value| *value != 0).prop_map(Test::HasAny),
        (value.clone(), value.prop_filter("bits", |mask| *mask != 0))
            .prop_map(|(value, mask)| Test::Masked { mask, value: value & mask }),
        several.prop_map(Test::OneOf),
    ];
    (0..6_u32, any::<bool>(), test).prop_map(|(argument, whole, test)| {
        let width = if whole { Width::Whole } else { Width::Low };
        let low = |value: u64| value & width.bits();
        let some = |value: u64| if low(value) == 0 { 1 } else { low(value) };
        let test = match test {
            Test::Equal(value) => Test::Equal(low(value)),
            Test::NotEqual(value) => Test::NotEqual(low(value)),
            Test::Below(value) => Test::Below(low(value)),
            Test::AtMost(value) => Test::AtMost(low(value)),
            Test::Above(value) => Test::Above(low(value)),
            Test::AtLeast(value) => Test::AtLeast(low(value)),
            Test::HasAny(bits) => Test::HasAny(some(bits)),
            Test::Masked { mask, value } => Test::Masked { mask: some(mask), value: value & some(mask) },
            Test::OneOf(values) => Test::OneOf(values.into_iter().map(low).collect()),
        };
        Condition { argument, width, test }
    })
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => Just(Action::Allow),
        1 => Just(Action::Kill),
        1 => Just(Action::Report),
        1 => Just(Action::Ask),
        1 => (1..=40).prop_map(|errno| Action::Errno(ErrorNumber::of(errno))),
    ]
}

fn filters() -> impl Strategy<Value = Filter> {
    let names: Vec<String> = syscalls::numbers().filter_map(syscalls::name).map(str::to_owned).collect();
    let name = prop_oneof![
        4 => prop::sample::select(names),
        1 => prop::sample::select(vec!["socket", "socketpair", "execve", "clone", "prlimit64", "exit_group"])
            .prop_map(str::to_owned),
    ];
    let rule = (prop::collection::vec(name, 1..40), prop::collection::vec(conditions(), 0..4), actions())
        .prop_map(|(syscalls, when, action)| Rule { syscalls, when, action });
    let otherwise = actions().prop_filter("denies", |action| *action != Action::Allow);
    (prop::collection::vec(rule, 0..12), otherwise).prop_map(|(rules, otherwise)| Filter { rules, otherwise })
}

/// Arguments that conditions speak of, and their neighbours.
fn telling(filter: &Filter, random: [u64; 6]) -> Vec<[u64; 6]> {
    let mut vectors = vec![random, [0; 6], [u64::MAX; 6], [0, 0, 0, 0, 0, COOKIE]];
    for condition in filter.rules.iter().flat_map(|rule| &rule.when) {
        let values = match &condition.test {
            Test::OneOf(values) => values.clone(),
            Test::Masked { mask, value } => vec![*value, value | !mask, *mask],
            Test::Equal(value)
            | Test::NotEqual(value)
            | Test::Below(value)
            | Test::AtMost(value)
            | Test::Above(value)
            | Test::AtLeast(value)
            | Test::HasAny(value) => vec![*value],
        };
        for value in values {
            for near in [value, value.wrapping_sub(1), value.wrapping_add(1), value ^ HIGH] {
                let mut arguments = random;
                arguments[condition.argument as usize] = near;
                vectors.push(arguments);
            }
        }
    }
    vectors.truncate(64);
    vectors
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_filter_does_what_it_says(
        filter in filters(),
        random in any::<[u64; 6]>(),
        unix in any::<bool>(),
        writable_binds in any::<bool>(),
        own_calls in prop::sample::select(&OWN_CALLS),
    ) {
        let unix_sockets = if unix { UnixSockets::Allow } else { UnixSockets::None };
        prop_assert_eq!(check(&filter, UnixSockets::Allow), []);
        agrees(&filter, Options { unix_sockets, writable_binds, own_calls }, &telling(&filter, random));
    }

    #[test]
    fn any_filter_is_read_as_it_is_written(filter in filters()) {
        let json = serde_json::to_string(&Syscalls::Filter(filter.clone())).expect("is JSON");
        prop_assert_eq!(serde_json::from_str::<Syscalls>(&json).expect("is read"), Syscalls::Filter(filter));
    }
}

/// Each comparison with values where halves meet, and every argument near them.
#[test]
fn compares_at_every_edge() {
    const EDGES: [u64; 9] = [0, 1, 6, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 6 << 32, (6 << 32) | 6, u64::MAX];
    let near = |edge: u64| [edge, edge.wrapping_sub(1), edge.wrapping_add(1), edge ^ HIGH, edge | 8];
    let arguments: Vec<u64> = EDGES.into_iter().flat_map(near).collect();
    let tests = EDGES.into_iter().flat_map(|one| {
        let masks = EDGES.into_iter().filter(|mask| *mask != 0);
        let masked = masks.map(move |mask| Test::Masked { mask, value: one & mask });
        let lists = EDGES.into_iter().map(move |other| Test::OneOf(vec![one, other, 3]));
        let plain = [
            Test::Equal(one),
            Test::NotEqual(one),
            Test::Below(one),
            Test::AtMost(one),
            Test::Above(one),
            Test::AtLeast(one),
            Test::HasAny(one.max(1)),
        ];
        plain.into_iter().chain(masked).chain(lists)
    });
    for test in tests {
        for width in [Width::Low, Width::Whole] {
            let condition = Condition { argument: 3, width, test: test.clone() };
            let rule =
                Rule { syscalls: vec!["read".into()], when: vec![condition.clone()], action: Action::Allow };
            let filter = Filter { rules: vec![rule], otherwise: Action::Kill };
            if !check(&filter, UnixSockets::Allow).is_empty() {
                continue;
            }
            let program = program(&filter, PLAIN);
            for &argument in &arguments {
                let six = [!argument, 0, 0, argument, 0, 0];
                let expected = if holds(&condition, six) { ALLOW } else { KILL_PROCESS };
                assert_eq!(run(&program, number("read"), six), expected, "{condition:?} {argument:#x}");
            }
        }
    }
}

// ---- jumps and limits --------------------------------------------------------------------------------------------------

fn allow_if(names: &[&str], test: Test) -> Rule {
    let syscalls = names.iter().map(|&name| name.to_owned()).collect();
    let when = vec![Condition { argument: 1, width: Width::Whole, test }];
    Rule { syscalls, when, action: Action::Allow }
}

/// Examinations of hundreds of instructions each, so that every kind of jump has to be relayed.
#[test]
fn jumps_far() {
    let values: Vec<u64> = (0..300).map(|value| value * 3 + (value % 2) * (1 << 40)).collect();
    let narrow: Vec<u64> = (0..500).map(|value| value * 7).collect();
    let filter = Filter {
        rules: vec![
            allow_if(&["read", "ioctl"], Test::OneOf(values.clone())),
            Rule {
                syscalls: vec!["write".to_owned()],
                when: vec![Condition { argument: 2, width: Width::Low, test: Test::OneOf(narrow.clone()) }],
                action: Action::Report,
            },
            allow_if(&["close", "mmap"], Test::AtLeast(1 << 33)),
        ],
        otherwise: Action::Kill,
    };
    let mut vectors: Vec<_> = values.iter().step_by(7).map(|&value| [0, value, 0, 0, 0, 0]).collect();
    vectors.extend(narrow.iter().step_by(9).map(|&value| [0, 4, value | HIGH, 0, 0, 0]));
    vectors.push([0, 299 * 3 + (1 << 40), 499 * 7, 0, 0, 0]);
    vectors.push([0, 299 * 3 + (1 << 40) + 1, 499 * 7 + 1, 0, 0, 0]);
    agrees(&filter, LAUNCH, &vectors);
    let length = program(&filter, LAUNCH).len() / 8;
    assert!((1500..bpf::INSTRUCTIONS_MAX).contains(&length), "{length}");
}

#[test]
fn refuses_what_the_kernel_would() {
    let values: Vec<u64> = (0..2000).collect();
    let filter = Filter { rules: vec![allow_if(&["read"], Test::OneOf(values))], otherwise: Action::Kill };
    let error = compile_filter(&filter, PLAIN).expect_err("is too long");
    assert!(error.instructions > bpf::INSTRUCTIONS_MAX);
    let issues = check(&filter, UnixSockets::Allow);
    assert_eq!(issues.len(), 1);
    assert!(issues[0].to_string().contains("the kernel takes 4096"), "{}", issues[0]);
}
