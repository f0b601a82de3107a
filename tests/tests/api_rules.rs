//! Every rule of the API: an example that the API server accepts, and one that it refuses with the right sentence.

use anyhow::{Context, Result};
use common::kubernetes::kstatus::{Kstatus, evaluate};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use std::fs;
use tests::pod_template;

/// A change to a good object, and a part of the sentence that refuses it; none where it is taken.
struct Case {
    name: &'static str,
    kind: &'static str,
    change: Value,
    refused: Option<&'static str>,
}

fn taken(kind: &'static str, name: &'static str, change: Value) -> Case {
    Case {
        name,
        kind,
        change,
        refused: None,
    }
}

fn refused(kind: &'static str, name: &'static str, change: Value, sentence: &'static str) -> Case {
    Case {
        name,
        kind,
        change,
        refused: Some(sentence),
    }
}

/// The smallest good object of a kind.
fn good(kind: &str) -> Value {
    let spec = match kind {
        "RedisCluster" => json!({"image": "redis:7", "shards": 3}),
        "RedisVersion" => json!({"version": "7.0.15", "distribution": "Redis", "image": "redis:7"}),
        "RedisBackup" => json!({"clusterRef": {"name": "c"}, "storageName": "s"}),
        "RedisRestore" => {
            json!({"source": {"backupRef": {"name": "b"}}, "target": {"clusterRef": {"name": "c"}}})
        }
        other => unreachable!("{other}"),
    };
    json!({"apiVersion": "redis.danieldorado.github.io/v1alpha1", "kind": kind, "metadata": {"name": "good"}, "spec": spec})
}

fn cluster_creations() -> Vec<Case> {
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

/// Changes of a cluster's podTemplate and placement.
fn pod_creations() -> Vec<Case> {
    let kind = "RedisCluster";
    let pods = |template: Value| json!({"spec": {"podTemplate": template}});
    let placement = |placement: Value| json!({"spec": {"placement": placement}});
    let volume = |more: Value| {
        let base = json!({"name": "notes", "mountPath": "/notes", "configMap": {"name": "notes"}});
        pods(json!({"extraVolumes": [merged(base, &more)]}))
    };
    let here = |name: &str| json!({"name": name, "mountPath": "/notes", "emptyDir": {}});
    let zones = json!({"maxSkew": 1, "topologyKey": crds::LABEL_ZONE, "whenUnsatisfiable": "DoNotSchedule"});
    let racks = json!({"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"});
    let spread = json!({"zones": {"spread": true}});
    let long = "a".repeat(64);
    let mut cases = vec![
        taken(kind, "empty pod template", pods(json!({}))),
        taken(kind, "every part of a pod", pods(pod_template::complete())),
        taken(
            kind,
            "labels with and without a domain",
            pods(
                json!({"labels": {"team": "web", "example.com/cost-centre": "a.b_c", "empty": ""}}),
            ),
        ),
        refused(
            kind,
            "a label that is no name",
            pods(json!({"labels": {"two words": "web"}})),
            "podTemplate.labels: a name has letters",
        ),
        refused(
            kind,
            "a long label",
            pods(json!({"labels": {"team": long}})),
            "Too long",
        ),
        refused(
            kind,
            "a node selector that is no name",
            pods(json!({"nodeSelector": {"-": "web"}})),
            "podTemplate.nodeSelector: a name has letters",
        ),
        refused(
            kind,
            "a toleration for a time in words",
            pods(json!({"tolerations": [{"tolerationSeconds": "soon"}]})),
            "must be of type integer",
        ),
        refused(
            kind,
            "a server as root",
            pods(json!({"securityContext": {"runAsUser": 0}})),
            "or runAsNonRoot: false as well",
        ),
        taken(
            kind,
            "a server as root on purpose",
            pods(json!({"securityContext": {"runAsUser": 0, "runAsNonRoot": false}})),
        ),
        taken(kind, "a volume", volume(json!({}))),
        refused(
            kind,
            "a volume of two sources",
            volume(json!({"secret": {"secretName": "keys"}})),
            "exactly one of configMap",
        ),
        refused(
            kind,
            "a volume without a source",
            volume(json!({"configMap": null})),
            "exactly one of configMap",
        ),
        refused(
            kind,
            "a path with dots",
            volume(json!({"mountPath": "/notes/../data"})),
            "a path has no part . or ..",
        ),
        refused(
            kind,
            "a path of no root",
            volume(json!({"mountPath": "notes"})),
            "should match",
        ),
        refused(
            kind,
            "two volumes at one path",
            pods(json!({"extraVolumes": [here("one"), here("two")]})),
            "mounted at the same path",
        ),
        taken(
            kind,
            "placement",
            placement(
                json!({"shardAntiAffinity": "Required", "topologyKey": crds::LABEL_ZONE, "zones": {"spread": true}}),
            ),
        ),
        refused(
            kind,
            "an anti-affinity that does not exist",
            placement(json!({"shardAntiAffinity": "Sometimes"})),
            "Unsupported value",
        ),
        refused(
            kind,
            "a topology key of two words",
            placement(json!({"topologyKey": "a rack"})),
            "should match",
        ),
        refused(
            kind,
            "two constraints for the zones",
            json!({"spec": {"placement": spread, "podTemplate": {"topologySpreadConstraints": [zones]}}}),
            "either placement.zones.spread or a topologySpreadConstraint",
        ),
        taken(
            kind,
            "a constraint for zones and one for racks",
            json!({"spec": {"placement": spread, "podTemplate": {"topologySpreadConstraints": [racks]}}}),
        ),
        taken(
            kind,
            "a constraint of the pod template for the zones",
            pods(json!({"topologySpreadConstraints": [zones]})),
        ),
    ];
    for prefix in crds::OWN_PREFIXES {
        for field in ["labels", "annotations"] {
            let change = pods(json!({field: {format!("{prefix}name"): "shop"}}));
            cases.push(refused(kind, prefix, change, "use another domain"));
        }
    }
    for name in crds::OWN_VOLUMES {
        let change = volume(json!({"name": name}));
        cases.push(refused(kind, name, change, "choose another name"));
    }
    for folder in crds::OWN_FOLDERS {
        let below = format!("{folder}/more");
        for path in [folder, below.as_str()] {
            let change = volume(json!({"mountPath": path}));
            cases.push(refused(kind, folder, change, "choose another mountPath"));
        }
        let beside = volume(json!({"mountPath": format!("{folder}-more")}));
        cases.push(taken(kind, folder, beside));
    }
    cases
}

fn other_creations() -> Vec<Case> {
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

/// Objects that exist before [`updates`]: kind, name, and how the spec differs from the smallest good one.
fn existing() -> Vec<(&'static str, &'static str, Value)> {
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
fn updates() -> Vec<(&'static str, Case)> {
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

/// JSON merge patch, RFC 7386.
fn merged(mut base: Value, change: &Value) -> Value {
    let (Value::Object(members), Value::Object(changes)) = (&mut base, change) else {
        return change.clone();
    };
    for (name, change) in changes {
        let old = members.remove(name).unwrap_or(json!({}));
        if !change.is_null() {
            members.insert(name.clone(), merged(old, change));
        }
    }
    base
}

fn api(client: &Client, namespace: &str, kind: &str) -> Api<DynamicObject> {
    let kind_of = GroupVersionKind::gvk(crds::GROUP, crds::VERSION, kind);
    let plural = format!("{}s", kind.to_lowercase());
    let resource = ApiResource::from_gvk_with_plural(&kind_of, &plural);
    match kind {
        "RedisVersion" => Api::all_with(client.clone(), &resource),
        _ => Api::namespaced_with(client.clone(), namespace, &resource),
    }
}

fn judge(case: &Case, answer: Result<DynamicObject, kube::Error>) -> Option<String> {
    let Case { name, kind, .. } = case;
    match (case.refused, answer) {
        (None, Ok(_)) => None,
        (None, Err(error)) => Some(format!("{kind} '{name}' is refused: {error}")),
        (Some(_), Ok(_)) => Some(format!("{kind} '{name}' is taken")),
        (Some(words), Err(error)) => (!error.to_string().contains(words))
            .then(|| format!("{kind} '{name}' is refused with other words: {error}")),
    }
}

/// Names of the fields of a kind's spec.
fn fields(kind: &str) -> Vec<String> {
    let definition = crds::definitions()
        .into_iter()
        .find(|definition| definition.spec.names.kind == kind);
    let definition = serde_json::to_value(definition).unwrap_or_default();
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let fields = definition.pointer(spec).and_then(Value::as_object);
    fields
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect()
}

#[test]
fn a_change_of_every_field_is_tried() {
    for kind in ["RedisBackup", "RedisRestore"] {
        let fields = fields(kind);
        assert!(fields.len() > 2, "{kind}: {fields:?}");
        for field in fields {
            let mut cases = updates().into_iter().map(|(_, case)| case);
            assert!(
                cases.any(|case| case.kind == kind && !case.change["spec"][&field].is_null()),
                "add a change of spec.{field} of {kind} to updates()"
            );
        }
    }
}

/// [`pod_template::complete`] is what the API server and a StatefulSet are tried with.
#[test]
fn every_part_of_a_pod_is_tried() {
    let definition = crds::definitions()
        .into_iter()
        .find(|definition| definition.spec.names.kind == "RedisCluster");
    let definition = serde_json::to_value(definition).unwrap_or_default();
    let template =
        "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/podTemplate/properties";
    let names = |value: Option<&Value>| -> Vec<String> {
        let members = value.and_then(Value::as_object).into_iter().flatten();
        members.map(|(name, _)| name.clone()).collect()
    };
    let fields = names(definition.pointer(template));
    assert!(fields.len() > 5, "{fields:?}");
    assert_eq!(names(Some(&pod_template::complete())), fields);
}

/// A tool that reads a new object before its controller has seen it must not take it for finished.
#[tokio::test]
async fn a_new_object_is_in_progress() -> Result<()> {
    let server = tests::kubernetes::api_server().await?;
    let namespace = server.namespace("unobserved").await?;
    for (kind, expected) in [
        ("RedisCluster", Kstatus::InProgress),
        ("RedisBackup", Kstatus::InProgress),
        ("RedisRestore", Kstatus::InProgress),
        ("RedisVersion", Kstatus::Current),
    ] {
        let change = json!({"metadata": {"name": namespace}});
        let object: DynamicObject = serde_json::from_value(merged(good(kind), &change))?;
        let api = api(&server.client, &namespace, kind);
        api.create(&PostParams::default(), &object).await?;
        let stored = serde_json::to_value(api.get(&namespace).await?)?;
        assert_eq!(evaluate(&stored), expected, "{stored:#}");
        api.delete(&namespace, &DeleteParams::default()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn rules_hold_on_the_api_server() -> Result<()> {
    let server = tests::kubernetes::api_server().await?;
    let namespace = server.namespace("rules").await?;
    let mut wrong = Vec::new();
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let clusters = cluster_creations().into_iter().chain(pod_creations());
    for case in clusters.chain(other_creations()) {
        let object: DynamicObject = serde_json::from_value(merged(good(case.kind), &case.change))?;
        wrong.extend(judge(
            &case,
            api(&server.client, &namespace, case.kind)
                .create(&dry, &object)
                .await,
        ));
    }
    for (kind, name, spec) in existing() {
        let change = json!({"metadata": {"name": name}, "spec": spec});
        let object: DynamicObject = serde_json::from_value(merged(good(kind), &change))?;
        api(&server.client, &namespace, kind)
            .create(&PostParams::default(), &object)
            .await?;
    }
    for (object, case) in updates() {
        let params = PatchParams {
            dry_run: true,
            ..PatchParams::default()
        };
        let patch = Patch::Merge(&case.change);
        wrong.extend(judge(
            &case,
            api(&server.client, &namespace, case.kind)
                .patch(object, &params, &patch)
                .await,
        ));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// What users copy is taken as it stands, down to the last document: an unknown member is a mistake.
#[tokio::test]
async fn the_api_server_takes_every_sample() -> Result<()> {
    let server = tests::kubernetes::api_server().await?;
    let namespace = server.namespace("samples").await?;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples");
    let mut documents = 0;
    for file in fs::read_dir(folder)? {
        let text = fs::read_to_string(file?.path())?;
        let kinds = text.lines().filter(|line| line.starts_with("kind: "));
        documents += kinds.count();
    }
    let dry_run = [
        "apply",
        "--server-side",
        "--dry-run=server",
        "--namespace",
        &namespace,
        "--filename",
        folder,
    ];
    let taken = server.kubectl(&dry_run, "").await?;
    assert!(
        documents > 0 && taken.lines().count() == documents,
        "{documents} documents, and the API server took:\n{taken}"
    );
    Ok(())
}

/// The first thing that a newcomer copies.
#[tokio::test]
async fn the_api_server_takes_the_cluster_of_the_readme() -> Result<()> {
    let server = tests::kubernetes::api_server().await?;
    let namespace = server.namespace("readme").await?;
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    let fenced = readme.split_once("```yaml\n");
    let document = fenced.and_then(|(_, rest)| Some(rest.split_once("```")?.0));
    let document = document.context("README.md has no block of YAML")?;
    let lines = document.lines().count();
    assert!(lines <= 12, "{lines} lines are no short example");
    let dry_run = [
        "apply",
        "--server-side",
        "--dry-run=server",
        "--namespace",
        &namespace,
        "--filename",
        "-",
    ];
    let taken = server.kubectl(&dry_run, document).await?;
    assert!(
        taken.starts_with("rediscluster.") && taken.lines().count() == 1,
        "the API server took:\n{taken}"
    );
    Ok(())
}
