//! One epoll(7) instance over everything that the client waits for.
//!
//! Each watched fd has a [`Key`], what it is and whose; keys are never used twice, so an event that was already fetched
//! when its owner went away finds nobody and is dropped. Level-triggered: what is not taken now is reported again. Called
//! by the client, which is itself polled on [`Reactor::fd`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use nestbox_sys::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// What a watched fd is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The fork server's control socket.
    Control,
    /// The mounter's control socket.
    Mounter,
    /// The network keeper's control socket.
    Keeper,
    /// A template's control socket; the id is the template's.
    Template,
    /// A launch's socket; here and below the id is the launch's token.
    Launch,
    /// The read end of a captured standard output.
    Stdout,
    /// The read end of a captured standard error.
    Stderr,
    /// The write end of a standard input.
    Stdin,
    /// A zygote's control socket, while a request waits for room in it.
    Zygote,
    /// The answer socket of an `INITIALIZE` request that a caller made.
    Initialize,
    /// Results of the thread that reads large outputs.
    Reader,
    /// Our own wake-up: events are waiting to be fetched.
    Wake,
    /// The timer.
    Timer,
    /// The socket of a warm nest that has no launch yet.
    Nest,
}

const KINDS: [Kind; 14] = [
    Kind::Control,
    Kind::Mounter,
    Kind::Keeper,
    Kind::Template,
    Kind::Launch,
    Kind::Stdout,
    Kind::Stderr,
    Kind::Stdin,
    Kind::Zygote,
    Kind::Initialize,
    Kind::Reader,
    Kind::Wake,
    Kind::Timer,
    Kind::Nest,
];

/// What and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) id: u64,
}

impl Key {
    pub(crate) fn new(kind: Kind, id: u64) -> Self {
        Self { kind, id }
    }

    fn pack(self) -> u64 {
        self.id << 4 | self.kind as u64
    }

    fn unpack(data: u64) -> Option<Self> {
        Some(Self { kind: *KINDS.get((data & 15) as usize)?, id: data >> 4 })
    }
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Only that the peer has gone, which epoll(7) always tells.
    Nothing,
    Read,
    Write,
    ReadAndWrite,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Nothing => EpollFlags::empty(),
            Self::Read => EpollFlags::EPOLLIN,
            Self::Write => EpollFlags::EPOLLOUT,
            Self::ReadAndWrite => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
        }
    }
}

/// One event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Readiness {
    pub(crate) key: Key,
    /// There is something to read, or the peer has gone.
    pub(crate) readable: bool,
    /// There is room to write, or the peer has gone.
    pub(crate) writable: bool,
}

/// How many events are fetched at once.
const BATCH: usize = 64;

pub(crate) struct Reactor {
    epoll: Epoll,
    wake: EventFd,
    timer: TimerFd,
}

impl Reactor {
    pub(crate) fn new() -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let reactor = Self { epoll, wake, timer };
        reactor.add(reactor.wake.as_fd(), Key::new(Kind::Wake, 0), Interest::Read)?;
        reactor.add(reactor.timer.as_fd(), Key::new(Kind::Timer, 0), Interest::Read)?;
        Ok(reactor)
    }

    /// The fd that is readable when there is something to fetch.
    pub(crate) fn fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }

    pub(crate) fn add(&self, fd: BorrowedFd<'_>, key: Key, interest: Interest) -> Result<(), Errno> {
        self.epoll.add(fd, EpollEvent::new(interest.flags(), key.pack()))
    }

    pub(crate) fn modify(&self, fd: BorrowedFd<'_>, key: Key, interest: Interest) -> Result<(), Errno> {
        self.epoll.modify(fd, &mut EpollEvent::new(interest.flags(), key.pack()))
    }

    /// Stops watching an fd that stays open, here or elsewhere. What is closed for good needs no such call (epoll(7),
    /// "Will closing a file descriptor ...").
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        // ENOENT: it was never watched.
        let _ = self.epoll.delete(fd);
    }

    /// Makes [`Reactor::fd`] readable.
    pub(crate) fn wake(&self) {
        // EAGAIN: it is readable already.
        let _ = self.wake.write(1);
    }

    /// Takes the wake-up back.
    pub(crate) fn awake(&self) {
        let _ = self.wake.read();
    }

    /// Has [`Kind::Timer`] reported once, this much later.
    pub(crate) fn set_timer(&self, delay: Duration) {
        let expiration = Expiration::OneShot(TimeSpec::from_duration(delay));
        // Fails for a negative time only.
        let _ = self.timer.set(expiration, TimerSetTimeFlags::empty());
    }

    /// Takes the timer's report.
    pub(crate) fn timer_went_off(&self) {
        // EAGAIN: it was set anew meanwhile.
        let _ = self.timer.wait();
    }

    /// Fetches what is ready now, without waiting. True if there may be more.
    pub(crate) fn fetch(&self, ready: &mut Vec<Readiness>) -> bool {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        ready.extend(events[..count].iter().filter_map(|event| {
            let gone = event.events().intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
            Some(Readiness {
                key: Key::unpack(event.data())?,
                readable: gone || event.events().contains(EpollFlags::EPOLLIN),
                writable: gone || event.events().contains(EpollFlags::EPOLLOUT),
            })
        }));
        count == BATCH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_packing() {
        for (index, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
            let key = Key::new(kind, 1 << 50 | 7);
            assert_eq!(Key::unpack(key.pack()), Some(key));
        }
    }

    #[test]
    fn wakes_and_calms_down() {
        let reactor = Reactor::new().expect("epoll");
        let mut ready = Vec::new();
        reactor.wake();
        assert!(!reactor.fetch(&mut ready));
        assert_eq!(ready[0].key.kind, Kind::Wake);
        reactor.awake();
        ready.clear();
        reactor.fetch(&mut ready);
        assert!(ready.is_empty());
    }
}
