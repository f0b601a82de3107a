//! The users that the servers are to have now: what the pods mount, and what is set on servers that run. Pure.

use super::own::Abilities;
use crate::redis::users::{DEFAULT, PasswordHash, hash_of_lines};
use crds::{Authentication, OwnUser};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The rules of a user that may do everything: every server takes them.
pub const EVERYTHING: &str = "~* &* +@all";

/// A user as every server has taken it, or will: its rules have been tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedUser {
    /// Whether it can log in.
    pub enabled: bool,
    /// Whether it needs no password.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_password: bool,
    /// What it may do.
    pub rules: String,
    /// Hashes of its passwords.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passwords: Vec<String>,
    /// When the passwords last changed. Absent: they are those of the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Timestamp>,
    /// Hashes of passwords that were replaced, and until when they let it in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub replaced: BTreeMap<String, Timestamp>,
}

/// The users of a cluster. Stored in the Secret that its pods mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsersState {
    /// How far clients have to log in. Never [`Authentication::Off`].
    pub phase: Authentication,
    /// Since when the phase is what it is.
    #[serde(default)]
    pub since: Timestamp,
    /// What every server can do besides.
    #[serde(default)]
    pub abilities: Abilities,
    /// By name; `default` among them, as the spec has it.
    pub users: BTreeMap<String, AcceptedUser>,
}

/// A user as a server is given it: name, and the rules that follow it.
pub type UserLine = (String, String);

impl AcceptedUser {
    /// Replaces the passwords. Those that are not wanted any more let it in for a while.
    pub fn set_passwords(
        &mut self,
        wanted: &[PasswordHash],
        (now, overlap): (Timestamp, SignedDuration),
    ) {
        let until = now + overlap;
        let mut wanted: Vec<String> = wanted.iter().map(|one| one.digits().to_owned()).collect();
        wanted.sort_unstable();
        wanted.dedup();
        if wanted == self.passwords {
            return;
        }
        if !self.passwords.is_empty() {
            self.changed = Some(now);
        }
        for old in self.passwords.drain(..) {
            if !wanted.contains(&old) {
                self.replaced.entry(old).or_insert(until);
            }
        }
        self.replaced.retain(|old, _| !wanted.contains(old));
        self.passwords = wanted;
    }

    /// Drops the replaced passwords whose time is over, but those that are still used.
    pub fn drop_replaced(&mut self, now: Timestamp, used: &[&PasswordHash]) {
        let is_used = |old: &String| used.iter().any(|one| one.digits() == old);
        self.replaced
            .retain(|old, until| *until > now || is_used(old));
    }

    /// Whether a password lets it in.
    pub fn knows(&self, password: &PasswordHash) -> bool {
        self.passwords.iter().any(|one| one == password.digits())
    }

    /// What follows its name.
    fn line(&self) -> String {
        let mut words = vec![if self.enabled { "on" } else { "off" }.to_owned()];
        if self.no_password {
            words.push("nopass".to_owned());
        }
        let hashes = self.passwords.iter().chain(self.replaced.keys());
        words.extend(hashes.map(|digits| PasswordHash::stored(digits.clone()).rule()));
        words.push("resetchannels".to_owned());
        words.push(self.rules.clone());
        words.join(" ")
    }

    /// A user that needs no password and may do everything.
    pub fn may_everything() -> Self {
        Self {
            enabled: true,
            no_password: true,
            rules: EVERYTHING.to_owned(),
            ..Self::default()
        }
    }
}

impl UsersState {
    /// Every user, `default` as the phase has it.
    pub fn lines(&self) -> Vec<UserLine> {
        let default = match self.phase {
            Authentication::Required => self.users.get(DEFAULT).cloned().unwrap_or_default(),
            Authentication::Off | Authentication::Introducing | Authentication::Withdrawing => {
                AcceptedUser::may_everything()
            }
        };
        let others = self.users.iter().filter(|(name, _)| *name != DEFAULT);
        let mut lines = vec![(DEFAULT.to_owned(), default.line())];
        lines.extend(others.map(|(name, user)| (name.clone(), user.line())));
        lines
    }

    /// Hash of what a server is given.
    pub fn hash(&self) -> String {
        let lines: Vec<String> = self
            .lines()
            .into_iter()
            .map(|(name, rules)| format!("{name} {rules}"))
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        hash_of_lines(&lines)
    }

    /// The users as lines of redis.conf.
    pub fn file(&self) -> String {
        file(&self.lines())
    }

    /// The same for a server without a role of its own: it lets no replica copy it.
    pub fn file_without_role(&self) -> String {
        let mut lines = self.lines();
        for (name, rules) in &mut lines {
            if name == OwnUser::Replication.name() {
                *rules = rules.replace(" +psync", "");
            } else if rules.contains("+@all") || rules.contains("+psync") {
                rules.push_str(" -psync -sync");
            }
        }
        file(&lines)
    }
}

fn file(lines: &[UserLine]) -> String {
    let mut text = String::new();
    for (name, rules) in lines {
        text.extend(["user ", name, " ", rules, "\n"]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(phase: Authentication) -> UsersState {
        let mut state = UsersState {
            phase,
            ..UsersState::default()
        };
        let mut user = |name: &str, rules: &str, password: &str| {
            let mut one = AcceptedUser {
                enabled: true,
                rules: rules.to_owned(),
                ..AcceptedUser::default()
            };
            let now = (Timestamp::UNIX_EPOCH, SignedDuration::ZERO);
            one.set_passwords(&[PasswordHash::of(password)], now);
            state.users.insert(name.to_owned(), one);
        };
        user("shop", "~shop:* +@all -@dangerous", "a");
        user(OwnUser::Replication.name(), "+ping +psync", "b");
        state
    }

    #[test]
    fn default_is_off_only_where_a_login_is_required() {
        for (phase, line) in [
            (
                Authentication::Required,
                "user default off resetchannels \n",
            ),
            (
                Authentication::Introducing,
                "user default on nopass resetchannels ~* &* +@all\n",
            ),
            (
                Authentication::Withdrawing,
                "user default on nopass resetchannels ~* &* +@all\n",
            ),
        ] {
            assert!(
                state(phase).file().starts_with(line),
                "{}",
                state(phase).file()
            );
        }
    }

    /// The replica of a primary that has come back empty must not copy the emptiness, whatever it logs in as.
    #[test]
    fn without_a_role_none_is_fed() {
        let text = state(Authentication::Introducing).file_without_role();
        for line in text.lines() {
            let may = line.contains("+@all") || line.contains("+psync");
            assert!(!may || line.ends_with("-psync -sync"), "{line}");
        }
        assert!(text.contains("redis-operator-replication on"), "{text}");
    }

    #[test]
    fn a_replaced_password_lets_in_for_a_while() {
        let now = Timestamp::UNIX_EPOCH;
        let overlap = SignedDuration::from_mins(5);
        let until = now + overlap;
        let [old, new] = ["a", "b"].map(PasswordHash::of);
        let mut user = state(Authentication::Required).users["shop"].clone();
        user.set_passwords(std::slice::from_ref(&new), (now, overlap));
        user.set_passwords(std::slice::from_ref(&new), (until, overlap));
        user.drop_replaced(now, &[]);
        assert!(user.line().contains(&old.rule()) && user.line().contains(&new.rule()));
        // Given again, it is not a replaced one.
        let mut again = user.clone();
        again.set_passwords(&[old.clone(), new.clone()], (until, overlap));
        assert!(again.replaced.is_empty() && again.knows(&old));
        user.drop_replaced(until, &[&old]);
        assert!(user.line().contains(&old.rule()), "it is used");
        user.drop_replaced(until, &[]);
        assert!(!user.line().contains(&old.rule()) && user.knows(&new));
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let state = state(Authentication::Required);
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<UsersState>(&text).unwrap(), state);
    }
}
