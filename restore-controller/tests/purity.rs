//! Data and decisions do no input or output: the modules named here name neither a client nor the runtime, and are told the time.

use std::{fs, io, path::Path};

const PURE: [&str; 6] = [
    "compatibility.rs",
    "plan",
    "report.rs",
    "share.rs",
    "status.rs",
    "verify.rs",
];

const FORBIDDEN: [&str; 8] = [
    "kube::Client",
    "NodeClient",
    "ObjectStore",
    "tokio",
    "async ",
    "Api<",
    "Timestamp::now",
    "Instant::now",
];

fn check(path: &Path, found: &mut Vec<String>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            check(&entry?.path(), found)?;
        }
        return Ok(());
    }
    let text = fs::read_to_string(path)?;
    let words = FORBIDDEN.iter().filter(|word| text.contains(**word));
    found.extend(words.map(|word| format!("{}: {word}", path.display())));
    Ok(())
}

#[test]
fn decisions_do_no_input_or_output() -> io::Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for module in PURE {
        let path = source.join(module);
        assert!(
            path.exists(),
            "{} is gone: correct this list",
            path.display()
        );
        check(&path, &mut found)?;
    }
    assert!(found.is_empty(), "{found:#?}");
    Ok(())
}
