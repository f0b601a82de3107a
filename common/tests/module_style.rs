//! A module with a folder has its text in the folder's `mod.rs`, never beside the folder.

use std::{fs, io, path::Path};

fn check(folder: &Path, checked: &mut usize, wrong: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            *checked += 1;
            let beside = path.with_extension("rs");
            if beside.exists() {
                wrong.push(format!(
                    "{} -> {}",
                    beside.display(),
                    path.join("mod.rs").display()
                ));
            }
            check(&path, checked, wrong)?;
        }
    }
    Ok(())
}

#[test]
fn modules_with_a_folder_are_in_it() -> io::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (mut checked, mut wrong) = (0, Vec::new());
    for member in [
        "crds",
        "common",
        "cluster-controller",
        "backup-controller",
        "restore-controller",
        "tests",
    ] {
        check(
            &workspace.join(member).join("src"),
            &mut checked,
            &mut wrong,
        )?;
    }
    assert!(checked > 10, "only {checked} folders found");
    assert!(wrong.is_empty(), "move these files: {wrong:#?}");
    Ok(())
}
