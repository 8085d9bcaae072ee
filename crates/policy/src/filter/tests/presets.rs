//! The presets, call by call.

use std::collections::BTreeSet;

use super::*;

#[test]
fn presets_do_what_they_say() {
    for name in [Preset::Default, Preset::Strict] {
        let filter = preset(name).expect("is a filter");
        for unix_sockets in [UnixSockets::None, UnixSockets::Allow] {
            for own_calls in OWN_CALLS {
                agrees(filter, Options { unix_sockets, own_calls }, &vectors());
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
        (None, "fcntl", &[3, 1030], ALLOW),
        (None, "fcntl", &[3, 1024], EPERM),
        (None, "fcntl", &[3, 1024 | HIGH], EPERM),
        (None, "fcntl", &[3, 1026], EPERM),
        (None, "io_setup", &[1024], EPERM),
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
        let program =
            program(default_filter(), Options { unix_sockets: *unix_sockets, own_calls: OwnCalls::Launch });
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
