//! What one unit asks for: read from the status when the unit was taken.

use super::ShardError;
use crate::{capture::CaptureProgress, select::order, shards::slots_of};
use common::{
    access::{AccessError, PodNames},
    cluster::slots::SlotSet,
    storage::{BackupId, Compression, Layout, Location, StorageError},
};
use crds::{RedisBackup, S3Location, SourceRole};
use kube::ResourceExt;
use std::{
    hash::{BuildHasher, RandomState},
    sync::{Arc, OnceLock},
};
use tokio::sync::watch;

/// One shard of a backup, as it was when its unit was taken.
#[derive(Debug)]
pub struct CaptureOrder {
    pub(super) namespace: String,
    pub(super) cluster: String,
    /// Identity of the RedisCluster, if it is recorded.
    pub(super) cluster_uid: Option<String>,
    pub(super) storage: S3Location,
    pub(super) layout: Layout,
    pub(super) backup_id: BackupId,
    pub(super) shard: u32,
    pub(super) attempt: u32,
    pub(super) slots: SlotSet,
    pub(super) prefer: SourceRole,
    /// Tried where no node of the preferred role can be read.
    pub(super) otherwise: Option<SourceRole>,
    pub(super) compression: Compression,
    pub(super) progress: watch::Sender<CaptureProgress>,
    /// Set once the capture has read them.
    pub(super) pods: Arc<OnceLock<PodNames>>,
}

impl CaptureOrder {
    pub(super) fn of(
        backup: &RedisBackup,
        position: usize,
        attempt: i32,
    ) -> Result<Self, ShardError> {
        let missing = ShardError::Status;
        let status = backup.status.as_ref().ok_or(missing("no status"))?;
        let unit = status
            .shards
            .get(position)
            .ok_or(missing("no such shard"))?;
        let storage = status.storage.clone().ok_or(missing("no storage"))?;
        let backup_id: BackupId = status
            .backup_id
            .as_deref()
            .ok_or(missing("no backupId"))?
            .parse()?;
        let namespace = backup.namespace().unwrap_or_default();
        let cluster = backup.spec.cluster_ref.name.clone();
        let location = Location::from_spec(&storage)
            .map_err(|error| AccessError::from(StorageError::from(error)))?;
        let (prefer, otherwise) = order(backup.spec.source.prefer, attempt, backup.spec.attempts);
        let layout = Layout::new(&location, &namespace, &cluster, &backup_id);
        Ok(Self {
            layout: layout.of_claim(&mark()),
            namespace,
            cluster,
            cluster_uid: status.cluster_uid.clone(),
            storage,
            backup_id,
            shard: u32::try_from(unit.index).map_err(|_| missing("a negative index"))?,
            attempt: u32::try_from(attempt).map_err(|_| missing("a negative attempt"))?,
            slots: slots_of(unit).ok_or(missing("slot ranges"))?,
            prefer,
            otherwise,
            compression: Compression::from_spec(&backup.spec.compression),
            progress: watch::Sender::default(),
            pods: Arc::default(),
        })
    }

    pub(super) fn key(&self) -> String {
        let Self { shard, attempt, .. } = *self;
        let name = self.layout.shard_name(shard, attempt, self.compression);
        self.layout.key(&name)
    }
}

/// Differs with every claim: a released unit keeps its attempt, and may come back to a replica of the same name.
fn mark() -> String {
    format!("{:08x}", RandomState::new().hash_one(0_u8) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{BackupShard, RedisBackupSpec, RedisBackupStatus};

    #[test]
    fn two_claims_of_one_attempt_write_different_keys() {
        let mut backup = RedisBackup::new("b", RedisBackupSpec::default());
        backup.status = Some(RedisBackupStatus {
            backup_id: Some("20261121t003000z-3f9c2a10".into()),
            storage: Some(S3Location {
                bucket: "backups".into(),
                ..S3Location::default()
            }),
            shards: vec![BackupShard {
                slot_ranges: vec!["0-16383".into()],
                attempt: 1,
                ..BackupShard::default()
            }],
            ..RedisBackupStatus::default()
        });
        let key = || CaptureOrder::of(&backup, 0, 1).unwrap().key();
        let (one, other) = (key(), key());
        assert!(one.contains("/shard-0000-a1-"), "{one}");
        assert!(one.ends_with(".rdb.gz"), "{one}");
        assert_ne!(one, other);
    }
}
