//! Policies as JavaScript values.

use napi::{Error, Result, Status};
use napi_derive::napi;
use nestbox_client::PolicyHandle;

use crate::event::NativeFailure;

/// A parsed policy, with what it resolved to on this host.
#[napi]
#[derive(Debug)]
pub struct NativePolicy {
    pub(crate) handle: PolicyHandle,
}

/// Something that is wrong with a policy, and where.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeIssue {
    pub path: Vec<String>,
    pub message: String,
}

#[napi]
impl NativePolicy {
    /// Parses the JSON of a policy, which the TypeScript layer has validated.
    #[napi(constructor, catch_unwind)]
    pub fn new(json: String) -> Result<Self> {
        let handle = PolicyHandle::parse(&json).map_err(|message| Error::new(Status::InvalidArg, message))?;
        Ok(Self { handle })
    }
}
