//! Every name of a label, annotation or finalizer is written once, in `src/names.rs`: ours, and those of Kubernetes that are used.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// Whether a quoted text is the name of a label, an annotation or a finalizer.
fn is_name(quoted: &str) -> bool {
    let Some((prefix, name)) = quoted.split_once('/') else {
        return false;
    };
    let ours = prefix == crds::GROUP && name != crds::VERSION;
    let is_domain = |text: &str| {
        let mut letters = text.chars();
        letters.all(|letter| letter.is_ascii_alphanumeric() || ".-".contains(letter))
    };
    ours || (is_domain(prefix) && prefix.ends_with("kubernetes.io"))
}

#[test]
fn names_with_a_prefix_are_constants() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for member in [
        "crds",
        "common",
        "cluster-controller",
        "backup-controller",
        "restore-controller",
    ] {
        sources(&workspace.join(member).join("src"), &mut files).unwrap();
    }
    assert!(files.len() > 100, "only {} files found", files.len());
    let mut wrong = Vec::new();
    for file in files
        .iter()
        .filter(|file| !file.ends_with("crds/src/names.rs"))
    {
        for (number, line) in fs::read_to_string(file).unwrap().lines().enumerate() {
            if line.split(['"', '\'']).any(is_name) {
                wrong.push(format!("{}:{}: {line}", file.display(), number + 1));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "move these names to crds/src/names.rs:\n{}",
        wrong.join("\n")
    );
}
