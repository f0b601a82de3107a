//! The ports of Services, and the versions of IP that they have.

use crate::validate::ValidatedCluster;
use crds::{CLIENT_PORT, PORT_CLIENT, PORT_TLS, TLS_PORT};
use k8s_openapi::{api::core::v1::ServicePort, apimachinery::pkg::util::intstr::IntOrString};

/// In a Kubernetes cluster with addresses of both versions a Service, and each name, has both: servers listen on all. With one version it changes
/// nothing.
pub const EVERY_FAMILY: &str = "PreferDualStack";

/// Before servers encrypt among each other, they send a client that does to ports in the clear.
pub fn client_ports(cluster: &ValidatedCluster) -> Vec<ServicePort> {
    let encryption = cluster.shape.encryption;
    let plain = encryption.lets_plaintext_in();
    let plain = plain.then(|| port(PORT_CLIENT, CLIENT_PORT));
    let encrypted = encryption.is_used().then(|| port(PORT_TLS, TLS_PORT));
    plain.into_iter().chain(encrypted).collect()
}

/// A port by the name that it has in pods.
pub fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(number),
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}
