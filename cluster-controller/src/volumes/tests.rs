//! Owner references and sizes for every state that claims can be in.

use super::*;
use crate::{
    build::build,
    validate::{tests::example, validate},
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn cluster(policy: DeletionPolicy, size: &str) -> ValidatedCluster {
    let mut cluster = example();
    let storage = cluster.spec.storage.as_mut().unwrap();
    storage.when_deleted = policy;
    storage.size = Quantity(size.to_owned());
    validate(&cluster, None, NOW).unwrap()
}

fn sizes(pods: i32) -> Vec<SetSize> {
    let size = |shard| SetSize {
        shard,
        pods,
        keeps_volumes: true,
    };
    (0..3).map(size).collect()
}

fn claim(name: &str, more: &Value) -> Arc<PersistentVolumeClaim> {
    let mut claim = json!({
        "metadata": {"name": name, "uid": name},
        "spec": {"resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
    });
    for part in ["metadata", "spec", "status"] {
        if let Some(Value::Object(more)) = more.get(part) {
            claim[part].as_object_mut().unwrap().extend(more.clone());
        }
    }
    Arc::new(serde_json::from_value(claim).unwrap())
}

fn claims(more: &Value) -> Claims {
    let names = (0..3).flat_map(|shard| (0..2).map(move |pod| format!("data-shop-{shard}-{pod}")));
    of_cluster("shop", names.map(|name| claim(&name, more)))
}

/// The change for each claim of a pod.
fn changes(policy: DeletionPolicy, pods: i32, more: &Value) -> Vec<ClaimChange> {
    let patches = ties(&cluster(policy, "1Gi"), &sizes(pods), &claims(more));
    patches.into_iter().map(|patch| patch.change).collect()
}

fn owned_by(uid: &str) -> Value {
    let owner = json!({"apiVersion": "redis.danieldorado.github.io/v1alpha1", "kind": "RedisCluster", "name": "shop", "uid": uid});
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "shop-0", "uid": "set", "controller": true});
    json!({"metadata": {"ownerReferences": [set, owner]}})
}

#[test]
fn volumes_go_with_their_cluster_and_nothing_else() {
    let tied = owned_by(&cluster(DeletionPolicy::Delete, "1Gi").owner.uid);
    let changes_to = changes(DeletionPolicy::Delete, 2, &json!({}));
    assert_eq!(changes_to.len(), 6);
    for change in changes_to {
        let ClaimChange::Tie(owner) = change else {
            panic!("{change:?}");
        };
        assert_eq!(
            (owner.kind.as_str(), &*owner.name),
            ("RedisCluster", "shop")
        );
        assert_eq!((owner.controller, owner.block_owner_deletion), (None, None));
    }
    assert!(changes(DeletionPolicy::Delete, 2, &tied).is_empty());
    let untied = changes(DeletionPolicy::Retain, 2, &tied);
    let is_untied = |change: &ClaimChange| matches!(change, ClaimChange::Untie { .. });
    assert!(untied.len() == 6 && untied.iter().all(is_untied));
    assert!(changes(DeletionPolicy::Retain, 2, &json!({})).is_empty());
    // Another cluster of that name, which is gone: its references are the garbage collector's business.
    let other = changes(DeletionPolicy::Retain, 2, &owned_by("other"));
    assert!(other.is_empty());
}

/// The garbage collector deletes nothing that has another owner.
#[test]
fn the_volume_of_a_pod_that_leaves_is_untied() {
    let tied = owned_by(&cluster(DeletionPolicy::Delete, "1Gi").owner.uid);
    let patches = ties(
        &cluster(DeletionPolicy::Delete, "1Gi"),
        &sizes(1),
        &claims(&tied),
    );
    let names: Vec<String> = patches.iter().map(|patch| patch.claim.name_any()).collect();
    assert_eq!(names, ["data-shop-0-1", "data-shop-1-1", "data-shop-2-1"]);
    assert!(
        patches
            .iter()
            .all(|patch| matches!(patch.change, ClaimChange::Untie { .. }))
    );
    let never_tied = changes(DeletionPolicy::Delete, 1, &json!({}));
    assert_eq!(never_tied.len(), 3);
}

/// Deleted while it hibernates, it takes its volumes with it as at any other time.
#[test]
fn volumes_stay_tied_while_their_cluster_hibernates() {
    let mut asleep = cluster(DeletionPolicy::Delete, "1Gi");
    let tied = owned_by(&asleep.owner.uid);
    asleep.shape.hibernate = true;
    assert!(ties(&asleep, &sizes(0), &claims(&tied)).is_empty());
    assert_eq!(ties(&asleep, &sizes(0), &claims(&json!({}))).len(), 6);
    asleep.storage.as_mut().unwrap().size = Quantity("2Gi".into());
    let growth = growth(&asleep, &sizes(0), &claims(&tied), None, NOW);
    assert_eq!(growth.small.len(), 6);
}

/// The scheduler writes into a claim until it is bound.
#[test]
fn a_claim_that_is_not_bound_is_left_alone() {
    for more in [
        json!({"status": {"phase": "Pending"}}),
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
    ] {
        assert!(changes(DeletionPolicy::Delete, 2, &more).is_empty());
        let larger = cluster(DeletionPolicy::Delete, "2Gi");
        let growth = growth(&larger, &sizes(2), &claims(&more), None, NOW);
        assert!(growth.small.is_empty() && growth.ask.is_none());
    }
}

#[test]
fn only_claims_of_pods_count() {
    let names = [
        "data-shop-0-0",
        "data-shop-x-0",
        "data-shop-2-0-0",
        "other-shop-0-0",
        "data-cart-0-0",
        "datashop-0-0",
        "data-shop-4-1",
        "data-shop-x-1",
        "data-shop",
        "logs-shop-4-1",
        "data-shops-4-1",
    ];
    let found = of_cluster("shop", names.map(|name| claim(name, &json!({}))));
    assert_eq!(found.keys().collect::<Vec<_>>(), [&(0, 0), &(4, 1)]);
}

fn grown(size: &str, more: &Value, refusal: Option<Refusal>) -> Growth {
    let cluster = cluster(DeletionPolicy::Retain, size);
    growth(&cluster, &sizes(2), &claims(more), refusal, NOW)
}

fn reason(size: &str, growth: &Growth) -> (Option<bool>, &'static str, String) {
    let cluster = cluster(DeletionPolicy::Retain, size);
    let condition = growth.condition(Some(&cluster)).unwrap();
    assert_eq!(condition.kind, "VolumesResized");
    (condition.holds, condition.reason, condition.message)
}

#[test]
fn volumes_grow_step_by_step() {
    let asked = json!({"resources": {"requests": {"storage": "2Gi"}}});
    let none = grown("1024Mi", &json!({}), None);
    assert!(none.is_asked_for() && none.ask.is_none());
    assert_eq!(reason("1Gi", &none).0, Some(true));

    let small = grown("2Gi", &json!({}), None);
    assert_eq!((small.small.len(), small.is_asked_for()), (6, false));
    assert_eq!(small.ask, Some(Quantity("2Gi".into())));
    assert_eq!(reason("2Gi", &small).1, "Resizing");

    let waiting = grown("2Gi", &json!({"spec": asked}), None);
    assert!(waiting.is_asked_for() && waiting.ask.is_none());
    let (holds, why, words) = reason("2Gi", &waiting);
    assert_eq!((holds, why), (Some(false), "Resizing"));
    assert!(
        words.contains("6 volume claims") && words.contains("2Gi"),
        "{words}"
    );

    let condition = |kind: &str, message: &str| json!({"spec": asked, "status": {"conditions": [{"type": kind, "status": "True", "message": message}]}});
    let broken = grown(
        "2Gi",
        &condition("ControllerResizeError", "no space in pool"),
        None,
    );
    let (_, why, words) = reason("2Gi", &broken);
    assert!(
        why == "Resizing" && words.contains("no space in pool"),
        "{words}"
    );
    let pending = grown("2Gi", &condition("FileSystemResizePending", ""), None);
    let (holds, why, _) = reason("2Gi", &pending);
    assert_eq!((holds, why), (Some(false), "FileSystemResizePending"));

    let done = json!({"spec": asked, "status": {"capacity": {"storage": "2Gi"}}});
    let (holds, why, _) = reason("2Gi", &grown("2Gi", &done, None));
    assert_eq!((holds, why), (Some(true), "Resized"));
    // A cluster that was created again over larger volumes.
    let larger = grown("1Gi", &done, None);
    assert!(larger.small.is_empty() && reason("1Gi", &larger).0 == Some(true));
}

#[test]
fn a_refused_size_is_asked_for_seldom() {
    let refusal = |size: &str, retry| Refusal {
        claim: "data-shop-0-0".into(),
        size: Quantity(size.to_owned()),
        reason: "RefusedByStorageClass",
        words: "no; set allowVolumeExpansion: true in its StorageClass".into(),
        retry,
    };
    let later = Timestamp::from_second(9).unwrap();
    let waits = grown("2Gi", &json!({}), Some(refusal("2Gi", later)));
    assert!(waits.ask.is_none() && !waits.is_asked_for());
    let (holds, why, words) = reason("2Gi", &waits);
    assert_eq!((holds, why), (Some(false), "RefusedByStorageClass"));
    assert!(
        words.starts_with("volume claim data-shop-0-0: no"),
        "{words}"
    );
    let again = grown("2Gi", &json!({}), Some(refusal("2Gi", NOW)));
    assert!(again.ask.is_some() && again.small.len() == 1);
    // Another size is another question.
    let other = grown("3Gi", &json!({}), Some(refusal("2Gi", later)));
    assert!(other.ask.is_some() && other.small.len() == 6);
    assert_eq!(reason("3Gi", &other).1, "Resizing");
}

#[test]
fn a_cluster_in_memory_has_no_volumes() {
    let mut memory = cluster(DeletionPolicy::Delete, "1Gi");
    memory.storage = None;
    assert!(ties(&memory, &sizes(2), &claims(&json!({}))).is_empty());
    let growth = growth(&memory, &sizes(2), &claims(&json!({})), None, NOW);
    assert!(growth.condition(Some(&memory)).is_none());
}

/// The API server refuses a StatefulSet with other claims than it has.
#[test]
fn an_existing_set_keeps_the_size_of_its_claims() {
    let rendered = |size: &str| {
        let cluster = cluster(DeletionPolicy::Retain, size);
        let set = build(&cluster, &sizes(2), "system").stateful_sets.remove(0);
        (cluster, set)
    };
    let (small, old) = rendered("1Gi");
    let (large, new) = rendered("2Gi");
    assert!(is_outgrown(&large, &old) && !is_outgrown(&small, &old));
    assert_eq!(applicable(new.clone(), Some(&old)).unwrap(), old);
    assert_eq!(applicable(new.clone(), None).unwrap(), new);
    // The same size in other words is no other size, and no other hash.
    let (_, words) = rendered("1024Mi");
    assert!(!is_outgrown(&small, &words));
    assert_eq!(applicable(words.clone(), Some(&old)).unwrap(), words);
    let mut leaving = old.clone();
    leaving.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    assert!(applicable(new, Some(&leaving)).is_none());
}

/// By mistake or to be created again: no volume goes with a StatefulSet.
#[test]
fn no_volume_goes_with_a_set() {
    for policy in [DeletionPolicy::Delete, DeletionPolicy::Retain] {
        for set in build(&cluster(policy, "1Gi"), &sizes(2), "system").stateful_sets {
            let retention = set.spec.persistent_volume_claim_retention_policy;
            assert_eq!(retention.unwrap().when_deleted.as_deref(), Some("Retain"));
        }
    }
}
