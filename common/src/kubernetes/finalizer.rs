//! Our own finalizer, set and taken off by JSON patches that hold only for the list that was seen.

use super::call::{self, ApiError};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// Whether the object carries it.
pub fn is_set<K: Resource>(object: &K, finalizer: &str) -> bool {
    object.finalizers().iter().any(|f| f == finalizer)
}

/// Whether the object is on its way out.
pub fn is_deleting<K: Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

/// Adds it where it is missing. A concurrent change of the list is a [`ApiError::Conflict`].
pub async fn add<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), ApiError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Debug + Clone,
{
    todo!()
}

/// Takes it off where it is. Gone already is fine; a concurrent change of the list is a [`ApiError::Conflict`].
pub async fn remove<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), ApiError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Debug + Clone,
{
    todo!()
}
