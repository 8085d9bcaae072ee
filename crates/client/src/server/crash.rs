//! Crashes: what was captured of one goes to a launch of its own, and what that says of it into the result.
//!
//! Promises: callers hear nothing of these launches, and the result that waits for one is told however that one ends.

use std::os::fd::OwnedFd;

use crate::event::Event;
use crate::launch::Launched;
use crate::symbolizer::{self, Crash};

use super::Client;

impl Client {
    /// Has a crash made sense of, in a sandbox.
    pub(super) fn symbolize(&mut self, token: u64, captured: &[OwnedFd]) {
        let launched = symbolizer::policy().and_then(|policy| {
            let program = symbolizer::program(&self.symbolizer)?;
            self.launch(symbolizer::request(&policy, &program, captured))
        });
        match launched {
            Ok(Launched { token: reader, .. }) => {
                // None of the caller's.
                self.launched -= 1;
                self.symbolizing.insert(reader, token);
            }
            Err(failure) => self.symbolized(token, symbolizer::failed(&failure)),
        }
    }

    /// Takes what is said of a launch of [`Client::symbolize`]; gives back what is said of others.
    pub(super) fn take_symbolized(&mut self, event: Event) -> Option<Event> {
        let (reader, crash) = match event {
            Event::Ended { token, ended } if self.symbolizing.contains_key(&token) => {
                (token, symbolizer::conclude(*ended))
            }
            Event::Failed { token, failure } | Event::Lost { token, failure }
                if self.symbolizing.contains_key(&token) =>
            {
                (token, symbolizer::failed(&failure))
            }
            Event::Started { token, .. } if self.symbolizing.contains_key(&token) => return None,
            other => return Some(other),
        };
        if let Some(token) = self.symbolizing.remove(&reader) {
            self.symbolized(token, crash);
        }
        None
    }

    /// The last thing that the result waited for.
    fn symbolized(&mut self, token: u64, crash: Crash) {
        let Some(launch) = self.launches.get_mut(&token) else { return };
        launch.crash = Some(crash);
        self.finish_reading(token);
    }
}
