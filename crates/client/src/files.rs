//! A launch's private files, on their way to its init.
//!
//! What is small goes with the launch's message. What is large goes in a memory file of its own, from which init has the kernel copy it:
//! in the message it would be copied three times here and twice in the template, and everything that the template had of it
//! by each nest that is cloned meanwhile. Promises: the bytes are only read during the call. Called by the client for each launch.

use std::cmp::Reverse;

use nestbox_protocol::frame::FDS_MAX;
use nestbox_protocol::{FdRole, LaunchFile, Step};
use nestbox_sys::memfd;

use crate::channel::PassedFd;
use crate::failure::{Code, Failure};
use crate::stdio::Wired;

/// How large a file is, in bytes, that is worth an fd.
const LARGE: usize = 64 * 1024;

/// How many files of a launch go that way at most, the largest; the others go with its message. An unprivileged
/// host has no more fds on their way, of all launches together, than it may have open (unix(7), `ETOOMANYREFS`).
const BESIDE_MAX: usize = 16;

/// So many of a packet's fds are for others: the launch's socket, its namespaces, the message itself where it is large.
const RESERVED: usize = 8;

/// One private file of one launch.
#[derive(Clone, Debug)]
pub struct FileRequest<'a> {
    /// Where it is put, inside.
    pub path: Vec<u8>,
    /// What is in it.
    pub content: &'a [u8],
    /// Its permission bits.
    pub mode: u32,
}

/// The files as the message of a launch with so many binds has them; `wired` takes what goes beside it.
pub(crate) fn hand_over(
    files: &[FileRequest<'_>],
    binds: usize,
    wired: &mut Wired,
) -> Result<Vec<LaunchFile>, Failure> {
    let size = |number: usize| files[number].content.len();
    let mut beside: Vec<usize> = (0..files.len()).filter(|&number| size(number) >= LARGE).collect();
    beside.sort_by_key(|&number| Reverse(size(number)));
    beside.truncate((FDS_MAX - RESERVED).saturating_sub(wired.passed.len() + binds).min(BESIDE_MAX));
    let message = |(number, file): (usize, &FileRequest<'_>)| {
        let mut content = Vec::new();
        if beside.contains(&number) {
            let memory = memfd::sealed(c"nestbox-file", file.content, false).map_err(|errno| {
                Failure::system(Code::Spawn, Step::WriteLaunchFile, "memfd_create", errno)
                    .on(String::from_utf8_lossy(&file.path))
            })?;
            wired.pass(FdRole::File, number as u32, PassedFd::Owned(memory));
        } else {
            content.extend_from_slice(file.content);
        }
        Ok(LaunchFile { path: file.path.clone(), content, mode: file.mode })
    };
    files.iter().enumerate().map(message).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdio::{self, Fds};

    /// The numbers of the files that go beside the message.
    fn beside(sizes: &[usize], binds: usize) -> Vec<usize> {
        let contents: Vec<Vec<u8>> = sizes.iter().map(|&size| vec![7; size]).collect();
        let request = |content| FileRequest { path: b"/tmp/file".to_vec(), content, mode: 0o600 };
        let files: Vec<_> = contents.iter().map(|content| request(content)).collect();
        let mut wired = stdio::wire(&Fds::default(), None).expect("wired");
        let already = wired.passed.len();
        let messages = hand_over(&files, binds, &mut wired).expect("handed over");
        let beside: Vec<_> = (0..files.len()).filter(|&number| messages[number].content.is_empty()).collect();
        let roles = &wired.roles[already..];
        assert!(roles.iter().all(|passed| passed.role() == FdRole::File));
        assert_eq!(roles.iter().map(|passed| passed.number as usize).collect::<Vec<_>>(), beside);
        assert!(
            messages.iter().zip(sizes).all(|(message, &size)| [0, size].contains(&message.content.len()))
        );
        beside
    }

    #[test]
    fn the_largest_go_beside_the_message() {
        assert_eq!(beside(&[LARGE - 1, LARGE, 1, LARGE + 1], 0), [1, 3]);
        let mut sizes = vec![LARGE; BESIDE_MAX];
        sizes.extend([1, LARGE + 1, LARGE + 2]);
        let wanted: Vec<usize> = (0..BESIDE_MAX - 2).chain([BESIDE_MAX + 1, BESIDE_MAX + 2]).collect();
        assert_eq!(beside(&sizes, 0), wanted);
    }

    #[test]
    fn what_else_is_passed_takes_their_room() {
        let room = FDS_MAX - RESERVED;
        assert_eq!(beside(&[LARGE, LARGE, LARGE], room - 2), [0, 1]);
        assert_eq!(beside(&[LARGE], room), [0; 0]);
        assert_eq!(beside(&[LARGE], room + 100), [0; 0]);
    }
}
