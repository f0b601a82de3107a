//! The table of the rights of the own users, by which `make test-rights` takes one after the other away: it has each of them once, with a test
//! that there is.

use cluster_controller::users::own::{Abilities, rules};
use crds::OwnUser;
use std::{collections::BTreeSet, fs, path::Path};

const TABLE: &str = include_str!("../rights.tsv");

/// User, right, suite and test; and a release, where the installed server does not know the command.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    let rows = TABLE.lines().skip(1);
    rows.map(|line| line.split('\t').collect())
}

#[test]
fn the_table_has_every_right_once() {
    let all = Abilities {
        functions: true,
        moves: true,
    };
    let mut rights = BTreeSet::new();
    for user in OwnUser::ALL {
        let words = rules(user, all);
        let words = words
            .split(' ')
            .map(|word| format!("{} {word}", user.name()));
        rights.extend(words);
    }
    let listed: Vec<String> = rows().map(|row| row[..2].join(" ")).collect();
    let unique: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(unique, rights);
    assert_eq!(unique.len(), listed.len());
}

#[test]
fn every_test_of_the_table_exists() {
    let suites = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for row in rows() {
        let [_, right, suite, test, releases @ ..] = row.as_slice() else {
            panic!("{row:?}");
        };
        let source = fs::read_to_string(suites.join(format!("{suite}.rs"))).unwrap();
        let function = format!("async fn {test}() -> Result<()> {{");
        let before = source.split_once(&function).map(|(before, _)| before);
        let attributes = before.and_then(|before| before.rsplit("\n\n").next());
        let is_test = attributes.is_some_and(|text| text.contains("#[tokio::test"));
        assert!(is_test, "{right}: {suite} has no test {test}");
        let script = include_str!("../run-servers");
        let known = releases.iter().all(|one| script.contains(one));
        assert!(releases.len() < 2 && known, "{releases:?}");
    }
}
