//! Encryption of what clients, servers and controllers send each other.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Key of the Secret that the pods mount: the digits of the certificate that servers and controllers show.
pub const KEY_PRESENTED: &str = "presented";

/// Encryption of what clients, servers and controllers send each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsPolicy {
    /// Secret in the same namespace as cert-manager makes it: tls.crt with the certificate of the servers and those that lead to its
    /// authority, tls.key, and ca.crt with the authorities that are trusted. Servers show the certificate to each other too: if it lists
    /// what it may be used for, both server auth and client auth have to be there. Once the Secret changes, the servers are given the new
    /// certificate while they run; one that is expired, or does not fit, is named in the condition CertificatesValid and changes nothing.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub secret_name: String,
    /// Whether clients show a certificate of an authority in ca.crt. Off: none is asked for. Optional: one that is shown is checked.
    /// Required: without one no client is let in.
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

/// The certificate that the servers show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsStatus {
    /// Its serial number, in hexadecimal digits.
    pub serial: String,
    /// Until when it is valid.
    pub not_after: Time,
}

/// Name of the Secret that the pods mount: the certificates that servers use, by files whose names have digits of what they hold.
pub fn certificates_secret_name(cluster: &str) -> String {
    format!("{cluster}-certificates")
}

/// File with a certificate and those that lead to its authority.
pub fn certificate_file(digits: &str) -> String {
    format!("{digits}.crt")
}

/// File with its key.
pub fn key_file(digits: &str) -> String {
    format!("{digits}.key")
}

/// File with the authorities that are trusted.
pub fn authorities_file(digits: &str) -> String {
    format!("{digits}.ca")
}
