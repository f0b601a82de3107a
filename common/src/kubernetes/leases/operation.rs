//! The operation lease of one cluster: held by whoever changes its slots or pods in bulk, or needs them to stay.

use crate::kubernetes::call::ApiError;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Client;
use std::time::Duration;

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

/// The operation leases, as this process sees them. One instance in each controller: it remembers since when a lease has not changed.
pub struct OperationLeases {
    client: Client,
}

impl OperationLeases {
    /// Nothing seen yet.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Takes the lease of a cluster or renews it, for `duration` from now. Call it again before half of that has passed. `owner` is
    /// the RedisCluster, with which the lease goes away.
    pub async fn acquire(
        &self,
        namespace: &str,
        cluster: &str,
        holder: &Holder,
        duration: Duration,
        owner: Option<OwnerReference>,
    ) -> Result<Operation, ApiError> {
        todo!()
    }

    /// Renews the lease only if it is still held by `holder`.
    pub async fn renew(
        &self,
        namespace: &str,
        cluster: &str,
        holder: &Holder,
    ) -> Result<Operation, ApiError> {
        todo!()
    }

    /// Gives the lease back if `holder` holds it.
    pub async fn release(
        &self,
        namespace: &str,
        cluster: &str,
        holder: &Holder,
    ) -> Result<(), ApiError> {
        todo!()
    }

    /// Who holds it now; `None` when it is free or has expired.
    pub async fn holder(&self, namespace: &str, cluster: &str) -> Result<Option<Holder>, ApiError> {
        todo!()
    }
}
