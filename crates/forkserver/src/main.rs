//! The fork server: a static, single-threaded helper that launches isolated processes on request.
//!
//! Started by `crates/client` with an empty environment and its control socket as fd 3. Its processes, and where each is
//! written down:
//!
//! - the fork server itself ([`boot`], [`server`]): receives requests, forks a child for each, never waits;
//! - the privileged helper ([`privileged`]), under a root host only;
//! - the mounter ([`initial`], [`mounter`]), which made the initial namespaces, with bounds on what all sandboxees hold
//!   together ([`quota`]), and lives in them;
//! - the network keeper ([`network`]), which makes network namespaces and tells whether one is as new;
//! - one template per policy ([`template`], built by [`tree`]), which forks a nest per launch;
//! - one init per nest ([`init`]), which prepares it ([`nest`]), starts the sandboxee ([`child`];
//!   of a warm nest ahead of its launch: [`parked`]), watches over it ([`watch`]), reaps ([`reap`]) and reports;
//! - one supervisor per launch that no template serves ([`request`]).
//!
//! Started with the argument `doctor`, it serves nothing: it tries what launches need, and tells ([`doctor`]).
//!
//! `docs/architecture.md` has the picture and the sequence of a launch.

mod allowance;
mod arena;
mod arguments;
mod boot;
mod capabilities;
mod census;
mod child;
mod crash;
mod doctor;
mod fault;
mod guard;
mod init;
mod initial;
mod landlock;
mod launch;
mod learn;
mod limits;
mod listener;
mod memory;
mod mounter;
mod nest;
mod network;
mod notify;
mod outputs;
mod parked;
mod privileged;
mod quota;
mod reap;
mod remains;
mod report;
mod request;
mod server;
mod source;
mod stack;
mod template;
mod tree;
mod watch;

/// Ends this process at once: no destructors, no flushing, whatever state the launch path is in.
fn exit(status: i32) -> ! {
    loop {
        // SAFETY: takes a number; does not return.
        let _ = unsafe { nestbox_sys::syscall!(libc::SYS_exit_group, status) };
    }
}

fn main() {
    // The client starts us with its pid as the only argument; `nestbox doctor` with this word.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "doctor") {
        doctor::run()
    }
    server::run()
}
