//! What the fork server, the mounter, templates and inits make of frames that nobody should send, and what they hold on to.

mod common;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use common::{Server, launch, outcome, pipe, plan, receive, run, send};
use nestbox_protocol::{
    Bind, BindOpened, FdRole, ForkRequest, Launch, LaunchEvent, Mode, OpenBind, PassedFd, Ready,
    ServerRequest, Step, frame, launch_event, ready, server_request,
};
use nestbox_sys::{packet, socket};

fn open_fds(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("proc").count()
}

/// The process has so many fds, once it has done with all that was sent.
fn assert_open_fds(pid: u32, expected: usize) {
    let start = Instant::now();
    while open_fds(pid) != expected && start.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(open_fds(pid), expected, "process {pid} leaked fds");
}

/// Sends `bytes` as one packet with a socket and `surplus` more fds; returns our end of the socket.
fn send_raw(to: &OwnedFd, bytes: &[u8], surplus: usize) -> OwnedFd {
    let (ours, theirs) = socket::seqpacket_pair().expect("socketpair");
    let (read, _write) = pipe();
    let mut fds = vec![theirs.as_raw_fd()];
    fds.extend(std::iter::repeat_n(read.as_raw_fd(), surplus));
    packet::send(to.as_fd(), &[bytes], &fds, 0).expect("sendmsg");
    ours
}

fn malformed() -> Vec<Vec<u8>> {
    let good = frame::inline(&ServerRequest::default());
    vec![
        b"x".to_vec(),
        vec![0; 3],
        vec![0xff; 4096],
        b"NB\x02\x00".to_vec(),
        b"NB\x01\x09".to_vec(),
        b"NB\x01\x01".to_vec(),
        frame::spilled(12).to_vec(),
        frame::spilled(u64::MAX).to_vec(),
        [&good[..], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]].concat(),
        good,
        frame::inline(&ServerRequest {
            kind: Some(server_request::Kind::Fork(ForkRequest { mode: 77, ..ForkRequest::default() })),
        }),
        frame::inline(&ServerRequest {
            kind: Some(server_request::Kind::Fork(ForkRequest {
                mode: Mode::Fork.into(),
                ..ForkRequest::default()
            })),
        }),
        vec![0x41; frame::PACKET_MAX + 500],
    ]
}

#[test]
fn malformed_frames_end_in_an_error_and_leak_nothing() {
    let server = Server::start();
    let (mounter, namespaces) = server.initialize().expect("initial namespaces");
    let template = server.template(plan(), &namespaces).expect("template");
    let before = open_fds(server.child.id());
    for bytes in malformed() {
        for surplus in [0, 1, 100] {
            let answer = send_raw(&server.control, &bytes, surplus);
            // An answer or the end of the socket: both are an end, and neither is a launch.
            if let Some(received) = receive::<Ready>(&answer) {
                assert!(!matches!(received.message.kind, Some(ready::Kind::Template(_))), "{bytes:?}");
            }
            let answer = send_raw(&template, &bytes, surplus);
            if let Some(received) = receive::<LaunchEvent>(&answer) {
                assert!(
                    !matches!(received.message.kind, Some(launch_event::Kind::Started(_))),
                    "{bytes:?} {received:?}",
                    received = received.message
                );
            }
            let _ = send_raw(&mounter, &bytes, surplus);
        }
        // With no fd at all there is nobody to answer.
        packet::send(server.control.as_fd(), &[&bytes], &[], 0).expect("sendmsg");
        packet::send(template.as_fd(), &[&bytes], &[], 0).expect("sendmsg");
    }
    // The last ones have no answer to wait for.
    assert_open_fds(server.child.id(), before);
    let again = run(&template, launch(&["echo", "still here"]));
    assert_eq!(again.stdout, "still here\n");
    assert!(server.initialize().is_ok());
}

#[test]
fn a_launch_whose_fds_do_not_fit_is_refused() {
    let server = Server::start();
    let (_mounter, namespaces) = server.initialize().expect("initial namespaces");
    let template = server.template(plan(), &namespaces).expect("template");
    let (read, _write) = pipe();
    let stdio = PassedFd { role: FdRole::Stdio.into(), number: 0, grant: 0 };
    let cases: Vec<(Vec<PassedFd>, usize)> = vec![
        (vec![], 1),
        (vec![stdio], 0),
        (vec![PassedFd { role: FdRole::Bind.into(), number: 0, grant: 0 }], 1),
        (vec![PassedFd { role: FdRole::File.into(), number: 0, grant: 0 }], 1),
        (vec![PassedFd { role: 99, number: 0, grant: 0 }], 1),
    ];
    for (fds, count) in cases {
        let (ours, theirs) = socket::seqpacket_pair().expect("socketpair");
        let mut raw = vec![theirs.as_raw_fd()];
        raw.extend(std::iter::repeat_n(read.as_raw_fd(), count));
        send(&template, &Launch { fds, ..launch(&["true"]) }, &raw);
        drop(theirs);
        let failure = outcome(&ours, None).failure.expect("refused");
        assert_eq!(failure.step(), Step::DecodeRequest, "{failure:?}");
    }
    assert_eq!(run(&template, launch(&["true"])).ended.expect("ended").status, 0);
}

#[test]
fn a_large_request_travels_in_a_memfd() {
    let server = Server::start();
    let (_mounter, namespaces) = server.initialize().expect("initial namespaces");
    let template = server.template(plan(), &namespaces).expect("template");
    // MAX_ARG_STRLEN is 128 KiB; all of it together may be a quarter of the stack limit, 2 MiB.
    let mut large = launch(&["sh", "-c", "echo $# ${#1}", "sh"]);
    large.args.extend(std::iter::repeat_n(vec![b'a'; 131_071].into(), 14));
    assert_eq!(run(&template, large).stdout, "14 131071\n");
    let mut too_large = launch(&["true"]);
    too_large.args.push(vec![b'a'; 131_072].into());
    let failure = run(&template, too_large).failure.expect("refused by the kernel");
    assert_eq!((failure.step(), failure.errno, failure.exec), (Step::Exec, libc::E2BIG, true));
}

#[test]
fn the_mounter_refuses_a_source_that_is_not_what_was_looked_at() {
    let server = Server::start();
    let (mounter, _namespaces) = server.initialize().expect("initial namespaces");
    let ask = |bind: Bind| {
        send(&mounter, &OpenBind { id: 7, bind: Some(bind), ..OpenBind::default() }, &[]);
        let answer = receive::<BindOpened>(&mounter).expect("an answer");
        assert_eq!(answer.message.id, 7);
        assert_eq!(answer.fds.len(), usize::from(answer.message.failure.is_none()));
        answer.message.failure.map(|failure| (failure.step(), failure.errno))
    };
    let usr = Bind { source: b"/usr".to_vec(), directory: true, exec: true, ..Bind::default() };
    assert_eq!(ask(usr.clone()), None);
    let opened = Step::OpenBindSource;
    let verified = Step::VerifyBindSource;
    assert_eq!(ask(Bind { source: b"/nowhere".to_vec(), ..usr.clone() }), Some((opened, libc::ENOENT)));
    assert_eq!(ask(Bind { directory: false, ..usr.clone() }), Some((verified, libc::EISDIR)));
    assert_eq!(ask(Bind { expected_inode: 1, ..usr.clone() }), Some((verified, libc::ESTALE)));
    let zero = Bind { source: b"/etc/hostname".to_vec(), device: true, ..Bind::default() };
    assert_eq!(ask(zero), Some((verified, libc::ENODEV)));
}

fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}

fn gone_within(pid: i32, limit: Duration) -> bool {
    let start = Instant::now();
    while alive(pid) {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Starts a sandboxee that sleeps; returns its launch socket and host pid.
fn sleeper(template: &OwnedFd) -> (OwnedFd, i32) {
    let (ours, theirs) = socket::seqpacket_pair().expect("socketpair");
    socket::pass_credentials(ours.as_fd()).expect("SO_PASSCRED");
    let script = "trap '' TERM HUP INT; (setsid sh -c 'sleep 100' &) ; sleep 100";
    send(template, &launch(&["sh", "-c", script]), &[theirs.as_raw_fd()]);
    drop(theirs);
    let started = receive::<LaunchEvent>(&ours).expect("started");
    assert!(matches!(started.message.kind, Some(launch_event::Kind::Started(_))), "{:?}", started.message);
    assert!(alive(started.pid), "the pid is the host's");
    (ours, started.pid)
}

#[test]
fn whoever_goes_takes_the_level_below_along() {
    let second = Duration::from_secs(1);
    let server = Server::start();
    let (_mounter, namespaces) = server.initialize().expect("initial namespaces");
    // The host lets go of one launch.
    let template = server.template(plan(), &namespaces).expect("template");
    let (socket, pid) = sleeper(&template);
    drop(socket);
    assert!(gone_within(pid, second), "the nest outlived its launch socket");
    // The host lets go of the template.
    let (_socket, pid) = sleeper(&template);
    drop(template);
    assert!(gone_within(pid, second), "the nest outlived its template");
    // The fork server is killed while it and everything else is stopped.
    let template = server.template(plan(), &namespaces).expect("template");
    let (_socket, pid) = sleeper(&template);
    let server_pid = server.child.id() as i32;
    // SAFETY: our own child.
    unsafe { libc::kill(server_pid, libc::SIGSTOP) };
    // SAFETY: as above.
    unsafe { libc::kill(server_pid, libc::SIGKILL) };
    assert!(gone_within(pid, second), "the nest outlived the fork server");
}

#[test]
fn nothing_is_left_of_a_launch_after_its_result() {
    let server = Server::start();
    let (_mounter, namespaces) = server.initialize().expect("initial namespaces");
    let template = server.template(plan(), &namespaces).expect("template");
    for _ in 0..20 {
        let marker = tempfile::tempdir().expect("tempdir");
        let name = marker.path().file_name().expect("name").to_string_lossy().into_owned();
        let script =
            format!("trap '' TERM; for i in 1 2 3; do setsid sh -c 'exec -a {name} sleep 50' & done; exit 3");
        let ended = run(&template, launch(&["bash", "-c", &script])).ended.expect("ended");
        assert_eq!(ended.status, 3);
        for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&command).contains(&name), "a daemon outlived the result");
        }
    }
}
