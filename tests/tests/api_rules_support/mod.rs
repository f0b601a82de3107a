//! The cases of the rules of the API: a change each, and what becomes of it.

pub mod clusters;
pub mod others;
pub mod pods;
pub mod updates;
pub mod users;

use serde_json::{Value, json};

/// A change to a good object, and a part of the sentence that refuses it; none where it is taken.
pub struct Case {
    pub name: &'static str,
    pub kind: &'static str,
    pub change: Value,
    pub refused: Option<&'static str>,
}

pub fn taken(kind: &'static str, name: &'static str, change: Value) -> Case {
    Case {
        name,
        kind,
        change,
        refused: None,
    }
}

pub fn refused(
    kind: &'static str,
    name: &'static str,
    change: Value,
    sentence: &'static str,
) -> Case {
    Case {
        name,
        kind,
        change,
        refused: Some(sentence),
    }
}

/// The smallest good object of a kind.
pub fn good(kind: &str) -> Value {
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

/// JSON merge patch, RFC 7386.
pub fn merged(mut base: Value, change: &Value) -> Value {
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
