//! Speaks the protocol with a real fork server, without the client crate.

#![allow(unreachable_pub, dead_code, missing_docs)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nestbox_protocol::{
    Bind, Directory, Ended, FdRole, ForkRequest, Hello, InitializationType, Launch, LaunchEvent, Mode, Mount,
    Network, PassedFd, Plan, Proc, Ready, ServerRequest, TemplateRequest, Tmpfs, launch_event, mount, ready,
    server_request,
};
use nestbox_sys::{packet, socket};

/// The outer id under a root host.
pub const OUTER: u32 = 1_900_000_000;

/// A fork server, its control socket and its initial namespaces.
pub struct Server {
    pub child: Child,
    pub control: OwnedFd,
}

/// One received message with its fds and its sender's pid.
pub struct Received<M> {
    pub message: M,
    pub fds: Vec<OwnedFd>,
    pub pid: i32,
}

pub fn receive<M: prost::Message + Default>(socket: &OwnedFd) -> Option<Received<M>> {
    let mut buffer = vec![0; nestbox_protocol::frame::PACKET_MAX];
    let mut fds = Vec::new();
    let packet = packet::receive(socket.as_fd(), &mut buffer, &mut fds, 0).expect("recvmsg");
    if packet.bytes.is_empty() {
        return None;
    }
    let pid = packet.credentials.map_or(0, |who| who.pid);
    let bytes = packet.bytes.to_vec();
    let message = packet::read_message(&bytes, &mut fds).expect("a message");
    Some(Received { message, fds, pid })
}

pub fn send(socket: &OwnedFd, message: &impl prost::Message, fds: &[RawFd]) {
    packet::send_message(socket.as_fd(), message, fds, 0).expect("sendmsg");
}

impl Server {
    pub fn start() -> Self {
        let (control, theirs) = socket::seqpacket_pair().expect("socketpair");
        socket::pass_credentials(control.as_fd()).expect("SO_PASSCRED");
        let mut command =
            Command::new(std::env::var("NB_FS").unwrap_or(env!("CARGO_BIN_EXE_nestbox-forkserver").into()));
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        let fd = theirs.as_raw_fd();
        let place = move || {
            if fd == 3 {
                // SAFETY: async-signal-safe, numbers only.
                unsafe { libc::fcntl(3, libc::F_SETFD, 0) };
            } else {
                // SAFETY: as above.
                unsafe { libc::dup2(fd, 3) };
            }
            Ok(())
        };
        // SAFETY: the closure makes async-signal-safe calls only.
        unsafe { command.pre_exec(place) };
        let child = command.spawn().expect("the fork server starts");
        drop(theirs);
        let hello: Received<Hello> = receive(&control).expect("hello");
        assert_eq!(hello.pid, child.id() as i32);
        Self { child, control }
    }

    /// Sends a request with a socket of its own; returns our end.
    pub fn request(&self, kind: server_request::Kind, fds: &[RawFd]) -> OwnedFd {
        let (ours, theirs) = socket::seqpacket_pair().expect("socketpair");
        socket::pass_credentials(ours.as_fd()).expect("SO_PASSCRED");
        let all: Vec<RawFd> = [theirs.as_raw_fd()].into_iter().chain(fds.iter().copied()).collect();
        send(&self.control, &ServerRequest { kind: Some(kind) }, &all);
        ours
    }

    /// The initial namespaces and the mounter's socket.
    pub fn initialize(&self) -> Result<(OwnedFd, Vec<OwnedFd>), Ready> {
        let request = ForkRequest {
            mode: Mode::Initialize.into(),
            initialization_type: InitializationType::InitialNamespaces.into(),
            ..ForkRequest::default()
        };
        let socket = self.request(server_request::Kind::Fork(request), &[]);
        let answer: Received<Ready> = receive(&socket).expect("an answer");
        match answer.message.kind {
            Some(ready::Kind::Initialized(_)) => Ok((socket, answer.fds)),
            _ => Err(answer.message),
        }
    }

    pub fn template(&self, plan: Plan, namespaces: &[OwnedFd]) -> Result<OwnedFd, Ready> {
        let request = TemplateRequest { plan: Some(plan), outer_uid: OUTER, outer_gid: OUTER };
        let fds: Vec<RawFd> = namespaces.iter().map(AsRawFd::as_raw_fd).collect();
        let socket = self.request(server_request::Kind::Template(request), &fds);
        let answer: Received<Ready> = receive(&socket).expect("an answer");
        match answer.message.kind {
            Some(ready::Kind::Template(_)) => Ok(socket),
            _ => Err(answer.message),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn directory(path: &str) -> Mount {
    Mount { path: path.into(), kind: Some(mount::Kind::Directory(Directory { mode: 0o755 })) }
}

pub fn bind(source: &str, path: &str) -> Mount {
    let directory = std::fs::metadata(source).expect("the source exists").is_dir();
    let bind = Bind { source: source.into(), directory, exec: true, ..Bind::default() };
    Mount { path: path.into(), kind: Some(mount::Kind::Bind(bind)) }
}

pub fn symlink(path: &str, points_to: &str) -> Mount {
    let link = nestbox_protocol::Symlink { points_to: points_to.into() };
    Mount { path: path.into(), kind: Some(mount::Kind::Symlink(link)) }
}

/// /usr and the usual links, /proc, /tmp.
pub fn plan() -> Plan {
    Plan {
        template_mounts: vec![
            directory("/usr"),
            bind("/usr", "/usr"),
            symlink("/bin", "usr/bin"),
            symlink("/lib", "usr/lib"),
            symlink("/lib64", "usr/lib64"),
            directory("/proc"),
            directory("/tmp"),
            directory("/dev"),
            Mount {
                path: b"/dev/null".to_vec(),
                kind: Some(mount::Kind::File(nestbox_protocol::File { content: vec![], mode: 0o666 })),
            },
            Mount {
                path: b"/dev/null".to_vec(),
                kind: Some(mount::Kind::Bind(Bind {
                    source: b"/dev/null".to_vec(),
                    device: true,
                    writable: true,
                    ..Bind::default()
                })),
            },
        ],
        nest_mounts: vec![
            Mount {
                path: b"/proc".to_vec(),
                kind: Some(mount::Kind::Proc(Proc {
                    masked: vec![b"kcore".to_vec(), b"acpi".to_vec()],
                    read_only: vec![b"sys".to_vec()],
                })),
            },
            Mount {
                path: b"/tmp".to_vec(),
                kind: Some(mount::Kind::Tmpfs(Tmpfs { size: 1 << 20, inodes: 64, mode: 0o1777, exec: true })),
            },
        ],
        hostname: "box".into(),
        network: Network::None.into(),
        uid: 1000,
        gid: 1000,
        ..Plan::default()
    }
}

pub fn launch(args: &[&str]) -> Launch {
    Launch {
        args: args.iter().map(|arg| arg.as_bytes().to_vec().into()).collect(),
        file: args[0].into(),
        search_path: b"/usr/bin:/bin".to_vec(),
        outer_uid: OUTER,
        outer_gid: OUTER,
        ..Launch::default()
    }
}

/// What became of one launch.
#[derive(Debug)]
pub struct Outcome {
    pub started: Option<i32>,
    pub ended: Option<Ended>,
    pub failure: Option<nestbox_protocol::Failure>,
    pub stdout: String,
    pub outputs: Vec<OwnedFd>,
}

/// Reads a launch socket to its end.
pub fn outcome(socket: &OwnedFd, stdout: Option<OwnedFd>) -> Outcome {
    let mut all =
        Outcome { started: None, ended: None, failure: None, stdout: String::new(), outputs: vec![] };
    while all.ended.is_none() && all.failure.is_none() {
        let Some(event) = receive::<LaunchEvent>(socket) else { break };
        match event.message.kind.expect("a kind") {
            launch_event::Kind::Placed(_)
            | launch_event::Kind::Parked(_)
            | launch_event::Kind::Asked(_)
            | launch_event::Kind::LimitsSet(_) => {}
            launch_event::Kind::Started(_) => all.started = Some(event.pid),
            launch_event::Kind::Ended(ended) => {
                all.ended = Some(ended);
                all.outputs = event.fds;
            }
            launch_event::Kind::Failure(failure) => all.failure = Some(failure),
        }
    }
    if let Some(stdout) = stdout {
        use std::io::Read;
        std::fs::File::from(stdout).read_to_string(&mut all.stdout).expect("utf-8");
    }
    all
}

/// Launches through a template and waits.
pub fn run(template: &OwnedFd, mut launch: Launch) -> Outcome {
    let (ours, theirs) = socket::seqpacket_pair().expect("socketpair");
    socket::pass_credentials(ours.as_fd()).expect("SO_PASSCRED");
    let (read, write) = pipe();
    if nix::unistd::geteuid().is_root() {
        // As the client does: so that /dev/stdout can be reopened inside.
        nix::unistd::fchown(&write, Some(OUTER.into()), Some(OUTER.into())).expect("fchown");
    }
    launch.fds.insert(0, PassedFd { role: FdRole::Stdio.into(), number: 1, grant: 0 });
    launch.fds.insert(1, PassedFd { role: FdRole::Stdio.into(), number: 2, grant: 0 });
    send(template, &launch, &[theirs.as_raw_fd(), write.as_raw_fd(), write.as_raw_fd()]);
    drop((theirs, write));
    outcome(&ours, Some(read))
}

pub fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe2")
}
