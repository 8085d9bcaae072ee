//! Unwinding: from registers, stacks and unwind tables to addresses of code.

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
    modules: &'a [Module],
    machine: Machine<&'static [u8]>,
    cache: Cache,
}

impl<'a> Unwinder<'a> {
    pub(crate) fn new(capture: &'a Capture<'a>, modules: &'a [Module]) -> Self {
        let mut machine = Machine::new();
        for module in modules {
            let tables = Tables::new(String::new(), module.range.clone(), module.bias, module.unwind_info());
            machine.add_module(tables);
        }
        Self { capture, modules, machine, cache: Cache::new() }
    }

    /// The calls of a thread, innermost first; at most so many, and whether there are more.
    pub(crate) fn calls(&mut self, registers: &[u8], most: usize) -> (Vec<Call>, bool) {
        let capture = self.capture;
        let mut calls = Vec::new();
        let at = program_counter(registers);
        let mut frame = FrameAddress::from_instruction_pointer(at);
        let mut state = unwind_registers(registers);
        // Called through a pointer that led nowhere: goes on as if that call had returned at once.
        let returned = if is_code(capture, at) { None } else { after_return(registers, capture) };
        if let Some(returned) = returned.filter(|returned| is_code(capture, program_counter(returned)))
            && let Some(caller) = FrameAddress::from_return_address(program_counter(&returned))
        {
            calls.push(Call { address: at, lookup: at });
            (frame, state) = (caller, unwind_registers(&returned));
        }
        let mut read = |address| capture.word(address).ok_or(());
        loop {
            if calls.len() == most {
                return (calls, true);
            }
            let (address, lookup) = (frame.address(), frame.address_for_lookup());
            // What a signal interrupted did not call its handler: the kernel wrote down where to go on.
            if let Some(interrupted) = self.interrupted(address, &state) {
                calls.push(Call { address, lookup: address });
                frame = FrameAddress::from_instruction_pointer(interrupted.ip());
                state = interrupted;
                continue;
            }
            calls.push(Call { address, lookup });
            // An error is the end of what can be known.
            let caller = self.machine.unwind_frame(frame, &mut state, &mut self.cache, &mut read);
            let Some(caller) = caller.ok().flatten().and_then(FrameAddress::from_return_address) else {
                return (calls, false);
            };
            frame = caller;
        }
    }

    /// The registers of what a signal interrupted, if `address` is where its handler returns to: they are on the stack then,
    /// in a `ucontext_t`.
    #[cfg(target_arch = "x86_64")]
    fn interrupted(&self, address: u64, handler: &UnwindRegsX86_64) -> Option<UnwindRegsX86_64> {
        /// `mov $15, %rax; syscall`, which is rt_sigreturn(2), as debuggers know it.
        const RETURN: &[u8] = &[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
        /// `uc_mcontext.gregs`, and what of it says where the program was.
        const GENERAL: u64 = 40;
        const RBP: u64 = 10;
        const RSP: u64 = 15;
        const RIP: u64 = 16;
        if !self.modules.iter().any(|module| module.has_code(address, RETURN)) {
            return None;
        }
        let saved = |index: u64| self.capture.word(handler.sp().checked_add(GENERAL + index * 8)?);
        Some(UnwindRegsX86_64::new(saved(RIP)?, saved(RSP)?, saved(RBP)?))
    }

    /// Here the kernel's own code is returned to, which is in no file.
    #[cfg(target_arch = "aarch64")]
    #[expect(clippy::unused_self, reason = "other machines look at the files")]
    fn interrupted(&self, _address: u64, _handler: &UnwindRegsAarch64) -> Option<UnwindRegsAarch64> {
        None
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
