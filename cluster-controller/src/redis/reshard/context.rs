//! What all parts of a reshard share: connections, bounds, what was counted, and the first failure.

use super::{
    checks::Census,
    error::ReshardError,
    limits::{RateLimiter, ReshardLimits},
    nodes::NodeLinks,
    progress::ReshardTracker,
};
use common::cluster::topology::NodeId;
use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// What all parts of a reshard share.
pub(super) struct Context<'a> {
    pub(super) links: &'a NodeLinks,
    pub(super) limits: &'a ReshardLimits,
    pub(super) tracker: &'a ReshardTracker,
    /// Cancelled when the caller cancels, or when a part has failed: nothing new is begun then.
    pub(super) stop: &'a CancellationToken,
    pub(super) failure: &'a Mutex<Option<ReshardError>>,
    pub(super) census: OnceLock<Census>,
    pub(super) rates: Mutex<RateLimiter>,
    /// Nodes that did not take a table.
    pub(super) skipped: Mutex<BTreeSet<NodeId>>,
}

impl Context<'_> {
    /// Records the first failure, and stops the other parts.
    pub(super) fn fail(&self, error: ReshardError) {
        locked(self.failure).get_or_insert(error);
        self.stop.cancel();
    }

    /// What was counted beforehand.
    pub(super) fn census(&self) -> &Census {
        self.census.get_or_init(Census::default)
    }

    /// How long a call has to wait to keep to the rates.
    pub(super) fn delay(&self, keys: usize, bytes: u64) -> Duration {
        locked(&self.rates).delay(Instant::now(), keys, bytes)
    }

    /// Whether a node has taken every table so far.
    pub(super) fn hears(&self, node: NodeId) -> bool {
        !locked(&self.skipped).contains(&node)
    }

    /// Leaves a node to gossip: each attempt to reach it would cost its timeout.
    pub(super) fn skip(&self, node: NodeId) {
        locked(&self.skipped).insert(node);
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
