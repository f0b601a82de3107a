//! `RedisRestore`: one backup replayed into one cluster.

use crate::{
    ElapsedTime, LocalRef, RedisClusterSpec, S3Location,
    shared::{cluster_name_rule, conditions_schema, immutable_except, not_observed},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which backup is restored, and into which cluster. It cannot be changed later.
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
    doc = "Restores a backup into an empty RedisCluster with any number of shards, and counts the keys afterwards.",
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
    printcolumn(
        name = "Completed",
        type_ = "date",
        json_path = ".status.completionTime"
    ),
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
#[schemars(transform = immutable_except("RedisRestore", &[]))]
#[serde(rename_all = "camelCase")]
pub struct RedisRestoreSpec {
    /// The backup to restore.
    pub source: RestoreSource,
    /// The cluster that receives the data.
    pub target: RestoreTarget,
    /// How many times each object of the backup is tried before the restore fails: 1 to 20. Another attempt continues after the
    /// last block whose keys were acknowledged.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 20))]
    pub attempts: i32,
}

fn three() -> i32 {
    3
}

/// The backup to restore. Give exactly one of backupRef and location.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.backupRef) != has(self.location)").message("give exactly one of backupRef and location"))]
pub struct RestoreSource {
    /// A RedisBackup in the same namespace. The restore waits until it is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_ref: Option<LocalRef>,
    /// A backup in storage. No RedisBackup is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<BackupLocation>,
}

/// A backup in storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupLocation {
    /// The bucket, and the prefix below which path is looked up.
    pub s3: S3Location,
    /// Folder of manifest.json below the prefix, for example namespace/cluster/20261121t003000z-3f9c2a10.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.contains('//')").message("path is a folder below the bucket's prefix, without s3://, a slash at its start or empty segments, for example namespace/cluster/20261121t003000z-3f9c2a10"))]
    pub path: String,
}

/// The cluster that receives the data. Give exactly one of clusterRef and newCluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.clusterRef) != has(self.newCluster)").message("give exactly one of clusterRef and newCluster"))]
pub struct RestoreTarget {
    /// A RedisCluster without keys, in the same namespace. A cluster that holds keys is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = cluster_name_rule())]
    pub cluster_ref: Option<LocalRef>,
    /// A RedisCluster to create in the same namespace. It stays when the RedisRestore is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_cluster: Option<NewCluster>,
}

/// A RedisCluster to create.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewCluster {
    /// Name of the RedisCluster: at most 40 lower case letters, digits and dashes, starting with a letter.
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Spec of the RedisCluster. The number of shards may differ from that of the backup.
    pub spec: RedisClusterSpec,
}

/// The observed state of a restore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = not_observed)]
pub struct RedisRestoreStatus {
    /// The generation of the spec that this status describes; -1 until the controller has seen the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Summary in one word: Pending, Validating, Provisioning, Replaying, Verifying, Succeeded or Failed. Scripts should read
    /// the conditions instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// What the restore waits for, how far it is, or why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Identifies the backup in storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<String>,
    /// The storage as it was resolved when the restore was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<S3Location>,
    /// Key of the manifest in the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_key: Option<String>,
    /// SHA-256 of the manifest that was checked, in hexadecimal digits. A manifest that has changed since is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<String>,
    /// The RedisCluster that receives the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<LocalRef>,
    /// When the first object was ready to be replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the restore succeeded or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Time from startTime to completionTime, for example 1m12s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<ElapsedTime>,
    /// Totals over all objects of the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<RestoreProgress>,
    /// The state of each object of the backup, for people who look for the cause of a failure. The controller's replicas
    /// coordinate their work through this list: it is not part of the API, and its fields may change in any release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<RestoreUnit>,
    /// Keys counted after the restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
    /// Ready: the restore is complete. Reconciling: it is under way. Stalled: it has failed. In detail: SourceValid, Compatible,
    /// TargetReady, DataLoaded, Verified, Complete, Failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// Totals over all objects of the backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreProgress {
    /// Part of the data that is restored, for example 42%.
    pub summary: String,
    /// Keys written.
    pub keys: i64,
    /// Keys in the backup; 0 when they were not counted.
    pub total_keys: i64,
    /// Keys of the backup that had expired before they were written.
    pub expired: i64,
}

/// One object of the backup. Not part of the API: the controller's replicas coordinate their work through it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreUnit {
    /// Index of the shard in the backup.
    pub index: i32,
    /// The controller's replica that works on the object; empty while none does.
    #[serde(default)]
    pub worker: String,
    /// Number of the attempt, counted from 1.
    #[serde(default)]
    pub attempt: i32,
    /// How far the attempt is.
    #[serde(default)]
    pub state: RestoreUnitState,
    /// The first block whose keys have not all been acknowledged. Another attempt continues here.
    #[serde(default)]
    pub block: i64,
    /// Number of blocks in the object.
    #[serde(default)]
    pub blocks: i64,
    /// Keys written from the blocks before block.
    #[serde(default)]
    pub keys: i64,
    /// Keys of the blocks before block that had expired before they were written.
    #[serde(default)]
    pub expired: i64,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How far the replay of an object is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestoreUnitState {
    /// No replica of the controller works on it.
    #[default]
    Pending,
    /// Keys are being written.
    Replaying,
    /// Every key is acknowledged.
    Loaded,
    /// This attempt failed; another may follow.
    Failed,
    /// This attempt failed, and another would fail in the same way.
    Refused,
}

/// Keys counted in the target after the restore, compared with the backup slot by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// Keys in the backup.
    pub expected: i64,
    /// Keys found in the target.
    pub actual: i64,
    /// Keys of the backup that have expired since.
    pub expired: i64,
    /// Slots whose number of keys differs; at most 100 are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mismatched_slots: Vec<i32>,
}
