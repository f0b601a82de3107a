//! What the planner knows, and what it can ask for.

use common::{
    claims::{attempts::AttemptFacts, jobs::JobResult},
    cluster::slot_map::{NotSettled, SlotMap},
    kubernetes::leases::Operation,
};
use crds::RedisCluster;
use std::{sync::Arc, time::Duration};

/// What is known in this reconcile. `None`: not asked yet; [`super::Step::Ask`] says what to ask next.
#[derive(Debug, Default)]
pub struct Observed {
    /// `Some(None)`: there is no cluster of that name.
    pub cluster: Option<Option<Arc<RedisCluster>>>,
    /// Whether the storage can be used; `None` until the probe has ended.
    pub storage: Option<JobResult<()>>,
    /// Whether the backup holds the operation Lease.
    pub operation: Option<Operation>,
    /// The slot map, read just now.
    pub slot_map: Option<Result<SlotMap, NotSettled>>,
    /// What is known about the attempts of its units.
    pub attempts: AttemptFacts,
    /// How publishing ended; `None` until it has.
    pub publishing: Option<JobResult<Published>>,
    /// How the deletion of the artifacts ended; `None` until it has.
    pub deletion: Option<JobResult<()>>,
    /// What this backup waits for, and for how long without progress.
    pub waiting: Option<(Awaited, Duration)>,
}

impl Observed {
    /// For how long this has been waited for. The wait for something else before it does not count.
    pub fn waited(&self, on: Awaited) -> Duration {
        self.waiting
            .filter(|(other, _)| *other == on)
            .map_or(Duration::ZERO, |(_, time)| time)
    }
}

/// What a backup can wait for. Each has a clock of its own; its reasons may change meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// That the cluster exists, serves all slots, and moves none.
    Cluster,
    /// That the storage takes what will be written.
    Storage,
    /// That another operation releases the cluster's operation Lease.
    Operation,
    /// That the storage takes the manifest.
    Manifest,
    /// That the replicas stop their uploads.
    Stopping,
    /// That the storage deletes the artifacts.
    Deletion,
}

/// A manifest that is in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Key of the manifest in the bucket.
    pub manifest_key: String,
    /// Its SHA-256, hex.
    pub manifest_sha256: String,
    /// Milliseconds between the first and the last fork.
    pub skew_ms: i64,
    /// Version of the RDB format in the objects.
    pub rdb_version: i32,
}

/// What the planner has to know before it can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The RedisCluster that is backed up, and whether it exists.
    Cluster,
    /// Take or renew the operation lease.
    Operation,
    /// Ask every node for the slot map.
    SlotMap,
    /// Which replicas of the controller live.
    Members,
}
