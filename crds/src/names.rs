//! Names of labels, annotations, ports and child objects: the words by which the controllers recognise each other's work.

/// API group, and the prefix of every label and annotation of the suite.
pub const GROUP: &str = "redis.danieldorado.github.io";
/// The one API version served today.
pub const VERSION: &str = "v1alpha1";

/// Label: the RedisCluster an object belongs to.
pub const LABEL_CLUSTER: &str = "redis.danieldorado.github.io/cluster";
/// Label on pods and StatefulSets: the shard's index, `0` to `shards - 1`.
pub const LABEL_SHARD: &str = "redis.danieldorado.github.io/shard";
/// Label on pods: [`ROLE_PRIMARY`] or [`ROLE_REPLICA`], kept up to date with what the node itself says.
pub const LABEL_ROLE: &str = "redis.danieldorado.github.io/role";
/// Label on backups: the schedule that made them.
pub const LABEL_SCHEDULE: &str = "redis.danieldorado.github.io/schedule";
/// Value of [`LABEL_ROLE`].
pub const ROLE_PRIMARY: &str = "primary";
/// Value of [`LABEL_ROLE`].
pub const ROLE_REPLICA: &str = "replica";
/// Value of `app.kubernetes.io/managed-by` on everything the suite creates.
pub const MANAGED_BY: &str = "redis-operator";

/// Annotation on every child object: hash of what was rendered, so that the server's defaulting never looks like a change.
pub const ANNOTATION_APPLIED_HASH: &str = "redis.danieldorado.github.io/applied-hash";
/// Annotation on the pod template: hash of the inputs that need a restart, and of nothing else.
pub const ANNOTATION_RESTART_HASH: &str = "redis.danieldorado.github.io/restart-hash";
/// Annotation on scheduled backups: the minute they were due, RFC 3339.
pub const ANNOTATION_SCHEDULED_AT: &str = "redis.danieldorado.github.io/scheduled-at";
/// Finalizer of a RedisBackup whose artifacts are deleted with it.
pub const FINALIZER_ARTIFACTS: &str = "redis.danieldorado.github.io/artifacts";

/// Port for clients on every node.
pub const CLIENT_PORT: u16 = 6379;
/// Port of the cluster bus on every node.
pub const BUS_PORT: u16 = 16379;
/// Name of the container that runs the server.
pub const CONTAINER: &str = "redis";

/// StatefulSet of one shard.
pub fn stateful_set_name(cluster: &str, shard: i32) -> String {
    format!("{cluster}-{shard}")
}

/// Pod of one node; the ordinal says nothing about its role.
pub fn pod_name(cluster: &str, shard: i32, ordinal: i32) -> String {
    format!("{cluster}-{shard}-{ordinal}")
}

/// Headless Service that gives every pod its DNS name.
pub fn headless_service_name(cluster: &str) -> String {
    format!("{cluster}-nodes")
}

/// ConfigMap with redis.conf and the start and probe scripts.
pub fn config_map_name(cluster: &str) -> String {
    format!("{cluster}-config")
}

/// Lease held by the operation that needs a cluster's slots and pods to stay as they are; in the operator's own namespace.
pub fn operation_lease_name(namespace: &str, cluster: &str) -> String {
    format!("{namespace}.{cluster}-operation")
}

/// DNS name of the Service for clients.
pub fn endpoint(cluster: &str, namespace: &str) -> String {
    format!("{cluster}.{namespace}.svc:{CLIENT_PORT}")
}
