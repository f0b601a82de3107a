//! How the servers of a cluster are measured.

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::{KubeSchema, core::Rule};
use serde::{Deserialize, Serialize};

/// How the servers are measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MonitoringPolicy {
    /// Given: each pod has a container exporter beside its server, with /metrics on port 9121 (metrics). A change reaches the pods as
    /// update says. A pod whose exporter does not run is not ready. With networkPolicy, only its clients reach the port: add Prometheus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exporter: Option<Exporter>,
}

/// The container that measures the server of its pod. Every field is part of the restart hash: one that is added here is skipped while it
/// is not given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Exporter {
    /// Image of `redis_exporter`, 1.50 or newer, whose entry point is the program: `docker.io/oliver006/redis_exporter:v1.74.0`. An older
    /// one does not read a changed password in NAME-user-exporter before its next start. It runs as the user of the server.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^\S+$"))]
    pub image: String,
    /// Requests and limits of the exporter. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// More arguments of the exporter, at most 32, each of at most 256 characters, for example --export-client-list. Its user may run the
    /// commands that a scrape sends without them, and reads no keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 256)))]
    #[x_kube(validation = connects_as_it_is_set())]
    pub extra_args: Vec<String>,
}

/// Where it connects and how it logs in follows from the rest of the spec, and an argument is no place for a password.
fn connects_as_it_is_set() -> Rule {
    Rule::new("!self.exists(arg, arg.matches('^--?(redis[.](addr|user|password|password-file)|web[.]listen-address)(=|$)'))").message(
        "monitoring.exporter.extraArgs: --redis.addr, --redis.user, --redis.password, --redis.password-file and --web.listen-address are set by the controller: remove them",
    )
}
