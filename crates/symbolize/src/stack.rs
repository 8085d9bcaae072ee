//! Unwinding: from registers, stacks and unwind tables to addresses of code.

use std::borrow::Cow;

#[cfg(target_arch = "aarch64")]
use framehop::aarch64::{CacheAarch64 as Cache, PtrAuthMask, UnwindRegsAarch64, UnwinderAarch64 as Machine};
#[cfg(target_arch = "x86_64")]
use framehop::x86_64::{CacheX86_64 as Cache, UnwindRegsX86_64, UnwinderX86_64 as Machine};
use framehop::{FrameAddress, Module as Tables, Unwinder as _};
use nestbox_protocol::crash::register;

use crate::capture::{Capture, Mapping};
use crate::elf::Module;

#[cfg(target_arch = "x86_64")]
const PROGRAM_COUNTER: usize = 16;
#[cfg(target_arch = "aarch64")]
const PROGRAM_COUNTER: usize = 32;

/// One function call on a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// Where it goes on, or was stopped.
    pub(crate) address: u64,
    /// In the instruction that is to be looked up: a call may be the last one of its function.
    pub(crate) lookup: u64,
}

/// Where the registers say that the thread was.
pub(crate) fn program_counter(registers: &[u8]) -> u64 {
    register(registers, PROGRAM_COUNTER)
}

/// Knows all the tables.
pub(crate) struct Unwinder<'a> {
    capture: &'a Capture<'a>,
    machine: Machine<&'static [u8]>,
    cache: Cache,
}

impl<'a> Unwinder<'a> {
    pub(crate) fn new(capture: &'a Capture<'a>, modules: &[Module]) -> Self {
        let mut machine = Machine::new();
        for module in modules {
            let tables = Tables::new(String::new(), module.range.clone(), module.bias, module.unwind_info());
            machine.add_module(tables);
        }
        Self { capture, machine, cache: Cache::new() }
    }

    /// The calls of a thread, innermost first; at most so many, and whether there are more.
    pub(crate) fn calls(&mut self, registers: &[u8], most: usize) -> (Vec<Call>, bool) {
        let capture = self.capture;
        let mut registers = Cow::Borrowed(registers);
        let mut calls = Vec::new();
        let at = program_counter(&registers);
        // Called through a pointer that led nowhere: goes on as if that call had returned at once.
        let returned = if is_code(capture, at) { None } else { after_return(&registers, capture) };
        if let Some(returned) = returned.filter(|returned| is_code(capture, program_counter(returned))) {
            calls.push(Call { address: at, lookup: at });
            registers = Cow::Owned(returned);
        }
        let mut read = |address| capture.word(address).ok_or(());
        let start = program_counter(&registers);
        let regs = unwind_registers(&registers);
        let mut frames = self.machine.iter_frames(start, regs, &mut self.cache, &mut read);
        // An error is the end of what can be known.
        while let Ok(Some(frame)) = frames.next() {
            if calls.len() == most {
                return (calls, true);
            }
            let is_return =
                calls.len() == 1 && start != at || matches!(frame, FrameAddress::ReturnAddress(_));
            let address = frame.address();
            calls.push(Call { address, lookup: if is_return { address.wrapping_sub(1) } else { address } });
        }
        (calls, false)
    }
}

fn is_code(capture: &Capture<'_>, address: u64) -> bool {
    capture.mapping(address).is_some_and(Mapping::is_code)
}

#[cfg(target_arch = "x86_64")]
fn unwind_registers(registers: &[u8]) -> UnwindRegsX86_64 {
    const RBP: usize = 4;
    const RSP: usize = 19;
    UnwindRegsX86_64::new(program_counter(registers), register(registers, RSP), register(registers, RBP))
}

/// The registers as a `ret` would leave them: the return address is on the stack.
#[cfg(target_arch = "x86_64")]
fn after_return(registers: &[u8], capture: &Capture<'_>) -> Option<Vec<u8>> {
    const RSP: usize = 19;
    let pointer = register(registers, RSP);
    let mut returned = registers.to_vec();
    let mut set = |index: usize, value: u64| {
        returned.get_mut(index * 8..index * 8 + 8).map(|word| word.copy_from_slice(&value.to_ne_bytes()))
    };
    set(PROGRAM_COUNTER, capture.word(pointer)?)?;
    set(RSP, pointer.checked_add(8)?)?;
    Some(returned)
}

#[cfg(target_arch = "aarch64")]
const LINK: usize = 30;

#[cfg(target_arch = "aarch64")]
fn unwind_registers(registers: &[u8]) -> UnwindRegsAarch64 {
    const FP: usize = 29;
    const SP: usize = 31;
    // Linux gives programs 48 bits of address; what is above them is a signature.
    let mask = PtrAuthMask(u64::MAX >> 16);
    let [link, pointer, frame] = [LINK, SP, FP].map(|index| register(registers, index));
    UnwindRegsAarch64::new_with_ptr_auth_mask(mask, link, pointer, frame)
}

/// The registers as a `ret` would leave them: the return address is in one of them.
#[cfg(target_arch = "aarch64")]
fn after_return(registers: &[u8], _capture: &Capture<'_>) -> Option<Vec<u8>> {
    let link = register(registers, LINK);
    let mut returned = registers.to_vec();
    let counter = returned.get_mut(PROGRAM_COUNTER * 8..PROGRAM_COUNTER * 8 + 8)?;
    counter.copy_from_slice(&link.to_ne_bytes());
    Some(returned)
}
