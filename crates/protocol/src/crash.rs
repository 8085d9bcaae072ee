//! What was captured of a crash, as bytes: written by the init of the nest, read by `crates/symbolize` in a sandbox.
//!
//! A sequence of records, each a head of [`HEAD_SIZE`] bytes and a body: `kind` and `tid` (32 bits), `value` and the length
//! of the body (64 bits), in the machine's own order. Records come in no order but the one in which they were made; one
//! that is cut short ends the sequence. Only the heads are to be believed: bodies are what the program, which may have
//! been hostile, left behind.

/// `tid` died first, or brought it about, of the signal `value`; the body is [`MACHINE`].
pub const HEAD: u32 = 1;
/// Thread `tid` was sent the signal `value`, of which the body tells: a `siginfo_t`.
pub const SIGNAL: u32 = 2;
/// The memory map: `/proc/PID/maps`.
pub const MAPS: u32 = 3;
/// The registers of thread `tid`: NT_PRSTATUS.
pub const THREAD: u32 = 4;
/// The name of thread `tid`, with a newline at its end.
pub const NAME: u32 = 5;
/// Memory at address `value`, which thread `tid` uses as its stack.
pub const STACK: u32 = 6;
/// The file number `tid` that comes with the capture is, or was, mapped under the path in the body (escaped as in the map).
pub const MODULE: u32 = 7;
/// What was left out: `value` has the bits `TRUNCATED_*`.
pub const TRUNCATED: u32 = 8;

/// There were more threads.
pub const TRUNCATED_THREADS: u64 = 1;
/// A stack was longer.
pub const TRUNCATED_STACKS: u64 = 2;
/// The memory map was longer.
pub const TRUNCATED_MAPS: u64 = 4;
/// There were more files.
pub const TRUNCATED_MODULES: u64 = 8;

/// How many files the host gets to see: with as many outputs as there can be, one packet's fds.
pub const MODULES: usize = 48;

/// The symboliser's fds: the capture, and the first of the files.
pub const CAPTURE_FD: u32 = 3;
/// See [`CAPTURE_FD`].
pub const FIRST_MODULE_FD: u32 = 4;

/// The size of a record's head.
pub const HEAD_SIZE: usize = 24;

/// A record's head.
#[must_use]
pub fn head(kind: u32, tid: u32, value: u64, length: usize) -> [u8; HEAD_SIZE] {
    let mut head = [0; HEAD_SIZE];
    head[..4].copy_from_slice(&kind.to_ne_bytes());
    head[4..8].copy_from_slice(&tid.to_ne_bytes());
    head[8..16].copy_from_slice(&value.to_ne_bytes());
    head[16..].copy_from_slice(&(length as u64).to_ne_bytes());
    head
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// One of the kinds above.
    pub kind: u32,
    /// A thread, or a number.
    pub tid: u32,
    /// See the kinds.
    pub value: u64,
    /// See the kinds.
    pub body: &'a [u8],
}

/// The records of a capture.
pub fn records(mut bytes: &[u8]) -> impl Iterator<Item = Record<'_>> {
    std::iter::from_fn(move || {
        let word = |from: usize| bytes.get(from..from + 8)?.try_into().ok().map(u64::from_ne_bytes);
        let half = |from: usize| bytes.get(from..from + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let (kind, tid, value, length) = (half(0)?, half(4)?, word(8)?, usize::try_from(word(16)?).ok()?);
        let body = bytes.get(HEAD_SIZE..)?.get(..length)?;
        bytes = &bytes[HEAD_SIZE + length..];
        Some(Record { kind, tid, value, body })
    })
}

/// The machine whose registers they are.
#[cfg(target_arch = "x86_64")]
pub const MACHINE: &[u8] = b"x64";
/// The machine whose registers they are.
#[cfg(target_arch = "aarch64")]
pub const MACHINE: &[u8] = b"arm64";

/// The names of its registers, in the order of NT_PRSTATUS; 64 bits each.
#[cfg(target_arch = "x86_64")]
pub const REGISTERS: &[&str] = &[
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
];
/// The names of its registers, in the order of NT_PRSTATUS; 64 bits each.
#[cfg(target_arch = "aarch64")]
pub const REGISTERS: &[&str] = &[
    "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15",
    "x16", "x17", "x18", "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "x29", "x30",
    "sp", "pc", "pstate",
];

/// Where the stack pointer is among them.
#[cfg(target_arch = "x86_64")]
pub const STACK_POINTER: usize = 19;
/// Where the stack pointer is among them.
#[cfg(target_arch = "aarch64")]
pub const STACK_POINTER: usize = 31;

/// A register of a set that is large enough; else 0.
#[must_use]
pub fn register(registers: &[u8], index: usize) -> u64 {
    registers.chunks_exact(8).nth(index).map_or(0, |word| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        u64::from_ne_bytes(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_up_to_the_first_that_is_cut() {
        let mut bytes = Vec::new();
        for (kind, body) in [(MAPS, &b"maps"[..]), (STACK, b""), (NAME, b"name")] {
            bytes.extend_from_slice(&head(kind, 7, u64::MAX, body.len()));
            bytes.extend_from_slice(body);
        }
        let all: Vec<Record<'_>> = records(&bytes).collect();
        assert_eq!(all.len(), 3);
        assert_eq!(all[0], Record { kind: MAPS, tid: 7, value: u64::MAX, body: b"maps" });
        assert_eq!(records(&bytes[..bytes.len() - 1]).count(), 2);
        bytes[16..24].copy_from_slice(&u64::MAX.to_ne_bytes());
        assert_eq!(records(&bytes).count(), 0);
    }

    #[test]
    fn registers_are_found() {
        let bytes: Vec<u8> = (0..40_u64).flat_map(u64::to_ne_bytes).collect();
        assert_eq!(register(&bytes, STACK_POINTER), STACK_POINTER as u64);
        assert_eq!(register(&bytes[..20], STACK_POINTER), 0);
    }
}
