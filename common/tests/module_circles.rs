//! No circle of files: what a file imports never leads back to it, so that each can be read and changed after those it stands on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

/// Files of a crate by the path of their module, and the modules that each imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

fn read(folder: &Path, module: &str, texts: &mut BTreeMap<String, String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let inside = if module.is_empty() || name == "mod" {
            format!("{module}{}", if name == "mod" { "" } else { &name })
        } else {
            format!("{module}::{name}")
        };
        if path.is_dir() {
            read(&path, &inside, texts)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            texts.insert(inside, fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// The paths of every `use` of the product's code.
fn used(text: &str) -> Vec<String> {
    let product = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = product
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default().trim());
    let code = lines.collect::<Vec<_>>().join(" ");
    let mut paths = Vec::new();
    for statement in code.split(';') {
        for start in ["crate::", "super::", "self::"] {
            if let Some((_, tree)) = statement.split_once(&format!("use {start}")) {
                expand(&format!("{start}{tree}"), &mut paths);
            }
        }
    }
    paths
}

/// `a::{b, c::{d, e}}` becomes `a::b`, `a::c::d` and `a::c::e`.
fn expand(tree: &str, paths: &mut Vec<String>) {
    let Some((prefix, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default().trim();
        return paths.push(path.to_owned());
    };
    let (mut depth, mut branch) = (1, String::new());
    for letter in rest.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && letter == ',') {
            if !branch.trim().is_empty() {
                expand(&format!("{prefix}{}", branch.trim()), paths);
            }
            branch.clear();
        } else {
            branch.push(letter);
        }
        if depth == 0 {
            return;
        }
    }
}

/// The module of the crate that a path leads into.
fn target(module: &str, path: &str, known: &BTreeMap<String, String>) -> Option<String> {
    let mut segments: Vec<&str> = path.split("::").collect();
    let mut from: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
    while let Some(first) = segments.first() {
        match *first {
            "crate" => from.clear(),
            "super" => drop(from.pop()),
            "self" => {}
            _ => break,
        }
        segments.remove(0);
    }
    from.extend(segments);
    // From the item on upwards.
    while !from.is_empty() {
        let name = from.join("::");
        if known.contains_key(&name) {
            return Some(name);
        }
        from.pop();
    }
    None
}

fn imports(source: &Path) -> io::Result<Imports> {
    let mut texts = BTreeMap::new();
    read(source, "", &mut texts)?;
    let imports = texts.iter().map(|(module, text)| {
        let paths = used(text);
        let targets = paths.iter().filter_map(|path| target(module, path, &texts));
        (
            module.clone(),
            targets.filter(|target| target != module).collect(),
        )
    });
    Ok(imports.collect())
}

/// Everything that a module imports, and what that imports.
fn reached(from: &str, imports: &Imports) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from.to_owned()];
    while let Some(module) = open.pop() {
        for next in imports.get(&module).into_iter().flatten() {
            if reached.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    reached
}

#[test]
fn files_import_in_no_circle() -> io::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (mut circles, mut seen) = (Vec::new(), 0);
    for member in [
        "crds",
        "common",
        "cluster-controller",
        "backup-controller",
        "restore-controller",
        "tests",
    ] {
        let imports = imports(&workspace.join(member).join("src"))?;
        seen += imports.values().map(BTreeSet::len).sum::<usize>();
        let back = |module: &&String| reached(module, &imports).contains(*module);
        let circle = imports.keys().filter(back);
        circles.extend(circle.map(|module| format!("{member}: {module}")));
    }
    assert!(seen > 300, "only {seen} imports found");
    assert!(circles.is_empty(), "files in circles: {circles:#?}");
    Ok(())
}

#[test]
fn trees_of_imports_are_read() {
    let text = "pub use super::a::B;\nuse crate::{\n    c::{D, e::F as G}, // not h\n    i,\n};\n#[cfg(test)]\nuse crate::j;";
    let mut paths = used(text);
    paths.sort_unstable();
    assert_eq!(
        paths,
        ["crate::c::D", "crate::c::e::F", "crate::i", "super::a::B"]
    );
}
