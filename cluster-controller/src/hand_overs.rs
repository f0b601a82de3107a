//! When primaries may be handed over again: memory that may be lost.
//!
//! A hand-over that fails has kept clients waiting for seconds; it is not repeated at once.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// After a hand-over that failed.
pub const AFTER_FAILURE: SignedDuration = SignedDuration::from_mins(1);
/// While another operation holds the cluster.
pub const WHILE_HELD: SignedDuration = SignedDuration::from_secs(20);

/// The clusters whose hand-overs are postponed.
#[derive(Debug, Default)]
pub struct HandOverTracker {
    postponed: Mutex<HashMap<(String, String), Timestamp>>,
}

impl HandOverTracker {
    /// Whether a primary may be handed over.
    pub fn may_try(&self, (namespace, name): (&str, &str), now: Timestamp) -> bool {
        let postponed = self
            .postponed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let until = postponed.get(&(namespace.to_owned(), name.to_owned()));
        until.is_none_or(|until| now >= *until)
    }

    /// No hand-over before this moment.
    pub fn postpone(&self, (namespace, name): (&str, &str), until: Timestamp) {
        let mut postponed = self
            .postponed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        postponed.insert((namespace.to_owned(), name.to_owned()), until);
    }

    /// The cluster is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut postponed = self
            .postponed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        postponed.remove(&(namespace.to_owned(), name.to_owned()));
    }
}
