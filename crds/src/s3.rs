//! Where backups are stored: one type for every resource that names a bucket.

use crate::LocalRef;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A place in S3-compatible storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
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
    /// Secret in the same namespace with the keys accessKeyId, secretAccessKey and, if need be, sessionToken.
    /// Absent: the identity of the controller's own pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<LocalRef>,
    /// Whether requests carry the CRC checksums that some stores refuse. Auto: only towards AWS.
    #[serde(default)]
    pub checksums: Checksums,
}

/// When S3 requests carry a CRC checksum of their own (a SHA-256 of every block is always kept in the manifest).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Checksums {
    /// Only without an endpoint, that is, towards AWS.
    #[default]
    Auto,
    /// On every request that can carry one.
    Always,
    /// Only where the protocol demands one.
    Never,
}
