//! The network keeper: a namespace that nobody used is as new, one that was used is not.

mod common;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use common::{Outcome, Server, launch, outcome, plan, receive, send};
use nestbox_protocol::{
    CheckNetworks, CreateNetwork, FdRole, ForgetNetworks, ForkRequest, InitializationType, Mode,
    NetworkReply, NetworkRequest, PassedFd, Ready, network_request, ready, server_request,
};
use nestbox_sys::{packet, socket};

fn keeper(server: &Server, namespaces: &[OwnedFd]) -> OwnedFd {
    let request = ForkRequest {
        mode: Mode::Initialize.into(),
        initialization_type: InitializationType::NetworkNamespaces.into(),
        ..ForkRequest::default()
    };
    let fds: Vec<_> = namespaces.iter().map(AsRawFd::as_raw_fd).collect();
    let socket = server.request(server_request::Kind::Fork(request), &fds);
    let answer = receive::<Ready>(&socket).expect("an answer");
    assert!(matches!(answer.message.kind, Some(ready::Kind::Initialized(_))), "{:?}", answer.message);
    socket
}

/// A namespace, and what the keeper knows it by.
struct Namespace {
    id: u64,
    fd: OwnedFd,
}

fn ask(keeper: &OwnedFd, kind: network_request::Kind) {
    send(keeper, &NetworkRequest { kind: Some(kind) }, &[]);
}

fn create(keeper: &OwnedFd, id: u64) -> Namespace {
    ask(keeper, network_request::Kind::Create(CreateNetwork { id }));
    let mut answer = receive::<NetworkReply>(keeper).expect("an answer");
    assert_eq!((answer.message.id, answer.message.failure), (id, None));
    Namespace { id, fd: answer.fds.pop().expect("a namespace") }
}

/// Which are clean, and which are not.
fn check(keeper: &OwnedFd, ids: &[u64]) -> (Vec<u64>, Vec<u64>) {
    ask(keeper, network_request::Kind::Check(CheckNetworks { ids: ids.to_vec() }));
    let answer = receive::<NetworkReply>(keeper).expect("an answer").message;
    (answer.clean, answer.used)
}

fn is_clean(keeper: &OwnedFd, namespace: &Namespace) -> bool {
    let (clean, used) = check(keeper, &[namespace.id]);
    assert_eq!([clean.clone(), used].concat(), [namespace.id]);
    !clean.is_empty()
}

fn run_in(template: &OwnedFd, namespace: &Namespace, args: &[&str]) -> Outcome {
    run_with(template, namespace, args, &[])
}

/// The same, with descriptors from 3 on.
fn run_with(template: &OwnedFd, namespace: &Namespace, args: &[&str], fds: &[OwnedFd]) -> Outcome {
    let (ours, theirs) = socket::seqpacket_pair().expect("socketpair");
    let mut launch = launch(args);
    launch.fds = vec![PassedFd { role: FdRole::NetworkNamespace.into(), number: 0, grant: 0 }];
    launch.fds.extend((3..).zip(fds).map(|(number, _)| PassedFd {
        role: FdRole::Stdio.into(),
        number,
        grant: 0,
    }));
    let passed = [&theirs, &namespace.fd].into_iter().chain(fds).map(AsRawFd::as_raw_fd);
    send(template, &launch, &passed.collect::<Vec<_>>());
    drop(theirs);
    outcome(&ours, None)
}

fn run_python(template: &OwnedFd, namespace: &Namespace, script: &str) {
    assert_eq!(run_in(template, namespace, &["python3", "-c", script]).ended.expect("ended").status, 0);
}

/// A keeper, and a template whose nests join what it makes; alive as long as the others are.
struct Room {
    keeper: OwnedFd,
    template: OwnedFd,
    _mounter: OwnedFd,
    _server: Server,
}

impl Room {
    fn open() -> Self {
        let server = Server::start();
        let (mounter, namespaces) = server.initialize().expect("initial namespaces");
        let template = server.template(plan(), &namespaces).expect("template");
        let keeper = keeper(&server, &namespaces);
        Self { keeper, template, _mounter: mounter, _server: server }
    }
}

#[test]
fn a_namespace_is_as_new_until_somebody_uses_it() {
    let Room { template, keeper, .. } = &Room::open();
    let mut clean = 0;
    for id in 1..=50 {
        let namespace = create(keeper, id);
        assert!(is_clean(keeper, &namespace), "not even used");
        for _ in 0..5 {
            assert_eq!(run_in(template, &namespace, &["true"]).ended.expect("ended").status, 0);
            clean += usize::from(is_clean(keeper, &namespace));
        }
    }
    assert_eq!(clean, 250, "a program that opened no socket left a trace");
    for (script, id) in [
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect_ex(('127.0.0.1', 9))",
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', 9))",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect_ex(('192.0.2.1', 9))",
    ]
    .into_iter()
    .zip(51..)
    {
        let namespace = create(keeper, id);
        run_python(template, &namespace, script);
        assert!(!is_clean(keeper, &namespace), "{script}");
        assert!(!is_clean(keeper, &namespace), "what was found used once stays so");
    }
}

#[test]
fn several_are_told_apart_in_one_answer() {
    let Room { template, keeper, .. } = &Room::open();
    let all: Vec<Namespace> = (1..=4).map(|id| create(keeper, id)).collect();
    run_python(
        template,
        &all[1],
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect_ex(('127.0.0.1', 9))",
    );
    ask(keeper, network_request::Kind::Forget(ForgetNetworks { ids: vec![4] }));
    assert_eq!(check(keeper, &[1, 2, 3, 4, 9]), (vec![1, 3], vec![2, 4, 9]));
    assert_eq!(check(keeper, &[1, 2, 3]), (vec![1, 3], vec![2]));
}

/// A socket of any family that is alive makes a namespace used, whoever holds it: also one that is bound to nothing, and was
/// passed out.
#[test]
fn a_namespace_with_a_socket_is_not_as_new() {
    let Room { template, keeper, .. } = &Room::open();
    let families =
        ["AF_UNIX, SOCK_STREAM", "AF_INET, SOCK_DGRAM", "AF_INET6, SOCK_STREAM", "AF_NETLINK, SOCK_RAW"];
    for (id, family) in (1..).zip(families) {
        let namespace = create(keeper, id);
        let (ours, theirs) = socket::seqpacket_pair().expect("socketpair");
        let script = format!(
            "from socket import *; s = socket({family}); send_fds(socket(fileno=3), [b'x'], [s.fileno()])"
        );
        let outcome = run_with(template, &namespace, &["python3", "-c", &script], &[theirs]);
        assert_eq!(outcome.ended.expect("ended").status, 0, "{family}");
        let mut passed = Vec::new();
        packet::receive(ours.as_fd(), &mut [0; 8], &mut passed, 0).expect("a socket");
        assert_eq!(passed.len(), 1);
        assert!(!is_clean(keeper, &namespace), "{family}");
    }
}
