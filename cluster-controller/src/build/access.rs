//! The Services through which clients outside the network of the pods reach one pod each.

use super::{
    metadata,
    service_ports::{EVERY_FAMILY, client_ports},
};
use crate::{sets::SetSize, validate::ValidatedCluster};
use crds::{AccessPolicy, LABEL_POD_NAME, access_service_name, pod_name};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use std::collections::{BTreeMap, BTreeSet};

/// One for each pod, where the spec asks for load balancers.
pub fn of_pods(cluster: &ValidatedCluster, sizes: &[SetSize]) -> Vec<Service> {
    let Some(policy) = &cluster.shape.access.policy else {
        return Vec::new();
    };
    let shape = &cluster.shape;
    let there = sizes.iter().map(|size| (size.shard, size.pods));
    // Also of pods that are yet to come, or hibernate: until a provider has assigned another one, clients would be sent to an address that is
    // not theirs any more.
    let wanted = (0..shape.shards).map(|shard| (shard, shape.replicas + 1));
    let pods: BTreeSet<(i32, i32)> = there
        .chain(wanted)
        .flat_map(|(shard, pods)| (0..pods).map(move |ordinal| (shard, ordinal)))
        .collect();
    let names = pods.into_iter();
    let names = names.map(|(shard, ordinal)| pod_name(&shape.name, shard, ordinal));
    names.map(|pod| of_pod(cluster, policy, pod)).collect()
}

/// Whether the pod is ready does not matter: clients are sent to a server that serves a slot whatever its readiness, inside the network of the
/// pods too.
fn of_pod(cluster: &ValidatedCluster, policy: &AccessPolicy, pod: String) -> Service {
    let mut service = Service {
        metadata: metadata(cluster, access_service_name(&pod)),
        spec: Some(ServiceSpec {
            ip_family_policy: Some(EVERY_FAMILY.to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(BTreeMap::from([(LABEL_POD_NAME.to_owned(), pod)])),
            ports: Some(client_ports(cluster)),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    balance(&mut service, policy);
    service
}

/// Gives a Service a load balancer.
pub fn balance(service: &mut Service, policy: &AccessPolicy) {
    if !policy.annotations.is_empty() {
        service.metadata.annotations = Some(policy.annotations.clone());
    }
    let spec = service.spec.get_or_insert_default();
    spec.type_ = Some("LoadBalancer".to_owned());
    spec.load_balancer_class
        .clone_from(&policy.load_balancer_class);
    if !policy.source_ranges.is_empty() {
        spec.load_balancer_source_ranges = Some(policy.source_ranges.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::build,
        validate::{tests::example, validate},
    };
    use crds::AccessType;
    use k8s_openapi::jiff::Timestamp;
    use kube::ResourceExt;
    use serde_json::{json, to_value};

    #[test]
    fn every_pod_has_a_load_balancer_of_its_own() {
        let mut cluster = example();
        let size = SetSize {
            shard: 1,
            pods: 2,
            keeps_volumes: true,
        };
        let built = |cluster: &crds::RedisCluster| {
            let cluster = validate(cluster, None, Timestamp::UNIX_EPOCH).unwrap();
            build(&cluster, &[size], "operators")
        };
        assert!(built(&cluster).access_services.is_empty());
        cluster.spec.access = Some(AccessPolicy {
            kind: AccessType::LoadBalancer,
            annotations: BTreeMap::from([("pool".to_owned(), "outside".to_owned())]),
            load_balancer_class: Some("example.com/lb".to_owned()),
            source_ranges: vec!["203.0.113.0/24".to_owned()],
        });
        let children = built(&cluster);
        let names = children.access_services.iter().map(ResourceExt::name_any);
        let names: Vec<String> = names.collect();
        assert_eq!(names.len(), 6, "those that hibernate among them: {names:?}");
        let service = to_value(&children.access_services[3]).unwrap();
        assert_eq!(service["metadata"]["name"], "shop-1-1-access");
        for service in [service, to_value(&children.client_service).unwrap()] {
            assert_eq!(
                service["metadata"]["annotations"],
                json!({"pool": "outside"})
            );
            let spec = &service["spec"];
            assert_eq!(spec["type"], "LoadBalancer");
            assert_eq!(spec["loadBalancerClass"], "example.com/lb");
            assert_eq!(spec["loadBalancerSourceRanges"], json!(["203.0.113.0/24"]));
            assert_eq!(spec["ports"][0]["port"], 6379);
        }
    }
}
