use super::*;
use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A program that another thread's child still holds open for writing cannot be run.
pub(crate) static PROGRAMS: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// A folder for one run, and these in it.
pub(crate) fn folders<const COUNT: usize>(names: [&str; COUNT]) -> (PathBuf, [PathBuf; COUNT]) {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let root = std::env::temp_dir().join(format!("script-{}-{number}", std::process::id()));
    let folders = names.map(|name| root.join(name));
    for dir in &folders {
        std::fs::create_dir_all(dir).unwrap();
    }
    (root, folders)
}

/// Puts a program that is this shell script where a run finds it.
pub(crate) fn install(bin: &Path, name: &str, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    let file = bin.join(name);
    std::fs::write(&file, format!("#!/bin/sh\n{script}")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// The shell that runs a script with the programs of this folder.
pub(crate) fn shell(script: &str, bin: &Path) -> Command {
    let mut run = Command::new("/bin/sh");
    let path = format!("{}:/usr/bin:/bin", bin.display());
    run.args(["-c", script]).env("PATH", path);
    run
}

/// Runs a script in a folder of its own, with a client that is this script. How it ended, and the files that it left.
pub(crate) fn run_with_client(script: &str, client: &str) -> (Output, Vec<(String, String)>) {
    let _one = PROGRAMS.lock();
    let (root, [bin, work]) = folders(["bin", "work"]);
    install(&bin, "redis-cli", client);
    let ended = shell(script, &bin).current_dir(&work).output().unwrap();
    let mut names = Vec::new();
    list(&work, "", &mut names);
    let text = |name: String| {
        (
            name.clone(),
            std::fs::read_to_string(work.join(name)).unwrap(),
        )
    };
    let files = names.into_iter().map(text).collect();
    std::fs::remove_dir_all(&root).unwrap();
    (ended, files)
}

/// The files below a folder.
fn list(dir: &Path, below: &str, names: &mut Vec<String>) {
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

/// What servers say of their version.
const REDIS_6: &str = "Redis server v=6.2.14";
const REDIS_7: &str = "Redis server v=7.0.15";

/// The stamp of the cluster whose pods the scripts run in.
const STAMP: &str = "team/shop\n";

/// Runs the start script with these files below /data. What the server was started with, and the files afterwards but for the stamp.
fn start(script: &str, files: &[(&str, &str)]) -> (String, Vec<String>) {
    let (ended, names) = run(script, files, REDIS_7);
    assert!(ended.status.success(), "{ended:?}\n{script}");
    (String::from_utf8_lossy(&ended.stdout).into_owned(), names)
}

/// The same with a server of this version, however it ends. Where it ends well on a volume, that is stamped.
fn run(script: &str, files: &[(&str, &str)], version: &str) -> (Output, Vec<String>) {
    let Ended {
        output,
        mut names,
        stamp,
        last_words,
    } = run_as(script, files, version, &[]);
    if output.status.success() && script.contains("--appendonly yes") {
        assert_eq!(stamp.as_deref(), Some(STAMP), "{script}");
    }
    assert_eq!(output.status.success(), last_words.is_empty(), "{output:?}");
    names.retain(|name| name != "cluster");
    (output, names)
}

/// The end of a start script.
struct Ended {
    output: Output,
    names: Vec<String>,
    stamp: Option<String>,
    /// What the termination log has.
    last_words: String,
}

/// The same, with more variables.
fn run_as(
    script: &str,
    files: &[(&str, &str)],
    version: &str,
    variables: &[(&str, &str)],
) -> Ended {
    let _one = PROGRAMS.lock();
    let (root, [data, config, bin]) = folders(["data", "config", "bin"]);
    std::fs::write(config.join("redis.conf"), "cluster-node-timeout 500\n").unwrap();
    for (name, text) in files {
        let file = data.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    let server = format!("echo \"{version} sha=0 $*\"\n");
    install(&bin, "redis-server", &server);
    let log = root.join("termination-log");
    let script = script
        .replace("/dev/termination-log", log.to_str().unwrap())
        .replace("/data", data.to_str().unwrap())
        .replace("/config", config.to_str().unwrap());
    let output = shell(&script, &bin)
        .env("POD_IP", "10.0.0.1")
        .env("POD_NAMESPACE", "team")
        .env("POD_NAME", "shop-0-0")
        .env("POD_UID", "uid")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let mut names = Vec::new();
    list(&data, "", &mut names);
    names.sort_unstable();
    let stamp = std::fs::read_to_string(data.join("cluster")).ok();
    let last_words = std::fs::read_to_string(&log).unwrap_or_default();
    std::fs::remove_dir_all(&root).unwrap();
    Ended {
        output,
        names,
        stamp,
        last_words,
    }
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
    let script = start_script(true);
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
    let script = start_script(true);
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
    let script = start_script(true);
    let part = ("appendonlydir/appendonly.aof.1.base.rdb", "REDIS");
    let data = [NEW, part, OLD, ("dump.rdb", "REDIS")];
    for nodes in [None, Some(BLANK), Some(PRIMARY), Some(REPLICA)] {
        for (set, version) in (0..16).flat_map(|set| [(set, REDIS_6), (set, REDIS_7)]) {
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
            let readable = is(OLD.0) || (version == REDIS_7 && is(NEW.0));
            let has_role = is("nodes.conf") && nodes != Some(BLANK);
            if version == REDIS_6 && newer {
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
    let script = start_script(true);
    let (ended, names) = run(&script, &[PRIMARY, NEW], REDIS_6);
    assert!(!ended.status.success());
    assert_eq!(names.len(), 2, "{names:?}");
    let words = String::from_utf8_lossy(&ended.stderr);
    assert!(words.contains("7.0 or newer"), "{words}");
    let (ended, _) = run(&script, &[PRIMARY, OLD], REDIS_6);
    assert!(ended.status.success(), "{ended:?}");
}

/// Redis 7 only where it has announced it before: the controller lets it, once no server is left that cannot read it.
#[test]
fn a_server_announces_the_name_of_its_pod() {
    let script = start_script(true);
    let name = crds::pod_hostname("shop", "team", "shop-0-0");
    let option = format!("--cluster-announce-hostname {name}");
    let announces = |version: &str, address: &str| {
        let nodes = format!("id {address} myself,master - 0 0 1 connected 0-5");
        let data = if version.contains("v=6.") { OLD } else { NEW };
        let files = [("nodes.conf", nodes.as_str()), data];
        let (started, _) = run(&script, &files, version);
        assert!(started.status.success(), "{started:?}");
        String::from_utf8_lossy(&started.stdout).contains(&option)
    };
    for (address, has_name) in [
        ("10.0.0.1:6379@16379", false),
        ("10.0.0.1:6379@16379,,tls-port=0,shard-id=53d0", false),
        ("10.0.0.1:6379@16379,shop-0-0.old.svc", true),
        (
            "10.0.0.1:6379@16379,shop-0-0.old.svc,tls-port=0,shard-id=53d0",
            true,
        ),
    ] {
        for seven in ["Redis server v=7.0.15", "Redis server v=7.4.1"] {
            assert_eq!(announces(seven, address), has_name, "{seven} {address}");
        }
        for gated in [
            "Redis server v=8.2.3",
            "Redis server v=10.0.0",
            "Valkey server v=7.2.6",
            "Valkey server v=9.1.2",
        ] {
            assert!(announces(gated, address), "{gated} {address}");
        }
        assert!(!announces("Redis server v=6.2.14", address));
    }
}

/// The controller gave it the name of its load balancer.
#[test]
fn a_server_keeps_the_name_of_its_load_balancer() {
    let script = start_script(true);
    for (version, address) in [
        ("Redis server v=7.0.15", "10.0.0.1:6379@16379,203.0.113.7"),
        (
            "Valkey server v=9.1.2",
            "[fd00::1]:6379@16379,lb.example,tls-port=0,shard-id=53d0",
        ),
    ] {
        let nodes = format!(
            "a1 10.0.0.2:6379@16379,203.0.113.8 slave a2 0 0 1 connected\n\
             a2 {address} myself,master - 0 0 1 connected 0-5\n"
        );
        let (started, _) = run(&script, &[("nodes.conf", nodes.as_str()), NEW], version);
        let started = String::from_utf8_lossy(&started.stdout);
        let name = if version.contains("Valkey") {
            "lb.example"
        } else {
            "203.0.113.7"
        };
        let option = format!("--cluster-announce-hostname {name}");
        assert!(started.contains(&option), "{started}");
        // Whether clients get it is for the controller to say: the load balancer may be gone.
        assert!(!started.contains("endpoint-type"), "{started}");
    }
}

/// Servers before 7.0 have no setting that keeps replicas with their shard.
#[test]
fn no_replica_goes_to_another_shard() {
    let script = start_script(true);
    for (version, word) in [
        (REDIS_6, "--cluster-migration-barrier 1000000"),
        (REDIS_7, "--cluster-allow-replica-migration no"),
    ] {
        let (ended, _) = run(&script, &[PRIMARY, OLD], version);
        let started = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(started.contains(word), "{started}");
        assert_eq!(started.matches("migration").count(), 1, "{started}");
    }
}

/// Killed after the first file was moved.
#[test]
fn setting_aside_goes_on_after_an_interruption() {
    let moved = (
        "set-aside-1/appendonlydir/appendonly.aof.1.base.rdb",
        "REDIS",
    );
    let (started, names) = start(&start_script(true), &[moved, PRIMARY]);
    assert!(started.contains("-psync -sync"), "{started}");
    assert!(
        names.iter().all(|name| name.starts_with("set-aside-")),
        "{names:?}"
    );
}

#[test]
fn a_server_in_memory_starts_with_nothing() {
    let (started, names) = start(&start_script(false), &[PRIMARY, ("dump.rdb", "REDIS")]);
    assert!(names.is_empty(), "{names:?}");
    assert!(started.contains("-psync -sync") && started.contains("--appendonly no"));
}

/// The replicas may have come after the pod: what its node knew last decides, and nothing else is known to the script.
#[test]
fn a_server_in_memory_waits_for_its_replica() {
    let of = |line: &str| format!("{}{line}\n", PRIMARY.1);
    let replica = of("cd slave:6379@16379 slave ab 0 0 1 connected");
    let failed = of("cd 10.0.0.2:6379@16379,slave slave,fail ab 0 0 1 disconnected");
    let alone = of("cd slave:6379@16379 master - 0 0 2 connected 5462-16383");
    for (nodes, waits) in [
        (replica.as_str(), true),
        (&failed, true),
        (REPLICA.1, true),
        (PRIMARY.1, false),
        (&alone, false),
        ("", false),
    ] {
        let script = start_script(false).replace("sleep", "echo slept");
        let (started, names) = start(&script, &[("nodes.conf", nodes)]);
        assert_eq!(started.contains("slept"), waits, "{nodes}");
        assert!(names.is_empty(), "{names:?}");
    }
}

/// With every set of files: a volume of another cluster is left as it is, and one without a stamp gets it.
#[test]
fn a_server_refuses_the_volume_of_another_cluster() {
    let script = start_script(true);
    let owned = |stamp| ("cluster", stamp);
    for files in [&[][..], &[PRIMARY, NEW], &[PRIMARY], &[BLANK], &[OLD]] {
        for (stamp, adopts, starts) in [
            ("", "", true),
            (STAMP, "", true),
            (STAMP, "team/other", true),
            ("team/other\n", "", false),
            ("prod/shop\n", "team/shop", false),
            ("team/shop-2\n", "", false),
            ("team/other\n", "team/another", false),
            ("team/other\n", "team/*", false),
            ("team/other\n", "team/other", true),
        ] {
            let mut files = files.to_vec();
            files.push(owned(stamp));
            let variables = [(crds::ENV_ADOPT_VOLUMES, adopts)];
            let ended = run_as(&script, &files, REDIS_7, &variables);
            let what = format!("{stamp:?} with {adopts:?}: {:?}", ended.output);
            assert_eq!(ended.output.status.success(), starts, "{what}");
            let expected = if starts { STAMP } else { stamp };
            assert_eq!(ended.stamp.as_deref(), Some(expected), "{what}");
            if starts {
                assert!(ended.last_words.is_empty(), "{}", ended.last_words);
                continue;
            }
            let cure = format!(
                "kubectl annotate -n team rediscluster shop {}={}",
                crds::ANNOTATION_ADOPT_VOLUMES,
                stamp.trim()
            );
            // By it the words count as ours, not as the end of a server's log (`pods`).
            assert_eq!(ended.output.status.code(), Some(78), "{what}");
            assert!(ended.last_words.contains(&cure), "{}", ended.last_words);
            let printed = String::from_utf8_lossy(&ended.output.stderr);
            assert!(printed.contains(&cure), "{printed}");
            let aside = ended.names.iter().any(|name| name.contains("set-aside"));
            assert!(!aside && ended.names.len() == files.len(), "{what}");
        }
    }
}

/// A full disk, or one that cannot be written: whether the server starts is its own decision.
#[test]
fn a_stamp_that_cannot_be_written_stops_no_server() {
    let script = start_script(true).replace("echo \"$cluster\" >", "false >");
    let ended = run_as(&script, &[PRIMARY, NEW], REDIS_7, &[]);
    assert!(ended.output.status.success(), "{:?}", ended.output);
    assert_eq!(ended.stamp, None);
}

#[test]
fn a_server_in_memory_has_no_stamp() {
    let ended = run_as(&start_script(false), &[], REDIS_7, &[]);
    assert_eq!(ended.stamp, None);
}
