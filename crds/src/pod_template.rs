//! What a user adds to the pods of a RedisCluster.
//!
//! Types of Kubernetes are embedded where they are small or where no smaller one would do (`affinity`); what could make a pod leave its
//! sandbox (host paths, privileges, capabilities, other containers) has no field.

use crate::{LocalRef, OWN_FOLDERS, OWN_PREFIXES, OWN_VOLUMES};
use k8s_openapi::api::core::v1::{
    Affinity, CSIVolumeSource, ConfigMapVolumeSource, EmptyDirVolumeSource,
    PersistentVolumeClaimVolumeSource, ProjectedVolumeSource, SecretVolumeSource, Toleration,
    TopologySpreadConstraint,
};
use kube::{KubeSchema, core::Rule};
use schemars::Schema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Longest text of a field, in bytes; a longer one of Kubernetes' own is cut to the sentences that are within the second number.
const LONGEST: (usize, usize) = (400, 300);

/// What is added to every pod. Every field is part of the restart hash: one that is added here is skipped while it is not given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = brief_texts)]
pub struct PodTemplate {
    /// Labels of the pods, at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 63, "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"}))]
    #[x_kube(validation = is_qualified("labels"), validation = is_not_ours("labels"))]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods, at most 32, each of at most 4096 characters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 4096}))]
    #[x_kube(validation = is_qualified("annotations"), validation = is_not_ours("annotations"))]
    pub annotations: BTreeMap<String, String>,
    /// Labels that a Kubernetes node must have to run the pods, at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 63, "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"}))]
    #[x_kube(validation = is_qualified("nodeSelector"))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of Kubernetes nodes that the pods tolerate, at most 32, as in a Pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Rules for the scheduler, as in a Pod, besides those that placement makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Constraints for the scheduler, at most 8, as in a Pod. One without labelSelector counts the pods of this cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["topologyKey", "whenUnsatisfiable"]))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Name of the PriorityClass of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub priority_class_name: Option<String>,
    /// Name of the ServiceAccount of the pods, for image pull secrets and policies that are bound to it. Its token is not mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub service_account_name: Option<String>,
    /// Secrets by which the image is pulled, at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub image_pull_secrets: Vec<LocalRef>,
    /// User and groups of the server, for images that are made for others than 999.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_context: Option<PodIdentity>,
    /// Volumes beside those of the controller, at most 16, each mounted at one path: certificates, modules, scripts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other.mountPath == one.mountPath))").message("extraVolumes: two volumes are mounted at the same path"))]
    pub extra_volumes: Vec<ExtraVolume>,
}

/// User and groups of the server. Everything else of a security context stays as the controller sets it: no capabilities, no privilege
/// escalation, a read-only root file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.runAsUser) || self.runAsUser != 0 || (has(self.runAsNonRoot) && !self.runAsNonRoot)").message("runAsUser 0 is root: give another user, or runAsNonRoot: false as well"))]
pub struct PodIdentity {
    /// Whether the kubelet refuses to run the server as root. Absent: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_non_root: Option<bool>,
    /// User id of the server. Absent: 999. Its files are made writable by fsGroup; where the volumes do not support that, change
    /// their owner first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub run_as_user: Option<i64>,
    /// Group id of the server. Absent: 999.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub run_as_group: Option<i64>,
    /// Group id that owns the files of the volumes. Absent: 999.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub fs_group: Option<i64>,
    /// More groups of the server, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub supplemental_groups: Vec<i64>,
}

/// A volume, and where it is mounted. Give exactly one source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.configMap), has(self.secret), has(self.projected), has(self.emptyDir), has(self.persistentVolumeClaim), has(self.csi)].filter(one, one).size() == 1").message("extraVolumes: give each volume exactly one of configMap, secret, projected, emptyDir, persistentVolumeClaim and csi"))]
pub struct ExtraVolume {
    /// Name of the volume. data, memory, config, tmp, users, certificates and exporter are the controller's own.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    #[x_kube(validation = is_a_free_name())]
    pub name: String,
    /// Where it is mounted, for example /certificates. Not in /data, /config, /tmp, /users or /tls.
    #[schemars(length(min = 2, max = 256), regex(pattern = r"^(/[A-Za-z0-9._-]+)+$"))]
    #[x_kube(validation = is_a_free_folder())]
    pub mount_path: String,
    /// Path of a file or folder in the volume that is mounted alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 256),
        regex(pattern = r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$")
    )]
    pub sub_path: Option<String>,
    /// Whether it is mounted without the right to write.
    #[serde(default)]
    pub read_only: bool,
    /// A ConfigMap, as in a Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapVolumeSource>,
    /// A Secret, as in a Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretVolumeSource>,
    /// Several sources in one folder, as in a Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projected: Option<ProjectedVolumeSource>,
    /// An empty folder that goes with the pod, as in a Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDirVolumeSource>,
    /// A claim that all pods of the cluster mount, as in a Pod: one that many nodes may mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimVolumeSource>,
    /// A volume of a CSI driver that goes with the pod, as in a Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csi: Option<CSIVolumeSource>,
}

/// The texts of Kubernetes' types are made for a reference; `kubectl explain` and the definitions have room for their beginning.
fn brief_texts(schema: &mut Schema) {
    if let Some(members) = schema.as_object_mut() {
        shorten(members);
    }
}

fn shorten(members: &mut Map<String, Value>) {
    for (name, value) in members {
        match value {
            Value::String(text) if name == "description" => {
                if let Some(short) = sentences(text) {
                    *text = short;
                }
            }
            Value::Object(members) => shorten(members),
            Value::Array(items) => items
                .iter_mut()
                .filter_map(Value::as_object_mut)
                .for_each(shorten),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

/// The first sentences of a text that is too long.
fn sentences(text: &str) -> Option<String> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let ends = text.match_indices(". ").map(|(at, _)| at);
    let is_end = |at: &usize| {
        let before = text.get(..*at).unwrap_or_default();
        !["i.e", "e.g"].iter().any(|short| before.ends_with(short))
    };
    let within = ends.filter(is_end).take_while(|at| *at < LONGEST.1);
    let short = text.get(..=within.last()?)?.to_owned();
    (text.len() > LONGEST.0).then_some(short)
}

/// Keys are names as Kubernetes takes them.
fn is_qualified(field: &str) -> Rule {
    Rule::new("self.all(key, size(key) <= 317 && key.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))").message(format!(
        "podTemplate.{field}: a name has letters, digits, dashes, dots and underscores, with or without a domain and a slash before it"
    ).as_str())
}

/// Ours say which pods belong together.
fn is_not_ours(field: &str) -> Rule {
    let rules = OWN_PREFIXES.map(|prefix| format!("!key.startsWith('{prefix}')"));
    Rule::new(format!("self.all(key, {})", rules.join(" && "))).message(
        format!(
            "podTemplate.{field}: those of {} are set by the controller and by Kubernetes: use another domain",
            listed(&OWN_PREFIXES)
        )
        .as_str(),
    )
}

fn is_a_free_name() -> Rule {
    let names = OWN_VOLUMES.map(|name| format!("'{name}'"));
    Rule::new(format!("!(self in [{}])", names.join(", "))).message(
        format!(
            "extraVolumes: {} are names of the controller's own volumes: choose another name",
            listed(&OWN_VOLUMES)
        )
        .as_str(),
    )
}

fn is_a_free_folder() -> Rule {
    Rule::new(format!(
        "!self.matches('^({})(/|$)') && !self.matches('/[.][.]?(/|$)')",
        OWN_FOLDERS.join("|")
    ))
    .message(
        format!(
            "extraVolumes: {} are the controller's own, and a path has no part . or ..: choose another mountPath",
            listed(&OWN_FOLDERS)
        )
        .as_str(),
    )
}

/// `a, b and c`.
fn listed(names: &[&str]) -> String {
    match names {
        [before @ .., last] if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        _ => names.concat(),
    }
}
