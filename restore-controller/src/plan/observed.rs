//! What the planner knows, and what it can ask for.

use crate::verify::Comparison;
use common::{
    claims::{attempts::AttemptFacts, jobs::JobResult},
    cluster::{info::ServerInfo, slot_map::NotSettled},
    kubernetes::leases::Operation,
};
use crds::{RedisBackup, RedisCluster, S3Location};
use std::{sync::Arc, time::Duration};

/// What is known in this reconcile. `None`: not asked yet; [`super::Step::Ask`] says what to ask next.
#[derive(Debug, Default)]
pub struct Observed {
    /// The RedisBackup that is named; `Some(None)`: it does not exist.
    pub backup: Option<Option<Arc<RedisBackup>>>,
    /// The backup as storage has it; `None` until the examination has ended.
    pub source: Option<JobResult<Arc<Examined>>>,
    /// The target; `Some(None)`: it does not exist.
    pub cluster: Option<Option<Arc<RedisCluster>>>,
    /// Whether the restore holds the operation Lease.
    pub operation: Option<Operation>,
    /// The target's servers, asked just now.
    pub target: Option<Result<TargetState, NotSettled>>,
    /// What is known about the attempts of its units.
    pub attempts: AttemptFacts,
    /// What was counted in the target; `None` until the verification has ended.
    pub verification: Option<JobResult<Verified>>,
    /// The reason of the wait in the last reconcile, and for how long it has lasted.
    pub waiting: Option<(&'static str, Duration)>,
}

/// What has to be found out before the planner can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The RedisBackup that the spec names, and whether it exists.
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

/// A backup whose manifest and indexes were read and fit each other, and whose objects exist in full length.
#[derive(Clone, Debug, PartialEq)]
pub struct Examined {
    /// Where the objects of the backup are.
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
