//! The identity of a plan: SHA-256 over its encoding, which is deterministic (no maps, fields in order).
//!
//! Never read from any input. Two hashes are made of each plan: one of its content, the policy's public hash; and one
//! that includes what the sources were, which is what a template is kept under.

use std::fmt;

use nestbox_protocol::{Plan, mount::Kind};
use prost::Message;
use sha2::{Digest, Sha256};

/// A SHA-256 sum; shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Of what the plan says.
    #[must_use]
    pub fn of_content(plan: &Plan) -> Self {
        Self::of(&without_identities(plan))
    }

    /// Of what the plan says and which files and directories it said it of.
    #[must_use]
    pub fn of_identity(plan: &Plan) -> Self {
        Self::of(plan)
    }

    fn of(plan: &Plan) -> Self {
        Self(Sha256::digest(plan.encode_to_vec()).into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Hash({self})")
    }
}

/// The plan with the identities of its sources taken out: its content alone.
fn without_identities(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    for step in plan.template_mounts.iter_mut().chain(&mut plan.nest_mounts) {
        if let Some(Kind::Bind(bind)) = &mut step.kind {
            bind.expected_device = 0;
            bind.expected_inode = 0;
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestbox_protocol::{Bind, Mount};

    fn plan(inode: u64, writable: bool) -> Plan {
        let bind = Bind { source: b"/a".to_vec(), writable, expected_inode: inode, ..Bind::default() };
        let mount = Mount { path: b"/b".to_vec(), kind: Some(Kind::Bind(bind)) };
        Plan { template_mounts: vec![mount.clone()], nest_mounts: vec![mount], ..Plan::default() }
    }

    #[test]
    fn content_leaves_identities_out() {
        assert_eq!(Hash::of_content(&plan(1, false)), Hash::of_content(&plan(2, false)));
        assert_ne!(Hash::of_identity(&plan(1, false)), Hash::of_identity(&plan(2, false)));
        assert_ne!(Hash::of_content(&plan(1, false)), Hash::of_content(&plan(1, true)));
    }

    #[test]
    fn is_sha256_in_hexadecimal() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Hash::of_content(&Plan::default()).to_string(), empty);
    }
}
