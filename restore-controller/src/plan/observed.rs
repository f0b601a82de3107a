//! What the planner knows, and how it learns it.

use crate::verify::Comparison;
use common::{
    cluster::info::ServerInfo,
    kubernetes::{background::Background, leases::Operation},
};
use crds::{RedisBackup, RedisCluster, S3Location};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// What is known in this pass. `None`: not asked yet; a step says what to ask next.
#[derive(Debug, Default)]
pub struct Observed {
    /// The RedisBackup that is named; `Some(None)`: there is none of that name.
    pub backup: Option<Option<Arc<RedisBackup>>>,
    /// What stands in storage.
    pub source: Option<Background<Arc<Examined>>>,
    /// The target; `Some(None)`: there is none of that name.
    pub cluster: Option<Option<Arc<RedisCluster>>>,
    /// Whether the operation lease is ours.
    pub operation: Option<Operation>,
    /// The target's servers, asked just now.
    pub target: Option<Result<TargetState, NotSettled>>,
    /// Names of the replicas of this controller that live.
    pub members: Option<BTreeSet<String>>,
    /// What was counted in the target.
    pub verification: Option<Background<Verified>>,
    /// For how long each failed unit has been seen as failed, by index.
    pub failed_for: BTreeMap<i32, Duration>,
    /// What was waited for in the last pass, and for how long.
    pub waiting_for: Option<(&'static str, Duration)>,
}

/// What has to be found out before the planner can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The RedisBackup.
    Backup,
    /// The target RedisCluster.
    Cluster,
    /// Take or renew the operation lease.
    Operation,
    /// Ask every node of the target.
    Target,
    /// Which replicas of the controller live.
    Members,
}

/// A backup whose manifest and indexes were read and fit each other, and whose objects are there in full length.
#[derive(Clone, Debug, PartialEq)]
pub struct Examined {
    /// The bucket.
    pub storage: S3Location,
    /// Key of the manifest.
    pub manifest_key: String,
    /// Its SHA-256, hex.
    pub manifest_sha256: String,
    /// Identity of the backup.
    pub backup_id: String,
    /// What was backed up, for example "Redis 7.0.15".
    pub server: String,
    /// Version of the RDB format.
    pub rdb_version: u32,
    /// Keys, if every shard's were counted.
    pub keys: Option<u64>,
    /// Blocks of each shard's object.
    pub blocks: Vec<u64>,
}

/// What the target's own nodes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetState {
    /// Keys of each primary that has any: its address and how many.
    pub keys: Vec<(String, u64)>,
    /// Every server that was asked, without repetition.
    pub servers: Vec<ServerInfo>,
}

/// Why the target cannot take keys now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSettled {
    /// No pods.
    #[error("no pod of the target has an address")]
    NoPods,
    /// Slots without an owner.
    #[error("slots {slots} of the target have no owner that answers")]
    NotCovered {
        /// The slots.
        slots: String,
    },
    /// Slots with several owners.
    #[error("slots {slots} of the target are claimed by more than one primary")]
    Disputed {
        /// The slots.
        slots: String,
    },
    /// A slot is being moved.
    #[error("a slot of the target is being moved (node {node})")]
    OpenSlot {
        /// The node that says so.
        node: String,
    },
    /// A node does not answer.
    #[error("{0}")]
    Unreachable(String),
}

/// How the verification ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// The counts were compared.
    Compared(Comparison),
    /// The backup's keys were not counted per slot; so many keys were found.
    NotCounted {
        /// Keys in the target.
        actual: u64,
    },
}
