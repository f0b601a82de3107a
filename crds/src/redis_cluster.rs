//! `RedisCluster`: what a user wants of a cluster, and what there is.

use crate::{DeletionPolicy, S3Location, reserved_settings, shared::conditions_schema};
use k8s_openapi::{
    api::core::v1::ResourceRequirements,
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Condition},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The wanted state of a Redis Cluster.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "redis.danieldorado.github.io",
    version = "v1alpha1",
    kind = "RedisCluster",
    plural = "redisclusters",
    shortname = "rediscl",
    category = "all",
    category = "redis",
    namespaced,
    status = "RedisClusterStatus",
    doc = "A Redis Cluster: shards of one primary and its replicas, formed and healed by the cluster-controller.",
    validation = Rule::new("size(self.metadata.name) <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("the name of a RedisCluster has at most 40 characters: lower case letters, digits and dashes, starting with a letter"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version.running"),
    printcolumn(name = "Shards", type_ = "integer", json_path = ".spec.shards"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyShards"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.size"),
    printcolumn(name = "Slots", type_ = "integer", json_path = ".status.slots.ok"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[x_kube(
    validation = Rule::new("has(self.version) != has(self.image)").message("give exactly one of version (the name of a RedisVersion) and image"),
    validation = Rule::new("has(self.storage) == has(oldSelf.storage)").message("storage can neither be added nor removed later: create a new cluster and restore a backup into it"),
    validation = Rule::new("self.shards == oldSelf.shards").message("the number of shards cannot be changed yet: restore a backup into a cluster of another size"),
    validation = Rule::new("self.replicasPerShard == oldSelf.replicasPerShard").message("replicasPerShard cannot be changed yet: restore a backup into another cluster")
)]
#[serde(rename_all = "camelCase")]
pub struct RedisClusterSpec {
    /// Name of a RedisVersion. Exactly one of version and image is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub version: Option<String>,
    /// Image with the server, its command line client and a shell. Exactly one of version and image is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Number of shards. The 16384 slots are spread evenly over them.
    #[schemars(range(min = 3, max = 500))]
    pub shards: i32,
    /// Replicas of each primary. Without one, the loss of a node is the loss of its shard until the node is back.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 5))]
    pub replicas_per_shard: i32,
    /// A volume for every node. Absent: the data lives in memory only, and survives only in the shard's other nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// Requests and limits of every server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Settings of redis.conf by name. What the controller sets itself is refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 128))]
    #[x_kube(validation = Rule::new(reserved_settings::rule()).message(Message::Expression(reserved_settings::message())))]
    #[x_kube(validation = Rule::new("self.all(key, key.matches('^[a-z0-9.-]+$'))").message("config: the names of settings have lower case letters, digits, dashes and dots"))]
    #[x_kube(validation = Rule::new("!('cluster-node-timeout' in self) || (self['cluster-node-timeout'].matches('^[0-9]{3,9}$') && int(self['cluster-node-timeout']) >= 500)").message("config: cluster-node-timeout is a number of milliseconds, at least 500"))]
    pub config: BTreeMap<String, String>,
    /// Hands off: the controller changes nothing until this is false again.
    #[serde(default)]
    pub paused: bool,
    /// How many pods may be evicted at the same time.
    #[serde(default)]
    pub pod_disruption_budget: DisruptionBudget,
    /// Where backups of this cluster go and when they are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupPlan>,
}

fn one() -> i32 {
    1
}

fn yes() -> bool {
    true
}

/// The volume of every node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.size == oldSelf.size").message("the size of the volumes cannot be changed yet"),
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)").message("storageClassName cannot be changed")
)]
pub struct Storage {
    /// Size of each volume, for example 10Gi. The append-only file needs about three times the memory the data takes.
    pub size: Quantity,
    /// Storage class. Absent: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// What becomes of the volumes when the RedisCluster is deleted.
    #[serde(default)]
    pub when_deleted: DeletionPolicy,
}

/// The one PodDisruptionBudget over all pods of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DisruptionBudget {
    /// Whether there is one.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Pods that may be missing by eviction at the same time. With 1, the majority of the primaries and a node of each
    /// shard stay.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100))]
    pub max_unavailable: i32,
}

impl Default for DisruptionBudget {
    fn default() -> Self {
        Self {
            enabled: true,
            max_unavailable: 1,
        }
    }
}

/// Storages and schedules of a cluster's backups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.schedules) || self.schedules.all(s, self.storages.exists(t, t.name == s.storageName))").message("every schedule names one of the storages in storageName"))]
pub struct BackupPlan {
    /// Places that backups of this cluster may name.
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub storages: Vec<BackupStorage>,
    /// When backups are made. Each becomes a CronJob.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub schedules: Vec<BackupSchedule>,
}

/// A place that backups may name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupStorage {
    /// Name by which backups and schedules refer to it.
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// The bucket.
    pub s3: S3Location,
}

/// A schedule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupSchedule {
    /// Name of the schedule; part of the names of its CronJob and its backups.
    #[schemars(
        length(min = 1, max = 20),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// When, in cron's five fields, for example "30 2 * * *".
    #[schemars(length(min = 1, max = 100))]
    #[x_kube(validation = Rule::new("self.startsWith('@') || self.matches('^\\\\S+\\\\s+\\\\S+\\\\s+\\\\S+\\\\s+\\\\S+\\\\s+\\\\S+$')").message("schedule has five fields (minute hour day month weekday), for example \"30 2 * * *\""))]
    pub schedule: String,
    /// Time zone of the schedule, for example Europe/Berlin. Absent: that of Kubernetes' controller manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: Option<String>,
    /// One of the storages' names.
    #[schemars(length(min = 1, max = 40))]
    pub storage_name: String,
    /// No new backups while true.
    #[serde(default)]
    pub suspend: bool,
    /// What becomes of the stored data when a backup of this schedule is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// The observed state of a Redis Cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedisClusterStatus {
    /// The generation of the spec that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people: Pending, Forming, Ready, Degraded, Down or Paused. Derived from the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// One sentence for people: what is being waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The server wanted and the servers found.
    #[serde(default)]
    pub version: VersionStatus,
    /// Nodes wanted: shards × (1 + replicasPerShard).
    #[serde(default)]
    pub size: i32,
    /// Shards whose primary serves and whose wanted replicas are linked.
    #[serde(default)]
    pub ready_shards: i32,
    /// Pods that are ready.
    #[serde(default)]
    pub ready_nodes: i32,
    /// Where clients connect, host:port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Coverage of the 16384 slots.
    #[serde(default)]
    pub slots: SlotsStatus,
    /// Hash of who owns which slots, equal for equal maps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology_hash: Option<String>,
    /// Each shard as the nodes themselves describe it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shard_statuses: Vec<ShardStatus>,
    /// The node ids that belong to this cluster, each with the pod that it was last seen in. A server with another id is not this
    /// cluster's, whatever its address, unless it is blank and knows no other node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<KnownNode>,
    /// Ready, Available, Progressing, Formed, SlotsCovered, ReplicationHealthy, QuorumHealthy, UpToDate, Paused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// Servers wanted and found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionStatus {
    /// The RedisVersion that image was resolved from; absent when the spec names an image itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The resolved image. Editing the catalog does not change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What the running servers report, for example "Redis 7.0.15"; several, joined by commas, while they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<String>,
}

/// A node that belongs to the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KnownNode {
    /// Name of the pod that the node was last seen in.
    pub pod: String,
    /// The node's id in the cluster.
    pub node_id: String,
}

/// Slot coverage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlotsStatus {
    /// Slots that have an owner.
    #[serde(default)]
    pub assigned: i32,
    /// Slots whose owner is alive and serves.
    #[serde(default)]
    pub ok: i32,
}

/// One shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShardStatus {
    /// Index of the shard, as in the names of its pods.
    pub index: i32,
    /// The node that owns the shard's slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<NodeStatus>,
    /// Its replicas.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<NodeStatus>,
    /// Slots owned, for example 0-5460.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slot_ranges: Vec<String>,
}

/// One node of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Name of the pod.
    pub pod: String,
    /// The node's id in the cluster: its identity, whatever its address.
    pub node_id: String,
    /// Whether a replica's link to its primary is up.
    #[serde(default)]
    pub linked: bool,
}
