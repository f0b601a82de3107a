//! Claims: units of work in a CR's status that exactly one replica holds at a time.
//!
//! A unit is an object in a status array with at least `worker: string` (empty while free) and `attempt: integer`. Every
//! write is a JSON patch whose `test` operations name both, so a replica that lost its claim learns it from its next write.

use super::call::{self, ApiError};
use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
    core::object::HasStatus,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::{fmt::Debug, time::Duration};

/// Where a unit stands in its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClaimPath {
    /// JSON pointer of the array, for example `/status/shards`.
    pub array: &'static str,
    /// Position in it.
    pub index: usize,
}

/// A unit as somebody holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Where.
    pub path: ClaimPath,
    /// Who holds it; empty: nobody.
    pub worker: String,
    /// Which attempt it is.
    pub attempt: i32,
}

/// One unit's news: fields of the unit to set, null to remove.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitReport {
    /// The unit, as the reporter believes to hold it.
    pub holding: Holding,
    /// Fields to set. `worker` and `attempt` may be among them (a replica giving its claim back sets `worker` to "").
    pub fields: Map<String, Value>,
}

/// How taking a claim ended.
#[derive(Clone, Debug)]
pub enum Taken<K> {
    /// It is ours; the object as it is now.
    Won(Box<K>),
    /// Somebody else has it, or it is another attempt, or it is gone.
    Lost,
}

/// How a report ended.
#[derive(Clone, Debug)]
pub struct Reported<K> {
    /// The object as it is now; `None` when nothing was left to report.
    pub object: Option<Box<K>>,
    /// Units that are no longer the reporter's: stop working on them.
    pub lost: Vec<ClaimPath>,
}

/// What an object with claims has to be able to do.
pub trait Claimable:
    Resource<DynamicType = ()>
    + HasStatus
    + Serialize
    + DeserializeOwned
    + Clone
    + Debug
    + Send
    + Sync
    + 'static
{
}

impl<K> Claimable for K where
    K: Resource<DynamicType = ()>
        + HasStatus
        + Serialize
        + DeserializeOwned
        + Clone
        + Debug
        + Send
        + Sync
        + 'static
{
}

/// Takes a free unit for `worker`. `attempt` is the one seen; it does not change. `fields` are set with it.
///
/// An error may hide a success (the answer was lost): a replica that sees its own name on a unit it does not work on holds
/// that unit all the same, and goes on with it or gives it back.
pub async fn take<K: Claimable>(
    api: &Api<K>,
    name: &str,
    path: ClaimPath,
    attempt: i32,
    worker: &str,
    mut fields: Map<String, Value>,
) -> Result<Taken<K>, ApiError> {
    fields.insert("worker".into(), worker.into());
    let holding = Holding {
        path,
        worker: String::new(),
        attempt,
    };
    let reported = write(
        api,
        "take a unit of",
        name,
        vec![UnitReport { holding, fields }],
    )
    .await?;
    Ok(reported.object.map_or(Taken::Lost, Taken::Won))
}

/// Reports all units of one replica in one object at once. Units that turn out to be lost are left out and named.
pub async fn report<K: Claimable>(
    api: &Api<K>,
    name: &str,
    units: Vec<UnitReport>,
) -> Result<Reported<K>, ApiError> {
    write(api, "report on", name, units).await
}

/// The planner frees units of dead workers: `worker` "" and `attempt + 1`, with `fields` set in each. Units that have moved on
/// since are left alone.
pub async fn free<K: Claimable>(
    api: &Api<K>,
    name: &str,
    mut units: Vec<UnitReport>,
) -> Result<Reported<K>, ApiError> {
    for unit in &mut units {
        let next = unit.holding.attempt.saturating_add(1);
        unit.fields.insert("worker".into(), "".into());
        unit.fields.insert("attempt".into(), next.into());
    }
    write(api, "free units of", name, units).await
}

/// One patch for many units: first the tests of all, then their fields. `add` sets a member whether it is there or not; null
/// removes it, because the server prunes nulls that the schema does not allow.
pub fn patch(units: &[UnitReport]) -> Vec<Value> {
    let tests = units.iter().flat_map(|unit| {
        let at = |member: &str| unit.holding.path.member(member);
        [
            json!({"op": "test", "path": at("worker"), "value": unit.holding.worker}),
            json!({"op": "test", "path": at("attempt"), "value": unit.holding.attempt}),
        ]
    });
    let sets = units.iter().flat_map(|unit| {
        let set = |(member, value): (&String, &Value)| json!({"op": "add", "path": unit.holding.path.member(member), "value": value});
        unit.fields.iter().map(set)
    });
    tests.chain(sets).collect()
}

/// Whether `object` (as JSON) still shows the unit as `holding` says.
pub fn is_held(object: &Value, holding: &Holding) -> bool {
    let unit = object
        .pointer(holding.path.array)
        .and_then(|array| array.get(holding.path.index));
    let Some(unit) = unit else { return false };
    let worker = unit.get("worker").and_then(Value::as_str);
    let attempt = unit.get("attempt").and_then(Value::as_i64);
    worker == Some(holding.worker.as_str()) && attempt == Some(holding.attempt.into())
}

impl ClaimPath {
    fn member(self, name: &str) -> String {
        // RFC 6901 escapes; names of fields have no need of them, but it is not for this function to hope.
        let escaped = name.replace('~', "~0").replace('/', "~1");
        format!("{}/{}/{escaped}", self.array, self.index)
    }
}

/// Rounds before the next pass has to go on: each loses at least one unit or meets a passing conflict.
const ROUNDS: u32 = 8;

async fn write<K: Claimable>(
    api: &Api<K>,
    verb: &str,
    name: &str,
    mut units: Vec<UnitReport>,
) -> Result<Reported<K>, ApiError> {
    let namespace = api.namespace().unwrap_or_default();
    let what = format!("{verb} {} {namespace}/{name}", K::kind(&()));
    let mut lost = Vec::new();
    let mut trouble = None;
    for round in 0..ROUNDS {
        if units.is_empty() {
            return Ok(Reported { object: None, lost });
        }
        match send(api, &what, name, &units).await {
            Ok(object) => {
                let object = Some(Box::new(object));
                return Ok(Reported { object, lost });
            }
            Err(ApiError::NotFound { .. }) => {
                lost.extend(units.iter().map(|unit| unit.holding.path));
                return Ok(Reported { object: None, lost });
            }
            // Too many writers at once, though none of them touched these units.
            Err(error @ ApiError::Conflict { .. }) => {
                trouble = Some(error);
                tokio::time::sleep(Duration::from_millis(20 << round.min(5))).await;
            }
            // A failed test and a value the schema refuses have the same status: look which it was.
            Err(error @ ApiError::Invalid { .. }) => {
                let before = units.len();
                lost.extend(drop_lost(api, &what, name, &mut units).await?);
                if units.len() == before {
                    return Err(error);
                }
                trouble = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(trouble.unwrap_or(ApiError::Conflict {
        what,
        message: "too many writers".to_string(),
    }))
}

async fn send<K: Claimable>(
    api: &Api<K>,
    what: &str,
    name: &str,
    units: &[UnitReport],
) -> Result<K, ApiError> {
    let operations = Value::Array(patch(units));
    let operations: json_patch::Patch =
        serde_json::from_value(operations).map_err(|error| ApiError::Malformed {
            what: what.to_string(),
            message: error.to_string(),
        })?;
    let parameters = PatchParams::default();
    let patch = Patch::Json::<()>(operations);
    call::write(what, api.patch_status(name, &parameters, &patch)).await
}

/// Reads the object and takes the units out that it no longer shows as held; returns where they were.
async fn drop_lost<K: Claimable>(
    api: &Api<K>,
    what: &str,
    name: &str,
    units: &mut Vec<UnitReport>,
) -> Result<Vec<ClaimPath>, ApiError> {
    let object = match call::read_optional(what, api.get(name)).await? {
        Some(object) => serde_json::to_value(object).map_err(|error| ApiError::Malformed {
            what: what.to_string(),
            message: error.to_string(),
        })?,
        None => Value::Null,
    };
    let (held, lost): (Vec<_>, Vec<_>) = std::mem::take(units)
        .into_iter()
        .partition(|unit| is_held(&object, &unit.holding));
    *units = held;
    Ok(lost.into_iter().map(|unit| unit.holding.path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHARDS: &str = "/status/shards";

    fn unit(index: usize, worker: &str, attempt: i32, fields: &Value) -> UnitReport {
        UnitReport {
            holding: Holding {
                path: ClaimPath {
                    array: SHARDS,
                    index,
                },
                worker: worker.into(),
                attempt,
            },
            fields: fields.as_object().cloned().unwrap(),
        }
    }

    fn object(units: &[(&str, i32)]) -> Value {
        let shards: Vec<Value> = units
            .iter()
            .map(|(worker, attempt)| json!({"worker": worker, "attempt": attempt}))
            .collect();
        json!({"status": {"shards": shards}})
    }

    fn applied(object: &Value, units: &[UnitReport]) -> Option<Value> {
        let operations: json_patch::Patch =
            serde_json::from_value(Value::Array(patch(units))).unwrap();
        let mut result = object.clone();
        json_patch::patch(&mut result, &operations).ok()?;
        Some(result)
    }

    #[test]
    fn a_free_unit_is_taken_once() {
        let free = object(&[("", 1)]);
        let taken = applied(&free, &[unit(0, "", 1, &json!({"worker": "a"}))]).unwrap();
        assert_eq!(taken, object(&[("a", 1)]));
        assert_eq!(
            applied(&taken, &[unit(0, "", 1, &json!({"worker": "b"}))]),
            None
        );
    }

    #[test]
    fn one_lost_unit_fails_the_whole_report() {
        let now = object(&[("a", 1), ("b", 2)]);
        let reports = [
            unit(0, "a", 1, &json!({"rawBytes": 5})),
            unit(1, "a", 1, &json!({"rawBytes": 7})),
        ];
        assert_eq!(applied(&now, &reports), None);
        assert!(is_held(&now, &reports[0].holding));
        assert!(!is_held(&now, &reports[1].holding));
        assert!(applied(&now, &reports[..1]).is_some());
    }

    #[test]
    fn names_are_escaped() {
        let path = ClaimPath {
            array: SHARDS,
            index: 3,
        };
        assert_eq!(path.member("a/b~c"), "/status/shards/3/a~1b~0c");
    }

    proptest! {
        /// Workers take, report, give back and die in any order: at any time the patches that go through are those of the holder.
        #[test]
        fn only_the_holder_writes(steps in proptest::collection::vec((0..3usize, 0..4usize), 1..40)) {
            let mut now = object(&[("", 1), ("", 1), ("", 1)]);
            let mut model: Vec<(String, i32)> = vec![(String::new(), 1); 3];
            for (step, (index, action)) in steps.into_iter().enumerate() {
                let worker = format!("w{}", step % 4);
                let (holder, attempt) = model[index].clone();
                let (report, allowed, next) = match action {
                    0 => (unit(index, "", attempt, &json!({"worker": worker})), holder.is_empty(), (worker, attempt)),
                    1 => (unit(index, &worker, attempt, &json!({"keys": step})), holder == worker, (holder.clone(), attempt)),
                    2 => (unit(index, &worker, attempt, &json!({"worker": ""})), holder == worker, (String::new(), attempt)),
                    _ => (unit(index, &holder, attempt, &json!({"worker": "", "attempt": attempt + 1})), true, (String::new(), attempt + 1)),
                };
                prop_assert_eq!(is_held(&now, &report.holding), allowed);
                let result = applied(&now, &[report]);
                prop_assert_eq!(result.is_some(), allowed);
                if let Some(result) = result {
                    now = result;
                    model[index] = next;
                }
            }
        }
    }
}
