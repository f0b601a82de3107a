//! The units of a restore: one for each object of the backup, as the status shows them and as a replica reports them. Pure.

use crate::{plan::is_finished, replay::Progress};
use common::claims::{
    held,
    unit::{Stage, Unit, UnitKind, fields},
};
use crds::{RedisRestore, RestoreUnit, RestoreUnitState};
use serde_json::{Map, Value, json};

/// How a replay ended.
pub type ReplayEnd = held::End<Replayed>;

/// The result of a replay that needs no other attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// Every key is written.
    Loaded,
    /// Another attempt would fail in the same way: a sentence.
    Refused(String),
}

/// The units of RedisRestores.
pub struct RestoreUnits;

impl UnitKind for RestoreUnits {
    type Object = RedisRestore;

    const UNITS: &'static str = "/status/units";

    fn units(restore: &RedisRestore) -> Vec<Unit<'_>> {
        let units = restore.status.iter().flat_map(|status| &status.units);
        units.map(unit).collect()
    }

    fn is_finished(restore: &RedisRestore) -> bool {
        restore.status.as_ref().is_some_and(is_finished)
    }

    fn failed(error: &str) -> Map<String, Value> {
        fields(json!({"state": RestoreUnitState::Failed, "error": error}))
    }

    /// Block and counts stay: the next attempt continues there.
    fn freed(error: &str) -> Map<String, Value> {
        fields(json!({"state": RestoreUnitState::Pending, "error": error}))
    }
}

/// Any process can continue a replay at its block.
fn unit(unit: &RestoreUnit) -> Unit<'_> {
    Unit {
        index: unit.index,
        worker: &unit.worker,
        attempt: unit.attempt,
        stage: match unit.state {
            RestoreUnitState::Pending | RestoreUnitState::Replaying => Stage::Open,
            RestoreUnitState::Failed => Stage::Failed,
            RestoreUnitState::Loaded | RestoreUnitState::Refused => Stage::Ended,
        },
        error: unit.error.as_deref(),
    }
}

/// The fields of a unit: how far it is, and how it ended if it has.
pub fn reported(progress: Progress, end: Option<&ReplayEnd>) -> Map<String, Value> {
    let mut unit = fields(json!({
        "block": progress.block,
        "keys": progress.keys,
        "expired": progress.expired,
    }));
    unit.extend(match end {
        None => fields(json!({"state": RestoreUnitState::Replaying})),
        Some(ReplayEnd::Done(Replayed::Loaded)) => {
            fields(json!({"state": RestoreUnitState::Loaded, "error": Value::Null}))
        }
        Some(ReplayEnd::Done(Replayed::Refused(error))) => {
            fields(json!({"state": RestoreUnitState::Refused, "error": error}))
        }
        Some(ReplayEnd::Failed(error)) => RestoreUnits::failed(error),
        Some(ReplayEnd::Released) => {
            fields(json!({"state": RestoreUnitState::Pending, "worker": ""}))
        }
        Some(ReplayEnd::Stopped) => fields(json!({
            "state": RestoreUnitState::Failed,
            "worker": "",
            "error": "stopped: the restore has ended",
        })),
    });
    unit
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the API server would keep: nulls are removed.
    fn read(end: Option<&ReplayEnd>) -> RestoreUnit {
        let progress = Progress {
            block: 3,
            keys: 70,
            expired: 2,
            foreign: 1,
        };
        let mut unit = fields(json!({"index": 0, "worker": "a", "attempt": 2, "error": "before"}));
        unit.extend(reported(progress, end));
        let kept = unit.into_iter().filter(|(_, value)| !value.is_null());
        serde_json::from_value(Value::Object(kept.collect())).unwrap()
    }

    #[test]
    fn progress_is_kept_whatever_the_end() {
        let ends = [
            None,
            Some(ReplayEnd::Done(Replayed::Loaded)),
            Some(ReplayEnd::Done(Replayed::Refused("no use".into()))),
            Some(ReplayEnd::Failed("no luck".into())),
            Some(ReplayEnd::Released),
        ];
        for end in &ends {
            let unit = read(end.as_ref());
            assert_eq!(
                (unit.block, unit.keys, unit.expired, unit.attempt),
                (3, 70, 2, 2)
            );
        }
    }

    #[test]
    fn released_units_are_free_and_failed_ones_have_a_cause() {
        let released = read(Some(&ReplayEnd::Released));
        assert_eq!(
            (released.worker.as_str(), unit(&released).stage),
            ("", Stage::Open)
        );
        let failed = read(Some(&ReplayEnd::Failed("no luck".into())));
        let failed = unit(&failed);
        assert_eq!((failed.worker, failed.stage), ("a", Stage::Failed));
        assert_eq!(failed.error, Some("no luck"));
        let refused = read(Some(&ReplayEnd::Done(Replayed::Refused("no use".into()))));
        assert_eq!(
            (refused.state, refused.error.as_deref()),
            (RestoreUnitState::Refused, Some("no use"))
        );
        assert_eq!(read(Some(&ReplayEnd::Done(Replayed::Loaded))).error, None);
    }
}
