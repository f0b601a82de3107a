//! From the wire spec to a value that cannot be wrong. Afterwards no module reads the spec.

use crate::{
    access::Access,
    checkpoint::formed_before,
    redis::member::{Recovery, TakeoverRequest},
    settings::{template::NamedTemplates, values::default_maxmemory},
    support::VersionSupport,
    upgrade::{self, UpgradeRefusal, family},
};
use common::{
    cluster::{info::Family, version::ServerVersion},
    kubernetes::hash::canonical_hash,
};
use crds::{
    ANNOTATION_ADOPT_VOLUMES, ANNOTATION_TAKEOVER, CLIENT_PORT, DeletionPolicy, Distribution,
    Encryption, Exporter, MigrationPolicy, PlacementPolicy, PodTemplate, RESERVED_SETTINGS,
    RedisCluster, RedisVersion, TLS_PORT, TlsPolicy, UpdatePolicy,
};
use k8s_openapi::{
    api::{core::v1::ResourceRequirements, networking::v1::NetworkPolicyPeer},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::OwnerReference},
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use std::{borrow::Cow, collections::BTreeMap, time::Duration};

/// Node timeout where the spec gives none: half the server's own default of 15 s would still be long for a failover.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);

/// What repairing the nodes needs. Most of it cannot be changed later, so it holds even where the rest of the spec is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Shards.
    pub shards: i32,
    /// Replicas of each primary.
    pub replicas: i32,
    /// Whether every node has a volume.
    pub persistent: bool,
    /// The node timeout that results from the settings; the usual one where they are wrong.
    pub node_timeout: Duration,
    /// Hands off.
    pub paused: bool,
    /// Whether the cluster is to have no pods. Never while it is paused, nor without volumes.
    pub hibernate: bool,
    /// What may be done about losses. It can be changed, and where it is wrong the defaults count.
    pub recovery: Recovery,
    /// How far the servers encrypt.
    pub encryption: Encryption,
    /// How clients outside the network of the pods reach the servers.
    pub access: Access,
}

impl Shape {
    /// Where the nodes listen for the controllers.
    pub fn port(&self) -> u16 {
        if self.encryption.is_used() {
            TLS_PORT
        } else {
            CLIENT_PORT
        }
    }
}

/// A cluster as it is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedCluster {
    /// What cannot be changed.
    pub shape: Shape,
    /// The reference by which children belong to it.
    pub owner: OwnerReference,
    /// The image of every pod, and what it should contain.
    pub server: Server,
    /// The volume of every node; none: memory only.
    pub storage: Option<Volume>,
    /// Requests and limits of every server.
    pub resources: Option<ResourceRequirements>,
    /// Settings by name.
    pub config: BTreeMap<String, String>,
    /// What is added to every pod.
    pub pod_template: PodTemplate,
    /// Where the pods run.
    pub placement: PlacementPolicy,
    /// `maxmemory` in bytes, where the user gives none and there is a memory limit.
    pub default_maxmemory: Option<u64>,
    /// How a change reaches the pods.
    pub update: UpdatePolicy,
    /// How slots move.
    pub migration: MigrationPolicy,
    /// Whether every slot has been served once: before, no node holds anything.
    pub formed: bool,
    /// Pods that may be evicted at the same time; none: no budget at all.
    pub max_unavailable: Option<i32>,
    /// From where clients may connect, besides the cluster's pods and the controllers; none: from everywhere.
    pub clients: Option<Vec<NetworkPolicyPeer>>,
    /// What measures every server, besides the controllers.
    pub exporter: Option<Exporter>,
    /// Hash of everything that a running server only takes in by a restart, without the settings: of those, the servers say so.
    pub restart_hash: String,
    /// The same with the settings, as earlier versions of the controller wrote it.
    pub former_hash: String,
    /// Whether the pods start with users.
    pub mounts_users: bool,
    /// What the StatefulSets name and keep, by shard, while a new configuration has not been tried or is refused. Empty: they get what
    /// is wanted.
    pub held: NamedTemplates,
}

impl ValidatedCluster {
    /// The cluster as the pods of a new shard are to be made of it, and the ConfigMap that they keep, if those of the others keep one: they have
    /// the server of the first shard, in pods as they are wanted. What a StatefulSet keeps it keeps whole.
    pub fn of_new_shards(&self) -> (Cow<'_, Self>, Option<&str>) {
        let Some(held) = self.held.values().next() else {
            return (Cow::Borrowed(self), None);
        };
        let mut kept = self.clone();
        kept.server.image.clone_from(&held.image);
        kept.resources.clone_from(&held.resources);
        let hash = kept.hash(&BTreeMap::new());
        kept.restart_hash = hash.unwrap_or_else(|_| held.restart_hash.clone());
        (Cow::Owned(kept), Some(&held.configuration))
    }

    /// The cluster with pods that start with users and certificates, or without.
    pub fn mounting(
        mut self,
        mounts_users: bool,
        encryption: Encryption,
    ) -> Result<Self, InvalidSpec> {
        self.mounts_users = mounts_users;
        self.shape.encryption = encryption;
        self.restart_hash = self.hash(&BTreeMap::new())?;
        self.former_hash = self.hash(&self.config)?;
        Ok(self)
    }

    /// The hash of what a running server only takes in by a restart, with these settings.
    fn hash(&self, config: &BTreeMap<String, String>) -> Result<String, InvalidSpec> {
        let (more, placement) = (&self.pod_template, &self.placement);
        let inputs = RestartInputs {
            epoch: 2,
            image: &self.server.image,
            resources: &self.resources,
            config,
            pod_template: Some(more).filter(|more| **more != PodTemplate::default()),
            placement: Some(placement).filter(|one| **one != PlacementPolicy::default()),
            users: self.mounts_users.then_some(true),
            certificates: self.shape.encryption.has_certificates().then_some(true),
            exporter: self.exporter.as_ref(),
        };
        canonical_hash(&inputs).map_err(|error| InvalidSpec::Resources(error.to_string()))
    }

    /// The restart hash of the template of a shard's pods.
    pub fn restart_hash_of(&self, shard: usize) -> &str {
        let shard = i32::try_from(shard).unwrap_or(i32::MAX);
        let held = self.held.get(&shard).or_else(|| self.held.values().next());
        held.map_or(&self.restart_hash, |held| &held.restart_hash)
    }
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
    /// `namespace/name` of another RedisCluster whose volumes are taken over.
    pub adopts: Option<String>,
}

/// The server to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Image.
    pub image: String,
    /// The RedisVersion it came from.
    pub entry: Option<String>,
    /// What the catalog says the image contains: family and version.
    pub promised: Option<(Distribution, String)>,
    /// Why it is not the server that the spec names.
    pub refused: Option<UpgradeRefusal>,
    /// Whether it should still be run.
    pub support: VersionSupport,
}

/// Inputs of the restart hash, and nothing else: an upgrade of the controller must never restart a database.
#[derive(Serialize)]
struct RestartInputs<'a> {
    /// Raised when the pods' start script changes so that running pods have to be replaced.
    epoch: u32,
    image: &'a str,
    resources: &'a Option<ResourceRequirements>,
    config: &'a BTreeMap<String, String>,
    /// None where nothing is added: a cluster without the field, or from before it, keeps its hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_template: Option<&'a PodTemplate>,
    /// None where it is the usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    placement: Option<&'a PlacementPolicy>,
    /// None where the pods start without users.
    #[serde(skip_serializing_if = "Option::is_none")]
    users: Option<bool>,
    /// None where the pods start without certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificates: Option<bool>,
    /// None where the pods have no such container.
    #[serde(skip_serializing_if = "Option::is_none")]
    exporter: Option<&'a Exporter>,
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
        /// Name of the field below `spec`.
        field: &'static str,
        /// What the spec says.
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
    /// Hibernation would lose everything.
    #[error(
        "hibernate needs storage: a cluster in memory would lose all its keys; back it up and delete it instead"
    )]
    NothingToKeep,
    /// Servers before 7.0 have neither.
    #[error(
        "{field} needs servers of Redis 7.0 or newer, or Valkey; RedisVersion {entry} is {version}: name another one in spec.version"
    )]
    ServerTooOld {
        /// Name of the field below `spec`.
        field: &'static str,
        /// The entry that the spec names.
        entry: String,
        /// The version that it promises.
        version: String,
    },
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
            | Self::NothingToKeep
            | Self::ServerTooOld { .. }
            | Self::Resources(_) => "InvalidSpec",
        }
    }
}

/// Takes out what repairing the nodes needs.
pub fn shape(cluster: &RedisCluster) -> Result<Shape, InvalidSpec> {
    let spec = &cluster.spec;
    bounded("shards", spec.shards, 3..=500, "3 to 500")?;
    bounded("replicasPerShard", spec.replicas_per_shard, 0..=5, "0 to 5")?;
    Ok(Shape {
        name: cluster.name_any(),
        namespace: cluster
            .namespace()
            .ok_or(InvalidSpec::Incomplete("namespace"))?,
        shards: spec.shards,
        replicas: spec.replicas_per_shard,
        persistent: spec.storage.is_some(),
        node_timeout: node_timeout(&spec.config).unwrap_or(NODE_TIMEOUT),
        paused: spec.paused,
        hibernate: spec.hibernate && !spec.paused && spec.storage.is_some(),
        recovery: recovery(cluster),
        encryption: wanted_encryption(cluster.spec.tls.as_ref()),
        access: Access::of(cluster),
    })
}

/// How far the servers of a cluster are to encrypt in the end.
pub fn wanted_encryption(policy: Option<&TlsPolicy>) -> Encryption {
    match policy {
        None => Encryption::Off,
        Some(policy) if policy.allow_plaintext => Encryption::Both,
        Some(_) => Encryption::Only,
    }
}

/// What may be done about losses. An annotation that has been acted upon asks for nothing.
fn recovery(cluster: &RedisCluster) -> Recovery {
    let spec = &cluster.spec.recovery;
    let usual = Recovery::default();
    let asked = takeover_annotation(cluster);
    let done = cluster
        .status
        .as_ref()
        .and_then(|status| status.takeover_done.as_deref());
    let requested = asked.filter(|asked| Some(*asked) != done);
    Recovery {
        takeover: spec.takeover,
        after: seconds(&spec.after).unwrap_or(usual.after),
        requested: requested.map_or(TakeoverRequest::None, TakeoverRequest::parse),
        lost_slots: spec.lost_slots,
    }
}

/// The takeovers that a user asks for, whether they were done or not.
pub fn takeover_annotation(cluster: &RedisCluster) -> Option<&str> {
    cluster
        .annotations()
        .get(ANNOTATION_TAKEOVER)
        .map(String::as_str)
}

/// `30s`, `5m` or `1h`.
pub fn seconds(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(factor).map(Duration::from_secs)
}

/// Checks the spec and resolves its server. `entry` is the RedisVersion the spec names, if there is one.
pub fn validate(
    cluster: &RedisCluster,
    entry: Option<&RedisVersion>,
    now: Timestamp,
) -> Result<ValidatedCluster, InvalidSpec> {
    let spec = &cluster.spec;
    let shape = shape(cluster)?;
    let owner = cluster
        .controller_owner_ref(&())
        .ok_or(InvalidSpec::Incomplete("uid"))?;
    settings(&spec.config)?;
    node_timeout(&spec.config)?;
    if spec.hibernate && spec.storage.is_none() {
        return Err(InvalidSpec::NothingToKeep);
    }
    let mut server = server(cluster, entry)?;
    if let Some(entry) = entry.filter(|entry| server.entry == entry.metadata.name) {
        server.support = VersionSupport::of(&entry.spec, now);
    }
    new_enough(&shape, &server)?;
    let pod_template = spec.pod_template.clone().unwrap_or_default();
    let has_maxmemory = spec.config.contains_key("maxmemory");
    let cluster = ValidatedCluster {
        shape,
        owner,
        server,
        storage: spec.storage.as_ref().map(|storage| Volume {
            size: storage.size.clone(),
            class: storage.storage_class_name.clone(),
            when_deleted: storage.when_deleted,
            adopts: adopted(cluster),
        }),
        resources: spec.resources.clone(),
        config: spec.config.clone(),
        pod_template,
        placement: spec.placement.clone(),
        default_maxmemory: default_maxmemory(spec.resources.as_ref()).filter(|_| !has_maxmemory),
        update: spec.update.clone(),
        migration: spec.migration.clone(),
        formed: formed_before(cluster),
        max_unavailable: spec
            .pod_disruption_budget
            .enabled
            .then_some(spec.pod_disruption_budget.max_unavailable),
        clients: spec.network_policy.clone().map(|access| access.clients),
        exporter: spec.monitoring.clone().and_then(|one| one.exporter),
        restart_hash: String::new(),
        former_hash: String::new(),
        mounts_users: false,
        held: NamedTemplates::new(),
    };
    let encryption = cluster.shape.encryption;
    cluster.mounting(false, encryption)
}

/// Of an image without an entry nothing is known: its servers are asked when they run.
fn new_enough(shape: &Shape, server: &Server) -> Result<(), InvalidSpec> {
    let Some((distribution, version)) = &server.promised else {
        return Ok(());
    };
    let promised = ServerVersion::parse(family(*distribution), version);
    let is_old = |one: &ServerVersion| one.family == Family::Redis && one.major < 7;
    if !promised.as_ref().is_some_and(is_old) {
        return Ok(());
    }
    let field = if shape.encryption.is_used() {
        "tls"
    } else if shape.access.policy.is_some() {
        "access.type LoadBalancer"
    } else {
        return Ok(());
    };
    Err(InvalidSpec::ServerTooOld {
        field,
        entry: server.entry.clone().unwrap_or_default(),
        version: version.clone(),
    })
}

/// An annotation without a value is none: the API server keeps no empty value in a template.
fn adopted(cluster: &RedisCluster) -> Option<String> {
    let value = cluster.annotations().get(ANNOTATION_ADOPT_VOLUMES);
    value.filter(|value| !value.is_empty()).cloned()
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

/// The image, which is resolved once for each value of `spec.version`: the catalog may be edited, the cluster does not follow. A version
/// that the servers which run cannot change to is not resolved: what was before stays.
fn server(cluster: &RedisCluster, entry: Option<&RedisVersion>) -> Result<Server, InvalidSpec> {
    let Some(name) = &cluster.spec.version else {
        let image = cluster.spec.image.clone().ok_or(InvalidSpec::NoServer)?;
        return Ok(Server {
            image,
            entry: None,
            promised: None,
            refused: None,
            support: VersionSupport::Unlisted,
        });
    };
    let before = cluster.status.as_ref().map(|status| &status.version);
    let resolved = before
        .filter(|version| version.name.as_ref() == Some(name))
        .and_then(|version| version.image.clone());
    if let Some(kept) = refused(cluster, (name, entry)).filter(|_| resolved.is_none()) {
        return Ok(kept);
    }
    let promised = entry.map(|entry| (entry.spec.distribution, entry.spec.version.clone()));
    let image = resolved
        .or_else(|| entry.map(|entry| entry.spec.image.clone()))
        .ok_or_else(|| InvalidSpec::UnknownVersion(name.clone()))?;
    Ok(Server {
        image,
        entry: Some(name.clone()),
        promised,
        refused: None,
        support: VersionSupport::Unlisted,
    })
}

/// What the pods keep where the servers that run cannot change to the entry. A cluster that has not been formed holds nothing yet.
fn refused(cluster: &RedisCluster, (name, entry): (&str, Option<&RedisVersion>)) -> Option<Server> {
    let status = cluster.status.as_ref().filter(|_| formed_before(cluster))?;
    let image = status.version.image.clone()?;
    let kept = status.version.name.clone();
    let words = match &kept {
        Some(name) => format!("spec.version back to {name}"),
        None => format!("spec.image back to {image}"),
    };
    let running = upgrade::running(status);
    let refusal = upgrade::refusal(&running, (name, &entry?.spec), &words)?;
    Some(Server {
        image,
        entry: kept,
        promised: None,
        refused: Some(refusal),
        support: VersionSupport::Unlisted,
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
        if RESERVED_SETTINGS.contains(&name.as_str()) {
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
        return Ok(NODE_TIMEOUT);
    };
    text.parse()
        .ok()
        .filter(|timeout| *timeout >= 500)
        .map(Duration::from_millis)
        .ok_or_else(|| InvalidSpec::NodeTimeout(text.clone()))
}

#[cfg(test)]
pub(crate) mod tests;
