//! redis.conf and the scripts that are mounted beside it. The scripts run in whatever shell the image has, so they keep to POSIX.

use super::{client_options::CLIENT_OPTIONS, metadata, stop_script::STOP_SCRIPT};
use crate::validate::ValidatedCluster;
use common::kubernetes::hash::hash_value;
use crds::{CLIENT_PORT, config_map_name};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;
use std::{collections::BTreeMap, fmt::Write};

/// Digits of the hash in the name of a ConfigMap: of the contents that one cluster ever has, no two share them.
const NAME_DIGITS: usize = 10;

/// The ConfigMap of a cluster. It is immutable: a pod restarts with what it was started with, whatever the spec says by then.
pub fn config_map(cluster: &ValidatedCluster) -> ConfigMap {
    let file = |name: &str, text: String| (name.to_owned(), text);
    let files = BTreeMap::from([
        file("redis.conf", redis_conf(cluster)),
        file("alive.sh", script(ALIVE_SCRIPT)),
        file("stop.sh", script(STOP_SCRIPT)),
    ]);
    let name = config_map_name(&cluster.shape.name, &content_name(&files));
    ConfigMap {
        metadata: metadata(cluster, name),
        data: Some(files),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

fn script(text: &str) -> String {
    text.replace("@OPTIONS@\n", CLIENT_OPTIONS)
}

/// A short name of a content: the same for the same files.
fn content_name(files: &BTreeMap<String, String>) -> String {
    let object = files
        .iter()
        .map(|(name, text)| (name.clone(), Value::String(text.clone())))
        .collect();
    let hash = hash_value(&Value::Object(object));
    let digits = hash.rsplit('-').next().unwrap_or_default();
    digits.chars().take(NAME_DIGITS).collect()
}

/// redis.conf: our defaults, over them the user's settings, over them what has to be as it is. It reaches running pods, so nothing in it
/// decides what becomes of data: the start script does.
pub fn redis_conf(cluster: &ValidatedCluster) -> String {
    let node_timeout = cluster.shape.node_timeout.as_millis().to_string();
    let mut settings: BTreeMap<&str, &str> = BTreeMap::from([
        // A copy for a new replica goes straight over the network, and at once.
        ("repl-diskless-sync", "yes"),
        ("repl-diskless-sync-delay", "0"),
        // With volumes the append-only file keeps everything; without, nothing is to be kept.
        ("save", ""),
    ]);
    let maxmemory = cluster.default_maxmemory.map(|bytes| bytes.to_string());
    settings.extend(maxmemory.iter().map(|bytes| ("maxmemory", bytes.as_str())));
    settings.extend(
        cluster
            .config
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    let port = CLIENT_PORT.to_string();
    settings.extend([
        ("cluster-enabled", "yes"),
        ("cluster-node-timeout", &node_timeout),
        // Where there are certificates, what is beside them is read later.
        ("port", &port),
        ("protected-mode", "no"),
    ]);
    let mut text = String::new();
    for (name, value) in settings {
        let value = if value.is_empty() { "\"\"" } else { value };
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{name} {value}");
    }
    text
}

const ALIVE_SCRIPT: &str = r#"# Alive: it answers, be it with an error. A restart helps only a server that no client gets through to.
cli=$(command -v redis-cli || command -v valkey-cli) || { echo "the image has neither redis-cli nor valkey-cli"; exit 1; }
@OPTIONS@
answer=$("$cli" -h 127.0.0.1 "$@" ping 2>&1)
case $answer in
  # It has answered: a certificate that is over is no reason to end it.
  *SSL_connect*) ;;
  "" | *"ould not connect"*) echo "$answer"; exit 1 ;;
esac
exit 0
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::start_script::tests::run_with_client,
        validate::{tests::example, validate},
    };
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn the_user_overrides_defaults_only() {
        let mut cluster = example();
        cluster.spec.config = BTreeMap::from([
            ("cluster-node-timeout".into(), "2000".into()),
            ("save".into(), "900 1".into()),
            ("maxmemory".into(), "1gb".into()),
        ]);
        let text = redis_conf(&validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap());
        for line in ["cluster-node-timeout 2000", "save 900 1", "maxmemory 1gb"] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        cluster.spec.storage = None;
        cluster.spec.config.clear();
        let text = redis_conf(&validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap());
        assert!(text.contains("save \"\"\n"));
    }

    /// What is mounted changes under running pods.
    #[test]
    fn no_mounted_file_decides_about_data() {
        for storage in [true, false] {
            let mut cluster = example();
            if !storage {
                cluster.spec.storage = None;
            }
            let cluster = validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap();
            for (name, text) in config_map(&cluster).data.unwrap() {
                for word in [
                    "rm ",
                    "mv ",
                    "appendonly",
                    "dir ",
                    "nodes.conf",
                    "> /data",
                    "rdb-del",
                ] {
                    assert!(!text.contains(word), "{name} has {word:?}:\n{text}");
                }
            }
        }
    }

    /// Runs a probe with a client that prints these answers to the commands.
    fn probe(script: &str, answers: &[(&str, &str)]) -> bool {
        let mut client = "case \"$3 $4\" in\n".to_owned();
        for (command, answer) in answers {
            let _ = writeln!(client, "'{command}') printf '%s\\n' '{answer}' ;;");
        }
        client.push_str("esac\n");
        let (ended, _) = run_with_client(script, &client);
        ended.status.success()
    }

    #[test]
    fn a_server_that_answers_is_alive() {
        for (answer, alive) in [
            ("PONG", true),
            ("LOADING Redis is loading the dataset in memory", true),
            (
                "MISCONF Redis is configured to save RDB snapshots, but it is currently unable to",
                true,
            ),
            ("ERR max number of clients reached", true),
            ("NOAUTH Authentication required.", true),
            ("Error: Server closed the connection", true),
            (
                "Could not connect to Redis at 127.0.0.1:6379: Connection refused",
                false,
            ),
            ("", false),
        ] {
            assert_eq!(
                probe(&script(ALIVE_SCRIPT), &[("ping ", answer)]),
                alive,
                "{answer:?}"
            );
        }
    }
}
