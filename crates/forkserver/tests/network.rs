//! The network keeper: a namespace that nobody used is as new, one that was used is not.

mod common;

use std::os::fd::{AsRawFd, OwnedFd};

use common::{Outcome, Server, launch, outcome, plan, receive, send};
use nestbox_protocol::{
    CheckNetwork, CreateNetwork, FdRole, ForkRequest, InitializationType, Mode, NetworkReply, NetworkRequest,
    PassedFd, Ready, network_request, ready, server_request,
};
use nestbox_sys::socket;

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

fn create(keeper: &OwnedFd) -> OwnedFd {
    let kind = network_request::Kind::Create(CreateNetwork { id: 1 });
    send(keeper, &NetworkRequest { kind: Some(kind) }, &[]);
    let mut answer = receive::<NetworkReply>(keeper).expect("an answer");
    assert_eq!(answer.message.failure, None);
    answer.fds.pop().expect("a namespace")
}

fn is_clean(keeper: &OwnedFd, namespace: &OwnedFd) -> bool {
    let kind = network_request::Kind::Check(CheckNetwork { id: 2 });
    send(keeper, &NetworkRequest { kind: Some(kind) }, &[namespace.as_raw_fd()]);
    receive::<NetworkReply>(keeper).expect("an answer").message.clean
}

fn run_in(template: &OwnedFd, namespace: &OwnedFd, args: &[&str]) -> Outcome {
    let (ours, theirs) = socket::seqpacket_pair().expect("socketpair");
    let mut launch = launch(args);
    launch.fds = vec![PassedFd { role: FdRole::NetworkNamespace.into(), number: 0, grant: 0 }];
    send(template, &launch, &[theirs.as_raw_fd(), namespace.as_raw_fd()]);
    drop(theirs);
    outcome(&ours, None)
}

#[test]
fn a_namespace_is_as_new_until_somebody_uses_it() {
    let server = Server::start();
    let (_mounter, namespaces) = server.initialize().expect("initial namespaces");
    let template = server.template(plan(), &namespaces).expect("template");
    let keeper = keeper(&server, &namespaces);
    let mut clean = 0;
    for _ in 0..50 {
        let namespace = create(&keeper);
        assert!(is_clean(&keeper, &namespace), "not even used");
        for _ in 0..5 {
            assert_eq!(run_in(&template, &namespace, &["true"]).ended.expect("ended").status, 0);
            clean += usize::from(is_clean(&keeper, &namespace));
        }
    }
    assert_eq!(clean, 250, "a program that opened no socket left a trace");
    for script in [
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect_ex(('127.0.0.1', 9))",
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', 9))",
    ] {
        let namespace = create(&keeper);
        assert_eq!(run_in(&template, &namespace, &["python3", "-c", script]).ended.expect("ended").status, 0);
        assert!(!is_clean(&keeper, &namespace), "{script}");
        assert!(!is_clean(&keeper, &namespace), "what was found used once stays so");
    }
}
