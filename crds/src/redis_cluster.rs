//! `RedisCluster`: the desired state of a cluster, and the observed one.

use crate::{
    AccessPolicy, AccessStatus, AuthPolicy, Authentication, DeletionPolicy, MonitoringPolicy,
    NetworkAccess, PlacementPolicy, PodTemplate, S3Location, TlsPolicy, TlsStatus,
    reserved_settings,
    shared::{conditions_schema, not_observed},
};
use k8s_openapi::{
    api::core::v1::ResourceRequirements,
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{Condition, Time},
    },
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The desired state of a Redis Cluster.
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
    scale(spec_replicas_path = ".spec.shards", status_replicas_path = ".status.shards", label_selector_path = ".status.selector"),
    doc = "A Redis Cluster: shards of one primary and its replicas, formed, watched and repaired by the cluster-controller.",
    validation = Rule::new("size(self.metadata.name) <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("the name of a RedisCluster has at most 40 characters: lower case letters, digits and dashes, starting with a letter"),
    validation = Rule::new("!has(self.spec.tls) || self.spec.tls.secretName != self.metadata.name + '-certificates'").message("tls.secretName: the Secret NAME-certificates is the controller's own; choose another name"),
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
    validation = Rule::new("!(has(self.hibernate) && self.hibernate) || has(self.storage)").message("hibernate needs storage: a cluster in memory would lose all its keys; back it up and delete it instead"),
    validation = Rule::new("has(self.storage) == has(oldSelf.storage)").message("storage can neither be added nor removed: restore a backup into a new cluster"),
    validation = Rule::new("!has(self.access) || self.access.type != 'LoadBalancer' || !has(self.config) || !('cluster-preferred-endpoint-type' in self.config)").message("config: cluster-preferred-endpoint-type follows from access.type LoadBalancer; remove it"),
    validation = RedisClusterSpec::one_zone_constraint()
)]
#[serde(rename_all = "camelCase")]
pub struct RedisClusterSpec {
    /// Name of a RedisVersion, which gives the image. Give exactly one of version and image. A change reaches the
    /// pods as update says. One to an older series of servers is refused, and so is one that the entry's upgradesFrom does not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub version: Option<String>,
    /// Image with the server, its command line client and a shell. Give exactly one of version and image. A change
    /// reaches the pods as update says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^\S+$"))]
    pub image: Option<String>,
    /// Number of shards, 3 to 500; kubectl scale changes it. Each serves an equal part of the 16384 slots. After a change the slots move
    /// while the cluster serves; the pods of a shard that is not wanted any more go when it has neither slots nor keys.
    #[schemars(range(min = 3, max = 500))]
    pub shards: i32,
    /// Replicas of each primary, 0 to 5. With 0, a shard is down while its node is down.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 5))]
    pub replicas_per_shard: i32,
    /// A volume for each node, which keeps an append-only file. Absent: the data is in memory only, and is lost when all nodes of a
    /// shard are down at the same time. Cannot be added or removed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// Requests and limits of the server in each pod. A change reaches the pods as update says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Settings of redis.conf by name; those that the controller writes are refused. A server in a pod of its own tries a change first:
    /// what it refuses is named in the condition ConfigApplied and goes no further. What can be changed while servers run is, and is set
    /// again when it differs; else pods are replaced as update says. maxmemory is three quarters of the memory limit unless it is given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = reserved_settings::refuse, extend("maxProperties" = 128, "additionalProperties" = {"type": "string", "maxLength": 1024}))]
    #[x_kube(validation = Rule::new("self.all(key, key.matches('^[a-z0-9.-]+$'))").message("config: names of settings consist of lower case letters, digits, dashes and dots"))]
    #[x_kube(validation = Rule::new("self.all(key, self[key].matches('^[^\\\\n\\\\r\\\\x00]*$'))").message("config: the value of a setting is a single line"))]
    #[x_kube(validation = Rule::new("!('cluster-node-timeout' in self) || (self['cluster-node-timeout'].matches('^[0-9]{3,9}$') && int(self['cluster-node-timeout']) >= 500)").message("config: cluster-node-timeout is a number of milliseconds, at least 500"))]
    pub config: BTreeMap<String, String>,
    /// Who may log in to the servers, and with which rights. Absent: in a new cluster only the controllers may, and what is given here later
    /// reaches the servers while they run; a cluster from before there was this field stays open to every client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthPolicy>,
    /// Encryption of everything that clients, servers and controllers send each other. Clients connect to port 6380 then; port 6379 is
    /// closed unless allowPlaintext is true. Added or removed later, it comes or goes while the cluster serves: pods are replaced as update
    /// says. Needs servers of Redis 7.0 or newer that were built with TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsPolicy>,
    /// Given, even empty: the controller keeps a NetworkPolicy by which only the pods of the cluster, the three controllers and these
    /// clients reach the servers, and only the cluster's pods their bus. Absent: none. Can be changed at any time. It takes effect
    /// where the network of the Kubernetes cluster enforces NetworkPolicies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkAccess>,
    /// How clients outside the network of the pods reach the servers. Absent: they do not. Can be changed at any time. Load balancers need
    /// servers of Redis 7.0 or newer, or Valkey, and leave no room for the setting cluster-preferred-endpoint-type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<AccessPolicy>,
    /// How the servers are measured. Absent: not at all; the controllers report each cluster on their own port in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitoring: Option<MonitoringPolicy>,
    /// What is added to every pod: labels, annotations, rules for the scheduler, accounts, volumes. A change reaches the pods as update says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
    /// Where the pods run. A change reaches the pods as update says; one with a volume stays where its volume is.
    #[serde(default)]
    pub placement: PlacementPolicy,
    /// While true, the controller only observes: it changes neither Kubernetes objects nor the servers, and reports only status and
    /// the readiness of pods.
    #[serde(default)]
    pub paused: bool,
    /// While true, the cluster has no pods: the servers are stopped, and what is on the volumes stays, the id of every node with it. Back
    /// to false, the same nodes start with the same keys. A backup or restore that is under way ends first. Needs storage.
    #[serde(default)]
    pub hibernate: bool,
    /// While true, the RedisCluster cannot be deleted, and neither can its namespace: the API server refuses it by the
    /// ValidatingAdmissionPolicies redis-operator-deletion and redis-operator-namespace-deletion, which are installed with the controllers.
    #[serde(default)]
    pub deletion_protection: bool,
    /// How a changed image, configuration, pod template, placement or resources reach the pods.
    #[serde(default)]
    pub update: UpdatePolicy,
    /// How slots move when the number of shards has changed.
    #[serde(default)]
    pub migration: MigrationPolicy,
    /// The PodDisruptionBudget over all pods of the cluster.
    #[serde(default)]
    pub pod_disruption_budget: DisruptionBudget,
    /// What may be done about losses that the servers cannot repair themselves. Can be changed at any time.
    #[serde(default)]
    pub recovery: RecoveryPolicy,
    /// Where backups of this cluster are stored, and when they are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupPlan>,
}

fn one() -> i32 {
    1
}

fn yes() -> bool {
    true
}

/// The volume of each node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0").message("storage.size can only grow: volumes cannot be made smaller; restore a backup into a new cluster"),
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)").message("storageClassName cannot be changed: restore a backup into a new cluster")
)]
pub struct Storage {
    /// Size of each volume, for example 10Gi: about three times the memory of the shard's data. It can grow later, where the StorageClass
    /// allows it; the pods are not restarted, and the condition VolumesResized says how far it is.
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))").message("storage.size is a quantity of bytes, for example 10Gi"))]
    pub size: Quantity,
    /// StorageClass of the volumes. Absent: the default class of the Kubernetes cluster. Cannot be changed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub storage_class_name: Option<String>,
    /// What happens to the volumes when the RedisCluster is deleted. Can be changed at any time. Retain: they are kept, and a new
    /// RedisCluster of the same name uses them. Delete: they are deleted. A StatefulSet that is deleted takes none with it.
    #[serde(default)]
    pub when_deleted: DeletionPolicy,
}

/// How a changed image, configuration or resources reaches the pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdatePolicy {
    /// RollingUpdate: the controller replaces the pods while the cluster serves, in each shard the replicas first, then the primary after
    /// a replica has taken over. It stops at the first pod that does not become ready. OnDelete: a pod keeps what it was started with
    /// until it is deleted.
    #[serde(default)]
    pub strategy: UpdateStrategy,
    /// Number of shards in which a pod is replaced at the same time, 1 to 100.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100))]
    pub max_unavailable_shards: i32,
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self {
            strategy: UpdateStrategy::default(),
            max_unavailable_shards: 1,
        }
    }
}

/// How slots move when the number of shards has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.maxBytesPerSecond) || self.engine != 'Atomic'").message("migration.maxBytesPerSecond needs the engine Auto or Legacy: with Atomic the servers move at their own speed"))]
pub struct MigrationPolicy {
    /// Auto: the servers' own migration (CLUSTER MIGRATESLOTS of Valkey 9) where every node has it and no rate is given, else MIGRATE.
    /// Atomic: the servers' own. Legacy: MIGRATE, which every server has.
    #[serde(default)]
    pub engine: MigrationEngine,
    /// Bytes of memory that are moved a second, over all shards. Absent: as fast as the servers can without a pause that clients notice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024))]
    pub max_bytes_per_second: Option<i64>,
    /// While true, no slot begins to move. What has moved stays where it is, and the cluster serves.
    #[serde(default)]
    pub paused: bool,
}

/// What moves the slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MigrationEngine {
    /// The servers' own migration where they have it, else MIGRATE.
    #[default]
    Auto,
    /// CLUSTER MIGRATESLOTS.
    Atomic,
    /// MIGRATE.
    Legacy,
}

/// Who replaces the pods of an older template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UpdateStrategy {
    /// The controller replaces them.
    #[default]
    RollingUpdate,
    /// The user deletes them.
    OnDelete,
}

/// The PodDisruptionBudget over all pods of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DisruptionBudget {
    /// Whether the controller creates a PodDisruptionBudget.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Number of pods that may be evicted at the same time, 1 to 100. With 1, evictions leave the majority of the primaries and,
    /// with replicas, a node of each shard.
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

/// What may be done about losses that the servers cannot repair themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryPolicy {
    /// When a replica takes over by order. WhenFenced: without a majority, once no lost primary can acknowledge writes any more; with a
    /// copy that may be old, once its primary cannot come back. Auto: after the time in after; what was acknowledged since is lost.
    /// Manual: without a majority, or with such a copy, when the annotation redis.danieldorado.github.io/takeover names the shard, or
    /// all.
    #[serde(default)]
    pub takeover: Takeover,
    /// How long lost primaries are waited for before a replica takes over, for example 30s or 5m: 1 second to 24 hours.
    #[serde(default = "thirty_seconds")]
    #[schemars(length(max = 8), regex(pattern = r"^[0-9]{1,5}(s|m|h)$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')").message("recovery.after is 1s to 24h"))]
    pub after: String,
    /// What becomes of slots of which no copy is left, in a cluster with volumes. Fail: they are not served, so that their volumes can
    /// be brought back. RecreateEmpty: they are served again, empty.
    #[serde(default)]
    pub lost_slots: LostSlots,
}

fn thirty_seconds() -> String {
    "30s".to_owned()
}

impl Default for RecoveryPolicy {
    fn default() -> Self {
        Self {
            takeover: Takeover::default(),
            after: thirty_seconds(),
            lost_slots: LostSlots::default(),
        }
    }
}

/// When a replica takes over by order: without a majority of the primaries, or with a copy that may be old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Takeover {
    /// Once no lost primary can acknowledge writes any more.
    #[default]
    WhenFenced,
    /// After a time, also when one may.
    Auto,
    /// When an annotation asks for it.
    Manual,
}

/// What becomes of slots of which no copy is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LostSlots {
    /// They are not served.
    #[default]
    Fail,
    /// They are served again, empty.
    RecreateEmpty,
}

/// Where backups of a cluster are stored, and when they are made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.schedules) || self.schedules.all(s, self.storages.exists(t, t.name == s.storageName))").message("storageName of every schedule is the name of one of the storages"))]
pub struct BackupPlan {
    /// Storages that schedules and RedisBackups of this cluster refer to by name: 1 to 8.
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub storages: Vec<BackupStorage>,
    /// When backups are made: at most 16 schedules. The backup-controller keeps a CronJob for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub schedules: Vec<BackupSchedule>,
}

/// A storage with a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupStorage {
    /// Name by which schedules and RedisBackups refer to the storage.
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Where backups are stored.
    pub s3: S3Location,
}

/// When backups are made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupSchedule {
    /// Name of the schedule, part of the names of its CronJob and its RedisBackups.
    #[schemars(
        length(min = 1, max = 20),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// The times of the backups: minute, hour, day, month and weekday as in a CronJob, for example "30 2 * * *".
    #[schemars(length(min = 1, max = 100))]
    #[x_kube(validation = Rule::new("self.startsWith('@') || self.matches('^\\\\S+\\\\s+\\\\S+\\\\s+\\\\S+\\\\s+\\\\S+\\\\s+\\\\S+$')").message("schedule has five fields (minute hour day month weekday), for example \"30 2 * * *\""))]
    pub schedule: String,
    /// Time zone of the schedule, for example Europe/Berlin. Absent: the time zone of kube-controller-manager, usually UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: Option<String>,
    /// Name of one of the storages.
    #[schemars(length(min = 1, max = 40))]
    pub storage_name: String,
    /// While true, no new backups are made.
    #[serde(default)]
    pub suspend: bool,
    /// The deletionPolicy of the RedisBackups that this schedule creates: what happens to the stored data when they are deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// The observed state of a Redis Cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = not_observed)]
pub struct RedisClusterStatus {
    /// The generation of the spec that this status describes; -1 until the controller has seen the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Summary in one word: Pending, Forming, Ready, Updating, Scaling, Hibernating, Hibernated, Resuming, Degraded, Down or
    /// Paused. Scripts should read the conditions instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// What the cluster waits for, or what is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The server that new pods run, and the servers that run now.
    #[serde(default)]
    pub version: VersionStatus,
    /// Number of nodes desired: shards × (1 + replicasPerShard).
    #[serde(default)]
    pub size: i32,
    /// Number of shards that have slots.
    #[serde(default)]
    pub shards: i32,
    /// Label selector of the primaries' pods, for kubectl scale and autoscalers: one pod a shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Number of shards whose primary serves and whose replicas are all in sync.
    #[serde(default)]
    pub ready_shards: i32,
    /// Number of pods that are ready.
    #[serde(default)]
    pub ready_nodes: i32,
    /// Address for clients, host:port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// How many of the 16384 slots are assigned and served.
    #[serde(default)]
    pub slots: SlotsStatus,
    /// What the controller is doing to the running cluster. Absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationStatus>,
    /// Hash of the slot map: which primary serves which slots. Equal maps have equal hashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology_hash: Option<String>,
    /// Each shard as its nodes describe it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shard_statuses: Vec<ShardStatus>,
    /// The node ids that belong to this cluster, each with the pod that it was last seen in. A server with another id is not this
    /// cluster's, whatever its address, unless it is blank and knows no other node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<KnownNode>,
    /// The value of the annotation redis.danieldorado.github.io/takeover that has been acted upon: it counts once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeover_done: Option<String>,
    /// The last time that slots were, or were about to be, served again without the keys that they had, since no copy was left. It is written
    /// before, and stays; the Event SlotsRecreatedEmpty says that it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_loss: Option<LossStatus>,
    /// How far clients have to log in.
    #[serde(default)]
    pub authentication: Authentication,
    /// The certificate that the servers are given; the condition CertificatesValid says whether all present it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsStatus>,
    /// Where clients outside the network of the pods reach the servers. Absent: they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<AccessStatus>,
    /// Ready: the cluster is as desired. Reconciling: the controller works on it. Stalled: it waits for a person. Available: every
    /// slot is served. In detail: Progressing, Formed, SlotsCovered, ReplicationHealthy, QuorumHealthy, UpToDate, VersionSupported,
    /// ConfigApplied, UsersApplied, CertificatesValid, AccessReady, VolumesResized, Paused, SchedulesAccepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// Keys that were given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LossStatus {
    /// When.
    pub time: Time,
    /// Of which slots, and why.
    pub message: String,
}

/// A change of the running cluster that takes a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    /// What is done.
    pub kind: OperationKind,
    /// When it began.
    pub start_time: Time,
    /// How much is done: pods of an update or a hibernation, slots of a scaling.
    pub done: i32,
    /// How much there is in all.
    pub total: i32,
    /// What is being done now, or what is waited for.
    pub message: String,
}

/// Kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OperationKind {
    /// Pods are replaced by pods of the wanted template.
    Update,
    /// Slots move to the shards that are wanted, and pods that are not wanted any more leave.
    Scale,
    /// Pods are to be stopped; their volumes stay.
    Hibernate,
}

/// The server that new pods run, and the servers that run now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionStatus {
    /// The RedisVersion that gave the image. Absent when the spec gives the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The image of new pods. A later change of the RedisVersion does not change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Servers that run now, for example "Redis 7.0.15"; separated by commas while the pods differ.
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
    /// Uid of that pod: a later pod of the same name runs another process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Name of the Kubernetes node that the pod ran on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_node: Option<String>,
    /// Seconds that the pod's server had to end in (terminationGracePeriodSeconds).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<i64>,
    /// With how many replicas the node refuses writes, where it does. While it does not answer: did, when it was last asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<MinReplicas>,
    /// When the node was last seen with all that was written: as the primary of its slots, or as a replica that is linked to it.
    /// Written while it is neither: how old its copy is decides whether it may take over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_until: Option<Time>,
    /// Since when neither the controller nor another node has had a sign of life of it: it has written nothing since, as far as was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unresponsive_since: Option<Time>,
}

/// By which settings a primary refuses writes. One that has been away from its replicas for longer acknowledges none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MinReplicas {
    /// With fewer linked replicas it refuses writes (min-replicas-to-write).
    #[serde(default)]
    pub to_write: i64,
    /// A replica that has been away for more seconds does not count (min-replicas-max-lag).
    #[serde(default)]
    pub max_lag_seconds: i64,
}

/// How many of the 16384 slots are assigned and served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlotsStatus {
    /// Slots that a primary is responsible for.
    #[serde(default)]
    pub assigned: i32,
    /// Slots whose primary is alive and serves them.
    #[serde(default)]
    pub ok: i32,
}

/// One shard of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShardStatus {
    /// Index of the shard, as in the names of its pods.
    pub index: i32,
    /// The node that serves the shard's slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<NodeStatus>,
    /// Nodes that replicate the primary.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<NodeStatus>,
    /// Slots of the shard, for example 0-5460.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slot_ranges: Vec<String>,
}

/// One node of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Name of the pod.
    pub pod: String,
    /// The node's id in the cluster. It stays when the address changes.
    pub node_id: String,
    /// The server that it runs, for example "Redis 7.0.15".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// For a replica: whether it is connected to its primary and in sync. For a primary: always true.
    #[serde(default)]
    pub linked: bool,
}
