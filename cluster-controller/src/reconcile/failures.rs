//! What went wrong in a reconcile that goes on all the same: whatever is wrong with the spec or refused by the API server, the nodes are
//! repaired. The first failure decides what the status says.

use crate::errors::{Failure, ReconcileError};

/// In the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Failures(Vec<ReconcileError>);

impl Failures {
    /// The value, or none: the failure is kept.
    pub(super) fn keep<T>(&mut self, result: Result<T, impl Into<ReconcileError>>) -> Option<T> {
        result.map_err(|error| self.push(error)).ok()
    }

    /// One more.
    pub(super) fn push(&mut self, error: impl Into<ReconcileError>) {
        self.0.push(error.into());
    }

    /// What the status says of the first.
    pub(super) fn first(&self) -> Option<Failure> {
        self.0.first().map(Failure::of)
    }

    /// The one that decides about the outcome.
    pub(super) fn into_first(self) -> Option<ReconcileError> {
        self.0.into_iter().next()
    }
}
