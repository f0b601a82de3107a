//! Whether the volumes of a cluster that has yet to be formed are known to be empty, those included whose pods have not started.

use super::Claims;
use crate::validate::Shape;
use crds::ANNOTATION_PROVISIONER;
use k8s_openapi::{api::core::v1::PersistentVolumeClaim, apimachinery::pkg::apis::meta::v1::Time};

/// Whether each wanted pod has a claim of a new volume. `created`: when the RedisCluster was; an older claim was kept from another one.
pub fn are_blank(shape: &Shape, created: Option<&Time>, claims: &Claims) -> bool {
    let nodes = (0..shape.shards)
        .flat_map(|shard| (0..=shape.replicas).map(move |ordinal| (shard, ordinal)));
    let mut wanted = nodes.map(|node| claims.get(&node));
    created.is_some_and(|created| {
        wanted.all(|claim| claim.is_some_and(|claim| is_blank(claim, created)))
    })
}

/// Whether a wanted pod has a claim that is older than the RedisCluster.
pub fn are_kept(shape: &Shape, created: Option<&Time>, claims: &Claims) -> bool {
    let mut wanted = claims
        .iter()
        .filter(|((shard, ordinal), _)| *shard < shape.shards && *ordinal <= shape.replicas);
    created.is_some_and(|created| {
        wanted.any(|(_, claim)| {
            let time = claim.metadata.creation_timestamp.as_ref();
            time.is_some_and(|time| time.0 < created.0)
        })
    })
}

fn is_blank(claim: &PersistentVolumeClaim, created: &Time) -> bool {
    let metadata = &claim.metadata;
    let time = metadata.creation_timestamp.as_ref();
    let annotations = metadata.annotations.as_ref();
    let copies = claim
        .spec
        .as_ref()
        .is_none_or(|spec| spec.data_source.is_some() || spec.data_source_ref.is_some());
    time.is_some_and(|time| time.0 >= created.0)
        && annotations.is_some_and(|all| all.contains_key(ANNOTATION_PROVISIONER))
        && !copies
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::{shape, tests::example};
    use serde_json::{Value, json};
    use std::sync::Arc;

    const CREATED: &str = "2026-01-02T03:04:05Z";

    fn claims(of_last: &Value) -> Claims {
        let shape = shape(&example()).unwrap();
        let nodes = (0..shape.shards)
            .flat_map(|shard| (0..=shape.replicas).map(move |ordinal| (shard, ordinal)));
        let mut claims: Claims = nodes
            .map(|node| {
                let object = json!({"metadata": {"creationTimestamp": CREATED, "annotations": {ANNOTATION_PROVISIONER: "local"}}, "spec": {}});
                (node, Arc::new(serde_json::from_value(object).unwrap()))
            })
            .collect();
        claims.pop_last();
        if !of_last.is_null() {
            let last = Arc::new(serde_json::from_value(of_last.clone()).unwrap());
            claims.insert((shape.shards - 1, shape.replicas), last);
        }
        claims
    }

    #[test]
    fn a_volume_that_may_have_data_is_waited_for() {
        let new = json!({"metadata": {"creationTimestamp": "2026-01-02T03:04:06Z", "annotations": {ANNOTATION_PROVISIONER: "local"}}, "spec": {}});
        let changed = |path: &str, value: Value| {
            let mut claim = new.clone();
            *claim.pointer_mut(path).unwrap() = value;
            claim
        };
        let shape = shape(&example()).unwrap();
        let created: Time = serde_json::from_value(json!(CREATED)).unwrap();
        for (claim, expected) in [
            (new.clone(), true),
            (Value::Null, false),
            (
                changed("/metadata/creationTimestamp", json!("2026-01-02T03:04:04Z")),
                false,
            ),
            // Bound to a volume that there was.
            (changed("/metadata/annotations", json!({})), false),
            // A copy of a snapshot.
            (
                changed(
                    "/spec",
                    json!({"dataSource": {"kind": "VolumeSnapshot", "name": "old"}}),
                ),
                false,
            ),
        ] {
            let blank = are_blank(&shape, Some(&created), &claims(&claim));
            assert_eq!(blank, expected, "{claim}");
            assert!(!are_blank(&shape, None, &claims(&claim)));
        }
    }

    #[test]
    fn an_older_claim_was_kept() {
        let shape = shape(&example()).unwrap();
        let created: Time = serde_json::from_value(json!(CREATED)).unwrap();
        for (second, kept) in [("04", true), ("05", false), ("06", false)] {
            let time = format!("2026-01-02T03:04:{second}Z");
            let claim = json!({"metadata": {"creationTimestamp": time}, "spec": {}});
            let found = are_kept(&shape, Some(&created), &claims(&claim));
            assert_eq!(found, kept, "{claim}");
        }
        let unwanted =
            json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}});
        let unwanted = Arc::new(serde_json::from_value(unwanted).unwrap());
        let mut claims = claims(&Value::Null);
        claims.insert((shape.shards, 0), unwanted);
        assert!(!are_kept(&shape, Some(&created), &claims));
    }
}
