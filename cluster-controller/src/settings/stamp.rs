//! The restart hashes of pods. Pure.
//!
//! Hashes of earlier versions of the controller covered the settings, which restarted every pod for any of them. Pods with such a hash
//! are up to date when it is right, and are given the hash that leaves the settings out.

use crate::{
    pod_patch::{PodChange, PodPatch},
    pods::{Pods, is_terminating, restart_hash},
    validate::ValidatedCluster,
};
use crds::ANNOTATION_RESTART_HASH;
use k8s_openapi::api::core::v1::Pod;

/// Whether the pod was made from a template that differs in more than settings from the one that the shard's next pod would have.
pub fn is_outdated(cluster: &ValidatedCluster, shard: usize, pod: &Pod) -> bool {
    let hash = restart_hash(pod);
    hash != Some(cluster.restart_hash_of(shard)) && !has_former_hash(cluster, pod)
}

fn has_former_hash(cluster: &ValidatedCluster, pod: &Pod) -> bool {
    cluster.held.is_empty() && restart_hash(pod) == Some(&cluster.former_hash)
}

/// Pods that are to get the hash of this version.
pub fn changes(cluster: &ValidatedCluster, pods: &Pods) -> Vec<PodPatch> {
    let former = pods.values().filter(|pod| {
        cluster.former_hash != cluster.restart_hash
            && has_former_hash(cluster, pod)
            && !is_terminating(pod)
    });
    former
        .map(|pod| PodPatch {
            pod: pod.clone(),
            change: PodChange::Annotation(ANNOTATION_RESTART_HASH, cluster.restart_hash.clone()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::{tests::example, validate};
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;
    use std::sync::Arc;

    fn pod(hash: &str) -> Arc<Pod> {
        let metadata = json!({"name": "shop-0-0", "annotations": {ANNOTATION_RESTART_HASH: hash}});
        Arc::new(serde_json::from_value(json!({ "metadata": metadata })).unwrap())
    }

    /// An upgrade of the controller restarts nothing, and afterwards a changed setting restarts nothing either.
    #[test]
    fn pods_of_earlier_versions_are_up_to_date() {
        let mut object = example();
        let cluster = validate(&object, None, Timestamp::UNIX_EPOCH).unwrap();
        let old = pod(&cluster.former_hash);
        assert_ne!(cluster.former_hash, cluster.restart_hash);
        assert!(!is_outdated(&cluster, 0, &old));
        let pods: Pods = [("shop-0-0".to_owned(), old.clone())].into();
        let patches = changes(&cluster, &pods);
        let hash = cluster.restart_hash.clone();
        assert_eq!(
            patches[0].change,
            PodChange::Annotation(ANNOTATION_RESTART_HASH, hash.clone())
        );
        let new = pod(&hash);
        let pods: Pods = [("shop-0-0".to_owned(), new.clone())].into();
        assert!(changes(&cluster, &pods).is_empty());
        object.spec.config.insert("maxmemory".into(), "65mb".into());
        let changed = validate(&object, None, Timestamp::UNIX_EPOCH).unwrap();
        assert!(!is_outdated(&changed, 0, &new) && is_outdated(&changed, 0, &old));
        object.spec.image = Some("other".into());
        let changed = validate(&object, None, Timestamp::UNIX_EPOCH).unwrap();
        assert!(is_outdated(&changed, 0, &new));
    }
}
