//! The steps while shards are captured: another attempt, the check after the forks, the manifest.

use super::{
    observed::{Awaited, Observed, Question},
    settled,
    step::{Freed, Step},
};
use crate::slot_map::SlotMap;
use common::kubernetes::{background::Background, conditions::holds};
use crds::{BackupShard, BackupShardState, RedisBackup, RedisBackupStatus};
use std::time::Duration;

/// The next step of a backup whose shards are handed out.
pub(super) fn carry_on(backup: &RedisBackup, status: &RedisBackupStatus, seen: &Observed) -> Step {
    let units = &status.shards;
    if units.iter().any(is_claimed) && seen.members.is_none() {
        return Step::Ask(Question::Members);
    }
    if let Some(exhausted) = units
        .iter()
        .find(|unit| is_exhausted(unit, backup.spec.attempts, seen))
    {
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
        if units
            .iter()
            .all(|unit| unit.state == BackupShardState::Stored)
        {
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
            on: Awaited::Manifest,
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
    matches!(
        unit.state,
        BackupShardState::Pending | BackupShardState::Streaming
    )
}

/// Its snapshot has been taken and is on its way, or stored.
fn is_forked(unit: &BackupShard) -> bool {
    unit.forked_at.is_some()
        && matches!(
            unit.state,
            BackupShardState::Streaming | BackupShardState::Stored
        )
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
        1 => format!(
            "shard {} (slots {slots}) failed at its only attempt: {cause}",
            unit.index
        ),
        n => format!(
            "shard {} (slots {slots}) failed {n} times, at last: {cause}",
            unit.index
        ),
    }
}

fn why_lost(unit: &BackupShard, seen: &Observed) -> String {
    if is_orphan(unit, seen) {
        return format!(
            "the controller replica {} that read it is gone",
            unit.worker
        );
    }
    unit.error
        .clone()
        .unwrap_or_else(|| "no cause was reported".to_owned())
}

/// Units whose attempt is lost and whose turn for another has come.
fn to_free(units: &[BackupShard], seen: &Observed) -> Vec<Freed> {
    let due = |unit: &BackupShard| {
        let failed_for = seen
            .failed_for
            .get(&unit.index)
            .copied()
            .unwrap_or_default();
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
