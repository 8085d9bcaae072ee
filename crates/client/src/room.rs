//! Room in memory for a program's output, where there is much of it.
//!
//! What memory costs that nobody has used before is a third of what 64 MiB of captured output cost: 16,384 page faults, in the
//! host's event loop. In huge pages they are 32, and the whole takes two thirds of the time. But to move huge pages elsewhere, as
//! a vector does that grows, costs more than they saved (mremap(2) breaks up those that do not lie alike before and after); so room
//! for all that may come is reserved at once. That takes addresses and no memory, until something is written there. Promises: there
//! is room for the next read; what can't be reserved, or has no huge pages, is as right and only slower. Called by
//! [`crate::capture`] before each read of a stream that keeps its pipe full, and when a stream has ended.

/// What is reserved at once at the most. What is longer is moved when it is.
const MOST: u64 = 128 << 20;

/// Allocations that are larger than this have memory of their own, which goes back to the kernel with them
/// (`DEFAULT_MMAP_THRESHOLD_MAX`, mallopt(3)). Smaller ones are cut from the heap, where others find what was done to the pages,
/// and where pages are that somebody has used already.
const OWN_MEMORY: usize = 32 << 20;

/// The size of a huge page on x86-64, and on arm64 with pages of 4 KiB.
const HUGE: usize = 2 << 20;

/// Makes room for `next` more bytes. `most` is how many may come in all, those included; none: nobody knows.
pub(crate) fn make_room(bytes: &mut Vec<u8>, next: usize, most: Option<u64>) {
    if bytes.capacity() - bytes.len() >= next {
        return;
    }
    let all = most.map_or(0, |most| most.min(MOST) as usize + next);
    // Not for less than a huge page: a host that keeps many results would find a whole one in each.
    if all > OWN_MEMORY && bytes.len() >= HUGE && bytes.try_reserve_exact(all).is_ok() {
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

/// Has the unused part of what was reserved be huge pages, if the kernel gives them to who asks: madvise(2), `MADV_HUGEPAGE`.
fn ask_for_huge_pages(bytes: &mut Vec<u8>) {
    let unused = bytes.spare_capacity_mut();
    let skipped = unused.as_ptr().align_offset(HUGE);
    let Some(whole) = unused.get_mut(skipped..) else { return };
    let length = whole.len() / HUGE * HUGE;
    // SAFETY: the range is ours, and nothing was written there; the advice changes no content.
    let _ = unsafe { libc::madvise(whole.as_mut_ptr().cast(), length, libc::MADV_HUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: usize = 256 * 1024;

    #[test]
    fn what_has_a_limit_moves_no_more_once_it_is_much() {
        let mut bytes = vec![7; HUGE];
        make_room(&mut bytes, READ, Some(64 << 20));
        let place = bytes.as_ptr();
        for done in (0..64 << 20).step_by(READ) {
            make_room(&mut bytes, READ, Some((64 << 20) - done));
            bytes.resize(bytes.len() + READ, 1);
        }
        assert_eq!((bytes.as_ptr(), bytes.len()), (place, (64 << 20) + HUGE));
        assert!(bytes[..HUGE].iter().all(|&byte| byte == 7));
        bytes.truncate(HUGE + 1);
        fit(&mut bytes);
        assert_eq!(bytes.capacity(), HUGE + 1);
        assert_eq!(bytes[HUGE - 1..], [7, 1]);
    }

    #[test]
    fn little_is_reserved_where_little_came_or_may_come_or_nobody_knows() {
        let cases = [(READ, Some(64 << 20)), (HUGE, Some(READ as u64)), (HUGE, Some(10 << 20)), (HUGE, None)];
        for (length, most) in cases {
            let mut bytes = vec![0; length];
            make_room(&mut bytes, READ, most);
            assert!((length + READ..=4 * length).contains(&bytes.capacity()), "{}", bytes.capacity());
        }
    }

    #[test]
    fn no_more_than_so_much_is_reserved_at_once() {
        let mut bytes = vec![0; HUGE];
        make_room(&mut bytes, READ, Some(1 << 50));
        assert!(bytes.capacity() as u64 <= MOST + (HUGE + READ) as u64, "{}", bytes.capacity());
    }
}
