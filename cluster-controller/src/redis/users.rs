//! What a server says of its users, and by which mark it is seen whether they are those that it was given. Pure.
//!
//! Servers list the rules of a user in a form of their own, another one in each version. So a listing is not compared with what was sent:
//! once a server has taken everything, a user that can do nothing is added, whose name has a hash of what was sent and a hash of what the
//! server lists since. Whatever is changed by hand, the second one does not fit any more.

use common::hexadecimal::hexadecimal;
use sha2::{Digest, Sha256};

/// How the names of marks begin.
const MARK: &str = "redis-operator-applied-";
/// The user as which a client logs in that gives no name.
pub const DEFAULT: &str = "default";
/// The user as which servers copy each other.
const REPLICATION: &str = "redis-operator-replication";
/// Digits of a hash in the name of a mark.
const DIGITS: usize = 16;

/// SHA-256 of a password in hex, as servers keep it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// Of a password.
    pub fn of(password: &str) -> Self {
        Self(hex(password))
    }

    /// As a rule of `ACL SETUSER`.
    pub fn rule(&self) -> String {
        format!("#{}", self.0)
    }

    /// In hex.
    pub fn digits(&self) -> &str {
        &self.0
    }

    /// From hex, as it was stored.
    pub fn stored(digits: String) -> Self {
        Self(digits)
    }
}

fn hex(text: &str) -> String {
    hexadecimal(&Sha256::digest(text.as_bytes()))
}

/// The users of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReportedUsers {
    /// Hash of the users that it was given and has unchanged. None: it has other ones.
    pub applied: Option<String>,
    /// The names of its users, without marks.
    pub names: Vec<String>,
    /// The names of its marks.
    pub marks: Vec<String>,
    /// The password by which it copies another server, if it has one.
    pub copies_with: Option<PasswordHash>,
}

impl ReportedUsers {
    /// From `ACL LIST`.
    pub fn of(list: &[String]) -> Self {
        let name = |line: &str| line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (marks, users): (Vec<&String>, Vec<&String>) =
            list.iter().partition(|line| name(line).starts_with(MARK));
        let lines: Vec<&str> = users.iter().map(|line| line.as_str()).collect();
        let listed = hash_of_lines(&lines);
        let marks: Vec<String> = marks.into_iter().map(|line| name(line)).collect();
        let fits = |mark: &String| {
            let (given, kept) = mark.strip_prefix(MARK)?.split_once('-')?;
            (kept == listed).then(|| given.to_owned())
        };
        Self {
            applied: marks.iter().find_map(fits),
            names: users.into_iter().map(|line| name(line)).collect(),
            marks,
            copies_with: None,
        }
    }
}

impl ReportedUsers {
    /// As which user replicas log in.
    pub fn of_replicas(&self) -> &'static str {
        if self.names.iter().any(|name| name == REPLICATION) {
            REPLICATION
        } else {
            DEFAULT
        }
    }
}

/// The hash of lines in any order.
pub fn hash_of_lines(lines: &[&str]) -> String {
    let mut lines = lines.to_vec();
    lines.sort_unstable();
    hex(&lines.join("\n")).chars().take(DIGITS).collect()
}

/// The name of the mark of a server that was given these users and lists those.
pub fn mark(given: &str, list: &[String]) -> String {
    let users = list.iter().filter(|line| !is_mark(line));
    let lines: Vec<&str> = users.map(String::as_str).collect();
    format!("{MARK}{given}-{}", hash_of_lines(&lines))
}

fn is_mark(line: &str) -> bool {
    line.split(' ')
        .nth(1)
        .is_some_and(|name| name.starts_with(MARK))
}

/// Whether replicas may copy a server with these users. As what they log in follows from whether it knows their user.
pub fn feeds(list: &[String]) -> bool {
    let of = |name: &str| {
        let start = format!("user {name} ");
        list.iter().find(move |line| line.starts_with(&start))
    };
    match of(REPLICATION) {
        Some(line) => line.split(' ').any(|rule| rule == "+psync"),
        None => !of(DEFAULT).is_some_and(|line| line.split(' ').any(|rule| rule == "-psync")),
    }
}

/// Whether every replica in `CLIENT LIST TYPE replica` has logged in as the user for replicas.
pub fn replicas_log_in(clients: &str) -> bool {
    let mut lines = clients.lines().filter(|line| !line.trim().is_empty());
    lines.all(|line| {
        let mut fields = line.split_ascii_whitespace();
        fields.any(|field| field.strip_prefix("user=") == Some(REPLICATION))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn a_mark_fits_what_was_listed_then() {
        let users = list(&["user default off", "user shop on #aa ~* +get"]);
        let mark = mark("0123", &users);
        let marked = |users: &[String]| {
            let mut all = users.to_vec();
            all.push(format!("user {mark} off"));
            all.reverse();
            ReportedUsers::of(&all)
        };
        assert_eq!(marked(&users).applied.as_deref(), Some("0123"));
        assert_eq!(marked(&users).names, ["shop", "default"]);
        for changed in [
            list(&["user default on", "user shop on #aa ~* +get"]),
            list(&["user default off"]),
            list(&["user default off", "user shop on #aa ~* +get", "user x on"]),
        ] {
            assert_eq!(marked(&changed).applied, None, "{changed:?}");
        }
        assert_eq!(ReportedUsers::of(&users).applied, None);
    }

    #[test]
    fn replicas_are_fed_as_the_user_that_they_use() {
        let cases = [
            (vec!["user default on nopass ~* &* +@all"], true),
            (vec!["user default on nopass ~* &* +@all -psync"], false),
            (
                vec![
                    "user default off",
                    "user redis-operator-replication on #a +psync",
                ],
                true,
            ),
            (
                vec![
                    "user default off",
                    "user redis-operator-replication on #a +ping",
                ],
                false,
            ),
        ];
        for (lines, fed) in cases {
            assert_eq!(feeds(&list(&lines)), fed, "{lines:?}");
        }
    }

    #[test]
    fn replicas_that_logged_in_otherwise_are_seen() {
        assert!(replicas_log_in(""));
        let ours = "id=5 addr=10.0.0.2:1 flags=S user=redis-operator-replication lib=\n";
        assert!(replicas_log_in(ours));
        assert!(!replicas_log_in(&format!(
            "{ours}id=6 flags=S user=default\n"
        )));
    }

    #[test]
    fn passwords_are_hashed_as_servers_do() {
        let digits = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(PasswordHash::of("hello").rule(), format!("#{digits}"));
    }
}
