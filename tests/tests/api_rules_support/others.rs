//! New objects of the other kinds.

use super::{Case, refused, taken};
use serde_json::{Value, json};

pub fn other_creations() -> Vec<Case> {
    let s3 = json!({"bucket": "backups"});
    let (backup, restore, version) = ("RedisBackup", "RedisRestore", "RedisVersion");
    let stored = |s3: Value| json!({"spec": {"storageName": null, "s3": s3}});
    let location = json!({"s3": s3, "path": "ns/c/id"});
    let new_cluster =
        |spec: Value| json!({"clusterRef": null, "newCluster": {"name": "n", "spec": spec}});
    vec![
        taken(backup, "smallest", json!({})),
        taken(backup, "own storage", stored(s3.clone())),
        refused(
            backup,
            "two storages",
            json!({"spec": {"s3": s3}}),
            "exactly one of storageName",
        ),
        refused(
            backup,
            "no storage",
            json!({"spec": {"storageName": null}}),
            "exactly one of storageName",
        ),
        taken(
            backup,
            "endpoint",
            stored(json!({"bucket": "backups", "endpoint": "http://s3:9000", "prefix": "a/b"})),
        ),
        refused(
            backup,
            "name of no cluster",
            json!({"spec": {"clusterRef": {"name": "a.b"}}}),
            "not the name of a RedisCluster",
        ),
        refused(
            backup,
            "no scheme",
            stored(json!({"bucket": "backups", "endpoint": "s3:9000"})),
            "starts with http",
        ),
        refused(
            backup,
            "slash",
            stored(json!({"bucket": "backups", "prefix": "/a"})),
            "without a slash",
        ),
        taken(
            backup,
            "compression",
            json!({"spec": {"compression": {"type": "None"}}}),
        ),
        refused(
            backup,
            "brotli",
            json!({"spec": {"compression": {"type": "Brotli"}}}),
            "Unsupported value",
        ),
        refused(
            backup,
            "level",
            json!({"spec": {"compression": {"level": 10}}}),
            "less than or equal to 9",
        ),
        taken(restore, "smallest", json!({})),
        taken(
            restore,
            "location into a new cluster",
            json!({"spec": {
                "source": {"backupRef": null, "location": location},
                "target": new_cluster(json!({"image": "redis:7", "shards": 5}))}}),
        ),
        refused(
            restore,
            "location with an address as path",
            json!({"spec": {"source": {"backupRef": null, "location": {"s3": s3, "path": "s3://backups/ns/c/id"}}}}),
            "below the bucket's prefix",
        ),
        refused(
            restore,
            "name of no cluster",
            json!({"spec": {"target": {"clusterRef": {"name": "1a"}}}}),
            "not the name of a RedisCluster",
        ),
        refused(
            restore,
            "two sources",
            json!({"spec": {"source": {"location": location}}}),
            "exactly one of backupRef",
        ),
        refused(
            restore,
            "no source",
            json!({"spec": {"source": {"backupRef": null}}}),
            "exactly one of backupRef",
        ),
        refused(
            restore,
            "no target",
            json!({"spec": {"target": {"clusterRef": null}}}),
            "exactly one of clusterRef",
        ),
        refused(
            restore,
            "two targets",
            json!({"spec": {"target": {"newCluster": {"name": "n", "spec": {"image": "redis:7", "shards": 3}}}}}),
            "exactly one of clusterRef",
        ),
        refused(
            restore,
            "new cluster with a label of ours",
            json!({"spec": {"target": new_cluster(json!({"image": "i", "shards": 3, "podTemplate": {"labels": {crds::LABEL_SHARD: "1"}}}))}}),
            "use another domain",
        ),
        refused(
            restore,
            "new cluster with version and image",
            json!({"spec": {"target": new_cluster(json!({"image": "i", "version": "v", "shards": 3}))}}),
            "exactly one of version",
        ),
        taken(version, "smallest", json!({})),
        refused(
            version,
            "odd version",
            json!({"spec": {"version": "latest"}}),
            "should match",
        ),
        taken(
            version,
            "upgrade path and end of life",
            json!({"spec": {"upgradesFrom": ["6.2.x", "7.0.14"], "endOfLife": "2024-07-29", "deprecated": "change to 7.2"}}),
        ),
        refused(
            version,
            "path from a newer series",
            json!({"spec": {"upgradesFrom": ["6.2.x", "7.2.x"]}}),
            "would be a downgrade",
        ),
        refused(
            version,
            "path that is no version",
            json!({"spec": {"upgradesFrom": ["6.x"]}}),
            "should match",
        ),
        refused(
            version,
            "one path twice",
            json!({"spec": {"upgradesFrom": ["6.2.x", "6.2.x"]}}),
            "Duplicate value",
        ),
        refused(
            version,
            "day that does not exist",
            json!({"spec": {"endOfLife": "2027-02-31"}}),
            "must be of type date",
        ),
        refused(
            version,
            "deprecated in two lines",
            json!({"spec": {"deprecated": "change\nto 7.2"}}),
            "should match",
        ),
        refused(
            version,
            "unknown distribution",
            json!({"spec": {"distribution": "KeyDB"}}),
            "Unsupported value",
        ),
    ]
}
