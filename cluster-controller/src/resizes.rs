//! The sizes that volume claims were not allowed to ask for: memory that may be lost, and then they are asked for once more.

use crate::volumes::Refusal;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// The last refusal of each cluster by namespace and name.
#[derive(Debug, Default)]
pub struct ResizeTracker {
    refusals: Mutex<HashMap<(String, String), Refusal>>,
}

impl ResizeTracker {
    /// What was refused the last time.
    pub fn refusal(&self, (namespace, name): (&str, &str)) -> Option<Refusal> {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    /// Remembers a refusal.
    pub fn refused(&self, (namespace, name): (&str, &str), refusal: Refusal) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.insert((namespace.to_owned(), name.to_owned()), refusal);
    }

    /// The cluster is gone, or the size was accepted.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.remove(&(namespace.to_owned(), name.to_owned()));
    }
}
