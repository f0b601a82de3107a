//! The steps while keys are written: another attempt, the count afterwards.

use super::{
    observed::{Observed, Question, Verified},
    step::{Failure, Step},
};
use crate::units::RestoreUnits;
use common::claims::unit::{Unit, UnitKind};
use crds::{RedisRestore, RedisRestoreStatus, RestoreUnit, RestoreUnitState};

/// The next step of a restore whose units are distributed.
pub(super) fn replay(restore: &RedisRestore, status: &RedisRestoreStatus, seen: &Observed) -> Step {
    let units = RestoreUnits::units(restore);
    if seen.attempts.lacks_members(&units) {
        return Step::Ask(Question::Members);
    }
    let refused = status.units.iter().position(is_refused);
    let refused = refused.and_then(|position| Some((position, units.get(position)?)));
    let exhausted = || seen.attempts.exhausted(&units, restore.spec.attempts);
    if let Some((position, unit)) = refused.or_else(exhausted) {
        return Step::Fail(Failure {
            condition: "DataLoaded",
            reason: "UnitFailed",
            message: ended(unit, status.units.get(position), seen),
            verified: None,
        });
    }
    // What the lost attempts have written stays written.
    let lost = seen.attempts.to_free(&units);
    if !lost.is_empty() {
        return Step::Free(lost);
    }
    // Losing the operation Lease is no reason to stop in the middle: keys can be written while slots are moved.
    if seen.operation.is_none() {
        return Step::Ask(Question::Operation);
    }
    if status.units.iter().all(is_loaded) {
        return verify(seen);
    }
    Step::Watch
}

fn verify(seen: &Observed) -> Step {
    match &seen.verification {
        None => Step::Verify,
        Some(Err(failure)) if failure.transient => Step::Wait {
            reason: failure.reason,
            message: failure.message.clone(),
        },
        Some(Err(failure)) => Step::Fail(Failure {
            condition: "Verified",
            reason: failure.reason,
            message: failure.message.clone(),
            verified: None,
        }),
        Some(Ok(Verified::Compared(comparison))) if !comparison.fits() => Step::Fail(Failure {
            condition: "Verified",
            reason: "CountsDiffer",
            message: comparison.sentence(),
            verified: Some(Verified::Compared(comparison.clone())),
        }),
        Some(Ok(verified)) => Step::Succeed(verified.clone()),
    }
}

/// Every key of it is written.
pub fn is_loaded(unit: &RestoreUnit) -> bool {
    unit.state == RestoreUnitState::Loaded
}

fn is_refused(unit: &RestoreUnit) -> bool {
    unit.state == RestoreUnitState::Refused
}

fn ended(unit: &Unit<'_>, shown: Option<&RestoreUnit>, seen: &Observed) -> String {
    let cause = seen.attempts.cause(unit);
    let (block, blocks) = shown.map_or((0, 0), |unit| (unit.block, unit.blocks));
    let index = unit.index;
    let attempts = match unit.attempt {
        _ if shown.is_some_and(is_refused) => String::new(),
        1 => " in its only attempt".to_owned(),
        attempts => format!(" in {attempts} attempts"),
    };
    format!(
        "shard {index} of the backup was restored up to block {block} of {blocks}{attempts}: {cause}"
    )
}
