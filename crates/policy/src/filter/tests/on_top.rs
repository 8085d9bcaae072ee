//! What holds on top of every filter.

use super::*;

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
    for own_calls in OWN_CALLS {
        let program = program(&filter, Options { own_calls, ..LAUNCH });
        for number in tried() {
            let own = syscalls::name(number).is_some_and(|name| own_calls.contain(name));
            let expected = if own { ALLOW } else { KILL_PROCESS };
            assert_eq!(run(&program, number, [1, 2, 3, 4, 5, COOKIE]), expected, "{number}");
            for bit in 0..64 {
                let other = COOKIE ^ (1 << bit);
                assert_eq!(run(&program, number, [1, 2, 3, 4, 5, other]), KILL_PROCESS, "{number}");
            }
            assert_eq!(run(&program, number, [COOKIE, COOKIE, COOKIE, COOKIE, COOKIE, 0]), KILL_PROCESS);
            assert_eq!(run(&program, number, [0; 6]), KILL_PROCESS, "{number}");
        }
    }
    for name in LAUNCH_CALLS.iter().chain(TEMPLATE_CALLS).chain(LIBRARY_CALLS) {
        assert!(syscalls::is_known(name), "{name}");
    }
}

/// What the C library calls in a template and in an init has no cookie, so a filter that says anything else of it than "allow" is
/// every launch's own.
#[test]
fn a_template_takes_on_only_what_it_can_live_under() {
    let of_template = Options { own_calls: OwnCalls::Template, ..LAUNCH };
    let inherited =
        |filter: &Filter, options| compile_filter(filter, options).expect("short").can_be_inherited();
    assert!(inherited(default_filter(), of_template));
    assert!(!inherited(default_filter(), LAUNCH), "a template would not get far");
    assert!(!inherited(preset(Preset::Strict).expect("a filter"), of_template), "it listens");
    let rule = |names: &[&str], action| Rule {
        syscalls: names.iter().map(|&name| name.into()).collect(),
        when: Vec::new(),
        action,
    };
    let with = |rules, otherwise| Filter { rules, otherwise };
    let errno = Action::Errno(ErrorNumber::of(libc::EPERM));
    for otherwise in [Action::Kill, errno] {
        assert!(inherited(&with(vec![rule(LIBRARY_CALLS, Action::Allow)], otherwise), of_template));
    }
    for otherwise in [Action::Report, Action::Ask] {
        assert!(!inherited(&with(vec![rule(LIBRARY_CALLS, Action::Allow)], otherwise), of_template));
    }
    for &missing in LIBRARY_CALLS {
        for refusal in [Action::Kill, errno] {
            let rules = vec![rule(&[missing], refusal), rule(LIBRARY_CALLS, Action::Allow)];
            assert!(!inherited(&with(rules, Action::Kill), of_template), "{missing}");
        }
        let sometimes = Condition { argument: 1, width: Width::Whole, test: Test::Below(4096) };
        let rules = vec![
            Rule { when: vec![sometimes], ..rule(&[missing], errno) },
            rule(LIBRARY_CALLS, Action::Allow),
        ];
        assert!(!inherited(&with(rules, Action::Kill), of_template), "{missing}");
    }
}

/// The kernel keeps no record of calls whose verdict depends on arguments: those that any policy allows must not.
#[test]
fn looks_at_no_argument_without_need() {
    for options in [LAUNCH, WRITABLE] {
        for (name, verdict) in lower(default_filter(), options) {
            let examined = matches!(verdict, Verdict::Examine(..));
            let name = syscalls::name(name).expect("is known");
            let expected = matches!(careful::careful(name, options), Some(Verdict::Examine(..)));
            assert_eq!(examined, expected, "{name}");
        }
    }
    // Those that most programs make most of.
    for name in ["read", "write", "close", "fstat", "mmap", "openat", "newfstatat", "futex"] {
        assert!(careful::careful(name, LAUNCH).is_none(), "{name}");
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
