//! The launch child's stack, in the memory of the process that clones it.
//!
//! Promises: a page's high end, so that the child gets by with as few pages as it can; nothing that was never touched is there,
//! and so none of it is copied by a clone; and below it a page that nobody may touch: a frame that outgrew the stack would
//! otherwise write into what template and init know, and nothing would tell. Made once per process that launches, and
//! never given back. Called by [`crate::template`] and [`crate::request`].

use std::ffi::c_void;

use nestbox_sys::Errno;

use crate::arena;

/// Three times what is needed, and whole pages of any size that there is (4 to 64 KiB). The largest frames are those of a
/// parked process, which hold the 18 KiB of what it is sent.
const SIZE: usize = 64 * 1024;

/// Maps one; its high end.
pub(crate) fn map() -> Result<*mut c_void, Errno> {
    let page = page_size();
    let guard = arena::map(page + SIZE, libc::PROT_NONE)?;
    let low = guard.wrapping_byte_add(page);
    // SAFETY: all of that mapping but its lowest page.
    if unsafe { libc::mprotect(low, SIZE, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
        return Err(Errno::last());
    }
    Ok(low.wrapping_byte_add(SIZE))
}

/// The machine's.
pub(crate) fn page_size() -> usize {
    // SAFETY: takes a number. The C library has it from the kernel: getauxval(3).
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(SIZE)
}

#[cfg(test)]
mod tests {
    use nestbox_sys::process;

    use super::*;

    /// The wait status of a process that writes to `address` and exits.
    fn status_of_a_write_to(address: *mut u8) -> i32 {
        // SAFETY: the child makes two system calls and touches one byte.
        let child = unsafe { process::fork_with(0) }.expect("a child");
        let Some(pid) = child else {
            // A handler of the test's own would see the signal first.
            // SAFETY: numbers only.
            unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
            // SAFETY: what is there is the stack, which nobody uses, or mapped for nobody: what is to be shown.
            unsafe { address.write_volatile(1) };
            crate::exit(0);
        };
        let mut status = 0;
        // SAFETY: an integer of ours.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        status
    }

    #[test]
    fn a_frame_that_outgrows_it_ends_the_process() {
        let high = map().expect("a stack").cast::<u8>();
        assert_eq!(high as usize % page_size(), 0);
        let low = high.wrapping_byte_sub(SIZE);
        assert_eq!(status_of_a_write_to(high.wrapping_byte_sub(1)), 0);
        assert_eq!(status_of_a_write_to(low), 0);
        assert_eq!(status_of_a_write_to(low.wrapping_byte_sub(1)), libc::SIGSEGV);
    }
}
