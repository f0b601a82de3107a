//! The next step of a backup. Pure: everything that is known goes in, one step with its reason comes out.
//!
//! The status stores facts that cannot be observed again (which storage was resolved, which replica holds which shard, when a
//! server forked, that the slot map was the same after the forks). The phase is not among them.

mod attempts;
mod observed;
mod step;
#[cfg(test)]
mod tests;

pub use observed::*;
pub use step::*;

use crate::{shards, units::BackupUnits};
use common::{
    claims::unit::{Unit, UnitKind},
    cluster::slot_map::SlotMap,
    kubernetes::{
        conditions::{find, holds},
        leases::Operation,
    },
};
use crds::{
    DeletionPolicy, FINALIZER_ARTIFACTS, RedisBackup, RedisBackupStatus, RedisCluster, S3Location,
};
use kube::ResourceExt;
use std::time::Duration;

/// How long a backup waits before it has failed.
pub const PATIENCE: Duration = Duration::from_mins(10);
/// How long a storage that cannot be used is waited for before anything was captured.
pub const STORAGE_PATIENCE: Duration = Duration::from_mins(2);
/// How long the deletion of artifacts is tried before the finalizer is removed without it.
pub const DELETION_PATIENCE: Duration = Duration::from_mins(2);
/// How long the deletion waits for replicas that still upload.
pub const STOPPING_PATIENCE: Duration = Duration::from_secs(20);

/// The next step of `backup`.
pub fn plan(backup: &RedisBackup, seen: &Observed) -> Step {
    let status = backup.status.clone().unwrap_or_default();
    let protected = common::kubernetes::finalizer::is_set(backup, FINALIZER_ARTIFACTS);
    if backup.metadata.deletion_timestamp.is_some() {
        return if protected {
            delete(backup, &status, seen)
        } else {
            Step::Done
        };
    }
    match (backup.spec.deletion_policy, protected) {
        (DeletionPolicy::Delete, false) => return Step::AddFinalizer,
        (DeletionPolicy::Retain, true) => return Step::RemoveFinalizer,
        (DeletionPolicy::Delete, true) | (DeletionPolicy::Retain, false) => {}
    }
    if is_finished(&status) {
        return Step::Done;
    }
    let step = if status.storage.is_none() || status.backup_id.is_none() {
        accept(backup, seen)
    } else if status.shards.is_empty() {
        list(seen, 1)
    } else {
        attempts::capture(backup, &status, seen)
    };
    bounded(step, seen)
}

/// Whether the backup has succeeded or failed.
pub fn is_finished(status: &RedisBackupStatus) -> bool {
    holds(&status.conditions, "Complete") || holds(&status.conditions, "Failed")
}

/// Waiting is bounded.
fn bounded(step: Step, seen: &Observed) -> Step {
    let Step::Wait {
        on,
        reason,
        message,
    } = &step
    else {
        return step;
    };
    if seen.waited(*on) < PATIENCE {
        return step;
    }
    let minutes = PATIENCE.as_secs() / 60;
    Step::Fail {
        reason,
        message: format!("gave up after {minutes} minutes: {message}"),
    }
}

fn delete(backup: &RedisBackup, status: &RedisBackupStatus, seen: &Observed) -> Step {
    if status.storage.is_none() || backup.spec.deletion_policy == DeletionPolicy::Retain {
        return Step::RemoveFinalizer;
    }
    let tried = matches!(seen.waiting, Some((Awaited::Deletion, _)));
    if !tried
        && seen.deletion.is_none()
        && BackupUnits::units(backup).iter().any(Unit::is_claimed)
        && seen.waited(Awaited::Stopping) < STOPPING_PATIENCE
    {
        // What a replica still uploads would appear after the deletion. Replicas stop when they see the deletion timestamp.
        return Step::Wait {
            on: Awaited::Stopping,
            reason: "Stopping",
            message: "waiting until the controller's replicas have stopped their uploads"
                .to_owned(),
        };
    }
    match &seen.deletion {
        None => Step::DeleteArtifacts,
        Some(Ok(())) => Step::RemoveFinalizer,
        Some(Err(failure))
            if failure.transient && seen.waited(Awaited::Deletion) < DELETION_PATIENCE =>
        {
            Step::Wait {
                on: Awaited::Deletion,
                reason: failure.reason,
                message: failure.message.clone(),
            }
        }
        Some(Err(failure)) => Step::Abandon(failure.clone()),
    }
}

fn accept(backup: &RedisBackup, seen: &Observed) -> Step {
    let name = &backup.spec.cluster_ref.name;
    let Some(found) = &seen.cluster else {
        return Step::Ask(Question::Cluster);
    };
    let Some(cluster) = found else {
        return Step::Wait {
            on: Awaited::Cluster,
            reason: "ClusterNotFound",
            message: format!("there is no RedisCluster {name} in this namespace: waiting for it"),
        };
    };
    let storage = match resolve(backup, cluster) {
        Ok(storage) => storage,
        Err(message) => {
            return Step::Fail {
                reason: "StorageUnknown",
                message,
            };
        }
    };
    match &seen.storage {
        None => Step::Probe(Box::new(storage)),
        Some(Ok(())) => Step::Accept(Box::new(storage)),
        Some(Err(failure))
            if failure.transient && seen.waited(Awaited::Storage) < STORAGE_PATIENCE =>
        {
            Step::Wait {
                on: Awaited::Storage,
                reason: failure.reason,
                message: failure.message.clone(),
            }
        }
        Some(Err(failure)) => Step::Fail {
            reason: failure.reason,
            message: failure.message.clone(),
        },
    }
}

/// The storage the backup means.
pub fn resolve(backup: &RedisBackup, cluster: &RedisCluster) -> Result<S3Location, String> {
    if let Some(s3) = &backup.spec.s3 {
        return Ok(s3.clone());
    }
    let wanted = backup.spec.storage_name.as_deref().unwrap_or_default();
    let storages = cluster
        .spec
        .backup
        .as_ref()
        .map_or(&[][..], |plan| plan.storages.as_slice());
    if let Some(storage) = storages.iter().find(|storage| storage.name == wanted) {
        return Ok(storage.s3.clone());
    }
    let known: Vec<_> = storages
        .iter()
        .map(|storage| storage.name.as_str())
        .collect();
    let known = if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    };
    Err(format!(
        "RedisCluster {} has no storage named \"{wanted}\" in spec.backup.storages (it has: {known}): correct storageName in a new RedisBackup",
        cluster.name_any()
    ))
}

/// Distributes the shards as attempt number `attempt`.
fn list(seen: &Observed, attempt: i32) -> Step {
    let Some(found) = &seen.cluster else {
        return Step::Ask(Question::Cluster);
    };
    if let Err((reason, message)) = serves(found.as_deref()) {
        let on = Awaited::Cluster;
        return Step::Wait {
            on,
            reason,
            message,
        };
    }
    match settled(seen) {
        Err(step) => step,
        Ok(map) => Step::List {
            units: shards::units(map, attempt),
            topology_hash: map.hash.clone(),
        },
    }
}

/// Whether the cluster-controller reports, for the current spec, that the cluster serves all slots.
fn serves(cluster: Option<&RedisCluster>) -> Result<(), (&'static str, String)> {
    let Some(cluster) = cluster else {
        return Err((
            "ClusterNotFound",
            "the RedisCluster is gone: waiting for it".to_owned(),
        ));
    };
    let status = cluster.status.clone().unwrap_or_default();
    if status.observed_generation < cluster.metadata.generation {
        return Err((
            "ClusterNotObserved",
            "waiting until the cluster-controller has seen the latest change of the cluster"
                .to_owned(),
        ));
    }
    if holds(&status.conditions, "SlotsCovered") {
        return Ok(());
    }
    let reported = find(&status.conditions, "SlotsCovered").map_or("", |c| c.message.as_str());
    Err((
        "SlotsNotCovered",
        format!("waiting until all 16384 slots of the cluster are served {reported}")
            .trim_end()
            .to_owned(),
    ))
}

/// The slot map while the backup holds the operation Lease: no slots are moved then.
fn settled(seen: &Observed) -> Result<&SlotMap, Step> {
    match &seen.operation {
        None => return Err(Step::Ask(Question::Operation)),
        Some(Operation::HeldBy(other)) => {
            return Err(Step::Wait {
                on: Awaited::Operation,
                reason: "OperationUnderWay",
                message: format!("waiting for {other}, which holds the cluster's operation Lease"),
            });
        }
        Some(Operation::Held) => {}
    }
    match &seen.slot_map {
        None => Err(Step::Ask(Question::SlotMap)),
        Some(Ok(map)) => Ok(map),
        Some(Err(error)) => Err(Step::Wait {
            on: Awaited::Cluster,
            reason: "SlotMapNotSettled",
            message: error.to_string(),
        }),
    }
}
