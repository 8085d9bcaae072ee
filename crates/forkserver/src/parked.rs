//! The waiting of a parked sandboxee: the process of a warm nest that lacks nothing but its launch.
//!
//! It is the launch child ([`crate::child`]), stopped between what every launch of a policy has in common and what is the
//! launch's own, with init still asleep behind it: a launch wakes one process, which decodes it, takes its fds, and
//! executes. Its syscall filter is on already; what it calls itself passes by the cookie (`Plan.launch_cookie`), but it must not
//! need memory from the kernel: [`reserve_memory`] has the allocator keep enough. Promises: what a launch brings is leaked, not
//! freed (the exec ends this memory); the end of the socket dismisses it.

use std::mem::ManuallyDrop;
use std::os::fd::BorrowedFd;

use nestbox_protocol::{Launch, LaunchControl, Limits, Network, Step, frame, launch_control};
use nestbox_sys::packet;
use prost::bytes::Bytes;

use crate::boot::CONTROL_FD;
use crate::child::now;
use crate::fault::Fault;
use crate::launch::{Ids, Prepared};
use crate::report::{self, Marks};

/// Whether it takes on its filter before it waits: where the allocator can be made to keep memory, so that decoding asks
/// the kernel for none. Elsewhere the filter costs the launch its 50 µs.
pub(crate) const UNDER_FILTER: bool = cfg!(target_env = "gnu");

/// Has the allocator keep what decoding the largest launch takes: [`frame::PARKED_MAX`] bytes of one-byte strings are
/// some 5,400, each held twice, as a vector and as a C string, at 32 to 56 bytes. Called once per template.
pub(crate) fn reserve_memory() {
    const KEPT: usize = 2 << 20;
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_MMAP_THRESHOLD, 2 * KEPT), (libc::M_TRIM_THRESHOLD, 64 * KEPT)] {
        // SAFETY: takes numbers.
        unsafe { libc::mallopt(parameter, value as i32) };
    }
    // Untouched, it costs nothing; freed, it stays with the allocator.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT)));
}

/// What a parked child waits with.
#[derive(Clone, Copy)]
pub(crate) struct Parking {
    /// The network of its policy.
    pub(crate) network: Network,
}

impl Parking {
    /// The launch socket.
    #[expect(clippy::unused_self, reason = "there is one only while something is parked")]
    pub(crate) fn socket(self) -> BorrowedFd<'static> {
        // SAFETY: it stays open for as long as this process waits.
        unsafe { BorrowedFd::borrow_raw(CONTROL_FD) }
    }
}

/// What came.
pub(crate) enum Orders {
    Launch(&'static Prepared<'static>),
    /// The host has gone, or needs this nest no longer.
    Dismissed,
    /// Init has to do something for the launch first.
    MakeWay,
}

/// Decodes a launch like those to come and throws it away: the memory and the code that it takes are then this process's own,
/// which is 25 µs that the launch does not wait for. So is the memory where the allocator goes on for a launch with more in it:
/// each page that is written to for the first time is 7 µs.
fn rehearse(parking: Parking, ids: Ids) {
    const STRINGS: usize = 8;
    const FURTHER: usize = 12 * 1024;
    let launch = Launch {
        file: b"rehearsal".to_vec(),
        args: vec![Bytes::from_static(b"rehearsal"); STRINGS],
        envs: vec![Bytes::from_static(b"REHEARSAL=1"); STRINGS],
        search_path: b"/usr/local/bin:/usr/bin:/bin".to_vec(),
        cwd: b"/".to_vec(),
        limits: Some(Limits::default()),
        ..Launch::default()
    };
    let control = LaunchControl { kind: Some(launch_control::Kind::Launch(launch)) };
    let decoded = packet::read_message::<LaunchControl>(&frame::inline(&control), &mut Vec::new());
    if let Ok(LaunchControl { kind: Some(launch_control::Kind::Launch(launch)) }) = decoded {
        let _ = std::hint::black_box(Prepared::new(&launch, &[], parking.network, ids));
    }
    drop(std::hint::black_box(vec![1_u8; FURTHER]));
}

/// Waits for the launch, which begins its own account of time.
///
/// Not inlined: the child of a launch that was not parked would touch the pages of the buffer too.
#[inline(never)]
pub(crate) fn wait(parking: Parking, ids: Ids, marks: &mut Marks) -> Result<Orders, Fault<'static>> {
    rehearse(parking, ids);
    let mut buffer = [0; frame::PARKED_MAX];
    // Never closed here: close(2) may be refused, and the exec does.
    let mut fds = ManuallyDrop::new(Vec::new());
    let bytes = match packet::receive(parking.socket(), &mut buffer, &mut fds, 0) {
        Ok(packet) => packet.bytes,
        Err(errno) => return Err(Fault::new(Step::ReceiveRequest, errno, "recvmsg", b"")),
    };
    *marks = Marks::new();
    marks.add_at(Step::ReceiveRequest, now());
    if bytes.is_empty() {
        return Ok(Orders::Dismissed);
    }
    let control = packet::read_message::<LaunchControl>(bytes, &mut fds)
        .map_err(|error| report::unreadable(error.errno()))?;
    match control.kind {
        Some(launch_control::Kind::Launch(launch)) => {
            let launch = Box::leak(Box::new(launch));
            let prepared = Prepared::new(launch, &fds, parking.network, ids)?;
            marks.add_at(Step::DecodeRequest, now());
            Ok(Orders::Launch(Box::leak(Box::new(prepared))))
        }
        Some(launch_control::Kind::Unpark(_)) => Ok(Orders::MakeWay),
        // Nobody signals a program that there is not, or limits it.
        Some(
            launch_control::Kind::Kill(_)
            | launch_control::Kind::Answer(_)
            | launch_control::Kind::SetLimits(_),
        )
        | None => Ok(Orders::Dismissed),
    }
}
