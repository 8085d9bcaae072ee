//! The examination of this system as a JavaScript function.

use napi::bindgen_prelude::AsyncTask;
use napi::{Env, Result, Task};
use napi_derive::napi;
use nestbox_client::{Blocker, Check, Diagnosis, Outcome, Setting, diagnose};

use crate::event::NativeFailure;
use crate::server::IMAGE;

/// One thing that was tried. `skipped` says why it was not; neither that nor `failure`: it works.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeCheck {
    pub name: String,
    pub required: bool,
    pub value: Option<String>,
    pub failure: Option<NativeFailure>,
    pub blocker: Option<&'static str>,
    pub skipped: Option<String>,
}

/// A cause, and what to do about it.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeBlocker {
    pub name: &'static str,
    pub hint: String,
    pub fixes: Vec<NativeFix>,
}

/// A text to copy.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeFix {
    pub title: &'static str,
    pub text: &'static str,
}

/// A switch or limit of the system.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeSetting {
    pub name: String,
    pub value: Option<String>,
}

/// What was found.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeDiagnosis {
    pub checks: Vec<NativeCheck>,
    pub blockers: Vec<NativeBlocker>,
    pub settings: Vec<NativeSetting>,
}

/// Runs on a thread of libuv's pool: it waits for a process.
#[derive(Debug)]
pub struct Examination;

impl Task for Examination {
    type Output = Diagnosis;
    type JsValue = NativeDiagnosis;

    fn compute(&mut self) -> Result<Diagnosis> {
        Ok(diagnose(IMAGE))
    }

    fn resolve(&mut self, _: Env, diagnosis: Diagnosis) -> Result<NativeDiagnosis> {
        Ok(diagnosis.into())
    }
}

/// Tries everything that a launch needs, in processes that are thrown away.
#[napi(catch_unwind, ts_return_type = "Promise<NativeDiagnosis>")]
pub fn examine() -> AsyncTask<Examination> {
    AsyncTask::new(Examination)
}

impl From<Diagnosis> for NativeDiagnosis {
    fn from(Diagnosis { checks, settings }: Diagnosis) -> Self {
        let mut blockers: Vec<Blocker> = checks
            .iter()
            .filter_map(|check| match &check.outcome {
                Outcome::Fails(_, blocker) => *blocker,
                _ => None,
            })
            .collect();
        blockers.sort_unstable();
        blockers.dedup();
        Self {
            checks: checks.into_iter().map(NativeCheck::from).collect(),
            blockers: blockers.into_iter().map(NativeBlocker::from).collect(),
            settings: settings
                .into_iter()
                .map(|Setting { name, value }| NativeSetting { name, value })
                .collect(),
        }
    }
}

impl From<Check> for NativeCheck {
    fn from(Check { name, required, outcome }: Check) -> Self {
        let mut check = Self { name, required, value: None, failure: None, blocker: None, skipped: None };
        match outcome {
            Outcome::Works(value) => check.value = (!value.is_empty()).then_some(value),
            Outcome::Fails(failure, blocker) => {
                check.failure = Some(failure.into());
                check.blocker = blocker.map(Blocker::name);
            }
            Outcome::Skipped(reason) => check.skipped = Some(reason),
        }
        check
    }
}

impl From<Blocker> for NativeBlocker {
    fn from(blocker: Blocker) -> Self {
        let fixes = blocker.fixes().iter().map(|fix| NativeFix { title: fix.title, text: fix.text });
        Self { name: blocker.name(), hint: blocker.hint().into_owned(), fixes: fixes.collect() }
    }
}
