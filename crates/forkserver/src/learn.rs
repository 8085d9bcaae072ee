//! What a program did, for the launch that learns it: each call once, and once more for each other use of it.
//!
//! Promises: all its memory is there from the start, since init may ask for none later; what finds no room is said to be
//! missing. Used by [`crate::notify`].

use libc::seccomp_data;

use crate::arguments::telling;
use crate::report::Encoder;

/// The most uses that are kept.
const USES_MAX: usize = 2048;

/// The longest encoded `nestbox.Learned`: it has to fit in one packet.
const LEARNED_MAX: usize = 80 * 1024;

/// No use takes more: tags and lengths, a number, a mask, and two values of 32 bits.
const _: () = assert!(USES_MAX * 32 <= LEARNED_MAX);

/// One use of a call. Only the low halves of the arguments: all that tell uses apart are ints to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    number: i32,
    values: [u32; 2],
}

pub(crate) struct Learned {
    /// In order, each once.
    uses: Vec<Use>,
    incomplete: bool,
    encoded: Box<Encoder<LEARNED_MAX>>,
}

impl Learned {
    pub(crate) fn new() -> Self {
        Self { uses: Vec::with_capacity(USES_MAX), incomplete: false, encoded: Box::new(Encoder::new()) }
    }

    pub(crate) fn note(&mut self, call: &seccomp_data) {
        let mut values = [0; 2];
        let mask = telling(call.nr.into());
        let told = call.args.iter().enumerate().filter(|(at, _)| mask & 1 << at != 0);
        for (value, (_, argument)) in values.iter_mut().zip(told) {
            *value = *argument as u32;
        }
        let made = Use { number: call.nr, values };
        if let Err(place) = self.uses.binary_search(&made) {
            if self.uses.len() < USES_MAX {
                self.uses.insert(place, made);
            } else {
                self.incomplete = true;
            }
        }
    }

    /// As `nestbox.Learned`.
    pub(crate) fn encode(&mut self) -> &[u8] {
        for made in &self.uses {
            let arguments = telling(made.number.into());
            let values = made.values.iter().take(arguments.count_ones() as usize);
            let mut call = Encoder::<32>::new();
            call.signed(1, made.number);
            call.number(2, arguments.into());
            call.packed(3, values.map(|&value| value.into()));
            self.encoded.message(1, &call);
        }
        self.encoded.number(2, self.incomplete.into());
        self.encoded.as_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestbox_protocol as protocol;
    use prost::Message;

    fn call(nr: libc::c_long, args: [u64; 6]) -> seccomp_data {
        seccomp_data { nr: nr as i32, arch: 0, instruction_pointer: 0, args }
    }

    #[test]
    fn keeps_each_use_once() {
        let mut learned = Learned::new();
        for _ in 0..3 {
            learned.note(&call(libc::SYS_ioctl, [1, 0xffff_ffff_0000_5401, 7, 0, 0, 0]));
            learned.note(&call(libc::SYS_ioctl, [2, 0x5413, 8, 0, 0, 0]));
            learned.note(&call(libc::SYS_socket, [2, 1, 6, 0, 0, 0]));
            learned.note(&call(libc::SYS_read, [1, 2, 3, 4, 5, 6]));
        }
        let found = protocol::Learned::decode(learned.encode()).expect("decodes");
        assert!(!found.incomplete);
        let has = |number: libc::c_long, arguments: u32, values: &[u64]| {
            found.calls.iter().any(|call| {
                (call.number, call.arguments, &call.values[..]) == (number as u32, arguments, values)
            })
        };
        assert_eq!(found.calls.len(), 4);
        assert!(has(libc::SYS_ioctl, 2, &[0x5401]) && has(libc::SYS_ioctl, 2, &[0x5413]));
        assert!(has(libc::SYS_socket, 5, &[2, 6]) && has(libc::SYS_read, 0, &[]));
    }

    #[test]
    fn says_when_there_is_no_room() {
        let mut learned = Learned::new();
        for request in 0..10_000 {
            learned.note(&call(libc::SYS_setsockopt, [0, u64::MAX - request, u64::MAX, 0, 0, 0]));
        }
        let found = protocol::Learned::decode(learned.encode()).expect("decodes");
        assert!(found.incomplete);
        assert_eq!(found.calls.len(), USES_MAX);
    }
}
