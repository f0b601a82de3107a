use super::*;
use crate::build::redis_conf;
use common::kubernetes::conditions::{ConditionUpdate, merge};
use crds::{
    NodeStatus, RedisClusterSpec, RedisClusterStatus, RedisVersionSpec, ShardStatus, Storage,
    VersionStatus,
};

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
            upgrades_from: Vec::new(),
            deprecated: None,
            end_of_life: None,
        },
    )
}

/// A formed cluster whose primaries run this, of the entry `redis-7` with the image `a:1`.
fn formed(server: &str) -> RedisCluster {
    let mut cluster = example();
    cluster.spec.image = None;
    cluster.spec.version = Some("redis-7".into());
    let node = NodeStatus {
        server: Some(server.into()),
        ..NodeStatus::default()
    };
    let formed = ConditionUpdate::yes("Formed", "Formed", "");
    cluster.status = Some(RedisClusterStatus {
        version: VersionStatus {
            name: Some("redis-7".into()),
            image: Some("a:1".into()),
            running: Some(server.into()),
        },
        shard_statuses: vec![ShardStatus {
            primary: Some(node),
            ..ShardStatus::default()
        }],
        conditions: merge(&[], &[formed], Some(1), Timestamp::UNIX_EPOCH),
        ..RedisClusterStatus::default()
    });
    cluster
}

#[test]
fn a_refused_version_changes_neither_image_nor_hash() {
    let cluster = formed("Redis 8.0.2");
    let resolve = |cluster: &RedisCluster| {
        validate(cluster, Some(&entry("b:2")), Timestamp::UNIX_EPOCH).unwrap()
    };
    let before = resolve(&cluster);
    assert_eq!(before.server.refused, None);
    let mut changed = cluster.clone();
    changed.spec.version = Some("redis-7.0.15".into());
    let refused = resolve(&changed);
    let refusal = refused.server.refused.as_ref().unwrap();
    assert_eq!(refusal.reason(), "DowngradeRefused");
    let words = refusal.to_string();
    assert!(words.ends_with("spec.version back to redis-7"), "{words}");
    assert_eq!(refused.server.image, "a:1");
    assert_eq!(refused.server.entry.as_deref(), Some("redis-7"));
    assert_eq!(refused.restart_hash, before.restart_hash);
    // Other changes of the spec reach the pods all the same.
    changed.spec.config.insert("maxmemory".into(), "1gb".into());
    assert_ne!(resolve(&changed).config, before.config);
    // What has not been formed is free, and so is a patch release.
    changed.status.as_mut().unwrap().conditions.clear();
    assert_eq!(resolve(&changed).server.image, "b:2");
    let mut patch = formed("Redis 7.0.16");
    patch.spec.version = Some("redis-7.0.15".into());
    assert_eq!(resolve(&patch).server.image, "b:2");
}

/// The names of both are in the cure, and an image that the spec gave is one.
#[test]
fn a_cluster_of_an_image_is_refused_as_well() {
    let mut cluster = formed("Redis 8.0.2");
    cluster.status.as_mut().unwrap().version.name = None;
    cluster.spec.version = Some("redis-7.0.15".into());
    let kept = validate(&cluster, Some(&entry("b:2")), Timestamp::UNIX_EPOCH).unwrap();
    let words = kept.server.refused.unwrap().to_string();
    assert!(words.ends_with("spec.image back to a:1"), "{words}");
    assert_eq!(
        (kept.server.image.as_str(), kept.server.entry),
        ("a:1", None)
    );
}

#[test]
fn the_catalog_says_how_long_a_version_is_supported() {
    let mut deprecated = entry("b:2");
    deprecated.metadata.name = Some("redis-7".into());
    deprecated.spec.deprecated = Some("it is old".into());
    let support = |cluster: &RedisCluster| {
        let cluster = validate(cluster, Some(&deprecated), Timestamp::UNIX_EPOCH).unwrap();
        cluster.server.support
    };
    let words = VersionSupport::Deprecated("it is old".into());
    assert_eq!(support(&formed("Redis 7.0.15")), words);
    assert_eq!(support(&example()), VersionSupport::Unlisted);
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
        validate(&cluster, None, Timestamp::UNIX_EPOCH).map(|cluster| cluster.shape.node_timeout)
    };
    assert!(with("save", "900 1").is_ok());
    assert!(with("Port", "1").is_err());
    assert!(with("port", "1").is_err());
    assert!(with("cluster-port", "1").is_err());
    assert!(with("maxmemory", "1gb\nport 1").is_err());
    assert!(with("cluster-node-timeout", "soon").is_err());
    assert_eq!(
        with("cluster-node-timeout", "2000"),
        Ok(Duration::from_secs(2))
    );
    assert_eq!(with("maxmemory", "1gb"), Ok(Duration::from_secs(5)));
}

/// Another name of a file would let a server come back without its data.
#[test]
fn the_places_of_data_are_reserved() {
    for name in [
        "dir",
        "dbfilename",
        "appendfilename",
        "appenddirname",
        "appendonly",
        "cluster-config-file",
        "include",
    ] {
        let mut cluster = example();
        cluster.spec.config = [(name.to_owned(), "other".to_owned())].into();
        let refused = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap_err();
        assert_eq!(refused, InvalidSpec::SettingReserved(name.to_owned()));
    }
}

/// A setting that overrides the user's without a word would surprise; one that the user overrides could lose data.
#[test]
fn what_the_controller_sets_is_reserved() {
    let defaults = [
        "cluster-node-timeout",
        "repl-diskless-sync",
        "repl-diskless-sync-delay",
        "save",
    ];
    for storage in [example().spec.storage, None] {
        let mut cluster = example();
        cluster.spec.storage = storage;
        cluster.spec.config.clear();
        let cluster = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap();
        for line in redis_conf(&cluster).lines() {
            let (name, _) = line.split_once(' ').unwrap();
            assert_ne!(
                defaults.contains(&name),
                RESERVED_SETTINGS.contains(&name),
                "{name} is neither a default nor reserved, or both"
            );
        }
    }
}

#[test]
fn nodes_are_repaired_by_what_cannot_change() {
    let mut cluster = example();
    let before = shape(&cluster).unwrap();
    cluster.spec.image = None;
    cluster
        .spec
        .config
        .insert("cluster-node-timeout".into(), "soon".into());
    assert!(validate(&cluster, None, Timestamp::UNIX_EPOCH).is_err());
    assert_eq!(shape(&cluster), Ok(before));
}

/// A change of these values is a restart of every database at the next upgrade: decide it, do not let it happen.
#[test]
fn the_restart_hash_is_pinned() {
    let of = |cluster: &RedisCluster| validate(cluster, None, Timestamp::UNIX_EPOCH).unwrap();
    let cluster = of(&example());
    assert_eq!(cluster.restart_hash, "v1-abce44086f46485493ccf76c180d7b17");
    // What the version before this one wrote: pods that have it are up to date.
    assert_eq!(cluster.former_hash, "v1-fc8ee193854597184f3d091475ba1f69");
    let mut other = example();
    other.spec.paused = true;
    other.spec.pod_disruption_budget.enabled = false;
    assert_eq!(of(&other).former_hash, cluster.former_hash);
    // Of settings, servers say whether they need a restart.
    other.spec.config.insert("maxmemory".into(), "65mb".into());
    assert_eq!(of(&other).restart_hash, cluster.restart_hash);
    assert_ne!(of(&other).former_hash, cluster.former_hash);
    other.spec.image = Some("other".into());
    assert_ne!(of(&other).restart_hash, cluster.restart_hash);
}

/// Clusters from before these fields, and those that give them their defaults, are not restarted; every other value reaches the pods.
#[test]
fn pod_template_and_placement_restart_only_when_given() {
    let hash = |spec: serde_json::Value| {
        let mut cluster = example();
        let spec: RedisClusterSpec = serde_json::from_value(spec).unwrap();
        cluster.spec.pod_template = spec.pod_template;
        cluster.spec.placement = spec.placement;
        let validated = validate(&cluster, None, Timestamp::UNIX_EPOCH);
        validated.unwrap().restart_hash
    };
    let usual = "v1-abce44086f46485493ccf76c180d7b17";
    let with = |more: serde_json::Value| {
        let mut spec = serde_json::json!({"shards": 3});
        let members = spec.as_object_mut().unwrap();
        members.extend(more.as_object().unwrap().clone());
        hash(spec)
    };
    for same in [
        serde_json::json!({}),
        serde_json::json!({"podTemplate": {}}),
        serde_json::json!({"podTemplate": {"labels": {}, "extraVolumes": []}}),
        serde_json::json!({"placement": {}}),
        serde_json::json!({"placement": {"shardAntiAffinity": "Preferred", "topologyKey": crds::LABEL_HOSTNAME, "zones": {"spread": false}}}),
    ] {
        assert_eq!(with(same.clone()), usual, "{same}");
    }
    let mut seen = std::collections::BTreeSet::from([usual.to_owned()]);
    for other in [
        serde_json::json!({"podTemplate": {"labels": {"team": "web"}}}),
        serde_json::json!({"podTemplate": {"annotations": {"team": "web"}}}),
        serde_json::json!({"podTemplate": {"securityContext": {"runAsUser": 1001}}}),
        serde_json::json!({"podTemplate": {"tolerations": [{"operator": "Exists"}]}}),
        serde_json::json!({"placement": {"shardAntiAffinity": "Required"}}),
        serde_json::json!({"placement": {"shardAntiAffinity": "Disabled"}}),
        serde_json::json!({"placement": {"topologyKey": "rack"}}),
        serde_json::json!({"placement": {"zones": {"spread": true}}}),
    ] {
        assert!(seen.insert(with(other.clone())), "{other}");
    }
}

/// A pause changes nothing, and without volumes nothing would come back.
#[test]
fn only_a_cluster_with_volumes_hibernates() {
    let mut cluster = example();
    assert!(!shape(&cluster).unwrap().hibernate);
    cluster.spec.hibernate = true;
    assert!(shape(&cluster).unwrap().hibernate);
    assert!(validate(&cluster, None, Timestamp::UNIX_EPOCH).is_ok());
    cluster.spec.paused = true;
    assert!(!shape(&cluster).unwrap().hibernate);
    cluster.spec.paused = false;
    cluster.spec.storage = None;
    assert!(!shape(&cluster).unwrap().hibernate);
    let error = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap_err();
    assert_eq!(error, InvalidSpec::NothingToKeep);
}

/// They would not start, or could not be reached.
#[test]
fn servers_before_7_have_no_tls_and_no_load_balancers() {
    let mut old = entry("redis:6.2");
    old.spec.version = "6.2.14".into();
    let mut cluster = example();
    cluster.spec.image = None;
    cluster.spec.version = Some("redis-7.0.15".into());
    let refusal = |cluster: &RedisCluster, entry: &RedisVersion| {
        let refused = validate(cluster, Some(entry), Timestamp::UNIX_EPOCH).err();
        refused.map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(refusal(&cluster, &old), "");
    cluster.spec.access = Some(crds::AccessPolicy {
        kind: crds::AccessType::LoadBalancer,
        ..crds::AccessPolicy::default()
    });
    assert!(refusal(&cluster, &old).starts_with("access.type LoadBalancer needs"));
    assert_eq!(refusal(&cluster, &entry("redis:7.0.15")), "");
    let tls = serde_json::json!({"secretName": "shop-tls"});
    cluster.spec.tls = Some(serde_json::from_value(tls).unwrap());
    assert!(refusal(&cluster, &old).starts_with("tls needs"));
    old.spec.distribution = Distribution::Valkey;
    assert_eq!(refusal(&cluster, &old), "");
}
