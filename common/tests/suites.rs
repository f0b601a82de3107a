//! tests/README.md says which suites to run after a change: those it names exist, and it names every one.

use std::{collections::BTreeSet, error::Error, fs, path::Path};

fn workspace(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The rows of the table under this heading of two columns.
fn rows<'a>(readme: &'a str, heading: &str) -> Vec<(&'a str, &'a str)> {
    let lines = readme.lines().skip_while(|line| *line != heading);
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    rows.filter_map(|row| row.trim_matches(['|', ' ']).split_once(" | "))
        .collect()
}

/// What is in backticks.
fn named(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Whether the name is that of a suite, or a beginning with `*`.
fn matches(pattern: &str, suite: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => suite.starts_with(beginning),
        None => suite == pattern,
    }
}

#[test]
fn the_readme_names_every_suite_and_no_other() -> Result<(), Box<dyn Error>> {
    let mut suites = BTreeSet::new();
    for entry in fs::read_dir(workspace("tests/tests"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().unwrap_or_default();
            suites.insert(name.to_string_lossy().into_owned());
        }
    }
    let readme = fs::read_to_string(workspace("tests/README.md"))?;
    let mut wrong = Vec::new();
    let changes = rows(&readme, "| changed folder | suites |");
    assert!(changes.len() > 10, "{changes:?}");
    let mut to_run = BTreeSet::new();
    for (folders, run) in changes {
        for folder in named(folders) {
            if !workspace(folder).exists() {
                wrong.push(format!("there is no {folder}"));
            }
        }
        // Paths, targets and programs have other characters.
        let of_suite = |name: &str| {
            name.chars()
                .all(|c| c.is_ascii_lowercase() || "_*0123456789".contains(c))
        };
        for pattern in named(run).filter(|name| name.contains('_') && of_suite(name)) {
            let mut found = suites
                .iter()
                .filter(|suite| matches(pattern, suite))
                .peekable();
            if found.peek().is_none() {
                wrong.push(format!("there is no suite {pattern}"));
            }
            // `e2e_*` says to run everything, which names none.
            if pattern != "e2e_*" {
                to_run.extend(found.cloned());
            }
        }
    }
    let left = suites.difference(&to_run);
    wrong.extend(left.map(|suite| format!("no change leads to {suite}")));
    assert!(wrong.is_empty(), "tests/README.md: {}", wrong.join("; "));
    Ok(())
}
