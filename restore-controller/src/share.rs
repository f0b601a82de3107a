//! Which units of a restore this replica takes, goes on with or stops. Pure.

use crate::plan::is_finished;
use common::kubernetes::share::{self, Move, Own, Stage, Unit};
use crds::{RedisRestore, RestoreUnit, RestoreUnitState};

/// The moves of the replica `me` that can take `free` more units.
pub fn moves(restore: &RedisRestore, me: &str, own: &Own, free: usize) -> Vec<Move> {
    let uid = restore.metadata.uid.as_deref().unwrap_or_default();
    match units(restore) {
        Some(units) => share::moves(uid, &units, me, own, free),
        None => share::stop_all(own),
    }
}

/// Whether a free slot of the replica `me` is of use to the restore.
pub fn wants_a_slot(restore: &RedisRestore, me: &str) -> bool {
    units(restore).is_some_and(|units| share::wants_a_slot(&units, me))
}

/// The units of a restore that is under way.
fn units(restore: &RedisRestore) -> Option<Vec<Unit<'_>>> {
    let status = restore.status.as_ref();
    if restore.metadata.deletion_timestamp.is_some() || status.is_some_and(is_finished) {
        return None;
    }
    let units = status.iter().flat_map(|status| &status.units);
    Some(units.map(shown).collect())
}

/// Whether keys of it are still to be written in this attempt. Any process can go on at its block.
fn is_open(unit: &RestoreUnit) -> bool {
    matches!(
        unit.state,
        RestoreUnitState::Pending | RestoreUnitState::Replaying
    )
}

fn shown(unit: &RestoreUnit) -> Unit<'_> {
    Unit {
        worker: &unit.worker,
        attempt: unit.attempt,
        stage: if is_open(unit) {
            Stage::Open
        } else {
            Stage::Over
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RestoreUnitState::{Failed, Loaded, Replaying};
    use crds::{RedisRestoreSpec, RedisRestoreStatus};

    #[test]
    fn a_restarted_replica_goes_on_with_what_bears_its_name() {
        let mut restore = RedisRestore::new("r", RedisRestoreSpec::default());
        let unit = |worker: &str, state| RestoreUnit {
            worker: worker.to_owned(),
            attempt: 1,
            state,
            ..RestoreUnit::default()
        };
        assert!(!wants_a_slot(&restore, "a"));
        restore.status = Some(RedisRestoreStatus {
            units: vec![
                unit("a", Replaying),
                unit("a", Loaded),
                unit("a", Failed),
                unit("", Replaying),
            ],
            ..RedisRestoreStatus::default()
        });
        assert_eq!(
            moves(&restore, "a", &Own::default(), 1),
            [Move::GoOn(0, 1), Move::Take(3, 1)]
        );
        assert!(wants_a_slot(&restore, "b"), "nobody has taken the last one");
        restore.status.as_mut().unwrap().units.pop();
        assert!(wants_a_slot(&restore, "a") && !wants_a_slot(&restore, "b"));
    }
}
