//! Secrets of one cluster: read by name, some seconds apart, and those that are made for it written. They are not watched: that would take the
//! right to list them all.

use common::kubernetes::{
    call::{self, ApiError},
    errors::{Classified, ErrorClass},
};
use crds::OwnUser;
use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams},
};
use secrecy::SecretString;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How old what was read of a Secret of the user may be.
pub const READ_AGAIN: Duration = Duration::from_secs(20);
/// The same of Secrets that are made here: few change them.
const READ_OWN_AGAIN: Duration = Duration::from_mins(1);

/// Why a Secret cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The name of a Secret is not free.
    #[error(
        "Secret {secret} exists and does not belong to RedisCluster {cluster}, which needs this name for its own: rename the Secret or the cluster"
    )]
    Taken {
        /// Name of the Secret that is in the way.
        secret: String,
        /// Name of the RedisCluster that needs it.
        cluster: String,
    },
}

impl Classified for SecretError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Api(error) => error.class(),
            Self::Taken { .. } => ErrorClass::InvalidSpec,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => error.reason(),
            Self::Taken { .. } => "SecretTaken",
        }
    }
}

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

    /// Forgets all: another replica may write from now on.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// The password by which an own user was let in when that was read last.
    pub fn accepted(&self, namespace: &str, name: &str, user: OwnUser) -> Option<SecretString> {
        let clusters = self.lock();
        let cluster = clusters.get(&(namespace.to_owned(), name.to_owned()))?;
        cluster.accepted.get(&user).cloned()
    }

    /// Notes the password by which an own user is let in.
    pub fn accept(&self, owner: SecretOwner<'_>, user: OwnUser, password: SecretString) {
        self.with(owner, |memory| memory.accepted.insert(user, password));
    }

    /// Forgets all passwords of a cluster.
    pub fn forget_accepted(&self, owner: SecretOwner<'_>) {
        self.with(owner, |memory| memory.accepted.clear());
    }

    fn with<T>(&self, owner: SecretOwner<'_>, change: impl FnOnce(&mut ClusterSecrets) -> T) -> T {
        let key = (owner.namespace.to_owned(), owner.name.to_owned());
        change(self.lock().entry(key).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), ClusterSecrets>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The Secrets of one cluster. Cheap to copy.
#[derive(Clone, Copy)]
pub struct SecretsOf<'a> {
    /// The Kubernetes client.
    pub client: &'a Client,
    /// What was read lately.
    pub memory: &'a SecretMemory,
    /// Whose Secrets they are.
    pub owner: SecretOwner<'a>,
    /// Whether they may be written: those of a cluster that is paused are only read.
    pub writes: bool,
}

impl SecretsOf<'_> {
    fn api(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), self.owner.namespace)
    }

    /// Any Secret, at most so old.
    pub async fn read(&self, name: &str, again: Duration) -> Result<Option<Secret>, SecretError> {
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

    /// One that is made here, or was left behind, or that is accepted all the same.
    pub async fn read_own(
        &self,
        name: &str,
        is_given: impl FnOnce(&Secret) -> bool,
    ) -> Result<Option<Secret>, SecretError> {
        let found = self.read(name, READ_OWN_AGAIN).await?;
        match found {
            Some(secret)
                if !self.is_owned(&secret)
                    && !self.is_left_behind(&secret)
                    && !is_given(&secret) =>
            {
                Err(SecretError::Taken {
                    secret: secret.name_any(),
                    cluster: self.owner.name.to_owned(),
                })
            }
            found => Ok(found),
        }
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

    /// Writes these values of one that was found so; others stay.
    pub async fn write(
        &self,
        name: &str,
        found: Option<Secret>,
        data: &[(&str, &[u8])],
    ) -> Result<(), SecretError> {
        let mut all = found.as_ref().and_then(|one| one.data.clone());
        let all = all.get_or_insert_default();
        for (key, value) in data {
            all.insert((*key).to_owned(), ByteString(value.to_vec()));
        }
        self.replace(name, found, std::mem::take(all)).await
    }

    /// Writes all values of one that was found so.
    pub async fn replace(
        &self,
        name: &str,
        found: Option<Secret>,
        data: BTreeMap<String, ByteString>,
    ) -> Result<(), SecretError> {
        if !self.writes {
            return Ok(());
        }
        let what = format!("write Secret {}/{name}", self.owner.namespace);
        let exists = found.is_some();
        let mut secret = found.unwrap_or_else(|| self.empty(name));
        self.claim(&mut secret);
        secret.data = Some(data);
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

    /// Deletes one that is made here.
    pub async fn remove(&self, name: &str) -> Result<(), SecretError> {
        let Some(secret) = self.read(name, READ_OWN_AGAIN).await? else {
            return Ok(());
        };
        if self.is_owned(&secret) {
            let what = format!("delete Secret {}/{name}", self.owner.namespace);
            let (api, parameters) = (self.api(), DeleteParams::default());
            match call::write(what, api.delete(name, &parameters)).await {
                Ok(_) | Err(ApiError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.note(name, None);
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

    /// Whether it goes with the cluster.
    pub fn is_owned(&self, secret: &Secret) -> bool {
        let mut owners = secret.owner_references().iter();
        owners.any(|owner| owner.uid == self.owner.reference.uid)
    }

    /// Whether it is of a RedisCluster of this name that is gone.
    pub fn is_left_behind(&self, secret: &Secret) -> bool {
        let labels = secret.labels();
        let of_name = labels.get(crds::LABEL_CLUSTER).map(String::as_str) == Some(self.owner.name);
        let ours = labels.get(crds::LABEL_MANAGED_BY).map(String::as_str) == Some(crds::MANAGED_BY);
        let mut owners = secret.owner_references().iter();
        let is_free = owners.all(|owner| owner.kind == self.owner.reference.kind);
        of_name && ours && is_free && !self.is_owned(secret)
    }
}

/// A value as text, without line breaks at its end.
pub fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;
    let text = std::str::from_utf8(&bytes.0).ok()?;
    let text = text.trim_end_matches(['\n', '\r']);
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

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
