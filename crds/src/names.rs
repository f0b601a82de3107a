//! Names of labels, annotations, finalizers, field managers, ports and child objects: what the controllers recognise objects by.

/// API group, and the prefix of every label and annotation of the suite.
pub const GROUP: &str = "redis.danieldorado.github.io";
/// The only version of the API.
pub const VERSION: &str = "v1alpha1";

/// Label on child objects of a RedisCluster and on scheduled backups: the name of the RedisCluster.
pub const LABEL_CLUSTER: &str = "redis.danieldorado.github.io/cluster";
/// Label on pods and StatefulSets: the shard's index, `0` to `shards - 1`.
pub const LABEL_SHARD: &str = "redis.danieldorado.github.io/shard";
/// Label on pods: [`ROLE_PRIMARY`] or [`ROLE_REPLICA`], as the node itself reports.
pub const LABEL_ROLE: &str = "redis.danieldorado.github.io/role";
/// Label on scheduled backups: the name of the schedule.
pub const LABEL_SCHEDULE: &str = "redis.danieldorado.github.io/schedule";
/// Value of [`LABEL_ROLE`].
pub const ROLE_PRIMARY: &str = "primary";
/// Value of [`LABEL_ROLE`].
pub const ROLE_REPLICA: &str = "replica";
/// Label on RedisClusters that a restore has created: the name of the RedisRestore.
pub const LABEL_RESTORED_BY: &str = "redis.danieldorado.github.io/restored-by";
/// Label on the Leases of a controller's replicas: the name of the controller.
pub const LABEL_MEMBER_OF: &str = "redis.danieldorado.github.io/member-of";
/// Label on the pod that tries a new configuration: the name of the RedisCluster. Such a pod never has [`LABEL_CLUSTER`], by which
/// Services and budgets select.
pub const LABEL_TRIAL: &str = "redis.danieldorado.github.io/trial";
/// Label recommended by Kubernetes: the application.
pub const LABEL_NAME: &str = "app.kubernetes.io/name";
/// Label recommended by Kubernetes: the instance of the application.
pub const LABEL_INSTANCE: &str = "app.kubernetes.io/instance";
/// Label recommended by Kubernetes: the part of the application.
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Label recommended by Kubernetes: [`MANAGED_BY`] on every object that the suite creates.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label of Kubernetes nodes: the host.
pub const LABEL_HOSTNAME: &str = "kubernetes.io/hostname";
/// Label of Kubernetes nodes: the zone.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// Labels and annotations of pods that begin so are not a user's: the controller or Kubernetes sets some of them, and a later version may
/// set more.
pub const OWN_PREFIXES: [&str; 4] = [
    "app.kubernetes.io/",
    "redis.danieldorado.github.io/",
    "apps.kubernetes.io/",
    "statefulset.kubernetes.io/",
];
/// Names of the volumes that the controller gives to pods.
pub const OWN_VOLUMES: [&str; 7] = [
    "data",
    "memory",
    "config",
    "tmp",
    VOLUME_USERS,
    VOLUME_CERTIFICATES,
    VOLUME_EXPORTER,
];
/// Where the data of a server are.
pub const FOLDER_DATA: &str = "/data";
/// Name of the volume with the users of a server.
pub const VOLUME_USERS: &str = "users";
/// Where the users of a server are, if there are any.
pub const FOLDER_USERS: &str = "/users";
/// Name of the volume with the certificates of a server.
pub const VOLUME_CERTIFICATES: &str = "certificates";
/// Where the certificates of a server are, if there are any.
pub const FOLDER_CERTIFICATES: &str = "/tls";
/// Name of the volume with the password of the exporter.
pub const VOLUME_EXPORTER: &str = "exporter";
/// Where that password is, in the container of the exporter alone.
pub const FOLDER_EXPORTER: &str = "/exporter";
/// Folders where the controller mounts its own volumes into the container of the server.
pub const OWN_FOLDERS: [&str; 5] = [
    FOLDER_DATA,
    "/config",
    "/tmp",
    FOLDER_USERS,
    FOLDER_CERTIFICATES,
];
/// Label that Kubernetes puts on the pods of a StatefulSet: the name of the pod.
pub const LABEL_POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// Label that Kubernetes puts on the pods of a Job: the name of the Job.
pub const LABEL_JOB_NAME: &str = "batch.kubernetes.io/job-name";
/// Label by which the API server names every namespace.
pub const LABEL_NAMESPACE: &str = "kubernetes.io/metadata.name";

/// Label of the pods of the three controllers, by which network policies know them; their manifests carry it.
pub const LABEL_PART_OF: &str = "app.kubernetes.io/part-of";

/// Value of [`LABEL_PART_OF`].
pub const PART_OF: &str = "redis-operator";

/// Value of [`LABEL_MANAGED_BY`].
pub const MANAGED_BY: &str = "redis-operator";

/// Annotation of Kubernetes on volume claims. The volume controller sets it when it asks a provisioner for a new volume, not when it binds a
/// volume that there is (`setClaimProvisioner` in `pkg/controller/volume/persistentvolume`).
pub const ANNOTATION_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";

/// Annotation on every child object: hash of the object as it was rendered, so that defaults of the API server do not look like a change.
pub const ANNOTATION_APPLIED_HASH: &str = "redis.danieldorado.github.io/applied-hash";
/// Annotation on the pod template: hash of the inputs whose change needs a restart.
pub const ANNOTATION_RESTART_HASH: &str = "redis.danieldorado.github.io/restart-hash";
/// Annotation on pods, a JSON object: settings that were changed while the server ran and that its redis.conf does not have, each with the
/// value that the server had before.
pub const ANNOTATION_LIVE_SETTINGS: &str = "redis.danieldorado.github.io/live-settings";
/// Annotation on ConfigMaps, JSON: the images whose servers have been started with this configuration before any pod was, and how that
/// ended.
pub const ANNOTATION_TRIALS: &str = "redis.danieldorado.github.io/trials";
/// Annotation on scheduled backups: the minute of the schedule, RFC 3339.
pub const ANNOTATION_SCHEDULED_AT: &str = "redis.danieldorado.github.io/scheduled-at";
/// Annotation on RedisClusters that a restore has created: the uid of the RedisRestore.
pub const ANNOTATION_RESTORE_UID: &str = "redis.danieldorado.github.io/restore-uid";
/// Annotation on operation Leases: the uid of the object that holds the Lease.
pub const ANNOTATION_HOLDER_UID: &str = "redis.danieldorado.github.io/holder-uid";
/// Annotation on a RedisCluster: lets replicas take over although their primaries may still acknowledge writes. `all`, or the numbers of
/// shards with commas between them. It counts once; what follows an `@` makes the same shards another request.
pub const ANNOTATION_TAKEOVER: &str = "redis.danieldorado.github.io/takeover";
/// Annotation on a RedisCluster: `namespace/name` of the RedisCluster whose volumes its pods may use from now on.
pub const ANNOTATION_ADOPT_VOLUMES: &str = "redis.danieldorado.github.io/adopt-volumes";
/// Taint by which an administrator says that the machine of a Kubernetes node is off.
pub const TAINT_OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// Annotation that client-side `kubectl apply` leaves behind: a second copy of the object.
pub const ANNOTATION_LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Finalizer of a RedisBackup whose artifacts are deleted with it.
pub const FINALIZER_ARTIFACTS: &str = "redis.danieldorado.github.io/artifacts";

/// Condition of pods, and their readiness gate: whether the server serves, as it reports itself. The cluster-controller writes it.
pub const CONDITION_SERVING: &str = "redis.danieldorado.github.io/serving";

/// Condition of RedisClusters: whether every server has the users of the spec.
pub const CONDITION_USERS: &str = "UsersApplied";

/// Condition of RedisClusters: whether every server shows the certificate that is wanted, and for how long that is valid.
pub const CONDITION_CERTIFICATES: &str = "CertificatesValid";

/// Condition of a RedisCluster: whether clients outside the network of the pods reach every server.
pub const CONDITION_ACCESS: &str = "AccessReady";

/// Field manager of what the cluster-controller applies.
pub const MANAGER_CLUSTER: &str = "cluster-controller";

/// Port for clients on every node.
pub const CLIENT_PORT: u16 = 6379;
/// Port for clients on every node of a cluster that encrypts.
pub const TLS_PORT: u16 = 6380;
/// Port of the cluster bus on every node.
pub const BUS_PORT: u16 = 16379;
/// Name of [`CLIENT_PORT`] in pods and Services.
pub const PORT_CLIENT: &str = "client";
/// Name of [`TLS_PORT`] in pods and Services.
pub const PORT_TLS: &str = "client-tls";
/// Name of [`BUS_PORT`] in pods and Services.
pub const PORT_BUS: &str = "bus";
/// Name of the container that runs the server.
pub const CONTAINER: &str = "redis";
/// Name of the container that measures the server.
pub const CONTAINER_EXPORTER: &str = "exporter";
/// Port of its metrics.
pub const METRICS_PORT: u16 = 9121;
/// Name of that port, by which a PodMonitor selects.
pub const METRICS_PORT_NAME: &str = "metrics";
/// Name of the volume claim in the StatefulSets, and of the volume that Kubernetes makes of it in each pod.
pub const CLAIM: &str = "data";
/// Variable of that container: the value of [`ANNOTATION_ADOPT_VOLUMES`] that its pod was created with.
pub const ENV_ADOPT_VOLUMES: &str = "ADOPT_VOLUMES";

/// StatefulSet of one shard.
pub fn stateful_set_name(cluster: &str, shard: i32) -> String {
    format!("{cluster}-{shard}")
}

/// Pod that tries a new configuration. `digits` name the configuration and the image.
pub fn trial_pod_name(cluster: &str, digits: &str) -> String {
    format!("{cluster}-trial-{digits}")
}

/// Pod of one node. The ordinal does not determine the role.
pub fn pod_name(cluster: &str, shard: i32, ordinal: i32) -> String {
    format!("{cluster}-{shard}-{ordinal}")
}

/// Shard and ordinal of a pod, from its name. None: no node of the cluster has such a name.
pub fn node_of_pod(cluster: &str, pod: &str) -> Option<(i32, i32)> {
    let (shard, ordinal) = pod
        .strip_prefix(cluster)?
        .strip_prefix('-')?
        .split_once('-')?;
    let (shard, ordinal) = (shard.parse().ok()?, ordinal.parse().ok()?);
    (pod_name(cluster, shard, ordinal) == pod).then_some((shard, ordinal))
}

/// Headless Service that gives every pod its DNS name.
pub fn headless_service_name(cluster: &str) -> String {
    format!("{cluster}-nodes")
}

/// Name of a pod for clients in the Kubernetes cluster.
pub fn pod_hostname(cluster: &str, namespace: &str, pod: &str) -> String {
    format!("{pod}.{}.{namespace}.svc", headless_service_name(cluster))
}

/// ConfigMap with redis.conf and the scripts of the pods. Its name has a hash of its content: another content is another object.
pub fn config_map_name(cluster: &str, content: &str) -> String {
    format!("{cluster}-config-{content}")
}

/// Lease held by the operation that needs a cluster's slots and pods to stay as they are; in the operator's own namespace.
pub fn operation_lease_name(namespace: &str, cluster: &str) -> String {
    format!("{namespace}.{cluster}-operation")
}

/// DNS name of the Service for clients.
pub fn endpoint(cluster: &str, namespace: &str, port: u16) -> String {
    format!("{cluster}.{namespace}.svc:{port}")
}
