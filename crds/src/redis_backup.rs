//! `RedisBackup`: one backup of one cluster.

use crate::{DeletionPolicy, LocalRef, S3Location, shared::conditions_schema};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One backup: which cluster, and where to.
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
    printcolumn(name = "Completed", type_ = "date", json_path = ".status.completedAt"),
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
#[x_kube(
    validation = Rule::new("has(self.storageName) != has(self.s3)").message("give exactly one of storageName (one of the cluster's spec.backup.storages) and s3"),
    validation = Rule::new("self.clusterRef == oldSelf.clusterRef && has(self.storageName) == has(oldSelf.storageName) && (!has(self.storageName) || self.storageName == oldSelf.storageName) && has(self.s3) == has(oldSelf.s3) && (!has(self.s3) || self.s3 == oldSelf.s3) && self.source == oldSelf.source && self.compression == oldSelf.compression && self.attempts == oldSelf.attempts").message("a RedisBackup cannot be changed, except for deletionPolicy: create another one")
)]
#[serde(rename_all = "camelCase")]
pub struct RedisBackupSpec {
    /// The cluster to back up, in the same namespace.
    pub cluster_ref: LocalRef,
    /// Name of one of the cluster's spec.backup.storages. Exactly one of storageName and s3 is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40))]
    pub storage_name: Option<String>,
    /// Where to store the backup. Exactly one of storageName and s3 is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Location>,
    /// Which nodes are read.
    #[serde(default)]
    pub source: BackupSource,
    /// How the stream is compressed.
    #[serde(default)]
    pub compression: Compression,
    /// How often each shard is tried before the backup has failed.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 20))]
    pub attempts: i32,
    /// What becomes of the stored data when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

fn three() -> i32 {
    3
}

/// Which nodes are read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupSource {
    /// Replica: an in-sync replica of each shard, and its primary where there is none. Primary: always the primary.
    #[serde(default)]
    pub prefer: SourceRole,
}

/// The role of the node that is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SourceRole {
    /// An in-sync replica, or else the primary.
    #[default]
    Replica,
    /// The primary.
    Primary,
}

/// How the stream is compressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Compression {
    /// Gzip, in independent blocks that together are an ordinary .gz file, or None.
    #[serde(default, rename = "type")]
    pub kind: CompressionType,
    /// Level of gzip: 1 is the fastest, 9 the smallest.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 9))]
    pub level: i32,
}

fn one() -> i32 {
    1
}

impl Default for Compression {
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
    /// gzip.
    #[default]
    Gzip,
    /// As the server sends it.
    None,
}

/// The observed state of a backup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedisBackupStatus {
    /// The generation of the spec that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people: Pending, Waiting, Capturing, Publishing, Succeeded, Failed or Deleting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// One sentence for people: what is waited for, or why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Identity of the backup in storage: sortable time and part of this object's uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<String>,
    /// When the first shard was given out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it succeeded or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// Time from start to completion, for people, for example 1m12s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// Where the backup is: s3://bucket/prefix/namespace/cluster/backup id/.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// The storage as resolved when the backup was accepted, so that restore and deletion work without the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<S3Location>,
    /// Key of the manifest: the backup is complete when this is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_key: Option<String>,
    /// SHA-256 of the manifest, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<String>,
    /// Uid of the cluster that was backed up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_uid: Option<String>,
    /// What the servers reported, for example "Redis 7.0.15".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis_version: Option<String>,
    /// Version of the RDB format in the objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdb_version: Option<i32>,
    /// Hash of the slot map that the backup was taken of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology_hash: Option<String>,
    /// Milliseconds between the first and the last fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_skew_ms: Option<i64>,
    /// Summary of all shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<BackupProgress>,
    /// Each shard: the units of work that the controller's replicas claim.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<BackupShard>,
    /// Accepted, Captured, SlotsCovered, Published, Complete, Failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// Summary over all shards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupProgress {
    /// For people, for example 2/3.
    pub summary: String,
    /// Shards of the cluster.
    pub shards: i32,
    /// Shards stored.
    pub shards_done: i32,
    /// Bytes received from the servers.
    pub raw_bytes: i64,
    /// Bytes stored.
    pub stored_bytes: i64,
    /// storedBytes for people, for example 61.4Mi.
    pub stored: String,
    /// Keys counted; absent when a shard holds a type that this version cannot walk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<i64>,
}

/// One shard of the backup: a unit of work with a holder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupShard {
    /// Index of the shard in this backup, in the order of the first slot.
    pub index: i32,
    /// The shard's primary when the backup was planned.
    pub primary_id: String,
    /// Slots of the shard, for example 0-5460.
    pub slot_ranges: Vec<String>,
    /// The controller replica that works on it; empty while nobody does.
    #[serde(default)]
    pub worker: String,
    /// The number of this attempt, from 1.
    #[serde(default)]
    pub attempt: i32,
    /// How far it is.
    #[serde(default)]
    pub state: BackupShardState,
    /// The node that is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ShardSource>,
    /// When the server took the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forked_at: Option<Time>,
    /// Key of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Key of the shard's index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_key: Option<String>,
    /// SHA-256 of the shard's index, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_sha256: Option<String>,
    /// SHA-256 of the object, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Bytes received.
    #[serde(default)]
    pub raw_bytes: i64,
    /// Bytes stored.
    #[serde(default)]
    pub stored_bytes: i64,
    /// Keys counted; absent while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<i64>,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The node that is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShardSource {
    /// Its pod.
    pub pod: String,
    /// Its node id.
    pub node_id: String,
    /// Its role.
    pub role: SourceRole,
}

/// How far a shard is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BackupShardState {
    /// Waiting for a controller replica, or claimed and not yet forked.
    #[default]
    Pending,
    /// The server has taken its snapshot and sends it.
    Streaming,
    /// Object and index are in storage.
    Stored,
    /// This attempt failed; the planner decides about another.
    Failed,
}
