//! The presets, call by call.

use std::collections::BTreeSet;

use super::*;

#[test]
fn presets_do_what_they_say() {
    for name in [Preset::Default, Preset::Strict] {
        let filter = preset(name).expect("is a filter");
        for unix_sockets in [UnixSockets::None, UnixSockets::Allow] {
            for own_calls in OWN_CALLS {
                for writable_binds in [false, true] {
                    agrees(filter, Options { unix_sockets, writable_binds, own_calls }, &vectors());
                }
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

#[test]
fn the_default_knows_every_number() {
    let examined = |name: &str| careful::careful(name, LAUNCH).is_some();
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
        (None, "fcntl", &[3, 1030], ALLOW),
        (None, "fcntl", &[3, 1024], EPERM),
        (None, "fcntl", &[3, 1024 | HIGH], EPERM),
        (None, "fcntl", &[3, 1026], EPERM),
        (None, "io_setup", &[1024], EPERM),
        (None, "semget", &[0, 1, 0o600], ALLOW),
        (None, "semget", &[0, HIGH + 250, 0o600], ALLOW),
        (None, "semget", &[0, 251, 0o600], EINVAL),
        (None, "semget", &[0, 32_000, 0o600], EINVAL),
        (None, "semget", &[0, 0xffff_ffff, 0o600], EINVAL),
        (None, "sync", &[], DONE),
        (None, "syncfs", &[3], DONE),
        (None, "fsync", &[3], ALLOW),
        (None, "fdatasync", &[3], ALLOW),
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
        let program = program(default_filter(), Options { unix_sockets: *unix_sockets, ..LAUNCH });
        let found = run(&program, number(name), six(arguments));
        assert_eq!(found, *expected, "{unix_sockets:?} {name} {arguments:x?}: {found:#x}");
    }
}

/// By every call that has a mode, and only for the bits that it must not have.
#[test]
fn refuses_to_set_ids_of_programs() {
    let (create, temporary, directory) =
        (libc::O_CREAT as u64, libc::O_TMPFILE as u64, libc::O_DIRECTORY as u64);
    let mut custom = Filter { rules: Vec::new(), otherwise: Action::Kill };
    let names = [
        "chmod",
        "fchmod",
        "fchmodat",
        "fchmodat2",
        "creat",
        "mknod",
        "mknodat",
        "open",
        "openat",
        "openat2",
    ];
    let syscalls = names.map(str::to_owned).to_vec();
    custom.rules.push(Rule { syscalls, when: Vec::new(), action: Action::Allow });
    for (filter, options) in [(default_filter(), LAUNCH), (default_filter(), WRITABLE), (&custom, WRITABLE)] {
        let program = program(filter, options);
        // Calls of old that arm64 has none of are refused by that.
        let found = |name, arguments: &[u64]| {
            syscalls::number(name).map_or(EPERM, |number| run(&program, number, six(arguments)))
        };
        let made = if options.writable_binds { EPERM } else { ALLOW };
        for mode in [0o4755, 0o2755, 0o6000, 0o2070, 0o4755 | HIGH] {
            for name in ["chmod", "fchmod"] {
                assert_eq!(found(name, &[0, mode]), EPERM, "{name} {mode:o}");
            }
            for name in ["fchmodat", "fchmodat2"] {
                assert_eq!(found(name, &[0, 0, mode]), EPERM, "{name} {mode:o}");
            }
            if options.writable_binds {
                assert_eq!(found("creat", &[0, mode]), EPERM, "{mode:o}");
                assert_eq!(found("mknod", &[0, mode]), EPERM, "{mode:o}");
                assert_eq!(found("open", &[0, create | 2, mode]), EPERM, "{mode:o}");
            }
            assert_eq!(found("mknodat", &[0, 0, mode | 0o10_0000]), made, "{mode:o}");
            for flags in [create, create | 0o1001 | HIGH, temporary, temporary | 2] {
                assert_eq!(found("openat", &[0, 0, flags, mode]), made, "{flags:o} {mode:o}");
            }
            // Without making anything the mode is what the register happens to hold.
            for flags in [0, 2, directory, 0o200_0000 | directory] {
                assert_eq!(found("openat", &[0, 0, flags, mode]), ALLOW, "{flags:o} {mode:o}");
            }
        }
        for mode in [0, 0o644, 0o1777, 0o10_0755] {
            assert_eq!(found("fchmod", &[0, mode]), ALLOW, "{mode:o}");
            assert_eq!(found("fchmodat", &[0, 0, mode]), ALLOW, "{mode:o}");
            assert_eq!(found("fchmodat2", &[0, 0, mode]), ALLOW, "{mode:o}");
            assert_eq!(found("mknodat", &[0, 0, mode]), ALLOW, "{mode:o}");
            assert_eq!(found("openat", &[0, 0, create | 1, mode]), ALLOW, "{mode:o}");
        }
        assert_eq!(found("openat2", &[]), if options.writable_binds { ENOSYS } else { ALLOW });
    }
    // Who says under which conditions is taken at their word.
    let when = vec![Condition { argument: 1, width: Width::Low, test: Test::Equal(0o4755) }];
    let rules = vec![Rule { syscalls: vec!["fchmod".into()], when, action: Action::Allow }];
    let filter = Filter { rules, otherwise: Action::Kill };
    assert_eq!(run(&program(&filter, WRITABLE), number("fchmod"), six(&[0, 0o4755])), ALLOW);
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
    for (options, most) in [(LAUNCH, 170), (WRITABLE, 190)] {
        let length = program(default_filter(), options).len() / 8;
        assert!(length < most, "{length}");
    }
}
