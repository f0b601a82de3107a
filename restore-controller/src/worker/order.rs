//! What one unit asks for: read from the status when the unit was taken.

use super::UnitReplayError;
use crate::{
    plan::{Origin, origin, target_name},
    replay::Progress,
};
use crds::RedisRestore;
use kube::ResourceExt;
use tokio::sync::watch;

/// One object of a backup, as it was when its unit was taken.
#[derive(Debug)]
pub struct ReplayOrder {
    pub(super) namespace: String,
    pub(super) cluster: String,
    pub(super) origin: Origin,
    pub(super) shard: i32,
    /// Starts where an earlier attempt ended.
    pub(super) progress: watch::Sender<Progress>,
}

impl ReplayOrder {
    pub(super) fn of(restore: &RedisRestore, position: usize) -> Result<Self, UnitReplayError> {
        let status = restore.status.as_ref();
        let unit = status.and_then(|status| status.units.get(position));
        let unit = unit.ok_or(UnitReplayError::Status("no such unit"))?;
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(Self {
            namespace: restore.namespace().unwrap_or_default(),
            cluster: target_name(restore).to_owned(),
            origin: origin(restore, None).ok_or(UnitReplayError::Status("no manifest"))?,
            shard: unit.index,
            progress: watch::Sender::new(Progress {
                block: count(unit.block),
                keys: count(unit.keys),
                expired: count(unit.expired),
                foreign: 0,
            }),
        })
    }
}
