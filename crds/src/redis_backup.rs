//! `RedisBackup`: one backup of one cluster.

use crate::{
    DeletionPolicy, ElapsedTime, LocalRef, S3Location,
    shared::{cluster_name_rule, conditions_schema, immutable_except, not_observed},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which cluster is backed up, and where the backup is stored. Only deletionPolicy can be changed later.
#[derive(
    CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "redis.danieldorado.github.io",
    version = "v1alpha1",
    kind = "RedisBackup",
    plural = "redisbackups",
    shortname = "rbackup",
    category = "all",
    category = "redis",
    namespaced,
    status = "RedisBackupStatus",
    doc = "One backup of a RedisCluster, streamed from its nodes into S3-compatible storage.",
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".spec.clusterRef.name"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.progress.summary"
    ),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.progress.stored"),
    printcolumn(
        name = "Shards",
        type_ = "integer",
        json_path = ".status.progress.shards"
    ),
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
        name = "Destination",
        type_ = "string",
        json_path = ".status.destination",
        priority = 1
    ),
    printcolumn(
        name = "Duration",
        type_ = "string",
        json_path = ".status.duration",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        priority = 1
    )
)]
#[x_kube(validation = Rule::new("has(self.storageName) != has(self.s3)").message("give exactly one of storageName (one of the cluster's spec.backup.storages) and s3"))]
#[schemars(transform = immutable_except("RedisBackup", &["deletionPolicy"]))]
#[serde(rename_all = "camelCase")]
pub struct RedisBackupSpec {
    /// The RedisCluster to back up, in the same namespace. The backup waits up to 10 minutes for it to serve every slot.
    #[x_kube(validation = cluster_name_rule())]
    pub cluster_ref: LocalRef,
    /// Name of one of the cluster's spec.backup.storages. Give exactly one of storageName and s3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub storage_name: Option<String>,
    /// Where the backup is stored. Give exactly one of storageName and s3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Location>,
    /// Which node of each shard is read.
    #[serde(default)]
    pub source: BackupSource,
    /// How the data is compressed.
    #[serde(default)]
    pub compression: BackupCompression,
    /// How many times each shard is tried before the backup fails: 1 to 20.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 20))]
    pub attempts: i32,
    /// What happens to the stored data when this RedisBackup is deleted. Can be changed at any time.
    /// Retain: the data is kept. Delete: it is deleted before the object goes.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

fn three() -> i32 {
    3
}

/// Which node of each shard is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupSource {
    /// Replica: an in-sync replica, or the primary of a shard that has none. Primary: always the primary.
    #[serde(default)]
    pub prefer: SourceRole,
}

/// The role of a node that is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SourceRole {
    /// An in-sync replica, or the primary of a shard that has none.
    #[default]
    Replica,
    /// Always the primary.
    Primary,
}

/// How the data is compressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupCompression {
    /// Gzip: ordinary .gz files. None: stored as the server sends it.
    #[serde(default, rename = "type")]
    pub kind: CompressionType,
    /// Level of gzip, 1 to 9: 1 is the fastest, 9 gives the smallest files. Ignored with type None.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 9))]
    pub level: i32,
}

fn one() -> i32 {
    1
}

impl Default for BackupCompression {
    fn default() -> Self {
        Self {
            kind: CompressionType::Gzip,
            level: 1,
        }
    }
}

/// Formats of stored objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CompressionType {
    /// Independent gzip members, one after the other: any gzip reads the whole.
    #[default]
    Gzip,
    /// As the server sends it.
    None,
}

/// The observed state of a backup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = not_observed)]
pub struct RedisBackupStatus {
    /// The generation of the spec that this status describes; -1 until the controller has seen the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Summary in one word: Pending, Waiting, Capturing, Publishing, Succeeded, Failed or Deleting. Scripts should read the
    /// conditions instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// What the backup waits for, how far it is, or why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Identifies the backup in storage: the time of creation and a part of this object's uid, sortable by time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<String>,
    /// When the first shard was ready to be captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the backup succeeded or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Time from startTime to completionTime, for example 1m12s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<ElapsedTime>,
    /// Address of the backup: s3://bucket/prefix/namespace/cluster/backupId/.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// The storage as it was resolved when the backup was accepted. Restores and deletion use it, also without the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<S3Location>,
    /// Key of the manifest in the bucket. Set when the backup is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_key: Option<String>,
    /// SHA-256 of the manifest, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<String>,
    /// Uid of the RedisCluster that was backed up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_uid: Option<String>,
    /// Server and version that the cluster ran, for example "Redis 7.0.15".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis_version: Option<String>,
    /// Version of the RDB format of the stored data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdb_version: Option<i32>,
    /// Hash of the slot map at the time of the backup. Equal maps have equal hashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology_hash: Option<String>,
    /// Time between the first and the last shard's snapshot, for example 250ms: shards are snapshotted one by one, not at
    /// the same instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_skew: Option<ElapsedTime>,
    /// Totals over all shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<BackupProgress>,
    /// The state of each shard, for people who look for the cause of a failure. The controller's replicas coordinate their work
    /// through this list: it is not part of the API, and its fields may change in any release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<BackupShard>,
    /// Ready: the backup is complete. Reconciling: it is under way. Stalled: it has failed. In detail: Accepted, Captured,
    /// SlotsCovered, Published, Complete, Failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// Totals over all shards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupProgress {
    /// shardsDone and shards as one text, for example 2/3.
    pub summary: String,
    /// Shards to store.
    pub shards: i32,
    /// Shards that are stored.
    pub shards_done: i32,
    /// Bytes received from the servers.
    pub raw_bytes: i64,
    /// Bytes stored, that is, after compression.
    pub stored_bytes: i64,
    /// storedBytes with a unit, for example 61.4Mi.
    pub stored: String,
    /// Keys in the backup. Absent when a shard holds a value of a type that the controller does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<i64>,
}

/// One shard of the backup. Not part of the API: the controller's replicas coordinate their work through it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupShard {
    /// Index of the shard in this backup, in the order of the first slot.
    pub index: i32,
    /// Id of the shard's primary when the backup was planned.
    pub primary_id: String,
    /// Slots of the shard, for example 0-5460.
    pub slot_ranges: Vec<String>,
    /// The controller's replica that works on the shard; empty while none does.
    #[serde(default)]
    pub worker: String,
    /// Number of the attempt, counted from 1.
    #[serde(default)]
    pub attempt: i32,
    /// How far the attempt is.
    #[serde(default)]
    pub state: BackupShardState,
    /// The node that is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ShardSource>,
    /// When the server forked to take its snapshot. The backup holds the shard as it was at this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork_time: Option<Time>,
    /// Key of the shard's data in the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Key of the shard's index in the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_key: Option<String>,
    /// SHA-256 of the index, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_sha256: Option<String>,
    /// SHA-256 of the data, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Bytes received from the server.
    #[serde(default)]
    pub raw_bytes: i64,
    /// Bytes stored, that is, after compression.
    #[serde(default)]
    pub stored_bytes: i64,
    /// Keys counted so far. Absent when the shard holds a value of a type that the controller does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<i64>,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The node that a shard is read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShardSource {
    /// Name of the node's pod.
    pub pod: String,
    /// The node's id in the cluster.
    pub node_id: String,
    /// The node's role when it was chosen.
    pub role: SourceRole,
}

/// How far the capture of a shard is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BackupShardState {
    /// No replica of the controller works on it, or its server has not forked yet.
    #[default]
    Pending,
    /// The server has taken its snapshot and sends it.
    Streaming,
    /// Data and index are in storage.
    Stored,
    /// This attempt failed; another may follow.
    Failed,
}
