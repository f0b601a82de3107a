//! Who may connect to the servers of a cluster, by network.

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Who may connect to the servers, by network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkAccess {
    /// From where clients may connect, each as in a NetworkPolicy: podSelector, namespaceSelector or both, or ipBlock. At most 32. Empty:
    /// from nowhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.all(from, has(from.ipBlock) != (has(from.podSelector) || has(from.namespaceSelector)))").message("networkPolicy.clients: give podSelector, namespaceSelector or both, or ipBlock alone"))]
    pub clients: Vec<NetworkPolicyPeer>,
}
