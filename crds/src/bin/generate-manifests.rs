//! Writes every CustomResourceDefinition as YAML into the folder given as argument, `crds` by default.

use std::{error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "crds".into()));
    for definition in crds::definitions() {
        let (file, text) = crds::manifest(&definition)?;
        fs::write(folder.join(file), text)?;
    }
    Ok(())
}
