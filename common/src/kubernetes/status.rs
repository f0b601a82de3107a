//! Status: written only when it differs, and never over somebody else's write.

use super::call::{self, ApiError};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    core::object::HasStatus,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::fmt::Debug;

/// Writes `wanted` as the status of `object`, as a merge patch of the differences that holds only for the
/// resourceVersion in hand: [`ApiError::Conflict`] when the object has changed since. `None`: nothing differed, nothing was sent.
pub async fn write<K>(api: &Api<K>, object: &K, wanted: &K::Status) -> Result<Option<K>, ApiError>
where
    K: Resource<DynamicType = ()> + HasStatus + DeserializeOwned + Debug + Clone,
    K::Status: Serialize,
{
    todo!()
}

/// The merge patch (RFC 7386) that makes `wanted` of `current`; `None` when they are equal. Absent and null are the same.
pub fn merge_patch(current: &Value, wanted: &Value) -> Option<Value> {
    todo!()
}
