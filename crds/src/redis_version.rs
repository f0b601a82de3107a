//! `RedisVersion`: the catalog of servers that clusters may run. It has no status: no controller acts on an entry by itself.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A server version that clusters name in `spec.version`, and the image that holds it.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "redis.danieldorado.github.io",
    version = "v1alpha1",
    kind = "RedisVersion",
    plural = "redisversions",
    shortname = "rversion",
    category = "redis",
    doc = "A server version that RedisClusters can name in spec.version. Editing an entry never restarts a running cluster.",
    printcolumn(name = "Version", type_ = "string", json_path = ".spec.version"),
    printcolumn(
        name = "Distribution",
        type_ = "string",
        json_path = ".spec.distribution"
    ),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct RedisVersionSpec {
    /// The version that the server reports of itself, for example 7.0.15.
    #[schemars(
        length(min = 1, max = 32),
        regex(pattern = r"^[0-9]+\.[0-9]+\.[0-9]+$")
    )]
    pub version: String,
    /// The server that the image holds: Redis or Valkey.
    pub distribution: Distribution,
    /// Image with the server, its command line client and a shell.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^\S+$"))]
    pub image: String,
}

/// Servers that a cluster may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Distribution {
    /// From redis.io.
    Redis,
    /// From valkey.io.
    Valkey,
}
