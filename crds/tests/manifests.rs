//! The committed YAML is what the types say.

use std::{fs, path::Path};

#[test]
fn committed_manifests_are_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    for definition in crds::definitions() {
        let (file, wanted) = crds::manifest(&definition).unwrap();
        let found = fs::read_to_string(folder.join(&file)).unwrap_or_default();
        assert!(
            found == wanted,
            "crds/{file} is not what crds/src says: run `make manifests`"
        );
    }
}
