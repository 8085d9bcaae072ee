//! Single steps of a plan, as both planners make them: that of policies ([`crate::plan`]) and that of sandbox2's trees
//! ([`crate::tree`]).

use nestbox_protocol::mount::Kind;
use nestbox_protocol::{Directory, File, Mount};

/// Mode of directories on the root tmpfs.
pub(crate) const DIRECTORY_MODE: u32 = 0o755;

/// Mode of the file that a file bind is attached to; never seen.
const PLACEHOLDER_MODE: u32 = 0o444;

/// The step of this kind at a path.
pub(crate) fn step(path: &[u8], kind: Kind) -> Mount {
    Mount { path: path.to_vec(), kind: Some(kind) }
}

/// What a mount is attached to, where that can be made.
pub(crate) fn target(directory: bool) -> Kind {
    if directory {
        Kind::Directory(Directory { mode: DIRECTORY_MODE })
    } else {
        Kind::File(File { content: Vec::new(), mode: PLACEHOLDER_MODE })
    }
}
