//! The steps while shards are captured: another attempt, the check after the forks, the manifest.

use super::{
    observed::{Awaited, Observed, Question},
    settled,
    step::Step,
};
use crate::{
    shards::{self, are_divided_like},
    units::BackupUnits,
};
use common::{
    claims::unit::{Unit, UnitKind},
    cluster::slot_map::SlotMap,
    kubernetes::conditions::holds,
};
use crds::{BackupShard, BackupShardState, RedisBackup, RedisBackupStatus};

/// The next step of a backup whose shards are distributed.
pub(super) fn capture(backup: &RedisBackup, status: &RedisBackupStatus, seen: &Observed) -> Step {
    let units = BackupUnits::units(backup);
    let shards = &status.shards;
    if seen.attempts.lacks_members(&units) {
        return Step::Ask(Question::Members);
    }
    if let Some((position, unit)) = seen.attempts.exhausted(&units, backup.spec.attempts) {
        return Step::Fail {
            reason: "ShardFailed",
            message: exhausted(unit, shards.get(position), seen),
        };
    }
    let lost = seen.attempts.to_free(&units);
    if !lost.is_empty() {
        return match settled(seen) {
            Err(step) => step,
            Ok(map) if are_divided_like(shards, map) => Step::Free(lost),
            Ok(map) => capture_again(backup, map, shards),
        };
    }
    if shards.iter().all(is_forked) {
        if !holds(&status.conditions, "SlotsCovered") {
            return match settled(seen) {
                Err(step) => step,
                Ok(map) if are_divided_like(shards, map) => Step::ConfirmSlots,
                Ok(map) => capture_again(backup, map, shards),
            };
        }
        if shards
            .iter()
            .all(|shard| shard.state == BackupShardState::Stored)
        {
            return publish(seen);
        }
        return Step::Watch;
    }
    // The operation Lease is renewed until the last fork. Losing it is no reason to stop: the check after the forks decides.
    match seen.operation {
        None => Step::Ask(Question::Operation),
        Some(_) => Step::Watch,
    }
}

fn publish(seen: &Observed) -> Step {
    match &seen.publishing {
        None => Step::Publish,
        Some(Ok(published)) => Step::Succeed(published.clone()),
        Some(Err(failure)) if failure.transient => Step::Wait {
            on: Awaited::Manifest,
            reason: failure.reason,
            message: failure.message.clone(),
        },
        Some(Err(failure)) => Step::Fail {
            reason: failure.reason,
            message: failure.message.clone(),
        },
    }
}

/// The slots have moved between shards: what was captured does not fit together.
fn capture_again(backup: &RedisBackup, map: &SlotMap, shards: &[BackupShard]) -> Step {
    let attempt = shards.iter().map(|shard| shard.attempt).max().unwrap_or(0) + 1;
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
        units: shards::units(map, attempt),
        topology_hash: map.hash.clone(),
    }
}

/// Its snapshot has been taken and is being streamed, or stored.
fn is_forked(shard: &BackupShard) -> bool {
    shard.fork_time.is_some()
        && matches!(
            shard.state,
            BackupShardState::Streaming | BackupShardState::Stored
        )
}

fn exhausted(unit: &Unit<'_>, shard: Option<&BackupShard>, seen: &Observed) -> String {
    let slots = shard.map_or_else(String::new, |shard| shard.slot_ranges.join(","));
    let (index, cause) = (unit.index, seen.attempts.cause(unit));
    match unit.attempt {
        1 => format!("shard {index} (slots {slots}) failed at its only attempt: {cause}"),
        n => format!("shard {index} (slots {slots}) failed {n} times, at last: {cause}"),
    }
}
