//! The floor: the kernel work of a launch and nothing else.
//!
//! No protocol, no JavaScript, no supervision, no limits of time: what is left is what the kernel charges for a launch,
//! and so the limit that nestbox can come close to and not pass. To be comparable it reads the same policy and carries
//! out the same plan as the fork server, from a static binary as small: the same mounts, masks, namespaces, id maps, Landlock
//! rules, limits and controls of speculation, and the same syscall filter, which its template has installed. Three modes:
//!
//! - `bare PROGRAM`: vfork, exec, wait, with no isolation at all;
//! - `cold POLICY`: one clone3(2) from a template ([`tree`]), everything that is fresh ([`nest`]), the sandboxee
//!   ([`child`]), its status;
//! - `warm POLICY`: the same, stopped before what is the launch's own; what is measured begins with its message.
//!
//! Each is driven by lines on stdin, so that it can take turns with other ways to launch, and answers each with a line of
//! JSON ([`drive`]). Started by `bench/host.mjs`.

mod child;
mod drive;
mod fault;
mod landlock;
mod launch;
mod nest;
mod tree;
mod user;

use std::process::ExitCode;

use fault::{During, Fault};
use launch::{Bare, Launch, Nested};
use nestbox_sys::{process, rseq};
use tree::Template;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["bare", program] => bare(program),
        ["cold", policy] => nested(policy, false),
        ["warm", policy] => nested(policy, true),
        _ => Err(Fault::text("usage: nestbox-floor bare PROGRAM | cold POLICY | warm POLICY")),
    };
    match done {
        Ok(status) => status,
        Err(fault) => {
            eprintln!("nestbox-floor: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn bare(program: &str) -> Result<ExitCode, Fault> {
    let bare = Bare::new(program)?;
    drive::serve(drive::take_stdio()?, &Launch::Bare(bare))
}

/// Namespaces are made and joined on the way, so this process ends up outside of the one that launches.
fn nested(policy: &str, warm: bool) -> Result<ExitCode, Fault> {
    // In a process of its own: what resolving leaves behind in memory would be copied by each clone.
    let plan = tree::plan_of(policy)?;
    let ids = user::enter_user_namespace(&plan)?;
    if !tree::fork_template()? {
        return tree::wait_for_template();
    }
    let nested = Nested::new(&plan, ids, Template::build(&plan)?, warm)?;
    let commands = drive::take_stdio()?;
    // As the fork server's processes do.
    rseq::leave();
    // As its templates do: what is cloned from here on has the filter.
    nestbox_sys::raw::carry(plan.launch_cookie);
    if plan.filter_inherited {
        process::install_filter(&plan.filter).during("seccomp")?;
    }
    drive::serve(commands, &Launch::Nested(Box::new(nested)))
}
