//! What went wrong: what was attempted, and the errno. Used everywhere here; the launch path makes one without allocating.

use std::borrow::Cow;
use std::fmt;

use nestbox_sys::Errno;

/// A step that failed.
#[derive(Debug)]
pub(crate) struct Fault {
    what: Cow<'static, str>,
    errno: Option<Errno>,
}

impl Fault {
    /// A failure that is no system call's.
    pub(crate) fn text(what: impl Into<Cow<'static, str>>) -> Self {
        Self { what: what.into(), errno: None }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            Some(errno) => write!(formatter, "{}: {errno}", self.what),
            None => formatter.write_str(&self.what),
        }
    }
}

/// Says what an errno came of.
pub(crate) trait During<T> {
    /// A name that is known beforehand.
    fn during(self, what: &'static str) -> Result<T, Fault>;
    /// The name of a path. Allocates where it fails.
    fn on(self, what: &'static str, path: &[u8]) -> Result<T, Fault>;
}

impl<T> During<T> for Result<T, Errno> {
    fn during(self, what: &'static str) -> Result<T, Fault> {
        self.map_err(|errno| Fault { what: Cow::Borrowed(what), errno: Some(errno) })
    }

    fn on(self, what: &'static str, path: &[u8]) -> Result<T, Fault> {
        self.map_err(|errno| Fault {
            what: Cow::Owned(format!("{what} {}", String::from_utf8_lossy(path))),
            errno: Some(errno),
        })
    }
}

/// The errno of an error of the standard library.
pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
