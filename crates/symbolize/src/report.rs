//! The report: what is printed. `lib/launch/crash.ts` has the schema that it is checked by.
//!
//! Promises: every list and every text in it is bounded, whatever was captured; 64-bit numbers are hexadecimal text.

use nestbox_protocol::crash::{self, MACHINE, REGISTERS, register};
use serde::Serialize;
use std::collections::BTreeMap;

use crate::capture::{Capture, Mapping, Thread};
use crate::elf::{Module, Place};
use crate::stack::{Call, Unwinder, program_counter};

/// How many calls of the thread that crashed.
const CALLS: usize = 256;
/// How many calls of each other thread.
const CALLS_OF_OTHERS: usize = 64;
/// How many functions inlined into one another.
const INLINED: usize = 16;
/// How many characters of a name.
const NAME: usize = 256;
/// How many characters of a path.
const PATH: usize = 1024;

/// A whole report.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    signal: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault_address: Option<String>,
    arch: &'static str,
    threads: Vec<ThreadReport>,
    maps: Vec<MapReport>,
    truncated: Truncated,
}

#[derive(Debug, Default, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
struct Truncated {
    threads: bool,
    stacks: bool,
    frames: bool,
    maps: bool,
    modules: bool,
}

#[derive(Debug, Serialize)]
struct ThreadReport {
    tid: u32,
    name: String,
    crashed: bool,
    registers: BTreeMap<&'static str, String>,
    frames: Vec<FrameReport>,
}

#[derive(Debug, Default, Serialize)]
struct FrameReport {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    module: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    symbol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    inlined: bool,
}

#[derive(Debug, Serialize)]
struct MapReport {
    start: String,
    end: String,
    permissions: String,
    offset: String,
    path: String,
}

/// What can be said without looking at any file: of each stack where it ends.
pub(crate) fn facts(capture: &Capture<'_>) -> Report {
    report(capture, |_, registers| {
        let address = program_counter(registers);
        (vec![bare(capture, address)], false)
    })
}

/// Everything.
pub(crate) fn whole(capture: &Capture<'_>, modules: &[Module]) -> Report {
    let mut unwinder = Unwinder::new(capture, modules);
    report(capture, |crashed, registers| {
        let (calls, more) = unwinder.calls(registers, if crashed { CALLS } else { CALLS_OF_OTHERS });
        (calls.into_iter().flat_map(|call| frames(capture, modules, call)).collect(), more)
    })
}

fn report(capture: &Capture<'_>, mut stack: impl FnMut(bool, &[u8]) -> (Vec<FrameReport>, bool)) -> Report {
    let has = |flag| capture.truncated & flag != 0;
    let mut truncated = Truncated {
        threads: has(crash::TRUNCATED_THREADS),
        stacks: has(crash::TRUNCATED_STACKS),
        frames: false,
        maps: has(crash::TRUNCATED_MAPS),
        modules: has(crash::TRUNCATED_MODULES),
    };
    let crashed = capture.crashed();
    let mut thread = |thread: &Thread<'_>| {
        let crashed = thread.tid == crashed;
        let (frames, more) = stack(crashed, thread.registers);
        truncated.frames |= more;
        let registers = REGISTERS.iter().enumerate();
        ThreadReport {
            tid: thread.tid,
            name: text(thread.name, NAME),
            crashed,
            registers: registers
                .map(|(index, name)| (*name, hexadecimal(register(thread.registers, index))))
                .collect(),
            frames,
        }
    };
    let threads = capture.threads.iter().map(&mut thread).collect();
    let code = capture.siginfo.map(|(_, siginfo)| (register(siginfo, 1) as u32).cast_signed());
    Report {
        signal: capture.signal,
        code,
        fault_address: code.and_then(|code| fault_address(capture, code)),
        arch: std::str::from_utf8(MACHINE).unwrap_or_default(),
        threads,
        maps: capture.maps.iter().map(map).collect(),
        truncated,
    }
}

/// Where a fault was, if it was one, and the kernel knows.
fn fault_address(capture: &Capture<'_>, code: i32) -> Option<String> {
    const SI_KERNEL: i32 = 128;
    // ILL, TRAP, BUS, FPE, SEGV, SYS.
    let has_one = matches!(capture.signal, 4 | 5 | 7 | 8 | 11 | 31);
    let (_, siginfo) = capture.siginfo?;
    (has_one && code > 0 && code != SI_KERNEL).then(|| hexadecimal(register(siginfo, 2)))
}

fn hexadecimal(number: u64) -> String {
    format!("{number:#x}")
}

/// Bytes as text, at most so many of them.
fn text(bytes: &[u8], most: usize) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(most)]).into_owned()
}

fn cut(text: String, most: usize) -> String {
    if text.len() > most { text.chars().take(most).collect() } else { text }
}

/// A path of the memory map: the kernel escapes newlines.
fn path(bytes: &[u8]) -> String {
    text(bytes, PATH).replace(r"\012", "\n")
}

fn map(mapping: &Mapping) -> MapReport {
    MapReport {
        start: hexadecimal(mapping.start),
        end: hexadecimal(mapping.end),
        permissions: text(mapping.permissions.as_bytes(), 4),
        offset: hexadecimal(mapping.offset),
        path: path(&mapping.path),
    }
}

/// A frame of which nothing but the mapping is known.
fn bare(capture: &Capture<'_>, address: u64) -> FrameReport {
    let mapping = capture.mapping(address);
    FrameReport {
        address: hexadecimal(address),
        module: mapping.map(|mapping| path(&mapping.path)).filter(|path| !path.is_empty()),
        ..FrameReport::default()
    }
}

/// One call: the function, after those that were inlined into it.
fn frames(capture: &Capture<'_>, modules: &[Module], call: Call) -> Vec<FrameReport> {
    let Some(module) = modules.iter().find(|module| module.range.contains(&call.lookup)) else {
        return vec![bare(capture, call.address)];
    };
    let mut places = module.places(call.lookup);
    let function = places.pop().unwrap_or_default();
    places.truncate(INLINED);
    let frame = |place: Place, inlined| FrameReport {
        address: hexadecimal(call.address),
        module: Some(path(module.path)),
        offset: Some(hexadecimal(call.address.wrapping_sub(module.bias))),
        symbol: place.symbol.map(|symbol| cut(symbol, NAME)),
        file: place.file.map(|file| cut(file, PATH)),
        line: place.line,
        inlined,
    };
    let mut all: Vec<FrameReport> = places.into_iter().map(|place| frame(place, true)).collect();
    all.push(frame(function, false));
    all
}

#[cfg(test)]
mod tests {
    use std::arch::asm;
    use std::fs;

    use super::*;
    use crate::elf;

    /// This program, caught in the act: its registers (but for those that nobody looks at), its map and its stack.
    #[inline(never)]
    fn caught_here() -> Vec<u8> {
        let mut registers = [0_u64; 40];
        // SAFETY: reads registers.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!("lea {0}, [rip]", "mov {1}, rsp", "mov {2}, rbp", out(reg) registers[16], out(reg) registers[19], out(reg) registers[4]);
        }
        // SAFETY: reads registers.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            asm!("adr {0}, .", "mov {1}, sp", "mov {2}, x29", out(reg) registers[32], out(reg) registers[31], out(reg) registers[29]);
        }
        let pointer = registers[crash::STACK_POINTER];
        let maps = fs::read("/proc/self/maps").expect("map");
        let stack = Capture::read(&record(crash::MAPS, 1, 0, &maps)).mapping(pointer).expect("a stack").end;
        // SAFETY: it is mapped, and this thread's own.
        let stack = unsafe { std::slice::from_raw_parts(pointer as *const u8, (stack - pointer) as usize) };
        let registers: Vec<u8> = registers.iter().flat_map(|register| register.to_ne_bytes()).collect();
        let mut siginfo = vec![0; 128];
        (siginfo[8], siginfo[16]) = (1, 0x42);
        let path = std::env::current_exe().expect("path").into_os_string().into_encoded_bytes();
        [
            record(crash::HEAD, 1, 11, MACHINE),
            record(crash::SIGNAL, 1, 11, &siginfo),
            record(crash::MAPS, 1, 0, &maps),
            record(crash::THREAD, 1, 0, &registers),
            record(crash::NAME, 1, 0, b"a\nname\n"),
            record(crash::STACK, 1, pointer, stack),
            record(crash::MODULE, 0, 0, &path),
            record(crash::TRUNCATED, 0, crash::TRUNCATED_MAPS, b""),
        ]
        .concat()
    }

    fn record(kind: u32, tid: u32, value: u64, body: &[u8]) -> Vec<u8> {
        [&crash::head(kind, tid, value, body.len())[..], body].concat()
    }

    fn own_image() -> &'static [u8] {
        fs::read(std::env::current_exe().expect("path")).expect("image").leak()
    }

    fn modules(capture: &Capture<'static>, image: &'static [u8]) -> Vec<Module> {
        capture.modules.iter().flat_map(|(_, path)| elf::modules(capture, path, image)).collect()
    }

    #[test]
    fn a_stack_has_names_and_lines() {
        let bytes: &'static [u8] = caught_here().leak();
        let capture = Capture::read(bytes);
        let report = whole(&capture, &modules(&capture, own_image()));
        let thread = &report.threads[0];
        assert_eq!((thread.name.as_str(), thread.crashed), ("a\nname", true));
        assert_eq!((report.code, report.fault_address.as_deref()), (Some(1), Some("0x42")));
        assert!(report.truncated.maps && !report.truncated.threads);
        let named = |name: &str| {
            let found = thread.frames.iter().position(|frame| {
                frame.symbol.as_deref().is_some_and(|symbol| symbol.contains(name))
                    && frame.file.as_deref().is_some_and(|file| file.ends_with("report.rs"))
                    && frame.line.is_some()
            });
            found.unwrap_or_else(|| panic!("no {name} in {thread:#?}"))
        };
        assert!(named("caught_here") < named("a_stack_has_names_and_lines"));
    }

    #[test]
    fn without_files_there_are_addresses() {
        let bytes: &'static [u8] = caught_here().leak();
        let report = facts(&Capture::read(bytes));
        let [frame] = &report.threads[0].frames[..] else { panic!("{report:#?}") };
        assert!(
            frame.symbol.is_none() && frame.module.as_deref().is_some_and(|module| module.starts_with('/'))
        );
        assert!(!report.maps.is_empty());
    }

    /// Nothing that a program leaves behind ends the symboliser but by its limits: bits are flipped, pieces are lost.
    #[test]
    fn damage_is_survived() {
        let (good, image) = (caught_here(), own_image());
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below.max(1) as u64) as usize
        };
        for round in 0..60 {
            let mut bytes = good.clone();
            // The second half of the rounds leaves the capture's own heads, which are ours, alone.
            let from = if round < 30 { 0 } else { bytes.len() / 4 };
            for _ in 0..=random(400) {
                let at = from + random(bytes.len() - from);
                bytes[at] = random(256) as u8;
            }
            bytes.truncate(bytes.len() - random(2) * random(bytes.len()));
            let capture = Capture::read(bytes.leak());
            // Only the first of it, with its tables: damage to debug information takes long to read.
            let mut damaged = image[..image.len().min(1 << 20)].to_vec();
            for _ in 0..=random(2000) {
                let at = random(damaged.len());
                damaged[at] = random(256) as u8;
            }
            let report = whole(&capture, &modules(&capture, damaged.leak()));
            assert!(serde_json::to_vec(&report).is_ok());
        }
    }
}
