//! What the spec says of users, read once. Pure.

use super::state::EVERYTHING;
use crate::{redis::users::DEFAULT, validate::seconds};
use crds::{PasswordSecretRef, RedisCluster};
use k8s_openapi::jiff::SignedDuration;
use std::collections::BTreeSet;

/// How long a replaced password lets its user in, where the spec says nothing that can be read.
const OVERLAP: SignedDuration = SignedDuration::from_mins(5);

/// A user's name and rules.
pub type Rules = (String, String);

/// A user of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedUser {
    /// As clients give it.
    pub name: String,
    /// Whether it can log in.
    pub enabled: bool,
    /// Whether it needs no password.
    pub no_password: bool,
    /// What it may do.
    pub rules: String,
    /// Where its passwords are.
    pub passwords: Vec<PasswordSecretRef>,
}

impl WantedUser {
    /// Whether servers are known to take its rules.
    pub fn is_plain(&self) -> bool {
        self.rules == EVERYTHING
    }
}

/// What the spec says of users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedUsers {
    /// What it asks for; none where it has no `auth`.
    pub enabled: Option<bool>,
    /// Users of clients, `default` among them.
    pub users: Vec<WantedUser>,
    /// How long a replaced password lets its user in.
    pub overlap: SignedDuration,
}

impl WantedUsers {
    /// Reads the spec.
    pub fn of(cluster: &RedisCluster) -> Self {
        let Some(auth) = &cluster.spec.auth else {
            return Self {
                overlap: OVERLAP,
                ..Self::default()
            };
        };
        let default = auth.default_user.iter().map(|user| WantedUser {
            name: DEFAULT.to_owned(),
            enabled: true,
            no_password: user.no_password,
            rules: user.rules.clone(),
            passwords: user.password_secret_refs.clone(),
        });
        let users = auth.users.iter().map(|user| WantedUser {
            name: user.name.clone(),
            enabled: user.enabled,
            no_password: false,
            rules: user.rules.clone(),
            passwords: user.password_secret_refs.clone(),
        });
        Self {
            enabled: Some(auth.enabled),
            users: default.chain(users).collect(),
            overlap: seconds(&auth.overlap)
                .and_then(|time| SignedDuration::try_from(time).ok())
                .unwrap_or(OVERLAP),
        }
    }

    /// Where the passwords are.
    pub fn secrets(&self) -> BTreeSet<&PasswordSecretRef> {
        self.users.iter().flat_map(|user| &user.passwords).collect()
    }
}
