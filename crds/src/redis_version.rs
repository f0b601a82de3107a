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
    printcolumn(name = "End of life", type_ = "string", json_path = ".spec.endOfLife"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Upgrades from",
        type_ = "string",
        json_path = ".spec.upgradesFrom",
        priority = 1
    ),
    printcolumn(
        name = "Deprecated",
        type_ = "string",
        json_path = ".spec.deprecated",
        priority = 1
    )
)]
#[x_kube(
    validation = Rule::new("!has(self.upgradesFrom) || !self.version.matches('^[0-9]{1,5}[.][0-9]{1,5}[.][0-9]{1,5}$') || self.upgradesFrom.all(from, !from.matches('^[0-9]{1,5}[.][0-9]{1,5}[.]([0-9]{1,5}|x)$') || int(from.split('.')[0]) < int(self.version.split('.')[0]) || (int(from.split('.')[0]) == int(self.version.split('.')[0]) && int(from.split('.')[1]) <= int(self.version.split('.')[1])))").message("upgradesFrom: a series newer than version would be a downgrade, which is always refused: remove it")
)]
#[serde(rename_all = "camelCase")]
pub struct RedisVersionSpec {
    /// The version that the server reports of itself, for example 7.0.15.
    #[schemars(
        length(min = 1, max = 32),
        regex(pattern = r"^[0-9]{1,5}\.[0-9]{1,5}\.[0-9]{1,5}$")
    )]
    pub version: String,
    /// The server that the image holds: Redis or Valkey.
    pub distribution: Distribution,
    /// Image with the server, its command line client and a shell.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^\S+$"))]
    pub image: String,
    /// The versions whose clusters may change to this entry: exact ones (7.0.15), or all of a series (7.0.x). Absent: every older one of the
    /// distribution. The patch releases of one series replace each other in any case, and an older series never replaces a newer one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(
            length(min = 1, max = 32),
            regex(pattern = r"^[0-9]{1,5}\.[0-9]{1,5}\.([0-9]{1,5}|x)$")
        ),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub upgrades_from: Vec<String>,
    /// Why clusters should not run this version any more, and what to run instead: a sentence. Clusters that name the entry keep running, with
    /// a warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 120), regex(pattern = r"^[^\r\n]+$"))]
    pub deprecated: Option<String>,
    /// The day from which the distribution gives no fixes any more, for example 2027-05-31. Clusters that name the entry keep running, with a
    /// warning from that day on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(equal = 10), regex(pattern = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), extend("format" = "date"))]
    pub end_of_life: Option<String>,
}

/// Servers that a cluster may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Distribution {
    /// From redis.io.
    Redis,
    /// From valkey.io.
    Valkey,
}
