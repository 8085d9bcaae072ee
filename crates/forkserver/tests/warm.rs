//! Warm nests, through the protocol alone.

mod common;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use common::{OUTER, Outcome, Server, launch, outcome, pipe, plan, receive, send};
use nestbox_protocol::{
    FdRole, Launch, LaunchControl, LaunchEvent, LaunchFile, PassedFd, Step, Unpark, launch_control,
    launch_event,
};
use nestbox_sys::socket;

/// Asks a template for a warm nest; returns its socket and the pid of its parked process, once it is ready.
fn park(template: &OwnedFd) -> (OwnedFd, i32) {
    let (ours, theirs) = socket::seqpacket_pair().expect("socketpair");
    socket::pass_credentials(ours.as_fd()).expect("SO_PASSCRED");
    let request = Launch { park: true, outer_uid: OUTER, outer_gid: OUTER, ..Launch::default() };
    send(template, &request, &[theirs.as_raw_fd()]);
    drop(theirs);
    let event = receive::<LaunchEvent>(&ours).expect("an event");
    assert!(matches!(event.message.kind, Some(launch_event::Kind::Parked(_))), "{:?}", event.message);
    (ours, event.pid)
}

fn control(kind: launch_control::Kind) -> LaunchControl {
    LaunchControl { kind: Some(kind) }
}

/// Launches in a warm nest and waits.
fn run_in(nest: &OwnedFd, mut launch: Launch, unpark: bool) -> Outcome {
    let (read, write) = pipe();
    if nix::unistd::geteuid().is_root() {
        nix::unistd::fchown(&write, Some(OUTER.into()), Some(OUTER.into())).expect("fchown");
    }
    for number in [1, 2] {
        launch.fds.push(PassedFd { role: FdRole::Stdio.into(), number, grant: 0 });
    }
    if unpark {
        send(nest, &control(launch_control::Kind::Unpark(Unpark {})), &[]);
    }
    send(nest, &control(launch_control::Kind::Launch(launch)), &[write.as_raw_fd(), write.as_raw_fd()]);
    drop(write);
    outcome(nest, Some(read))
}

fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_parked_process_becomes_the_program() {
    let server = Server::start();
    let (_mounter, namespaces) = server.initialize().expect("initial namespaces");
    let template = server.template(plan(), &namespaces).expect("template");
    let (nest, pid) = park(&template);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the parked process");
    let inner = status.lines().find(|line| line.starts_with("NSpid")).expect("NSpid");
    assert!(inner.ends_with("\t2"), "it is the second process of its nest: {inner}");
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{status}");
    }
    let outcome = run_in(&nest, launch(&["sh", "-c", "echo $$; ls /proc/self/fd | tr '\\n' ' '"]), false);
    assert_eq!(outcome.stdout, "2\n0 1 2 3 ");
    assert_eq!(outcome.started, None, "its pid was known before");
    assert_eq!(outcome.ended.expect("ended").status, 0);
}

#[test]
fn who_asks_is_told_of_the_start() {
    let server = Server::start();
    let (_mounter, namespaces) = server.initialize().expect("initial namespaces");
    let template = server.template(plan(), &namespaces).expect("template");
    let (nest, pid) = park(&template);
    let outcome = run_in(&nest, Launch { report_start: true, ..launch(&["true"]) }, false);
    assert_eq!(outcome.started, Some(pid));
}

#[test]
fn what_can_not_be_executed_is_reported() {
    let server = Server::start();
    let (_mounter, namespaces) = server.initialize().expect("initial namespaces");
    let template = server.template(plan(), &namespaces).expect("template");
    let (nest, _) = park(&template);
    let failure = run_in(&nest, launch(&["no-such-program"]), false).failure.expect("failure");
    assert_eq!((failure.step(), failure.errno, failure.exec), (Step::Exec, libc::ENOENT, true));
    let (nest, _) = park(&template);
    let elsewhere = Launch { cwd: b"/nowhere".to_vec(), ..launch(&["true"]) };
    let failure = run_in(&nest, elsewhere, false).failure.expect("failure");
    assert_eq!((failure.step(), failure.errno), (Step::ChangeDirectory, libc::ENOENT));
}

#[test]
fn init_does_its_part_when_the_parked_process_makes_way() {
    let server = Server::start();
    let (_mounter, namespaces) = server.initialize().expect("initial namespaces");
    let template = server.template(plan(), &namespaces).expect("template");
    let (nest, parked) = park(&template);
    let content = b"hello".to_vec();
    let files = vec![LaunchFile { path: b"/tmp/deep/file".to_vec(), content, mode: 0o640 }];
    let wanted = launch(&["sh", "-c", "echo $$ $PPID; cat /tmp/deep/file; exec stat -c %u%a /tmp/deep/file"]);
    let outcome = run_in(&nest, Launch { files, ..wanted }, true);
    assert_eq!(outcome.stdout, "2 1\nhello1000640\n");
    assert!(outcome.started.is_some_and(|pid| pid != parked), "{outcome:?}");
}

#[test]
fn a_message_of_any_size_reaches_init() {
    let server = Server::start();
    let (_mounter, namespaces) = server.initialize().expect("initial namespaces");
    let template = server.template(plan(), &namespaces).expect("template");
    let (nest, _) = park(&template);
    let long = "x".repeat(100_000);
    let outcome = run_in(&nest, launch(&["sh", "-c", "echo ${#1} ${#2}", "sh", &long, &long]), true);
    assert_eq!(outcome.stdout, "100000 100000\n");
}

#[test]
fn a_nest_that_nobody_needs_is_gone_at_once() {
    let server = Server::start();
    let (_mounter, namespaces) = server.initialize().expect("initial namespaces");
    let template = server.template(plan(), &namespaces).expect("template");
    let (nest, pid) = park(&template);
    assert!(is_alive(pid));
    drop(nest);
    let until = Instant::now() + Duration::from_secs(5);
    while is_alive(pid) {
        assert!(Instant::now() < until, "the parked process is still there");
        std::thread::sleep(Duration::from_millis(1));
    }
}
