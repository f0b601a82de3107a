//! Renders the Kubernetes objects of a cluster. Pure: the same cluster gives the same bytes.

mod access;
mod client_options;
mod config;
mod exporter;
mod network_policy;
mod parts;
mod placement;
mod pod_template;
mod service_ports;
mod services;
mod start_script;
mod stateful_set;
mod stop_script;
mod trial;

pub use config::redis_conf;
pub use exporter::{RELOAD_SECONDS, password_file};
pub use start_script::start_script;
pub use trial::trial_pod;

use crate::{sets::SetSize, validate::ValidatedCluster};
use crds::{LABEL_CLUSTER, LABEL_INSTANCE, LABEL_MANAGED_BY, LABEL_NAME, LABEL_SHARD, MANAGED_BY};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::ResourceExt;
use std::collections::BTreeMap;

/// Every object of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Children {
    /// Settings and scripts.
    pub config_map: ConfigMap,
    /// Names of the pods.
    pub headless_service: Service,
    /// Where clients connect.
    pub client_service: Service,
    /// Where clients outside the network of the pods reach each of them.
    pub access_services: Vec<Service>,
    /// Whether pods that are not wanted any more keep theirs while they are there: servers may still send clients to them.
    pub keeps_access: bool,
    /// The one budget, unless it is switched off.
    pub disruption_budget: Option<PodDisruptionBudget>,
    /// Who reaches the servers, where that is limited.
    pub network_policy: Option<NetworkPolicy>,
    /// One for each shard that has pods.
    pub stateful_sets: Vec<StatefulSet>,
}

/// Name of the ConfigMap with the wanted configuration.
pub fn configuration_name(cluster: &ValidatedCluster) -> String {
    config::config_map(cluster).name_any()
}

/// Renders all objects; the StatefulSets with these sizes. The controllers run in the namespace `controllers`.
pub fn build(cluster: &ValidatedCluster, sizes: &[SetSize], controllers: &str) -> Children {
    let config_map = config::config_map(cluster);
    let configuration = config_map.name_any();
    let (of_new, kept) = cluster.of_new_shards();
    let of_new_configuration = kept.unwrap_or(&configuration);
    let set = |size: &SetSize| {
        let mut set = stateful_set::stateful_set(&of_new, *size, of_new_configuration);
        if let Some(own) = cluster.held.get(&size.shard) {
            set.spec.template.clone_from(own.whole());
        }
        set
    };
    Children {
        config_map,
        headless_service: services::headless(cluster),
        client_service: services::client(cluster),
        access_services: access::of_pods(cluster, sizes),
        keeps_access: cluster.shape.access.is_used(),
        disruption_budget: services::disruption_budget(cluster),
        network_policy: network_policy::network_policy(cluster, controllers),
        stateful_sets: sizes.iter().map(set).collect(),
    }
}

/// Labels of every object of the cluster.
fn labels(cluster: &ValidatedCluster) -> BTreeMap<String, String> {
    BTreeMap::from([
        (LABEL_NAME.to_owned(), "redis".to_owned()),
        (LABEL_INSTANCE.to_owned(), cluster.shape.name.clone()),
        (LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned()),
        (LABEL_CLUSTER.to_owned(), cluster.shape.name.clone()),
    ])
}

/// What selects every pod of the cluster.
fn selector(cluster: &ValidatedCluster) -> BTreeMap<String, String> {
    BTreeMap::from([(LABEL_CLUSTER.to_owned(), cluster.shape.name.clone())])
}

/// What selects the pods of one shard.
fn shard_selector(cluster: &ValidatedCluster, shard: i32) -> BTreeMap<String, String> {
    let mut labels = selector(cluster);
    labels.insert(LABEL_SHARD.to_owned(), shard.to_string());
    labels
}

/// Selects what has all these labels.
fn selects(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels),
        ..LabelSelector::default()
    }
}

fn metadata(cluster: &ValidatedCluster, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.shape.namespace.clone()),
        labels: Some(labels(cluster)),
        owner_references: Some(vec![cluster.owner.clone()]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::{tests::example, validate};
    use k8s_openapi::jiff::Timestamp;
    use serde_json::Value;

    fn sizes(shards: i32) -> Vec<SetSize> {
        let size = |shard| SetSize {
            shard,
            pods: 2,
            keeps_volumes: true,
        };
        (0..shards).map(size).collect()
    }

    /// A pod restarts with the configuration that it was started with: another one is another object.
    #[test]
    fn another_configuration_is_another_object() {
        let mut cluster = example();
        let rendered = |cluster: &crds::RedisCluster| {
            let cluster = validate(cluster, None, Timestamp::UNIX_EPOCH).unwrap();
            let children = build(&cluster, &sizes(1), "system");
            let template = children.stateful_sets[0].spec.clone().template;
            let volumes = template.spec.unwrap().volumes.unwrap();
            let mounted = volumes.into_iter().find_map(|volume| volume.config_map);
            let name = children.config_map.name_any();
            assert_eq!(mounted.unwrap().name, name);
            assert_eq!(children.config_map.immutable, Some(true));
            name
        };
        let first = rendered(&cluster);
        assert_eq!(first, rendered(&cluster));
        cluster.spec.config.insert("maxclients".into(), "99".into());
        assert_ne!(first, rendered(&cluster));
    }

    /// What the pods are made of decides what a running database is restarted for: a change here is looked at by a person.
    /// `UPDATE_GOLDEN=1 cargo test -p cluster-controller --lib golden` writes the file again.
    #[test]
    fn golden_rendering() {
        let mut text = String::new();
        for (title, storage) in [("with volumes", true), ("in memory", false)] {
            let mut cluster = example();
            if !storage {
                cluster.spec.storage = None;
            }
            let mut cluster = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap();
            cluster.formed = true;
            let children = build(&cluster, &sizes(3), "system");
            let objects: Vec<Value> = [
                serde_json::to_value(&children.config_map),
                serde_json::to_value(&children.headless_service),
                serde_json::to_value(&children.client_service),
                serde_json::to_value(&children.disruption_budget),
                serde_json::to_value(&children.stateful_sets[1]),
            ]
            .into_iter()
            .map(Result::unwrap)
            .collect();
            for object in objects {
                let object = serde_json::to_string_pretty(&object).unwrap();
                text.extend(["--- ", title, "\n", &object, "\n"]);
            }
        }
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/build/golden.json");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(file, &text).unwrap();
        }
        let golden = std::fs::read_to_string(file).unwrap();
        assert!(
            golden == text,
            "the rendering differs from {file}; if that is meant, run with UPDATE_GOLDEN=1\n{}",
            difference(&golden, &text)
        );
    }

    /// The lines between the first and the last that differ.
    fn difference(golden: &str, text: &str) -> String {
        let (old, new): (Vec<&str>, Vec<&str>) = (golden.lines().collect(), text.lines().collect());
        let same = |pairs: &mut dyn Iterator<Item = (&&str, &&str)>| {
            pairs.take_while(|(old, new)| old == new).count()
        };
        let head = same(&mut old.iter().zip(&new));
        let tail = same(&mut old[head..].iter().rev().zip(new[head..].iter().rev()));
        let lines = |sign: &str, lines: &[&str]| -> String {
            let changed = lines[head..lines.len() - tail].iter().take(40);
            let signed: Vec<String> = changed.map(|line| format!("{sign} {line}")).collect();
            signed.join("\n") + "\n"
        };
        format!(
            "line {}:\n{}{}",
            head + 1,
            lines("-", &old),
            lines("+", &new)
        )
    }

    #[test]
    fn an_encrypted_cluster_has_no_port_in_the_clear() {
        let mut cluster = example();
        cluster.spec.tls = Some(crds::TlsPolicy {
            secret_name: "of-a-user".into(),
            client_auth: crds::ClientAuth::Required,
            allow_plaintext: false,
        });
        let of = |cluster: &crds::RedisCluster| {
            let cluster = validate(cluster, None, Timestamp::UNIX_EPOCH).unwrap();
            let children = build(&cluster, &sizes(1), "system");
            let pod = trial_pod(&cluster, "trial", "configuration");
            let services =
                serde_json::to_string(&[&children.headless_service, &children.client_service])
                    .unwrap();
            let pods = [
                serde_json::to_string(&children.stateful_sets).unwrap(),
                serde_json::to_string(&pod).unwrap(),
            ];
            (services.replace(&crds::BUS_PORT.to_string(), ""), pods)
        };
        let (services, pods) = of(&cluster);
        let port = crds::CLIENT_PORT.to_string();
        assert!(!services.contains(&port), "{services}");
        cluster.spec.tls.as_mut().unwrap().allow_plaintext = true;
        let (services, same) = of(&cluster);
        assert!(services.contains(&port), "{services}");
        assert_eq!(pods, same, "pods are replaced once");
        for text in &pods {
            assert!(
                text.contains("shop-certificates") && !text.contains("of-a-user"),
                "{text}"
            );
        }
    }

    #[test]
    fn the_budget_can_be_switched_off() {
        let mut cluster = example();
        cluster.spec.pod_disruption_budget.enabled = false;
        let mut cluster = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap();
        cluster.formed = true;
        assert!(
            build(&cluster, &sizes(3), "system")
                .disruption_budget
                .is_none()
        );
    }
}
