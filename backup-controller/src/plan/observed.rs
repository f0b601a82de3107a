//! What the planner knows, and how it learned it.

use crate::slot_map::{NotSettled, SlotMap};
use common::kubernetes::{background::Background, leases::Operation};
use crds::RedisCluster;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// What is known in this pass. `None`: not asked yet; [`Step::Ask`] says what to ask next.
#[derive(Debug, Default)]
pub struct Observed {
    /// The cluster; `Some(None)`: there is none of that name.
    pub cluster: Option<Option<Arc<RedisCluster>>>,
    /// Whether the storage can be used; `None` while nobody has looked.
    pub storage: Option<Background<()>>,
    /// Whether the operation lease is ours.
    pub operation: Option<Operation>,
    /// The slot map, read just now.
    pub slot_map: Option<Result<SlotMap, NotSettled>>,
    /// Names of the replicas of this controller that live.
    pub members: Option<BTreeSet<String>>,
    /// How publishing went; `None` while it was not begun.
    pub publishing: Option<Background<Published>>,
    /// How the deletion of the artifacts went; `None` while it was not begun.
    pub deletion: Option<Background<()>>,
    /// For how long each failed unit has been seen as failed, by index.
    pub failed_for: BTreeMap<i32, Duration>,
    /// What this backup waits for, and for how long without a step.
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

/// What a backup can wait for. Each has patience of its own; its reasons may change meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// That the cluster is there, serves, and moves no slots.
    Cluster,
    /// That the storage takes what will be written.
    Storage,
    /// That another operation gives the cluster's lease back.
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
    /// Its key.
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
    /// The RedisCluster.
    Cluster,
    /// Take or renew the operation lease.
    Operation,
    /// Ask every node for the slot map.
    SlotMap,
    /// Which replicas of the controller live.
    Members,
}
