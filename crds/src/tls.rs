//! Encryption of what clients, servers and controllers send each other.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Key of the Secret that the pods mount: name of the certificate file, without its ending, that servers and controllers present.
pub const KEY_PRESENTED: &str = "presented";

/// Encryption of what clients, servers and controllers send each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsPolicy {
    /// Secret in the same namespace, as cert-manager writes it: tls.crt (the certificate and its intermediates), tls.key and ca.crt (the
    /// CAs that servers trust). Usages, if it lists some, include server auth and client auth. When the Secret changes, running
    /// servers get the new certificate. One that is expired or does not fit changes nothing: CertificatesValid names it, or Ready on a
    /// new cluster.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub secret_name: String,
    /// Whether servers ask clients for a certificate of a CA in ca.crt. Off: they do not. Optional: they verify one that is presented.
    /// Required: they refuse clients without one, collectors of metrics too. A change reaches running servers.
    #[serde(default)]
    pub client_auth: ClientAuth,
}

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClientAuth {
    /// None is asked for.
    #[default]
    Off,
    /// One that is shown is checked.
    Optional,
    /// Without one no client is let in.
    Required,
}

/// The certificate that the servers are given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsStatus {
    /// Its serial number, in hexadecimal digits.
    pub serial: String,
    /// Until when it is valid.
    pub not_after: Time,
}

/// Name of the Secret that the pods mount: the certificates that servers use, by files named STEP-HASH.
pub fn certificates_secret_name(cluster: &str) -> String {
    format!("{cluster}-certificates")
}

/// File with a certificate and those that lead to its authority.
pub fn certificate_file(name: &str) -> String {
    format!("{name}.crt")
}

/// File with its key.
pub fn key_file(name: &str) -> String {
    format!("{name}.key")
}

/// File with the authorities that are trusted.
pub fn authorities_file(name: &str) -> String {
    format!("{name}.ca")
}
