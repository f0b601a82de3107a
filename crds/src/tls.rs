//! Encryption of what clients, servers and controllers send each other.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Key of the Secret that the pods mount: name of the certificate file, without its ending, that servers and controllers present.
pub const KEY_PRESENTED: &str = "presented";
/// Key of the same Secret: an [`Encryption`], by its name.
pub const KEY_ENCRYPTION: &str = "encryption";

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
    /// Whether clients may also connect without encryption, at port 6379: until all of them have been moved to port 6380, or, before tls is
    /// removed, back. Servers and controllers encrypt what they send each other in any case. When it is withdrawn, connections without
    /// encryption are closed.
    #[serde(default)]
    pub allow_plaintext: bool,
}

/// How far the servers of a cluster encrypt. One step at a time, in this order or back, so that no server is ever without the others.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum Encryption {
    /// Not at all: their pods have no certificates, or lose them.
    #[default]
    Off,
    /// Pods get certificates, and servers listen on both ports. Among each other they do not encrypt yet, or no longer.
    Prepared,
    /// Servers and controllers encrypt; clients do as they like.
    Both,
    /// Clients have to encrypt as well.
    Only,
}

impl Encryption {
    const ALL: [Self; 4] = [Self::Off, Self::Prepared, Self::Both, Self::Only];

    /// As the Secret has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "Off",
            Self::Prepared => "Prepared",
            Self::Both => "Both",
            Self::Only => "Only",
        }
    }

    /// Read from the Secret. None: no such name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// Whether pods start with certificates.
    pub fn has_certificates(self) -> bool {
        self != Self::Off
    }

    /// Whether servers and controllers encrypt what they send each other.
    pub fn is_used(self) -> bool {
        match self {
            Self::Off | Self::Prepared => false,
            Self::Both | Self::Only => true,
        }
    }

    /// Whether clients may connect without it.
    pub fn lets_plaintext_in(self) -> bool {
        self != Self::Only
    }
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
    /// How far they encrypt.
    #[serde(default)]
    pub encryption: Encryption,
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
