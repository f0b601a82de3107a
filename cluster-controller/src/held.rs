//! The clusters whose operation Lease this process has taken for a rollout or a hibernation: memory that may be lost, since a Lease expires
//! by itself.

use common::kubernetes::{
    call::ApiError,
    leases::{Holder, Operation, OperationLeases},
};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long the Lease is promised each time: a new pod needs a while until the next step, and pods have 60 s to end.
const LEASE: Duration = Duration::from_mins(2);

/// Clusters by namespace and name.
pub struct HeldClusters {
    leases: Arc<OperationLeases>,
    clusters: Mutex<HashSet<(String, String)>>,
}

impl HeldClusters {
    /// None yet.
    pub fn new(leases: Arc<OperationLeases>) -> Self {
        let clusters = Mutex::default();
        Self { leases, clusters }
    }

    fn clusters(&self) -> MutexGuard<'_, HashSet<(String, String)>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the operation Lease of a cluster or renews it. Who has it instead; none: it is taken.
    pub async fn take(
        &self,
        (namespace, name): (&str, &str),
        holder: &Holder,
    ) -> Result<Option<Holder>, ApiError> {
        let lease = self.leases.acquire(namespace, name, holder, LEASE);
        match lease.await? {
            Operation::Held => {
                self.clusters()
                    .insert((namespace.to_owned(), name.to_owned()));
                Ok(None)
            }
            Operation::HeldBy(other) => Ok(Some(other)),
        }
    }

    /// Releases what was taken. One that another replica has taken expires by itself.
    pub async fn release(
        &self,
        (namespace, name): (&str, &str),
        holder: &Holder,
    ) -> Result<(), ApiError> {
        if self.forget(namespace, name) {
            self.leases.release(namespace, name, holder).await?;
        }
        Ok(())
    }

    /// The cluster is gone. Whether its Lease was taken.
    pub fn forget(&self, namespace: &str, name: &str) -> bool {
        self.clusters()
            .remove(&(namespace.to_owned(), name.to_owned()))
    }
}
