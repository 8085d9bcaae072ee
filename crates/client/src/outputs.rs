//! Output files: what a launch left in its nest and the caller asked for.
//!
//! Init opened them after all else of the nest was dead and passed the fds with the result. Promises: only regular files
//! are read, and never more than the caller's limit and one byte; a host file is only ever made new (nothing is
//! overwritten, no symlink followed), in the directory that its path led to before the program ran, and is gone again if it
//! could not be completed; what can be seen then to keep it from being made refuses the launch; an event loop is not held
//! up: files larger than [`AT_ONCE`], and all that are copied to host files, are read on a thread of their own. Called by the
//! client when a launch is requested, and when it has ended.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nestbox_protocol::Step;
use nestbox_sys::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, unlinkat};

use crate::failure::{Code, Failure};

/// The largest file that is read on the event loop's thread: about 30 µs.
const AT_ONCE: u64 = 256 * 1024;

/// The size of one read while copying.
const CHUNK: usize = 256 * 1024;

/// A file that a launch is to leave.
#[derive(Clone, Debug)]
pub struct OutputRequest {
    /// Where it is, inside.
    pub path: String,
    /// How large it may be.
    pub max_bytes: u64,
    /// The host file to make of it; `None`: its bytes are returned.
    pub to: Option<PathBuf>,
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Output {
    /// Its size (of what was read or copied).
    pub bytes: u64,
    /// Its content, where it was asked for.
    pub content: Option<Vec<u8>>,
    /// Why there is none.
    pub error: Option<OutputError>,
    /// It is larger than allowed; nothing of it was kept.
    pub too_large: bool,
}

/// Why there is no output: which of the two files failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputError {
    /// The one inside could not be read.
    Source(Errno),
    /// The host file could not be made or written.
    Target(Errno),
}

impl OutputError {
    fn source(error: &io::Error) -> Self {
        Self::Source(errno_of(error))
    }

    fn target(error: &io::Error) -> Self {
        Self::Target(errno_of(error))
    }
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

impl Output {
    /// One whose file inside could not be had.
    pub(crate) fn failed(errno: Errno) -> Self {
        OutputError::Source(errno).into()
    }

    fn from_result(result: Result<Self, OutputError>) -> Self {
        result.unwrap_or_else(Self::from)
    }
}

impl From<OutputError> for Output {
    fn from(error: OutputError) -> Self {
        Self { error: Some(error), ..Self::default() }
    }
}

/// A file that a launch is to leave, from the request on.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) max_bytes: u64,
    /// Where it is copied to; `None`: its bytes are returned.
    pub(crate) to: Option<Target>,
}

impl Expected {
    /// What is known to be wrong with the host file is told now: the program's work would be lost.
    pub(crate) fn find(request: &OutputRequest) -> Result<Self, Failure> {
        Ok(Self { max_bytes: request.max_bytes, to: request.to.as_deref().map(Target::find).transpose()? })
    }
}

/// A host file to make.
///
/// Its directory is held from before the program runs: where the program can write to a directory on the way, the path may
/// lead elsewhere by the time the file is made.
#[derive(Debug)]
pub(crate) struct Target {
    directory: OwnedFd,
    /// Its name there.
    name: OsString,
}

impl Target {
    fn find(to: &Path) -> Result<Self, Failure> {
        let failed = |syscall, errno| {
            Failure::system(Code::Spawn, Step::OpenOutputTarget, syscall, errno).on(to.to_string_lossy())
        };
        // What has no last name, as the root, is there already.
        let name = to.file_name().ok_or_else(|| failed("open", Errno::EEXIST))?;
        let parent = match to.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // O_PATH: a directory need not be readable for a file to be made in it.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(parent, flags, Mode::empty()).map_err(|errno| failed("open", errno))?;
        match fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => {}
            Ok(_) => return Err(failed("open", Errno::EEXIST)),
            Err(errno) => return Err(failed("fstatat", errno)),
        }
        // The real ids' rights are this process's: one that acts with others has no fork server.
        faccessat(&directory, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::empty())
            .map_err(|errno| failed("faccessat", errno))?;
        Ok(Self { directory, name: name.into() })
    }

    fn create(&self) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&self.directory, self.name.as_os_str(), flags, Mode::from_bits_truncate(0o666))?.into())
    }

    fn remove(&self) {
        // If even that fails there is nothing more to be done; the error of the copy tells more.
        let _ = unlinkat(&self.directory, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
    }
}

/// One output of one launch, as far as it has come.
#[derive(Debug)]
pub(crate) enum Progress {
    Done(Output),
    /// To be read by the [`Reader`].
    Later(File),
}

/// Reads a small file at once.
pub(crate) fn begin(expected: &Expected, fd: OwnedFd) -> Progress {
    let file = File::from(fd);
    let metadata = match file.metadata() {
        Ok(metadata) => metadata,
        Err(error) => return Progress::Done(OutputError::source(&error).into()),
    };
    if !metadata.is_file() {
        return Progress::Done(Output::failed(Errno::EMEDIUMTYPE));
    }
    if metadata.len() > expected.max_bytes {
        return Progress::Done(Output { too_large: true, bytes: metadata.len(), ..Output::default() });
    }
    if expected.to.is_some() || metadata.len() > AT_ONCE {
        return Progress::Later(file);
    }
    Progress::Done(Output::from_result(read(&file, expected.max_bytes, metadata.len())))
}

/// Reads at most `max` bytes. Its size is only a guess: a file on a writable bind may grow meanwhile.
fn read(file: &File, max: u64, size: u64) -> Result<Output, OutputError> {
    let mut content = Vec::with_capacity(size as usize);
    // Not `(&*file).read_to_end`: the fd's offset is shared with whoever else holds it.
    let mut source = Positioned { file, offset: 0 }.take(max.saturating_add(1));
    source.read_to_end(&mut content).map_err(|error| OutputError::source(&error))?;
    let bytes = content.len() as u64;
    if bytes > max {
        return Ok(Output { too_large: true, bytes, ..Output::default() });
    }
    Ok(Output { bytes, content: Some(content), ..Output::default() })
}

/// A file read by position.
struct Positioned<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// Copies a file to a new one.
fn copy(file: &File, max: u64, to: &Target) -> Result<Output, OutputError> {
    let copied = copy_into(file, max, &mut to.create().map_err(|error| OutputError::target(&error))?);
    if !matches!(copied, Ok(Output { too_large: false, .. })) {
        to.remove();
    }
    copied
}

fn copy_into(file: &File, max: u64, target: &mut File) -> Result<Output, OutputError> {
    let mut source = Positioned { file, offset: 0 }.take(max.saturating_add(1));
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => return Ok(Output { bytes, ..Output::default() }),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(|error| OutputError::source(&error))?,
        };
        bytes += count as u64;
        if bytes > max {
            return Ok(Output { too_large: true, bytes, ..Output::default() });
        }
        target.write_all(&buffer[..count]).map_err(|error| OutputError::target(&error))?;
    }
}

/// What the reader is to read.
pub(crate) struct Job {
    pub(crate) token: u64,
    pub(crate) index: usize,
    pub(crate) file: File,
    pub(crate) expected: Expected,
}

/// One that it has read.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) token: u64,
    pub(crate) index: usize,
    pub(crate) output: Output,
}

#[derive(Debug)]
struct Results {
    done: Mutex<Vec<Finished>>,
    wake: EventFd,
}

/// The thread that reads what is large. It ends when the reader is dropped.
pub(crate) struct Reader {
    jobs: Sender<Job>,
    results: Arc<Results>,
}

impl Reader {
    pub(crate) fn start() -> Result<Self, Errno> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let results = Arc::new(Results { done: Mutex::default(), wake });
        let (jobs, todo) = mpsc::channel();
        let own = Arc::clone(&results);
        thread::Builder::new()
            .name("nestbox-reader".into())
            .stack_size(256 * 1024)
            .spawn(move || work(&todo, &own))
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN)))?;
        Ok(Self { jobs, results })
    }

    /// Readable when something is finished.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.results.wake.as_fd()
    }

    /// Hands a job over; gives it back if the thread is gone.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Job> {
        self.jobs.send(job).map_err(|error| error.0)
    }

    /// What was finished since the last call.
    pub(crate) fn collect(&self) -> Vec<Finished> {
        let _ = self.results.wake.read();
        std::mem::take(&mut *self.results.done.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn work(todo: &Receiver<Job>, results: &Results) {
    // This thread belongs to the host's process: its signals are for others.
    let all = nix::sys::signal::SigSet::all();
    let _ = all.thread_block();
    for Job { token, index, file, expected: Expected { max_bytes, to } } in todo {
        let size = file.metadata().map_or(0, |metadata| metadata.len()).min(max_bytes);
        let output = Output::from_result(match &to {
            Some(to) => copy(&file, max_bytes, to),
            None => read(&file, max_bytes, size),
        });
        let finished = Finished { token, index, output };
        results.done.lock().unwrap_or_else(PoisonError::into_inner).push(finished);
        let _ = results.wake.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn bytes(max_bytes: u64) -> Expected {
        Expected { max_bytes, to: None }
    }

    fn file(content: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().expect("tempfile");
        file.write_all(content).expect("written");
        file.into()
    }

    fn wait(reader: &Reader) -> Finished {
        for _ in 0..5000 {
            if let Some(finished) = reader.collect().pop() {
                return finished;
            }
            thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("the reader never finished");
    }

    #[test]
    fn small_files_are_read_at_once_and_capped() {
        let Progress::Done(output) = begin(&bytes(5), file(b"12345")) else { panic!("small") };
        assert_eq!(output.content.as_deref(), Some(&b"12345"[..]));
        let Progress::Done(output) = begin(&bytes(4), file(b"12345")) else { panic!("small") };
        assert!(output.too_large && output.content.is_none());
        let directory = File::open("/").expect("root").into();
        let Progress::Done(output) = begin(&bytes(4), directory) else { panic!("refused") };
        assert_eq!(output.error, Some(OutputError::Source(Errno::EMEDIUMTYPE)));
    }

    #[test]
    fn a_file_that_grows_is_capped_while_reading() {
        let file = File::from(file(b"0123456789"));
        let output = read(&file, 4, 2).expect("reads");
        assert!(output.too_large);
    }

    #[test]
    fn large_files_are_read_elsewhere() {
        let content = vec![7; 3 * AT_ONCE as usize];
        let wanted = bytes(u64::MAX);
        let Progress::Later(file) = begin(&wanted, file(&content)) else { panic!("large") };
        let reader = Reader::start().expect("thread");
        reader.submit(Job { token: 3, index: 1, file, expected: wanted }).map_err(drop).expect("alive");
        let finished = wait(&reader);
        assert_eq!((finished.token, finished.index), (3, 1));
        assert_eq!(finished.output.content, Some(content));
    }

    #[test]
    fn a_host_file_is_only_ever_made_new() {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| directory.path().join(name);
        let find = |name: &str| Target::find(&at(name));
        let source = File::from(file(b"content"));
        let [out, again, small, link] =
            ["out", "out", "small", "link"].map(|name| find(name).expect("none yet"));
        assert_eq!(copy(&source, 7, &out).expect("copied").bytes, 7);
        assert_eq!(fs::read(at("out")).expect("there"), b"content");
        assert_eq!(copy(&source, 7, &again).expect_err("exists"), OutputError::Target(Errno::EEXIST));
        assert!(copy(&source, 6, &small).expect("refused").too_large);
        assert!(!at("small").exists(), "removed again");
        symlink("elsewhere", at("link")).expect("symlink");
        copy(&source, 7, &link).expect_err("not followed");
        for (to, errno) in [
            ("out", Errno::EEXIST),
            ("link", Errno::EEXIST),
            ("none/out", Errno::ENOENT),
            ("out/out", Errno::ENOTDIR),
            ("..", Errno::EEXIST),
        ] {
            let failure = find(to).expect_err("can be seen before");
            assert_eq!((failure.step, failure.errno), (Step::OpenOutputTarget, errno), "{to}");
            assert_eq!(failure.path.as_deref(), at(to).to_str());
        }
    }

    #[test]
    fn an_error_says_which_of_the_two_files_it_is_of() {
        let mut closed = File::open("/dev/null").expect("open for reading");
        let error = copy_into(&File::from(file(b"content")), 7, &mut closed).expect_err("not for writing");
        assert_eq!(error, OutputError::Target(Errno::EBADF));
        let mut target = tempfile::tempfile().expect("tempfile");
        let unreadable = File::open("/").expect("root");
        let error = copy_into(&unreadable, 7, &mut target).expect_err("a directory");
        assert_eq!(error, OutputError::Source(Errno::EISDIR));
    }

    #[test]
    fn a_host_file_is_made_and_removed_where_its_path_led_at_first() {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("results")).expect("made");
        fs::create_dir(at("elsewhere")).expect("made");
        let [whole, large] =
            ["whole", "large"].map(|name| Target::find(&at("results").join(name)).expect("a directory"));
        fs::rename(at("results"), at("moved")).expect("moved");
        symlink("elsewhere", at("results")).expect("symlink");
        // What a second look at the path would remove.
        fs::write(at("elsewhere/large"), "another").expect("written");
        let source = File::from(file(b"content"));
        copy(&source, 7, &whole).expect("copied");
        assert!(copy(&source, 6, &large).expect("refused").too_large);
        assert_eq!(fs::read(at("moved/whole")).expect("there"), b"content");
        assert!(!at("moved/large").exists(), "removed again");
        assert!(!at("elsewhere/whole").exists());
        assert!(at("elsewhere/large").exists());
    }
}
