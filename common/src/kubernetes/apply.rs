//! Server-side apply of typed child objects, skipped when the cache already shows what is wanted.

use super::{
    call::{self, ApiError},
    drift,
    expectations::{Expectations, OwnerKey},
    hash,
};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, sync::Arc};

/// A child object as the server has it.
#[derive(Clone, Debug)]
pub struct Applied<K> {
    /// What the server answered, or the observed object where nothing had to be written.
    pub object: K,
    /// Whether a write was made.
    pub written: bool,
}

/// Applies objects under one field manager.
#[derive(Clone)]
pub struct Applier {
    client: Client,
    manager: &'static str,
    expectations: Arc<Expectations>,
}

/// What a child object has to be able to do.
pub trait Child:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Serialize
    + DeserializeOwned
    + Clone
    + Debug
    + Send
    + Sync
    + 'static
{
}

impl<K> Child for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Serialize
        + DeserializeOwned
        + Clone
        + Debug
        + Send
        + Sync
        + 'static
{
}

impl Applier {
    /// `manager` is the field manager: one name for each binary.
    pub fn new(client: Client, manager: &'static str, expectations: Arc<Expectations>) -> Self {
        Self {
            client,
            manager,
            expectations,
        }
    }

    /// Makes the server's object what is wanted. `observed` is the cache's copy. No call is made when it carries the hash
    /// of what is wanted and still shows every wanted field. An object that belongs to somebody else is never taken over.
    pub async fn apply<K: Child>(
        &self,
        owner: &OwnerKey,
        wanted: K,
        observed: Option<&K>,
    ) -> Result<Applied<K>, ApiError> {
        todo!()
    }

    /// Deletes an object by name and uid; gone already is fine. Its own children go in the background.
    pub async fn delete<K: Child>(&self, owner: &OwnerKey, observed: &K) -> Result<(), ApiError> {
        todo!()
    }
}
