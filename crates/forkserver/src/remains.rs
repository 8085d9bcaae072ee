//! What can be seen of a program from outside: its memory, its files in proc, and the paths in its memory map.
//!
//! Everything here is read as bytes, at most as many as there is room for, and into memory that is there already: init may ask
//! for no more. Called by [`crate::crash`] and, for what proc says of a thread, by [`crate::memory`].

use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nestbox_sys::Errno;
use nestbox_sys::mount::open_at;

/// How much memory is read at once.
pub(crate) const CHUNK: usize = 64 << 10;

pub(crate) const PAGE: usize = 4096;

/// Reads `chunk.len()` bytes of a thread's memory (`/proc/TID/mem`), or as many as there are before the first page that can't be
/// read. Not by process_vm_readv(2), which has six arguments: under a template's filter it could not be told from the program's.
pub(crate) fn read_memory(memory: &OwnedFd, address: usize, chunk: &mut [u8]) -> usize {
    let (fd, buffer, length) = (memory.as_raw_fd(), chunk.as_mut_ptr(), chunk.len());
    // SAFETY: a buffer of ours; the address is another process's to have or not.
    let read = unsafe { nestbox_sys::syscall!(libc::SYS_pread64, fd, buffer, length, address) };
    read.unwrap_or(0)
}

/// The directory, in the proc of an ancestor, of this process's only child.
pub(crate) fn only_child(proc: RawFd) -> Option<OwnedFd> {
    let list = open_at(proc, c"thread-self/children", libc::O_RDONLY, 0, 0).ok()?;
    let mut number = [0_u8; 16];
    let length = read_all(&list, &mut number).ok()?;
    let end = number[..length].iter().position(|byte| !byte.is_ascii_digit())?;
    number[end] = 0;
    let path = CStr::from_bytes_until_nul(&number).ok().filter(|path| !path.is_empty())?;
    open_at(proc, path, libc::O_RDONLY | libc::O_DIRECTORY, 0, 0).ok()
}

/// Opens a file of a thread in proc.
pub(crate) fn open_of(proc: RawFd, tid: i32, name: &[u8]) -> Result<OwnedFd, Errno> {
    let mut path = [0_u8; 32];
    let mut digits = [0_u8; 10];
    let mut rest = tid.unsigned_abs();
    let mut first = digits.len();
    while rest > 0 && first > 0 {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let number = &digits[first..];
    path[..number.len()].copy_from_slice(number);
    path[number.len()..number.len() + name.len()].copy_from_slice(name);
    let path = CStr::from_bytes_until_nul(&path).map_err(|_| Errno::ENAMETOOLONG)?;
    open_at(proc, path, libc::O_RDONLY | libc::O_NONBLOCK, 0, 0)
}

/// Reads a file, as much as there is room for.
pub(crate) fn read_all(file: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut length = 0;
    while length < buffer.len() {
        let rest = &mut buffer[length..];
        // SAFETY: a buffer of ours.
        let read = unsafe {
            nestbox_sys::syscall!(libc::SYS_read, file.as_raw_fd(), rest.as_mut_ptr(), rest.len())
        }?;
        if read == 0 {
            break;
        }
        length += read;
    }
    Ok(length)
}

/// The path in a line of a memory map, as it stands there, if what is mapped is code of a file.
pub(crate) fn executable(line: &[u8]) -> Option<&[u8]> {
    let permissions = line.split(|&byte| byte == b' ').nth(1)?;
    let path = &line[line.iter().position(|&byte| byte == b'/')?..];
    (permissions.get(2) == Some(&b'x') && !path.ends_with(b" (deleted)")).then_some(path)
}

/// Undoes the one escape that the kernel makes: `\012`, a newline.
pub(crate) fn unescape<'a>(path: &[u8], buffer: &'a mut [u8]) -> Option<&'a CStr> {
    const NEWLINE: &[u8] = br"\012";
    let (mut from, mut to) = (0, 0);
    while from < path.len() {
        let escaped = path[from..].starts_with(NEWLINE);
        *buffer.get_mut(to)? = if escaped { b'\n' } else { path[from] };
        from += if escaped { NEWLINE.len() } else { 1 };
        to += 1;
    }
    *buffer.get_mut(to)? = 0;
    CStr::from_bytes_until_nul(buffer).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_opened() {
        let line = b"7f00-7f01 r-xp 00000000 00:21 17                   /usr/lib/a b\\012c.so";
        assert_eq!(executable(line), Some(&b"/usr/lib/a b\\012c.so"[..]));
        for other in [
            &b"7f00-7f01 r--p 00000000 00:21 17                   /usr/lib/a.so"[..],
            b"7f00-7f01 r-xp 00000000 00:21 17                   /tmp/a.so (deleted)",
            b"7f00-7f01 r-xp 00000000 00:00 0                    [vdso]",
            b"7f00-7f01 r-xp 00000000 00:00 0",
            b"",
        ] {
            assert_eq!(executable(other), None, "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn newlines_come_back() {
        let mut buffer = [1_u8; 8];
        assert_eq!(unescape(b"/a\\012b", &mut buffer), Some(c"/a\nb"));
        assert_eq!(unescape(b"/toolong!", &mut buffer), None);
    }
}
