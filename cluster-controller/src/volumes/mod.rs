//! The volume claims of a cluster: what has to be written into them, and how far their volumes have grown. Pure.
//!
//! Volumes go with the RedisCluster by an owner reference, so that a StatefulSet can be deleted, by mistake too, without one of them. The
//! reference is taken away from the claim of a pod that leaves for good: the garbage collector keeps an object as long as any of its
//! owners exists, and the StatefulSet controller deletes the volume of a pod that was scaled down by making that pod its owner
//! (`attemptToDeleteItem` in Kubernetes' `pkg/controller/garbagecollector`, `updateClaimOwnerRefForSetAndPod` in
//! `pkg/controller/statefulset`, 1.33 to 1.35).

mod blank;
mod growth;

pub use blank::{are_blank, are_kept};
pub use growth::{Growth, Refusal, growth};

use crate::{
    sets::SetSize,
    validate::{ValidatedCluster, Volume},
};
use common::kubernetes::drift::quantity;
use crds::{CLAIM, DeletionPolicy, node_of_pod};
use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::PersistentVolumeClaim},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::OwnerReference},
};
use kube::ResourceExt;
use std::{collections::BTreeMap, sync::Arc};

/// The claims of the pods of a cluster by shard and ordinal, whether the pods exist or not.
pub type Claims = BTreeMap<(i32, i32), Arc<PersistentVolumeClaim>>;

/// A claim and what has to be written into it.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimPatch {
    /// The claim as it was looked at.
    pub claim: Arc<PersistentVolumeClaim>,
    /// What is written into it.
    pub change: ClaimChange,
}

/// What is written into a claim.
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimChange {
    /// The owner reference by which it goes with the RedisCluster.
    Tie(OwnerReference),
    /// That reference is taken away.
    Untie {
        /// Uid of the RedisCluster.
        uid: String,
    },
}

/// The claims among these whose name is that of a pod of the cluster.
pub fn of_cluster(
    cluster: &str,
    claims: impl IntoIterator<Item = Arc<PersistentVolumeClaim>>,
) -> Claims {
    let node = |claim: &PersistentVolumeClaim| {
        let name = claim.metadata.name.as_deref()?;
        let pod = name.strip_prefix(CLAIM)?.strip_prefix('-')?;
        node_of_pod(cluster, pod)
    };
    let claims = claims.into_iter();
    claims
        .filter_map(|claim| Some((node(&claim)?, claim)))
        .collect()
}

/// The owner references that are missing, and those that are too many. `sizes`: the pods that stay.
pub fn ties(cluster: &ValidatedCluster, sizes: &[SetSize], claims: &Claims) -> Vec<ClaimPatch> {
    let Some(storage) = &cluster.storage else {
        return Vec::new();
    };
    let patch = |(node, claim): (&(i32, i32), &Arc<PersistentVolumeClaim>)| {
        let change = tie(cluster, storage, stays(cluster, sizes, *node), claim)?;
        Some(ClaimPatch {
            claim: Arc::clone(claim),
            change,
        })
    };
    claims.iter().filter_map(patch).collect()
}

/// Whether its pod stays. While a cluster hibernates every volume does.
fn stays(cluster: &ValidatedCluster, sizes: &[SetSize], (shard, ordinal): (i32, i32)) -> bool {
    let mut sizes = sizes.iter();
    cluster.shape.hibernate || sizes.any(|size| size.shard == shard && ordinal < size.pods)
}

fn tie(
    cluster: &ValidatedCluster,
    storage: &Volume,
    stays: bool,
    claim: &PersistentVolumeClaim,
) -> Option<ClaimChange> {
    let mut owners = claim.owner_references().iter();
    let is_tied = owners.any(|owner| owner.uid == cluster.owner.uid);
    match storage.when_deleted {
        // Before it is bound the scheduler writes into it, and a write between fails that one, which then waits for 10 s.
        DeletionPolicy::Delete if stays && !is_tied && is_bound(claim) => {
            Some(ClaimChange::Tie(OwnerReference {
                controller: None,
                block_owner_deletion: None,
                ..cluster.owner.clone()
            }))
        }
        DeletionPolicy::Delete if stays => None,
        DeletionPolicy::Delete | DeletionPolicy::Retain => is_tied.then(|| ClaimChange::Untie {
            uid: cluster.owner.uid.clone(),
        }),
    }
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let status = claim.status.as_ref();
    claim.metadata.deletion_timestamp.is_none()
        && status.is_some_and(|status| status.phase.as_deref() == Some("Bound"))
}

/// How much a claim asks for.
fn requested(claim: &PersistentVolumeClaim) -> Option<&Quantity> {
    let resources = claim.spec.as_ref()?.resources.as_ref()?;
    resources.requests.as_ref()?.get("storage")
}

fn is_less(size: Option<&Quantity>, wanted: &Quantity) -> bool {
    let size = size.and_then(|size| quantity(&size.0));
    size.zip(quantity(&wanted.0))
        .is_some_and(|(size, wanted)| size < wanted)
}

/// The StatefulSet as it can be applied: the size of its claims cannot be changed, so one that exists keeps its own until it is created
/// again. None while it is being deleted.
pub fn applicable(mut set: StatefulSet, observed: Option<&StatefulSet>) -> Option<StatefulSet> {
    let Some(observed) = observed else {
        return Some(set);
    };
    if observed.metadata.deletion_timestamp.is_some() {
        return None;
    }
    if let (Some(size), Some(own)) = (claimed(observed).cloned(), claimed_mut(&mut set))
        && !is_same(&size, own)
    {
        *own = size;
    }
    Some(set)
}

/// Whether a StatefulSet has to be created again, because its claims would have another size.
pub fn is_outgrown(cluster: &ValidatedCluster, set: &StatefulSet) -> bool {
    let wanted = cluster.storage.as_ref().map(|storage| &storage.size);
    let own = claimed(set);
    own.zip(wanted)
        .is_some_and(|(own, wanted)| !is_same(own, wanted))
}

fn is_same(size: &Quantity, other: &Quantity) -> bool {
    size == other || quantity(&size.0) == quantity(&other.0)
}

fn claimed(set: &StatefulSet) -> Option<&Quantity> {
    let claims = set.spec.volume_claim_templates.iter().flatten();
    let mut claims = claims.filter(|claim| claim.metadata.name.as_deref() == Some(CLAIM));
    requested(claims.next()?)
}

fn claimed_mut(set: &mut StatefulSet) -> Option<&mut Quantity> {
    let claims = set.spec.volume_claim_templates.iter_mut().flatten();
    let mut claims = claims.filter(|claim| claim.metadata.name.as_deref() == Some(CLAIM));
    let spec = claims.next()?.spec.as_mut()?;
    spec.resources
        .as_mut()?
        .requests
        .as_mut()?
        .get_mut("storage")
}

#[cfg(test)]
mod tests;
