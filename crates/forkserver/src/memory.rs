//! Reading what a stopped call's pointers lead to, in the process that made it.
//!
//! Promises: a bounded number of bytes, copied once; nothing of it is interpreted but where a string ends; a pointer that
//! leads nowhere is no error. Reading another process's memory can wait for whoever serves its page faults. In a nest that
//! could be the program itself, by userfaultfd(2), and it could have init wait for ever; so [`may_read`] says no where the
//! filter lets that call through. Used by [`crate::notify`].

use std::os::fd::RawFd;

use nestbox_policy::bpf::{self, Call};
use nestbox_sys::raw::SysResult;

use crate::arguments::Region;
use crate::remains::{open_of, read_all};
use crate::report::Encoder;

/// The most bytes that are read for one call.
pub(crate) const BUDGET: usize = 16 * 1024;

/// The longest string (`PATH_MAX`) and the most bytes of data.
const REGION_MAX: usize = 4096;

/// `struct sockaddr_storage`.
const ADDRESS_MAX: usize = 128;

/// A read that ends at a page's end reads the whole or nothing.
const PAGE: usize = 4096;

/// Whether a filter makes sure that no process of the nest serves the page faults of another.
pub(crate) fn may_read(filter: &[u8]) -> bool {
    let flags = [0, libc::O_CLOEXEC, libc::O_NONBLOCK, libc::O_CLOEXEC | libc::O_NONBLOCK];
    // The kernel looks at the low half.
    let all = flags.into_iter().flat_map(|flags| [flags as u64, flags as u64 | 0xffff_ffff_0000_0000]);
    let verdict = |flags| {
        let call = Call {
            number: libc::SYS_userfaultfd as u32,
            architecture: bpf::ARCHITECTURE,
            arguments: [flags, 0, 0, 0, 0, 0],
            ..Call::default()
        };
        bpf::evaluate(filter, &call)
    };
    all.into_iter().all(|flags| verdict(flags).is_some_and(|verdict| verdict & bpf::ACTION != bpf::ALLOW))
}

/// Reads as much of `buffer` from `address` in the process of thread `tid` as there is.
fn read(tid: i32, address: u64, buffer: &mut [u8], until: Option<u8>) -> usize {
    let mut filled = 0;
    while filled < buffer.len() {
        let Some(from) = usize::try_from(address).ok().and_then(|address| address.checked_add(filled)) else {
            break;
        };
        let length = (PAGE - from % PAGE).min(buffer.len() - filled);
        let chunk = &mut buffer[filled..filled + length];
        let Ok(read) = read_chunk(tid, from, chunk) else { break };
        filled += read;
        if read < length || until.is_some_and(|byte| buffer[filled - read..filled].contains(&byte)) {
            break;
        }
    }
    filled
}

/// process_vm_readv(2).
fn read_chunk(tid: i32, from: usize, chunk: &mut [u8]) -> SysResult {
    let local = libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: chunk.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(from), iov_len: chunk.len() };
    // SAFETY: one buffer of ours, as long as said; the other address is checked by the kernel.
    unsafe {
        nestbox_sys::syscall!(libc::SYS_process_vm_readv, tid, &raw const local, 1, &raw const remote, 1, 0)
    }
}

/// Field numbers of `nestbox.Memory` and values of `MemoryKind`.
mod field {
    pub(super) const ARGUMENT: u32 = 1;
    pub(super) const KIND: u32 = 2;
    pub(super) const CONTENT: u32 = 3;
    pub(super) const CUT: u32 = 4;
}

/// `nestbox.SystemCall.memory`.
const MEMORY: u32 = 7;

/// Appends a region of a call with these arguments as one `nestbox.Memory`, if there is anything to be read.
pub(crate) fn encode<const N: usize>(
    record: &mut Encoder<N>,
    tid: i32,
    region: Region,
    args: &[u64; 6],
    budget: &mut usize,
) {
    use nestbox_protocol::MemoryKind;
    // An int, or a size that is larger than what is read anyway.
    let length = |at: usize| usize::try_from(args[at]).unwrap_or(usize::MAX);
    let (at, kind, wanted, most) = match region {
        Region::Path(at) => (at, MemoryKind::Path, REGION_MAX, REGION_MAX),
        Region::Address(at, length_at) => {
            (at, MemoryKind::Address, args[length_at] as u32 as usize, ADDRESS_MAX)
        }
        Region::Data(at, length_at) => (at, MemoryKind::Data, length(length_at), REGION_MAX),
    };
    if args[at] == 0 {
        return;
    }
    let mut buffer = [0; REGION_MAX];
    let room = &mut buffer[..wanted.min(most).min(*budget)];
    let until = (kind == MemoryKind::Path).then_some(0);
    let filled = read(tid, args[at], room, until);
    let found = &buffer[..filled];
    let (content, whole) = match (kind, found.iter().position(|&byte| byte == 0)) {
        (MemoryKind::Path, Some(end)) => (&found[..end], true),
        (MemoryKind::Path, None) => (found, false),
        _ => (found, filled == wanted),
    };
    if filled == 0 {
        return;
    }
    *budget -= filled;
    let mut numbers = Encoder::<16>::new();
    numbers.number(field::ARGUMENT, at as u64);
    numbers.signed(field::KIND, kind as i32);
    numbers.number(field::CUT, u64::from(!whole));
    record.nested(MEMORY, &numbers, field::CONTENT, content);
}

/// The process that a thread of the nest belongs to; 0 if that can't be known. `proc` is of the nest's pid namespace.
pub(crate) fn process_of(tid: i32, main: i32, proc: Option<RawFd>) -> i32 {
    if tid == main {
        return main;
    }
    let Some(Ok(file)) = proc.map(|proc| open_of(proc, tid, b"/status")) else { return 0 };
    let mut text = [0_u8; 512];
    let read = read_all(&file, &mut text);
    // The name comes first, and newlines in it are escaped.
    let text = &text[..read.unwrap_or(0)];
    text.split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"Tgid:\t"))
        .and_then(|number| std::str::from_utf8(number).ok()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn own() -> i32 {
        // SAFETY: takes nothing.
        unsafe { libc::gettid() }
    }

    #[test]
    fn reads_across_pages_and_stops_where_there_is_nothing() {
        // SAFETY: a mapping of our own.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                3 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        let start = base as usize;
        let last = std::ptr::without_provenance_mut(start + 2 * PAGE);
        // SAFETY: the last page of it.
        assert_eq!(unsafe { libc::munmap(last, PAGE) }, 0);
        // SAFETY: two pages of ours.
        unsafe { std::ptr::write_bytes(base.cast::<u8>(), b'x', 2 * PAGE) };
        let mut buffer = [0; 2 * PAGE];
        let at = (start + 2 * PAGE - 10) as u64;
        assert_eq!(read(own(), at, &mut buffer, None), 10);
        assert_eq!(read(own(), (start + 100) as u64, &mut buffer, None), 2 * PAGE - 100);
        assert_eq!(read(own(), (start + 2 * PAGE) as u64, &mut buffer, None), 0);
        assert_eq!(read(own(), u64::MAX - 3, &mut buffer, None), 0);
        assert_eq!(read(-1, start as u64, &mut buffer, None), 0);
        // SAFETY: ours, and used no more.
        unsafe { libc::munmap(base, 2 * PAGE) };
    }

    #[test]
    fn a_filter_that_lets_programs_serve_page_faults_is_known() {
        let refuse = bpf::Instruction { code: 0x06, jump_true: 0, jump_false: 0, value: bpf::KILL_PROCESS };
        let ask = bpf::Instruction { value: bpf::REPORT, ..refuse };
        let allow = bpf::Instruction { value: bpf::ALLOW, ..refuse };
        assert!(may_read(&refuse.to_bytes()) && may_read(&ask.to_bytes()));
        assert!(!may_read(&allow.to_bytes()) && !may_read(&[]));
        // Allowed with O_NONBLOCK alone: argument 0, low half.
        let conditional = [
            bpf::Instruction { code: 0x20, value: 16, ..refuse },
            bpf::Instruction { code: 0x15, jump_true: 1, value: libc::O_NONBLOCK as u32, ..refuse },
            refuse,
            allow,
        ];
        assert!(!may_read(&conditional.map(bpf::Instruction::to_bytes).concat()));
    }

    #[test]
    fn tells_the_process_of_a_thread() {
        let proc = std::fs::File::open("/proc").expect("proc");
        let process = std::process::id() as i32;
        let found = std::thread::scope(|scope| {
            scope.spawn(|| process_of(own(), 0, Some(proc.as_raw_fd()))).join().expect("joined")
        });
        assert_eq!(found, process);
        assert_eq!(process_of(i32::MAX, 0, Some(proc.as_raw_fd())), 0);
        assert_eq!((process_of(7, 7, None), process_of(7, 8, None)), (7, 0));
    }
}
