//! Children that nothing uses any more. Pure.

use crate::pods::Pods;
use crds::pod_of_access_service;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, PodSpec, Service},
};
use kube::ResourceExt;
use std::{collections::HashSet, sync::Arc};

/// The ConfigMaps that no pod has and no future pod gets. While a StatefulSet still names another one than `current`, none: its next pod
/// would wait for it.
pub fn unused_config_maps(
    current: &str,
    config_maps: Vec<Arc<ConfigMap>>,
    pods: &Pods,
    sets: &[Arc<StatefulSet>],
) -> Vec<Arc<ConfigMap>> {
    let templates = sets
        .iter()
        .filter_map(|set| set.spec.template.spec.as_ref());
    let is_current = |spec: &PodSpec| mounted(spec).any(|name| name == current);
    if !templates.clone().all(is_current) {
        return Vec::new();
    }
    let specs = pods.values().filter_map(|pod| pod.spec.as_ref());
    let used: HashSet<&str> = specs.flat_map(mounted).chain([current]).collect();
    let maps = config_maps.into_iter();
    maps.filter(|map| !used.contains(map.name_any().as_str()))
        .collect()
}

/// Names of the Services for clients outside of which neither the spec nor one of these pods makes use.
pub fn unused_services(
    cluster: &str,
    services: &[Arc<Service>],
    wanted: &[String],
    keeping: Option<&Pods>,
) -> Vec<String> {
    let is_kept = |pod: &str| keeping.is_some_and(|pods| pods.contains_key(pod));
    let names = services.iter().map(|service| service.name_any());
    names
        .filter(|name| pod_of_access_service(cluster, name).is_some_and(|pod| !is_kept(pod)))
        .filter(|name| !wanted.contains(name))
        .collect()
}

/// The ConfigMaps that a pod mounts.
fn mounted(spec: &PodSpec) -> impl Iterator<Item = &str> {
    let volumes = spec.volumes.iter().flatten();
    volumes.filter_map(|volume| Some(volume.config_map.as_ref()?.name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    fn spec(configuration: &str) -> Value {
        json!({"containers": [], "volumes": [{"name": "config", "configMap": {"name": configuration}}, {"name": "tmp"}]})
    }

    fn unused(templates: &[&str], pods: &[&str]) -> Vec<String> {
        let map = |name: &&str| {
            let map = json!({"metadata": {"name": name}});
            Arc::new(serde_json::from_value::<ConfigMap>(map).unwrap())
        };
        let maps = ["old", "older", "current"].iter().map(map).collect();
        let pod = |(index, configuration): (usize, &&str)| {
            let pod = json!({"metadata": {"name": index.to_string()}, "spec": spec(configuration)});
            let pod = serde_json::from_value::<Pod>(pod).unwrap();
            (index.to_string(), Arc::new(pod))
        };
        let pods = pods.iter().enumerate().map(pod).collect();
        let set = |configuration: &&str| {
            let template = json!({"spec": spec(configuration)});
            let set = json!({"spec": {"serviceName": "x", "selector": {}, "template": template}});
            Arc::new(serde_json::from_value::<StatefulSet>(set).unwrap())
        };
        let sets: Vec<Arc<StatefulSet>> = templates.iter().map(set).collect();
        let unused = unused_config_maps("current", maps, &pods, &sets);
        unused.iter().map(|map| map.name_any()).collect()
    }

    #[test]
    fn what_a_pod_mounts_is_kept() {
        assert_eq!(unused(&["current"], &["current"]), ["old", "older"]);
        assert_eq!(unused(&["current"], &["current", "old"]), ["older"]);
    }

    #[test]
    fn what_a_future_pod_mounts_is_kept() {
        assert!(unused(&["current", "old"], &["current"]).is_empty());
    }

    #[test]
    fn a_pod_that_is_there_keeps_its_load_balancer() {
        let names = [
            "shop",
            "shop-nodes",
            "shop-0-0-access",
            "shop-0-1-access",
            "shop-1-0-access",
        ];
        let service = |name: &&str| {
            let service = json!({"metadata": {"name": name}});
            Arc::new(serde_json::from_value::<Service>(service).unwrap())
        };
        let services: Vec<Arc<Service>> = names.iter().map(service).collect();
        let pods = Pods::from([("shop-0-1".to_owned(), Arc::new(Pod::default()))]);
        let wanted = ["shop-0-0-access".to_owned()];
        let unused =
            |wanted: &[String], keeping| unused_services("shop", &services, wanted, keeping);
        assert_eq!(unused(&wanted, Some(&pods)), ["shop-1-0-access"]);
        assert_eq!(
            unused(&[], Some(&pods)),
            ["shop-0-0-access", "shop-1-0-access"]
        );
        assert_eq!(unused(&[], None).len(), 3);
        let own = json!({"metadata": {"name": "data-access"}});
        let own = [Arc::new(serde_json::from_value::<Service>(own).unwrap())];
        assert!(unused_services("data-access", &own, &[], None).is_empty());
    }
}
