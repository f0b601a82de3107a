//! Our own finalizer, set and taken off by JSON patches that hold only for the list that was seen.

use super::call::{self, ApiError};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;

/// Whether the object carries it.
pub fn is_set<K: Resource>(object: &K, finalizer: &str) -> bool {
    object.finalizers().iter().any(|f| f == finalizer)
}

/// Adds it where it is missing. A concurrent change of the list is a [`ApiError::Conflict`].
pub async fn add<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), ApiError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Debug + Clone,
{
    match add_patch(object.finalizers(), finalizer) {
        Some(patch) => send(api, object, "add a finalizer to", patch).await,
        None => Ok(()),
    }
}

/// Takes it off where it is. Gone already is fine; a concurrent change of the list is a [`ApiError::Conflict`].
pub async fn remove<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), ApiError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Debug + Clone,
{
    let Some(patch) = remove_patch(object.finalizers(), finalizer) else {
        return Ok(());
    };
    match send(api, object, "remove a finalizer from", patch).await {
        Err(ApiError::NotFound { .. }) => Ok(()),
        result => result,
    }
}

/// `None` when it is there already. The API server answers a `test` of an absent member with null.
fn add_patch(current: &[String], finalizer: &str) -> Option<Value> {
    if current.iter().any(|f| f == finalizer) {
        return None;
    }
    Some(if current.is_empty() {
        json!([
            {"op": "test", "path": LIST, "value": null},
            {"op": "add", "path": LIST, "value": [finalizer]},
        ])
    } else {
        json!([
            {"op": "test", "path": LIST, "value": current},
            {"op": "add", "path": format!("{LIST}/-"), "value": finalizer},
        ])
    })
}

/// `None` when it is not there.
fn remove_patch(current: &[String], finalizer: &str) -> Option<Value> {
    let position = current.iter().position(|f| f == finalizer)?;
    Some(json!([
        {"op": "test", "path": LIST, "value": current},
        {"op": "remove", "path": format!("{LIST}/{position}")},
    ]))
}

const LIST: &str = "/metadata/finalizers";

async fn send<K>(api: &Api<K>, object: &K, verb: &str, patch: Value) -> Result<(), ApiError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Debug + Clone,
{
    let name = object.name_any();
    let what = format!(
        "{verb} {} {}/{name}",
        K::kind(&()),
        object.namespace().unwrap_or_default()
    );
    let patch: json_patch::Patch =
        serde_json::from_value(patch).map_err(|error| ApiError::Malformed {
            what: what.clone(),
            message: error.to_string(),
        })?;
    let parameters = PatchParams::default();
    let patch = Patch::Json::<()>(patch);
    match call::write(what, api.patch(&name, &parameters, &patch)).await {
        Ok(_) => Ok(()),
        // This is how the server answers a failed test: another client changed the list.
        Err(ApiError::Invalid { what, message }) => Err(ApiError::Conflict { what, message }),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_to_do_is_no_patch() {
        assert_eq!(add_patch(&list(&["ours"]), "ours"), None);
        assert_eq!(remove_patch(&list(&["theirs"]), "ours"), None);
    }

    #[test]
    fn the_seen_list_is_tested() {
        let mut object = json!({"metadata": {"finalizers": ["theirs"]}});
        let patch = |value| serde_json::from_value::<json_patch::Patch>(value).unwrap();
        let add = patch(add_patch(&list(&["theirs"]), "ours").unwrap());
        json_patch::patch(&mut object, &add).unwrap();
        assert_eq!(object["metadata"]["finalizers"], json!(["theirs", "ours"]));
        assert!(json_patch::patch(&mut object, &add).is_err());
        let remove = patch(remove_patch(&list(&["theirs", "ours"]), "ours").unwrap());
        json_patch::patch(&mut object, &remove).unwrap();
        assert_eq!(object["metadata"]["finalizers"], json!(["theirs"]));
    }
}
