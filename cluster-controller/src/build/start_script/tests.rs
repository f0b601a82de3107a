use super::*;

/// A program that another thread's child still holds open for writing cannot be run.
pub(crate) static PROGRAMS: std::sync::Mutex<()> = std::sync::Mutex::new(());

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
fn run(script: &str, files: &[(&str, &str)], version: &str) -> (std::process::Output, Vec<String>) {
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
