//! Every name under the API group is written once, in `src/names.rs`.

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

#[test]
fn names_of_the_group_are_constants() {
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
    let literal = format!("\"{}/", crds::GROUP);
    let version = format!("{literal}{}\"", crds::VERSION);
    let mut wrong = Vec::new();
    for file in files
        .iter()
        .filter(|file| !file.ends_with("crds/src/names.rs"))
    {
        for (number, line) in fs::read_to_string(file).unwrap().lines().enumerate() {
            if line.contains(&literal) && !line.contains(&version) {
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
