//! One StatefulSet a shard: its nodes are kept apart, and shards are added and replaced one by one.
//!
//! Everything in the pod template restarts nothing by itself (`OnDelete`), but it does decide what a replaced pod is like.

use super::{labels, metadata, selector, start_script};
use crate::validate::{ValidatedCluster, Volume};
use crds::{
    ANNOTATION_RESTART_HASH, BUS_PORT, CLIENT_PORT, CONTAINER, DeletionPolicy, LABEL_CLUSTER,
    LABEL_HOSTNAME, LABEL_SHARD, config_map_name, headless_service_name, stateful_set_name,
};
use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{
            Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort,
            EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction, Lifecycle, LifecycleHandler,
            ObjectFieldSelector, PersistentVolumeClaim, PersistentVolumeClaimSpec, PodAffinityTerm,
            PodAntiAffinity, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, SeccompProfile,
            SecurityContext, VolumeMount, VolumeResourceRequirements, WeightedPodAffinityTerm,
        },
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use std::collections::BTreeMap;

/// The user and group `redis` of the usual images.
const USER: i64 = 999;
/// Name of the volume claim, and of the volume that Kubernetes makes of it in each pod.
const CLAIM: &str = "data";
/// Name of the volume of pods in memory only. Not the claim's: a claim replaces a volume of its name, so that a StatefulSet which kept its
/// claims would give their volumes to pods whose start script deletes what they find.
const MEMORY: &str = "memory";
/// The stop script takes up to 5 s, the server up to 10 s to let its replicas catch up, the rest is for a slow disk.
const GRACE_SECONDS: i64 = 60;

/// The StatefulSet of one shard.
pub fn stateful_set(cluster: &ValidatedCluster, shard: i32) -> StatefulSet {
    let mut metadata = metadata(cluster, stateful_set_name(&cluster.shape.name, shard));
    metadata.labels = Some(shard_labels(cluster, shard));
    StatefulSet {
        metadata,
        spec: StatefulSetSpec {
            replicas: Some(1 + cluster.shape.replicas),
            service_name: Some(headless_service_name(&cluster.shape.name)),
            // All at once: a shard whose first pod cannot run must not keep the others from running.
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                ..StatefulSetUpdateStrategy::default()
            }),
            selector: LabelSelector {
                match_labels: Some(shard_selector(cluster, shard)),
                ..LabelSelector::default()
            },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(shard_labels(cluster, shard)),
                    annotations: Some(BTreeMap::from([(
                        ANNOTATION_RESTART_HASH.to_owned(),
                        cluster.restart_hash.clone(),
                    )])),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(cluster, shard)),
            },
            volume_claim_templates: cluster
                .storage
                .as_ref()
                .map(|storage| vec![claim(cluster, storage)]),
            persistent_volume_claim_retention_policy: cluster.storage.as_ref().map(retention),
            ..StatefulSetSpec::default()
        },
        ..StatefulSet::default()
    }
}

fn shard_selector(cluster: &ValidatedCluster, shard: i32) -> BTreeMap<String, String> {
    let mut labels = selector(cluster);
    labels.insert(LABEL_SHARD.to_owned(), shard.to_string());
    labels
}

fn shard_labels(cluster: &ValidatedCluster, shard: i32) -> BTreeMap<String, String> {
    let mut labels = labels(cluster);
    labels.insert(LABEL_SHARD.to_owned(), shard.to_string());
    labels
}

fn pod(cluster: &ValidatedCluster, shard: i32) -> PodSpec {
    let mut volumes = vec![
        volume("config", |volume| {
            volume.config_map = Some(ConfigMapVolumeSource {
                name: config_map_name(&cluster.shape.name),
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
    PodSpec {
        affinity: Some(affinity(cluster, shard)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        containers: vec![container(cluster)],
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

fn data_volume(cluster: &ValidatedCluster) -> &'static str {
    match cluster.storage {
        Some(_) => CLAIM,
        None => MEMORY,
    }
}

fn volume(
    name: &str,
    set: impl FnOnce(&mut k8s_openapi::api::core::v1::Volume),
) -> k8s_openapi::api::core::v1::Volume {
    let mut volume = k8s_openapi::api::core::v1::Volume {
        name: name.to_owned(),
        ..k8s_openapi::api::core::v1::Volume::default()
    };
    set(&mut volume);
    volume
}

/// A shard's nodes on different Kubernetes nodes, and all nodes spread where that leaves a choice. Preferred, not required: on fewer
/// Kubernetes nodes than a shard has nodes a cluster with all its nodes is better than one without replicas.
fn affinity(cluster: &ValidatedCluster, shard: i32) -> Affinity {
    let apart = |weight, labels| WeightedPodAffinityTerm {
        weight,
        pod_affinity_term: PodAffinityTerm {
            topology_key: LABEL_HOSTNAME.to_owned(),
            label_selector: Some(LabelSelector {
                match_labels: Some(labels),
                ..LabelSelector::default()
            }),
            ..PodAffinityTerm::default()
        },
    };
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![
                apart(100, shard_selector(cluster, shard)),
                apart(10, selector(cluster)),
            ]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn container(cluster: &ValidatedCluster) -> Container {
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    };
    let port = |name: &str, number: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    Container {
        name: CONTAINER.to_owned(),
        image: Some(cluster.server.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(vec![
            "sh".to_owned(),
            "-c".to_owned(),
            start_script(cluster.storage.is_some(), cluster.shape.replicas > 0),
        ]),
        env: Some(vec![
            of_pod("POD_IP", "status.podIP"),
            of_pod("POD_NAMESPACE", "metadata.namespace"),
            of_pod("POD_NAME", "metadata.name"),
            of_pod("POD_UID", "metadata.uid"),
        ]),
        ports: Some(vec![port("client", CLIENT_PORT), port("bus", BUS_PORT)]),
        resources: cluster.resources.clone(),
        volume_mounts: Some(vec![
            mount(data_volume(cluster), "/data"),
            mount("config", "/config"),
            mount("tmp", "/tmp"),
        ]),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                exec: Some(script("/config/stop.sh")),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        // The start script may wait for a while before a server without a memory of its own comes back.
        startup_probe: Some(probe("/config/alive.sh", 1, 5, 600)),
        liveness_probe: Some(probe("/config/alive.sh", 10, 5, 6)),
        readiness_probe: Some(probe("/config/ready.sh", 2, 5, 2)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
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

fn probe(path: &str, period: i32, timeout: i32, failures: i32) -> Probe {
    Probe {
        exec: Some(script(path)),
        period_seconds: Some(period),
        timeout_seconds: Some(timeout),
        failure_threshold: Some(failures),
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

fn retention(storage: &Volume) -> StatefulSetPersistentVolumeClaimRetentionPolicy {
    let when_deleted = match storage.when_deleted {
        DeletionPolicy::Delete if storage.settled => "Delete",
        DeletionPolicy::Delete | DeletionPolicy::Retain => "Retain",
    };
    StatefulSetPersistentVolumeClaimRetentionPolicy {
        when_deleted: Some(when_deleted.to_owned()),
        when_scaled: Some("Retain".to_owned()),
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
        let claims = stateful_set(&with_claims, 0).spec;
        let claims = claims.volume_claim_templates.unwrap();
        let claims: Vec<String> = claims
            .into_iter()
            .filter_map(|one| one.metadata.name)
            .collect();
        cluster.spec.storage = None;
        let cluster = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap();
        let pod = stateful_set(&cluster, 0).spec.template.spec.unwrap();
        let volumes = pod.volumes.unwrap().into_iter().map(|volume| volume.name);
        let mounts = pod.containers[0].volume_mounts.clone().unwrap().into_iter();
        for name in volumes.chain(mounts.map(|mount| mount.name)) {
            assert!(!claims.contains(&name), "{name} is the name of a claim");
        }
        assert!(!claims.is_empty());
    }
}
