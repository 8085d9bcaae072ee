//! The published form of a filter, and what is wrong with one.

use super::*;

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
