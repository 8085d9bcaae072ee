//! The network keeper: makes network namespaces ahead of launches and tells whether a used one is still as new.
//!
//! A network namespace costs 310-360 µs to make and 95 µs to bring its loopback up; joining one costs 1 µs. So the host
//! keeps a few ready, and gives one back into use only if nothing in it differs from the day it was made: the keeper
//! compares, byte for byte, what the kernel shows of sockets, counters, addresses and unix sockets with a snapshot.
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
use crate::source::status;

/// What a network namespace shows of itself, below `/proc/self/net`. `sockstat` counts every socket of every family,
/// bound or not, and those in TIME_WAIT; `snmp` and `dev` count every packet; `ip6_flowlabel` outlives its socket. Not
/// `tcp` and `udp`: they list what is counted here already, and walk the hash tables of the whole machine to do so, which
/// costs 10 ms where all of these together cost 0.1.
const TRACES: [&str; 8] =
    ["sockstat", "sockstat6", "dev", "snmp", "snmp6", "unix", "netlink", "ip6_flowlabel"];

/// Joins the initial namespaces and serves; fds: [socket, user namespace, mount namespace].
pub(crate) fn keep(server: Server, fds: Vec<OwnedFd>) -> Result<Infallible, Fault<'static>> {
    let [socket, user, mnt] = <[OwnedFd; 3]>::try_from(fds).map_err(|_| surplus_fds())?;
    let _ = process::prctl(libc::PR_SET_NAME, c"nestbox-network".as_ptr() as usize);
    let _ = process::close_range(crate::privileged::HELPER_FD as u32, crate::privileged::HELPER_FD as u32, 0);
    initial::join(user.as_fd(), Some(mnt.as_fd()))?;
    initial::enter(initial::REAL_ROOT)?;
    drop((user, mnt));
    let _ = process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1);
    boot::die_with_parent(server.pid).at(Step::CreateNetworkNamespace, "prctl", b"")?;
    answer_initialized(socket.as_fd(), &[])?;
    let mut known = BTreeMap::new();
    // Requests are a few bytes.
    let mut buffer = [0; 256];
    loop {
        let (request, fds): (NetworkRequest, _) = next_request(&socket, &mut buffer);
        let mut made = None;
        let reply = match request.kind {
            Some(network_request::Kind::Create(create)) => match create_one() {
                Ok((namespace, inode, new)) => {
                    known.insert(inode, new);
                    if known.len() > KNOWN_MAX {
                        known.pop_first();
                    }
                    made = Some(namespace);
                    NetworkReply { id: create.id, clean: true, failure: None }
                }
                Err(fault) => failed(create.id, &fault),
            },
            Some(network_request::Kind::Check(check)) => {
                let clean = fds.first().is_some_and(|namespace| is_as_new(&mut known, namespace));
                NetworkReply { id: check.id, clean, failure: None }
            }
            None => continue,
        };
        let raw: Vec<_> = made.iter().map(AsRawFd::as_raw_fd).collect();
        if packet::send_message(socket.as_fd(), &reply, &raw, 0).is_err() {
            crate::exit(1);
        }
    }
}

fn failed(id: u64, fault: &Fault<'_>) -> NetworkReply {
    let failure: Failure = failure(fault);
    NetworkReply { id, clean: false, failure: Some(failure) }
}

/// A namespace of ours: its files, open, and what they showed on the day it was made. An open file goes on showing the
/// namespace it was opened in, so a check is one pread(2) a file, from wherever this process is.
struct Known {
    files: Vec<File>,
    traces: Vec<u8>,
}

/// How many namespaces are known at the most. The open files keep one alive whose launch was lost; past this bound the
/// oldest is given up, and would be found used.
const KNOWN_MAX: usize = 256;

/// Makes a network namespace with its loopback up, and remembers how it looks. This process moves into it.
fn create_one() -> Result<(OwnedFd, u64, Known), Fault<'static>> {
    process::unshare(libc::CLONE_NEWNET).at(Step::CreateNetworkNamespace, "unshare", b"network namespace")?;
    bring_loopback_up()?;
    let step = Step::CreateNetworkNamespace;
    let namespace = open_at(libc::AT_FDCWD, c"/proc/self/ns/net", libc::O_RDONLY, 0, 0).at(
        step,
        "openat2",
        b"/proc/self/ns/net",
    )?;
    let inode = status(namespace.as_fd()).at(step, "fstat", b"/proc/self/ns/net")?.st_ino;
    let mut files = Vec::with_capacity(TRACES.len());
    for name in TRACES {
        match File::open(format!("/proc/self/net/{name}")) {
            Ok(file) => files.push(file),
            // This kernel has no IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(errno(&error)).at(step, "open", b"/proc/self/net"),
        }
    }
    let traces = traces(&files).map_err(|error| errno(&error)).at(step, "pread", b"/proc/self/net")?;
    Ok((namespace, inode, Known { files, traces }))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Whether the namespace looks as on the day it was made. One that does not is forgotten.
fn is_as_new(all: &mut BTreeMap<u64, Known>, namespace: &OwnedFd) -> bool {
    let Ok(inode) = status(namespace.as_fd()).map(|status| status.st_ino) else { return false };
    let Some(known) = all.get(&inode) else { return false };
    let same = traces(&known.files).is_ok_and(|now| now == known.traces);
    if !same {
        all.remove(&inode);
    }
    same
}

/// A read of fewer bytes than this reached the end: the kernel fills a page with whole records, of which none of these files
/// has any of 500 bytes, or gives all of a file that it makes in one piece (fs/seq_file.c). To ask for the end would have it
/// make all of that once more.
const LAST_READ: usize = 4096 - 500;

/// What the files show, one after the other.
fn traces(files: &[File]) -> std::io::Result<Vec<u8>> {
    let mut all = vec![0; 32 * 1024];
    let mut length = 0;
    for file in files {
        let start = length;
        loop {
            if all.len() - length < 4096 {
                all.resize(all.len() * 2, 0);
            }
            let read = file.read_at(&mut all[length..], (length - start) as u64)?;
            length += read;
            if read < LAST_READ {
                break;
            }
        }
    }
    all.truncate(length);
    Ok(without_machine_wide(&all))
}

/// Counters of `sockstat` that belong to the whole machine whichever namespace shows them (`net/ipv4/proc.c`): compared,
/// they would make every namespace look used on a host with any traffic. What they count is in `sockets: used`, `tw` and
/// `snmp` as well, which are the namespace's own.
const MACHINE_WIDE: [&[u8]; 4] = [b"orphan", b"alloc", b"mem", b"memory"];

/// Leaves out the values that follow those names.
fn without_machine_wide(traces: &[u8]) -> Vec<u8> {
    let mut own = Vec::with_capacity(traces.len());
    let mut skip = false;
    for word in traces.split_inclusive(|&byte| byte == b' ' || byte == b'\n') {
        if skip {
            own.extend(word.ends_with(b"\n").then_some(b'\n'));
        } else {
            own.extend_from_slice(word);
        }
        skip = MACHINE_WIDE.contains(&word.trim_ascii());
    }
    own
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
    use super::without_machine_wide;

    #[test]
    fn what_belongs_to_the_machine_is_left_out() {
        let shown = b"sockets: used 3\nTCP: inuse 1 orphan 7 tw 2 alloc 12 mem 345\nFRAG: inuse 0 memory 0\n";
        let own = b"sockets: used 3\nTCP: inuse 1 orphan tw 2 alloc mem \nFRAG: inuse 0 memory \n";
        assert_eq!(without_machine_wide(shown), own);
    }
}
