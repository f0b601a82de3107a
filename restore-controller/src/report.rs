//! What a replica writes into the units it holds. Pure.

use crate::replay::Progress;
use common::kubernetes::{
    claims::{ClaimPath, Holding, UnitReport},
    session,
};
use crds::RestoreUnitState;
use serde_json::{Map, Value, json};

/// The units in a restore's status.
const UNITS: &str = "/status/units";

/// How a replay ended.
pub type End = session::End<Ended>;

/// How a replay came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every key is written.
    Loaded,
    /// Another attempt would fail in the same way: a sentence.
    Refused(String),
}

/// The report on a unit: how far it is, and how it ended if it has.
pub fn report(holding: Holding, progress: Progress, end: Option<&End>) -> UnitReport {
    let mut fields = object(json!({
        "block": progress.block,
        "keys": progress.keys,
        "expired": progress.expired,
    }));
    fields.extend(object(match end {
        None => json!({"state": RestoreUnitState::Replaying}),
        Some(End::Done(Ended::Loaded)) => {
            json!({"state": RestoreUnitState::Loaded, "error": Value::Null})
        }
        Some(End::Done(Ended::Refused(error))) => {
            json!({"state": RestoreUnitState::Refused, "error": error})
        }
        Some(End::Failed(error)) => json!({"state": RestoreUnitState::Failed, "error": error}),
        Some(End::HandedBack) => json!({"state": RestoreUnitState::Pending, "worker": ""}),
        Some(End::Stopped) => json!({
            "state": RestoreUnitState::Failed,
            "worker": "",
            "error": "stopped: the restore has ended",
        }),
    }));
    UnitReport { holding, fields }
}

/// The fields of a unit that gets another attempt; block and counts stay.
pub fn freed(error: &str) -> Map<String, Value> {
    object(json!({"state": RestoreUnitState::Pending, "error": error}))
}

/// A unit as `worker` holds it.
pub fn holding(position: usize, worker: &str, attempt: i32) -> Holding {
    Holding {
        path: ClaimPath {
            array: UNITS,
            index: position,
        },
        worker: worker.to_owned(),
        attempt,
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::RestoreUnit;

    /// What the API server would keep: nulls go.
    fn read(end: Option<&End>) -> RestoreUnit {
        let progress = Progress {
            block: 3,
            keys: 70,
            expired: 2,
            foreign: 1,
        };
        let mut unit = object(json!({"index": 0, "worker": "a", "attempt": 2, "error": "before"}));
        unit.extend(report(holding(0, "a", 2), progress, end).fields);
        let kept = unit.into_iter().filter(|(_, value)| !value.is_null());
        serde_json::from_value(Value::Object(kept.collect())).unwrap()
    }

    #[test]
    fn what_is_written_is_never_taken_back() {
        let ends = [
            None,
            Some(End::Done(Ended::Loaded)),
            Some(End::Done(Ended::Refused("no use".into()))),
            Some(End::Failed("no luck".into())),
            Some(End::HandedBack),
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
    fn a_unit_that_is_handed_back_is_free_and_a_failed_one_says_why() {
        let back = read(Some(&End::HandedBack));
        assert_eq!(
            (back.worker.as_str(), back.state),
            ("", RestoreUnitState::Pending)
        );
        let failed = read(Some(&End::Failed("no luck".into())));
        assert_eq!(
            (failed.worker.as_str(), failed.state),
            ("a", RestoreUnitState::Failed)
        );
        assert_eq!(failed.error.as_deref(), Some("no luck"));
        let refused = read(Some(&End::Done(Ended::Refused("no use".into()))));
        assert_eq!(
            (refused.state, refused.error.as_deref()),
            (RestoreUnitState::Refused, Some("no use"))
        );
        assert_eq!(read(Some(&End::Done(Ended::Loaded))).error, None);
    }
}
