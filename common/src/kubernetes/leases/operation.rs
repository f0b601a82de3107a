//! The operation lease of one cluster: held by who changes its slots or pods in bulk, or needs them to stay.
//!
//! All operation leases are in the operator's own namespace, so that no controller may write leases anywhere else. A lease is deleted
//! when it is released; one that its holder left behind is deleted long after it has expired.

use super::{
    client::LeaseClient,
    record::{self, LeaseState, Observer},
};
use crate::{
    kubernetes::call::{ApiError, READ_TIMEOUT},
    runtime::Runtime,
};
use crds::{ANNOTATION_HOLDER_UID, LABEL_COMPONENT, LABEL_MANAGED_BY, MANAGED_BY, RedisCluster};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Resource, ResourceExt, api::ObjectMeta};
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};
use tokio::sync::Mutex;

/// Value of [`LABEL_COMPONENT`] on an operation lease.
const COMPONENT: &str = "operation-lease";
/// How often left behind leases are looked for.
const SWEEP: Duration = Duration::from_mins(10);
/// A lease that has not changed for this many times its duration was left behind.
const LEFT_BEHIND: u32 = 10;

/// An object that wants or holds a cluster.
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

    /// Whether this holder is the cluster itself, and the other one was an earlier cluster of its name. Names are unique: the earlier object
    /// is gone, and what worked for it ends with it. Of any other kind an earlier object may have workers that still need the cluster.
    fn succeeds(&self, other: &Self, cluster: &str) -> bool {
        self.kind == RedisCluster::kind(&())
            && self.kind == other.kind
            && self.name == cluster
            && self.name == other.name
            && self.uid != other.uid
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
    leases: LeaseClient,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    observer: Observer,
    /// When this process asked for its last successful write of each lease.
    written: HashMap<String, Instant>,
    swept: Option<Instant>,
}

impl Seen {
    fn forget(&mut self, name: &str) {
        self.written.remove(name);
        self.observer.retain(|known| known != name);
    }
}

/// Writes that were beaten by another before the next reconcile has to go on.
const ROUNDS: usize = 3;

impl OperationLeases {
    /// The leases in the controller's own namespace.
    pub fn new(runtime: &Runtime) -> Self {
        let api = Api::namespaced(runtime.client.clone(), &runtime.lease_namespace);
        Self {
            leases: LeaseClient::new(api, READ_TIMEOUT),
            seen: Mutex::default(),
        }
    }

    /// Takes the lease of a cluster or renews it, for `duration` from now. Call it again before half of that has passed. One read,
    /// and a write unless it was renewed just now. A cluster takes what an earlier cluster of its name has left behind at once.
    pub async fn acquire(
        &self,
        namespace: &str,
        cluster: &str,
        holder: &Holder,
        duration: Duration,
    ) -> Result<Operation, ApiError> {
        self.sweep_if_due(Instant::now()).await;
        let name = crds::operation_lease_name(namespace, cluster);
        let mut failure = None;
        for _ in 0..ROUNDS {
            let asked = Instant::now();
            let lease = match self.leases.get(&name).await? {
                None => new_lease(&name),
                Some(lease) => match self.current_holder(&lease).await {
                    Some(other) if other != *holder && !holder.succeeds(&other, cluster) => {
                        return Ok(Operation::HeldBy(other));
                    }
                    Some(same) if same == *holder && self.is_fresh(&lease, duration).await => {
                        return Ok(Operation::Held);
                    }
                    Some(_) | None => lease,
                },
            };
            match self.leases.store(&take(lease, holder, duration)).await {
                Ok(lease) => {
                    self.current_holder(&lease).await;
                    self.seen.lock().await.written.insert(name, asked);
                    return Ok(Operation::Held);
                }
                Err(
                    error @ (ApiError::Conflict { .. }
                    | ApiError::AlreadyExists { .. }
                    | ApiError::NotFound { .. }),
                ) => {
                    failure = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or(ApiError::NotFound { what: name }))
    }

    /// Who holds it now; `None` when it is free or has expired.
    pub async fn holder(&self, namespace: &str, cluster: &str) -> Result<Option<Holder>, ApiError> {
        let name = crds::operation_lease_name(namespace, cluster);
        if let Some(lease) = self.leases.get(&name).await? {
            return Ok(self.current_holder(&lease).await);
        }
        self.seen.lock().await.forget(&name);
        Ok(None)
    }

    /// Releases the lease if `holder` holds it; otherwise there is nothing to release.
    pub async fn release(
        &self,
        namespace: &str,
        cluster: &str,
        holder: &Holder,
    ) -> Result<(), ApiError> {
        let name = crds::operation_lease_name(namespace, cluster);
        self.seen.lock().await.forget(&name);
        let Some(lease) = self.leases.get(&name).await? else {
            return Ok(());
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let identity = spec.holder_identity.unwrap_or_default();
        if Holder::read(&identity, &lease) != *holder {
            return Ok(());
        }
        self.leases.delete(&lease).await
    }

    /// Deletes what holders that died have left behind. A failure is no reason to keep the caller from its work.
    async fn sweep_if_due(&self, now: Instant) {
        {
            let mut seen = self.seen.lock().await;
            let last = seen.swept;
            if last.is_some_and(|at| now.saturating_duration_since(at) < SWEEP) {
                return;
            }
            seen.swept = Some(now);
        }
        if let Err(error) = self.sweep(now).await {
            tracing::debug!(%error, "operation leases that were left behind are looked for again later");
        }
    }

    async fn sweep(&self, now: Instant) -> Result<(), ApiError> {
        let leases = self
            .leases
            .list(&format!("{LABEL_COMPONENT}={COMPONENT}"))
            .await?;
        let left_behind: Vec<&Lease> = {
            let mut seen = self.seen.lock().await;
            let exists = |name: &str| leases.iter().any(|lease| lease.name_any() == name);
            seen.observer.retain(exists);
            seen.written.retain(|name, _| exists(name));
            let observer = &mut seen.observer;
            leases
                .iter()
                .filter(|lease| {
                    let name = lease.name_any();
                    let state = observer.look(&name, lease, now);
                    let limit = record::duration(lease) * LEFT_BEHIND;
                    !matches!(state, LeaseState::Held(_))
                        && observer.unchanged_for(&name, now) > limit
                })
                .collect()
        };
        for lease in left_behind {
            self.leases.delete(lease).await?;
        }
        Ok(())
    }

    /// The holder of a lease that has not expired.
    async fn current_holder(&self, lease: &Lease) -> Option<Holder> {
        let mut seen = self.seen.lock().await;
        match seen.observer.look(&lease.name_any(), lease, Instant::now()) {
            LeaseState::Held(identity) => Some(Holder::read(&identity, lease)),
            LeaseState::Free | LeaseState::Expired(_) => None,
        }
    }

    /// Whether a lease of our own needs no write yet: this process wrote it less than a quarter of its duration ago.
    async fn is_fresh(&self, lease: &Lease, wanted: Duration) -> bool {
        let seen = self.seen.lock().await;
        let written = seen.written.get(&lease.name_any());
        written.is_some_and(|at| at.elapsed() < wanted / 4) && record::duration(lease) >= wanted
    }
}

fn new_lease(name: &str) -> Lease {
    let labels = [(LABEL_COMPONENT, COMPONENT), (LABEL_MANAGED_BY, MANAGED_BY)];
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_string()),
            labels: Some(BTreeMap::from(
                labels.map(|(key, value)| (key.to_string(), value.to_string())),
            )),
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
            new_lease("shop.cache-operation"),
            &holder,
            Duration::from_secs(30),
        );
        let identity = lease.spec.clone().unwrap().holder_identity.unwrap();
        assert_eq!(identity, "RedisBackup/nightly");
        assert_eq!(Holder::read(&identity, &lease), holder);
    }
}
