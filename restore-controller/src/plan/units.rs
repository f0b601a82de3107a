//! The steps while keys are written: another attempt, the count afterwards.

use super::{
    observed::{Observed, Question, Verified},
    step::{Failure, Freed, Step},
};
use common::kubernetes::background::Background;
use crds::{RedisRestore, RedisRestoreStatus, RestoreUnit, RestoreUnitState};
use std::time::Duration;

/// The next step of a restore whose units are handed out.
pub(super) fn carry_on(
    restore: &RedisRestore,
    status: &RedisRestoreStatus,
    seen: &Observed,
) -> Step {
    let units = &status.units;
    if units.iter().any(is_claimed) && seen.members.is_none() {
        return Step::Ask(Question::Members);
    }
    let exhausted = |unit: &&RestoreUnit| {
        let failed = unit.state == RestoreUnitState::Failed || is_orphan(unit, seen);
        is_refused(unit) || (failed && unit.attempt >= restore.spec.attempts)
    };
    if let Some(unit) = units.iter().find(exhausted) {
        return Step::Fail(Failure {
            condition: "DataLoaded",
            reason: "UnitFailed",
            message: exhausted_words(unit, seen),
            verified: None,
        });
    }
    let freed = to_free(units, seen);
    if !freed.is_empty() {
        return Step::Free(freed);
    }
    // Losing the lease is no reason to stop in the middle: keys can be written while slots are moved.
    if seen.operation.is_none() {
        return Step::Ask(Question::Operation);
    }
    if units.iter().all(is_loaded) {
        return verify(seen);
    }
    Step::Watch
}

fn verify(seen: &Observed) -> Step {
    match &seen.verification {
        None | Some(Background::Running) => Step::Verify,
        Some(Background::Failed(trouble)) if trouble.transient => Step::Wait {
            reason: trouble.reason,
            message: trouble.message.clone(),
        },
        Some(Background::Failed(trouble)) => Step::Fail(Failure {
            condition: "Verified",
            reason: trouble.reason,
            message: trouble.message.clone(),
            verified: None,
        }),
        Some(Background::Done(Verified::Compared(comparison))) if !comparison.fits() => {
            Step::Fail(Failure {
                condition: "Verified",
                reason: "CountsDiffer",
                message: comparison.sentence(),
                verified: Some(Verified::Compared(comparison.clone())),
            })
        }
        Some(Background::Done(verified)) => Step::Succeed(verified.clone()),
    }
}

/// Somebody works on it.
pub fn is_claimed(unit: &RestoreUnit) -> bool {
    !unit.worker.is_empty()
        && matches!(
            unit.state,
            RestoreUnitState::Pending | RestoreUnitState::Replaying
        )
}

/// Every key of it is written.
pub fn is_loaded(unit: &RestoreUnit) -> bool {
    unit.state == RestoreUnitState::Loaded
}

fn is_refused(unit: &RestoreUnit) -> bool {
    unit.state == RestoreUnitState::Refused
}

fn is_orphan(unit: &RestoreUnit, seen: &Observed) -> bool {
    let live = seen.members.as_ref();
    is_claimed(unit) && live.is_some_and(|live| !live.contains(&unit.worker))
}

/// Units whose attempt is lost and whose turn for another has come. What they have written stays written.
fn to_free(units: &[RestoreUnit], seen: &Observed) -> Vec<Freed> {
    let due = |unit: &RestoreUnit| {
        let failed_for = seen.failed_for.get(&unit.index).copied();
        unit.state == RestoreUnitState::Failed
            && failed_for.unwrap_or_default() >= pause_after(unit.attempt)
    };
    units
        .iter()
        .enumerate()
        .filter(|(_, unit)| due(unit) || is_orphan(unit, seen))
        .map(|(position, unit)| Freed {
            position,
            worker: unit.worker.clone(),
            attempt: unit.attempt,
            error: why_lost(unit, seen),
        })
        .collect()
}

fn exhausted_words(unit: &RestoreUnit, seen: &Observed) -> String {
    let cause = why_lost(unit, seen);
    let (index, block, blocks) = (unit.index, unit.block, unit.blocks);
    match unit.attempt {
        _ if is_refused(unit) => format!(
            "shard {index} of the backup was restored up to block {block} of {blocks}: {cause}"
        ),
        1 => format!(
            "shard {index} of the backup was restored up to block {block} of {blocks} in its only attempt: {cause}"
        ),
        attempts => format!(
            "shard {index} of the backup was restored up to block {block} of {blocks} in {attempts} attempts: {cause}"
        ),
    }
}

fn why_lost(unit: &RestoreUnit, seen: &Observed) -> String {
    if is_orphan(unit, seen) {
        return format!(
            "the controller replica {} that replayed it is gone",
            unit.worker
        );
    }
    let told = unit.error.clone();
    told.unwrap_or_else(|| "no cause was reported".to_owned())
}

/// How long a unit rests after its `attempt`-th attempt has failed: a failover takes some seconds, a store some more.
pub fn pause_after(attempt: i32) -> Duration {
    let doublings = u32::try_from(attempt.clamp(1, 6) - 1).unwrap_or(0);
    Duration::from_secs(2 << doublings)
}
