//! From the wire spec to a value that cannot be wrong. After this nobody reads the spec again.

use crate::status::formed_before;
use common::kubernetes::hash::canonical_hash;
use crds::{DeletionPolicy, Distribution, RedisCluster, RedisVersion};
use k8s_openapi::{
    api::core::v1::ResourceRequirements,
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::OwnerReference},
    jiff::{SignedDuration, Timestamp},
};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// Node timeout where the spec gives none: half the server's own default of 15 s would still be long for a failover.
const NODE_TIMEOUT_MS: u64 = 5000;
/// After this time the pods of a new cluster count as scheduled, or as unschedulable.
const SETTLING: Duration = Duration::from_mins(1);

/// Settings that the controller makes itself. The schema refuses them, too; this also catches them in another case.
const RESERVED: [&str; 29] = [
    "aclfile",
    "appendonly",
    "bind",
    "cluster-announce-bus-port",
    "cluster-announce-ip",
    "cluster-announce-port",
    "cluster-announce-tls-port",
    "cluster-config-file",
    "cluster-enabled",
    "daemonize",
    "dbfilename",
    "dir",
    "include",
    "logfile",
    "masterauth",
    "masteruser",
    "pidfile",
    "port",
    "protected-mode",
    "rename-command",
    "replicaof",
    "requirepass",
    "slaveof",
    "supervised",
    "tls-cluster",
    "tls-port",
    "tls-replication",
    "unixsocket",
    "user",
];

/// A cluster as it is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedCluster {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// The reference by which children belong to it.
    pub owner: OwnerReference,
    /// Shards.
    pub shards: i32,
    /// Replicas of each primary.
    pub replicas: i32,
    /// The server.
    pub server: Server,
    /// The volume of every node; none: memory only.
    pub storage: Option<Volume>,
    /// Requests and limits of every server.
    pub resources: Option<ResourceRequirements>,
    /// Settings by name.
    pub config: BTreeMap<String, String>,
    /// The node timeout that results from the settings.
    pub node_timeout: Duration,
    /// Pods that may be evicted at the same time; none: no budget at all.
    pub max_unavailable: Option<i32>,
    /// Hands off.
    pub paused: bool,
    /// Hash of everything that a running server only takes in by a restart.
    pub restart_hash: String,
}

/// The volume of every node.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// Size.
    pub size: Quantity,
    /// Storage class.
    pub class: Option<String>,
    /// Whether it goes with the cluster.
    pub when_deleted: DeletionPolicy,
    /// Whether the volumes may be tied to their StatefulSet already. Tying them while pods are being scheduled makes the scheduler's
    /// own write fail, and it waits 10 s before it tries again.
    pub settled: bool,
}

/// The server to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Image.
    pub image: String,
    /// The RedisVersion it came from.
    pub entry: Option<String>,
    /// What the catalog says the image holds: family and version.
    pub promised: Option<(Distribution, String)>,
}

/// Inputs of the restart hash, and nothing else: an upgrade of the controller must never restart a database.
#[derive(Serialize)]
struct RestartInputs<'a> {
    image: &'a str,
    resources: &'a Option<ResourceRequirements>,
    config: &'a BTreeMap<String, String>,
}

/// What the user has to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    /// An object without name, namespace or uid.
    #[error("the object has no {0}")]
    Incomplete(&'static str),
    /// The schema has been bypassed.
    #[error("{field} is {value}: it must be {bounds}")]
    OutOfBounds {
        /// The field.
        field: &'static str,
        /// Its value.
        value: i32,
        /// What is allowed.
        bounds: &'static str,
    },
    /// Neither version nor image.
    #[error("give exactly one of version (the name of a RedisVersion) and image")]
    NoServer,
    /// The catalog has no such entry.
    #[error("there is no RedisVersion {0}: create it, or correct spec.version")]
    UnknownVersion(String),
    /// A name of a setting that cannot be one.
    #[error(
        "config: \"{0}\" is not the name of a setting (lower case letters, digits, dashes and dots)"
    )]
    SettingName(String),
    /// A setting that the controller makes itself.
    #[error("config: {0} is set by the controller itself: remove it")]
    SettingReserved(String),
    /// A value that would begin another line.
    #[error("config: the value of {0} has more than one line")]
    SettingValue(String),
    /// The node timeout is not a number of milliseconds.
    #[error("config: cluster-node-timeout is \"{0}\": give milliseconds, at least 500")]
    NodeTimeout(String),
    /// It does not serialise.
    #[error("the resources cannot be written as JSON: {0}")]
    Resources(String),
}

impl InvalidSpec {
    /// CamelCase, for the condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownVersion(_) => "VersionNotFound",
            Self::Incomplete(_)
            | Self::OutOfBounds { .. }
            | Self::NoServer
            | Self::SettingName(_)
            | Self::SettingReserved(_)
            | Self::SettingValue(_)
            | Self::NodeTimeout(_)
            | Self::Resources(_) => "InvalidSpec",
        }
    }
}

/// Checks the spec and resolves its server. `entry` is the RedisVersion the spec names, if there is one.
pub fn validate(
    cluster: &RedisCluster,
    entry: Option<&RedisVersion>,
    now: Timestamp,
) -> Result<ValidatedCluster, InvalidSpec> {
    let spec = &cluster.spec;
    let namespace = cluster
        .namespace()
        .ok_or(InvalidSpec::Incomplete("namespace"))?;
    let owner = cluster
        .controller_owner_ref(&())
        .ok_or(InvalidSpec::Incomplete("uid"))?;
    bounded("shards", spec.shards, 3..=500, "3 to 500")?;
    bounded("replicasPerShard", spec.replicas_per_shard, 0..=5, "0 to 5")?;
    settings(&spec.config)?;
    let server = server(cluster, entry)?;
    let restart_hash = canonical_hash(&RestartInputs {
        image: &server.image,
        resources: &spec.resources,
        config: &spec.config,
    })
    .map_err(|error| InvalidSpec::Resources(error.to_string()))?;
    Ok(ValidatedCluster {
        name: cluster.name_any(),
        namespace,
        owner,
        shards: spec.shards,
        replicas: spec.replicas_per_shard,
        server,
        storage: spec.storage.as_ref().map(|storage| Volume {
            size: storage.size.clone(),
            class: storage.storage_class_name.clone(),
            when_deleted: storage.when_deleted,
            settled: formed_before(cluster) || is_older(cluster, now),
        }),
        resources: spec.resources.clone(),
        node_timeout: node_timeout(&spec.config)?,
        config: spec.config.clone(),
        max_unavailable: spec
            .pod_disruption_budget
            .enabled
            .then_some(spec.pod_disruption_budget.max_unavailable),
        paused: spec.paused,
        restart_hash,
    })
}

fn is_older(cluster: &RedisCluster, now: Timestamp) -> bool {
    let created = cluster.metadata.creation_timestamp.as_ref();
    created.is_none_or(|created| {
        now.duration_since(created.0) > SignedDuration::try_from(SETTLING).unwrap_or_default()
    })
}

fn bounded(
    field: &'static str,
    value: i32,
    range: std::ops::RangeInclusive<i32>,
    bounds: &'static str,
) -> Result<(), InvalidSpec> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(InvalidSpec::OutOfBounds {
        field,
        value,
        bounds,
    })
}

/// The image, which is resolved once for each value of `spec.version`: the catalog may be edited, the cluster does not follow.
fn server(cluster: &RedisCluster, entry: Option<&RedisVersion>) -> Result<Server, InvalidSpec> {
    let Some(name) = &cluster.spec.version else {
        let image = cluster.spec.image.clone().ok_or(InvalidSpec::NoServer)?;
        return Ok(Server {
            image,
            entry: None,
            promised: None,
        });
    };
    let promised = entry.map(|entry| (entry.spec.distribution, entry.spec.version.clone()));
    let resolved = cluster
        .status
        .as_ref()
        .map(|status| &status.version)
        .filter(|version| version.name.as_ref() == Some(name))
        .and_then(|version| version.image.clone());
    let image = resolved
        .or_else(|| entry.map(|entry| entry.spec.image.clone()))
        .ok_or_else(|| InvalidSpec::UnknownVersion(name.clone()))?;
    Ok(Server {
        image,
        entry: Some(name.clone()),
        promised,
    })
}

fn settings(config: &BTreeMap<String, String>) -> Result<(), InvalidSpec> {
    for (name, value) in config {
        let plain = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.')
        };
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(InvalidSpec::SettingName(name.clone()));
        }
        if RESERVED.contains(&name.as_str()) {
            return Err(InvalidSpec::SettingReserved(name.clone()));
        }
        if value.contains(['\n', '\r', '\0']) {
            return Err(InvalidSpec::SettingValue(name.clone()));
        }
    }
    Ok(())
}

fn node_timeout(config: &BTreeMap<String, String>) -> Result<Duration, InvalidSpec> {
    let Some(text) = config.get("cluster-node-timeout") else {
        return Ok(Duration::from_millis(NODE_TIMEOUT_MS));
    };
    text.parse()
        .ok()
        .filter(|timeout| *timeout >= 500)
        .map(Duration::from_millis)
        .ok_or_else(|| InvalidSpec::NodeTimeout(text.clone()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crds::{RedisClusterSpec, RedisClusterStatus, RedisVersionSpec, Storage, VersionStatus};

    /// A cluster of 3×1 with volumes.
    pub(crate) fn example() -> RedisCluster {
        let mut cluster = RedisCluster::new(
            "shop",
            RedisClusterSpec {
                image: Some("docker.io/local/redis:7.0.15".into()),
                shards: 3,
                replicas_per_shard: 1,
                storage: Some(Storage {
                    size: Quantity("1Gi".into()),
                    ..Storage::default()
                }),
                config: BTreeMap::from([("maxmemory".into(), "64mb".into())]),
                ..RedisClusterSpec::default()
            },
        );
        cluster.metadata.namespace = Some("team".into());
        cluster.metadata.uid = Some("0b1f3a9e".into());
        cluster.metadata.generation = Some(1);
        cluster
    }

    fn entry(image: &str) -> RedisVersion {
        RedisVersion::new(
            "redis-7.0.15",
            RedisVersionSpec {
                version: "7.0.15".into(),
                distribution: Distribution::Redis,
                image: image.into(),
            },
        )
    }

    #[test]
    fn an_edit_of_the_catalog_changes_nothing() {
        let mut cluster = example();
        cluster.spec.image = None;
        cluster.spec.version = Some("redis-7.0.15".into());
        let error = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap_err();
        assert_eq!(error.reason(), "VersionNotFound");
        let first = validate(&cluster, Some(&entry("a:1")), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(first.server.image, "a:1");
        cluster.status = Some(RedisClusterStatus {
            version: VersionStatus {
                name: Some("redis-7.0.15".into()),
                image: Some("a:1".into()),
                running: None,
            },
            ..RedisClusterStatus::default()
        });
        let second = validate(&cluster, Some(&entry("b:2")), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(second.server.image, "a:1");
        let gone = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(gone.server.image, "a:1");
        cluster.spec.version = Some("redis-8".into());
        let third = validate(&cluster, Some(&entry("b:2")), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(third.server.image, "b:2");
    }

    #[test]
    fn settings_cannot_break_out() {
        let with = |name: &str, value: &str| {
            let mut cluster = example();
            cluster.spec.config = BTreeMap::from([(name.into(), value.into())]);
            validate(&cluster, None, Timestamp::UNIX_EPOCH).map(|cluster| cluster.node_timeout)
        };
        assert!(with("save", "900 1").is_ok());
        assert!(with("Port", "1").is_err());
        assert!(with("port", "1").is_err());
        assert!(with("maxmemory", "1gb\nport 1").is_err());
        assert!(with("cluster-node-timeout", "soon").is_err());
        assert_eq!(
            with("cluster-node-timeout", "2000"),
            Ok(Duration::from_secs(2))
        );
        assert_eq!(with("maxmemory", "1gb"), Ok(Duration::from_secs(5)));
    }

    /// A change of this value is a restart of every database at the next upgrade: decide it, do not let it happen.
    #[test]
    fn the_restart_hash_is_pinned() {
        let cluster = validate(&example(), None, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(cluster.restart_hash, "v1-b5c2e6ddcbe28854400b080b31e7e440");
        let mut other = example();
        other.spec.paused = true;
        other.spec.pod_disruption_budget.enabled = false;
        assert_eq!(
            validate(&other, None, Timestamp::UNIX_EPOCH)
                .unwrap()
                .restart_hash,
            cluster.restart_hash
        );
        other.spec.config.insert("maxmemory".into(), "65mb".into());
        assert_ne!(
            validate(&other, None, Timestamp::UNIX_EPOCH)
                .unwrap()
                .restart_hash,
            cluster.restart_hash
        );
    }
}
