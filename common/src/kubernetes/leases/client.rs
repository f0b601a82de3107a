//! Reads and writes of leases.

use crate::{
    kubernetes::call::{self, ApiError},
    runtime::metrics::ApiCall,
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
};
use std::time::Duration;

/// The leases of a namespace. Every request has the same bound.
#[derive(Clone, Debug)]
pub(super) struct LeaseClient {
    api: Api<Lease>,
    limit: Duration,
}

impl LeaseClient {
    pub(super) fn new(api: Api<Lease>, limit: Duration) -> Self {
        Self { api, limit }
    }

    /// For a lease that its holder renews every third of `duration`: with a sixth for a request, two hung ones leave time for a
    /// third before the promise ends.
    pub(super) fn renewing(api: Api<Lease>, duration: Duration) -> Self {
        Self::new(api, duration / 6)
    }

    pub(super) async fn get(&self, name: &str) -> Result<Option<Lease>, ApiError> {
        let what = format!("get Lease {name}");
        call::optional(call::bounded(what, ApiCall::Read, self.limit, self.api.get(name)).await)
    }

    pub(super) async fn list(&self, selector: &str) -> Result<Vec<Lease>, ApiError> {
        let parameters = ListParams::default().labels(selector);
        let what = format!("list Leases {selector}");
        let list = self.api.list(&parameters);
        let leases = call::bounded(what, ApiCall::Read, self.limit, list).await?;
        Ok(leases.items)
    }

    /// Writes a lease as decided on the resourceVersion it carries, or creates it when it carries none.
    pub(super) async fn store(&self, lease: &Lease) -> Result<Lease, ApiError> {
        let name = lease.name_any();
        let parameters = PostParams::default();
        if lease.resource_version().is_none() {
            let what = format!("create Lease {name}");
            let create = self.api.create(&parameters, lease);
            return call::bounded(what, ApiCall::Write, self.limit, create).await;
        }
        let what = format!("write Lease {name}");
        let replace = self.api.replace(&name, &parameters, lease);
        call::bounded(what, ApiCall::Write, self.limit, replace).await
    }

    /// Deletes a lease if it is still the one in hand.
    pub(super) async fn delete(&self, lease: &Lease) -> Result<(), ApiError> {
        let parameters = DeleteParams::default().preconditions(Preconditions {
            uid: lease.uid(),
            resource_version: lease.resource_version(),
        });
        self.remove(&lease.name_any(), &parameters).await
    }

    /// Deletes a lease of that name; gone already is fine.
    pub(super) async fn delete_by_name(&self, name: &str) -> Result<(), ApiError> {
        self.remove(name, &DeleteParams::default()).await
    }

    async fn remove(&self, name: &str, parameters: &DeleteParams) -> Result<(), ApiError> {
        let what = format!("delete Lease {name}");
        let delete = self.api.delete(name, parameters);
        match call::bounded(what, ApiCall::Write, self.limit, delete).await {
            Ok(_) | Err(ApiError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
