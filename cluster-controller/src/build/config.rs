//! redis.conf and the scripts of the pods. The scripts run in whatever shell the image has, so they keep to POSIX.

use super::metadata;
use crate::validate::ValidatedCluster;
use common::kubernetes::hash::hash_value;
use crds::{CLIENT_PORT, config_map_name, headless_service_name};
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
        file("alive.sh", ALIVE_SCRIPT.to_owned()),
        file("ready.sh", READY_SCRIPT.to_owned()),
        file("stop.sh", STOP_SCRIPT.to_owned()),
    ]);
    let name = config_map_name(&cluster.shape.name, &content_name(&files));
    ConfigMap {
        metadata: metadata(cluster, name),
        data: Some(files),
        immutable: Some(true),
        ..ConfigMap::default()
    }
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

/// The start script. It is part of the pod template and never mounted: a pod keeps the script that it was created with, so that a spec
/// that changes cannot reach the data of running pods.
pub fn start_script(persistent: bool, has_replicas: bool) -> String {
    let (settings, data) = match (persistent, has_replicas) {
        (true, _) => ("--appendonly yes", KEEP_SCRIPT.to_owned()),
        (false, true) => (MEMORY_SETTINGS, format!("{WAIT_SCRIPT}{WIPE_SCRIPT}")),
        (false, false) => (MEMORY_SETTINGS, WIPE_SCRIPT.to_owned()),
    };
    START_SCRIPT
        .replace("@SETTINGS@", settings)
        // In the shell: the name of a pod begins with that of its cluster.
        .replace("@HEADLESS@", &headless_service_name("${POD_NAME%-*-*}"))
        .replace("@DATA@\n", &data)
}

/// The file a replica was copied by must not be found by the next process.
const MEMORY_SETTINGS: &str = "--appendonly no --rdb-del-sync-files yes";

const START_SCRIPT: &str = r#"set -eu
role='myself,(slave|master.* connected [0-9])'
server=$(command -v valkey-server || command -v redis-server)
# The pod's address changes, so it is announced at every start. Nothing else uses the name in the system log: by it a server without a role
# proves to the controller which pod it runs in.
set -- /config/redis.conf --dir /data --cluster-config-file nodes.conf --appendfilename appendonly.aof @SETTINGS@ \
  --cluster-announce-ip "$POD_IP" --syslog-ident "$POD_NAMESPACE/$POD_NAME/$POD_UID"
case $("$server" --version) in
  *v=[1-6].*) old=yes ;;
  *)
    old=no
    set -- "$@" --appenddirname appendonlydir
    # For clients that want a name, which stays while addresses change. The nodes find each other by addresses (a setting that came with 7.0).
    set -- "$@" --cluster-announce-hostname "$POD_NAME.@HEADLESS@.$POD_NAMESPACE.svc"
    # Replicas stay with their shard (a setting that came with 7.0).
    grep -q '^cluster-allow-replica-migration ' /config/redis.conf || set -- "$@" --cluster-allow-replica-migration no
    ;;
esac
@DATA@
# A server without a role of its own feeds no replica until the controller has given it one: the replica of a primary that came back
# empty at the same address would copy the emptiness.
grep -Eqs "$role" /data/nodes.conf ||
  set -- "$@" --user default on nopass '~*' '&*' +@all -psync -sync
exec "$server" "$@"
"#;

/// For pods with a volume.
const KEEP_SCRIPT: &str = r#"# A role without the data that belongs to it: under its old identity the server would empty its replicas. The files are kept aside, and
# it starts as a new node. nodes.conf is moved last: an interruption leaves it, and the next start goes on.
has_data() { [ -e /data/appendonly.aof ] || [ -e /data/appendonlydir/appendonly.aof.manifest ]; }
if [ "$old" = yes ] && [ -e /data/appendonlydir ]; then
  echo "/data/appendonlydir was written by a server of 7.0 or newer: this version cannot read it; correct spec.image or spec.version" >&2
  exit 1
fi
if grep -Eqs "$role" /data/nodes.conf && ! has_data; then
  aside=/data/set-aside-$(date -u +%Y%m%dT%H%M%SZ)
  echo "/data/nodes.conf names a role, but the append-only file is missing: starting as a new node; the old files are in $aside"
  mkdir -p "$aside"
  for file in /data/appendonlydir /data/dump.rdb /data/nodes.conf; do
    [ ! -e "$file" ] || mv "$file" "$aside"
  done
fi
"#;

/// For pods in memory only, of shards with replicas. Seconds: a node timeout, and 4 for the agreement and the election.
const WAIT_SCRIPT: &str = r"# The data died with the process before this one, so its identity must not return without it. The others need some time without an
# answer from this address before they elect a replica; one that answers with another id is never counted as failed.
if [ -e /data/started ]; then
  timeout=$(sed -n 's/^cluster-node-timeout //p' /config/redis.conf)
  trap 'exit 0' TERM
  sleep $((timeout / 1000 + 4)) & wait $!
  trap - TERM
fi
";

/// For pods in memory only.
const WIPE_SCRIPT: &str = r"rm -rf /data/*
: > /data/started
";

const ALIVE_SCRIPT: &str = r#"# Alive: it answers, be it with an error. A restart helps only a server that no client gets through to.
cli=$(command -v redis-cli || command -v valkey-cli) || { echo "the image has neither redis-cli nor valkey-cli"; exit 1; }
answer=$("$cli" -h 127.0.0.1 ping 2>&1)
case $answer in
  "" | *"ould not connect"*) echo "$answer"; exit 1 ;;
esac
exit 0
"#;

/// For pods of versions before the readiness gate, which keep their template until they are replaced: without it none of them would be
/// ready. The rules of the gate are the same (`serving`).
const READY_SCRIPT: &str = r#"# Ready: its data is loaded, as a replica it is linked to its primary, and as a primary it has slots. A new node
# holds nothing: counted as ready, it would allow the eviction of the one that it is yet to copy.
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

const STOP_SCRIPT: &str = r#"# Before the server stops: a primary hands over to a replica, so that its shard goes on without an election.
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

    /// The files below a folder.
    fn list(dir: &std::path::Path, below: &str, names: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{below}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                list(&entry.path(), &format!("{name}/"), names);
            } else {
                names.push(name);
            }
        }
    }

    /// Runs the start script with these files below /data. What the server was started with, and the files afterwards.
    fn start(script: &str, files: &[(&str, &str)]) -> (String, Vec<String>) {
        let (ended, names) = run(script, files, "7.0.15");
        assert!(ended.status.success(), "{ended:?}\n{script}");
        (String::from_utf8_lossy(&ended.stdout).into_owned(), names)
    }

    /// The same with a server of this version, however it ends.
    fn run(
        script: &str,
        files: &[(&str, &str)],
        version: &str,
    ) -> (std::process::Output, Vec<String>) {
        use std::{os::unix::fs::PermissionsExt, process::Command};
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let _one = PROGRAMS.lock();
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("start-{}-{number}", std::process::id()));
        let [data, config, bin] = ["data", "config", "bin"].map(|name| root.join(name));
        for dir in [&data, &config, &bin] {
            std::fs::create_dir_all(dir).unwrap();
        }
        std::fs::write(config.join("redis.conf"), "cluster-node-timeout 500\n").unwrap();
        for (name, text) in files {
            let file = data.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        let server = bin.join("redis-server");
        let text = format!("#!/bin/sh\necho \"v={version}. $*\"\n");
        std::fs::write(&server, text).unwrap();
        std::fs::set_permissions(&server, std::fs::Permissions::from_mode(0o755)).unwrap();
        let script = script
            .replace("/data", data.to_str().unwrap())
            .replace("/config", config.to_str().unwrap());
        let ended = Command::new("/bin/sh")
            .args(["-c", &script])
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .env("POD_IP", "10.0.0.1")
            .env("POD_NAMESPACE", "team")
            .env("POD_NAME", "shop-0-0")
            .env("POD_UID", "uid")
            .output()
            .unwrap();
        let mut names = Vec::new();
        list(&data, "", &mut names);
        names.sort_unstable();
        std::fs::remove_dir_all(&root).unwrap();
        (ended, names)
    }

    const PRIMARY: (&str, &str) = (
        "nodes.conf",
        "ab 10.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-5461\n",
    );
    const REPLICA: (&str, &str) = (
        "nodes.conf",
        "ab 10.0.0.1:6379@16379 myself,slave cd 0 0 1 connected\n",
    );
    const BLANK: (&str, &str) = (
        "nodes.conf",
        "ab 10.0.0.1:6379@16379 myself,master - 0 0 0 connected\n",
    );
    const NEW: (&str, &str) = ("appendonlydir/appendonly.aof.manifest", "file");
    const OLD: (&str, &str) = ("appendonly.aof", "");

    #[test]
    fn a_server_with_its_data_keeps_its_identity() {
        let script = start_script(true, true);
        for files in [
            [PRIMARY, NEW],
            [REPLICA, NEW],
            [PRIMARY, OLD],
            [REPLICA, OLD],
        ] {
            let (started, names) = start(&script, &files);
            assert_eq!(names.len(), 2, "{names:?}");
            assert!(names.contains(&"nodes.conf".to_owned()), "{names:?}");
            assert!(!started.contains("-psync"), "{started}");
            assert!(started.contains("--appendonly yes"), "{started}");
        }
    }

    #[test]
    fn a_server_without_its_data_becomes_a_new_node() {
        let script = start_script(true, true);
        let dump = ("dump.rdb", "REDIS");
        let part = ("appendonlydir/appendonly.aof.1.base.rdb", "REDIS");
        for files in [
            &[PRIMARY][..],
            &[REPLICA],
            &[PRIMARY, dump],
            &[PRIMARY, part],
        ] {
            let (started, names) = start(&script, files);
            assert!(started.contains("-psync -sync"), "{started}");
            assert_eq!(names.len(), files.len(), "{names:?}");
            let aside = names.iter().all(|name| name.starts_with("set-aside-"));
            assert!(aside, "a file was left or lost: {names:?}");
        }
        // Nothing belongs to a node that has no role yet.
        let (_, names) = start(&script, &[BLANK]);
        assert_eq!(names, ["nodes.conf"]);
        assert!(!script.contains("rm "), "{script}");
    }

    /// Every set of files that losses, interruptions and changes of the version can leave, for servers that read either kind of file:
    /// no server starts with a role but without the data that belongs to it, and no file is lost.
    #[test]
    fn no_set_of_files_starts_a_role_without_its_data() {
        let script = start_script(true, true);
        let part = ("appendonlydir/appendonly.aof.1.base.rdb", "REDIS");
        let data = [NEW, part, OLD, ("dump.rdb", "REDIS")];
        for nodes in [None, Some(BLANK), Some(PRIMARY), Some(REPLICA)] {
            for (set, version) in (0..16).flat_map(|set| [(set, "6.2.14"), (set, "7.0.15")]) {
                let chosen = data.iter().enumerate();
                let chosen = chosen.filter(|(bit, _)| set & (1 << bit) != 0);
                let mut files: Vec<_> = chosen.map(|(_, file)| *file).collect();
                files.extend(nodes);
                let (ended, names) = run(&script, &files, version);
                let what = format!("{version} with {files:?}: {names:?}");
                let is = |name: &str| names.iter().any(|one| one == name);
                for (name, _) in &files {
                    let aside = |one: &String| {
                        one.starts_with("set-aside-") && one.ends_with(&format!("/{name}"))
                    };
                    assert!(
                        is(name) || names.iter().any(aside),
                        "{name} is lost: {what}"
                    );
                }
                assert_eq!(names.len(), files.len(), "{what}");
                let newer = files.contains(&NEW) || files.contains(&part);
                let readable = is(OLD.0) || (version == "7.0.15" && is(NEW.0));
                let has_role = is("nodes.conf") && nodes != Some(BLANK);
                if version == "6.2.14" && newer {
                    assert!(!ended.status.success(), "{what}");
                    assert_eq!(names.iter().filter(|one| one.contains('-')).count(), 0);
                    continue;
                }
                assert!(ended.status.success(), "{what}");
                assert!(!has_role || readable, "a role without its data: {what}");
                let started = String::from_utf8_lossy(&ended.stdout);
                assert_eq!(has_role, !started.contains("-psync -sync"), "{what}");
            }
        }
    }

    #[test]
    fn an_older_server_does_not_start_on_newer_files() {
        let script = start_script(true, true);
        let (ended, names) = run(&script, &[PRIMARY, NEW], "6.2.14");
        assert!(!ended.status.success());
        assert_eq!(names.len(), 2, "{names:?}");
        let words = String::from_utf8_lossy(&ended.stderr);
        assert!(words.contains("7.0 or newer"), "{words}");
        let (ended, _) = run(&script, &[PRIMARY, OLD], "6.2.14");
        assert!(ended.status.success(), "{ended:?}");
    }

    #[test]
    fn a_server_announces_the_name_of_its_pod() {
        for (persistent, has_replicas) in [(true, true), (false, true), (false, false)] {
            let script = start_script(persistent, has_replicas);
            let (started, _) = start(&script, &[]);
            let name = format!("shop-0-0.{}.team.svc", headless_service_name("shop"));
            let option = format!("--cluster-announce-hostname {name}");
            assert!(started.contains(&option), "{started}");
            let (older, _) = run(&script, &[], "6.2.14");
            let started = String::from_utf8_lossy(&older.stdout);
            assert!(!started.contains("hostname"), "{started}");
        }
    }

    /// Killed after the first file was moved.
    #[test]
    fn setting_aside_goes_on_after_an_interruption() {
        let moved = (
            "set-aside-1/appendonlydir/appendonly.aof.1.base.rdb",
            "REDIS",
        );
        let (started, names) = start(&start_script(true, true), &[moved, PRIMARY]);
        assert!(started.contains("-psync -sync"), "{started}");
        assert!(
            names.iter().all(|name| name.starts_with("set-aside-")),
            "{names:?}"
        );
    }

    #[test]
    fn a_server_in_memory_starts_with_nothing() {
        let script = start_script(false, false);
        let (started, names) = start(&script, &[PRIMARY, ("dump.rdb", "REDIS")]);
        assert_eq!(names, ["started"]);
        assert!(started.contains("-psync -sync") && started.contains("--appendonly no"));
        assert!(start_script(false, true).contains("sleep") && !script.contains("sleep"));
    }

    /// A program that another thread's child still holds open for writing cannot be run.
    static PROGRAMS: std::sync::Mutex<()> = std::sync::Mutex::new(());

    /// Runs a probe with a client that prints these answers to the commands.
    fn probe(script: &str, answers: &[(&str, &str)]) -> bool {
        use std::{os::unix::fs::PermissionsExt, process::Command};
        let _one = PROGRAMS.lock();
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

    /// They look for these files for as long as they live, every two seconds.
    #[test]
    fn pods_of_earlier_versions_keep_their_probes() {
        let cluster = validate(&example(), None, Timestamp::UNIX_EPOCH).unwrap();
        let files = config_map(&cluster).data.unwrap();
        for name in ["alive.sh", "ready.sh", "stop.sh"] {
            assert!(files.contains_key(name), "{name}");
        }
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
                probe(ALIVE_SCRIPT, &[("ping ", answer)]),
                alive,
                "{answer:?}"
            );
        }
    }

    #[test]
    fn a_server_with_its_data_is_ready() {
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
