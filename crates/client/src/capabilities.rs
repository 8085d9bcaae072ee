//! The capabilities that a host needs which is root, and lacks: `docker run --cap-drop`, `CapabilityBoundingSet=`.
//!
//! An ordinary user needs none. A root gives its sandboxees ids that are not its own, and for each part of that the kernel asks for
//! one (capabilities(7)). Looked up for a launch that failed, and by the doctor before there is one.

use std::fmt;

use nestbox_sys::process;

/// Capabilities that are missing; one at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capabilities(u64);

/// By number, each with what it is needed for. That writable binds need `CAP_SYS_ADMIN`, whose ids are mapped, is no failure: results
/// list it as skipped.
const NEEDED: [(u32, &str, &str); 5] = [
    (0, "CAP_CHOWN", "to give its pipes to a program's user"),
    (6, "CAP_SETGID", "to map groups"),
    (7, "CAP_SETUID", "to map users"),
    (8, "CAP_SETPCAP", "to give up all others for good"),
    (SETFCAP, "CAP_SETFCAP", "to map the id 0"),
];

const SETFCAP: u32 = 31;

impl Capabilities {
    /// Those that this process lacks, by its `/proc/self/status`.
    pub(crate) fn missing(status: &str, is_root: bool) -> Option<Self> {
        let needed = match (is_root, process::has_ids_to_give()) {
            (false, _) => return None,
            // An ordinary user by another name, but that the id which it maps is 0.
            (true, Ok(false)) => 1 << SETFCAP,
            (true, _) => NEEDED.iter().fold(0, |all, (number, ..)| all | 1 << number),
        };
        let held = status
            .lines()
            .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())?;
        (needed & !held != 0).then_some(Self(needed & !held))
    }
}

/// As a list, with what each is needed for.
impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing = NEEDED.iter().filter(|(number, ..)| self.0 & 1 << number != 0);
        for (index, (_, name, purpose)) in missing.enumerate() {
            write!(f, "{}{name} ({purpose})", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two of them.
    pub(crate) const SOME: Capabilities = Capabilities(1 | 1 << SETFCAP);

    #[test]
    fn what_is_missing_has_a_name_and_a_purpose() {
        assert_eq!(
            SOME.to_string(),
            "CAP_CHOWN (to give its pipes to a program's user), CAP_SETFCAP (to map the id 0)"
        );
    }

    #[test]
    fn only_root_needs_any() {
        let none = "Name:\tx\nCapEff:\t0000000000000000\n";
        assert_eq!(Capabilities::missing(none, false), None);
        assert!(Capabilities::missing(none, true).is_some());
        assert_eq!(Capabilities::missing("CapEff:\t000001ffffffffff\n", true), None);
        assert_eq!(Capabilities::missing("", true), None, "no evidence");
    }
}
