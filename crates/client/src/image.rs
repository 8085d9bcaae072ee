//! The fork server's executable, as an fd.
//!
//! Promises: what is executed is the image that the caller gave, byte for byte: it is in a sealed memfd, which nobody can
//! write any more (a compromised child could otherwise rewrite it through `/proc`). Where the system forbids executing
//! memfds (`vm.memfd_noexec`, some hardened kernels) it is a 0700 file that is unlinked before it runs. A path in
//! `NESTBOX_FORKSERVER` takes its place, for debuggers and profilers. Called by the spawner's thread only.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nestbox_protocol::Step;
use nestbox_sys::{Errno, memfd, process};

use crate::failure::{Code, Failure};

/// Names the fork server's executable instead of the embedded one.
pub const OVERRIDE: &str = "NESTBOX_FORKSERVER";

/// The sealed memfd of an image, made once for the process and kept. (One image a process in all but tests.)
static SEALED: Mutex<Vec<(&'static [u8], OwnedFd)>> = Mutex::new(Vec::new());

fn start_failure(syscall: &str, errno: Errno) -> Failure {
    Failure::system(Code::ForkServer, Step::StartForkserver, syscall, errno)
}

fn io_failure(syscall: &str, path: &Path, error: &io::Error) -> Failure {
    start_failure(syscall, Errno::from_raw(error.raw_os_error().unwrap_or(0))).on(path.to_string_lossy())
}

/// Where the executable comes from.
#[derive(Clone, Debug)]
pub(crate) enum Image {
    /// A file that the caller or the environment names.
    Path(PathBuf),
    /// The embedded image.
    Embedded(&'static [u8]),
}

impl Image {
    /// What to run: `path` if the caller gave one, else what the environment names, else the embedded image. The environment
    /// of a program that has more rights than who executed it is not asked.
    pub(crate) fn choose(path: Option<PathBuf>, embedded: &'static [u8]) -> Self {
        let named = || {
            env::var_os(OVERRIDE)
                .filter(|value| !value.is_empty() && !process::is_executed_securely())
                .map(PathBuf::from)
        };
        match path.or_else(named) {
            Some(path) => Self::Path(path),
            None => Self::Embedded(embedded),
        }
    }

    /// Opens it for execution; the first choice.
    pub(crate) fn open(&self) -> Result<OwnedFd, Failure> {
        match self {
            Self::Path(path) => {
                File::open(path).map(OwnedFd::from).map_err(|error| io_failure("open", path, &error))
            }
            Self::Embedded([]) => Err(Failure::fact(
                Code::ForkServer,
                Step::StartForkserver,
                "this build of the addon has no fork server in it",
            )
            .advise(format!("run `npm run build`, or name a fork server in {OVERRIDE}"))),
            Self::Embedded(image) => sealed(image),
        }
    }

    /// Where a memfd may not be executed (`EACCES` or `EPERM` from execveat(2), or from making it): a temporary file.
    pub(crate) fn open_as_file(&self) -> Option<Result<OwnedFd, Failure>> {
        match self {
            Self::Path(_) | Self::Embedded([]) => None,
            Self::Embedded(image) => Some(temporary(image)),
        }
    }
}

fn sealed(image: &'static [u8]) -> Result<OwnedFd, Failure> {
    let mut known = SEALED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let have = known.iter().find(|(of, _)| std::ptr::eq(*of, image));
    let fd = if let Some((_, fd)) = have {
        fd
    } else {
        let fd = memfd::sealed(c"nestbox-forkserver", image, true)
            .map_err(|errno| start_failure("memfd_create", errno))?;
        known.push((image, fd));
        &known[known.len() - 1].1
    };
    fd.try_clone().map_err(|error| start_failure("dup", Errno::from_raw(error.raw_os_error().unwrap_or(0))))
}

/// Writes the image to a new file in the first directory that takes it, and unlinks it again.
fn temporary(image: &[u8]) -> Result<OwnedFd, Failure> {
    let mut failure = None;
    for directory in [env::temp_dir(), "/var/tmp".into(), "/dev/shm".into(), "/run".into()] {
        match temporary_in(&directory, image) {
            Ok(fd) => return Ok(fd),
            Err(error) => failure = failure.or(Some(io_failure("open", &directory, &error))),
        }
    }
    Err(failure.unwrap_or_else(|| start_failure("open", Errno::ENOENT)))
}

fn temporary_in(directory: &Path, image: &[u8]) -> io::Result<OwnedFd> {
    // The name only has to be free: O_EXCL refuses whatever is there, a symlink too.
    let path = directory.join(format!(
        ".nestbox-forkserver-{}-{:x}",
        std::process::id(),
        nestbox_sys::process::monotonic_ns()
    ));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path)?;
    let written = file.write_all(image);
    drop(file);
    // Executing a file that is open for writing is refused (ETXTBSY), so it is opened again.
    let opened = written.and_then(|()| File::open(&path));
    fs::remove_file(&path)?;
    Ok(opened?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_image_says_what_to_do() {
        let failure = Image::Embedded(&[]).open().expect_err("nothing to run");
        assert_eq!(failure.code, Code::ForkServer);
        assert!(failure.hint.expect("a hint").contains("npm run build"));
    }

    #[test]
    fn the_temporary_file_is_gone_at_once() {
        let directory = tempfile::tempdir().expect("tempdir");
        temporary_in(directory.path(), b"image").expect("written");
        assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 0);
    }

    #[test]
    fn a_missing_path_is_named() {
        let failure = Image::Path("/nonexistent/forkserver".into()).open().expect_err("missing");
        assert_eq!(
            (failure.errno, failure.path.as_deref()),
            (Errno::ENOENT, Some("/nonexistent/forkserver"))
        );
    }
}
