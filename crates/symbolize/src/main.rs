//! Makes a report of what was captured of a crash: registers, memory map, and the stack of each thread with names and lines.
//!
//! What it reads was left behind by a program that may have been hostile: memory, and ELF files with their unwind tables and
//! debug information. So it runs in a sandbox that has nothing in it but this program and these files as fds (see
//! [`nestbox_protocol::crash`]), and what it writes is checked by who reads it. Promises: to standard output go two lines of
//! JSON, each a whole report. The first is made without looking at any file; whatever becomes of this process after that, it
//! stands. The client (`crates/client`) runs it.

#![cfg_attr(not(test), no_main)]

mod capture;
mod elf;
mod report;
mod stack;

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;

use memmap2::MmapOptions;
use nestbox_protocol::crash::{CAPTURE_FD, FIRST_MODULE_FD};

use crate::capture::Capture;
use crate::elf::Module;

/// The content of an fd that was passed, for as long as this process lives.
fn content(fd: u32) -> Option<&'static [u8]> {
    // SAFETY: it was passed for this and is used for nothing else; if it was not, mapping it fails.
    let mut file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd.cast_signed()) });
    // Not from its metadata, which the filter has no call for.
    let length = file.seek(SeekFrom::End(0)).ok()?;
    // SAFETY: a file that is written to meanwhile gives wrong names, and one that is cut SIGBUS; neither leaves the sandbox.
    let map = unsafe { MmapOptions::new().len(usize::try_from(length).ok()?).map(&*file) }.ok()?;
    Some(Box::leak(Box::new(map)))
}

fn print(report: &report::Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    io::stdout().write_all(&line)
}

/// Called by the C library: Rust's own start looks for the end of the stack in `/proc`, which the filter has no call for.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main() -> i32 {
    i32::from(run().is_err())
}

fn run() -> io::Result<()> {
    let bytes = content(CAPTURE_FD).ok_or(io::ErrorKind::NotFound)?;
    let capture = Capture::read(bytes);
    print(&report::facts(&capture))?;
    let modules: Vec<Module> = capture
        .modules
        .iter()
        .filter_map(|(number, path)| Some((path, content(FIRST_MODULE_FD + number)?)))
        .flat_map(|(path, file)| elf::modules(&capture, path, file))
        .collect();
    print(&report::whole(&capture, &modules))
}
