//! Policies and mount trees as JavaScript values.

use std::sync::Arc;

use napi::bindgen_prelude::AsyncTask;
use napi::{Env, Error, Result, Status, Task};
use napi_derive::napi;
use nestbox_client::{Issue, PolicyHandle};

use crate::event::NativeFailure;
use crate::fork::{NativeTreeEntry, nodes};

/// A parsed policy, with what it resolved to on this host.
#[napi]
#[derive(Debug)]
pub struct NativePolicy {
    pub(crate) handle: Arc<PolicyHandle>,
}

/// Resolving a policy on a thread of libuv's pool.
#[derive(Debug)]
pub struct Resolving(Arc<PolicyHandle>);

impl Task for Resolving {
    type Output = Option<NativeFailure>;
    type JsValue = Option<NativeFailure>;

    fn compute(&mut self) -> Result<Self::Output> {
        Ok(self.0.resolve().err().map(NativeFailure::from))
    }

    fn resolve(&mut self, _: Env, failure: Self::Output) -> Result<Self::JsValue> {
        Ok(failure)
    }
}

#[napi]
impl NativePolicy {
    /// Parses the JSON of a policy, which the TypeScript layer has validated.
    #[napi(constructor, catch_unwind)]
    pub fn new(json: String) -> Result<Self> {
        let handle = PolicyHandle::parse(&json).map_err(|message| Error::new(Status::InvalidArg, message))?;
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Hash of what the policy says on this host, in hexadecimal. Throws what `resolve` would return.
    #[napi(getter, catch_unwind)]
    pub fn hash(&self) -> Result<String> {
        self.handle.hash().map_err(|failure| Error::new(Status::GenericFailure, failure.to_string()))
    }

    /// Makes it concrete on this host, unless that was done and still holds. `null`: it is.
    #[napi(catch_unwind)]
    pub fn resolve(&self) -> Option<NativeFailure> {
        self.handle.resolve().err().map(NativeFailure::from)
    }

    /// The same beside the event loop, which it would block for some milliseconds: it reads ELF files and directories.
    #[napi(ts_return_type = "Promise<NativeFailure | null>")]
    pub fn prepare(&self) -> AsyncTask<Resolving> {
        AsyncTask::new(Resolving(Arc::clone(&self.handle)))
    }
}

/// Something that is wrong with an input, and where.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeIssue {
    pub path: Vec<String>,
    pub message: String,
}

impl From<Issue> for NativeIssue {
    fn from(Issue { path, message }: Issue) -> Self {
        Self { path, message }
    }
}

/// What is wrong with the JSON of a policy; nothing of the host is looked at.
#[napi(catch_unwind)]
pub fn check_policy(json: String) -> Vec<NativeIssue> {
    nestbox_client::check_policy(&json).into_iter().map(NativeIssue::from).collect()
}

/// What is wrong with the JSON of a syscall filter.
#[napi(catch_unwind)]
pub fn check_syscall_filter(json: String) -> Vec<NativeIssue> {
    nestbox_client::check_syscall_filter(&json).into_iter().map(NativeIssue::from).collect()
}

/// The JSON of a preset's filter.
#[napi(catch_unwind)]
pub fn syscall_preset(name: String) -> Result<String> {
    nestbox_client::syscall_preset(&name)
        .ok_or_else(|| Error::new(Status::InvalidArg, format!("{name:?} is no filter")))
}

/// What is wrong with a mount tree, by the rules of sandbox2.
#[napi(catch_unwind)]
pub fn check_mount_tree(entries: Vec<NativeTreeEntry>) -> Vec<NativeIssue> {
    nestbox_client::check_mount_tree(&nodes(&entries)).into_iter().map(NativeIssue::from).collect()
}
