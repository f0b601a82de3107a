//! Changes of objects that exist.

use super::{Case, refused, taken};
use serde_json::{Value, json};

/// Objects that exist before [`updates`]: kind, name, and how the spec differs from the smallest good one.
pub fn existing() -> Vec<(&'static str, &'static str, Value)> {
    let storage = json!({"size": "1Gi", "storageClassName": "fast"});
    let s3 = json!({"bucket": "backups"});
    vec![
        ("RedisCluster", "good", json!({})),
        ("RedisCluster", "stored", json!({"storage": storage})),
        (
            "RedisCluster",
            "default-class",
            json!({"storage": {"size": "1Gi"}}),
        ),
        ("RedisBackup", "good", json!({})),
        ("RedisBackup", "own", json!({"storageName": null, "s3": s3})),
        ("RedisRestore", "good", json!({})),
    ]
}

/// Changes of existing objects: the object's name, and what becomes of the change.
pub fn updates() -> Vec<(&'static str, Case)> {
    let (cluster, backup, restore) = ("RedisCluster", "RedisBackup", "RedisRestore");
    let spec = |spec: Value| json!({"spec": spec});
    let storage = |storage: Value| json!({"spec": {"storage": storage}});
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let changed =
        |kind, name, change: Value| refused(kind, name, spec(change), "cannot be changed");
    vec![
        (
            "good",
            taken(cluster, "another image", spec(json!({"image": "redis:8"}))),
        ),
        (
            "good",
            taken(cluster, "pause", spec(json!({"paused": true}))),
        ),
        (
            "good",
            taken(cluster, "more shards", spec(json!({"shards": 4}))),
        ),
        (
            "good",
            taken(
                cluster,
                "more replicas",
                spec(json!({"replicasPerShard": 2})),
            ),
        ),
        (
            "good",
            refused(
                cluster,
                "storage",
                storage(json!({"size": "1Gi"})),
                "neither be added nor removed",
            ),
        ),
        (
            "stored",
            refused(
                cluster,
                "no storage",
                storage(Value::Null),
                "neither be added nor removed",
            ),
        ),
        (
            "good",
            taken(
                cluster,
                "encryption",
                spec(json!({"tls": {"secretName": "internal", "allowPlaintext": true}})),
            ),
        ),
        (
            "good",
            taken(cluster, "no encryption", spec(json!({"tls": null}))),
        ),
        (
            "stored",
            taken(
                cluster,
                "other end of the volumes",
                storage(json!({"whenDeleted": "Delete"})),
            ),
        ),
        (
            "stored",
            refused(
                cluster,
                "smaller volumes",
                storage(json!({"size": "1000Mi"})),
                "storage.size can only grow",
            ),
        ),
        (
            "stored",
            taken(
                cluster,
                "the same volumes in other words",
                storage(json!({"size": "1024Mi"})),
            ),
        ),
        (
            "stored",
            taken(cluster, "larger volumes", storage(json!({"size": "2Gi"}))),
        ),
        (
            "stored",
            taken(cluster, "hibernation", spec(json!({"hibernate": true}))),
        ),
        (
            "good",
            refused(
                cluster,
                "hibernation of a cluster in memory",
                spec(json!({"hibernate": true})),
                "hibernate needs storage",
            ),
        ),
        (
            "stored",
            refused(
                cluster,
                "another class",
                storage(json!({"storageClassName": "slow"})),
                "storageClassName cannot be changed",
            ),
        ),
        (
            "stored",
            refused(
                cluster,
                "no class",
                storage(json!({"storageClassName": null})),
                "storageClassName cannot be changed",
            ),
        ),
        (
            "default-class",
            refused(
                cluster,
                "a class",
                storage(json!({"storageClassName": "slow"})),
                "storageClassName cannot be changed",
            ),
        ),
        (
            "default-class",
            taken(
                cluster,
                "other end of volumes of the default class",
                storage(json!({"whenDeleted": "Delete"})),
            ),
        ),
        (
            "good",
            taken(backup, "policy", spec(json!({"deletionPolicy": "Delete"}))),
        ),
        (
            "own",
            taken(
                backup,
                "policy of one with a place of its own",
                spec(json!({"deletionPolicy": "Delete"})),
            ),
        ),
        (
            "good",
            changed(
                backup,
                "another cluster",
                json!({"clusterRef": {"name": "d"}}),
            ),
        ),
        (
            "good",
            changed(backup, "another storage", json!({"storageName": "t"})),
        ),
        (
            "good",
            changed(
                backup,
                "a place instead of a storage",
                json!({"storageName": null, "s3": {"bucket": "backups"}}),
            ),
        ),
        (
            "own",
            changed(
                backup,
                "a storage instead of a place",
                json!({"storageName": "s", "s3": null}),
            ),
        ),
        (
            "own",
            changed(backup, "another bucket", json!({"s3": {"bucket": "other"}})),
        ),
        (
            "good",
            changed(
                backup,
                "another source",
                json!({"source": {"prefer": "Primary"}}),
            ),
        ),
        (
            "good",
            changed(
                backup,
                "other compression",
                json!({"compression": {"type": "None"}}),
            ),
        ),
        (
            "good",
            changed(
                backup,
                "another level",
                json!({"compression": {"level": 9}}),
            ),
        ),
        (
            "good",
            changed(backup, "more attempts", json!({"attempts": 5})),
        ),
        ("good", taken(restore, "label", label)),
        (
            "good",
            changed(
                restore,
                "another source",
                json!({"source": {"backupRef": {"name": "d"}}}),
            ),
        ),
        (
            "good",
            changed(
                restore,
                "another target",
                json!({"target": {"clusterRef": {"name": "d"}}}),
            ),
        ),
        (
            "good",
            changed(restore, "more attempts", json!({"attempts": 5})),
        ),
    ]
}
