//! The fork server's own loop: receive a request, fork a child for it, forget it.
//!
//! Promises: it keeps no state between requests, waits for nobody, and a request that it can't read or fork for is
//! answered on the socket that came with it. It ends when the control socket does. Called by `main`.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use nestbox_protocol::{Hello, InitializationType, Mode, ServerRequest, Step, frame, server_request};
use nestbox_sys::packet;
use nestbox_sys::{Errno, process};

use crate::boot::{self, CONTROL_FD};
use crate::capabilities::{self, CAP_SETUID};
use crate::fault::{At, Fault};
use crate::{initial, launch, network, privileged, report, request, template};

/// What every child of the fork server knows about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Server {
    /// Its pid.
    pub(crate) pid: i32,
    /// The host is root: there is a privileged helper.
    pub(crate) privileged: bool,
}

/// Runs until the host closes the control socket.
pub(crate) fn run() -> ! {
    // SAFETY: the client starts us with our socket there; nobody else in this process knows it.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    let server = match boot::shed_inheritance().and_then(|()| start()) {
        Ok(server) => server,
        Err(fault) => {
            report::launch_failed(control.as_fd(), &fault);
            crate::exit(1);
        }
    };
    let hello = Hello { protocol_version: u32::from(frame::VERSION), privileged: server.privileged };
    if packet::send_message(control.as_fd(), &hello, &[], 0).is_err() {
        crate::exit(1);
    }
    // Who has to know it later, in a copy of this memory, may not look it up.
    launch::processors();
    loop {
        if let Some((request, fds)) = receive(control.as_fd()) {
            serve(server, request, fds);
        }
    }
}

/// The next request that can be read. What it was received in is freed by then: a child would carry it along.
fn receive(control: BorrowedFd<'_>) -> Option<(ServerRequest, Vec<OwnedFd>)> {
    let mut buffer = vec![0; frame::PACKET_MAX];
    let mut fds = Vec::new();
    // Where it fails the packet is gone, its fds are closed: the host sees the end of the socket it sent along.
    let packet = packet::receive(control, &mut buffer, &mut fds, 0).ok()?;
    if packet.bytes.is_empty() {
        crate::exit(0);
    }
    match packet::read_message(packet.bytes, &mut fds) {
        Ok(request) => Some((request, fds)),
        Err(error) => {
            if let Some(socket) = fds.first() {
                report::request_failed(socket.as_fd(), &report::unreadable(error.errno()));
            }
            None
        }
    }
}

/// Whether the host can give sandboxees ids that are not its own: it is root, and a root that may.
pub(crate) fn is_privileged() -> Result<bool, Fault<'static>> {
    let step = Step::StartForkserver;
    if !nix::unistd::geteuid().is_root() {
        return Ok(false);
    }
    let held = capabilities::permitted().at(step, "capget", b"")?;
    Ok(held & CAP_SETUID != 0 && process::has_ids_to_give().at(step, "read", b"/proc/self/uid_map")?)
}

fn start() -> Result<Server, Fault<'static>> {
    let server = Server { pid: nix::unistd::getpid().as_raw(), privileged: is_privileged()? };
    if server.privileged {
        privileged::start()?;
    } else {
        // The number stays taken, so that the fds of a request come above it in either case.
        // SAFETY: numbers only.
        Errno::result(unsafe { libc::dup3(0, privileged::HELPER_FD, libc::O_CLOEXEC) }).at(
            Step::StartForkserver,
            "dup3",
            b"",
        )?;
    }
    boot::drop_capabilities(server.privileged)?;
    Ok(server)
}

/// Forks the child that serves one request.
fn serve(server: Server, request: ServerRequest, fds: Vec<OwnedFd>) {
    let Some(socket) = fds.first() else { return };
    let asked = Asked::of(&request);
    // SAFETY: single-threaded; no CLONE_VM.
    match unsafe { process::fork_with(0) } {
        Ok(Some(_)) => {}
        Ok(None) => {
            // The child must not keep the control socket: its end of file is how the host learns of our death.
            // SAFETY: numbers only; the server's OwnedFd of it is never dropped in this process.
            let _ = unsafe { nestbox_sys::syscall!(libc::SYS_close, CONTROL_FD) };
            child(server, request, fds)
        }
        Err(errno) => {
            let fault = Fault::new(Step::CloneInit, errno, "clone3", b"a child of the fork server");
            asked.fail(socket.as_fd(), &fault);
        }
    }
}

/// What was asked for, as far as it decides in which message a failure is told.
#[derive(Clone, Copy)]
enum Asked {
    /// In a `LaunchEvent`.
    Launch,
    /// In a `Ready`.
    Else,
}

impl Asked {
    fn of(request: &ServerRequest) -> Self {
        match &request.kind {
            Some(server_request::Kind::Fork(fork)) if fork.mode() != Mode::Initialize => Self::Launch,
            _ => Self::Else,
        }
    }

    fn fail(self, socket: BorrowedFd<'_>, fault: &Fault<'_>) {
        match self {
            Self::Launch => report::launch_failed(socket, fault),
            Self::Else => report::request_failed(socket, fault),
        }
    }
}

fn child(server: Server, mut request: ServerRequest, fds: Vec<OwnedFd>) -> ! {
    let Some(socket) = fds.first().and_then(|fd| fd.try_clone().ok()) else { crate::exit(1) };
    let asked = Asked::of(&request);
    if let Err(fault) = boot::die_with_parent(server.pid).at(Step::ReceiveRequest, "prctl", b"") {
        asked.fail(socket.as_fd(), &fault);
        crate::exit(1);
    }
    let Err(fault) = match &mut request.kind {
        // It keeps of it what its launches need, and no more.
        Some(server_request::Kind::Template(wanted)) => template::create(server, std::mem::take(wanted), fds),
        Some(server_request::Kind::Fork(fork)) => match (fork.mode(), fork.initialization_type()) {
            (Mode::Initialize, InitializationType::InitialNamespaces) => initial::create(server, fds),
            (Mode::Initialize, InitializationType::NetworkNamespaces) => network::keep(server, fds),
            (Mode::Initialize, InitializationType::IpcNamespace) => initial::create_ipc(fds),
            (Mode::ForkExecveSandbox | Mode::ForkExecve, _) => request::launch(server, fork, &fds),
            (Mode::Fork, _) => Err(refused("only a zygote can be forked without an exec")),
            _ => Err(refused("unknown mode or initialization type")),
        },
        None => Err(refused("unknown request")),
    };
    asked.fail(socket.as_fd(), &fault);
    crate::exit(1);
}

fn refused(detail: &'static str) -> Fault<'static> {
    Fault::new(Step::DecodeRequest, Errno::EINVAL, "recvmsg", b"").detail(detail)
}
