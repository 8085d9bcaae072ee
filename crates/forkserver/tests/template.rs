//! Templates and nests, through the protocol alone.

mod common;

use common::{Server, launch, plan, run};
use nestbox_protocol::{Ending, LimitKind, Limits, Step};

#[test]
fn a_program_runs_in_its_own_namespaces() {
    let server = Server::start();
    let (_mounter, namespaces) = server.initialize().expect("initial namespaces");
    let template = server.template(plan(), &namespaces).expect("template");
    let script = "id -u; id -g; echo pid $$; cat /proc/sys/kernel/hostname; ls /; grep -E 'Cap|NoNew' /proc/self/status; \
                  ls /proc/self/fd; cat /proc/self/uid_map; cat /proc/net/dev | tail -n +3; wc -l < /proc/self/mountinfo; \
                  touch /x 2>&1; touch /tmp/x && echo tmp ok; cat /proc/self/mountinfo";
    let outcome = run(&template, launch(&["sh", "-c", script]));
    println!("{outcome:#?}");
    println!("{}", outcome.stdout);
    let ended = outcome.ended.expect("ended");
    assert_eq!((ended.ending(), ended.status), (Ending::Exited, 0));
    assert!(outcome.stdout.starts_with("1000\n1000\npid 2\nbox\n"), "{}", outcome.stdout);
}

#[test]
fn missing_programs_and_directories_are_told_apart() {
    let server = Server::start();
    let (_mounter, namespaces) = server.initialize().expect("initial namespaces");
    let template = server.template(plan(), &namespaces).expect("template");
    let failure = run(&template, launch(&["no-such-program"])).failure.expect("failure");
    assert_eq!((failure.step(), failure.errno, failure.exec), (Step::Exec, libc::ENOENT, true));
    let mut elsewhere = launch(&["true"]);
    elsewhere.cwd = b"/nowhere".to_vec();
    let failure = run(&template, elsewhere).failure.expect("failure");
    assert_eq!((failure.step(), failure.errno, failure.exec), (Step::ChangeDirectory, libc::ENOENT, false));
    // And the next launch works.
    assert_eq!(run(&template, launch(&["true"])).ended.expect("ended").status, 0);
}

#[test]
fn the_clock_and_the_cpu_clock_are_enforced() {
    let server = Server::start();
    let (_mounter, namespaces) = server.initialize().expect("initial namespaces");
    let template = server.template(plan(), &namespaces).expect("template");
    let mut slow = launch(&["sleep", "30"]);
    slow.limits = Some(Limits { wall_time: Some(100), ..Limits::default() });
    let ended = run(&template, slow).ended.expect("ended");
    assert_eq!((ended.ending(), ended.status, ended.limit()), (Ending::Signaled, 9, LimitKind::WallTime));
    let mut busy = launch(&["sh", "-c", "while :; do :; done & while :; do :; done & wait"]);
    busy.limits = Some(Limits { cpu_time: Some(300), wall_time: Some(20_000), ..Limits::default() });
    let ended = run(&template, busy).ended.expect("ended");
    assert_eq!((ended.status, ended.limit()), (9, LimitKind::CpuTime));
    assert!(ended.user_cpu_us + ended.system_cpu_us >= 280_000, "{ended:?}");
}
