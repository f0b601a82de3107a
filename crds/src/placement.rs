//! Where the pods of a RedisCluster run: shards apart, zones apart.

use crate::{LABEL_HOSTNAME, LABEL_ZONE, RedisClusterSpec};
use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the pods run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlacementPolicy {
    /// Whether the primary and the replicas of one shard run apart. Preferred: where there is room for it. Required: a pod that finds
    /// no such place is not started. Disabled: the scheduler decides, and podTemplate.affinity.
    #[serde(default)]
    pub shard_anti_affinity: ShardAntiAffinity,
    /// Label of Kubernetes nodes by which shardAntiAffinity calls two of them different.
    #[serde(default = "hostname")]
    #[schemars(
        length(min = 1, max = 317),
        regex(
            pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
        )
    )]
    pub topology_key: String,
    /// Zones, by the label topology.kubernetes.io/zone of Kubernetes nodes.
    #[serde(default)]
    pub zones: ZonePlacement,
}

impl Default for PlacementPolicy {
    fn default() -> Self {
        Self {
            shard_anti_affinity: ShardAntiAffinity::default(),
            topology_key: hostname(),
            zones: ZonePlacement::default(),
        }
    }
}

fn hostname() -> String {
    LABEL_HOSTNAME.to_owned()
}

/// Whether the primary and the replicas of one shard run apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ShardAntiAffinity {
    /// A pod that finds no such place is not started.
    Required,
    /// Where there is room for it.
    #[default]
    Preferred,
    /// The scheduler decides.
    Disabled,
}

/// How zones are used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ZonePlacement {
    /// Whether the pods of each shard are spread over the zones: without exception if shardAntiAffinity is Required, otherwise where
    /// there is room for it. Primaries are handed over so that no zone has the majority of them, whatever this says.
    #[serde(default)]
    pub spread: bool,
}

impl RedisClusterSpec {
    /// Two constraints for the zones would have to agree.
    pub(crate) fn one_zone_constraint() -> Rule {
        Rule::new(format!(
            "!has(self.placement) || !has(self.placement.zones) || !self.placement.zones.spread || !has(self.podTemplate) || \
             !has(self.podTemplate.topologySpreadConstraints) || \
             !self.podTemplate.topologySpreadConstraints.exists(one, one.topologyKey == '{LABEL_ZONE}')"
        ))
        .message(format!(
            "give either placement.zones.spread or a topologySpreadConstraint by {LABEL_ZONE} in podTemplate, not both"
        ).as_str())
    }
}
