//! Leaving restartable sequences (rseq(2)), which glibc has every thread join from 2.35 on.
//!
//! Who has joined has the kernel write the processor's number into its memory whenever it goes on after having slept. In a process
//! that has just been forked that write copies a page, on both sides, and what it serves (sched_getcpu(3), per-processor data) none of
//! ours uses: a launch took 40 µs of processor time longer with it (of 1,550, with 64 under way). Promises: it never fails;
//! children inherit that it was left, programs join anew. Called once by the fork server,
//! and by the floor of the benchmark, which is to copy no more.

use crate::raw::SysResult;

/// `RSEQ_FLAG_UNREGISTER`.
const UNREGISTER: usize = 1;

/// `RSEQ_SIG`, which glibc registers with.
#[cfg(target_arch = "x86_64")]
const SIGNATURE: usize = 0x5305_3053;
#[cfg(target_arch = "aarch64")]
const SIGNATURE: usize = 0xd428_bc00;

/// `AT_RSEQ_FEATURE_SIZE` of the auxiliary vector.
const FEATURE_SIZE: libc::c_ulong = 27;

/// The size of the first `struct rseq`, and what sizes are multiples of.
const UNIT: usize = 32;

/// Leaves them, if this thread has joined and the C library tells where.
pub fn leave() {
    let Some(area) = area() else { return };
    // SAFETY: takes a number.
    let features = unsafe { libc::getauxval(FEATURE_SIZE) } as usize;
    // It has to be the length that was registered: that of the first version (glibc before 2.40) or of all that the kernel has.
    let _ = unregister(area, UNIT).or_else(|_| unregister(area, features.next_multiple_of(UNIT)));
}

fn unregister(area: usize, length: usize) -> SysResult {
    // SAFETY: the kernel forgets the area; it looks at it only if it was registered.
    unsafe { crate::syscall!(libc::SYS_rseq, area, length, UNREGISTER, SIGNATURE) }
}

/// Where glibc has it: at `__rseq_offset` (its manual, *Restartable Sequences*) from the thread pointer. The symbol is weak: older
/// ones, and musl, do not have it.
fn area() -> Option<usize> {
    let offset: *const isize;
    let thread: usize;
    // SAFETY: loads the symbol's address, or 0, and a register of the thread's.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!(
            ".weak __rseq_offset",
            "mov {0}, qword ptr [rip + __rseq_offset@GOTPCREL]",
            "mov {1}, qword ptr fs:[0]",
            out(reg) offset, out(reg) thread,
            options(nostack, preserves_flags, readonly),
        );
    }
    // SAFETY: as on x86-64.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!(
            ".weak __rseq_offset",
            "adrp {0}, :got:__rseq_offset",
            "ldr {0}, [{0}, :got_lo12:__rseq_offset]",
            "mrs {1}, tpidr_el0",
            out(reg) offset, out(reg) thread,
            options(nostack, preserves_flags, readonly),
        );
    }
    if offset.is_null() {
        return None;
    }
    // SAFETY: a constant of the C library.
    Some(thread.wrapping_add_signed(unsafe { offset.read() }))
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    /// `struct rseq`, empty.
    #[repr(align(32))]
    struct Area([u8; 32]);

    /// Joins with an area of our own, which nobody can who has joined.
    fn join(area: &mut Area) -> SysResult {
        // SAFETY: it lives until the thread has left.
        unsafe { crate::syscall!(libc::SYS_rseq, area.0.as_mut_ptr(), UNIT, 0, SIGNATURE) }
    }

    #[test]
    fn who_has_left_may_join_anew() {
        let mut ours = Area([0; 32]);
        match join(&mut ours) {
            // The C library has joined.
            Err(Errno::EINVAL) => {
                leave();
                join(&mut ours).expect("it has been left");
            }
            joined => drop(joined.expect("the kernel has it")),
        }
        // Ours is not the C library's.
        leave();
        unregister(ours.0.as_ptr() as usize, UNIT).expect("ours");
        leave();
    }
}
