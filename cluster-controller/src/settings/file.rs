//! redis.conf as it was rendered, read again from its ConfigMap. Pure.

use crds::ANNOTATION_TRIALS;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Settings that are not compared: the start script and the pod template depend on them, and the plan sees to `cluster-node-timeout`, which is
/// another one while a server comes into its cluster.
pub const OWNED: [&str; 4] = [
    "cluster-enabled",
    "cluster-node-timeout",
    "port",
    "protected-mode",
];
/// Settings that every redis.conf has had. One that a later version of the controller leaves out replaces no pods.
pub const DEFAULTS: [&str; 3] = ["repl-diskless-sync", "repl-diskless-sync-delay", "save"];

/// Settings by name, each with its text in redis.conf.
pub type FileSettings = BTreeMap<String, String>;

/// How a server of an image has started with a configuration, before any pod did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialRecord {
    /// Image of the server that was started.
    pub image: String,
    /// Why it does not start, in its own words; none where it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Hash of the pod that it ran in. What was refused is tried again in another one, with other mounts or another user.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
}

/// The content of a ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// redis.conf.
    pub text: String,
    /// How servers have started with it.
    pub trials: Vec<TrialRecord>,
}

/// The ConfigMaps of a cluster by name.
pub type Configurations = BTreeMap<String, Configuration>;

impl Configuration {
    /// Reads a ConfigMap. None: it is none of a cluster. An annotation that cannot be read counts for nothing: it is tried again.
    pub fn of(map: &ConfigMap) -> Option<Self> {
        let text = map.data.as_ref()?.get("redis.conf")?.clone();
        let trials = map.annotations().get(ANNOTATION_TRIALS);
        let trials = trials.and_then(|trials| serde_json::from_str(trials).ok());
        Some(Self {
            text,
            trials: trials.unwrap_or_default(),
        })
    }

    /// Its settings without those that are not compared.
    pub fn settings(&self) -> FileSettings {
        settings(&self.text)
    }
}

/// The settings of a redis.conf without those that are not compared.
pub fn settings(text: &str) -> FileSettings {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .filter(|(name, _)| !OWNED.contains(name) && !name.starts_with('#'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::redis_conf,
        validate::{tests::example, validate},
    };
    use k8s_openapi::jiff::Timestamp;

    /// What is written into the file is read out of it, whatever the value.
    #[test]
    fn what_is_rendered_is_read_again() {
        let mut cluster = example();
        cluster.spec.config = BTreeMap::from([
            ("save".into(), "900 1".into()),
            ("maxmemory".into(), "1gb".into()),
            ("notify-keyspace-events".into(), String::new()),
            ("cluster-node-timeout".into(), "2000".into()),
        ]);
        let cluster = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap();
        let read = settings(&redis_conf(&cluster));
        let expected = [
            ("maxmemory", "1gb"),
            ("notify-keyspace-events", "\"\""),
            ("repl-diskless-sync", "yes"),
            ("repl-diskless-sync-delay", "0"),
            ("save", "900 1"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(read, FileSettings::from(expected));
        for name in DEFAULTS {
            assert!(read.contains_key(name), "{name}");
        }
    }
}
