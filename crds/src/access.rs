//! How clients outside the network of the pods reach the servers.

use crate::node_of_pod;
use kube::{KubeSchema, core::Rule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How clients outside the network of the pods reach the servers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = keeps_its_class())]
#[x_kube(validation = concerns_load_balancers())]
pub struct AccessPolicy {
    /// `ClusterIP`: they do not. `LoadBalancer`: the Service of the cluster and one for each pod, POD-access, get a load balancer, and
    /// servers redirect every client to those of the pods; where load balancers have names, to the names.
    #[serde(rename = "type", default)]
    pub kind: AccessType,
    /// Annotations of these Services, by which a provider of load balancers knows what they are to be like. At most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 4096}))]
    pub annotations: BTreeMap<String, String>,
    /// Class of the load balancers, where there is more than one provider. It stays while type is LoadBalancer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub load_balancer_class: Option<String>,
    /// The networks from which load balancers take connections, for example 203.0.113.0/24, where the provider heeds them. Name that of the
    /// pods too: clients inside are redirected to the load balancers as well. At most 32. Empty: every network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 64)))]
    pub source_ranges: Vec<String>,
}

/// Where clients come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessType {
    /// From the network of the pods alone.
    #[default]
    ClusterIP,
    /// From everywhere, through a load balancer for each pod.
    LoadBalancer,
}

/// The API server keeps the class of a Service as it is.
fn keeps_its_class() -> Rule {
    Rule::new("self.type != 'LoadBalancer' || oldSelf.type != 'LoadBalancer' || (has(self.loadBalancerClass) ? self.loadBalancerClass : '') == (has(oldSelf.loadBalancerClass) ? oldSelf.loadBalancerClass : '')").message(
        "access.loadBalancerClass cannot be changed while access.type is LoadBalancer: set it to ClusterIP first",
    )
}

fn concerns_load_balancers() -> Rule {
    Rule::new("self.type == 'LoadBalancer' || !(has(self.annotations) || has(self.loadBalancerClass) || has(self.sourceRanges))").message(
        "access: annotations, loadBalancerClass and sourceRanges need access.type LoadBalancer",
    )
}

/// Where clients outside the network of the pods reach the servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessStatus {
    /// Where they connect first, host:port. Absent: the load balancer of the cluster's Service has no address yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Whether servers redirect clients to the load balancers of the pods. They do once every pod has one and every server knows all of
    /// them.
    pub redirects: bool,
}

/// Name of the Service through which clients outside reach one pod.
pub fn access_service_name(pod: &str) -> String {
    format!("{pod}-access")
}

/// The pod of a RedisCluster that such a Service is for. None: it is another Service, as is `shop-access`, where clients of the RedisCluster
/// `shop-access` connect.
pub fn pod_of_access_service<'a>(cluster: &str, name: &'a str) -> Option<&'a str> {
    let pod = name.strip_suffix("-access");
    pod.filter(|pod| node_of_pod(cluster, pod).is_some())
}
