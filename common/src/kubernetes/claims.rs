//! Claims: units of work in a CR's status that exactly one replica holds at a time.
//!
//! A unit is an object in a status array with at least `worker: string` (empty while free) and `attempt: integer`. Every
//! write is a JSON patch whose `test` operations name both, so a replica that lost its claim learns it from its next write.

use super::call::ApiError;
use kube::{Api, Resource, core::object::HasStatus};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::fmt::Debug;

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
    Resource<DynamicType = ()> + HasStatus + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

impl<K> Claimable for K where
    K: Resource<DynamicType = ()>
        + HasStatus
        + DeserializeOwned
        + Clone
        + Debug
        + Send
        + Sync
        + 'static
{
}

/// Takes a free unit for `worker`. `attempt` is the one seen; it does not change. `fields` are set with it.
pub async fn take<K: Claimable>(
    api: &Api<K>,
    name: &str,
    path: ClaimPath,
    attempt: i32,
    worker: &str,
    fields: Map<String, Value>,
) -> Result<Taken<K>, ApiError> {
    todo!()
}

/// Reports all units of one replica in one object at once. Units that turn out to be lost are left out and named.
pub async fn report<K: Claimable>(
    api: &Api<K>,
    name: &str,
    units: Vec<UnitReport>,
) -> Result<Reported<K>, ApiError> {
    todo!()
}

/// The planner frees units of dead workers: `worker` "" and `attempt + 1`, with `fields` set in each. Units that have moved on
/// since are left alone.
pub async fn free<K: Claimable>(
    api: &Api<K>,
    name: &str,
    units: Vec<UnitReport>,
) -> Result<Reported<K>, ApiError> {
    todo!()
}
