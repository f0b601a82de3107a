//! How clients outside the network of the pods reach the servers: a load balancer for each pod, whose address the server of that pod
//! announces as its name. Pure.
//!
//! The bus and replication go on by the addresses of the pods: `cluster-announce-hostname` is for clients alone. What a server tells all
//! clients, inside and outside, is one thing (`cluster-preferred-endpoint-type`, `getPreferredEndpoint` in `cluster.c`): it is switched to names
//! once every server knows the name of every other one, for a name that a server does not know is given as `?`. It is switched back before the
//! load balancers go.

pub mod report;

use crate::redis::member::{ClientSetting, Hostname};
use crds::{AccessPolicy, AccessType, RedisCluster, pod_of_access_service};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};
use kube::ResourceExt;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// Where clients are given names.
const NAMES: &str = "hostname";
/// Where they are given addresses of pods: the default of the servers.
const ADDRESSES: &str = "ip";

/// Bytes of the longest name that servers announce (`NET_HOST_STR_LEN` in `server.h`, with its end).
const LONGEST_NAME: usize = 255;

/// What is wanted, and what there is of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Access {
    /// What the load balancers are to be like. None: there are to be none.
    pub policy: Option<AccessPolicy>,
    /// What clients are given where there are no load balancers.
    otherwise: String,
    /// What the status says: whether servers redirect clients to them. None: there are none.
    pub redirects: Option<bool>,
    /// The address of each pod's load balancer, as far as it has one.
    pub addresses: BTreeMap<String, LoadBalancer>,
    /// That of the cluster's Service.
    pub first: Option<LoadBalancer>,
}

/// Where a load balancer is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadBalancer {
    /// A name, or an address of version 4: what servers can announce.
    At(String),
    /// What is no name for servers: they take letters, digits, dots and dashes (`isValidAnnouncedHostname` in `config.c`).
    Unusable(String),
}

impl LoadBalancer {
    /// Of a Service that has one.
    fn of(service: &Service) -> Option<Self> {
        let kind = service.spec.as_ref()?.type_.as_deref();
        // One that is deleted still has its address for a while.
        if kind != Some("LoadBalancer") || service.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let status = service.status.as_ref()?.load_balancer.as_ref()?;
        let found = status.ingress.iter().flatten().filter_map(Self::at);
        let (usable, others): (Vec<_>, Vec<_>) = found.partition(|one| matches!(one, Self::At(_)));
        usable.into_iter().chain(others).next()
    }

    fn at(ingress: &LoadBalancerIngress) -> Option<Self> {
        let named = ingress.hostname.as_ref().filter(|name| !name.is_empty());
        if let Some(name) = named {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
            let is_taken = name.len() <= LONGEST_NAME && name.bytes().all(plain);
            let found = if is_taken { Self::At } else { Self::Unusable };
            return Some(found(name.clone()));
        }
        let ip = ingress.ip.clone()?;
        Some(match ip.parse() {
            Ok(IpAddr::V4(_)) => Self::At(ip),
            Ok(IpAddr::V6(_)) | Err(_) => Self::Unusable(ip),
        })
    }

    /// What servers can announce.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::At(name) => Some(name),
            Self::Unusable(_) => None,
        }
    }
}

impl Access {
    /// What the spec wants, and what the status says.
    pub fn of(cluster: &RedisCluster) -> Self {
        let policy = cluster.spec.access.clone();
        let before = cluster.status.as_ref();
        let before = before.and_then(|status| status.access.as_ref());
        let asked = cluster.spec.config.get(ClientSetting::EndpointType.name());
        Self {
            // As servers report it, whatever the spelling.
            otherwise: asked.map_or(ADDRESSES, String::as_str).to_ascii_lowercase(),
            policy: policy.filter(|policy| policy.kind == AccessType::LoadBalancer),
            redirects: before.map(|access| access.redirects),
            ..Self::default()
        }
    }

    /// With the addresses that the Services of a cluster have been given.
    #[must_use]
    pub fn found(mut self, cluster: &str, services: &[Arc<Service>]) -> Self {
        for service in services {
            let (name, Some(found)) = (service.name_any(), LoadBalancer::of(service)) else {
                continue;
            };
            if name == cluster {
                self.first = Some(found);
            } else if let Some(pod) = pod_of_access_service(cluster, &name) {
                self.addresses.insert(pod.to_owned(), found);
            }
        }
        self
    }

    /// Whether servers have anything to do with it.
    pub fn is_used(&self) -> bool {
        self.policy.is_some() || self.redirects.is_some()
    }

    /// What servers tell clients. None: that is no matter.
    pub fn endpoint_type(&self) -> Option<&str> {
        match (self.policy.is_some(), self.redirects) {
            (true, Some(true)) => Some(NAMES),
            (true, _) | (false, Some(_)) => Some(&self.otherwise),
            (false, None) => None,
        }
    }

    /// What the server of a pod announces, which is called `inside` in the Kubernetes cluster. While servers may still redirect clients to
    /// load balancers, and where the load balancer of a pod has no address just now, it goes on with the name that it has.
    pub fn hostname(&self, pod: &str, inside: String) -> Hostname {
        let outside = self.addresses.get(pod).and_then(LoadBalancer::name);
        match outside.filter(|_| self.policy.is_some()) {
            Some(name) => Hostname {
                name: name.to_owned(),
                replaces: true,
            },
            None => Hostname {
                name: inside,
                replaces: self.policy.is_none() && self.redirects != Some(true),
            },
        }
    }

    /// Where clients outside connect first, to the port of the servers.
    pub fn endpoint(&self, port: u16) -> Option<String> {
        let name = self.first.as_ref()?.name()?;
        Some(format!("{name}:{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str, ingress: &serde_json::Value) -> Arc<Service> {
        let service = json!({
            "metadata": {"name": name},
            "spec": {"type": "LoadBalancer"},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        Arc::new(serde_json::from_value(service).unwrap())
    }

    fn access() -> Access {
        let cluster = crate::validate::tests::example();
        let services = [
            service("shop", &json!([{"ip": "203.0.113.1"}])),
            service("shop-0-0-access", &json!([{"ip": "203.0.113.2"}])),
            service(
                "shop-0-1-access",
                &json!([{"hostname": "lb.example", "ip": "203.0.113.3"}]),
            ),
            service("shop-1-0-access", &json!([{"ip": "2001:db8::1"}])),
            service(
                "shop-1-1-access",
                &json!([{"ip": "2001:db8::2"}, {"ip": "203.0.113.4"}]),
            ),
            service("shop-2-0-access", &json!([])),
            service(
                "shop-2-1-access",
                &json!([{"hostname": "under_score.example"}]),
            ),
        ];
        Access::of(&cluster).found("shop", &services)
    }

    #[test]
    fn servers_announce_names_and_addresses_of_version_4() {
        let mut access = access();
        access.policy = Some(AccessPolicy::default());
        let name = |pod: &str| access.hostname(pod, "inside".to_owned());
        let outside = |name: &str| Hostname {
            name: name.to_owned(),
            replaces: true,
        };
        assert_eq!(name("shop-0-0"), outside("203.0.113.2"));
        assert_eq!(name("shop-0-1"), outside("lb.example"));
        assert_eq!(name("shop-1-1"), outside("203.0.113.4"));
        for pod in ["shop-1-0", "shop-2-0", "shop-2-1", "shop-9-9"] {
            assert_eq!(name(pod).name, "inside");
            assert!(!name(pod).replaces, "{pod} goes on with what it has");
        }
        assert_eq!(access.endpoint(6379).unwrap(), "203.0.113.1:6379");
        assert_eq!(access.endpoint(6380).unwrap(), "203.0.113.1:6380");
    }

    #[test]
    fn names_stay_while_clients_may_be_sent_to_them() {
        let mut access = access();
        for (redirects, replaces) in [(None, true), (Some(true), false), (Some(false), true)] {
            access.redirects = redirects;
            let name = access.hostname("shop-0-0", "inside".to_owned());
            assert_eq!((name.name.as_str(), name.replaces), ("inside", replaces));
            let given = redirects.is_some().then_some("ip");
            assert_eq!(access.endpoint_type(), given);
        }
        access.policy = Some(AccessPolicy::default());
        assert_eq!(access.endpoint_type(), Some("ip"));
        access.redirects = Some(true);
        assert_eq!(access.endpoint_type(), Some(NAMES));
    }
}
