//! redis.conf and the scripts of the pods.
//!
//! The scripts run in whatever shell the image has, so they keep to POSIX. Values of the cluster are written into them and not
//! into the pod template, which has to stay as it is.

use super::metadata;
use crate::validate::ValidatedCluster;
use crds::{CLIENT_PORT, config_map_name};
use k8s_openapi::api::core::v1::ConfigMap;
use std::{collections::BTreeMap, fmt::Write};

/// Name of the readiness script in the ConfigMap.
pub const READY: &str = "ready.sh";

/// The ConfigMap of a cluster.
pub fn config_map(cluster: &ValidatedCluster) -> ConfigMap {
    let file = |name: &str, text: String| (name.to_owned(), text);
    ConfigMap {
        metadata: metadata(cluster, config_map_name(&cluster.shape.name)),
        data: Some(BTreeMap::from([
            file("redis.conf", redis_conf(cluster)),
            file("start.sh", start_script(cluster)),
            file("alive.sh", ALIVE_SCRIPT.to_owned()),
            file(READY, READY_SCRIPT.to_owned()),
            file("stop.sh", STOP_SCRIPT.to_owned()),
        ])),
        ..ConfigMap::default()
    }
}

/// redis.conf: our defaults, over them the user's settings, over them what has to be as it is.
pub fn redis_conf(cluster: &ValidatedCluster) -> String {
    let persistent = cluster.storage.is_some();
    let mut settings: BTreeMap<&str, &str> = BTreeMap::from([
        ("cluster-node-timeout", "5000"),
        // A copy for a new replica goes straight over the network, and at once.
        ("repl-diskless-sync", "yes"),
        ("repl-diskless-sync-delay", "0"),
        // With volumes the append-only file keeps everything; without, nothing is to be kept.
        ("save", ""),
    ]);
    settings.extend(
        cluster
            .config
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    let port = CLIENT_PORT.to_string();
    settings.extend([
        ("appendonly", if persistent { "yes" } else { "no" }),
        ("cluster-config-file", "nodes.conf"),
        ("cluster-enabled", "yes"),
        ("dir", "/data"),
        ("port", &port),
        ("protected-mode", "no"),
    ]);
    if !persistent {
        // The file a replica was copied by must not be found by the next process.
        settings.insert("rdb-del-sync-files", "yes");
    }
    let mut text = String::new();
    for (name, value) in settings {
        let value = if value.is_empty() { "\"\"" } else { value };
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{name} {value}");
    }
    text
}

/// The start script.
pub fn start_script(cluster: &ValidatedCluster) -> String {
    let memory_only = if cluster.storage.is_some() {
        ""
    } else {
        FORGET_SCRIPT
    };
    // Until the others have noticed the loss (a node timeout), agreed on it and elected: a few seconds more.
    let delay = match cluster.shape.replicas {
        0 => 0,
        _ => cluster.shape.node_timeout.as_secs() + 4,
    };
    START_SCRIPT
        .replace("@MEMORY_ONLY@", memory_only)
        .replace("@DELAY@", &delay.to_string())
}

const START_SCRIPT: &str = r#"# Starts the server. The pod's address changes, so it is announced anew each time.
set -eu
server=$(command -v valkey-server || command -v redis-server)
set -- /config/redis.conf --cluster-announce-ip "$POD_IP"
# Replicas stay with their shard (a setting that came with 7.0).
case $("$server" --version) in
  *v=[1-6].*) ;;
  *) grep -q '^cluster-allow-replica-migration ' /config/redis.conf || set -- "$@" --cluster-allow-replica-migration no ;;
esac
@MEMORY_ONLY@# A server without a role of its own feeds no replica until the controller has given it a role: the replica of a primary
# that came back empty at the same address would copy the emptiness.
grep -Eqs 'myself,(slave|master.* connected [0-9])' /data/nodes.conf ||
  set -- "$@" --user default on nopass '~*' '&*' +@all -psync -sync
exec "$server" "$@"
"#;

const FORGET_SCRIPT: &str = r"# The data died with the process before this one, so its identity must not return without it. The others need some time without an
# answer from this address before they elect a replica; one that answers with another id is never counted as failed.
if [ -e /data/started ] && [ @DELAY@ -gt 0 ]; then
  trap 'exit 0' TERM
  sleep @DELAY@ & wait $!
  trap - TERM
fi
rm -rf /data/*
: > /data/started
";

const ALIVE_SCRIPT: &str = r#"# Alive: it answers, be it with an error. Only a server that nobody gets through to is helped by a restart.
cli=$(command -v redis-cli || command -v valkey-cli) || { echo "the image has neither redis-cli nor valkey-cli"; exit 1; }
answer=$("$cli" -h 127.0.0.1 ping 2>&1)
case $answer in
  "" | *"ould not connect"*) echo "$answer"; exit 1 ;;
esac
exit 0
"#;

const READY_SCRIPT: &str = r#"# Ready: its data is loaded, as a replica it is linked to its primary, and as a primary it has slots. A new node holds
# nothing: counted as ready, it would allow the eviction of the one that it is yet to copy.
cli=$(command -v redis-cli || command -v valkey-cli)
answer=$("$cli" -h 127.0.0.1 info 2>&1)
case $answer in
  *[!_]loading:1*) echo "loading"; exit 1 ;;
  *master_link_status:up*) exit 0 ;;
  *master_link_status:down*) echo "not linked to its primary"; exit 1 ;;
  *role:master*) ;;
  *) echo "no answer"; exit 1 ;;
esac
"$cli" -h 127.0.0.1 cluster nodes | grep -q 'myself,.* connected [0-9]' && exit 0
echo "a primary without slots"
exit 1
"#;

const STOP_SCRIPT: &str = r#"# Before the server is told to stop: a primary hands over to a replica, so that its shard goes on without an election.
cli=$(command -v redis-cli || command -v valkey-cli)
"$cli" -h 127.0.0.1 info replication | tr -d '\r' |
  sed -n 's/^slave[0-9]*:ip=\([^,]*\),port=\([0-9]*\),state=online.*/\1 \2/p' |
  while read -r ip port; do
    "$cli" -h "$ip" -p "$port" cluster failover 2>/dev/null | grep -q OK || continue
    tries=0
    while [ "$tries" -lt 20 ]; do
      "$cli" -h 127.0.0.1 role | grep -q slave && break 2
      tries=$((tries + 1))
      sleep 0.2
    done
    break
  done
exit 0
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::{tests::example, validate};
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
        for line in [
            "cluster-node-timeout 2000",
            "save 900 1",
            "maxmemory 1gb",
            "appendonly yes",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        cluster.spec.storage = None;
        cluster.spec.config.clear();
        let text = redis_conf(&validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap());
        assert!(text.contains("save \"\"\n") && text.contains("appendonly no\n"));
    }

    #[test]
    fn only_memory_forgets() {
        let mut cluster = example();
        let script = start_script(&validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap());
        assert!(!script.contains("rm -rf") && !script.contains('@'.to_string().repeat(2).as_str()));
        cluster.spec.storage = None;
        let script = start_script(&validate(&cluster, None, Timestamp::UNIX_EPOCH).unwrap());
        assert!(script.contains("rm -rf /data/*") && script.contains("sleep 9 &"));
    }

    /// Runs a probe with a client that prints these answers to the commands.
    fn probe(script: &str, answers: &[(&str, &str)]) -> bool {
        use std::{os::unix::fs::PermissionsExt, process::Command};
        // A program that another thread's child still holds open for writing cannot be run.
        static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _one = ONE.lock();
        let dir = std::env::temp_dir().join(format!("probe-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let mut client = "#!/bin/sh\ncase \"$3 $4\" in\n".to_owned();
        for (command, answer) in answers {
            let _ = writeln!(client, "'{command}') printf '%s\\n' '{answer}' ;;");
        }
        client.push_str("esac\n");
        let file = dir.join("redis-cli");
        std::fs::write(&file, client).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", dir.display());
        let mut run = Command::new("/bin/sh");
        let ended = run.args(["-c", script]).env("PATH", path).output().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        ended.status.success()
    }

    #[test]
    fn whoever_answers_is_alive() {
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
                probe(ALIVE_SCRIPT, &[("ping ", answer)]),
                alive,
                "{answer:?}"
            );
        }
    }

    #[test]
    fn whoever_holds_the_data_is_ready() {
        let primary = "#\nloading:0\nasync_loading:0\nrole:master\n";
        let serves = "ab 10.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-5461";
        let blank = "ab 10.0.0.1:6379@16379 myself,master - 0 0 0 connected\ncd 10.0.0.2:6379@16379 master - 0 0 1 connected 0-9";
        let replica = |link: &str| format!("#\nloading:0\nrole:slave\nmaster_link_status:{link}\n");
        for (info, nodes, ready) in [
            (primary, serves, true),
            (primary, blank, false),
            ("#\nloading:1\nrole:master\n", serves, false),
            (&replica("up"), "", true),
            (&replica("down"), "", false),
            ("Could not connect to Redis", "", false),
        ] {
            let answers = [("info ", info), ("cluster nodes", nodes)];
            assert_eq!(probe(READY_SCRIPT, &answers), ready, "{info:?} {nodes:?}");
        }
    }
}
