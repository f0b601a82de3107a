//! One StatefulSet a shard: its nodes are kept apart, and shards are added and replaced one by one.
//!
//! Everything in the pod template restarts nothing by itself (`OnDelete`), but it does decide what a replaced pod is like.

use super::{
    exporter, labels, metadata,
    parts::{mount, port, sandbox, secret_volume, volume},
    placement, pod_template, selects, shard_selector, start_script,
};
use crate::{
    sets::SetSize,
    validate::{ValidatedCluster, Volume},
};
use crds::{
    ANNOTATION_RESTART_HASH, BUS_PORT, CLAIM, CLIENT_PORT, CONDITION_SERVING, CONTAINER,
    ENV_ADOPT_VOLUMES, FOLDER_CERTIFICATES, FOLDER_DATA, FOLDER_USERS, LABEL_CLUSTER, LABEL_SHARD,
    PORT_BUS, PORT_CLIENT, PORT_TLS, TLS_PORT, VOLUME_CERTIFICATES, VOLUME_USERS,
    certificates_secret_name, headless_service_name, stateful_set_name, users_secret_name,
};
use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{
            ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource,
            ExecAction, Lifecycle, LifecycleHandler, ObjectFieldSelector, PersistentVolumeClaim,
            PersistentVolumeClaimSpec, PodReadinessGate, PodSpec, PodTemplateSpec, Probe,
            TCPSocketAction, VolumeResourceRequirements,
        },
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use std::collections::BTreeMap;

/// Name of the volume of pods in memory only. Not the claim's: a claim replaces a volume of its name, so that a StatefulSet which kept its
/// claims would give their volumes to pods whose start script deletes what they find.
const MEMORY: &str = "memory";
/// The stop script takes up to 5 s, the server up to 10 s to let its replicas catch up, the rest is for a slow disk.
const GRACE_SECONDS: i64 = 60;
/// The same without a disk. It is also how long a pod that was deleted by force may still serve: until then no replica takes over from it
/// without a majority.
const MEMORY_GRACE_SECONDS: i64 = 20;

/// Between two liveness probes.
const LIVENESS_SECONDS: i32 = 60;

/// The StatefulSet of one shard, whose pods have this ConfigMap.
pub fn stateful_set(cluster: &ValidatedCluster, size: SetSize, configuration: &str) -> StatefulSet {
    let shard = size.shard;
    let mut metadata = metadata(cluster, stateful_set_name(&cluster.shape.name, shard));
    metadata.labels = Some(shard_labels(cluster, shard));
    StatefulSet {
        metadata,
        spec: StatefulSetSpec {
            replicas: Some(size.pods),
            service_name: Some(headless_service_name(&cluster.shape.name)),
            // All at once: a shard whose first pod cannot run must not keep the others from running.
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                ..StatefulSetUpdateStrategy::default()
            }),
            selector: selects(shard_selector(cluster, shard)),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(pod_template::with_ours(
                        &cluster.pod_template.labels,
                        shard_labels(cluster, shard),
                    )),
                    annotations: Some(pod_template::with_ours(
                        &cluster.pod_template.annotations,
                        BTreeMap::from([(
                            ANNOTATION_RESTART_HASH.to_owned(),
                            cluster.restart_hash.clone(),
                        )]),
                    )),
                    ..ObjectMeta::default()
                }),
                spec: Some(measured(cluster, pod(cluster, shard, configuration))),
            },
            volume_claim_templates: cluster
                .storage
                .as_ref()
                .map(|storage| vec![claim(cluster, storage)]),
            persistent_volume_claim_retention_policy: cluster
                .storage
                .as_ref()
                .map(|_| retention(size.keeps_volumes)),
            ..StatefulSetSpec::default()
        },
        ..StatefulSet::default()
    }
}

fn shard_labels(cluster: &ValidatedCluster, shard: i32) -> BTreeMap<String, String> {
    let mut labels = labels(cluster);
    labels.insert(LABEL_SHARD.to_owned(), shard.to_string());
    labels
}

/// The pod, with the container that measures its server. The user's volumes are in the container of the server alone.
fn measured(cluster: &ValidatedCluster, mut pod: PodSpec) -> PodSpec {
    exporter::add(cluster, &mut pod);
    pod
}

pub(super) fn pod(cluster: &ValidatedCluster, shard: i32, configuration: &str) -> PodSpec {
    let mut volumes = vec![
        volume("config", |volume| {
            volume.config_map = Some(ConfigMapVolumeSource {
                name: configuration.to_owned(),
                ..ConfigMapVolumeSource::default()
            });
        }),
        volume("tmp", |volume| {
            volume.empty_dir = Some(EmptyDirVolumeSource::default());
        }),
    ];
    if cluster.storage.is_none() {
        volumes.push(volume(MEMORY, |volume| {
            volume.empty_dir = Some(EmptyDirVolumeSource::default());
        }));
    }
    if cluster.mounts_users {
        let secret = users_secret_name(&cluster.shape.name);
        volumes.push(secret_volume(VOLUME_USERS, secret, None));
    }
    if cluster.shape.encryption.has_certificates() {
        let secret = certificates_secret_name(&cluster.shape.name);
        volumes.push(secret_volume(VOLUME_CERTIFICATES, secret, None));
    }
    let mut pod = PodSpec {
        affinity: placement::affinity(cluster, shard),
        topology_spread_constraints: placement::spread_constraints(cluster, shard),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(grace_seconds(cluster)),
        security_context: Some(pod_template::security_context(cluster)),
        containers: vec![container(cluster)],
        volumes: Some(volumes),
        // The probes know only that the port is open: whether the node serves, the controller reports.
        readiness_gates: Some(vec![PodReadinessGate {
            condition_type: CONDITION_SERVING.to_owned(),
        }]),
        ..PodSpec::default()
    };
    pod_template::extend(cluster, &mut pod);
    pod
}

fn grace_seconds(cluster: &ValidatedCluster) -> i64 {
    let usual = !cluster.config.contains_key("shutdown-timeout");
    match cluster.storage {
        None if usual => MEMORY_GRACE_SECONDS,
        None | Some(_) => GRACE_SECONDS,
    }
}

fn data_volume(cluster: &ValidatedCluster) -> &'static str {
    match cluster.storage {
        Some(_) => CLAIM,
        None => MEMORY,
    }
}

fn container(cluster: &ValidatedCluster) -> Container {
    let mut mounts = vec![
        mount(data_volume(cluster), FOLDER_DATA),
        mount("config", "/config"),
        mount("tmp", "/tmp"),
    ];
    if cluster.mounts_users {
        mounts.push(mount(VOLUME_USERS, FOLDER_USERS));
    }
    let mut ports = vec![port(PORT_CLIENT, CLIENT_PORT)];
    let mut probed = PORT_CLIENT;
    // The same while servers come to encrypt: their pods are replaced once.
    if cluster.shape.encryption.has_certificates() {
        mounts.push(mount(VOLUME_CERTIFICATES, FOLDER_CERTIFICATES));
        ports.push(port(PORT_TLS, TLS_PORT));
        // An encrypted port would log each probe as a failed handshake; the bus is opened at the same time and logs none.
        probed = PORT_BUS;
    }
    ports.push(port(PORT_BUS, BUS_PORT));
    Container {
        name: CONTAINER.to_owned(),
        image: Some(cluster.server.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(vec![
            "sh".to_owned(),
            "-c".to_owned(),
            start_script(cluster.storage.is_some()),
        ]),
        env: Some(environment(cluster)),
        ports: Some(ports),
        resources: cluster.resources.clone(),
        volume_mounts: Some(mounts),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                exec: Some(script("/config/stop.sh")),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        // What a server logged last before it failed is in the pod's status, and from there in the cluster's.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        // A server listens before it loads its data: this is the time for the start script, which may wait for a while before a server
        // without a memory of its own comes back, and no limit for loading.
        startup_probe: Some(Probe {
            failure_threshold: Some(600),
            ..port_is_open(probed, 1)
        }),
        // By a program, because the kernel takes connections for a process that hangs as well. Each costs about 60 ms of processor time,
        // so it is rare, and not among what a start costs: a server is restarted once it has not answered for 80 to 140 s, be it with an
        // error or that it is loading. The stop script would wait for its answer, too, so its time is short.
        liveness_probe: Some(Probe {
            exec: Some(script("/config/alive.sh")),
            initial_delay_seconds: Some(LIVENESS_SECONDS),
            period_seconds: Some(LIVENESS_SECONDS),
            timeout_seconds: Some(20),
            failure_threshold: Some(2),
            termination_grace_period_seconds: Some(10),
            ..Probe::default()
        }),
        readiness_probe: Some(Probe {
            failure_threshold: Some(2),
            ..port_is_open(probed, 10)
        }),
        security_context: Some(sandbox()),
        ..Container::default()
    }
}

/// What the start script knows of its pod, and whose volumes it may take over.
fn environment(cluster: &ValidatedCluster) -> Vec<EnvVar> {
    let mut variables = vec![
        of_pod("POD_IP", "status.podIP"),
        of_pod("POD_NAMESPACE", "metadata.namespace"),
        of_pod("POD_NAME", "metadata.name"),
        of_pod("POD_UID", "metadata.uid"),
    ];
    let adopts = cluster
        .storage
        .as_ref()
        .and_then(|storage| storage.adopts.clone());
    variables.extend(adopts.map(|value| EnvVar {
        name: ENV_ADOPT_VOLUMES.to_owned(),
        value: Some(value),
        ..EnvVar::default()
    }));
    variables
}

/// A variable with a field of the pod.
fn of_pod(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

fn script(path: &str) -> ExecAction {
    ExecAction {
        command: Some(vec!["sh".to_owned(), path.to_owned()]),
    }
}

/// A kubelet opens and closes a connection: no process starts for it.
fn port_is_open(port: &str, period: i32) -> Probe {
    Probe {
        tcp_socket: Some(TCPSocketAction {
            port: IntOrString::String(port.to_owned()),
            ..TCPSocketAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

fn claim(cluster: &ValidatedCluster, storage: &Volume) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(CLAIM.to_owned()),
            labels: Some(BTreeMap::from([(
                LABEL_CLUSTER.to_owned(),
                cluster.shape.name.clone(),
            )])),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: storage.class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([(
                    "storage".to_owned(),
                    storage.size.clone(),
                )])),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// Volumes go with the RedisCluster, never with a StatefulSet: one that is deleted by mistake, or to be created again, takes none with it.
fn retention(keeps_volumes: bool) -> StatefulSetPersistentVolumeClaimRetentionPolicy {
    StatefulSetPersistentVolumeClaimRetentionPolicy {
        when_deleted: Some("Retain".to_owned()),
        when_scaled: Some(if keeps_volumes { "Retain" } else { "Delete" }.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::{tests::example, validate};
    use k8s_openapi::jiff::Timestamp;

    /// Another field manager may own the claims of a StatefulSet, which then stay although the cluster is in memory now.
    #[test]
    fn pods_in_memory_mount_no_claim() {
        let mut cluster = example();
        let with_claims = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap();
        let size = SetSize {
            shard: 0,
            pods: 2,
            keeps_volumes: true,
        };
        let claims = stateful_set(&with_claims, size, "config").spec;
        let claims = claims.volume_claim_templates.unwrap();
        let claims: Vec<String> = claims
            .into_iter()
            .filter_map(|one| one.metadata.name)
            .collect();
        cluster.spec.storage = None;
        let cluster = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap();
        let set = stateful_set(&cluster, size, "config");
        let pod = set.spec.template.spec.unwrap();
        let volumes = pod.volumes.unwrap().into_iter().map(|volume| volume.name);
        let mounts = pod.containers[0].volume_mounts.clone().unwrap().into_iter();
        for name in volumes.chain(mounts.map(|mount| mount.name)) {
            assert!(!claims.contains(&name), "{name} is the name of a claim");
        }
        assert!(!claims.is_empty());
    }
}
