//! Writes units: every write is a JSON patch whose `test` operations name `worker` and `attempt`, so a replica that lost its claim
//! learns it from its next write.

use crate::kubernetes::call::{self, ApiError};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
    core::object::HasStatus,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::{fmt::Debug, time::Duration};

/// Where a unit is in the status of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClaimPath {
    /// JSON pointer of the array, for example `/status/shards`.
    pub array: &'static str,
    /// Position in it.
    pub index: usize,
}

/// The claim of a replica on a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Where the unit stands in the status.
    pub path: ClaimPath,
    /// Name of the replica; empty: the unit is free.
    pub worker: String,
    /// Counted from 1.
    pub attempt: i32,
}

/// Fields of one unit to set, null to remove.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitReport {
    /// The claim under which they are written.
    pub claim: Claim,
    /// `worker` and `attempt` may be among them: a replica that releases its claim sets `worker` to "".
    pub fields: Map<String, Value>,
}

/// How taking a claim ended.
#[derive(Clone, Debug)]
pub enum Taken<K> {
    /// It is ours; the object as it is now.
    Won(Box<K>),
    /// Another replica holds it, or it is another attempt, or it does not exist.
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

/// What an object whose status lists units has to be able to do.
pub trait Claimable:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + HasStatus<Status: Clone + Default + PartialEq + Serialize + Send + Sync>
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
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + HasStatus<Status: Clone + Default + PartialEq + Serialize + Send + Sync>
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
/// An error may hide a success whose answer was lost: a replica that sees its own name on a unit it does not work on holds
/// that unit, and continues or abandons it.
pub async fn take<K: Claimable>(
    api: &Api<K>,
    name: &str,
    path: ClaimPath,
    attempt: i32,
    worker: &str,
    mut fields: Map<String, Value>,
) -> Result<Taken<K>, ApiError> {
    fields.insert("worker".into(), worker.into());
    let claim = Claim {
        path,
        worker: String::new(),
        attempt,
    };
    let reported = write(
        api,
        "take a unit of",
        name,
        vec![UnitReport { claim, fields }],
    )
    .await?;
    Ok(reported.object.map_or(Taken::Lost, Taken::Won))
}

/// Reports all units of one replica in one object in one patch. Units that turn out to be lost are left out and named.
pub async fn report<K: Claimable>(
    api: &Api<K>,
    name: &str,
    units: Vec<UnitReport>,
) -> Result<Reported<K>, ApiError> {
    write(api, "report on", name, units).await
}

/// Gives units to another attempt: `worker` "" and `attempt + 1`, with `fields` set in each. Units that have changed since are
/// left alone.
pub async fn free<K: Claimable>(
    api: &Api<K>,
    name: &str,
    mut units: Vec<UnitReport>,
) -> Result<Reported<K>, ApiError> {
    for unit in &mut units {
        let next = unit.claim.attempt.saturating_add(1);
        unit.fields.insert("worker".into(), "".into());
        unit.fields.insert("attempt".into(), next.into());
    }
    write(api, "free units of", name, units).await
}

/// One patch for many units: first the tests of all, then their fields. `add` sets a member whether it exists or not; null
/// removes it, because the server prunes nulls that the schema does not allow.
pub fn patch(units: &[UnitReport]) -> Vec<Value> {
    let tests = units.iter().flat_map(|unit| {
        let at = |member: &str| unit.claim.path.member(member);
        [
            json!({"op": "test", "path": at("worker"), "value": unit.claim.worker}),
            json!({"op": "test", "path": at("attempt"), "value": unit.claim.attempt}),
        ]
    });
    let sets = units.iter().flat_map(|unit| {
        let set = |(member, value): (&String, &Value)| json!({"op": "add", "path": unit.claim.path.member(member), "value": value});
        unit.fields.iter().map(set)
    });
    tests.chain(sets).collect()
}

/// Whether `object` (as JSON) still shows the unit as `claim` says.
fn is_held(object: &Value, claim: &Claim) -> bool {
    let unit = object
        .pointer(claim.path.array)
        .and_then(|array| array.get(claim.path.index));
    let Some(unit) = unit else { return false };
    let worker = unit.get("worker").and_then(Value::as_str);
    let attempt = unit.get("attempt").and_then(Value::as_i64);
    worker == Some(claim.worker.as_str()) && attempt == Some(claim.attempt.into())
}

impl ClaimPath {
    fn member(self, name: &str) -> String {
        // RFC 6901.
        let escaped = name.replace('~', "~0").replace('/', "~1");
        format!("{}/{}/{escaped}", self.array, self.index)
    }
}

/// Rounds of one write: each loses at least one unit or meets a conflict.
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
    let mut last_error = None;
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
                lost.extend(units.iter().map(|unit| unit.claim.path));
                return Ok(Reported { object: None, lost });
            }
            // Too many writers at the same time, though none of them touched these units.
            Err(error @ ApiError::Conflict { .. }) => {
                last_error = Some(error);
                tokio::time::sleep(Duration::from_millis(20 << round.min(5))).await;
            }
            // A failed test and a value that the schema refuses have the same status code: read the object to tell them apart.
            Err(error @ ApiError::Invalid { .. }) => {
                let before = units.len();
                lost.extend(drop_lost(api, &what, name, &mut units).await?);
                if units.len() == before {
                    return Err(error);
                }
                last_error = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(last_error.unwrap_or(ApiError::Conflict {
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

/// Reads the object and removes the units that it no longer shows as held; returns their paths.
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
        .partition(|unit| is_held(&object, &unit.claim));
    *units = held;
    Ok(lost.into_iter().map(|unit| unit.claim.path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHARDS: &str = "/status/shards";

    fn unit(index: usize, worker: &str, attempt: i32, fields: &Value) -> UnitReport {
        UnitReport {
            claim: Claim {
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
        assert!(is_held(&now, &reports[0].claim));
        assert!(!is_held(&now, &reports[1].claim));
        assert!(applied(&now, &reports[..1]).is_some());
    }

    #[test]
    fn field_names_are_escaped() {
        let path = ClaimPath {
            array: SHARDS,
            index: 3,
        };
        assert_eq!(path.member("a/b~c"), "/status/shards/3/a~1b~0c");
    }

    proptest! {
        /// Workers take, report, release and die in any order: only the patches of the holder are accepted.
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
                prop_assert_eq!(is_held(&now, &report.claim), allowed);
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
