//! Room in memory for a program's output, where there is much of it.
//!
//! What memory costs that nobody has used before is a third of what 64 MiB of captured output cost: 16,384 page faults, in the
//! host's event loop. In huge pages they are 32, and the whole takes two thirds of the time. Promises: there is room for the next
//! read, and what is there is never copied to make it, once it is much; what can't be reserved, or has no huge pages, is as right
//! and only slower. Called by [`crate::capture`] before each read of a stream that keeps its pipe full, and when a stream has
//! ended.

use nix::unistd::{SysconfVar, sysconf};

/// Allocations that are larger than this have memory of their own, which is moved without being copied, and goes back to the
/// kernel with them (`DEFAULT_MMAP_THRESHOLD_MAX`, mallopt(3)). Smaller ones are cut from the heap, where others would find what
/// was done to the pages, and where pages are that somebody has used already.
const OWN_MEMORY: usize = 32 << 20;

/// The size of a huge page on x86-64, and on arm64 with pages of 4 KiB.
const HUGE: usize = 2 << 20;

/// Makes room for `next` more bytes. `most` is how many may come in all, those included; none: nobody knows.
pub(crate) fn make_room(bytes: &mut Vec<u8>, next: usize, most: Option<u64>) {
    if bytes.capacity() - bytes.len() >= next {
        return;
    }
    // As much again, and memory of its own at once, rather than in steps that are copied.
    let wanted = bytes.len().max(OWN_MEMORY);
    let wanted = most.map_or(wanted, |most| wanted.min(usize::try_from(most).unwrap_or(usize::MAX)));
    // Not for less than a huge page: a host that keeps many results would find a whole one in each.
    let much = bytes.len() >= HUGE && bytes.len() + wanted > OWN_MEMORY;
    if much && wanted >= next && bytes.try_reserve_exact(wanted).is_ok() {
        ask_for_huge_pages(bytes);
    } else {
        bytes.reserve(next);
    }
}

/// Gives back what was reserved and not needed, once nothing more comes.
pub(crate) fn fit(bytes: &mut Vec<u8>) {
    if bytes.capacity() > OWN_MEMORY {
        bytes.shrink_to_fit();
    }
}

/// Has an allocation with memory of its own be huge pages, if the kernel gives them to who asks: madvise(2), `MADV_HUGEPAGE`.
/// All of that memory, not only the pages that can become huge: mremap(2) refuses to move what was advised in part (it
/// is several mappings then), and the allocator would copy it.
fn ask_for_huge_pages(bytes: &mut Vec<u8>) {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |size| size as usize);
    let start = bytes.as_mut_ptr();
    // The allocator's header lies before the first byte, in the same page.
    let header = start.addr() % page;
    let length = (header + bytes.capacity()).next_multiple_of(page);
    // SAFETY: the pages are this allocation's alone, as it is larger than `OWN_MEMORY`; the advice changes no content.
    let _ = unsafe { libc::madvise(start.wrapping_sub(header).cast(), length, libc::MADV_HUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: usize = 256 * 1024;

    /// The mappings that an allocation lies in.
    fn mappings(bytes: &[u8]) -> usize {
        let range = bytes.as_ptr_range();
        let (start, end) = (range.start.addr(), range.end.addr());
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let number = |text: &str| usize::from_str_radix(text, 16).expect("an address");
        let ranges = maps.lines().filter_map(|line| line.split_once(' ')?.0.split_once('-'));
        ranges.filter(|(from, to)| number(from) < end && number(to) > start).count()
    }

    #[test]
    fn much_grows_as_one_mapping_and_keeps_its_content() {
        let mut bytes: Vec<u8> = (0..HUGE).map(|index| index as u8).collect();
        let mut capacities = Vec::new();
        for done in (0..160_u64 << 20).step_by(READ) {
            make_room(&mut bytes, READ, Some((160 << 20) - done));
            if capacities.last() != Some(&bytes.capacity()) {
                capacities.push(bytes.capacity());
                assert_eq!(mappings(&bytes), 1, "mremap(2) moves no more than one at once");
            }
            bytes.resize(bytes.len() + READ, 1);
        }
        assert_eq!(bytes.len(), (160 << 20) + HUGE);
        assert!(capacities.len() <= 4, "{capacities:?}");
        assert!(bytes[..HUGE].iter().enumerate().all(|(index, &byte)| byte == index as u8));
        assert!(bytes[HUGE..].iter().all(|&byte| byte == 1));
        bytes.truncate(HUGE + 1);
        fit(&mut bytes);
        assert_eq!(bytes.capacity(), HUGE + 1);
        assert_eq!(bytes[HUGE - 1..], [255, 1]);
    }

    #[test]
    fn a_limit_that_is_raised_finds_room() {
        let mut bytes = vec![0; 40 << 20];
        make_room(&mut bytes, READ, Some(READ as u64));
        assert!(bytes.capacity() - bytes.len() >= READ);
        bytes.resize(bytes.capacity(), 0);
        make_room(&mut bytes, READ, Some(128 << 20));
        assert!(bytes.capacity() >= 80 << 20, "{}", bytes.capacity());
    }

    #[test]
    fn little_is_reserved_where_little_came_or_may_come() {
        let cases = [(READ, Some(64 << 20)), (READ, None), (HUGE, Some(READ as u64)), (HUGE, Some(10 << 20))];
        for (length, most) in cases {
            let mut bytes = vec![0; length];
            make_room(&mut bytes, READ, most);
            assert!((length + READ..=4 * length).contains(&bytes.capacity()), "{}", bytes.capacity());
        }
    }
}
