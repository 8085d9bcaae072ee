//! Maps by the numbers that this client gives: tokens, and the ids of templates, binds and network namespaces.
//!
//! They count upwards, and nobody else has a say in them, so the number is its own hash, spread over all bits. (The hash of the
//! standard library withstands those who choose keys; it takes half a microsecond of a launch each of the ten times that one is
//! looked up.) Used by [`crate::server`] and by those who keep its books.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by number.
pub(crate) type Numbered<T> = HashMap<u64, T, BuildHasherDefault<NumberHasher>>;

/// Hashes one number.
#[derive(Default)]
pub(crate) struct NumberHasher(u64);

/// 2^64 divided by the golden ratio: neighbours come to lie far from each other.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for NumberHasher {
    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(SPREAD);
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0 ^ u64::from(byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::Numbered;

    #[test]
    fn finds_what_was_put_in() {
        let mut numbered: Numbered<u64> = (0..10_000).map(|number| (number, !number)).collect();
        for number in 0..10_000 {
            assert_eq!(numbered.remove(&number), Some(!number));
        }
        assert!(numbered.is_empty());
    }
}
