//! The role labels of the pods, kept to what the nodes themselves say. Pure.

use crate::{
    observe::Observed,
    pod_patch::{PodChange, PodPatch},
    pods::{is_terminating, role_label},
    redis::assess::{Assessment, ShardNode},
};
use crds::{ROLE_PRIMARY, ROLE_REPLICA};

/// Pods whose label differs.
pub fn changes(observed: &Observed, assessment: &Assessment) -> Vec<PodPatch> {
    let change = |node: &ShardNode, role| {
        let pod = observed.pods.get(&node.pod)?.clone();
        let differs = !is_terminating(&pod) && role_label(&pod) != Some(role);
        let change = PodChange::Role(role);
        differs.then_some(PodPatch { pod, change })
    };
    assessment
        .shards
        .iter()
        .flat_map(|shard| {
            let primary = shard.primary.iter().map(|one| (one, ROLE_PRIMARY));
            let replicas = shard.replicas.iter().map(|one| (one, ROLE_REPLICA));
            primary.chain(replicas)
        })
        .filter_map(|(one, role)| change(one, role))
        .collect()
}
