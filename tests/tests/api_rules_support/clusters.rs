//! New RedisClusters.

use super::{Case, refused, taken};
use serde_json::json;

pub fn cluster_creations() -> Vec<Case> {
    let kind = "RedisCluster";
    let s3 = json!({"bucket": "backups"});
    let storages = json!([{"name": "s", "s3": s3}]);
    let schedule = |schedule: &str, storage: &str| json!({"spec": {"backup": {"storages": storages, "schedules": [{"name": "nightly", "schedule": schedule, "storageName": storage}]}}});
    let name = |name: &str| json!({"metadata": {"name": name}});
    let twice = json!([{"name": "s", "s3": s3}, {"name": "s", "s3": s3}]);
    vec![
        taken(kind, "smallest", json!({})),
        taken(
            kind,
            "version",
            json!({"spec": {"image": null, "version": "redis-7"}}),
        ),
        refused(
            kind,
            "version and image",
            json!({"spec": {"version": "redis-7"}}),
            "exactly one of version",
        ),
        refused(
            kind,
            "neither version nor image",
            json!({"spec": {"image": null}}),
            "exactly one of version",
        ),
        taken(kind, "most shards", json!({"spec": {"shards": 500}})),
        refused(
            kind,
            "an update of no shard",
            json!({"spec": {"update": {"maxUnavailableShards": 0}}}),
            "greater than or equal to 1",
        ),
        refused(
            kind,
            "an engine that does not exist",
            json!({"spec": {"migration": {"engine": "Magic"}}}),
            "Unsupported value",
        ),
        taken(
            kind,
            "a rate",
            json!({"spec": {"migration": {"maxBytesPerSecond": 1_000_000}}}),
        ),
        refused(
            kind,
            "a rate that the engine does not keep",
            json!({"spec": {"migration": {"engine": "Atomic", "maxBytesPerSecond": 1_000_000}}}),
            "needs the engine Auto or Legacy",
        ),
        refused(
            kind,
            "two shards",
            json!({"spec": {"shards": 2}}),
            "greater than or equal to 3",
        ),
        refused(
            kind,
            "too many shards",
            json!({"spec": {"shards": 501}}),
            "less than or equal to 500",
        ),
        refused(
            kind,
            "a size that is none",
            json!({"spec": {"storage": {"size": "big"}}}),
            "storage.size is a quantity",
        ),
        refused(
            kind,
            "volumes of no size",
            json!({"spec": {"storage": {"size": "0"}}}),
            "storage.size is a quantity",
        ),
        refused(
            kind,
            "hibernation without volumes",
            json!({"spec": {"hibernate": true}}),
            "hibernate needs storage",
        ),
        taken(
            kind,
            "hibernation with volumes, and protection",
            json!({"spec": {"hibernate": true, "deletionProtection": true, "storage": {"size": "1Gi"}}}),
        ),
        taken(
            kind,
            "no replicas",
            json!({"spec": {"replicasPerShard": 0}}),
        ),
        refused(
            kind,
            "too many replicas",
            json!({"spec": {"replicasPerShard": 6}}),
            "less than or equal to 5",
        ),
        taken(
            kind,
            "setting",
            json!({"spec": {"config": {"maxmemory-policy": "allkeys-lru"}}}),
        ),
        refused(
            kind,
            "own setting",
            json!({"spec": {"config": {"port": "7000"}}}),
            "set by the controller itself",
        ),
        refused(
            kind,
            "another own setting",
            json!({"spec": {"config": {"aclfile": "/x"}}}),
            "set by the controller itself",
        ),
        refused(
            kind,
            "name of a data file",
            json!({"spec": {"config": {"appendfilename": "other.aof", "maxmemory": "1gb"}}}),
            "appendfilename is set by the controller itself",
        ),
        refused(
            kind,
            "own bus port",
            json!({"spec": {"config": {"cluster-port": "17000"}}}),
            "set by the controller itself",
        ),
        refused(
            kind,
            "value of two lines",
            json!({"spec": {"config": {"maxmemory": "1gb\nport 7000"}}}),
            "a single line",
        ),
        refused(
            kind,
            "image with a space",
            json!({"spec": {"image": "redis: 7"}}),
            "should match",
        ),
        refused(
            kind,
            "setting in upper case",
            json!({"spec": {"config": {"Port": "7000"}}}),
            "lower case letters",
        ),
        taken(
            kind,
            "node timeout",
            json!({"spec": {"config": {"cluster-node-timeout": "500"}}}),
        ),
        refused(
            kind,
            "node timeout too short",
            json!({"spec": {"config": {"cluster-node-timeout": "499"}}}),
            "at least 500",
        ),
        refused(
            kind,
            "node timeout with a unit",
            json!({"spec": {"config": {"cluster-node-timeout": "5s"}}}),
            "at least 500",
        ),
        taken(
            kind,
            "forty characters",
            name("a234567890123456789012345678901234567890"),
        ),
        refused(
            kind,
            "long name",
            name("a2345678901234567890123456789012345678901"),
            "at most 40 characters",
        ),
        refused(
            kind,
            "name with a dot",
            name("a.b"),
            "at most 40 characters",
        ),
        refused(
            kind,
            "name with a digit first",
            name("1a"),
            "starting with a letter",
        ),
        taken(
            kind,
            "budget",
            json!({"spec": {"podDisruptionBudget": {"enabled": false, "maxUnavailable": 2}}}),
        ),
        refused(
            kind,
            "budget of 0",
            json!({"spec": {"podDisruptionBudget": {"maxUnavailable": 0}}}),
            "equal to 1",
        ),
        taken(kind, "schedule", schedule("30 2 * * *", "s")),
        taken(kind, "named schedule", schedule("@daily", "s")),
        refused(
            kind,
            "schedule of three fields",
            schedule("30 2 *", "s"),
            "five fields",
        ),
        refused(
            kind,
            "schedule without storage",
            schedule("30 2 * * *", "t"),
            "is the name of one of the storages",
        ),
        refused(
            kind,
            "two storages of one name",
            json!({"spec": {"backup": {"storages": twice}}}),
            "Duplicate value",
        ),
    ]
}
