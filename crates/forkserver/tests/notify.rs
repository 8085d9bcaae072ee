//! Filters that ask: violations, the host's decisions, learning, and what a hostile program makes of them. Through the
//! protocol alone, with filters made by hand and programs compiled by gcc.

mod common;

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use common::{Outcome, Received, Server, bind, launch, outcome, pipe, plan, receive, run, send};
use nestbox_protocol::{
    Answer, AnswerKind, Asked, Ending, FdRole, Launch, LaunchControl, LaunchEvent, Limits, MemoryKind, Mount,
    PassedFd, Plan, Supervision, SystemCall, launch_control, launch_event,
};
use nestbox_sys::{packet, socket};

const NOTIFY: u32 = 0x7fc0_0000;
const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;

fn instruction(code: u32, jt: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf: 0, k }
}

/// A filter that asks about these calls and allows all others.
fn filter(numbers: &[i64]) -> Vec<u8> {
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (index, &number) in numbers.iter().enumerate() {
        let jump = (numbers.len() - index) as u8;
        program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jump, number as u32));
    }
    // By it a program could have init wait for ever; where it is allowed, init reads no memory.
    program
        .insert(1, instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, libc::SYS_userfaultfd as u32));
    program[1].jf = 1;
    program.insert(2, instruction(libc::BPF_RET | libc::BPF_K, 0, EPERM));
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, ALLOW));
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, NOTIFY));
    bytes(&program)
}

fn bytes(program: &[libc::sock_filter]) -> Vec<u8> {
    let size = size_of_val(program);
    // SAFETY: sock_filter is plain bytes without padding.
    unsafe { std::slice::from_raw_parts(program.as_ptr().cast::<u8>(), size) }.to_vec()
}

/// One static program with sub-commands; `None`: there is no gcc.
fn program() -> Option<PathBuf> {
    static COMPILED: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let directory = tempfile::tempdir().ok()?.keep();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).ok()?;
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/notify.c");
        let to = directory.join("program");
        let status =
            Command::new("gcc").args(["-O1", "-static", "-pthread", "-o"]).arg(&to).arg(source).status();
        status.ok()?.success().then_some(to)
    });
    COMPILED.clone()
}

struct Nest {
    _server: Server,
    _mounter: OwnedFd,
    template: OwnedFd,
}

fn nest(filter: Vec<u8>) -> Option<Nest> {
    let Some(program) = program() else {
        eprintln!("skipped: there is no gcc");
        return None;
    };
    let server = Server::start();
    let (mounter, namespaces) = server.initialize().expect("initial namespaces");
    let mut plan = Plan { filter, filter_listens: true, launch_cookie: 7, ..plan() };
    let target = nestbox_protocol::mount::Kind::File(nestbox_protocol::File { content: vec![], mode: 0o444 });
    plan.template_mounts.push(Mount { path: b"/program".to_vec(), kind: Some(target) });
    plan.template_mounts.push(bind(&program.to_string_lossy(), "/program"));
    let template = server.template(plan, &namespaces).expect("template");
    Some(Nest { _server: server, _mounter: mounter, template })
}

fn at_most(seconds: u64, launch: Launch) -> Launch {
    Launch { limits: Some(Limits { wall_time: Some(seconds * 1000), ..Limits::default() }), ..launch }
}

fn violation(outcome: &Outcome) -> &SystemCall {
    let ended = outcome.ended.as_ref().expect("ended");
    assert!(ended.violated, "{outcome:?}");
    assert_eq!((ended.ending(), ended.status), (Ending::Signaled, libc::SIGKILL), "{outcome:?}");
    ended.violation.as_ref().expect("a violation")
}

#[test]
fn a_violation_is_recorded_whole() {
    let Some(nest) = nest(filter(&[libc::SYS_openat2, libc::SYS_connect, libc::SYS_getppid])) else { return };
    let begun = Instant::now();
    let outcome = run(&nest.template, at_most(20, launch(&["/program", "open"])));
    assert!(begun.elapsed() < Duration::from_secs(5));
    let call = violation(&outcome);
    assert_eq!((call.number, call.pid, call.tid), (libc::SYS_openat2 as i32, 2, 2));
    assert_eq!(call.args.len(), 6);
    assert_eq!(call.args[0] as i32, libc::AT_FDCWD);
    assert_eq!(call.args[5], 0xfeed_f00d_dead_beef, "all 64 bits");
    assert_ne!(call.instruction_pointer, 0);
    assert_eq!(outcome.stdout, "before\n");
    let [path, how] = &call.memory[..] else { panic!("{call:?}") };
    assert_eq!((path.argument, path.kind(), path.cut), (1, MemoryKind::Path, false));
    assert_eq!(path.content, b"/etc/a path that the policy does not like");
    assert_eq!((how.argument, how.kind(), how.content.len()), (2, MemoryKind::Data, 24));

    let outcome = run(&nest.template, at_most(20, launch(&["/program", "connect"])));
    let call = violation(&outcome);
    assert_eq!(call.number, libc::SYS_connect as i32);
    assert_eq!(call.memory[0].kind(), MemoryKind::Address);
    assert_eq!(call.memory[0].content[..8], [2, 0, 0, 80, 192, 0, 2, 1]);
    // And one that has nothing to read.
    assert_eq!(violation(&run(&nest.template, launch(&["/program", "plain"]))).memory.len(), 0);
    // A program that does nothing wrong ends by itself.
    let ended = run(&nest.template, launch(&["/program", "good"])).ended.expect("ended");
    assert_eq!((ended.ending(), ended.status, ended.violated), (Ending::Exited, 3, false));
}

#[test]
fn threads_and_children_violate_too() {
    let Some(nest) = nest(filter(&[libc::SYS_getppid])) else { return };
    let call = violation(&run(&nest.template, at_most(20, launch(&["/program", "thread"])))).clone();
    assert_eq!(call.pid, 2);
    assert!(call.tid > 2);
    let call = violation(&run(&nest.template, at_most(20, launch(&["/program", "grandchild"])))).clone();
    assert!(call.pid > 2 && call.tid > call.pid, "{call:?}");
}

#[test]
fn pointers_that_lead_nowhere_are_left_out() {
    let Some(nest) = nest(filter(&[libc::SYS_openat2])) else { return };
    for (how, found) in [("null", None), ("wild", None), ("kernel", None), ("edge", Some((3, true)))] {
        let outcome = run(&nest.template, at_most(20, launch(&["/program", "pointer", how])));
        let call = violation(&outcome);
        let path = call.memory.iter().find(|memory| memory.kind() == MemoryKind::Path);
        assert_eq!(path.map(|path| (path.content.len(), path.cut)), found, "{how}");
    }
    let outcome = run(&nest.template, at_most(20, launch(&["/program", "pointer", "endless"])));
    let path = &violation(&outcome).memory[0];
    assert_eq!((path.content.len(), path.cut), (4096, true));
}

#[test]
fn a_flood_is_one_violation() {
    let Some(nest) = nest(filter(&[libc::SYS_getppid])) else { return };
    for how in ["threads", "forks", "signals", "exits"] {
        let begun = Instant::now();
        let outcome = run(&nest.template, at_most(30, launch(&["/program", "flood", how])));
        assert_eq!(violation(&outcome).number, libc::SYS_getppid as i32, "{how}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{how}: {:?}", begun.elapsed());
        assert_eq!(outcome.stdout, "", "{how}: not one of them was let through");
    }
}

// ---- the host decides -----------------------------------------------------------------------------------------------

/// A launch that asks us, with stdout piped.
struct Asking {
    socket: OwnedFd,
    stdout: OwnedFd,
}

fn asking(template: &OwnedFd, launch: Launch) -> Asking {
    asking_through(socket::seqpacket_pair().expect("socketpair"), template, launch)
}

fn asking_through((socket, theirs): (OwnedFd, OwnedFd), template: &OwnedFd, launch: Launch) -> Asking {
    socket::pass_credentials(socket.as_fd()).expect("SO_PASSCRED");
    let (stdout, write) = pipe();
    let launch = Launch {
        supervision: Supervision::Ask.into(),
        fds: vec![PassedFd { role: FdRole::Stdio.into(), number: 1, grant: 0 }],
        ..launch
    };
    send(template, &launch, &[theirs.as_raw_fd(), write.as_raw_fd()]);
    Asking { socket, stdout }
}

impl Asking {
    /// The next question; what else is said is passed over.
    fn asked(&self) -> Asked {
        loop {
            let event: Received<LaunchEvent> = receive(&self.socket).expect("a question");
            match event.message.kind.expect("a kind") {
                launch_event::Kind::Asked(asked) => return asked,
                launch_event::Kind::Started(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn answer(&self, id: u64, kind: AnswerKind, value: i64, fds: &[RawFd]) {
        let answer = Answer { id, kind: kind.into(), value };
        send(&self.socket, &LaunchControl { kind: Some(launch_control::Kind::Answer(answer)) }, fds);
    }

    fn finish(self) -> Outcome {
        outcome(&self.socket, Some(self.stdout))
    }
}

#[test]
fn the_host_decides_each_call() {
    let Some(nest) = nest(filter(&[libc::SYS_openat2])) else { return };
    let asking = asking(&nest.template, at_most(30, launch(&["/program", "asks"])));
    // Answered: the program prints what it got.
    let asked = asking.asked();
    let call = asked.call.expect("a call");
    assert_eq!(call.memory[0].content, b"/0");
    asking.answer(asked.id, AnswerKind::Errno, libc::EXDEV.into(), &[]);
    let asked = asking.asked();
    assert_eq!(asked.call.expect("a call").memory[0].content, b"/1");
    asking.answer(asked.id, AnswerKind::Value, 123_456, &[]);
    asking.answer(asking.asked().id, AnswerKind::Allow, 0, &[]);
    let id = asking.asked().id;
    // One that was not asked about is passed over.
    asking.answer(id ^ 1, AnswerKind::Allow, 0, &[]);
    asking.answer(id, AnswerKind::Errno, 1 << 40, &[]);
    // An fd: a pipe with something in it.
    let (read, write) = pipe();
    nix::unistd::write(&write, b"injected").expect("written");
    asking.answer(asking.asked().id, AnswerKind::Fd, 1, &[read.as_raw_fd()]);
    // Without the fd it says.
    asking.answer(asking.asked().id, AnswerKind::Fd, 0, &[]);
    let outcome = asking.finish();
    let ended = outcome.ended.expect("ended");
    assert_eq!((ended.ending(), ended.status, ended.violated), (Ending::Exited, 0, false));
    let said: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(said, ["EXDEV", "123456", "ENOENT", "4095", "injected cloexec", "EBADF"]);
}

#[test]
fn kill_and_report_end_the_nest() {
    let Some(nest) = nest(filter(&[libc::SYS_openat2])) else { return };
    for kind in [AnswerKind::Report, AnswerKind::Kill] {
        let asking = asking(&nest.template, at_most(30, launch(&["/program", "asks"])));
        asking.answer(asking.asked().id, kind, 0, &[]);
        let outcome = asking.finish();
        let ended = outcome.ended.expect("ended");
        assert!(ended.violated);
        assert_eq!(ended.violation.is_some(), kind == AnswerKind::Report);
        assert_eq!(outcome.stdout, "");
    }
    // A decision that this version does not know.
    let asking = asking(&nest.template, at_most(30, launch(&["/program", "asks"])));
    let answer = Answer { id: asking.asked().id, kind: 77, value: 0 };
    send(&asking.socket, &LaunchControl { kind: Some(launch_control::Kind::Answer(answer)) }, &[]);
    let outcome = asking.finish();
    assert!(outcome.ended.expect("ended").violated);
    assert_eq!(outcome.stdout, "");
}

#[test]
fn a_host_that_is_gone_allows_nothing() {
    let Some(nest) = nest(filter(&[libc::SYS_openat2])) else { return };
    let asking = asking(&nest.template, launch(&["/program", "asks"]));
    asking.asked();
    drop(asking.socket);
    let mut said = String::new();
    // It ends, for nobody is left to write.
    std::fs::File::from(asking.stdout).read_to_string(&mut said).expect("read");
    assert_eq!(said, "");
}

#[test]
fn a_dead_supervisor_allows_nothing() {
    let Some(nest) = nest(filter(&[libc::SYS_openat2])) else { return };
    let asking = asking(&nest.template, Launch { report_init: true, ..launch(&["/program", "asks"]) });
    let placed: Received<LaunchEvent> = receive(&asking.socket).expect("placed");
    asking.asked();
    // SAFETY: takes numbers; init is alive, for it waits for our answer.
    assert_eq!(unsafe { libc::kill(placed.pid, libc::SIGKILL) }, 0);
    let outcome = asking.finish();
    assert_eq!(outcome.ended, None);
    // Killed with its init; what it was quick enough to be told is that there is no such call.
    assert!(outcome.stdout.lines().all(|line| line == "ENOSYS"), "{}", outcome.stdout);
}

#[test]
fn questions_are_bounded_and_none_is_lost() {
    let Some(nest) = nest(filter(&[libc::SYS_openat2])) else { return };
    let asking = asking(&nest.template, at_most(60, launch(&["/program", "many", "40", "50"])));
    let mut open = Vec::new();
    // Nobody answers for a while: a few come, and no more.
    let end = Instant::now() + Duration::from_millis(300);
    while Instant::now() < end {
        let mut poll = libc::pollfd { fd: asking.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd of ours.
        if unsafe { libc::poll(&raw mut poll, 1, 50) } > 0 {
            let event: Received<LaunchEvent> = receive(&asking.socket).expect("an event");
            if let Some(launch_event::Kind::Asked(asked)) = event.message.kind {
                open.push(asked.id);
            }
        }
    }
    assert!((1..=8).contains(&open.len()), "{}", open.len());
    let mut count = open.len();
    for id in open {
        asking.answer(id, AnswerKind::Value, 1, &[]);
    }
    while count < 40 * 50 {
        let asked = asking.asked();
        asking.answer(asked.id, AnswerKind::Value, 1, &[]);
        count += 1;
    }
    let outcome = asking.finish();
    assert_eq!(outcome.stdout, "2000 answered\n");
    assert!(!outcome.ended.expect("ended").violated);
}

#[test]
fn questions_that_find_no_room_wait_for_it() {
    let Some(nest) = nest(filter(&[libc::SYS_openat2])) else { return };
    let pair = socket::seqpacket_pair().expect("socketpair");
    // The least that the kernel gives: two or three questions.
    nix::sys::socket::setsockopt(&pair.1, nix::sys::socket::sockopt::SndBuf, &1).expect("SO_SNDBUF");
    let asking = asking_through(pair, &nest.template, at_most(60, launch(&["/program", "many", "20", "20"])));
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..20 * 20 {
        asking.answer(asking.asked().id, AnswerKind::Value, 1, &[]);
    }
    assert_eq!(asking.finish().stdout, "400 answered\n");
}

/// Answers every question until the launch has ended.
fn answer_all(asking: Asking, delay: Duration) -> (usize, Outcome) {
    let mut answered = 0;
    loop {
        let event: Received<LaunchEvent> = receive(&asking.socket).expect("an event");
        match event.message.kind.expect("a kind") {
            launch_event::Kind::Asked(asked) => {
                std::thread::sleep(delay);
                let answer = Answer { id: asked.id, kind: AnswerKind::Value.into(), value: 1 };
                let control = LaunchControl { kind: Some(launch_control::Kind::Answer(answer)) };
                // It may be over: who asked last need not have waited.
                let _ = packet::send_message(asking.socket.as_fd(), &control, &[], 0);
                answered += 1;
            }
            launch_event::Kind::Ended(ended) => {
                let mut all = asking.finish();
                all.ended = Some(ended);
                return (answered, all);
            }
            _ => {}
        }
    }
}

#[test]
fn interrupted_callers_are_answered_once() {
    let Some(nest) = nest(filter(&[libc::SYS_openat2])) else { return };
    let asking = asking(&nest.template, at_most(60, launch(&["/program", "storm", "300"])));
    let (answered, outcome) = answer_all(asking, Duration::ZERO);
    assert_eq!(outcome.stdout, "300 answered\n");
    assert!(answered >= 300);
    assert_eq!(outcome.ended.expect("ended").status, 0);
}

#[test]
fn callers_that_die_make_room_when_they_are_answered() {
    let Some(nest) = nest(filter(&[libc::SYS_openat2])) else { return };
    let asking = asking(&nest.template, at_most(60, launch(&["/program", "dying", "40"])));
    // They are dead by then: nobody gets the answer, and nobody else's.
    let (_, outcome) = answer_all(asking, Duration::from_millis(5));
    assert_eq!(outcome.stdout, "all died\n");
    assert_eq!(outcome.ended.expect("ended").status, 0);
}

#[test]
fn thousands_of_questions_leave_init_as_it_was() {
    let Some(nest) = nest(filter(&[libc::SYS_openat2])) else { return };
    let wanted = Launch { report_init: true, ..launch(&["/program", "many", "40", "500"]) };
    let asking = asking(&nest.template, at_most(60, wanted));
    let placed: Received<LaunchEvent> = receive(&asking.socket).expect("placed");
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", placed.pid)).expect("alive");
        let line = status.lines().find(|line| line.starts_with("VmData:")).expect("VmData");
        line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number")
    };
    asking.answer(asking.asked().id, AnswerKind::Value, 1, &[]);
    let before = resident();
    for _ in 2..40 * 500 {
        asking.answer(asking.asked().id, AnswerKind::Value, 1, &[]);
    }
    let last = asking.asked();
    let after = resident();
    asking.answer(last.id, AnswerKind::Value, 1, &[]);
    assert!(after <= before + 64, "{before} KiB, {after} KiB");
    assert_eq!(asking.finish().stdout, "20000 answered\n");
}

#[test]
fn the_clock_goes_on_while_the_host_thinks() {
    let Some(nest) = nest(filter(&[libc::SYS_openat2])) else { return };
    let asking = asking(&nest.template, at_most(1, launch(&["/program", "many", "20", "20"])));
    asking.asked();
    let begun = Instant::now();
    let mut ended = None;
    while ended.is_none() {
        let event: Received<LaunchEvent> = receive(&asking.socket).expect("an event");
        if let Some(launch_event::Kind::Ended(end)) = event.message.kind {
            ended = Some(end);
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(ended.expect("ended").limit(), nestbox_protocol::LimitKind::WallTime);
}

// ---- learning ----------------------------------------------------------------------------------------------------------

#[test]
fn learning_notes_every_call_and_forbids_none() {
    // Everything is asked about but what the launch itself needs: here, what has no exec behind it yet.
    let load = |at: u32| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, at);
    let everything = [
        load(16 + 40),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 7),
        instruction(libc::BPF_RET | libc::BPF_K, 0, NOTIFY),
        instruction(libc::BPF_RET | libc::BPF_K, 0, ALLOW),
    ];
    let Some(nest) = nest(bytes(&everything)) else { return };
    let learning =
        Launch { supervision: Supervision::Learn.into(), ..at_most(30, launch(&["/program", "learn"])) };
    let outcome = run(&nest.template, learning);
    assert_eq!(outcome.stdout, "learnt\n");
    let ended = outcome.ended.expect("ended");
    assert_eq!((ended.ending(), ended.status, ended.violated), (Ending::Exited, 0, false));
    let learned = ended.learned.expect("learned");
    assert!(!learned.incomplete);
    let uses = |number: i64| {
        learned.calls.iter().filter(move |call| i64::from(call.number) == number).collect::<Vec<_>>()
    };
    assert_eq!(uses(libc::SYS_socket).len(), 2);
    assert_eq!(uses(libc::SYS_socket)[0].values, [libc::AF_UNIX as u64, 0]);
    assert_eq!(uses(libc::SYS_getppid).len(), 1);
    assert_eq!(uses(libc::SYS_write).len(), 1);
    assert_eq!(uses(libc::SYS_execve).len(), 0, "the first exec is the launch's own");
}
