//! The allocator: the system's, and in a template a small arena before it.
//!
//! A template decodes each launch and then clones; from then on every page that it shares with the new init is copied by
//! whoever writes to it first, at 2 µs a page, and the system's allocator scatters what one launch needs over ten of them: it
//! hands out what was freed while the policy was decoded. So a template takes what it needs for a launch from [`ROOM`] bytes
//! in one place, from their start again once all of it was freed. What does not fit there, or outlives its launch, costs no
//! more than a page: the system's allocator takes over.
//!
//! [`give_back`] and [`unshared`] are for what a template holds beside that: the less of it a clone finds, the less it copies.
//!
//! Promises: an allocator as any other, whatever lives for how long; nothing but [`open`] makes a difference to it. For processes
//! with one thread, which all of ours are.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use nestbox_sys::Errno;

#[global_allocator]
static ARENA: Arena = Arena::new();

/// How many bytes the arena holds; a launch with a few strings takes one or two thousand.
const ROOM: usize = 16 * 1024;

/// From now on what fits comes from the arena. Called by a template that is about to serve.
pub(crate) fn open() {
    ARENA.open.store(true, Relaxed);
}

/// The kernel gets back what the system's allocator has of what was freed: a clone would copy its page tables. Called by a
/// template that has been built.
pub(crate) fn give_back() {
    // SAFETY: takes a number.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::malloc_trim(0) };
}

/// So much memory that is not there in whoever is cloned from this process: to write to it after a clone copies nothing.
pub(crate) fn unshared(length: usize) -> Result<&'static mut [MaybeUninit<u8>], Errno> {
    let start = map(length, libc::PROT_READ | libc::PROT_WRITE)?;
    // Where that is refused it is copied.
    // SAFETY: that mapping.
    let _ = unsafe { libc::madvise(start, length, libc::MADV_DONTFORK) };
    // SAFETY: just mapped, for good, and nobody else knows it.
    Ok(unsafe { std::slice::from_raw_parts_mut(start.cast(), length) })
}

/// Memory of its own, from the start of a page on.
pub(crate) fn map(length: usize, access: c_int) -> Result<*mut c_void, Errno> {
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a mapping of its own, wherever there is room.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind, -1, 0) };
    if start == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(start) }
}

/// Its state comes first, and so is on the page that is written to anyway.
#[repr(C, align(4096))]
struct Arena {
    open: AtomicBool,
    /// Where the next block may start.
    next: AtomicUsize,
    /// How many blocks were not freed yet.
    live: AtomicUsize,
    bytes: UnsafeCell<[u8; ROOM]>,
}

// SAFETY: blocks do not overlap, and each is its owner's alone; the counters are atomic. Nothing is handed out before `open`,
// which is called by processes with one thread, so no two calls interleave.
unsafe impl Sync for Arena {}

impl Arena {
    const fn new() -> Self {
        Self {
            open: AtomicBool::new(false),
            next: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            bytes: UnsafeCell::new([0; ROOM]),
        }
    }

    /// A block, if there is room for it.
    fn take(&self, layout: Layout) -> Option<*mut u8> {
        if !self.open.load(Relaxed) || layout.size() > ROOM {
            return None;
        }
        let start = if self.live.load(Relaxed) == 0 { 0 } else { self.next.load(Relaxed) };
        let base = self.bytes.get().cast::<u8>();
        let padding = base.wrapping_add(start).align_offset(layout.align());
        let start = start.checked_add(padding)?;
        let end = start.checked_add(layout.size()).filter(|&end| end <= ROOM)?;
        self.next.store(end, Relaxed);
        self.live.store(self.live.load(Relaxed) + 1, Relaxed);
        Some(base.wrapping_add(start))
    }

    /// Where in the arena a block is, if it is.
    fn place(&self, block: *mut u8) -> Option<usize> {
        (block as usize).checked_sub(self.bytes.get() as usize).filter(|&place| place < ROOM)
    }
}

// SAFETY: a block of the arena is as large and aligned as was asked for, and no other's until it was freed; all others are the
// system's.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, which is the same.
        self.take(layout).unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(block) = self.take(layout) else {
            // SAFETY: the caller keeps the contract, which is the same.
            return unsafe { System.alloc_zeroed(layout) };
        };
        // SAFETY: a block of that size, of nobody yet.
        unsafe { block.write_bytes(0, layout.size()) };
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(place) = self.place(block) else {
            // SAFETY: it is not the arena's, so the system gave it.
            return unsafe { System.dealloc(block, layout) };
        };
        self.live.store(self.live.load(Relaxed) - 1, Relaxed);
        // The last one's room is free at once.
        if place + layout.size() == self.next.load(Relaxed) {
            self.next.store(place, Relaxed);
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(place) = self.place(block) else {
            // SAFETY: it is not the arena's, so the system gave it.
            return unsafe { System.realloc(block, layout, size) };
        };
        // The last one grows where it is.
        if place + layout.size() == self.next.load(Relaxed)
            && let Some(end) = place.checked_add(size).filter(|&end| end <= ROOM)
        {
            self.next.store(end, Relaxed);
            return block;
        }
        // SAFETY: the caller promises a size that is valid with this alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: as above; its size is not zero.
        let moved = unsafe { self.alloc(wanted) };
        if !moved.is_null() {
            // SAFETY: two blocks, of at least so many bytes each.
            unsafe { block.copy_to_nonoverlapping(moved, layout.size().min(size)) };
            // SAFETY: the caller gives it up.
            unsafe { self.dealloc(block, layout) };
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).expect("layout")
    }

    /// One of its own: that of the test process stays closed, which has threads.
    fn opened() -> Arena {
        let arena = Arena::new();
        arena.open.store(true, Relaxed);
        arena
    }

    #[test]
    fn closed_it_is_the_system_s() {
        let arena = Arena::new();
        assert_eq!(arena.take(layout(8)), None);
    }

    #[test]
    fn starts_over_once_all_was_freed() {
        let arena = opened();
        // SAFETY: a size that is not zero.
        let first = unsafe { arena.alloc(layout(24)) };
        // SAFETY: as above.
        let second = unsafe { arena.alloc(layout(100)) };
        assert_eq!((arena.place(first), arena.place(second)), (Some(0), Some(24)));
        // SAFETY: given out above.
        unsafe { arena.dealloc(first, layout(24)) };
        // SAFETY: as above.
        let third = unsafe { arena.alloc(layout(8)) };
        assert_eq!(arena.place(third), Some(128), "the first one's room is not free while the second lives");
        for (block, size) in [(second, 100), (third, 8)] {
            // SAFETY: given out above.
            unsafe { arena.dealloc(block, layout(size)) };
        }
        // SAFETY: as above.
        assert_eq!(arena.place(unsafe { arena.alloc(layout(8)) }), Some(0));
    }

    #[test]
    fn what_does_not_fit_is_the_system_s() {
        let arena = opened();
        // SAFETY: a size that is not zero.
        let large = unsafe { arena.alloc(layout(ROOM + 1)) };
        assert_eq!(arena.place(large), None);
        // SAFETY: as above.
        let most = unsafe { arena.alloc(layout(ROOM - 8)) };
        assert_eq!(arena.place(most), Some(0));
        // SAFETY: as above.
        let beyond = unsafe { arena.alloc_zeroed(layout(16)) };
        assert_eq!(arena.place(beyond), None);
        for (block, size) in [(large, ROOM + 1), (most, ROOM - 8), (beyond, 16)] {
            // SAFETY: given out above.
            unsafe { arena.dealloc(block, layout(size)) };
        }
    }

    #[test]
    fn grows_in_place_or_moves_with_what_it_holds() {
        let arena = opened();
        // SAFETY: a size that is not zero.
        let block = unsafe { arena.alloc_zeroed(layout(16)) };
        // SAFETY: of 16 bytes.
        unsafe { block.write_bytes(7, 16) };
        // SAFETY: given out above.
        let block = unsafe { arena.realloc(block, layout(16), 64) };
        assert_eq!(arena.place(block), Some(0));
        // SAFETY: a size that is not zero.
        let after = unsafe { arena.alloc(layout(8)) };
        // SAFETY: given out above.
        let moved = unsafe { arena.realloc(block, layout(64), 128) };
        assert_eq!(arena.place(moved), Some(72));
        // SAFETY: given out above.
        let outside = unsafe { arena.realloc(moved, layout(128), 2 * ROOM) };
        assert_eq!(arena.place(outside), None);
        // SAFETY: 16 bytes of it were written.
        assert_eq!(unsafe { std::slice::from_raw_parts(outside, 16) }, [7; 16]);
        // SAFETY: given out above.
        unsafe { arena.dealloc(after, layout(8)) };
        // SAFETY: given out above.
        unsafe { arena.dealloc(outside, layout(2 * ROOM)) };
        assert_eq!(arena.live.load(Relaxed), 0);
    }
}
