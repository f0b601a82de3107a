//! The next step of a backup. Pure: everything that is known goes in, one step with its reason comes out.
//!
//! What is stored in the status and read here are facts that cannot be seen again (which storage was resolved, who holds
//! which shard, when a server forked, that the slot map was the same after the forks). The phase is not among them.

use crate::slot_map::{NotSettled, SlotMap};
use common::kubernetes::{
    conditions::{find, holds},
    leases::Operation,
};
use crds::{
    BackupShard, BackupShardState, DeletionPolicy, FINALIZER_ARTIFACTS, RedisBackup,
    RedisBackupStatus, RedisCluster, S3Location,
};
use kube::ResourceExt;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// How long a backup waits for the same thing before it has failed.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// How long the deletion of artifacts is tried before the object is let go without it.
pub const DELETION_PATIENCE: Duration = Duration::from_secs(120);
/// How long the deletion waits for replicas that still upload.
pub const STOPPING_PATIENCE: Duration = Duration::from_secs(20);
/// When to look again at the latest while something is waited for or under way.
pub const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What is known in this pass. `None`: not asked yet; [`Step::Ask`] says what to ask next.
#[derive(Debug, Default)]
pub struct Observed {
    /// The cluster; `Some(None)`: there is none of that name.
    pub cluster: Option<Option<Arc<RedisCluster>>>,
    /// Whether the storage can be used: a sentence if not.
    pub storage: Option<Result<(), StorageTrouble>>,
    /// Whether the operation lease is ours.
    pub operation: Option<Operation>,
    /// The slot map, read just now.
    pub slot_map: Option<Result<SlotMap, NotSettled>>,
    /// Names of the replicas of this controller that live.
    pub members: Option<BTreeSet<String>>,
    /// How publishing went; `None` while it was not begun.
    pub publishing: Option<Background<Published>>,
    /// How the deletion of the artifacts went; `None` while it was not begun.
    pub deletion: Option<Background<()>>,
    /// For how long each failed unit has been seen as failed, by index.
    pub failed_for: BTreeMap<i32, Duration>,
    /// For how long the same thing has been waited for.
    pub waiting_for: Duration,
}

/// Why the storage cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageTrouble {
    /// CamelCase.
    pub reason: &'static str,
    /// A sentence with bucket, key and cause.
    pub message: String,
    /// Whether it may pass by itself.
    pub transient: bool,
}

/// Work that runs beside the reconcile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Background<T> {
    /// Not finished.
    Running,
    /// Finished.
    Done(T),
    /// Failed.
    Failed(StorageTrouble),
}

/// A manifest that is in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its key.
    pub manifest_key: String,
    /// Its SHA-256, hex.
    pub manifest_sha256: String,
    /// Milliseconds between the first and the last fork.
    pub skew_ms: i64,
    /// Version of the RDB format in the objects.
    pub rdb_version: i32,
}

/// What the planner has to know before it can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The RedisCluster.
    Cluster,
    /// Whether bucket and credentials are usable.
    Storage,
    /// Take or renew the operation lease.
    Operation,
    /// Ask every node for the slot map.
    SlotMap,
    /// Which replicas of the controller live.
    Members,
}

/// The next step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Find something out, then plan again.
    Ask(Question),
    /// Set the finalizer that guards the artifacts.
    AddFinalizer,
    /// Take the finalizer off.
    RemoveFinalizer,
    /// Begin to delete the artifacts, or go on with it.
    DeleteArtifacts,
    /// The artifacts cannot be deleted: say so and let the object go.
    Abandon(StorageTrouble),
    /// Record which storage is meant.
    Accept(Box<S3Location>),
    /// Hand out the shards. `again`: the slot map has changed, the work starts anew.
    List {
        /// One unit for each shard.
        units: Vec<BackupShard>,
        /// Hash of the slot map.
        topology_hash: String,
    },
    /// Give these units to another attempt.
    Free(Vec<Freed>),
    /// The slot map after the last fork is cut like the one before the first.
    ConfirmSlots,
    /// Begin to write the manifest, or go on with it.
    Publish,
    /// The backup is complete.
    Succeed(Published),
    /// The backup has failed.
    Fail {
        /// CamelCase.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
    /// Something outside has to happen first.
    Wait {
        /// CamelCase.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
    /// The replicas are at work.
    Watch,
    /// Nothing is left to do.
    Rest,
}

/// A unit that gets another attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freed {
    /// Position in the status.
    pub position: usize,
    /// Who held it.
    pub worker: String,
    /// The attempt that is lost.
    pub attempt: i32,
    /// Key of the object that the lost attempt was writing.
    pub key: Option<String>,
    /// Why.
    pub error: String,
}

/// The next step of `backup`.
pub fn plan(backup: &RedisBackup, seen: &Observed) -> Step {
    let status = backup.status.clone().unwrap_or_default();
    let guarded = common::kubernetes::finalizer::is_set(backup, FINALIZER_ARTIFACTS);
    if backup.metadata.deletion_timestamp.is_some() {
        return match guarded {
            true => delete(backup, &status, seen),
            false => Step::Rest,
        };
    }
    match (backup.spec.deletion_policy, guarded) {
        (DeletionPolicy::Delete, false) => return Step::AddFinalizer,
        (DeletionPolicy::Retain, true) => return Step::RemoveFinalizer,
        (DeletionPolicy::Delete, true) | (DeletionPolicy::Retain, false) => {}
    }
    if is_finished(&status) {
        return Step::Rest;
    }
    let step = if status.storage.is_none() || status.backup_id.is_none() {
        accept(backup, seen)
    } else if status.shards.is_empty() {
        list(seen, 1)
    } else {
        carry_on(backup, &status, seen)
    };
    impatient(step, seen.waiting_for)
}

/// Whether the backup has succeeded or failed.
pub fn is_finished(status: &RedisBackupStatus) -> bool {
    holds(&status.conditions, "Complete") || holds(&status.conditions, "Failed")
}

/// Waiting is bounded.
fn impatient(step: Step, waited: Duration) -> Step {
    match step {
        Step::Wait { reason, message } if waited >= PATIENCE => Step::Fail {
            reason,
            message: format!("gave up after {} minutes: {message}", PATIENCE.as_secs() / 60),
        },
        step => step,
    }
}

fn delete(backup: &RedisBackup, status: &RedisBackupStatus, seen: &Observed) -> Step {
    if status.storage.is_none() || backup.spec.deletion_policy == DeletionPolicy::Retain {
        return Step::RemoveFinalizer;
    }
    if status.shards.iter().any(is_claimed) && seen.waiting_for < STOPPING_PATIENCE {
        // What a replica still uploads would appear after the deletion. They stop as soon as they see it coming.
        return Step::Wait {
            reason: "Stopping",
            message: "waiting until the controller's replicas have stopped their uploads".to_owned(),
        };
    }
    match &seen.deletion {
        None | Some(Background::Running) => Step::DeleteArtifacts,
        Some(Background::Done(())) => Step::RemoveFinalizer,
        Some(Background::Failed(trouble))
            if trouble.transient && seen.waiting_for < DELETION_PATIENCE =>
        {
            Step::Wait {
                reason: trouble.reason,
                message: trouble.message.clone(),
            }
        }
        Some(Background::Failed(trouble)) => Step::Abandon(trouble.clone()),
    }
}

fn accept(backup: &RedisBackup, seen: &Observed) -> Step {
    let name = &backup.spec.cluster_ref.name;
    let Some(found) = &seen.cluster else {
        return Step::Ask(Question::Cluster);
    };
    let Some(cluster) = found else {
        return Step::Wait {
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
        None => Step::Ask(Question::Storage),
        Some(Ok(())) => Step::Accept(Box::new(storage)),
        Some(Err(trouble)) if trouble.transient => Step::Wait {
            reason: trouble.reason,
            message: trouble.message.clone(),
        },
        Some(Err(trouble)) => Step::Fail {
            reason: trouble.reason,
            message: trouble.message.clone(),
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
    let known: Vec<_> = storages.iter().map(|storage| storage.name.as_str()).collect();
    let known = match known.is_empty() {
        true => "none".to_owned(),
        false => known.join(", "),
    };
    Err(format!(
        "RedisCluster {} has no storage named \"{wanted}\" in spec.backup.storages (it has: {known}): correct storageName in a new RedisBackup",
        cluster.name_any()
    ))
}

/// Hands the shards out as attempt number `attempt`.
fn list(seen: &Observed, attempt: i32) -> Step {
    let Some(found) = &seen.cluster else {
        return Step::Ask(Question::Cluster);
    };
    if let Err((reason, message)) = serves(found.as_deref()) {
        return Step::Wait { reason, message };
    }
    match settled(seen) {
        Err(step) => step,
        Ok(map) => Step::List {
            units: map.units(attempt),
            topology_hash: map.hash.clone(),
        },
    }
}

/// Whether the cluster-controller says that the cluster serves all slots, and says it of the spec as it is now.
fn serves(cluster: Option<&RedisCluster>) -> Result<(), (&'static str, String)> {
    let Some(cluster) = cluster else {
        return Err(("ClusterNotFound", "the RedisCluster is gone: waiting for it".to_owned()));
    };
    let status = cluster.status.clone().unwrap_or_default();
    if status.observed_generation < cluster.metadata.generation {
        return Err((
            "ClusterNotObserved",
            "waiting until the cluster-controller has seen the latest change of the cluster".to_owned(),
        ));
    }
    if holds(&status.conditions, "SlotsCovered") {
        return Ok(());
    }
    let told = find(&status.conditions, "SlotsCovered").map_or("", |c| c.message.as_str());
    Err((
        "SlotsNotCovered",
        format!("waiting until all 16384 slots of the cluster are served {told}").trim_end().to_owned(),
    ))
}

/// The slot map while the operation lease is ours: nobody moves slots then.
fn settled(seen: &Observed) -> Result<&SlotMap, Step> {
    match &seen.operation {
        None => return Err(Step::Ask(Question::Operation)),
        Some(Operation::HeldBy(other)) => {
            return Err(Step::Wait {
                reason: "OperationUnderWay",
                message: format!("waiting for {other}, which holds the cluster's operation lease"),
            });
        }
        Some(Operation::Held) => {}
    }
    match &seen.slot_map {
        None => Err(Step::Ask(Question::SlotMap)),
        Some(Ok(map)) => Ok(map),
        Some(Err(trouble)) => Err(Step::Wait {
            reason: "SlotMapNotSettled",
            message: trouble.to_string(),
        }),
    }
}

fn carry_on(backup: &RedisBackup, status: &RedisBackupStatus, seen: &Observed) -> Step {
    let units = &status.shards;
    if units.iter().any(is_claimed) && seen.members.is_none() {
        return Step::Ask(Question::Members);
    }
    if let Some(exhausted) = units.iter().find(|unit| is_exhausted(unit, backup.spec.attempts, seen)) {
        return Step::Fail {
            reason: "ShardFailed",
            message: exhausted_words(exhausted, seen),
        };
    }
    let freed = to_free(units, seen);
    if !freed.is_empty() {
        return match settled(seen) {
            Err(step) => step,
            Ok(map) if map.is_cut_like(units) => Step::Free(freed),
            Ok(map) => start_anew(backup, map, units),
        };
    }
    if units.iter().all(is_forked) {
        if !holds(&status.conditions, "SlotsCovered") {
            return match settled(seen) {
                Err(step) => step,
                Ok(map) if map.is_cut_like(units) => Step::ConfirmSlots,
                Ok(map) => start_anew(backup, map, units),
            };
        }
        if units.iter().all(|unit| unit.state == BackupShardState::Stored) {
            return publish(seen);
        }
        return Step::Watch;
    }
    // Until the last fork the lease has to be kept alive. Losing it is no reason to stop: the check after the forks decides.
    match seen.operation {
        None => Step::Ask(Question::Operation),
        Some(_) => Step::Watch,
    }
}

fn publish(seen: &Observed) -> Step {
    match &seen.publishing {
        None | Some(Background::Running) => Step::Publish,
        Some(Background::Done(published)) => Step::Succeed(published.clone()),
        Some(Background::Failed(trouble)) if trouble.transient => Step::Wait {
            reason: trouble.reason,
            message: trouble.message.clone(),
        },
        Some(Background::Failed(trouble)) => Step::Fail {
            reason: trouble.reason,
            message: trouble.message.clone(),
        },
    }
}

/// The slots are cut differently now: what was captured does not fit together.
fn start_anew(backup: &RedisBackup, map: &SlotMap, units: &[BackupShard]) -> Step {
    let attempt = units.iter().map(|unit| unit.attempt).max().unwrap_or(0) + 1;
    if attempt > backup.spec.attempts {
        return Step::Fail {
            reason: "SlotsMoved",
            message: format!(
                "slots were moved between shards during each of {} attempts: make the backup when no slots are moved",
                backup.spec.attempts
            ),
        };
    }
    Step::List {
        units: map.units(attempt),
        topology_hash: map.hash.clone(),
    }
}

/// Somebody works on it.
pub fn is_claimed(unit: &BackupShard) -> bool {
    !unit.worker.is_empty() && is_open(unit)
}

/// It is neither stored nor failed.
fn is_open(unit: &BackupShard) -> bool {
    matches!(unit.state, BackupShardState::Pending | BackupShardState::Streaming)
}

/// Its snapshot has been taken and is on its way, or stored.
fn is_forked(unit: &BackupShard) -> bool {
    unit.forked_at.is_some()
        && matches!(unit.state, BackupShardState::Streaming | BackupShardState::Stored)
}

fn is_orphan(unit: &BackupShard, seen: &Observed) -> bool {
    is_claimed(unit)
        && seen
            .members
            .as_ref()
            .is_some_and(|live| !live.contains(&unit.worker))
}

fn is_exhausted(unit: &BackupShard, attempts: i32, seen: &Observed) -> bool {
    unit.attempt >= attempts && (unit.state == BackupShardState::Failed || is_orphan(unit, seen))
}

fn exhausted_words(unit: &BackupShard, seen: &Observed) -> String {
    let slots = unit.slot_ranges.join(",");
    let cause = why_lost(unit, seen);
    match unit.attempt {
        1 => format!("shard {} (slots {slots}) failed at its only attempt: {cause}", unit.index),
        n => format!("shard {} (slots {slots}) failed {n} times, at last: {cause}", unit.index),
    }
}

fn why_lost(unit: &BackupShard, seen: &Observed) -> String {
    if is_orphan(unit, seen) {
        return format!("the controller replica {} that read it is gone", unit.worker);
    }
    unit.error.clone().unwrap_or_else(|| "no cause was reported".to_owned())
}

/// Units whose attempt is lost and whose turn for another has come.
fn to_free(units: &[BackupShard], seen: &Observed) -> Vec<Freed> {
    let due = |unit: &BackupShard| {
        let failed_for = seen.failed_for.get(&unit.index).copied().unwrap_or_default();
        unit.state == BackupShardState::Failed && failed_for >= pause_after(unit.attempt)
    };
    units
        .iter()
        .enumerate()
        .filter(|(_, unit)| due(unit) || is_orphan(unit, seen))
        .map(|(position, unit)| Freed {
            position,
            worker: unit.worker.clone(),
            attempt: unit.attempt,
            key: unit.key.clone(),
            error: why_lost(unit, seen),
        })
        .collect()
}

/// How long a shard rests after its `attempt`-th attempt has failed: a failover takes some seconds, a store some more.
pub fn pause_after(attempt: i32) -> Duration {
    let doublings = u32::try_from(attempt.clamp(1, 6) - 1).unwrap_or(0);
    Duration::from_secs(2 << doublings)
}
