//! The steps that make the target ready, and the last check before the first key is written.

use super::{
    observed::{Examined, Observed, Question, TargetState},
    step::{Failure, Step},
};
use crate::compatibility;
use common::{
    cluster::slot_map::NotSettled,
    kubernetes::{
        conditions::{find, holds},
        leases::Operation,
    },
};
use crds::{ANNOTATION_RESTORE_UID, RedisCluster, RedisRestore, RestoreUnit};
use kube::ResourceExt;

/// Name of the cluster that receives the backup.
pub fn target_name(restore: &RedisRestore) -> &str {
    let target = &restore.spec.target;
    match (&target.cluster_ref, &target.new_cluster) {
        (Some(reference), _) => &reference.name,
        (None, Some(new)) => &new.name,
        (None, None) => "",
    }
}

pub(super) fn prepare(restore: &RedisRestore, examined: &Examined, seen: &Observed) -> Step {
    let Some(cluster) = &seen.cluster else {
        return Step::Ask(Question::Cluster);
    };
    if let Err(step) = ready(restore, cluster.as_deref()) {
        return step;
    }
    match &seen.operation {
        None => return Step::Ask(Question::Operation),
        Some(Operation::HeldBy(other)) => {
            return Step::Wait {
                reason: "OperationUnderWay",
                message: format!("waiting for {other}, which holds the target's operation Lease"),
            };
        }
        Some(Operation::Held) => {}
    }
    match &seen.target {
        None => Step::Ask(Question::Target),
        Some(Err(error)) => not_settled(error),
        Some(Ok(state)) => match acceptable(target_name(restore), examined, state) {
            Err(failure) => Step::Fail(failure),
            Ok(server) => Step::List {
                units: units(&examined.blocks),
                server,
                keys: examined.keys,
            },
        },
    }
}

fn not_settled(error: &NotSettled) -> Step {
    Step::Wait {
        reason: "TargetNotSettled",
        message: error.to_string(),
    }
}

/// Whether the cluster exists, is the right one, and serves.
fn ready(restore: &RedisRestore, cluster: Option<&RedisCluster>) -> Result<(), Step> {
    let name = target_name(restore);
    let is_new = restore.spec.target.new_cluster.is_some();
    let Some(cluster) = cluster else {
        if is_new {
            return Err(Step::CreateCluster);
        }
        return Err(Step::Wait {
            reason: "ClusterNotFound",
            message: format!("there is no RedisCluster {name} in this namespace: waiting for it"),
        });
    };
    if is_new && cluster.annotations().get(ANNOTATION_RESTORE_UID) != restore.uid().as_ref() {
        return Err(Step::Fail(unfit(
            "NameTaken",
            format!(
                "RedisCluster {name} exists and was not created by this restore: choose another name, or name it as target.clusterRef if it is empty"
            ),
        )));
    }
    if cluster.metadata.deletion_timestamp.is_some() {
        return Err(Step::Fail(unfit(
            "ClusterDeleted",
            format!("RedisCluster {name} is being deleted: restore into another one"),
        )));
    }
    let status = cluster.status.clone().unwrap_or_default();
    if status.observed_generation < cluster.metadata.generation {
        return Err(Step::Wait {
            reason: "ClusterNotObserved",
            message: format!(
                "waiting until the cluster-controller has seen the latest change of RedisCluster {name}"
            ),
        });
    }
    // A new cluster is waited for until it is ready; an existing one may lack a replica and still serve.
    let wanted = if is_new { "Ready" } else { "SlotsCovered" };
    if holds(&status.conditions, wanted) {
        return Ok(());
    }
    let reported = find(&status.conditions, wanted).map_or("", |c| c.message.as_str());
    Err(Step::Wait {
        reason: "ClusterNotReady",
        message: format!("waiting until RedisCluster {name} is ready: {reported}")
            .trim_end_matches([':', ' '])
            .to_owned(),
    })
}

/// Whether the target is empty and can read the backup; what it runs.
fn acceptable(name: &str, examined: &Examined, state: &TargetState) -> Result<String, Failure> {
    let keys: u64 = state.keys.iter().map(|(_, keys)| keys).sum();
    if let Some((node, most)) = state.keys.iter().max_by_key(|(_, keys)| *keys)
        && keys > 0
    {
        return Err(unfit(
            "TargetNotEmpty",
            format!(
                "RedisCluster {name} holds {keys} keys ({most} of them on node {node}): a backup is restored into an empty cluster, nothing was written"
            ),
        ));
    }
    for server in &state.servers {
        compatibility::check(examined.rdb_version, &examined.server, server).map_err(|error| {
            Failure {
                condition: "Compatible",
                reason: "IncompatibleVersion",
                message: error.to_string(),
                verified: None,
            }
        })?;
    }
    let names: Vec<String> = state.servers.iter().map(compatibility::describe).collect();
    Ok(names.join(", "))
}

fn units(blocks: &[u64]) -> Vec<RestoreUnit> {
    let unit = |(index, blocks): (i32, &u64)| RestoreUnit {
        index,
        attempt: 1,
        blocks: i64::try_from(*blocks).unwrap_or(i64::MAX),
        ..RestoreUnit::default()
    };
    (0..).zip(blocks).map(unit).collect()
}

fn unfit(reason: &'static str, message: String) -> Failure {
    Failure {
        condition: "TargetReady",
        reason,
        message,
        verified: None,
    }
}
