//! Which units of a backup this replica takes, gives up or stops. Pure.

use crate::plan::is_finished;
use common::kubernetes::share::{self, Move, Own, Stage, Unit};
use crds::{BackupShard, BackupShardState, RedisBackup};

/// The moves of the replica `me` that can take `free` more units.
pub fn moves(backup: &RedisBackup, me: &str, own: &Own, free: usize) -> Vec<Move> {
    let status = backup.status.as_ref();
    if backup.metadata.deletion_timestamp.is_some() || status.is_some_and(is_finished) {
        return share::stop_all(own);
    }
    let shards = status.iter().flat_map(|status| &status.shards);
    let units: Vec<_> = shards.map(unit).collect();
    let uid = backup.metadata.uid.as_deref().unwrap_or_default();
    share::moves(uid, &units, me, own, free)
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
}
