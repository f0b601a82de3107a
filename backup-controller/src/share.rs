//! Which units of a backup this replica takes, gives up or stops. Pure.

use crate::plan::is_finished;
use common::kubernetes::share::{self, Move, Own, Stage, Unit};
use crds::{BackupShard, BackupShardState, RedisBackup};

/// The moves of the replica `me` that can take `free` more units.
pub fn moves(backup: &RedisBackup, me: &str, own: &Own, free: usize) -> Vec<Move> {
    let uid = backup.metadata.uid.as_deref().unwrap_or_default();
    match units(backup) {
        Some(units) => share::moves(uid, &units, me, own, free),
        None => share::stop_all(own),
    }
}

/// Whether a free slot of the replica `me` is of use to the backup.
pub fn wants_a_slot(backup: &RedisBackup, me: &str) -> bool {
    units(backup).is_some_and(|units| share::wants_a_slot(&units, me))
}

/// The units of a backup that is under way.
fn units(backup: &RedisBackup) -> Option<Vec<Unit<'_>>> {
    let status = backup.status.as_ref();
    if backup.metadata.deletion_timestamp.is_some() || status.is_some_and(is_finished) {
        return None;
    }
    let shards = status.iter().flat_map(|status| &status.shards);
    Some(shards.map(unit).collect())
}

/// A snapshot lives in the connection to the server: nobody else can go on with it.
fn unit(shard: &BackupShard) -> Unit<'_> {
    Unit {
        worker: &shard.worker,
        attempt: shard.attempt,
        stage: match shard.state {
            BackupShardState::Pending => Stage::Open,
            BackupShardState::Streaming => Stage::Midway,
            BackupShardState::Stored | BackupShardState::Failed => Stage::Over,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BackupShardState::{Pending, Stored, Streaming};
    use crds::{RedisBackupSpec, RedisBackupStatus};
    use std::collections::BTreeMap;

    #[test]
    fn what_streams_is_given_up_after_a_restart_and_all_stops_at_the_end() {
        let mut backup = RedisBackup::new("b", RedisBackupSpec::default());
        let shard = |worker: &str, state| BackupShard {
            worker: worker.to_owned(),
            attempt: 1,
            state,
            ..BackupShard::default()
        };
        backup.status = Some(RedisBackupStatus {
            shards: vec![
                shard("a", Pending),
                shard("a", Streaming),
                shard("a", Stored),
                shard("", Pending),
            ],
            ..RedisBackupStatus::default()
        });
        let mut own = Own::default();
        assert_eq!(
            moves(&backup, "a", &own, 1),
            [Move::GoOn(0, 1), Move::GiveUp(1, 1), Move::Take(3, 1)]
        );
        backup.metadata.deletion_timestamp = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH),
        );
        own.running = BTreeMap::from([(1, 1)]);
        assert_eq!(moves(&backup, "a", &own, 5), [Move::Stop(1)]);
    }

    #[test]
    fn a_free_slot_is_of_use_to_free_units_and_to_own_ones_that_were_not_begun() {
        let wants = |worker: &str, state| {
            let mut backup = RedisBackup::new("b", RedisBackupSpec::default());
            backup.status = Some(RedisBackupStatus {
                shards: vec![BackupShard {
                    worker: worker.to_owned(),
                    state,
                    ..BackupShard::default()
                }],
                ..RedisBackupStatus::default()
            });
            wants_a_slot(&backup, "a")
        };
        assert!(wants("", Pending) && wants("a", Pending));
        assert!(!wants("b", Pending) && !wants("a", Streaming) && !wants("", Stored));
    }
}
