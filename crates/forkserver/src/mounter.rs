//! The mounter: the one process of ours that sees the host's tree. Opens bind sources for launches.
//!
//! A detached mount can only be cloned from a path in the caller's own mount namespace (open_tree(2)), and no template
//! has the host's: so the host asks here, gets a mount fd, and passes it with the launch. Called by [`crate::initial`]
//! when the initial namespaces are ready; ends with its socket.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nestbox_protocol::{BindOpened, Failure, OpenBind, frame};
use nestbox_sys::packet;
use prost::Message;

use crate::fault::Fault;
use crate::server::Server;
use crate::source::{self, IdMapping};

/// Serves until the host closes the socket.
pub(crate) fn serve(server: Server, socket: &OwnedFd) -> Result<Infallible, Fault<'static>> {
    let mut buffer = vec![0; frame::PACKET_MAX];
    loop {
        let (request, _): (OpenBind, _) = next_request(socket, &mut buffer);
        let bind = request.bind.unwrap_or_default();
        let ids = IdMapping { available: server.privileged, uid: request.outer_uid, gid: request.outer_gid };
        let sent = match source::open(&bind, ids) {
            Ok(opened) => {
                let answer = BindOpened { id: request.id, failure: None, id_mapped: !opened.not_id_mapped };
                packet::send_message(socket.as_fd(), &answer, &[opened.mount.as_raw_fd()], 0)
            }
            Err(fault) => {
                let answer = BindOpened { id: request.id, failure: Some(failure(&fault)), id_mapped: false };
                packet::send_message(socket.as_fd(), &answer, &[], 0)
            }
        };
        if sent.is_err() {
            crate::exit(1);
        }
    }
}

/// The next request that can be read, with its fds; one that can't is passed over. Ends this process with the socket.
/// Called by the mounter and the network keeper.
pub(crate) fn next_request<M: Message + Default>(socket: &OwnedFd, buffer: &mut [u8]) -> (M, Vec<OwnedFd>) {
    loop {
        let mut fds = Vec::new();
        let bytes = match packet::receive(socket.as_fd(), buffer, &mut fds, 0) {
            Ok(packet) if packet.bytes.is_empty() => crate::exit(0),
            Ok(packet) => packet.bytes,
            Err(_) => continue,
        };
        if let Ok(request) = packet::read_message(bytes, &mut fds) {
            return (request, fds);
        }
    }
}

/// A fault as a message, where allocating is fine.
pub(crate) fn failure(fault: &Fault<'_>) -> Failure {
    Failure {
        step: fault.step.into(),
        errno: fault.errno as i32,
        syscall: fault.syscall.to_owned(),
        path: fault.path.to_vec(),
        exec: fault.exec,
        detail: fault.detail.to_owned(),
    }
}
