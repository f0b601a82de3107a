//! The Secrets with passwords: those of clients are read, those of the own users are made here.

use super::{error::UsersError, state::UsersState};
use crate::{
    build,
    secrets::{READ_AGAIN, SecretError, SecretsOf, text},
};
use common::hexadecimal::hexadecimal;
use crds::{
    KEY_ACCEPTED, KEY_EXPORTER_FILE, KEY_PASSWORD, KEY_USERNAME, OwnUser, PasswordSecretRef,
    users_secret_name,
};
use k8s_openapi::api::core::v1::Secret;
use secrecy::{ExposeSecret, SecretString};
use std::{collections::BTreeMap, fmt::Write};

/// Random bytes of a password.
const RANDOM: usize = 24;
/// Key of the state in the Secret that the pods mount.
const KEY_STATE: &str = "state";

/// Passwords of an own user.
#[derive(Clone, Debug)]
pub struct OwnPassword {
    /// The one that is wanted.
    pub wanted: SecretString,
    /// The one that every server has accepted: by it its program logs in.
    pub accepted: SecretString,
}

/// The Secrets with the passwords of one cluster.
pub struct Passwords<'a>(pub SecretsOf<'a>);

impl Passwords<'_> {
    /// The passwords of clients' users; none where the Secret or the key is missing or empty.
    pub async fn passwords<'b>(
        &self,
        places: impl IntoIterator<Item = &'b PasswordSecretRef>,
    ) -> Result<BTreeMap<PasswordSecretRef, Option<SecretString>>, UsersError> {
        let mut found = BTreeMap::new();
        for place in places {
            let secret = self.0.read(&place.name, READ_AGAIN).await?;
            let password = secret.as_ref().and_then(|one| text(one, &place.key));
            found.insert(place.clone(), password.map(SecretString::from));
        }
        Ok(found)
    }

    /// The passwords of an own user. What is missing is made.
    pub async fn own(&self, user: OwnUser) -> Result<OwnPassword, UsersError> {
        let name = user.secret_name(self.0.owner.name);
        let SecretsOf { owner, memory, .. } = self.0;
        let remembered = memory.accepted(owner.namespace, owner.name, user);
        let found = self.read_own(&name, Some(user)).await?;
        let of = |key| {
            found
                .as_ref()
                .and_then(|one| text(one, key))
                .map(SecretString::from)
        };
        let password = match of(KEY_PASSWORD) {
            Some(password) => password,
            None => random()?,
        };
        let accepted = of(KEY_ACCEPTED).or(remembered);
        let passwords = OwnPassword {
            accepted: accepted.unwrap_or_else(|| password.clone()),
            wanted: password,
        };
        self.write_own(user, found, &passwords).await?;
        Ok(passwords)
    }

    /// Notes that every server has accepted the wanted password.
    pub async fn accept(&self, user: OwnUser, password: &OwnPassword) -> Result<(), UsersError> {
        let name = user.secret_name(self.0.owner.name);
        let found = self.read_own(&name, Some(user)).await?;
        let accepted = OwnPassword {
            wanted: password.wanted.clone(),
            accepted: password.wanted.clone(),
        };
        self.write_own(user, found, &accepted).await
    }

    async fn write_own(
        &self,
        user: OwnUser,
        found: Option<Secret>,
        OwnPassword { wanted, accepted }: &OwnPassword,
    ) -> Result<(), UsersError> {
        let name = user.secret_name(self.0.owner.name);
        let is_exporter = user == OwnUser::Exporter;
        let file = is_exporter.then(|| build::password_file(accepted.expose_secret()));
        let mut data = vec![
            (KEY_USERNAME, user.name()),
            // As it stands where it does not change: a line break at its end is its writer's.
            (KEY_PASSWORD, wanted.expose_secret()),
            (KEY_ACCEPTED, accepted.expose_secret()),
        ];
        data.extend(file.as_deref().map(|file| (KEY_EXPORTER_FILE, file)));
        let same = found.as_ref().is_some_and(|secret| {
            let mut pairs = data.iter();
            let is_current = !self.0.is_left_behind(secret);
            is_current && pairs.all(|(key, value)| text(secret, key).as_deref() == Some(*value))
        });
        if !same {
            self.write(&name, found, &data).await?;
        }
        let SecretsOf { owner, memory, .. } = self.0;
        memory.accept(owner, user, accepted.clone());
        Ok(())
    }

    /// The users that the servers are to have, if there are any yet.
    pub async fn state(&self) -> Result<Option<UsersState>, UsersError> {
        let name = users_secret_name(self.0.owner.name);
        let Some(secret) = self.read_own(&name, None).await? else {
            return Ok(None);
        };
        let state = text(&secret, KEY_STATE);
        // One that cannot be read is made again.
        Ok(state.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Writes what the pods mount.
    pub async fn write_state(
        &self,
        state: &UsersState,
        replication: &SecretString,
        probe: &SecretString,
    ) -> Result<(), UsersError> {
        let name = users_secret_name(self.0.owner.name);
        let text = serde_json::to_string(state).map_err(UsersError::State)?;
        let (users, without_role) = (state.file(), state.file_without_role());
        let replication = format!(
            "masteruser {}\nmasterauth {}\n",
            OwnUser::Replication.name(),
            quoted(replication.expose_secret())
        );
        let data = [
            (KEY_STATE, text.as_str()),
            ("users.conf", &users),
            ("users-without-role.conf", &without_role),
            ("replication.conf", &replication),
            ("probe", probe.expose_secret()),
        ];
        let found = self.read_own(&name, None).await?;
        let same = found.as_ref().is_some_and(|secret| {
            let stored = secret.data.as_ref();
            let is_stored = |(key, value): &(&str, &str)| {
                let bytes = stored.and_then(|data| data.get(*key));
                bytes.is_some_and(|bytes| bytes.0 == value.as_bytes())
            };
            self.0.is_owned(secret) && data.iter().all(is_stored)
        });
        if same {
            return Ok(());
        }
        Ok(self.write(&name, found, &data).await?)
    }

    async fn write(
        &self,
        name: &str,
        found: Option<Secret>,
        data: &[(&str, &str)],
    ) -> Result<(), SecretError> {
        let data: Vec<(&str, &[u8])> = data
            .iter()
            .map(|(key, value)| (*key, value.as_bytes()))
            .collect();
        self.0.write(name, found, &data).await
    }

    /// Deletes all of them.
    pub async fn remove(&self) -> Result<(), SecretError> {
        let SecretsOf { owner, memory, .. } = self.0;
        let own = OwnUser::ALL.map(|user| user.secret_name(owner.name));
        for name in own.into_iter().chain([users_secret_name(owner.name)]) {
            self.0.remove(&name).await?;
        }
        memory.forget_accepted(owner);
        Ok(())
    }

    /// One that is made here, or was left behind, or was given for this user by another program that keeps passwords.
    async fn read_own(
        &self,
        name: &str,
        user: Option<OwnUser>,
    ) -> Result<Option<Secret>, SecretError> {
        let is_given = |secret: &Secret| {
            let username = text(secret, KEY_USERNAME);
            user.is_some_and(|user| username.as_deref() == Some(user.name()))
        };
        self.0.read_own(name, is_given).await
    }
}

/// A password that cannot be guessed.
fn random() -> Result<SecretString, UsersError> {
    let mut bytes = [0; RANDOM];
    getrandom::fill(&mut bytes).map_err(UsersError::Random)?;
    Ok(SecretString::from(hexadecimal(&bytes)))
}

/// As a value in redis.conf, whatever it consists of (`sdssplitargs` in the engine's `sds.c`).
fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() {
            text.push(char::from(byte));
        } else {
            // Writing into a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_password_fits_into_a_line() {
        assert_eq!(quoted("Ab1"), "\"Ab1\"");
        assert_eq!(quoted("a \"\n#"), "\"a\\x20\\x22\\x0a\\x23\"");
    }

    #[test]
    fn passwords_are_random() {
        let [a, b] = [random().unwrap(), random().unwrap()];
        assert_eq!(a.expose_secret().len(), 48);
        assert_ne!(a.expose_secret(), b.expose_secret());
    }
}
