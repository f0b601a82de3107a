//! The operation lease of one cluster: held by whoever changes its slots or pods in bulk, or needs them to stay.

use super::record::{self, Observer, Standing};
use crate::kubernetes::call::{self, ApiError};
use k8s_openapi::{
    api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Api, Client, ResourceExt, api::ObjectMeta};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use tokio::sync::Mutex;

/// Annotation of an operation lease: uid of the object that holds it.
pub const ANNOTATION_HOLDER_UID: &str = "redis.danieldorado.github.io/holder-uid";

/// Who wants or holds a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// Kind, for example `RedisBackup`.
    pub kind: String,
    /// Name, in the cluster's namespace.
    pub name: String,
    /// Uid of that object: one created again under the same name is another holder.
    pub uid: String,
}

impl Holder {
    /// An object as a holder.
    pub fn of<K: kube::Resource<DynamicType = ()>>(object: &K) -> Self {
        Self {
            kind: K::kind(&()).into_owned(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
        }
    }

    fn read(identity: &str, lease: &Lease) -> Self {
        let (kind, name) = identity.split_once('/').unwrap_or(("", identity));
        let uid = lease.annotations().get(ANNOTATION_HOLDER_UID);
        Self {
            kind: kind.to_string(),
            name: name.to_string(),
            uid: uid.cloned().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// How asking for the lease ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The asker holds it for the duration it asked for.
    Held,
    /// Another holds it.
    HeldBy(Holder),
}

/// The operation leases, as this process sees them. One instance in each controller: it remembers since when a lease has not
/// changed.
pub struct OperationLeases {
    client: Client,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    observer: Observer,
    /// When this process asked for its last successful write of each lease.
    written: HashMap<String, Instant>,
}

/// Writes that were beaten by another before the next pass has to go on.
const ROUNDS: usize = 3;

impl OperationLeases {
    /// Nothing seen yet.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            seen: Mutex::default(),
        }
    }

    /// Takes the lease of a cluster or renews it, for `duration` from now. Call it again before half of that has passed. `owner` is
    /// the RedisCluster, with which the lease goes away. One read, and a write unless it was renewed just now.
    pub async fn acquire(
        &self,
        namespace: &str,
        cluster: &str,
        holder: &Holder,
        duration: Duration,
        owner: Option<OwnerReference>,
    ) -> Result<Operation, ApiError> {
        let api = self.api(namespace);
        let name = crds::operation_lease_name(cluster);
        let mut trouble = None;
        for _ in 0..ROUNDS {
            let asked = Instant::now();
            let found = self.get(&api, &name).await?;
            let lease = match found {
                None => new_lease(&name, owner.as_ref()),
                Some(lease) => match self.judge(namespace, &lease).await {
                    Some(other) if other != *holder => return Ok(Operation::HeldBy(other)),
                    Some(_) if self.is_fresh(namespace, &lease, duration).await => {
                        return Ok(Operation::Held);
                    }
                    Some(_) | None => lease,
                },
            };
            match record::store(&api, &take(lease, holder, duration)).await {
                Ok(lease) => {
                    self.judge(namespace, &lease).await;
                    let mut seen = self.seen.lock().await;
                    seen.written.insert(key(namespace, &lease), asked);
                    return Ok(Operation::Held);
                }
                Err(error @ (ApiError::Conflict { .. } | ApiError::NotFound { .. })) => {
                    trouble = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(trouble.unwrap_or(ApiError::NotFound { what: name }))
    }

    /// Who holds it now; `None` when it is free or has expired.
    pub async fn holder(&self, namespace: &str, cluster: &str) -> Result<Option<Holder>, ApiError> {
        let name = crds::operation_lease_name(cluster);
        match self.get(&self.api(namespace), &name).await? {
            Some(lease) => Ok(self.judge(namespace, &lease).await),
            None => Ok(None),
        }
    }

    /// Gives the lease back if `holder` holds it; otherwise there is nothing to give.
    pub async fn release(
        &self,
        namespace: &str,
        cluster: &str,
        holder: &Holder,
    ) -> Result<(), ApiError> {
        let api = self.api(namespace);
        let name = crds::operation_lease_name(cluster);
        let Some(lease) = self.get(&api, &name).await? else {
            return Ok(());
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let identity = spec.holder_identity.clone().unwrap_or_default();
        if Holder::read(&identity, &lease) != *holder {
            return Ok(());
        }
        self.seen
            .lock()
            .await
            .written
            .remove(&key(namespace, &lease));
        let wanted = Lease {
            spec: Some(record::vacated(&spec)),
            metadata: lease.metadata,
        };
        match record::store(&api, &wanted).await {
            Ok(_) | Err(ApiError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn api(&self, namespace: &str) -> Api<Lease> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn get(&self, api: &Api<Lease>, name: &str) -> Result<Option<Lease>, ApiError> {
        call::read_optional(format!("get Lease {name}"), api.get(name)).await
    }

    /// Who holds the lease, if anybody still does.
    async fn judge(&self, namespace: &str, lease: &Lease) -> Option<Holder> {
        let mut seen = self.seen.lock().await;
        let key = key(namespace, lease);
        match seen.observer.look(&key, lease, Instant::now()) {
            Standing::Held(identity) => Some(Holder::read(&identity, lease)),
            Standing::Free | Standing::Expired(_) => None,
        }
    }

    /// Whether a lease of our own needs no write yet: this process wrote it less than a quarter of its duration ago.
    async fn is_fresh(&self, namespace: &str, lease: &Lease, wanted: Duration) -> bool {
        let seen = self.seen.lock().await;
        let written = seen.written.get(&key(namespace, lease));
        written.is_some_and(|at| at.elapsed() < wanted / 4) && record::duration(lease) >= wanted
    }
}

fn key(namespace: &str, lease: &Lease) -> String {
    format!("{namespace}/{}", lease.name_any())
}

fn new_lease(name: &str, owner: Option<&OwnerReference>) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_string()),
            owner_references: owner.cloned().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: None,
    }
}

fn take(mut lease: Lease, holder: &Holder, duration: Duration) -> Lease {
    lease
        .annotations_mut()
        .insert(ANNOTATION_HOLDER_UID.to_string(), holder.uid.clone());
    let spec = record::held(lease.spec.as_ref(), &holder.to_string(), duration);
    lease.spec = Some(spec);
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_written_and_read() {
        let holder = Holder {
            kind: "RedisBackup".into(),
            name: "nightly".into(),
            uid: "u-1".into(),
        };
        let lease = take(
            new_lease("cache-operation", None),
            &holder,
            Duration::from_secs(30),
        );
        let identity = lease.spec.clone().unwrap().holder_identity.unwrap();
        assert_eq!(identity, "RedisBackup/nightly");
        assert_eq!(Holder::read(&identity, &lease), holder);
    }
}
