//! Units of work as the status of an object shows them. Pure.

use super::{Claim, ClaimPath, Claimable};
use kube::Resource;
use serde_json::{Map, Value};

/// A unit as the object's status shows it.
#[derive(Clone, Copy, Debug)]
pub struct Unit<'a> {
    /// The unit's own number, as messages name it.
    pub index: i32,
    /// Name of the replica that holds it; empty: it is free.
    pub worker: &'a str,
    /// Counted from 1.
    pub attempt: i32,
    /// How far this attempt is.
    pub stage: Stage,
    /// Why the last attempt failed.
    pub error: Option<&'a str>,
}

/// How far an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Any process can take it or continue it.
    Open,
    /// Only the process that started it can continue it.
    Started,
    /// The attempt failed; another one may follow.
    Failed,
    /// The unit needs no further work.
    Ended,
}

impl Unit<'_> {
    /// Whether a replica works on it.
    pub fn is_claimed(&self) -> bool {
        !self.worker.is_empty() && matches!(self.stage, Stage::Open | Stage::Started)
    }
}

/// The members of a JSON object, as fields of a unit.
pub fn fields(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(members) => members,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    }
}

/// A kind of object whose work is divided into units.
pub trait UnitKind: Send + Sync + 'static {
    /// The object whose status lists the units.
    type Object: Claimable;

    /// JSON pointer of the units, for example `/status/shards`.
    const UNITS: &'static str;

    /// All units, in the order of the status.
    fn units(object: &Self::Object) -> Vec<Unit<'_>>;

    /// Whether the object has succeeded or failed.
    fn is_finished(object: &Self::Object) -> bool;

    /// The fields of a unit whose attempt failed with `error`.
    fn failed(error: &str) -> Map<String, Value>;

    /// The fields of a unit that gets another attempt because the last one failed with `error`.
    fn freed(error: &str) -> Map<String, Value>;

    /// The claim of `worker` on the unit at `index` of the array.
    fn claim(index: usize, worker: &str, attempt: i32) -> Claim {
        let array = Self::UNITS;
        Claim {
            path: ClaimPath { array, index },
            worker: worker.to_owned(),
            attempt,
        }
    }

    /// Whether no unit is to be worked on: the object is finished or being deleted.
    fn is_over(object: &Self::Object) -> bool {
        object.meta().deletion_timestamp.is_some() || Self::is_finished(object)
    }

    /// Whether the object still shows the unit as `claim` says, and is not over.
    fn is_held(object: &Self::Object, claim: &Claim) -> bool {
        let units = Self::units(object);
        let unit = units.get(claim.path.index);
        !Self::is_over(object)
            && unit.is_some_and(|unit| unit.worker == claim.worker && unit.attempt == claim.attempt)
    }
}
