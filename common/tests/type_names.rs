//! A public type of `crds` or `common` shares its name with no other one: every controller imports both.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

const VISIBLE: [&str; 2] = ["crds/src", "common/src"];

/// The name of the public type that a line declares.
fn declared(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("pub ")?;
    let kinds = ["struct ", "enum ", "trait ", "type "];
    let rest = kinds.iter().find_map(|kind| rest.strip_prefix(kind))?;
    rest.split(|c: char| !c.is_alphanumeric()).next()
}

fn collect(folder: &Path, found: &mut BTreeMap<String, Vec<PathBuf>>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            for name in fs::read_to_string(&path)?.lines().filter_map(declared) {
                found.entry(name.to_owned()).or_default().push(path.clone());
            }
        }
    }
    Ok(())
}

#[test]
fn names_of_public_types_are_unique() -> io::Result<()> {
    assert_eq!(declared("    pub enum SourceRole {"), Some("SourceRole"));
    assert_eq!(declared("pub(super) struct Entry;"), None);
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = BTreeMap::new();
    for folder in VISIBLE {
        collect(&workspace.join(folder), &mut found)?;
    }
    assert!(found.len() > 150, "only {} types were found", found.len());
    found.retain(|_, places| places.len() > 1);
    assert!(found.is_empty(), "rename one of each: {found:#?}");
    Ok(())
}
