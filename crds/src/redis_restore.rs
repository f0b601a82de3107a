//! `RedisRestore`: one backup replayed into one cluster.

use crate::{LocalRef, RedisClusterSpec, S3Location, shared::conditions_schema};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One restore: from where, and where to.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "redis.danieldorado.github.io",
    version = "v1alpha1",
    kind = "RedisRestore",
    plural = "redisrestores",
    shortname = "rrestore",
    category = "all",
    category = "redis",
    namespaced,
    status = "RedisRestoreStatus",
    doc = "Replays a backup into an empty RedisCluster of any number of shards, and proves what arrived.",
    printcolumn(name = "Source", type_ = "string", json_path = ".status.backupId"),
    printcolumn(
        name = "Target",
        type_ = "string",
        json_path = ".status.targetRef.name"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.progress.summary"
    ),
    printcolumn(name = "Keys", type_ = "integer", json_path = ".status.progress.keys"),
    printcolumn(name = "Completed", type_ = "date", json_path = ".status.completedAt"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        priority = 1
    )
)]
#[x_kube(validation = Rule::new("self == oldSelf").message("a RedisRestore cannot be changed: create another one"))]
#[serde(rename_all = "camelCase")]
pub struct RedisRestoreSpec {
    /// The backup.
    pub source: RestoreSource,
    /// The cluster that receives it.
    pub target: RestoreTarget,
    /// How often each source object is tried before the restore has failed.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 20))]
    pub attempts: i32,
}

fn three() -> i32 {
    3
}

/// The backup: exactly one member is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.backupRef) != has(self.location)").message("give exactly one of backupRef and location"))]
pub struct RestoreSource {
    /// A succeeded RedisBackup in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_ref: Option<LocalRef>,
    /// A backup in storage, without a RedisBackup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<BackupLocation>,
}

/// A backup in storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupLocation {
    /// The bucket. Its prefix is put in front of path.
    pub s3: S3Location,
    /// Path of the folder that holds manifest.json, for example namespace/cluster/20261121t003000z-3f9c2a10.
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,
}

/// The cluster that receives the backup: exactly one member is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.clusterRef) != has(self.newCluster)").message("give exactly one of clusterRef and newCluster"))]
pub struct RestoreTarget {
    /// An existing RedisCluster without keys, in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ref: Option<LocalRef>,
    /// A RedisCluster that is created for this restore, and stays when the restore is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_cluster: Option<NewCluster>,
}

/// A cluster to create.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewCluster {
    /// Name of the new cluster.
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Its spec; the number of shards is free.
    pub spec: RedisClusterSpec,
}

/// The observed state of a restore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedisRestoreStatus {
    /// The generation of the spec that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people: Pending, Validating, Provisioning, Replaying, Verifying, Succeeded or Failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// One sentence for people: what is waited for, or why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Identity of the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<String>,
    /// The storage as resolved when the restore was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<S3Location>,
    /// Key of the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_key: Option<String>,
    /// SHA-256 of the manifest that was checked, hex: every worker reads this one or stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<String>,
    /// The cluster that receives the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<LocalRef>,
    /// When the first unit was given out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it succeeded or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// Time from start to completion, for people, for example 1m12s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// Summary of all units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<RestoreProgress>,
    /// Each source object: the units of work that the controller's replicas claim.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<RestoreUnit>,
    /// What was counted afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
    /// SourceValid, Compatible, TargetReady, DataLoaded, Verified, Complete, Failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// Summary over all units.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreProgress {
    /// For people, for example 42%.
    pub summary: String,
    /// Keys written.
    pub keys: i64,
    /// Keys of the backup.
    pub total_keys: i64,
    /// Keys of the backup that had expired before they were written.
    pub expired: i64,
}

/// One source object: a unit of work with a holder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreUnit {
    /// Index of the shard in the backup.
    pub index: i32,
    /// The controller replica that works on it; empty while nobody does.
    #[serde(default)]
    pub worker: String,
    /// The number of this attempt, from 1.
    #[serde(default)]
    pub attempt: i32,
    /// How far it is.
    #[serde(default)]
    pub state: RestoreUnitState,
    /// The first block whose keys have not all been acknowledged: where another attempt goes on.
    #[serde(default)]
    pub block: i64,
    /// Blocks of the object.
    #[serde(default)]
    pub blocks: i64,
    /// Keys written from the blocks before block.
    #[serde(default)]
    pub keys: i64,
    /// Keys of those blocks that had expired before they were written.
    #[serde(default)]
    pub expired: i64,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How far a unit is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestoreUnitState {
    /// Waiting for a controller replica.
    #[default]
    Pending,
    /// Keys are being written.
    Replaying,
    /// Every key is acknowledged.
    Loaded,
    /// This attempt failed; the planner decides about another.
    Failed,
    /// This attempt failed, and another would fail in the same way.
    Refused,
}

/// Keys counted in the target, slot by slot, against the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// Keys of the backup.
    pub expected: i64,
    /// Keys found in the target.
    pub actual: i64,
    /// Keys of the backup that have expired since.
    pub expired: i64,
    /// Slots whose count does not fit, at most 100 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mismatched_slots: Vec<i32>,
}
