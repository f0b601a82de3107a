//! Who reaches the servers of a cluster, by network.

use super::{metadata, selector, selects};
use crate::validate::ValidatedCluster;
use crds::{
    BUS_PORT, CLIENT_PORT, LABEL_NAMESPACE, LABEL_PART_OF, METRICS_PORT, PART_OF, TLS_PORT,
};
use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
        NetworkPolicySpec,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use std::collections::BTreeMap;

/// The policy that the spec asks for; `controllers` is the namespace in which the controllers run. Probes and stop scripts stay in their
/// pods, which no policy concerns.
pub fn network_policy(cluster: &ValidatedCluster, controllers: &str) -> Option<NetworkPolicy> {
    let clients = cluster.clients.clone()?;
    let own = NetworkPolicyPeer {
        pod_selector: Some(selects(selector(cluster))),
        ..NetworkPolicyPeer::default()
    };
    let controllers = NetworkPolicyPeer {
        namespace_selector: Some(selects(one(LABEL_NAMESPACE, controllers))),
        pod_selector: Some(selects(one(LABEL_PART_OF, PART_OF))),
        ..NetworkPolicyPeer::default()
    };
    let mut admitted = vec![own.clone(), controllers];
    admitted.extend(clients);
    let encryption = cluster.shape.encryption;
    let plain = encryption.lets_plaintext_in().then_some(CLIENT_PORT);
    // Servers show their certificates before they encrypt.
    let encrypted = encryption.has_certificates().then_some(TLS_PORT);
    let ports: Vec<u16> = plain.into_iter().chain(encrypted).collect();
    // Not from everywhere: the exporter asks any server that a request names (`/scrape?target=`), from inside the pod.
    let measured = cluster.exporter.as_ref();
    let measured = measured.map(|_| rule(admitted.clone(), &[METRICS_PORT]));
    let mut ingress = vec![rule(admitted, &ports), rule(vec![own], &[BUS_PORT])];
    ingress.extend(measured);
    Some(NetworkPolicy {
        metadata: metadata(cluster, cluster.shape.name.clone()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selects(selector(cluster))),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(ingress),
            ..NetworkPolicySpec::default()
        }),
    })
}

/// Lets these in on some ports. A rule without a peer would let every client in.
fn rule(from: Vec<NetworkPolicyPeer>, ports: &[u16]) -> NetworkPolicyIngressRule {
    let port = |port: &u16| NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(*port))),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    };
    NetworkPolicyIngressRule {
        from: Some(from),
        ports: Some(ports.iter().map(port).collect()),
    }
}

fn one(label: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(label.to_owned(), value.to_owned())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::{tests::example, validate};
    use crds::{Exporter, LABEL_CLUSTER, MonitoringPolicy, NetworkAccess, RedisCluster};
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{Value, json, to_value};

    fn policy(clients: &Value) -> Value {
        policy_of(example(), clients)
    }

    fn policy_of(mut cluster: RedisCluster, clients: &Value) -> Value {
        let access: NetworkAccess = serde_json::from_value(json!({"clients": clients})).unwrap();
        cluster.spec.network_policy = Some(access);
        let cluster = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap();
        to_value(network_policy(&cluster, "redis-operator-system")).unwrap()
    }

    #[test]
    fn none_unless_it_is_asked_for() {
        let cluster = validate(&example(), None, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(network_policy(&cluster, "redis-operator-system"), None);
    }

    #[test]
    fn clients_reach_the_servers_and_only_members_the_bus() {
        let web = json!({"podSelector": {"matchLabels": {"app": "web"}}});
        let own = json!({"podSelector": {"matchLabels": {LABEL_CLUSTER: "shop"}}});
        let controllers = json!({
            "namespaceSelector": {"matchLabels": {LABEL_NAMESPACE: "redis-operator-system"}},
            "podSelector": {"matchLabels": {LABEL_PART_OF: PART_OF}},
        });
        let port = |port: u16| json!([{"port": port, "protocol": "TCP"}]);
        let spec = |admitted: &[&Value]| {
            json!({
                "podSelector": own["podSelector"],
                "policyTypes": ["Ingress"],
                "ingress": [
                    {"from": admitted, "ports": port(6379)},
                    {"from": [own], "ports": port(16379)},
                ],
            })
        };
        assert_eq!(
            policy(&json!([web]))["spec"],
            spec(&[&own, &controllers, &web])
        );
        assert_eq!(policy(&json!([]))["spec"], spec(&[&own, &controllers]));
        let mut measured = example();
        measured.spec.monitoring = Some(MonitoringPolicy {
            exporter: Some(Exporter::default()),
        });
        let mut wanted = spec(&[&own, &controllers, &web]);
        let rules = wanted["ingress"].as_array_mut().unwrap();
        rules.push(json!({"from": [own, controllers, web], "ports": port(9121)}));
        assert_eq!(policy_of(measured, &json!([web]))["spec"], wanted);
    }
}
