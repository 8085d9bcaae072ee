//! The error record as the host sees it: what failed, on what, with which errno, and what to do about it.
//!
//! A [`Failure`] is made from the fork server's record of a step that failed ([`Failure::from_step`]) or from a call that
//! failed in this process ([`Failure::system`]). Nothing in this crate fails in any other way. Made everywhere here; turned
//! into JavaScript errors by the layers above.

use std::fmt;

use nestbox_protocol::{self as protocol, Step};
use nestbox_sys::Errno;
use nestbox_sys::packet::MessageError;

/// Which class of error a failure is: stable, and a caller's to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A launch could not be set up.
    Spawn,
    /// The program can't be executed: it is missing, not executable, or of no known format.
    Exec,
    /// There is no fork server: it could not be started, or has died.
    ForkServer,
    /// A passed fd is one that leads out of the sandbox.
    UnsafeFd,
    /// The request itself is wrong.
    Request,
}

impl Code {
    /// The code of the JavaScript error.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Spawn => "ERR_NESTBOX_SPAWN",
            Self::Exec => "ERR_NESTBOX_EXEC",
            Self::ForkServer => "ERR_NESTBOX_FORKSERVER",
            Self::UnsafeFd => "ERR_NESTBOX_UNSAFE_FD",
            Self::Request => "ERR_NESTBOX_REQUEST",
        }
    }
}

/// The whole record of something that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its class.
    pub code: Code,
    /// The step that failed.
    pub step: Step,
    /// The errno; `Errno::UnknownErrno` where no system call is to blame.
    pub errno: Errno,
    /// The system call, by its name in the manual; empty where there is none.
    pub syscall: String,
    /// What it was tried on.
    pub path: Option<String>,
    /// A further fact, one short sentence, where errno alone would mislead.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A system call that failed in this process.
    pub(crate) fn system(code: Code, step: Step, syscall: &str, errno: Errno) -> Self {
        Self { code, step, errno, syscall: syscall.to_owned(), path: None, detail: None, hint: None }
    }

    /// Something that is wrong without any system call having failed.
    pub(crate) fn fact(code: Code, step: Step, detail: impl Into<String>) -> Self {
        Self {
            code,
            step,
            errno: Errno::UnknownErrno,
            syscall: String::new(),
            path: None,
            detail: Some(detail.into()),
            hint: None,
        }
    }

    /// What every request to a closed fork server fails with.
    #[must_use]
    pub fn closed() -> Self {
        Self::fact(Code::ForkServer, Step::StartForkserver, "the fork server was closed")
    }

    /// A message that could not be sent or read.
    pub(crate) fn message(code: Code, step: Step, error: &MessageError) -> Self {
        let syscall = match error {
            MessageError::System { syscall, .. } => syscall,
            _ => "",
        };
        Self { detail: Some(error.to_string()), ..Self::system(code, step, syscall, error.errno()) }
    }

    /// The fork server's record of a step.
    pub(crate) fn from_step(failure: protocol::Failure) -> Self {
        let step = failure.step();
        let text = |bytes: Vec<u8>| {
            (!bytes.is_empty()).then(|| match String::from_utf8(bytes) {
                Ok(text) => text,
                Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
            })
        };
        Self {
            code: if failure.exec { Code::Exec } else { Code::Spawn },
            step,
            errno: Errno::from_raw(failure.errno),
            syscall: failure.syscall,
            path: text(failure.path),
            detail: text(failure.detail.into_bytes()),
            hint: None,
        }
    }

    /// The same, on `path`.
    pub(crate) fn on(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// The same, with a further fact.
    pub(crate) fn because(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same, with what to do about it.
    pub(crate) fn advise(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The step's name as users see it; empty where no step is to blame.
    #[must_use]
    pub fn step_name(&self) -> String {
        if self.step == Step::Unspecified { String::new() } else { self.step.name() }
    }

    /// errno's name, `EPERM`; empty where there is no errno.
    #[must_use]
    pub fn errno_name(&self) -> String {
        if self.errno == Errno::UnknownErrno { String::new() } else { format!("{:?}", self.errno) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.step != Step::Unspecified {
            write!(f, "{}: ", self.step_name())?;
        }
        if !self.syscall.is_empty() {
            f.write_str(&self.syscall)?;
        }
        if let Some(path) = &self.path {
            if !self.syscall.is_empty() {
                f.write_str(" ")?;
            }
            f.write_str(path)?;
        }
        let mut separator = if self.syscall.is_empty() && self.path.is_none() { "" } else { ": " };
        if self.errno != Errno::UnknownErrno {
            write!(f, "{separator}{:?} ({})", self.errno, self.errno.desc())?;
            separator = "; ";
        }
        if let Some(detail) = &self.detail {
            write!(f, "{separator}{detail}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_one_sentence() {
        let failure = Failure::system(Code::Spawn, Step::MountProc, "mount", Errno::EPERM).on("/proc");
        assert_eq!(failure.to_string(), "mount-proc: mount /proc: EPERM (Operation not permitted)");
        let fact = Failure::fact(Code::Request, Step::Unspecified, "argv is empty");
        assert_eq!(fact.to_string(), "argv is empty");
        assert_eq!(fact.errno_name(), "");
    }

    #[test]
    fn exec_failures_have_their_own_code() {
        let failure = Failure::from_step(protocol::Failure {
            step: Step::Exec.into(),
            errno: libc::ENOENT,
            syscall: "execveat".into(),
            path: b"/bin/\xff".to_vec(),
            exec: true,
            detail: String::new(),
        });
        assert_eq!(failure.code.name(), "ERR_NESTBOX_EXEC");
        assert_eq!(failure.path.as_deref(), Some("/bin/\u{fffd}"));
        assert_eq!(failure.errno_name(), "ENOENT");
    }
}
