//! The Secrets with passwords: read by name, some seconds apart; those of the own users are made here.

use super::{error::UsersError, state::UsersState};
use common::kubernetes::call::{self, ApiError};
use crds::{
    KEY_ACCEPTED, KEY_PASSWORD, KEY_USERNAME, OwnUser, PasswordSecretRef, users_secret_name,
};
use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use secrecy::{ExposeSecret, SecretString};
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How old what was read of a client's password may be. Secrets are not watched: that would take the right to list them all.
const READ_AGAIN: Duration = Duration::from_secs(20);
/// The same of Secrets that are made here: few change them.
const READ_OWN_AGAIN: Duration = Duration::from_mins(1);
/// Random bytes of a password.
const RANDOM: usize = 24;
/// Key of the state in the Secret that the pods mount.
const KEY_STATE: &str = "state";

/// A cluster whose Secrets are meant.
#[derive(Clone, Copy, Debug)]
pub struct SecretOwner<'a> {
    /// Where its Secrets are.
    pub namespace: &'a str,
    /// With which their names begin.
    pub name: &'a str,
    /// By which its Secrets go with it.
    pub reference: &'a OwnerReference,
}

/// Passwords of an own user.
#[derive(Clone, Debug)]
pub struct OwnPassword {
    /// The one that is wanted.
    pub wanted: SecretString,
    /// The one that every server has accepted: by it its program logs in.
    pub accepted: SecretString,
}

/// What was read of a cluster's Secrets.
#[derive(Default)]
struct ClusterSecrets {
    read: HashMap<String, (Instant, Option<Secret>)>,
    accepted: HashMap<OwnUser, SecretString>,
}

/// What was read of Secrets, of all clusters.
#[derive(Default)]
pub struct SecretMemory(Mutex<HashMap<(String, String), ClusterSecrets>>);

impl SecretMemory {
    /// Forgets a cluster that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// The password by which an own user was let in when that was read last.
    pub fn accepted(&self, namespace: &str, name: &str, user: OwnUser) -> Option<SecretString> {
        let clusters = self.lock();
        let cluster = clusters.get(&(namespace.to_owned(), name.to_owned()))?;
        cluster.accepted.get(&user).cloned()
    }

    fn with<T>(&self, owner: SecretOwner<'_>, change: impl FnOnce(&mut ClusterSecrets) -> T) -> T {
        let key = (owner.namespace.to_owned(), owner.name.to_owned());
        change(self.lock().entry(key).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), ClusterSecrets>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads and writes the Secrets of one cluster.
pub struct Secrets<'a> {
    /// The Kubernetes client.
    pub client: &'a Client,
    /// What was read lately.
    pub memory: &'a SecretMemory,
    /// Whose Secrets they are.
    pub owner: SecretOwner<'a>,
    /// Whether they may be written: those of a cluster that is paused are only read.
    pub writes: bool,
}

impl Secrets<'_> {
    fn api(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), self.owner.namespace)
    }

    async fn read(&self, name: &str, again: Duration) -> Result<Option<Secret>, ApiError> {
        let known = self.memory.with(self.owner, |memory| {
            let known = memory.read.get(name);
            let known = known.filter(|(read, _)| read.elapsed() < again);
            known.map(|(_, secret)| secret.clone())
        });
        if let Some(secret) = known {
            return Ok(secret);
        }
        let what = format!("get Secret {}/{name}", self.owner.namespace);
        let secret = call::read_optional(what, self.api().get(name)).await?;
        self.note(name, secret.clone());
        Ok(secret)
    }

    fn note(&self, name: &str, secret: Option<Secret>) {
        self.memory.with(self.owner, |memory| {
            memory
                .read
                .insert(name.to_owned(), (Instant::now(), secret));
        });
    }

    fn forget(&self, name: &str) {
        self.memory.with(self.owner, |memory| {
            memory.read.remove(name);
        });
    }

    /// The passwords of clients' users; none where the Secret or the key is missing or empty.
    pub async fn passwords<'b>(
        &self,
        places: impl IntoIterator<Item = &'b PasswordSecretRef>,
    ) -> Result<BTreeMap<PasswordSecretRef, Option<SecretString>>, UsersError> {
        let mut found = BTreeMap::new();
        for place in places {
            let secret = self.read(&place.name, READ_AGAIN).await?;
            let password = secret.as_ref().and_then(|one| text(one, &place.key));
            found.insert(place.clone(), password.map(SecretString::from));
        }
        Ok(found)
    }

    /// The passwords of an own user. What is missing is made.
    pub async fn own(&self, user: OwnUser) -> Result<OwnPassword, UsersError> {
        let name = user.secret_name(self.owner.name);
        let remembered = self
            .memory
            .with(self.owner, |memory| memory.accepted.get(&user).cloned());
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
        let name = user.secret_name(self.owner.name);
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
        let name = user.secret_name(self.owner.name);
        let data = [
            (KEY_USERNAME, user.name()),
            // As it stands where it does not change: a line break at its end is its writer's.
            (KEY_PASSWORD, wanted.expose_secret()),
            (KEY_ACCEPTED, accepted.expose_secret()),
        ];
        let same = found.as_ref().is_some_and(|secret| {
            let mut pairs = data.iter();
            let is_current = !self.is_left_behind(secret);
            is_current && pairs.all(|(key, value)| text(secret, key).as_deref() == Some(*value))
        });
        if !same {
            self.write(&name, found, &data).await?;
        }
        let accepted = accepted.clone();
        self.memory
            .with(self.owner, |memory| memory.accepted.insert(user, accepted));
        Ok(())
    }

    /// The users that the servers are to have, if there are any yet.
    pub async fn state(&self) -> Result<Option<UsersState>, UsersError> {
        let name = users_secret_name(self.owner.name);
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
        let name = users_secret_name(self.owner.name);
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
            self.is_owned(secret) && data.iter().all(is_stored)
        });
        if same {
            return Ok(());
        }
        self.write(&name, found, &data).await
    }

    async fn write(
        &self,
        name: &str,
        found: Option<Secret>,
        data: &[(&str, &str)],
    ) -> Result<(), UsersError> {
        if !self.writes {
            return Ok(());
        }
        let what = format!("write Secret {}/{name}", self.owner.namespace);
        let exists = found.is_some();
        let mut secret = found.unwrap_or_else(|| self.empty(name));
        self.claim(&mut secret);
        let stored = secret.data.get_or_insert_default();
        for (key, value) in data {
            stored.insert((*key).to_owned(), ByteString(value.as_bytes().to_vec()));
        }
        let (api, parameters) = (self.api(), PostParams::default());
        let written = if exists {
            // Refused where another has written it since: it is read again.
            call::write(what, api.replace(name, &parameters, &secret)).await
        } else {
            call::write(what, api.create(&parameters, &secret)).await
        };
        match written {
            Ok(written) => {
                self.note(name, Some(written));
                Ok(())
            }
            Err(error) => {
                self.forget(name);
                Err(error.into())
            }
        }
    }

    /// Deletes all of them.
    pub async fn remove(&self) -> Result<(), UsersError> {
        let own = OwnUser::ALL.map(|user| user.secret_name(self.owner.name));
        for name in own.into_iter().chain([users_secret_name(self.owner.name)]) {
            let Some(secret) = self.read(&name, READ_OWN_AGAIN).await? else {
                continue;
            };
            if self.is_owned(&secret) {
                let what = format!("delete Secret {}/{name}", self.owner.namespace);
                let api = self.api();
                let parameters = kube::api::DeleteParams::default();
                match call::write(what, api.delete(&name, &parameters)).await {
                    Ok(_) | Err(ApiError::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            self.note(&name, None);
        }
        self.memory
            .with(self.owner, |memory| memory.accepted.clear());
        Ok(())
    }

    fn empty(&self, name: &str) -> Secret {
        Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(self.owner.namespace.to_owned()),
                ..ObjectMeta::default()
            },
            ..Secret::default()
        }
    }

    /// Labels it, and ties it to the cluster unless it is of a program that keeps passwords.
    fn claim(&self, secret: &mut Secret) {
        let labels = secret.labels_mut();
        labels.insert(
            crds::LABEL_MANAGED_BY.to_owned(),
            crds::MANAGED_BY.to_owned(),
        );
        labels.insert(crds::LABEL_CLUSTER.to_owned(), self.owner.name.to_owned());
        let mut owners = secret.owner_references().iter();
        if owners.all(|owner| owner.kind == self.owner.reference.kind) {
            secret.metadata.owner_references = Some(vec![self.owner.reference.clone()]);
        }
    }

    fn is_owned(&self, secret: &Secret) -> bool {
        let mut owners = secret.owner_references().iter();
        owners.any(|owner| owner.uid == self.owner.reference.uid)
    }

    /// Of a RedisCluster of this name that is gone.
    fn is_left_behind(&self, secret: &Secret) -> bool {
        let labels = secret.labels();
        let of_name = labels.get(crds::LABEL_CLUSTER).map(String::as_str) == Some(self.owner.name);
        let ours = labels.get(crds::LABEL_MANAGED_BY).map(String::as_str) == Some(crds::MANAGED_BY);
        let mut owners = secret.owner_references().iter();
        let is_free = owners.all(|owner| owner.kind == self.owner.reference.kind);
        of_name && ours && is_free && !self.is_owned(secret)
    }

    /// One that is made here, or was left behind, or was given for this user by another program that keeps passwords.
    async fn read_own(
        &self,
        name: &str,
        user: Option<OwnUser>,
    ) -> Result<Option<Secret>, UsersError> {
        let found = self.read(name, READ_OWN_AGAIN).await?;
        let is_given = |secret: &Secret| {
            let username = text(secret, KEY_USERNAME);
            user.is_some_and(|user| username.as_deref() == Some(user.name()))
        };
        match found {
            Some(secret)
                if !self.is_owned(&secret)
                    && !self.is_left_behind(&secret)
                    && !is_given(&secret) =>
            {
                Err(self.taken(&secret))
            }
            found => Ok(found),
        }
    }

    fn taken(&self, secret: &Secret) -> UsersError {
        UsersError::Taken {
            secret: secret.name_any(),
            cluster: self.owner.name.to_owned(),
        }
    }
}

/// A value as text, without line breaks at its end.
fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;
    let text = std::str::from_utf8(&bytes.0).ok()?;
    let text = text.trim_end_matches(['\n', '\r']);
    (!text.is_empty()).then(|| text.to_owned())
}

/// A password that cannot be guessed.
fn random() -> Result<SecretString, UsersError> {
    let mut bytes = [0; RANDOM];
    getrandom::fill(&mut bytes).map_err(UsersError::Random)?;
    let mut digits = String::with_capacity(2 * RANDOM);
    for byte in bytes {
        // Writing into a String cannot fail.
        let _ = write!(digits, "{byte:02x}");
    }
    Ok(SecretString::from(digits))
}

/// As a value in redis.conf, whatever it consists of (`sdssplitargs` in the engine's `sds.c`).
fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() {
            text.push(char::from(byte));
        } else {
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

    #[test]
    fn a_password_does_not_end_with_a_line_break() {
        let data = [("a", "x\n"), ("b", "\n"), ("c", " y ")];
        let data = data.map(|(key, value)| (key.to_owned(), ByteString(value.into())));
        let secret = Secret {
            data: Some(data.into()),
            ..Secret::default()
        };
        assert_eq!(text(&secret, "a").as_deref(), Some("x"));
        assert_eq!(text(&secret, "b"), None);
        assert_eq!(text(&secret, "c").as_deref(), Some(" y "));
    }
}
