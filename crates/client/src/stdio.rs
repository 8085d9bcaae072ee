//! The fds of a launch: what is passed, what the host keeps, and which fds may be passed at all.
//!
//! Promises: the host's ends are close-on-exec and non-blocking, the program's are blocking; nothing leaks when a later step
//! fails; an fd that would lead out of a sandbox (a directory, an `O_PATH` fd, a socket) is refused unless the caller
//! vouches for it. Called by the client for each launch, before anything is sent.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nestbox_protocol::{self as protocol, FdGrant, FdRole, Step};
use nestbox_sys::{Errno, socket};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Gid, Uid, fchown, pipe2};

use crate::capture::{Capture, Input, OnOverflow, Stream};
use crate::channel::PassedFd;
use crate::failure::{Code, Failure};

/// The sandboxee's fd for the comms socket: `kSandbox2ClientCommsFD` of sandbox2.
pub const COMMS_FD: u32 = 1023;

/// What one standard stream is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stdio {
    /// `/dev/null`.
    #[default]
    Ignore,
    /// This crate: output is captured, input is written from memory.
    Native,
    /// A pipe whose other end is returned to the caller.
    Stream,
    /// Standard error: the same pipe as standard output.
    SameAsStdout,
    /// An fd of the caller, who keeps it.
    Fd(RawFd),
}

/// What a further fd is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// One end of a stream socket pair, the other of which is returned to the caller.
    Stream,
    /// An fd of the caller, who keeps it.
    Fd(RawFd),
}

/// How a sandboxee's comms fd is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Comms {
    /// There is none.
    #[default]
    None,
    /// A stream socket pair, the other end of which is returned.
    Stream,
    /// A packet socket pair, the other end of which is returned: for zygotes, which speak the protocol.
    Packets,
    /// An fd of the caller, who keeps it.
    Fd(RawFd),
}

/// All fds that a request names.
#[derive(Debug, Default)]
pub struct Fds<'a> {
    /// Standard input, output and error.
    pub stdio: [Stdio; 3],
    /// Further fds, by their number in the sandboxee.
    pub extra: Vec<(u32, Extra)>,
    /// What to write to a [`Stdio::Native`] standard input.
    pub input: Option<&'a [u8]>,
    /// The comms socket, fd [`COMMS_FD`].
    pub comms: Comms,
    /// Refuse fds that lead out of a sandbox.
    pub check: bool,
    /// How many bytes of output to keep, both streams together.
    pub output_limit: Option<u64>,
    /// What to do with more.
    pub on_overflow: OnOverflow,
}

/// The caller's ends.
#[derive(Debug, Default)]
pub struct Returned {
    /// Write end of standard input.
    pub stdin: Option<OwnedFd>,
    /// Read end of standard output.
    pub stdout: Option<OwnedFd>,
    /// Read end of standard error.
    pub stderr: Option<OwnedFd>,
    /// The comms socket.
    pub comms: Option<OwnedFd>,
    /// One for each [`Extra::Stream`], in order.
    pub extra: Vec<OwnedFd>,
}

impl Returned {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { stdin, stdout, stderr, comms, extra } = self;
        [stdin, stdout, stderr, comms].iter().all(|end| end.is_none()) && extra.is_empty()
    }
}

/// What became of a request's fds.
pub(crate) struct Wired {
    pub(crate) roles: Vec<protocol::PassedFd>,
    pub(crate) passed: Vec<PassedFd>,
    pub(crate) returned: Returned,
    pub(crate) capture: Option<Capture>,
    pub(crate) input: Option<Input>,
}

impl Wired {
    /// Passes one more fd.
    pub(crate) fn pass(&mut self, role: FdRole, number: u32, fd: PassedFd) {
        let grant = match fd {
            PassedFd::Lent(raw) if matches!(role, FdRole::Stdio | FdRole::Exec) => grant(raw),
            // Pipes and sockets that were made for the launch, and namespaces.
            _ => FdGrant::None,
        };
        self.roles.push(protocol::PassedFd { role: role.into(), number, grant: grant.into() });
        self.passed.push(fd);
    }
}

/// What a program may open the file of an fd again as, where Landlock is enforced: what the fd is open as, so that a file
/// passed for reading is not written to by way of `/proc/self/fd`.
fn grant(raw: RawFd) -> FdGrant {
    // SAFETY: only lent for the calls below, which answer EBADF for what is no open fd.
    let fd = unsafe { BorrowedFd::borrow_raw(raw) };
    let (Ok(status), Ok(flags)) = (fstat(fd), fcntl(fd, FcntlArg::F_GETFL)) else { return FdGrant::None };
    let flags = OFlag::from_bits_truncate(flags);
    match SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => FdGrant::Directory,
        SFlag::S_IFSOCK => FdGrant::None,
        // Who vouched for it vouched for whatever it can be opened as.
        _ if flags.contains(OFlag::O_PATH) => FdGrant::ReadWrite,
        _ => match flags & OFlag::O_ACCMODE {
            OFlag::O_RDONLY => FdGrant::Read,
            OFlag::O_WRONLY => FdGrant::Write,
            _ => FdGrant::ReadWrite,
        },
    }
}

fn failure(syscall: &str) -> impl Fn(Errno) -> Failure {
    move |errno| Failure::system(Code::Spawn, Step::MapFds, syscall, errno)
}

/// A pipe as a launch needs it.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// Makes a pipe for fd `number`. `owner`: whom it shall belong to, so that the program may open it again as `/dev/stdout`.
fn pipe(number: usize, owner: Option<(u32, u32)>) -> Result<Pipe, Failure> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(failure("pipe2"))?;
    if let Some((uid, gid)) = owner {
        fchown(&read, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(|errno| failure("fchown")(errno).on(format!("a pipe (for fd {number})")))?;
    }
    Ok(Pipe { read, write })
}

fn non_blocking(fd: OwnedFd, access: OFlag) -> Result<OwnedFd, Failure> {
    fcntl(&fd, FcntlArg::F_SETFL(access | OFlag::O_NONBLOCK)).map_err(failure("fcntl"))?;
    Ok(fd)
}

/// A number of the caller's as an fd, for calls which answer EBADF for what is no open one.
fn lent<'fd>(raw: RawFd) -> Result<BorrowedFd<'fd>, Errno> {
    // SAFETY: no negative number, and nothing is closed by it.
    if raw < 0 { Err(Errno::EBADF) } else { Ok(unsafe { BorrowedFd::borrow_raw(raw) }) }
}

/// Has an fd of the caller's block again. Who opened a file for a program without waiting for anybody passes what the program
/// expects; the flag belongs to the open file, which both share.
pub fn block(raw: RawFd) -> Result<(), Errno> {
    let fd = lent(raw)?;
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Makes all that a launch needs. `owner`: see [`pipe`]. A standard stream that is not passed is `/dev/null` inside.
pub(crate) fn wire(fds: &Fds<'_>, owner: Option<(u32, u32)>) -> Result<Wired, Failure> {
    let mut wired = Wired {
        roles: Vec::with_capacity(6),
        passed: Vec::with_capacity(8),
        returned: Returned::default(),
        capture: None,
        input: None,
    };
    let checked = |fd: RawFd, number: u32| check(fd, number, fds.check).map(|()| PassedFd::Lent(fd));

    let stdin = match fds.stdio[0] {
        Stdio::Ignore | Stdio::SameAsStdout => None,
        Stdio::Fd(fd) => Some(checked(fd, 0)?),
        Stdio::Native => {
            let Pipe { read, write } = pipe(0, owner)?;
            let write = non_blocking(write, OFlag::O_WRONLY)?;
            wired.input = Input::start(write, fds.input.unwrap_or_default());
            Some(PassedFd::Owned(read))
        }
        Stdio::Stream => {
            let Pipe { read, write } = pipe(0, owner)?;
            wired.returned.stdin = Some(non_blocking(write, OFlag::O_WRONLY)?);
            Some(PassedFd::Owned(read))
        }
    };
    if let Some(stdin) = stdin {
        wired.pass(FdRole::Stdio, 0, stdin);
    }

    for (number, stream) in [(1, Stream::Stdout), (2, Stream::Stderr)] {
        let fd = match fds.stdio[number] {
            Stdio::SameAsStdout if stream == Stream::Stderr => {
                let stdout = wired.roles.iter().position(|role| role.number == 1);
                match stdout.map(|index| wired.passed[index].again().map_err(failure("dup"))) {
                    Some(fd) => fd?,
                    None => continue,
                }
            }
            Stdio::Ignore | Stdio::SameAsStdout => continue,
            Stdio::Fd(fd) => checked(fd, number as u32)?,
            Stdio::Native => {
                let Pipe { read, write } = pipe(number, owner)?;
                let capture =
                    wired.capture.get_or_insert_with(|| Capture::new(fds.output_limit, fds.on_overflow));
                capture.attach(stream, non_blocking(read, OFlag::O_RDONLY)?);
                PassedFd::Owned(write)
            }
            Stdio::Stream => {
                let Pipe { read, write } = pipe(number, owner)?;
                let ours = Some(non_blocking(read, OFlag::O_RDONLY)?);
                match stream {
                    Stream::Stdout => wired.returned.stdout = ours,
                    Stream::Stderr => wired.returned.stderr = ours,
                }
                PassedFd::Owned(write)
            }
        };
        wired.pass(FdRole::Stdio, number as u32, fd);
    }

    for &(number, extra) in &fds.extra {
        let fd = match extra {
            Extra::Fd(fd) => checked(fd, number)?,
            Extra::Stream => {
                let (ours, theirs) = socket::stream_pair().map_err(failure("socketpair"))?;
                wired.returned.extra.push(ours);
                PassedFd::Owned(theirs)
            }
        };
        wired.pass(FdRole::Stdio, number, fd);
    }
    wire_comms(fds.comms, &mut wired)?;
    Ok(wired)
}

fn wire_comms(comms: Comms, wired: &mut Wired) -> Result<(), Failure> {
    let pair = match comms {
        Comms::None => return Ok(()),
        Comms::Fd(fd) => {
            // A socket by its nature: the caller means it.
            check(fd, COMMS_FD, false)?;
            wired.pass(FdRole::Stdio, COMMS_FD, PassedFd::Lent(fd));
            return Ok(());
        }
        Comms::Stream => socket::stream_pair(),
        Comms::Packets => socket::seqpacket_pair(),
    };
    let (ours, theirs) = pair.map_err(failure("socketpair"))?;
    wired.returned.comms = Some(ours);
    wired.pass(FdRole::Stdio, COMMS_FD, PassedFd::Owned(theirs));
    Ok(())
}

/// Whether fd `raw` may be passed as fd `number`: it must be open, and with `strict` be nothing that leads further than
/// itself: through a directory a program walks, an `O_PATH` fd can be a directory's, through a socket come other fds.
pub(crate) fn check(raw: RawFd, number: u32, strict: bool) -> Result<(), Failure> {
    let refuse = |code, syscall, errno| {
        Err(Failure::system(code, Step::MapFds, syscall, errno).on(format!("fd {raw} (for fd {number})")))
    };
    let (fd, status) = match lent(raw).and_then(|fd| Ok((fd, fstat(fd)?))) {
        Ok(found) => found,
        Err(errno) => return refuse(Code::Request, "fstat", errno),
    };
    if !strict {
        return Ok(());
    }
    let kind = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT;
    let flags = match fcntl(fd.as_fd(), FcntlArg::F_GETFL) {
        Ok(flags) => OFlag::from_bits_truncate(flags),
        Err(errno) => return refuse(Code::Request, "fcntl", errno),
    };
    let what = if kind == SFlag::S_IFDIR {
        "a directory"
    } else if flags.contains(OFlag::O_PATH) {
        "an O_PATH fd"
    } else if kind == SFlag::S_IFSOCK {
        "a socket"
    } else {
        return Ok(());
    };
    Err(Failure::fact(
        Code::UnsafeFd,
        Step::MapFds,
        format!("fd {raw} (for fd {number}) is {what}, which leads out of the sandbox"),
    )
    .advise("pass { fd, unsafe: true } if that is what you want"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;

    fn null() -> File {
        File::options().read(true).write(true).open("/dev/null").expect("null")
    }

    #[test]
    fn fds_that_lead_out_are_refused() {
        let directory = File::open("/").expect("root");
        let path = File::options().read(true).custom_flags(libc::O_PATH).open("/dev/null").expect("O_PATH");
        let (left, _right) = socket::stream_pair().expect("pair");
        for fd in [directory.as_raw_fd(), path.as_raw_fd(), left.as_raw_fd()] {
            let failure = check(fd, 5, true).expect_err("refused");
            assert_eq!(failure.code, Code::UnsafeFd);
            check(fd, 5, false).expect("vouched for");
        }
        check(null().as_raw_fd(), 5, true).expect("harmless");
        assert_eq!(check(-1, 5, false).expect_err("no fd").errno, Errno::EBADF);
    }

    #[test]
    fn what_was_opened_without_waiting_blocks_again() {
        let flags = |file: &File| OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL).expect("F_GETFL"));
        let mut options = File::options();
        let file = options.append(true).custom_flags(libc::O_NONBLOCK).open("/dev/null").expect("null");
        let before = flags(&file);
        assert!(before.contains(OFlag::O_APPEND | OFlag::O_NONBLOCK));
        block(file.as_raw_fd()).expect("blocks");
        assert_eq!(flags(&file), before - OFlag::O_NONBLOCK);
        assert_eq!(block(-1), Err(Errno::EBADF));
    }

    #[test]
    fn every_form_is_wired() {
        let fds = Fds {
            stdio: [Stdio::Native, Stdio::Stream, Stdio::SameAsStdout],
            extra: vec![(7, Extra::Stream)],
            input: Some(b"hello"),
            comms: Comms::Stream,
            check: true,
            ..Fds::default()
        };
        let wired = wire(&fds, None).expect("wired");
        let numbers: Vec<u32> = wired.roles.iter().map(|role| role.number).collect();
        assert_eq!(numbers, [0, 1, 2, 7, COMMS_FD]);
        assert!(wired.input.is_none(), "written and closed at once");
        assert!(wired.returned.stdout.is_some() && wired.returned.stderr.is_none());
        assert_eq!((wired.returned.extra.len(), wired.returned.comms.is_some()), (1, true));
    }
}
