//! What is wrong with an input, and where: the form in which the checks of this crate answer.

use std::fmt;

/// Something that is wrong with a policy or a mount tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Where: keys and indices from the top, such as `mounts`, `3`, `path`.
    pub path: Vec<String>,
    /// What: one sentence.
    pub message: String,
}

impl Issue {
    pub(crate) fn new(path: &[&str], message: impl Into<String>) -> Self {
        Self { path: path.iter().map(|&key| key.to_owned()).collect(), message: message.into() }
    }

    /// The same, of a part that is at `key`.
    #[cfg(feature = "resolve")]
    pub(crate) fn below(mut self, key: &str) -> Self {
        self.path.insert(0, key.to_owned());
        self
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            out.write_str(&self.message)
        } else {
            write!(out, "{}: {}", self.path.join("."), self.message)
        }
    }
}
