//! System calls by name and by number, on every architecture that this runs on.
//!
//! Promises: a name means the same call everywhere; what is not listed is no system call, to filters and to reports. Used
//! by [`crate::filter`], and by whoever shows a number to people.

use std::collections::HashMap;
use std::sync::LazyLock;

/// The list; see its first lines.
const LIST: &str = include_str!("syscalls.txt");

#[cfg(target_arch = "x86_64")]
const HERE: usize = 0;
#[cfg(target_arch = "aarch64")]
const HERE: usize = 1;

/// Each name, with its number here if it has one.
static NUMBERS: LazyLock<HashMap<&'static str, Option<u32>>> = LazyLock::new(|| {
    let lines = LIST.lines().filter(|line| !line.starts_with('#'));
    let entry = |line: &'static str| {
        let mut fields = line.split(' ');
        Some((fields.next()?, fields.nth(HERE)?.parse().ok()))
    };
    lines.filter_map(entry).collect()
});

/// The number of each name that there is here.
static NAMES: LazyLock<HashMap<u32, &'static str>> =
    LazyLock::new(|| NUMBERS.iter().filter_map(|(&name, &number)| Some((number?, name))).collect());

/// Whether some architecture has a call of this name.
#[must_use]
pub fn is_known(name: &str) -> bool {
    NUMBERS.contains_key(name)
}

/// The number that a name has here. None: this architecture has no such call.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    NUMBERS.get(name).copied().flatten()
}

/// The name of a number here. None: it is no call that we know.
#[must_use]
pub fn name(number: u32) -> Option<&'static str> {
    NAMES.get(&number).copied()
}

/// Every number that is known here, in no order.
pub(crate) fn numbers() -> impl Iterator<Item = u32> {
    NAMES.keys().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn lists_each_name_and_number_once() {
        let lines: Vec<_> = LIST.lines().filter(|line| !line.starts_with('#')).collect();
        for line in &lines {
            let fields: Vec<_> = line.split(' ').collect();
            assert_eq!(fields.len(), 3, "{line}");
            assert!(fields[1..].iter().all(|field| *field == "-" || field.parse::<u32>().is_ok()), "{line}");
        }
        for column in 0..3 {
            let all: Vec<_> = lines.iter().filter_map(|line| line.split(' ').nth(column)).collect();
            let numbered: Vec<_> = all.iter().filter(|field| **field != "-").collect();
            assert_eq!(numbered.len(), numbered.iter().collect::<BTreeSet<_>>().len(), "column {column}");
        }
    }

    #[test]
    fn agrees_with_libc() {
        for (name, expected) in [
            ("read", libc::SYS_read),
            ("mmap", libc::SYS_mmap),
            ("newfstatat", libc::SYS_newfstatat),
            ("clone", libc::SYS_clone),
            ("clone3", libc::SYS_clone3),
            ("execveat", libc::SYS_execveat),
            ("seccomp", libc::SYS_seccomp),
            ("io_uring_setup", libc::SYS_io_uring_setup),
            ("exit_group", libc::SYS_exit_group),
            ("set_mempolicy_home_node", libc::SYS_set_mempolicy_home_node),
        ] {
            assert_eq!(number(name), u32::try_from(expected).ok(), "{name}");
            assert_eq!(super::name(expected as u32), Some(name));
        }
        assert!(is_known("open") && is_known("arch_prctl") && !is_known("opne"));
        assert_eq!(number("open").is_some(), cfg!(target_arch = "x86_64"));
        assert_eq!(super::name(1 << 30), None);
    }

    /// The kernel's own list, where its headers are installed.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn agrees_with_the_headers() {
        let Ok(header) = std::fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_64.h") else {
            return;
        };
        for line in header.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some("#define"), Some(name), Some(expected)) = (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let Some(name) = name.strip_prefix("__NR_") else { continue };
            // What came after the list is refused, and that is all there is to it.
            if is_known(name) {
                assert_eq!(
                    number(name).map(|number| number.to_string()).as_deref(),
                    Some(expected),
                    "{name}"
                );
            }
        }
    }
}
