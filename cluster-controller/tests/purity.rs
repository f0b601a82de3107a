//! Data and decisions do no input or output: the modules named here name neither a client nor the runtime.

use std::{fs, io, path::Path};

const PURE: [&str; 11] = [
    "build",
    "redis/assess.rs",
    "redis/member.rs",
    "redis/plan",
    "redis/survey.rs",
    "status.rs",
    "status",
    "validate.rs",
    "notices.rs",
    "pace.rs",
    "pods.rs",
];

const FORBIDDEN: [&str; 6] = [
    "kube::Client",
    "NodeClient",
    "tokio",
    "async fn",
    "Api<",
    "Timestamp::now",
];

fn check(path: &Path, found: &mut Vec<String>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            check(&entry?.path(), found)?;
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        let text = fs::read_to_string(path)?;
        let words = FORBIDDEN.iter().filter(|word| text.contains(**word));
        found.extend(words.map(|word| format!("{}: {word}", path.display())));
    }
    Ok(())
}

#[test]
fn decisions_do_no_input_or_output() -> io::Result<()> {
    let mut found = Vec::new();
    for module in PURE {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("src")
            .join(module);
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
