//! A kind of object with units, for the tests of this folder.

use super::unit::{Stage, Unit, UnitKind, fields};
use crds::{RedisRestore, RedisRestoreSpec, RestoreUnit, RestoreUnitState};
use serde_json::{Map, Value, json};

pub(super) struct Units;

impl UnitKind for Units {
    type Object = RedisRestore;

    const UNITS: &'static str = "/status/units";

    fn units(object: &RedisRestore) -> Vec<Unit<'_>> {
        let units = object.status.iter().flat_map(|status| &status.units);
        let stage = |unit: &RestoreUnit| match unit.state {
            RestoreUnitState::Pending | RestoreUnitState::Replaying => Stage::Open,
            RestoreUnitState::Failed => Stage::Failed,
            RestoreUnitState::Loaded | RestoreUnitState::Refused => Stage::Ended,
        };
        units
            .map(|unit| Unit {
                index: unit.index,
                worker: &unit.worker,
                attempt: unit.attempt,
                stage: stage(unit),
                error: unit.error.as_deref(),
            })
            .collect()
    }

    fn is_finished(_: &RedisRestore) -> bool {
        false
    }

    fn failed(error: &str) -> Map<String, Value> {
        fields(json!({"error": error}))
    }

    fn freed(error: &str) -> Map<String, Value> {
        Self::failed(error)
    }
}

/// An object with units: worker, attempt and state of each.
pub(super) fn object(units: &[(&str, i32, &str)]) -> RedisRestore {
    let units = units.iter().zip(0..);
    let units: Vec<Value> = units
        .map(|((worker, attempt, state), index)| {
            json!({"index": index, "worker": worker, "attempt": attempt, "state": state})
        })
        .collect();
    let mut object = RedisRestore::new("r", RedisRestoreSpec::default());
    object.metadata.uid = Some("u".to_owned());
    object.status = serde_json::from_value(json!({"units": units})).unwrap();
    object
}
