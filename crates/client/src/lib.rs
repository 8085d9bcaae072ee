//! ForkClient: starts the fork server and speaks with it.
//!
//! [`Client`] is one fork server and all that is in flight on it: a state machine on one epoll fd, without threads of its
//! own on the way of a launch and without a runtime. It knows nothing of JavaScript; `crates/node` converts to and from
//! it and polls it. Errors are [`Failure`]s, whole records that name the step, the call and the errno.
//!
//! | module | concern |
//! |---|---|
//! | `server` | the client: connects the parts below |
//! | `spawner`, `image` | starting the fork server's process |
//! | `reactor`, `channel` | readiness, packets that wait for room |
//! | `policy`, `templates` | resolved policies, and who waits for which template |
//! | `networks`, `ids` | what nests are given while they run |
//! | `launch`, `fork` | requests and results |
//! | `event` | what is told of them, and of the fork server |
//! | `stdio`, `capture`, `outputs` | what goes in and comes out |
//! | `symbolizer` | what is made of a crash |
//! | `failure`, `hints`, `blockers` | what went wrong and what to do |
//! | `doctor` | whether sandboxes can be launched here, and what keeps them from it |

mod admission;
mod blockers;
mod capabilities;
mod capture;
mod channel;
mod doctor;
mod event;
mod failure;
mod files;
mod fork;
mod hints;
mod ids;
mod image;
mod launch;
mod nests;
mod networks;
mod numbered;
mod outputs;
mod policy;
mod reactor;
mod room;
mod server;
mod spawner;
mod stdio;
mod symbolizer;
mod syscall;
mod templates;

pub use blockers::{Blocker, Fix};
pub use capabilities::Capabilities;
pub use capture::OnOverflow;
pub use doctor::{Check, Diagnosis, Outcome, Setting, diagnose};
pub use event::Event;
pub use failure::{Code, Failure};
pub use files::FileRequest;
pub use fork::{ForkCall, TreeKind, TreeNode, check_mount_tree};
pub use ids::DEFAULT_HOST_ID;
pub use image::OVERRIDE;
pub use launch::{
    BindRequest, Ended, Ending, Isolation, Landlock, LaunchRequest, Launched, Limit, NAMESPACES, Usage,
    hard_limits,
};
pub use nestbox_policy::Issue;
pub use nestbox_protocol::{Limits, Step};
pub use nests::Warm;
pub use outputs::{Output, OutputError, OutputRequest};
pub use policy::{PolicyHandle, check_policy, check_syscall_filter, syscall_preset};
pub use server::{Client, Options, Stats};
pub use stdio::{COMMS_FD, Comms, Extra, Fds, Returned, Stdio, block};
pub use symbolizer::Crash;
pub use syscall::{Address, Answer, Kind, Learned, Memory, Supervision, SystemCall, Use};
