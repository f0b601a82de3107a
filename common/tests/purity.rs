//! Data and decisions do no input or output: the modules named here name neither a client nor the runtime, and get the time as an argument.

use std::{fs, io, path::Path};

const PURE: [(&str, &[&str]); 4] = [
    (
        "common",
        &[
            "claims/attempts.rs",
            "claims/distribution.rs",
            "claims/unit.rs",
            "cluster/seeds.rs",
            "cluster/slot_map.rs",
            "hexadecimal.rs",
            "kubernetes/pods.rs",
            "sentence.rs",
        ],
    ),
    (
        "cluster-controller",
        &[
            "build",
            "certificates/material.rs",
            "certificates/plan.rs",
            "certificates/report.rs",
            "certificates/state.rs",
            "checkpoint.rs",
            "redis/assess.rs",
            "redis/balance.rs",
            "redis/election.rs",
            "redis/member.rs",
            "redis/plan",
            "redis/reshard/moves.rs",
            "redis/reshard/open_slots.rs",
            "redis/reshard/plan.rs",
            "redis/reshard/legacy/calls.rs",
            "redis/reshard/legacy/groups.rs",
            "redis/reshard/legacy/reply.rs",
            "redis/survey.rs",
            "redis/users.rs",
            "redis/identity.rs",
            "status",
            "validate",
            "volumes",
            "events.rs",
            "decision.rs",
            "fencing.rs",
            "leftovers.rs",
            "operation.rs",
            "pods",
            "requeue.rs",
            "roles.rs",
            "rollout",
            "serving",
            "sets",
            "settings",
            "support.rs",
            "upgrade.rs",
            "users/own.rs",
            "users/plan",
            "users/report.rs",
            "users/state.rs",
            "users/wanted.rs",
        ],
    ),
    (
        "backup-controller",
        &[
            "cron.rs",
            "plan",
            "schedule",
            "select.rs",
            "shards.rs",
            "status.rs",
            "units.rs",
        ],
    ),
    (
        "restore-controller",
        &[
            "compatibility.rs",
            "plan",
            "status.rs",
            "units.rs",
            "verify.rs",
        ],
    ),
];

const FORBIDDEN: [&str; 7] = [
    "ObjectStore",
    "tokio",
    "async ",
    ".await",
    "Api<",
    "Timestamp::now",
    "Instant::now",
];

/// Whether a type is named that talks to a server: `Client`, `NodeClient`, … What clients show or may do is data.
fn names_a_client(text: &str) -> bool {
    let mut words = text.split(|letter: char| !letter.is_alphanumeric());
    words.any(|word| word.ends_with("Client"))
}

fn check(path: &Path, found: &mut Vec<String>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            check(&entry?.path(), found)?;
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        let text = fs::read_to_string(path)?;
        let words = FORBIDDEN.iter().filter(|word| text.contains(**word));
        found.extend(words.map(|word| format!("{}: {word}", path.display())));
        if names_a_client(&text) {
            found.push(format!("{}: a client", path.display()));
        }
    }
    Ok(())
}

#[test]
fn decisions_do_no_input_or_output() -> io::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for (controller, modules) in PURE {
        for module in modules {
            let path = workspace.join(controller).join("src").join(module);
            assert!(
                path.exists(),
                "{} is gone: correct this list",
                path.display()
            );
            check(&path, &mut found)?;
        }
    }
    assert!(found.is_empty(), "{found:#?}");
    Ok(())
}

/// What moves data works without Kubernetes.
const DATA_PATH: [&str; 6] = [
    "backup-controller/src/capture",
    "cluster-controller/src/redis/reshard",
    "common/src/cluster",
    "common/src/rdb",
    "restore-controller/src/replay",
    "restore-controller/src/target.rs",
];

fn imports_kubernetes(path: &Path, found: &mut Vec<String>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            imports_kubernetes(&entry?.path(), found)?;
        }
    } else if fs::read_to_string(path)?.contains("kubernetes::") {
        found.push(path.display().to_string());
    }
    Ok(())
}

#[test]
fn the_data_path_imports_nothing_of_kubernetes() -> io::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for module in DATA_PATH {
        imports_kubernetes(&workspace.join(module), &mut found)?;
    }
    assert!(found.is_empty(), "{found:#?}");
    Ok(())
}
