//! Classic BPF as seccomp(2) runs it: the instructions that our filters are made of, what they return, and an interpreter.
//!
//! The interpreter does what the kernel would do with a filter and a call. Tests prove filters right with it, and the
//! supervisor of a nest learns from it why a call was stopped: the kernel hands over the call, but not the data of the
//! filter's answer. Promises: never panics and always ends, whatever it is given. Used by [`crate::filter`] and by the
//! fork server.

/// Kill the process.
pub const KILL_PROCESS: u32 = 0x8000_0000;
/// The call fails with the error in the low half.
pub const ERRNO: u32 = 0x0005_0000;
/// The supervisor decides.
pub const USER_NOTIF: u32 = 0x7fc0_0000;
/// The call is made.
pub const ALLOW: u32 = 0x7fff_0000;

/// A violation: the supervisor records it and kills.
pub const REPORT: u32 = USER_NOTIF;
/// The host is asked.
pub const ASK: u32 = USER_NOTIF | 1;

/// The part of a return value that says what to do; the rest is data.
pub const ACTION: u32 = 0xffff_0000;

/// `AUDIT_ARCH_*` of what this is compiled for.
#[cfg(target_arch = "x86_64")]
pub const ARCHITECTURE: u32 = 0xc000_003e;
/// `AUDIT_ARCH_*` of what this is compiled for.
#[cfg(target_arch = "aarch64")]
pub const ARCHITECTURE: u32 = 0xc000_00b7;

/// The most instructions that the kernel takes.
pub const INSTRUCTIONS_MAX: usize = 4096;

pub(crate) const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
pub(crate) const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
pub(crate) const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
pub(crate) const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(crate) const JUMP_ABOVE: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
pub(crate) const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
pub(crate) const JUMP_ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
pub(crate) const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
pub(crate) const NUMBER_AT: u32 = 0;
pub(crate) const ARCHITECTURE_AT: u32 = 4;
const POINTER_AT: usize = 8;
const ARGUMENTS_AT: u32 = 16;

/// Where the low half of an argument is. Both architectures are little-endian.
#[must_use]
pub const fn low_half(argument: u32) -> u32 {
    ARGUMENTS_AT + 8 * argument
}

/// Where the high half of an argument is.
#[must_use]
pub const fn high_half(argument: u32) -> u32 {
    low_half(argument) + 4
}

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// Instructions to pass over if a test holds.
    pub jump_true: u8,
    /// Instructions to pass over if it doesn't.
    pub jump_false: u8,
    /// What it does it with.
    pub value: u32,
}

/// Bytes of an instruction.
pub(crate) const INSTRUCTION: usize = 8;

impl Instruction {
    /// In memory layout.
    #[must_use]
    pub fn to_bytes(self) -> [u8; INSTRUCTION] {
        let [code, more] = self.code.to_ne_bytes();
        let [a, b, c, d] = self.value.to_ne_bytes();
        [code, more, self.jump_true, self.jump_false, a, b, c, d]
    }

    fn from_bytes(bytes: [u8; INSTRUCTION]) -> Self {
        let [code, more, jump_true, jump_false, a, b, c, d] = bytes;
        Self {
            code: u16::from_ne_bytes([code, more]),
            jump_true,
            jump_false,
            value: u32::from_ne_bytes([a, b, c, d]),
        }
    }
}

/// A system call as a filter sees it: `struct seccomp_data`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: u32,
    /// `AUDIT_ARCH_*` of the way it was made.
    pub architecture: u32,
    /// Where it was made.
    pub instruction_pointer: u64,
    /// What it was made with.
    pub arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> Option<u32> {
        let mut data = [0; 64];
        data[NUMBER_AT as usize..][..4].copy_from_slice(&self.number.to_le_bytes());
        data[ARCHITECTURE_AT as usize..][..4].copy_from_slice(&self.architecture.to_le_bytes());
        data[POINTER_AT..][..8].copy_from_slice(&self.instruction_pointer.to_le_bytes());
        for (place, argument) in data[ARGUMENTS_AT as usize..].chunks_exact_mut(8).zip(self.arguments) {
            place.copy_from_slice(&argument.to_le_bytes());
        }
        let at = usize::try_from(offset).ok().filter(|offset| offset % 4 == 0)?;
        let word = data.get(at..at + 4)?;
        Some(u32::from_le_bytes(word.try_into().ok()?))
    }
}

/// What the filter `program`, an array of `struct sock_filter`, returns for `call`. None: it is no filter of ours.
#[must_use]
pub fn evaluate(program: &[u8], call: &Call) -> Option<u32> {
    let (mut accumulator, mut at) = (0_u32, 0_usize);
    // Jumps only go forward, so this ends.
    loop {
        let bytes = program.get(at.checked_mul(INSTRUCTION)?..)?.first_chunk()?;
        let Instruction { code, jump_true, jump_false, value } = Instruction::from_bytes(*bytes);
        let jump = |holds: bool| usize::from(if holds { jump_true } else { jump_false });
        at += 1;
        match code {
            LOAD => accumulator = call.word(value)?,
            AND => accumulator &= value,
            JUMP => at = at.checked_add(value as usize)?,
            JUMP_EQUAL => at += jump(accumulator == value),
            JUMP_ABOVE => at += jump(accumulator > value),
            JUMP_AT_LEAST => at += jump(accumulator >= value),
            JUMP_ANY_BIT => at += jump(accumulator & value != 0),
            RETURN => return Some(value),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(instructions: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        let bytes = instructions.iter().flat_map(|&(code, jump_true, jump_false, value)| {
            Instruction { code, jump_true, jump_false, value }.to_bytes()
        });
        bytes.collect()
    }

    #[test]
    fn reads_every_word_of_a_call() {
        let call = Call {
            number: 1,
            architecture: 2,
            instruction_pointer: 0x4_0000_0003,
            arguments: [0x6_0000_0005, 0x8_0000_0007, 0, 0, 0, 0xa_0000_0009],
        };
        let words = [0, 4, 8, 12, 16, 20, 24, 28, low_half(5), high_half(5)];
        let found: Vec<_> = words.into_iter().map(|offset| call.word(offset)).collect();
        assert_eq!(found, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map(Some));
        assert_eq!((call.word(64), call.word(2), call.word(u32::MAX)), (None, None, None));
    }

    #[test]
    fn tests_and_jumps() {
        let call = Call { number: 6, ..Call::default() };
        for (code, value, holds) in [
            (JUMP_EQUAL, 6, true),
            (JUMP_EQUAL, 7, false),
            (JUMP_ABOVE, 5, true),
            (JUMP_ABOVE, 6, false),
            (JUMP_AT_LEAST, 6, true),
            (JUMP_AT_LEAST, 7, false),
            (JUMP_ANY_BIT, 3, true),
            (JUMP_ANY_BIT, 9, false),
        ] {
            let program =
                program(&[(LOAD, 0, 0, 0), (code, 1, 0, value), (RETURN, 0, 0, 1), (RETURN, 0, 0, 2)]);
            assert_eq!(evaluate(&program, &call), Some(if holds { 2 } else { 1 }), "{code:#x} {value}");
        }
        let masked = program(&[(LOAD, 0, 0, 0), (AND, 0, 0, 4), (JUMP_EQUAL, 0, 1, 4), (RETURN, 0, 0, 7)]);
        assert_eq!(evaluate(&masked, &call), Some(7));
    }

    #[test]
    fn gives_up_on_what_is_no_filter() {
        let call = Call::default();
        let far = (JUMP, 0, 0, u32::MAX);
        for instructions in [&[][..], &[(LOAD, 0, 0, 64)], &[(0xffff, 0, 0, 0)], &[far], &[(LOAD, 0, 0, 0)]] {
            assert_eq!(evaluate(&program(instructions), &call), None, "{instructions:?}");
        }
        assert_eq!(evaluate(&[6, 0, 0], &call), None, "half an instruction");
    }
}
