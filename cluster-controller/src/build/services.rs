//! Services and the disruption budget.

use super::{
    access::balance,
    labels, metadata, selector, selects,
    service_ports::{EVERY_FAMILY, client_ports, port},
};
use crate::validate::ValidatedCluster;
use crds::{BUS_PORT, PORT_BUS, headless_service_name};
use k8s_openapi::{
    api::{
        core::v1::{Service, ServiceSpec},
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

/// Names of the pods. They have to find each other before they are ready.
pub fn headless(cluster: &ValidatedCluster) -> Service {
    let mut ports = client_ports(cluster);
    ports.push(port(PORT_BUS, BUS_PORT));
    Service {
        metadata: metadata(cluster, headless_service_name(&cluster.shape.name)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            ip_family_policy: Some(EVERY_FAMILY.to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector(cluster)),
            ports: Some(ports),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Where clients connect first; the cluster tells them the rest.
pub fn client(cluster: &ValidatedCluster) -> Service {
    let mut service = Service {
        metadata: metadata(cluster, cluster.shape.name.clone()),
        spec: Some(ServiceSpec {
            ip_family_policy: Some(EVERY_FAMILY.to_owned()),
            selector: Some(selector(cluster)),
            ports: Some(client_ports(cluster)),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    if let Some(policy) = &cluster.shape.access.policy {
        balance(&mut service, policy);
    }
    service
}

/// One budget over all pods: a pod under two budgets could not be evicted at all. None before every slot was served once: no pod is ready
/// until then, and nodes without data must not keep a Kubernetes node from being drained.
pub fn disruption_budget(cluster: &ValidatedCluster) -> Option<PodDisruptionBudget> {
    let max_unavailable = cluster.max_unavailable.filter(|_| cluster.formed)?;
    let mut metadata = metadata(cluster, cluster.shape.name.clone());
    metadata.labels = Some(labels(cluster));
    Some(PodDisruptionBudget {
        metadata,
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(max_unavailable)),
            selector: Some(selects(selector(cluster))),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::{tests::example, validate};
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn the_budget_protects_data_and_not_empty_nodes() {
        let mut cluster = validate(&example(), None, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(disruption_budget(&cluster), None);
        cluster.formed = true;
        assert!(disruption_budget(&cluster).is_some());
    }
}
