//! The network keeper: makes network namespaces ahead of launches and tells whether a used one is still as new.
//!
//! A network namespace costs 310-360 µs to make and 95 µs to bring its loopback up; joining one costs 1 µs. So the host
//! keeps a few ready, and gives one back into use only if nothing in it differs from the day it was made: the keeper
//! compares, byte for byte, what the kernel shows of sockets, counters and addresses with a snapshot.
//! Dumps of sockets by netlink are no proof (an unbound socket passed out of the sandbox is invisible to them), and
//! looking through a socket would itself leave traces; so it only reads files. Serves [`NetworkRequest`]s until its
//! socket ends.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nestbox_protocol::{Failure, NetworkReply, NetworkRequest, Step, network_request};
use nestbox_sys::mount::open_at;
use nestbox_sys::{Errno, packet, process};

use crate::boot;
use crate::fault::{At, Fault};
use crate::initial::{self, answer_initialized, surplus_fds};
use crate::mounter::{failure, next_request};
use crate::server::Server;

/// What a network namespace shows of itself, below `/proc/self/net`. `sockstat` counts every socket of every family,
/// bound or not (`sock_inuse_add` in `sk_alloc`, net/core/sock.c), and those in TIME_WAIT; `snmp` and `dev` count every
/// packet, and the attempts that came to none; `ip6_flowlabel` outlives its socket. Not `unix` and `netlink`, which list what
/// is counted here already, and take as long as all of these, 25 µs each; nor `tcp` and `udp`, which walk the hash
/// tables of the whole machine to do so: 10 ms.
const TRACES: [&str; 6] = ["sockstat", "sockstat6", "dev", "snmp", "snmp6", "ip6_flowlabel"];

/// Joins the initial namespaces and serves; fds: [socket, user namespace, mount namespace].
pub(crate) fn keep(server: Server, fds: Vec<OwnedFd>) -> Result<Infallible, Fault<'static>> {
    let [socket, user, mnt] = <[OwnedFd; 3]>::try_from(fds).map_err(|_| surplus_fds())?;
    let _ = process::prctl(libc::PR_SET_NAME, c"nestbox-network".as_ptr() as usize);
    let _ = process::close_range(crate::privileged::HELPER_FD as u32, crate::privileged::HELPER_FD as u32, 0);
    give_way();
    initial::join(user.as_fd(), Some(mnt.as_fd()))?;
    initial::enter(initial::REAL_ROOT)?;
    drop((user, mnt));
    let _ = process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1);
    boot::die_with_parent(server.pid).at(Step::CreateNetworkNamespace, "prctl", b"")?;
    answer_initialized(socket.as_fd(), &[])?;
    let mut known: BTreeMap<u64, Known> = BTreeMap::new();
    let mut shown = Vec::new();
    // Room for as many numbers as there are namespaces.
    let mut buffer = [0; 8192];
    loop {
        let (request, _): (NetworkRequest, _) = next_request(&socket, &mut buffer);
        let mut made = None;
        let reply = match request.kind {
            Some(network_request::Kind::Create(create)) => match create_one() {
                Ok((namespace, new)) => {
                    known.insert(create.id, new);
                    if known.len() > KNOWN_MAX {
                        known.pop_first();
                    }
                    made = Some(namespace);
                    NetworkReply { id: create.id, ..NetworkReply::default() }
                }
                Err(fault) => failed(create.id, &fault),
            },
            Some(network_request::Kind::Check(check)) => {
                let as_new = |id: &u64| known.get(id).is_some_and(|known| known.is_as_new(&mut shown));
                let (clean, used): (Vec<u64>, Vec<u64>) = check.ids.into_iter().partition(as_new);
                for id in &used {
                    known.remove(id);
                }
                NetworkReply { clean, used, ..NetworkReply::default() }
            }
            Some(network_request::Kind::Forget(forget)) => {
                for id in &forget.ids {
                    known.remove(id);
                }
                continue;
            }
            None => continue,
        };
        let raw: Vec<_> = made.iter().map(AsRawFd::as_raw_fd).collect();
        if packet::send_message(socket.as_fd(), &reply, &raw, 0).is_err() {
            crate::exit(1);
        }
    }
}

/// Has this process wait until whoever wakes it sleeps: sched(7), `SCHED_BATCH`. A check of several namespaces takes half a
/// millisecond, which would be the host's event loop's. Nobody ever waits for it; without the policy it is as right.
fn give_way() {
    let _ = process::set_scheduling(libc::SCHED_BATCH);
}

fn failed(id: u64, fault: &Fault<'_>) -> NetworkReply {
    let failure: Failure = failure(fault);
    NetworkReply { id, failure: Some(failure), ..NetworkReply::default() }
}

/// A namespace of ours: its files, open, and what they showed on the day it was made. An open file goes on showing the
/// namespace it was opened in, so a check is one pread(2) a file, from wherever this process is.
struct Known {
    files: Vec<(File, Vec<u8>)>,
}

impl Known {
    /// Whether the namespace looks as on the day it was made. `shown` is room to read in.
    fn is_as_new(&self, shown: &mut Vec<u8>) -> bool {
        self.files.iter().all(|(file, traces)| read_traces(file, shown).is_ok() && shown == traces)
    }
}

/// How many namespaces are known at the most. The open files keep one alive whose launch was lost; past this bound the
/// oldest is given up, and would be found used.
const KNOWN_MAX: usize = 512;

/// Makes a network namespace with its loopback up, and remembers how it looks. This process moves into it.
fn create_one() -> Result<(OwnedFd, Known), Fault<'static>> {
    process::unshare(libc::CLONE_NEWNET).at(Step::CreateNetworkNamespace, "unshare", b"network namespace")?;
    bring_loopback_up()?;
    let step = Step::CreateNetworkNamespace;
    let namespace = open_at(libc::AT_FDCWD, c"/proc/self/ns/net", libc::O_RDONLY, 0, 0).at(
        step,
        "openat2",
        b"/proc/self/ns/net",
    )?;
    let mut files = Vec::with_capacity(TRACES.len());
    for name in TRACES {
        match File::open(format!("/proc/self/net/{name}")) {
            Ok(file) => {
                let mut traces = Vec::new();
                read_traces(&file, &mut traces).map_err(|error| errno(&error)).at(
                    step,
                    "pread",
                    b"/proc/self/net",
                )?;
                files.push((file, traces));
            }
            // This kernel has no IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(errno(&error)).at(step, "open", b"/proc/self/net"),
        }
    }
    Ok((namespace, Known { files }))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// A read of fewer bytes than this reached the end: the kernel fills a page with whole records, of which none of these files
/// has any of 500 bytes, or gives all of a file that it makes in one piece (fs/seq_file.c). To ask for the end would have it
/// make all of that once more.
const LAST_READ: usize = 4096 - 500;

/// Puts what a file shows in the place of what is in `shown`.
fn read_traces(file: &File, shown: &mut Vec<u8>) -> std::io::Result<()> {
    let mut length = 0;
    loop {
        shown.resize(length + 2 * 4096, 0);
        let read = file.read_at(&mut shown[length..], length as u64)?;
        length += read;
        if read < LAST_READ {
            break;
        }
    }
    shown.truncate(length);
    if shown.starts_with(SOCKSTAT) {
        leave_out_machine_wide(shown);
    }
    Ok(())
}

/// How `sockstat` begins.
const SOCKSTAT: &[u8] = b"sockets:";

/// Counters of `sockstat` that belong to the whole machine whichever namespace shows them (`net/ipv4/proc.c`): compared,
/// they would make every namespace look used on a host with any traffic. What they count is in `sockets: used`, `tw` and
/// `snmp` as well, which are the namespace's own.
const MACHINE_WIDE: [&[u8]; 4] = [b"orphan", b"alloc", b"mem", b"memory"];

/// Leaves out the values that follow those names.
fn leave_out_machine_wide(shown: &mut Vec<u8>) {
    let mut own = Vec::with_capacity(shown.len());
    let mut skip = false;
    for word in shown.split_inclusive(|&byte| byte == b' ' || byte == b'\n') {
        if skip {
            own.extend(word.ends_with(b"\n").then_some(b'\n'));
        } else {
            own.extend_from_slice(word);
        }
        skip = MACHINE_WIDE.contains(&word.trim_ascii());
    }
    *shown = own;
}

/// Sets `IFF_UP` on `lo` of this process's network namespace: netdevice(7).
pub(crate) fn bring_loopback_up() -> Result<(), Fault<'static>> {
    let step = Step::BringLoopbackUp;
    // SAFETY: numbers only.
    let socket = unsafe {
        nestbox_sys::syscall!(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
    }
    .at(step, "socket", b"AF_INET")?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as _;
    request.ifr_name[1] = b'o' as _;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the request is what SIOCSIFFLAGS takes.
    let set = unsafe { nestbox_sys::syscall!(libc::SYS_ioctl, socket, libc::SIOCSIFFLAGS, &raw mut request) };
    // SAFETY: the socket was made above.
    let _ = unsafe { nestbox_sys::syscall!(libc::SYS_close, socket) };
    set.at(step, "ioctl", b"lo").map(drop)
}

#[cfg(test)]
mod tests {
    use super::{SOCKSTAT, leave_out_machine_wide};

    #[test]
    fn what_belongs_to_the_machine_is_left_out() {
        let shown = b"sockets: used 3\nTCP: inuse 1 orphan 7 tw 2 alloc 12 mem 345\nFRAG: inuse 0 memory 0\n";
        let own = b"sockets: used 3\nTCP: inuse 1 orphan tw 2 alloc mem \nFRAG: inuse 0 memory \n";
        let mut left = shown.to_vec();
        leave_out_machine_wide(&mut left);
        assert_eq!(left, own);
        assert!(shown.starts_with(SOCKSTAT));
    }
}
