//! The capture, sorted: which thread has which registers, name and stack.
//!
//! Promises: a capture that is cut short or makes no sense gives less, never an error.

use std::collections::BTreeMap;

use nestbox_protocol::crash;

/// A line of the memory map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) permissions: String,
    /// In the file.
    pub(crate) offset: u64,
    /// As it stands there, escapes and all.
    pub(crate) path: Vec<u8>,
}

impl Mapping {
    pub(crate) fn is_code(&self) -> bool {
        self.permissions.as_bytes().get(2) == Some(&b'x')
    }
}

/// A thread at its end.
#[derive(Debug)]
pub(crate) struct Thread<'a> {
    pub(crate) tid: u32,
    pub(crate) name: &'a [u8],
    pub(crate) registers: &'a [u8],
}

/// All that was captured.
#[derive(Debug, Default)]
pub(crate) struct Capture<'a> {
    pub(crate) signal: u64,
    /// Who died first, or brought it about.
    first: u32,
    /// The thread that the signal was for, and what it said.
    pub(crate) siginfo: Option<(u32, &'a [u8])>,
    pub(crate) maps: Vec<Mapping>,
    pub(crate) threads: Vec<Thread<'a>>,
    /// By address.
    memory: BTreeMap<u64, &'a [u8]>,
    /// Number and path of each file.
    pub(crate) modules: Vec<(u32, &'a [u8])>,
    pub(crate) truncated: u64,
}

impl<'a> Capture<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Self {
        let mut all = Self::default();
        for crash::Record { kind, tid, value, body } in crash::records(bytes) {
            match kind {
                crash::HEAD => (all.first, all.signal) = (tid, value),
                crash::SIGNAL => all.siginfo = Some((tid, body)),
                crash::MAPS => all.maps = body.split(|&byte| byte == b'\n').filter_map(mapping).collect(),
                crash::THREAD => all.threads.push(Thread { tid, name: b"", registers: body }),
                crash::NAME => {
                    if let Some(thread) = all.threads.iter_mut().find(|thread| thread.tid == tid) {
                        thread.name = body.strip_suffix(b"\n").unwrap_or(body);
                    }
                }
                crash::STACK => {
                    all.memory.insert(value, body);
                }
                crash::MODULE => all.modules.push((tid, body)),
                crash::TRUNCATED => all.truncated = value,
                _ => {}
            }
        }
        let crashed = all.crashed();
        all.threads.sort_by_key(|thread| thread.tid != crashed);
        all
    }

    /// The thread that was hit.
    pub(crate) fn crashed(&self) -> u32 {
        let refused = || self.threads.iter().find(|thread| was_refused(thread.registers));
        self.siginfo
            .map(|(tid, _)| tid)
            .or_else(|| if self.signal == SIGSYS { Some(refused()?.tid) } else { None })
            .unwrap_or(self.first)
    }

    /// A word of a stack.
    pub(crate) fn word(&self, address: u64) -> Option<u64> {
        let (start, memory) = self.memory.range(..=address).next_back()?;
        let from = usize::try_from(address - start).ok()?;
        let word = memory.get(from..from.checked_add(8)?)?;
        Some(crash::register(word, 0))
    }

    /// What is mapped at an address.
    pub(crate) fn mapping(&self, address: u64) -> Option<&Mapping> {
        self.maps.iter().find(|mapping| (mapping.start..mapping.end).contains(&address))
    }
}

const SIGSYS: u64 = 31;

/// Of a filter's kill no signal tells. But the kernel has rolled the call back that was refused, so that its number is
/// where the answer of any other call would be.
#[cfg(target_arch = "x86_64")]
fn was_refused(registers: &[u8]) -> bool {
    const RAX: usize = 10;
    const ORIG_RAX: usize = 15;
    let number = crash::register(registers, ORIG_RAX);
    number.cast_signed() >= 0 && number == crash::register(registers, RAX)
}

/// There is nothing to tell it by.
#[cfg(not(target_arch = "x86_64"))]
fn was_refused(_registers: &[u8]) -> bool {
    false
}

/// `start-end perms offset device inode   path`.
fn mapping(line: &[u8]) -> Option<Mapping> {
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let (start, end) = text()?.split_once('-')?;
    let (permissions, offset) = (text()?.to_owned(), text()?);
    let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
    Some(Mapping {
        start: hexadecimal(start)?,
        end: hexadecimal(end)?,
        permissions,
        offset: hexadecimal(offset)?,
        path: fields.nth(2).unwrap_or_default().trim_ascii_start().to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_map_are_read() {
        let line = b"7f0000001000-7f0000002000 r-xp 00003000 00:21 17                   /usr/lib/a b.so";
        let wanted = Mapping {
            start: 0x7f00_0000_1000,
            end: 0x7f00_0000_2000,
            permissions: "r-xp".into(),
            offset: 0x3000,
            path: b"/usr/lib/a b.so".to_vec(),
        };
        assert_eq!(mapping(line), Some(wanted));
        assert_eq!(mapping(b"1000-2000 rw-p 00000000 00:00 0 ").expect("anonymous").path, b"");
        assert_eq!(mapping(b"1000-2000 rw-p 00000000 00:00 0").expect("anonymous").path, b"");
        for broken in [&b""[..], b"-", b"1-2", b"x-y r-xp 0 0 0", b"1-2 r-xp", b"\xff\xff-1 r-xp 0"] {
            assert_eq!(mapping(broken), None);
        }
    }

    #[test]
    fn words_are_found_in_the_right_piece_of_memory() {
        let mut bytes = Vec::new();
        for (address, body) in [(0x2000, [2_u8; 16]), (0x1000, [1; 16])] {
            bytes.extend_from_slice(&crash::head(crash::STACK, 1, address, body.len()));
            bytes.extend_from_slice(&body);
        }
        let capture = Capture::read(&bytes);
        assert_eq!(capture.word(0x1008), Some(0x0101_0101_0101_0101));
        assert_eq!(capture.word(0x2000), Some(0x0202_0202_0202_0202));
        for nowhere in [0, 0xfff, 0x1009, 0x1010, 0x1fff, u64::MAX] {
            assert_eq!(capture.word(nowhere), None, "{nowhere:x}");
        }
    }

    #[test]
    fn the_thread_that_was_hit_comes_first() {
        let mut bytes = crash::head(crash::HEAD, 1, 11, 0).to_vec();
        for tid in [1, 2, 3] {
            bytes.extend_from_slice(&crash::head(crash::THREAD, tid, 0, 0));
        }
        assert_eq!(Capture::read(&bytes).threads[0].tid, 1);
        bytes.extend_from_slice(&crash::head(crash::SIGNAL, 3, 11, 0));
        let tids: Vec<u32> = Capture::read(&bytes).threads.iter().map(|thread| thread.tid).collect();
        assert_eq!(tids, [3, 1, 2]);
    }
}
