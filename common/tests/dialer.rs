//! Connections to nodes are opened in one place, where they log in and prove which node answers.

use std::{fs, io, path::Path};

const CRATES: [&str; 4] = [
    "common",
    "cluster-controller",
    "backup-controller",
    "restore-controller",
];
const DIALER: &str = "common/src/cluster/dial.rs";
/// Resolves names of S3 endpoints, to check the addresses before they are dialled: no way to a node.
const S3_RESOLVER: &str = "common/src/storage/connector.rs: lookup_host";
/// Ways to open a connection past the dialer.
const FORBIDDEN: [&str; 5] = [
    "TcpStream::connect",
    "TcpSocket",
    "Client::open(",
    "get_multiplexed",
    "lookup_host",
];

fn search(path: &Path, found: &mut Vec<String>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            search(&entry?.path(), found)?;
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        let text = fs::read_to_string(path)?;
        // Unit tests stand at the end of a file and may play a server's client.
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        let words = FORBIDDEN.iter().filter(|word| product.contains(**word));
        found.extend(words.map(|word| format!("{}: {word}", path.display())));
    }
    Ok(())
}

#[test]
fn connections_are_opened_by_the_dialer_only() -> io::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for member in CRATES {
        search(&workspace.join(member).join("src"), &mut found)?;
    }
    found.retain(|line| !line.ends_with(S3_RESOLVER));
    let (dialer, elsewhere): (Vec<_>, Vec<_>) =
        found.iter().partition(|line| line.contains(DIALER));
    assert_eq!(dialer.len(), 1, "{DIALER} connects once: {dialer:?}");
    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
    Ok(())
}
