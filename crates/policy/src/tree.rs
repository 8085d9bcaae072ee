//! Mount trees as sandbox2 has them: inserting into one by its rules, and making a plan of one.
//!
//! Inserting ([`insert()`]) is the client's, planning ([`plan()`]) the fork server's, which does without default features
//! and trusts nothing of a tree that comes off a socket. Unlike a policy's, such a plan is carried out for one process
//! alone.

mod insert;
mod options;
mod plan;

use nestbox_protocol::mount_node::Node;

pub use insert::{build, check, insert};
pub use plan::{TreeError, plan};

/// One entry of a mount tree, with its path.
#[derive(Clone, Debug, PartialEq)]
pub struct TreeEntry {
    /// Absolute path inside; `/` for the root node.
    pub path: String,
    /// What is there.
    pub node: Node,
}
