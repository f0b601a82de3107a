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
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Replicas that were behind are waited for again after so long: one that hangs costs a fifth of the time. In a scale-out that of the new shard
/// begins behind: after its first copy the primary sends it nothing until it acknowledges that, which takes up to a second.
const AGAIN: Duration = Duration::from_secs(1);

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
    /// Nodes whose replicas did not confirm in time what they had been sent, and when.
    pub(super) lagging: Mutex<BTreeMap<NodeId, Instant>>,
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

    /// Whether the replicas of a node have confirmed in time, or some time has passed since they did not: only then they are waited for.
    pub(super) fn is_followed(&self, node: NodeId) -> bool {
        let lagging = locked(&self.lagging);
        let since = lagging.get(&node);
        since.is_none_or(|since| since.elapsed() >= AGAIN)
    }

    /// Does not wait for the replicas of a node for some time.
    pub(super) fn leave_behind(&self, node: NodeId) {
        locked(&self.lagging).insert(node, Instant::now());
    }

    /// Leaves a node to gossip: each attempt to reach it would cost its timeout.
    pub(super) fn skip(&self, node: NodeId) {
        locked(&self.skipped).insert(node);
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
