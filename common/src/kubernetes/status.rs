//! Status: written only when it differs, and never over another client's write.

use super::{
    call::{self, ApiError},
    conditions::{self, ConditionUpdate},
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
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
    let name = object.name_any();
    let what = format!(
        "write the status of {} {}/{name}",
        K::kind(&()),
        object.namespace().unwrap_or_default()
    );
    let malformed = |error: serde_json::Error| ApiError::Malformed {
        what: what.clone(),
        message: error.to_string(),
    };
    let current = serde_json::to_value(object.status()).map_err(malformed)?;
    let wanted = serde_json::to_value(wanted).map_err(malformed)?;
    let Some(difference) = merge_patch(&current, &wanted) else {
        return Ok(None);
    };
    let body = json!({
        "metadata": {"resourceVersion": object.resource_version()},
        "status": difference,
    });
    let parameters = PatchParams::default();
    let patch = Patch::Merge(&body);
    call::write(what, api.patch_status(&name, &parameters, &patch))
        .await
        .map(Some)
}

/// Writes the conditions of one type in the status of an object whose other conditions another controller writes: by server-side
/// apply under `manager`, which owns this one and nothing else. `None` removes it. Nothing is sent where nothing differs.
pub async fn write_condition<K>(
    api: &Api<K>,
    object: &K,
    manager: &str,
    (kind, update): (&str, Option<ConditionUpdate>),
    now: Timestamp,
) -> Result<(), ApiError>
where
    K: Resource<DynamicType = ()> + HasStatus + DeserializeOwned + Debug + Clone,
    K::Status: HasConditions,
{
    let old = object.status().map_or(&[][..], HasConditions::conditions);
    let before = conditions::find(old, kind);
    let merged = conditions::merge(old, update.as_slice(), object.meta().generation, now);
    let wanted = update.and_then(|_| conditions::find(&merged, kind));
    if before == wanted {
        return Ok(());
    }
    let name = object.name_any();
    let what = format!(
        "write condition {kind} of {} {}/{name}",
        K::kind(&()),
        object.namespace().unwrap_or_default()
    );
    let body = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name, "uid": object.uid()},
        "status": {"conditions": wanted.as_slice()},
    });
    let parameters = PatchParams::apply(manager).force();
    let patch = Patch::Apply(&body);
    call::write(what, api.patch_status(&name, &parameters, &patch))
        .await
        .map(drop)
}

/// A status with conditions.
pub trait HasConditions {
    /// All conditions, those of other controllers included.
    fn conditions(&self) -> &[Condition];
}

impl HasConditions for crds::RedisClusterStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

/// The merge patch (RFC 7386) that makes `wanted` of `current`; `None` when they are equal. Absent and null are the same.
pub fn merge_patch(current: &Value, wanted: &Value) -> Option<Value> {
    match (current, wanted) {
        (Value::Object(current), Value::Object(wanted)) => {
            let changed = wanted.iter().filter_map(|(key, value)| {
                let before = current.get(key).unwrap_or(&Value::Null);
                merge_patch(before, value).map(|patch| (key.clone(), patch))
            });
            let removed = current
                .iter()
                .filter(|(key, value)| !value.is_null() && !wanted.contains_key(*key))
                .map(|(key, _)| (key.clone(), Value::Null));
            let patch: Map<String, Value> = changed.chain(removed).collect();
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        (current, Value::Object(wanted)) => {
            // A merge patch cannot carry null as a value, so nothing is said of members that are null.
            let mut patch = merge_patch(&Value::Object(Map::new()), &Value::Object(wanted.clone()));
            if patch.is_none() && !current.is_object() {
                patch = Some(Value::Object(Map::new()));
            }
            patch
        }
        (current, wanted) => (current != wanted).then(|| wanted.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_statuses_need_no_write() {
        let status = json!({"phase": "Ready", "conditions": [{"type": "Ready"}]});
        assert_eq!(merge_patch(&status, &status), None);
        assert_eq!(merge_patch(&json!({"a": null}), &json!({})), None);
    }

    #[test]
    fn only_differences_are_sent_and_what_is_gone_is_removed() {
        let before =
            json!({"phase": "Waiting", "message": "for pods", "slots": {"ok": 1, "assigned": 2}});
        let after = json!({"phase": "Ready", "slots": {"ok": 2, "assigned": 2}});
        assert_eq!(
            merge_patch(&before, &after),
            Some(json!({"phase": "Ready", "message": null, "slots": {"ok": 2}}))
        );
    }

    /// RFC 7386, section 2.
    fn merged(target: &Value, patch: &Value) -> Value {
        let Some(members) = patch.as_object() else {
            return patch.clone();
        };
        let mut result = target.as_object().cloned().unwrap_or_default();
        for (key, value) in members {
            if value.is_null() {
                result.remove(key);
            } else {
                let before = result.get(key).cloned().unwrap_or(Value::Null);
                result.insert(key.clone(), merged(&before, value));
            }
        }
        Value::Object(result)
    }

    fn without_nulls(value: &Value) -> Value {
        let Some(members) = value.as_object() else {
            return value.clone();
        };
        let kept = members
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| (k.clone(), without_nulls(v)));
        Value::Object(kept.collect())
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            (0..3i64).prop_map(Value::from),
            proptest::collection::vec(0..3i64, 0..3).prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 3, |inner| {
            proptest::collection::btree_map("[a-c]", inner, 0..3)
                .prop_map(|m| Value::Object(m.into_iter().collect()))
        })
    }

    fn object() -> impl Strategy<Value = Value> {
        proptest::collection::btree_map("[a-d]", value(), 0..4)
            .prop_map(|m| Value::Object(m.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn the_patch_makes_the_wanted_status(current in object(), wanted in object()) {
            let (current, wanted) = (without_nulls(&current), without_nulls(&wanted));
            match merge_patch(&current, &wanted) {
                None => prop_assert_eq!(current, wanted),
                Some(patch) => {
                    prop_assert_ne!(&current, &wanted);
                    prop_assert_eq!(merged(&current, &patch), wanted);
                }
            }
        }
    }
}
