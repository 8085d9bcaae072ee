//! The programs, run: by the interpreter against a plain reading of the rules, and by the kernel.

use std::collections::BTreeSet;
use std::io::Error;

use proptest::prelude::*;

use super::lower::{Branch, Check, Verdict, lower};
use super::*;
use crate::bpf::{ALLOW, ARCHITECTURE, ASK, Call, ERRNO, KILL_PROCESS, REPORT, evaluate};
use crate::syscalls;

const EPERM: u32 = ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = ERRNO | libc::ENOSYS as u32;
const EACCES: u32 = ERRNO | libc::EACCES as u32;
const NO_FAMILY: u32 = ERRNO | libc::EAFNOSUPPORT as u32;
const NO_PROTOCOL: u32 = ERRNO | libc::EPROTONOSUPPORT as u32;

const COOKIE: u64 = 0x0123_4567_89ab_cdef;
const HIGH: u64 = 0xdead_beef_0000_0000;

const PLAIN: Options = Options { unix_sockets: UnixSockets::Allow, launch: false };
const LAUNCH: Options = Options { unix_sockets: UnixSockets::None, launch: true };

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
                if careful::careful(name).is_none() && !options.launch {
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

#[test]
fn presets_do_what_they_say() {
    for name in [Preset::Default, Preset::Strict] {
        let filter = preset(name).expect("is a filter");
        for unix_sockets in [UnixSockets::None, UnixSockets::Allow] {
            for launch in [true, false] {
                agrees(filter, Options { unix_sockets, launch }, &vectors());
            }
        }
        for rule in &filter.rules {
            for name in &rule.syscalls {
                assert!(syscalls::is_known(name), "{name}");
            }
        }
        assert_eq!(check(filter, UnixSockets::None), []);
    }
    assert_eq!(preset(Preset::Unfiltered), None);
}

#[test]
fn the_default_names_each_call_once() {
    let names: Vec<_> = default_filter().rules.iter().flat_map(|rule| &rule.syscalls).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
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
        launch in any::<bool>(),
    ) {
        let unix_sockets = if unix { UnixSockets::Allow } else { UnixSockets::None };
        prop_assert_eq!(check(&filter, UnixSockets::Allow), []);
        agrees(&filter, Options { unix_sockets, launch }, &telling(&filter, random));
    }

    #[test]
    fn any_filter_is_read_as_it_is_written(filter in filters()) {
        let json = serde_json::to_string(&Syscalls::Filter(filter.clone())).expect("is JSON");
        prop_assert_eq!(serde_json::from_str::<Syscalls>(&json).expect("is read"), Syscalls::Filter(filter));
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

// ---- what holds on top of every filter ---------------------------------------------------------------------------------

/// 0x40000000 marks a call of the x32 ABI, which has another set of checks in the kernel.
#[test]
fn knows_no_x32() {
    for number in 0..1024_u32 {
        assert_eq!(run(&program(default_filter(), LAUNCH), 0x4000_0000 | number, [COOKIE; 6]), ENOSYS);
    }
}

#[test]
fn kills_other_architectures() {
    let program = program(default_filter(), LAUNCH);
    // i386, arm, riscv64, ppc64le, and each of ours with a flipped bit.
    let flipped = (0..32).map(|bit| ARCHITECTURE ^ (1 << bit));
    for architecture in [0x4000_0003, 0x4000_0028, 0xc000_00f3, 0xc000_0015, 0].into_iter().chain(flipped) {
        for number in 0..512 {
            let call = Call { number, architecture, arguments: [COOKIE; 6], ..Call::default() };
            assert_eq!(evaluate(&program, &call), Some(KILL_PROCESS), "{architecture:#x}");
        }
    }
}

#[test]
fn lets_the_launch_pass_by_its_cookie_alone() {
    let filter = Filter { rules: Vec::new(), otherwise: Action::Kill };
    let (with, without) = (program(&filter, LAUNCH), program(&filter, PLAIN));
    for number in tried() {
        let own = syscalls::name(number).is_some_and(|name| LAUNCH_CALLS.contains(&name));
        let expected = if own { ALLOW } else { KILL_PROCESS };
        assert_eq!(run(&with, number, [1, 2, 3, 4, 5, COOKIE]), expected, "{number}");
        for bit in 0..64 {
            assert_eq!(run(&with, number, [1, 2, 3, 4, 5, COOKIE ^ (1 << bit)]), KILL_PROCESS, "{number}");
        }
        assert_eq!(run(&with, number, [COOKIE, COOKIE, COOKIE, COOKIE, COOKIE, 0]), KILL_PROCESS);
        for cookie in [COOKIE, 0] {
            assert_eq!(run(&without, number, [0, 0, 0, 0, 0, cookie]), KILL_PROCESS, "{number}");
        }
    }
}

/// The kernel keeps no record of calls whose verdict depends on arguments: those that any policy allows must not.
#[test]
fn looks_at_no_argument_without_need() {
    for (name, verdict) in lower(default_filter(), LAUNCH) {
        let examined = matches!(verdict, Verdict::Examine(..));
        let name = syscalls::name(name).expect("is known");
        assert_eq!(examined, careful::careful(name).is_some() && name != "clone3", "{name}");
    }
}

#[test]
fn refuses_unix_sockets_whatever_the_filter_says() {
    let unix = libc::AF_UNIX as u64;
    let socket = |when: Vec<Condition>, action| Rule {
        syscalls: vec!["socket".into(), "socketpair".into()],
        when,
        action,
    };
    let family = |width, test| vec![Condition { argument: 0, width, test }];
    for when in [
        Vec::new(),
        family(Width::Low, Test::Equal(unix)),
        family(Width::Whole, Test::Equal(unix)),
        family(Width::Low, Test::OneOf(vec![unix, 2])),
        family(Width::Low, Test::NotEqual(2)),
        family(Width::Whole, Test::AtMost(40)),
    ] {
        for action in [Action::Allow, Action::Ask] {
            let filter = Filter { rules: vec![socket(when.clone(), action)], otherwise: Action::Kill };
            let program = program(&filter, LAUNCH);
            assert_eq!(run(&program, number("socket"), six(&[unix, 1])), EACCES, "{when:?}");
            assert_eq!(run(&program, number("socketpair"), six(&[unix, 2])), EACCES, "{when:?}");
            assert_eq!(
                run(&program, number("socketpair"), six(&[unix, 1])),
                assemble::returned(action),
                "{when:?}"
            );
        }
    }
    // What isn't allowed anyway stays what it is.
    let filter = Filter { rules: vec![socket(Vec::new(), Action::Report)], otherwise: Action::Kill };
    assert_eq!(run(&program(&filter, LAUNCH), number("socket"), six(&[unix, 1])), REPORT);
    let rules =
        vec![Rule { syscalls: vec!["io_uring_setup".into()], when: Vec::new(), action: Action::Allow }];
    let filter = Filter { rules, otherwise: Action::Kill };
    assert_eq!(check(&filter, UnixSockets::None).len(), 1);
    assert_eq!(check(&filter, UnixSockets::Allow), []);
}

#[test]
fn tells_a_report_from_a_question() {
    let rule = |name: &str, action| Rule { syscalls: vec![name.into()], when: Vec::new(), action };
    let rules = vec![rule("read", Action::Ask), rule("write", Action::Allow)];
    let asking = Filter { rules, otherwise: Action::Kill };
    let compiled = compile_filter(&asking, LAUNCH).expect("is short");
    assert!(compiled.listens());
    assert_eq!(run(&compiled.to_bytes(COOKIE), number("read"), [0; 6]), ASK);
    let reporting = Filter { rules: Vec::new(), otherwise: Action::Report };
    let compiled = compile_filter(&reporting, LAUNCH).expect("is short");
    assert!(compiled.listens());
    assert_eq!(run(&compiled.to_bytes(COOKIE), number("read"), [0; 6]), REPORT);
    let refusing = Filter { rules: vec![rule("read", Action::Allow)], otherwise: Action::Kill };
    assert!(!compile_filter(&refusing, LAUNCH).expect("is short").listens());
}

// ---- the default -------------------------------------------------------------------------------------------------------

#[test]
fn the_default_knows_every_number() {
    let examined = |name: &str| careful::careful(name).is_some();
    let action = |name: &str| {
        let named =
            default_filter().rules.iter().find(|rule| rule.syscalls.iter().any(|named| named == name));
        named.map(|rule| rule.action)
    };
    let program = program(default_filter(), LAUNCH);
    for number in tried() {
        let expected = match syscalls::name(number) {
            Some(name) if examined(name) => continue,
            Some(name) => action(name).map_or(ENOSYS, assemble::returned),
            None => ENOSYS,
        };
        // Arguments are of no consequence.
        for argument in [0, 1, u64::MAX] {
            assert_eq!(run(&program, number, [argument; 6]), expected, "number {number} with {argument:#x}");
        }
    }
}

#[test]
fn the_default_looks_at_arguments() {
    use UnixSockets::{Allow, None};
    let unix = libc::AF_UNIX as u64;
    let cases: &[(UnixSockets, &str, &[u64], u32)] = &[
        (None, "clone3", &[], ENOSYS),
        // fork, vfork, threads
        (None, "clone", &[0x0120_0011], ALLOW),
        (None, "clone", &[0x4111], ALLOW),
        (None, "clone", &[0x003d_0f00], ALLOW),
        (None, "unshare", &[libc::CLONE_FS as u64 | libc::CLONE_FILES as u64], ALLOW),
        (None, "unshare", &[0x80], EPERM),
        (None, "setns", &[3, 0], EPERM),
        (None, "seccomp", &[1, 0], ALLOW),
        (None, "seccomp", &[1, 1], ALLOW),
        (None, "seccomp", &[1, 8], EPERM),
        (None, "seccomp", &[1 | HIGH, 8 | 1 | HIGH], EPERM),
        (None, "seccomp", &[2, 0], ALLOW),
        (None, "prlimit64", &[0, 7], ALLOW),
        (None, "prlimit64", &[HIGH, 7], ALLOW),
        (None, "prlimit64", &[1, 7], EPERM),
        (None, "personality", &[0], ALLOW),
        (None, "personality", &[0xffff_ffff], ALLOW),
        (None, "personality", &[0x4_0000], ALLOW),
        (None, "personality", &[0x40_0000], EPERM),
        (None, "personality", &[8], EPERM),
        (None, "ioctl", &[0, 0x5401], ALLOW),
        (None, "ioctl", &[0, 0x5412], EPERM),
        (None, "ioctl", &[0, 0x5412 | HIGH], EPERM),
        (None, "ioctl", &[0, 0x541c | HIGH], EPERM),
        (None, "ioctl", &[0, 0x5423], EPERM),
        (None, "socket", &[unix, 1, 0], EACCES),
        (Allow, "socket", &[unix, 1, 0], ALLOW),
        (None, "socket", &[unix | HIGH, 1, 0], EACCES),
        (None, "socket", &[libc::AF_INET as u64, 1, 6], ALLOW),
        (None, "socket", &[libc::AF_INET6 as u64, 2, 17], ALLOW),
        (None, "socket", &[libc::AF_NETLINK as u64, 3, 0], ALLOW),
        (None, "socket", &[libc::AF_NETLINK as u64, 3, 9], NO_PROTOCOL),
        (None, "socket", &[libc::AF_NETLINK as u64, 3, 16], NO_PROTOCOL),
        (None, "socketpair", &[unix, 1, 0], ALLOW),
        (None, "socketpair", &[unix, 5 | 0x80800, 0], ALLOW),
        (None, "socketpair", &[unix, 2, 0], EACCES),
        (None, "socketpair", &[unix, 3 | 0x800, 0], EACCES),
        (Allow, "socketpair", &[unix, 2, 0], ALLOW),
        (Allow, "socketpair", &[30, 1, 0], NO_FAMILY),
    ];
    for (unix_sockets, name, arguments, expected) in cases {
        let program = program(default_filter(), Options { unix_sockets: *unix_sockets, launch: true });
        let found = run(&program, number(name), six(arguments));
        assert_eq!(found, *expected, "{unix_sockets:?} {name} {arguments:x?}: {found:#x}");
    }
}

#[test]
fn refuses_each_namespace_by_each_way() {
    let mut custom = Filter { rules: Vec::new(), otherwise: Action::Kill };
    let syscalls = vec!["clone".to_owned(), "unshare".to_owned()];
    custom.rules.push(Rule { syscalls, when: Vec::new(), action: Action::Allow });
    for filter in [default_filter(), &custom] {
        let program = program(filter, LAUNCH);
        for bit in [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000]
        {
            for extra in [0, 17, 0x100, 0xffff_ffff_0000_0000] {
                for name in ["clone", "unshare"] {
                    assert_eq!(run(&program, number(name), six(&[bit | extra])), EPERM, "{name} {bit:#x}");
                }
            }
        }
    }
}

#[test]
fn refuses_families_that_know_no_namespaces() {
    let known = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let program = program(default_filter(), LAUNCH);
    for family in (0..128).filter(|family| !known.contains(family)) {
        let found = run(&program, number("socket"), six(&[family as u64, 1, 0]));
        assert_eq!(found, NO_FAMILY, "{family}");
    }
}

#[test]
fn the_default_is_small() {
    // What it costs to install grows with the length.
    let length = program(default_filter(), LAUNCH).len() / 8;
    assert!(length < 165, "{length}");
}

// ---- the published form ------------------------------------------------------------------------------------------------

#[test]
fn is_read_and_written() {
    let json = concat!(
        r#"{"rules":[{"syscalls":["read","write"],"when":[],"action":"allow"},"#,
        r#"{"syscalls":["ioctl"],"when":[{"arg":1,"width":32,"op":"eq","value":"0x5412"},"#,
        r#"{"arg":0,"width":64,"op":"maskedEq","mask":"0xff00000000","value":"0x0"},"#,
        r#"{"arg":2,"width":32,"op":"oneOf","values":["0x1","0x2"]}],"action":{"errno":"EPERM"}}],"#,
        r#""otherwise":"report"}"#
    );
    let syscalls: Syscalls = serde_json::from_str(json).expect("is read");
    assert_eq!(serde_json::to_string(&syscalls).expect("is written"), json);
    assert_eq!(syscalls.name(), "custom");
    for name in ["default", "strict", "unfiltered"] {
        let syscalls: Syscalls = serde_json::from_str(&format!("{name:?}")).expect("is read");
        assert_eq!(syscalls.name(), name);
        assert_eq!(serde_json::to_string(&syscalls).expect("is written"), format!("{name:?}"));
    }
}

#[test]
fn refuses_what_it_does_not_know() {
    let condition = |condition: &str| {
        format!(
            r#"{{"rules":[{{"syscalls":["read"],"when":[{condition}],"action":"allow"}}],"otherwise":"kill"}}"#
        )
    };
    assert!(
        serde_json::from_str::<Syscalls>(&condition(r#"{"arg":0,"width":32,"op":"eq","value":"0x1"}"#))
            .is_ok()
    );
    for wrong in [
        r#""lenient""#.to_owned(),
        "null".to_owned(),
        r#"{"rules":[]}"#.to_owned(),
        r#"{"rules":[],"otherwise":"kill","more":1}"#.to_owned(),
        r#"{"rules":[],"otherwise":{"errno":"ENONE"}}"#.to_owned(),
        r#"{"rules":[],"otherwise":{"errno":"UnknownErrno"}}"#.to_owned(),
        r#"{"rules":[],"otherwise":{"errno":1}}"#.to_owned(),
        r#"{"rules":[{"syscalls":["read"],"action":"allow"}],"otherwise":"kill"}"#.to_owned(),
        condition(r#"{"arg":0,"width":16,"op":"eq","value":"0x1"}"#),
        condition(r#"{"arg":0,"width":32,"op":"is","value":"0x1"}"#),
        condition(r#"{"arg":0,"width":32,"op":"eq","value":1}"#),
        condition(r#"{"arg":0,"width":32,"op":"eq","value":"1"}"#),
        condition(r#"{"arg":0,"width":32,"op":"eq","value":"0x01"}"#),
        condition(r#"{"arg":0,"width":32,"op":"eq","value":"0x+1"}"#),
        condition(r#"{"arg":0,"width":32,"op":"eq"}"#),
        condition(r#"{"arg":0,"width":32,"op":"eq","value":"0x1","mask":"0x1"}"#),
        condition(r#"{"arg":0,"width":32,"op":"oneOf","value":"0x1"}"#),
        condition(r#"{"arg":0,"width":32,"op":"eq","value":"0x1","more":1}"#),
    ] {
        assert!(serde_json::from_str::<Syscalls>(&wrong).is_err(), "{wrong}");
    }
}

#[test]
fn names_what_makes_no_sense() {
    let issues = |syscalls: &[&str], conditions: Vec<Condition>, otherwise| {
        let syscalls = syscalls.iter().map(|&name| name.to_owned()).collect();
        let rules = vec![Rule { syscalls, when: conditions, action: Action::Allow }];
        let issues = check(&Filter { rules, otherwise }, UnixSockets::Allow);
        issues.into_iter().map(|issue| issue.path.join(".")).collect::<Vec<_>>()
    };
    let low = |argument, test| vec![Condition { argument, width: Width::Low, test }];
    assert_eq!(issues(&["read", "open"], Vec::new(), Action::Kill), [""; 0]);
    assert_eq!(issues(&["read", "opne"], Vec::new(), Action::Kill), ["rules.0.syscalls.1"]);
    assert_eq!(issues(&[], Vec::new(), Action::Kill), ["rules.0.syscalls"]);
    assert_eq!(issues(&["read"], Vec::new(), Action::Allow), ["otherwise"]);
    assert_eq!(issues(&["read"], low(6, Test::Equal(0)), Action::Kill), ["rules.0.when.0.arg"]);
    for test in [
        Test::Equal(1 << 32),
        Test::OneOf(vec![0, u64::MAX]),
        Test::OneOf(Vec::new()),
        Test::HasAny(0),
        Test::Masked { mask: 0, value: 0 },
        Test::Masked { mask: 1, value: 2 },
        Test::Masked { mask: 1 << 40, value: 0 },
    ] {
        assert_eq!(issues(&["read"], low(0, test.clone()), Action::Kill), ["rules.0.when.0"], "{test:?}");
    }
}

// ---- the kernel --------------------------------------------------------------------------------------------------------

/// The kernel takes the program, and does with it what the interpreter says.
#[test]
fn holds_in_a_process() {
    for unix_sockets in [UnixSockets::None, UnixSockets::Allow] {
        let program = program(default_filter(), Options { unix_sockets, launch: true });
        // SAFETY: the child makes system calls only, and ends with one.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let status = try_in_child(&program, unix_sockets == UnixSockets::Allow);
            // SAFETY: takes a number.
            unsafe { libc::_exit(status) };
        }
        assert!(child > 0);
        let mut status = 0;
        // SAFETY: our child, our status.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(waited, child);
        assert!(libc::WIFEXITED(status), "{status:#x}");
        assert_eq!(libc::WEXITSTATUS(status), 0, "the line in try_in_child that failed");
    }
}

/// Installs the filter; 0, or the number of the first check that failed. No allocation: other threads may have held
/// the allocator's lock when this was forked.
fn try_in_child(program: &[u8], unix: bool) -> i32 {
    let filter = libc::sock_fprog {
        len: (program.len() / 8) as u16,
        // The kernel copies it, and does not ask for alignment.
        filter: program.as_ptr().cast_mut().cast::<std::ffi::c_void>().cast(),
    };
    let whole = |number: i64, arguments: [usize; 6]| {
        let [one, two, three, four, five, six] = arguments;
        // SAFETY: each of the calls below takes numbers, or is refused before it looks at a pointer.
        let result = unsafe { libc::syscall(number, one, two, three, four, five, six) };
        if result == -1 { Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
    };
    let call = |number, one, two, three| whole(number, [one, two, three, 0, 0, 0]);
    if call(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0) != 0 {
        return 1;
    }
    if call(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER as usize, 0, &raw const filter as usize) != 0 {
        return 2;
    }
    let unix_socket = if unix { 0 } else { libc::EACCES };
    let checks = [
        call(libc::SYS_getpid, 0, 0, 0) == 0,
        call(libc::SYS_bpf, 0, 0, 0) == libc::EPERM,
        call(libc::SYS_io_uring_setup, 1, 0, 0) == libc::EPERM,
        call(libc::SYS_clone3, 0, 0, 0) == libc::ENOSYS,
        call(2000, 0, 0, 0) == libc::ENOSYS,
        call(libc::SYS_unshare, libc::CLONE_NEWUSER as usize, 0, 0) == libc::EPERM,
        call(libc::SYS_unshare, libc::CLONE_FS as usize, 0, 0) == 0,
        call(libc::SYS_socket, libc::AF_UNIX as usize, 1, 0) == unix_socket,
        call(libc::SYS_socket, libc::AF_INET as usize, 1, 0) == 0,
        call(libc::SYS_socket, libc::AF_VSOCK as usize, 1, 0) == libc::EAFNOSUPPORT,
        call(libc::SYS_prlimit64, 1, 7, 0) == libc::EPERM,
        whole(libc::SYS_prlimit64, [1, 7, 0, 0, 0, (COOKIE ^ 1) as usize]) == libc::EPERM,
        whole(libc::SYS_prlimit64, [i32::MAX as usize, 7, 0, 0, 0, COOKIE as usize]) == libc::ESRCH,
        call(libc::SYS_ioctl, 0, 0x5412, 0) == libc::EPERM,
    ];
    checks.iter().position(|passed| !passed).map_or(0, |position| 10 + position as i32)
}
