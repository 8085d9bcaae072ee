//! Output files: what a launch left in its nest and the caller asked for.
//!
//! Init opened them after all else of the nest was dead and passed the fds with the result. Promises: only regular files
//! are read, and never more than the caller's limit and one byte; a host file is only ever made new (nothing is
//! overwritten, no symlink followed), in the directory that its path led to before the program ran, and is gone again if it
//! could not be completed; an event loop is not held up: files larger than [`AT_ONCE`], and all that are copied to host
//! files, are read on a thread of their own. Called by the client when a launch is requested, and when it has ended.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nestbox_sys::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

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
    pub error: Option<Errno>,
    /// It is larger than allowed; nothing of it was kept.
    pub too_large: bool,
}

impl Output {
    /// One that could not be had.
    pub(crate) fn failed(errno: Errno) -> Self {
        Self { error: Some(errno), ..Self::default() }
    }

    fn from_result(result: io::Result<Self>) -> Self {
        result.unwrap_or_else(|error| Self::failed(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))
    }
}

/// A file that a launch is to leave, from the request on.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) max_bytes: u64,
    /// Where it is copied to; `None`: its bytes are returned.
    pub(crate) to: Option<Target>,
}

impl From<&OutputRequest> for Expected {
    fn from(request: &OutputRequest) -> Self {
        Self { max_bytes: request.max_bytes, to: request.to.as_deref().map(Target::find) }
    }
}

/// A host file to make.
///
/// Its directory is held from before the program runs: where the program can write to a directory on the way, the path may
/// lead elsewhere by the time the file is made.
#[derive(Debug)]
pub(crate) struct Target {
    /// Its directory; or why there is none, which is told in place of the output.
    directory: Result<OwnedFd, Errno>,
    /// Its name there.
    name: OsString,
}

impl Target {
    fn find(to: &Path) -> Self {
        // What has no last name, as the root, is there already.
        let Some(name) = to.file_name() else {
            return Self { directory: Err(Errno::EEXIST), name: OsString::new() };
        };
        let parent = match to.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // O_PATH: a directory need not be readable for a file to be made in it.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Self { directory: open(parent, flags, Mode::empty()), name: name.into() }
    }

    fn create(&self) -> io::Result<File> {
        let directory = self.directory.as_ref().map_err(|&errno| errno)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(directory, self.name.as_os_str(), flags, Mode::from_bits_truncate(0o666))?.into())
    }

    fn remove(&self) {
        if let Ok(directory) = &self.directory {
            // If even that fails there is nothing more to be done; the error of the copy tells more.
            let _ = unlinkat(directory, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
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
        Err(error) => return Progress::Done(Output::from_result(Err(error))),
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
fn read(file: &File, max: u64, size: u64) -> io::Result<Output> {
    let mut content = Vec::with_capacity(size as usize);
    // Not `(&*file).read_to_end`: the fd's offset is shared with whoever else holds it.
    let mut source = Positioned { file, offset: 0 }.take(max.saturating_add(1));
    source.read_to_end(&mut content)?;
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
fn copy(file: &File, max: u64, to: &Target) -> io::Result<Output> {
    let copied = copy_into(file, max, &mut to.create()?);
    if !matches!(copied, Ok(Output { too_large: false, .. })) {
        to.remove();
    }
    copied
}

fn copy_into(file: &File, max: u64, target: &mut File) -> io::Result<Output> {
    let mut source = Positioned { file, offset: 0 }.take(max.saturating_add(1));
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => return Ok(Output { bytes, ..Output::default() }),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        bytes += count as u64;
        if bytes > max {
            return Ok(Output { too_large: true, bytes, ..Output::default() });
        }
        target.write_all(&buffer[..count])?;
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
        assert_eq!(output.error, Some(Errno::EMEDIUMTYPE));
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
        let at = |name: &str| Target::find(&directory.path().join(name));
        let source = File::from(file(b"content"));
        assert_eq!(copy(&source, 7, &at("out")).expect("copied").bytes, 7);
        assert_eq!(fs::read(directory.path().join("out")).expect("there"), b"content");
        let error = copy(&source, 7, &at("out")).expect_err("exists");
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        assert!(copy(&source, 6, &at("small")).expect("refused").too_large);
        assert!(!directory.path().join("small").exists(), "removed again");
        symlink("elsewhere", directory.path().join("link")).expect("symlink");
        copy(&source, 7, &at("link")).expect_err("not followed");
        for (to, errno) in [("none/out", libc::ENOENT), ("out/out", libc::ENOTDIR), ("..", libc::EEXIST)] {
            let error = copy(&source, 7, &at(to)).expect_err("no directory to make it in");
            assert_eq!(error.raw_os_error(), Some(errno));
        }
    }

    #[test]
    fn a_host_file_is_made_and_removed_where_its_path_led_at_first() {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("results")).expect("made");
        fs::create_dir(at("elsewhere")).expect("made");
        let [whole, large] = ["whole", "large"].map(|name| Target::find(&at("results").join(name)));
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
