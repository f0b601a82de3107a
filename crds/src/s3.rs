//! Where backups are stored: one type for every resource that names a bucket.

use crate::LocalRef;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A bucket in S3-compatible storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.caSecretRef) || !has(self.endpoint) || self.endpoint.startsWith('https://')").message("caSecretRef needs an endpoint that starts with https://"))]
pub struct S3Location {
    /// Name of the bucket. It has to exist.
    #[schemars(length(min = 3, max = 63))]
    pub bucket: String,
    /// Path inside the bucket under which everything is stored, without a leading slash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.endsWith('/')").message("prefix is written without a slash at its start and end, for example \"team-a/redis\""))]
    pub prefix: Option<String>,
    /// Region of the bucket. Defaults to us-east-1, which most stores other than AWS accept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub region: Option<String>,
    /// Address of the store, for example https://s3.example.com:9000. Absent: AWS itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')").message("endpoint starts with http:// or https://"))]
    pub endpoint: Option<String>,
    /// Whether the bucket is named in the path instead of the host. Defaults to true with an endpoint, false without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_path_style: Option<bool>,
    /// Secret in the same namespace with the keys accessKeyId, secretAccessKey and, if required, sessionToken.
    /// Absent: the cloud identity of the controller's own pod. That is refused with an endpoint, and in namespaces that the
    /// operator has not allowed (--ambient-credentials-namespaces).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<LocalRef>,
    /// Secret in the same namespace with the certificate authority that signed the store's certificate, in PEM form.
    /// Absent: the public authorities that the controller's image knows. With it, only certificates of this authority are
    /// trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// Whether requests carry the CRC checksums that some stores refuse. Auto: only requests to AWS.
    #[serde(default)]
    pub checksums: Checksums,
}

/// A key of a Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in its data.
    #[serde(default = "ca_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn ca_key() -> String {
    "ca.crt".to_owned()
}

/// When S3 requests carry a CRC checksum of their own (a SHA-256 of every block is always kept in the manifest).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Checksums {
    /// Only without an endpoint, that is, to AWS.
    #[default]
    Auto,
    /// On every request that can carry one.
    Always,
    /// Only where the protocol requires one.
    Never,
}
