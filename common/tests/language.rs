//! Every tracked text file keeps to the words of this repository, stays short enough to read, and leaves no open ends.
//!
//! Words are compared inside identifiers and file names too: `Silences`, `silence_since` and `silences.rs` all hold "silence".

use std::{
    collections::BTreeSet,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What is not written, in all its forms, and what is written instead. Several words are a phrase, also across lines.
const WORDS: &[(&[&str], &str)] = &[
    (&["nobody"], "no client, no process, no owner: name it"),
    (&["somebody"], "a user, another process: name it"),
    (&["whoever"], "the caller, the reader: name it"),
    (&["anew"], "again, from scratch"),
    (&["mend", "mends", "mended", "mending"], "repair"),
    (&["bury", "buries", "buried", "burying"], "delete, remove"),
    (&["told"], "given, reported, acknowledged"),
    (&["by the word of"], "according to"),
    (&["in vain"], "without success"),
    (
        &["look after", "looks after", "looked after", "looking after"],
        "manage",
    ),
    (&["in good order"], "gracefully"),
    (&["let go", "lets go", "letting go"], "release"),
    (&["stranger", "strangers"], "foreign node"),
    (
        &["ghost", "ghosts"],
        "missing node, known by id, at no address",
    ),
    (&["lane", "lanes"], "node connection"),
    (&["chunk", "chunks"], "command batch, part, piece"),
    (&["ledger", "ledgers"], "progress tracker"),
    (&["cutter", "cutters"], "record splitter"),
    (
        &["silence", "silences"],
        "unresponsive since, unresponsive tracker",
    ),
    (&["notices"], "events"),
    (&["verdict", "verdicts"], "reply action, outcome"),
    (&["travelling"], "in flight"),
    (&["calm"], "restore node timeout"),
    (&["hurry"], "formation node timeout"),
    (&["bounce", "bounces", "bounced"], "requeue, redirect"),
    (&["vacate", "vacates", "vacated", "vacating"], "release"),
    (&["give back", "gives back"], "release"),
    (&["news"], "report, acknowledgement"),
    (&["wake", "wakes", "woken", "waking"], "enqueue, trigger"),
    (&["trouble", "troubles"], "failure, condition"),
    (&["findings"], "conditions"),
    (&["pace"], "requeue policy"),
    (&["a pass", "one pass", "next pass"], "reconcile"),
    (&["heal", "heals", "healed", "healing"], "repair"),
    (&["anybody", "everybody"], "a node, every replica: name it"),
    (&["malformed sum"], "malformed checksum"),
    (&["at rest"], "idle"),
];

/// Names of types and variants that are riddles although their words are not.
const NAMES: &[(&str, &str)] = &[
    ("GoOn", "Continue"),
    ("Sight", "name the state"),
    ("Standing", "name the state"),
];

/// Legitimate uses: where (a path's beginning), the text, and why.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("", "as_chunks", "a name of std"),
    ("", "chunks_exact", "a name of std"),
    ("", "first_chunk", "a name of std"),
    ("", "last_chunk", "a name of std"),
    ("", "chunk_by", "a name of std"),
    ("", ".chunks(", "a name of std"),
    ("", ".chunks_mut(", "a name of std"),
    ("deploy/local/", "heal", "the command that undoes `cut`"),
    ("tests/", "\"heal\"", "the command that undoes `cut`"),
    ("tests/", "`heal`", "the command that undoes `cut`"),
];

/// Test code beside the product: it may be longer than a file of the product.
const TEST_FILES: &[&str] = &["tests.rs"];

/// Written by programs, or by others.
const GENERATED: &[&str] = &["Cargo.lock", "go.sum", "go.mod", "LICENSE", "golden.json"];

const LONGEST_FILE: usize = 600;

/// What marks work left undone.
const OPEN_ENDS: &[&str] = &["TODO", "FIXME"];

/// This file, which has to name the words.
const SELF: &str = "common/tests/language.rs";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Paths and contents of the tracked text files that people write.
fn files() -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(workspace())
        .output()?;
    assert!(
        listed.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let mut files = Vec::new();
    for path in String::from_utf8(listed.stdout)?.split_terminator('\0') {
        let name = path.rsplit('/').next().unwrap_or(path);
        let generated = GENERATED.contains(&name) || path.contains("proptest-regressions");
        // A file that was deleted but not yet committed is tracked, and cannot be read.
        let text = fs::read(workspace().join(path)).ok();
        let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
        if let (false, false, Some(text)) = (generated, path == SELF, text) {
            files.push((path.to_owned(), text));
        }
    }
    assert!(files.len() > 100, "only {} tracked files", files.len());
    Ok(files)
}

/// The words of a line: parts of identifiers between underscores and humps, in lower case. What stands between two words but
/// spaces and underscores is an empty word, which ends phrases.
fn words(line: &str) -> Vec<String> {
    let line = line.trim_start_matches(|c: char| c.is_whitespace() || "/!#*".contains(c));
    let mut words = Vec::new();
    let mut word = String::new();
    let mut characters = line.chars().peekable();
    let mut previous = ' ';
    while let Some(character) = characters.next() {
        let next_is_lower = characters.peek().is_some_and(|next| next.is_lowercase());
        let hump = character.is_uppercase() && (previous.is_lowercase() || next_is_lower);
        if (hump || !character.is_alphabetic()) && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if character.is_alphabetic() {
            word.extend(character.to_lowercase());
        } else if !character.is_whitespace() && character != '_' {
            words.push(String::new());
        }
        previous = character;
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// The words of a file with their lines; those of its path are at line 0.
fn words_of(path: &str, text: &str) -> Vec<(usize, String)> {
    let allowed: Vec<&str> = ALLOWED
        .iter()
        .filter(|(place, ..)| path.starts_with(place))
        .map(|(_, text, _)| *text)
        .collect();
    std::iter::once(path)
        .chain(text.lines())
        .enumerate()
        .flat_map(|(number, line)| {
            let line = allowed
                .iter()
                .fold(line.to_owned(), |line, text| line.replace(text, " "));
            words(&line).into_iter().map(move |word| (number, word))
        })
        .collect()
}

/// Every forbidden word of a file, as `path:line: word: say …`.
fn forbidden_words(path: &str, text: &str) -> Vec<String> {
    let phrases: Vec<(&str, Vec<&str>, &str)> = WORDS
        .iter()
        .flat_map(|(forms, instead)| {
            let split = |form: &&'static str| (*form, form.split(' ').collect(), *instead);
            forms.iter().map(split)
        })
        .collect();
    let words = words_of(path, text);
    let mut found = BTreeSet::new();
    for (at, (line, first)) in words.iter().enumerate() {
        for (form, phrase, instead) in &phrases {
            if phrase.first() == Some(&first.as_str()) {
                let rest = words.iter().skip(at).map(|(_, word)| word.as_str());
                if rest.take(phrase.len()).eq(phrase.iter().copied()) {
                    found.insert((*line, format!("{form}: say {instead}")));
                }
            }
        }
    }
    for (name, instead) in NAMES {
        for (number, line) in text.lines().enumerate() {
            let mut identifiers = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if identifiers.any(|identifier| identifier == *name) {
                found.insert((number + 1, format!("{name}: say {instead}")));
            }
        }
    }
    let lines = found.into_iter();
    lines
        .map(|(line, what)| format!("{path}:{line}: {what}"))
        .collect()
}

fn is_rust(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|kind| kind == "rs")
}

fn is_test(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.starts_with("tests/") || path.contains("/tests/") || {
        name.ends_with("_tests.rs") || TEST_FILES.contains(&name)
    }
}

fn report(found: &[String]) {
    assert!(
        found.is_empty(),
        "{} places:\n{}",
        found.len(),
        found.join("\n")
    );
}

#[test]
fn files_keep_to_the_words_of_the_repository() -> Result<(), Box<dyn Error>> {
    let found: Vec<String> = files()?
        .iter()
        .flat_map(|(path, text)| forbidden_words(path, text))
        .collect();
    report(&found);
    Ok(())
}

#[test]
fn no_file_outside_tests_is_over_600_lines() -> Result<(), Box<dyn Error>> {
    let found: Vec<String> = files()?
        .iter()
        // The CustomResourceDefinitions are written by a program.
        .filter(|(path, _)| !(is_test(path) || path.starts_with("crds/") && path.ends_with("yaml")))
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LONGEST_FILE)
        .map(|(path, lines)| format!("{path}: {lines} lines"))
        .collect();
    report(&found);
    Ok(())
}

#[test]
fn no_work_is_left_open() -> Result<(), Box<dyn Error>> {
    let mut found = Vec::new();
    for (path, text) in files()? {
        for (number, line) in text.lines().enumerate() {
            if OPEN_ENDS.iter().any(|mark| line.contains(mark)) {
                found.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    report(&found);
    Ok(())
}

/// What a renaming by script leaves behind: a comment that runs into the next one, or an identifier where a word should be.
fn broken_comment(line: &str) -> bool {
    let line = line.trim_start();
    let Some(text) = line.strip_prefix("//") else {
        return false;
    };
    let text = text.trim_start_matches(['/', '!']);
    // Every second piece is in backticks, which names code.
    let prose = text.split('`').step_by(2);
    let is_identifier = |word: &str| {
        let mut parts = word.split('_');
        word.contains('_')
            && parts
                .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase()))
    };
    prose.into_iter().any(|prose| {
        let mut words = prose.split(|c: char| !c.is_alphanumeric() && c != '_');
        prose.contains("///") || words.any(is_identifier)
    })
}

#[test]
fn comments_are_unbroken_prose() -> Result<(), Box<dyn Error>> {
    assert!(broken_comment(
        "    /// Settings th    /// controller writes itself."
    ));
    assert!(broken_comment("// A kubernetes_node was away."));
    assert!(!broken_comment(
        "// A `kubernetes_node` at https://example.com/a."
    ));
    let mut found = Vec::new();
    for (path, text) in files()? {
        for (number, line) in text.lines().enumerate() {
            if is_rust(&path) && broken_comment(line) {
                found.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    report(&found);
    Ok(())
}

/// Comments that only repeat the name below them, in files that other changes are about to rewrite.
const REPETITIONS: &[&str] = &[
    "cluster-controller/src/redis/execute.rs",
    "cluster-controller/src/redis/member.rs",
    "cluster-controller/src/redis/survey.rs",
];

/// `/// Its pod.`, `/// Why.`: what the name says already. Meaning, unit, range or source belong there.
fn repeats_a_name(line: &str) -> bool {
    let comment = line.trim_start().strip_prefix("///");
    let Some(text) = comment.and_then(|text| text.trim().strip_suffix('.')) else {
        return false;
    };
    let is_word = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match text.split(' ').collect::<Vec<_>>().as_slice() {
        ["Its" | "The" | "They" | "Why" | "Which" | "Who" | "What"] | ["How", "many"] => true,
        ["Its" | "The" | "Why" | "Which", word] => is_word(word),
        _ => false,
    }
}

#[test]
fn comments_say_more_than_names() -> Result<(), Box<dyn Error>> {
    for line in [
        "    /// Its pod.",
        "/// Why.",
        "/// How many.",
        "/// The slots.",
    ] {
        assert!(repeats_a_name(line), "{line}");
    }
    for line in [
        "/// The slots, from 0.",
        "/// The `role` label.",
        "/// Why not all.",
        "// Why.",
    ] {
        assert!(!repeats_a_name(line), "{line}");
    }
    let mut found = Vec::new();
    for (path, text) in files()? {
        for (number, line) in text.lines().enumerate() {
            if is_rust(&path) && repeats_a_name(line) && !REPETITIONS.contains(&path.as_str()) {
                found.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    report(&found);
    Ok(())
}

/// Most words in the name of a test: who reads it after a failure reads it once.
const LONGEST_NAME: usize = 10;

/// The names of the tests in a file, each with its line.
fn names_of_tests(text: &str) -> Vec<(usize, &str)> {
    let mut names = Vec::new();
    let mut is_test = false;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
        let function = line
            .strip_prefix("async ")
            .unwrap_or(line)
            .strip_prefix("fn ");
        if let Some((name, _)) = function.and_then(|rest| rest.split_once('(')) {
            if is_test {
                names.push((number + 1, name));
            }
            is_test = false;
        }
    }
    names
}

#[test]
fn names_of_tests_have_at_most_ten_words() -> Result<(), Box<dyn Error>> {
    let example = "#[test]\nfn a_b() {\n    fn c() {}\n#[tokio::test(flavor = \"x\")]\n// why\nasync fn d_e() -> Result<()> {";
    assert_eq!(names_of_tests(example), [(2, "a_b"), (6, "d_e")]);
    let mut found = Vec::new();
    let mut tests = 0;
    for (path, text) in files()? {
        let names = if is_rust(&path) {
            names_of_tests(&text)
        } else {
            Vec::new()
        };
        tests += names.len();
        let long = names
            .into_iter()
            .filter(|(_, name)| name.split('_').count() > LONGEST_NAME);
        found.extend(long.map(|(line, name)| format!("{path}:{line}: {name}")));
    }
    assert!(tests > 300, "only {tests} tests were found");
    report(&found);
    Ok(())
}

#[test]
fn words_are_found_in_identifiers_and_phrases_across_lines() {
    let text = "let SilencesOfNode = silence_since;\n// waited in\n// vain; lanes.chunks(2)\nGoOn => HTTPLane,";
    assert_eq!(
        forbidden_words("a/ghosts.rs", text),
        [
            "a/ghosts.rs:0: ghosts: say missing node, known by id, at no address",
            "a/ghosts.rs:1: silence: say unresponsive since, unresponsive tracker",
            "a/ghosts.rs:1: silences: say unresponsive since, unresponsive tracker",
            "a/ghosts.rs:2: in vain: say without success",
            "a/ghosts.rs:3: lanes: say node connection",
            "a/ghosts.rs:4: GoOn: say Continue",
            "a/ghosts.rs:4: lane: say node connection",
        ]
    );
    assert_eq!(
        forbidden_words("a.rs", "pairs by chunks_exact(2), a chunk; in; vain"),
        ["a.rs:1: chunk: say command batch, part, piece"]
    );
}
