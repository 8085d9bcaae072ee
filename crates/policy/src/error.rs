//! Why a policy could not be made concrete on this host: the same facts as every other failed step of a launch.

use std::io;

use nestbox_protocol::{Failure, Step};

/// A step of resolving that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {syscall} {path}: {}{}{detail}", step.name(), io::Error::from_raw_os_error(*errno), separator(detail))]
pub struct ResolveError {
    /// The step that this belongs to, as in every error record.
    pub step: Step,
    /// The kernel's error number, or the one that says it best.
    pub errno: i32,
    /// The system call, by its name in the manual.
    pub syscall: &'static str,
    /// The path, on the host or inside, that it is about.
    pub path: String,
    /// A further fact, one short sentence; may be empty.
    pub detail: String,
}

fn separator(detail: &str) -> &'static str {
    if detail.is_empty() { "" } else { ": " }
}

impl ResolveError {
    pub(crate) fn new(step: Step, errno: i32, syscall: &'static str, path: impl Into<String>) -> Self {
        Self { step, errno, syscall, path: path.into(), detail: String::new() }
    }

    /// The same, with a further fact.
    pub(crate) fn detail(self, detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), ..self }
    }
}

impl From<ResolveError> for Failure {
    fn from(error: ResolveError) -> Self {
        Self {
            step: error.step.into(),
            errno: error.errno,
            syscall: error.syscall.to_owned(),
            path: error.path.into_bytes(),
            exec: false,
            detail: error.detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn becomes_a_failure_whole() {
        let error =
            ResolveError::new(Step::OpenBindSource, libc::ENOENT, "statx", "/gone").detail("it was there");
        assert_eq!(
            error.to_string(),
            "open-bind-source: statx /gone: No such file or directory (os error 2): it was there"
        );
        let failure = Failure::from(error);
        assert_eq!(failure.step(), Step::OpenBindSource);
        assert_eq!((failure.errno, failure.syscall.as_str()), (libc::ENOENT, "statx"));
        assert_eq!(failure.path, b"/gone");
        assert_eq!(failure.detail, "it was there");
    }
}
