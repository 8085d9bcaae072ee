//! The driver's side: a line on stdin says what to do, a line of JSON on stdout what came of it.
//!
//! - `turn N PAUSE`: N launches, one after the other, each after so many microseconds of rest: `{"samples":[...]}`;
//! - `flood N WORKERS`: N launches by so many processes at once, each launching without rest: `{"ms":...}`.
//!
//! An end of file ends it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{FromRawFd, RawFd};
use std::process::ExitCode;
use std::time::Instant;

use nestbox_sys::process;

use crate::fault::{During, Fault, errno_of};
use crate::launch::{Launch, exit, wait_for};

/// The driver's ends.
pub(crate) struct Commands {
    from: BufReader<File>,
    to: File,
}

/// Moves stdin and stdout out of the way, and puts the null device in their place: that is what sandboxees get. stderr
/// stays as it is until the exec.
pub(crate) fn take_stdio() -> Result<Commands, Fault> {
    let moved = |fd: RawFd| {
        // SAFETY: numbers only.
        unsafe { nestbox_sys::syscall!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, 10) }
            .during("fcntl: stdio")
    };
    let (from, to) = (moved(0)? as RawFd, moved(1)? as RawFd);
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|error| errno_of(&error))
        .during("open: /dev/null")?;
    for fd in 0..2 {
        // SAFETY: numbers only; what was there has been moved.
        unsafe { nestbox_sys::syscall!(libc::SYS_dup3, std::os::fd::AsRawFd::as_raw_fd(&null), fd, 0) }
            .during("dup3: /dev/null")?;
    }
    // SAFETY: made above, and nobody else knows it.
    let from = unsafe { File::from_raw_fd(from) };
    // SAFETY: as above.
    let to = unsafe { File::from_raw_fd(to) };
    Ok(Commands { from: BufReader::new(from), to })
}

/// Does what is asked until nobody asks any more.
pub(crate) fn serve(mut commands: Commands, launch: &Launch<'_>) -> Result<ExitCode, Fault> {
    let mut line = String::new();
    loop {
        line.clear();
        let read =
            commands.from.read_line(&mut line).map_err(|error| errno_of(&error)).during("read: command")?;
        if read == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        let mut answer = obey(&line, launch)?;
        answer.push('\n');
        commands.to.write_all(answer.as_bytes()).map_err(|error| errno_of(&error)).during("write: answer")?;
    }
}

fn obey(line: &str, launch: &Launch<'_>) -> Result<String, Fault> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |word: &str| word.parse::<u64>().map_err(|_| Fault::text(format!("no number: {word}")));
    match words[..] {
        ["turn", launches, pause] => turn(number(launches)?, number(pause)?, launch),
        ["flood", launches, workers] => flood(number(launches)?, number(workers)?, launch),
        _ => Err(Fault::text(format!("no command: {line}"))),
    }
}

fn turn(launches: u64, pause_us: u64, launch: &Launch<'_>) -> Result<String, Fault> {
    let mut text = String::from("{\"samples\":[");
    for index in 0..launches {
        let sample = launch.once(pause_us)?;
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(text, "{comma}{{\"us\":{:.1},\"reapedUs\":{:.1}}}", sample.us, sample.reaped_us);
    }
    text.push_str("]}");
    Ok(text)
}

fn flood(launches: u64, workers: u64, launch: &Launch<'_>) -> Result<String, Fault> {
    let workers = workers.max(1);
    let (told, tell) = std::io::pipe().map_err(|error| errno_of(&error)).during("pipe")?;
    let mut running = Vec::new();
    for index in 0..workers {
        let share = launches / workers + u64::from(index < launches % workers);
        // SAFETY: single-threaded; no CLONE_VM.
        let worker = unsafe { process::fork_with(0) }.during("clone3: worker")?;
        let Some(pid) = worker else {
            drop(tell);
            work(share, &told, launch)
        };
        running.push(pid);
    }
    drop(told);
    let start = Instant::now();
    // All begin at this end of file.
    drop(tell);
    let mut failed = false;
    for pid in running {
        failed |= wait_for(pid)? != 0;
    }
    let took = start.elapsed();
    if failed {
        return Err(Fault::text("a worker failed"));
    }
    Ok(format!("{{\"ms\":{:.3}}}", took.as_secs_f64() * 1e3))
}

/// One worker: a share of the launches.
fn work(share: u64, mut told: &std::io::PipeReader, launch: &Launch<'_>) -> ! {
    let _ = process::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as usize);
    let begun = told.read(&mut [0]).map_err(|error| errno_of(&error)).during("read: begin");
    let done = begun.and_then(|_| (0..share).try_for_each(|_| launch.once(0).map(drop)));
    if let Err(fault) = &done {
        eprintln!("nestbox-floor: {fault}");
    }
    exit(i32::from(done.is_err()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Bare;

    #[test]
    fn it_does_what_it_is_told_and_refuses_the_rest() {
        let launch = Launch::Bare(Bare::new("/bin/true").expect("a path"));
        let samples = obey("turn 3 0\n", &launch).expect("three launches");
        assert_eq!(samples.matches("\"us\"").count(), 3, "{samples}");
        assert!(obey("flood 5 2\n", &launch).expect("five launches").starts_with("{\"ms\":"));
        assert!(obey("turn 3", &launch).is_err());
        assert!(obey("turn three 0", &launch).is_err());
        let missing = Launch::Bare(Bare::new("/no/such/program").expect("a path"));
        assert!(obey("turn 1 0", &missing).is_err(), "a launch that fails is no sample");
    }
}
