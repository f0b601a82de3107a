//! What `spec.podTemplate` adds to the pods. What the controller sets itself is never overridden.

use crate::validate::ValidatedCluster;
use crds::{ExtraVolume, PodIdentity};
use k8s_openapi::api::core::v1::{
    Container, LocalObjectReference, PodSecurityContext, PodSpec, SeccompProfile, Volume,
    VolumeMount,
};
use std::collections::BTreeMap;

/// The user and group `redis` of the usual images.
const USER: i64 = 999;

/// The user's labels or annotations, and ours, which win.
pub(super) fn with_ours(
    more: &BTreeMap<String, String>,
    ours: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut all = more.clone();
    all.extend(ours);
    all
}

/// The user and groups of the server.
pub(super) fn security_context(cluster: &ValidatedCluster) -> PodSecurityContext {
    let wanted = cluster.pod_template.security_context.clone();
    let wanted = wanted.unwrap_or_default();
    let groups = &wanted.supplemental_groups;
    PodSecurityContext {
        run_as_non_root: Some(wanted.run_as_non_root.unwrap_or(true)),
        run_as_user: Some(wanted.run_as_user.unwrap_or(USER)),
        run_as_group: Some(wanted.run_as_group.unwrap_or(USER)),
        fs_group: Some(wanted.fs_group.unwrap_or(USER)),
        fs_group_change_policy: Some(change_policy(&wanted).to_owned()),
        supplemental_groups: (!groups.is_empty()).then(|| groups.clone()),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            ..SeccompProfile::default()
        }),
        ..PodSecurityContext::default()
    }
}

/// A kubelet takes the owner of the root folder for that of all files. Files that another user has written before are not writable for
/// this one, although the root folder has its group: with other ids than the usual ones each start looks at every file, which are few.
fn change_policy(wanted: &PodIdentity) -> &'static str {
    match wanted
        .run_as_user
        .or(wanted.run_as_group)
        .or(wanted.fs_group)
    {
        Some(_) => "Always",
        None => "OnRootMismatch",
    }
}

/// Adds everything else.
pub(super) fn extend(cluster: &ValidatedCluster, pod: &mut PodSpec) {
    let template = &cluster.pod_template;
    pod.node_selector = some(template.node_selector.clone(), BTreeMap::is_empty);
    pod.tolerations = some(template.tolerations.clone(), Vec::is_empty);
    pod.priority_class_name
        .clone_from(&template.priority_class_name);
    pod.service_account_name
        .clone_from(&template.service_account_name);
    let secrets = template.image_pull_secrets.iter();
    let secrets = secrets.map(|secret| LocalObjectReference {
        name: secret.name.clone(),
    });
    pod.image_pull_secrets = some(secrets.collect(), Vec::is_empty);
    let extra = &template.extra_volumes;
    if extra.is_empty() {
        return;
    }
    let volumes = pod.volumes.get_or_insert_default();
    volumes.extend(extra.iter().map(volume));
    for container in &mut pod.containers {
        mount(container, extra);
    }
}

fn mount(container: &mut Container, extra: &[ExtraVolume]) {
    let mounts = container.volume_mounts.get_or_insert_default();
    mounts.extend(extra.iter().map(|one| VolumeMount {
        name: one.name.clone(),
        mount_path: one.mount_path.clone(),
        sub_path: one.sub_path.clone(),
        read_only: one.read_only.then_some(true),
        ..VolumeMount::default()
    }));
}

fn volume(one: &ExtraVolume) -> Volume {
    let ExtraVolume {
        name,
        mount_path: _,
        sub_path: _,
        read_only: _,
        config_map,
        secret,
        projected,
        empty_dir,
        persistent_volume_claim,
        csi,
    } = one.clone();
    Volume {
        name,
        config_map,
        secret,
        projected,
        empty_dir,
        persistent_volume_claim,
        csi,
        ..Volume::default()
    }
}

/// None where there is nothing: the rendering of clusters without the field stays what it was.
fn some<T>(value: T, is_empty: impl Fn(&T) -> bool) -> Option<T> {
    (!is_empty(&value)).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::build,
        sets::SetSize,
        validate::{tests::example, validate},
    };
    use crds::{ANNOTATION_RESTART_HASH, LABEL_CLUSTER, OWN_FOLDERS, OWN_VOLUMES, PodTemplate};
    use k8s_openapi::{api::core::v1::PodTemplateSpec, jiff::Timestamp};
    use serde_json::{Value, json};

    fn rendered(template: Value) -> PodTemplateSpec {
        let template: PodTemplate = serde_json::from_value(template).unwrap();
        let mut cluster = example();
        cluster.spec.pod_template = Some(template);
        let cluster = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap();
        let size = SetSize {
            shard: 0,
            pods: 2,
            keeps_volumes: true,
        };
        let mut children = build(&cluster, &[size], "system");
        children.stateful_sets.remove(0).spec.template
    }

    /// Every field of the template is in the rendering, where Kubernetes has it.
    #[test]
    fn every_field_reaches_the_pods() {
        let template = rendered(full());
        let pod = serde_json::to_value(&template).unwrap();
        let at = |path: &str| pod.pointer(path).cloned().unwrap_or_default();
        assert_eq!(at("/metadata/labels/team"), "web");
        assert_eq!(at("/metadata/annotations/example.com~1note"), "two words");
        assert_eq!(at("/spec/nodeSelector/disk"), "fast");
        assert_eq!(at("/spec/tolerations/0/key"), "dedicated");
        assert_eq!(
            at("/spec/affinity/nodeAffinity"),
            full()["affinity"]["nodeAffinity"]
        );
        let spread = at("/spec/topologySpreadConstraints/0");
        assert_eq!(spread["topologyKey"], "rack");
        assert_eq!(at("/spec/priorityClassName"), "high");
        assert_eq!(at("/spec/serviceAccountName"), "redis");
        assert_eq!(at("/spec/automountServiceAccountToken"), false);
        assert_eq!(at("/spec/imagePullSecrets"), json!([{"name": "registry"}]));
        let security = at("/spec/securityContext");
        let ids = [&security["runAsUser"], &security["runAsGroup"]];
        assert_eq!(ids, [&json!(1001), &json!(0)]);
        assert_eq!(security["fsGroup"], 1001);
        assert_eq!(security["supplementalGroups"], json!([5]));
        assert_eq!(security["runAsNonRoot"], true);
        assert_eq!(security["fsGroupChangePolicy"], "Always");
        let volumes = at("/spec/volumes");
        let find = |list: &Value, name: &str| {
            let all = list.as_array().unwrap().iter();
            let mut found = all.filter(|one| one["name"] == name);
            found.next().cloned().unwrap()
        };
        let mounts = at("/spec/containers/0/volumeMounts");
        for wanted in full()["extraVolumes"].as_array().unwrap() {
            let name = wanted["name"].as_str().unwrap();
            let source = ["configMap", "secret", "projected", "emptyDir", "csi"];
            let claim = ["persistentVolumeClaim"];
            for source in source.iter().chain(&claim) {
                assert_eq!(find(&volumes, name)[source], wanted[source], "{name}");
            }
            let mount = find(&mounts, name);
            for field in ["mountPath", "subPath", "readOnly"] {
                assert_eq!(mount[field], wanted[field], "{name}");
            }
        }
    }

    fn full() -> Value {
        json!({
            "labels": {"team": "web"},
            "annotations": {"example.com/note": "two words"},
            "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["fast"]}]}]}}},
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "ScheduleAnyway"}],
            "priorityClassName": "high",
            "serviceAccountName": "redis",
            "imagePullSecrets": [{"name": "registry"}],
            "securityContext": {"runAsUser": 1001, "runAsGroup": 0, "fsGroup": 1001, "supplementalGroups": [5]},
            "extraVolumes": [
                {"name": "one", "mountPath": "/one", "configMap": {"name": "files"}},
                {"name": "two", "mountPath": "/two", "secret": {"secretName": "keys"}, "readOnly": true},
                {"name": "three", "mountPath": "/three", "projected": {"sources": [{"secret": {"name": "keys"}}]}},
                {"name": "four", "mountPath": "/four", "emptyDir": {"sizeLimit": "1Gi"}, "subPath": "a/b"},
                {"name": "five", "mountPath": "/five", "persistentVolumeClaim": {"claimName": "shared"}},
                {"name": "six", "mountPath": "/six", "csi": {"driver": "secrets.example.com", "readOnly": true}}],
        })
    }

    /// The schema refuses such names; an object that was stored past it must not detach pods from their cluster.
    #[test]
    fn labels_and_annotations_of_ours_win() {
        let template = rendered(json!({
            "labels": {LABEL_CLUSTER: "other"},
            "annotations": {ANNOTATION_RESTART_HASH: "other"},
        }));
        let metadata = template.metadata.unwrap();
        assert_eq!(metadata.labels.unwrap()[LABEL_CLUSTER], "shop");
        let annotations = metadata.annotations.unwrap();
        assert_ne!(annotations[ANNOTATION_RESTART_HASH], "other");
    }

    /// A volume that is added to the rendering is refused to users from then on.
    #[test]
    fn volumes_of_ours_are_reserved() {
        for storage in [true, false] {
            let mut cluster = example();
            if !storage {
                cluster.spec.storage = None;
            }
            let cluster = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap();
            let size = SetSize {
                shard: 0,
                pods: 2,
                keeps_volumes: true,
            };
            let mut children = build(&cluster, &[size], "system");
            let set = children.stateful_sets.remove(0).spec;
            let pod = set.template.spec.unwrap();
            let claims = set.volume_claim_templates.into_iter().flatten();
            let claims = claims.filter_map(|claim| claim.metadata.name);
            let volumes = pod.volumes.into_iter().flatten().map(|one| one.name);
            for name in volumes.chain(claims) {
                assert!(OWN_VOLUMES.contains(&name.as_str()), "{name}");
            }
            let mounts = pod
                .containers
                .into_iter()
                .filter_map(|one| one.volume_mounts);
            for mount in mounts.flatten() {
                let path = mount.mount_path;
                assert!(OWN_FOLDERS.contains(&path.as_str()), "{path}");
            }
        }
    }

    #[test]
    fn user_ids_stay_where_none_are_given() {
        let security = |context: Value| {
            let template = rendered(json!({ "securityContext": context }));
            template.spec.unwrap().security_context.unwrap()
        };
        let usual = security(json!({}));
        assert_eq!(usual.run_as_non_root, Some(true));
        assert_eq!(
            (usual.run_as_user, usual.fs_group),
            (Some(USER), Some(USER))
        );
        assert_eq!(
            usual.fs_group_change_policy.as_deref(),
            Some("OnRootMismatch")
        );
        let other = security(json!({"runAsUser": 0, "runAsNonRoot": false}));
        assert_eq!(other.run_as_non_root, Some(false));
        assert_eq!((other.run_as_user, other.fs_group), (Some(0), Some(USER)));
        assert_eq!(other.fs_group_change_policy.as_deref(), Some("Always"));
    }
}
