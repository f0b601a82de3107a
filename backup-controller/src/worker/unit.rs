//! One unit: from the claim to the stored shard.

use super::{Worker, running::Running};
use crate::{
    capture::{CaptureError, CaptureProgress, CaptureRequest, CapturedShard, capture},
    select::order,
    slot_map::slots_of,
};
use common::{
    access::{self, AccessError, PodNames},
    cluster::slots::SlotSet,
    kubernetes::{
        call::ApiError,
        errors::{Classified, ErrorClass},
        session::Session,
    },
    storage::{BackupId, Compression, Layout, Location, StorageError, layout::BadBackupId},
};
use crds::{RedisBackup, S3Location, SourceRole};
use kube::ResourceExt;
use std::{
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    sync::OnceLock,
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a shard may be without a node that can be read: a failover takes the node timeout and a few seconds.
const SOURCE_PATIENCE: Duration = Duration::from_secs(20);

/// One unit of a backup, as it was when it was taken.
#[derive(Clone, Debug)]
pub(super) struct Order {
    namespace: String,
    cluster: String,
    storage: S3Location,
    layout: Layout,
    backup_id: BackupId,
    shard: u32,
    attempt: u32,
    slots: SlotSet,
    prefer: SourceRole,
    /// What is tried where no node can be read that is preferred.
    otherwise: Option<SourceRole>,
    compression: Compression,
}

/// Why a unit was not stored.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// The status does not say what it has to.
    #[error("the status of the backup is not as the controller wrote it: {0}")]
    Status(&'static str),
    /// The identity of the backup.
    #[error(transparent)]
    BackupId(#[from] BadBackupId),
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The bucket.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The capture itself.
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

impl UnitError {
    pub(super) fn is_cancelled(&self) -> bool {
        matches!(self, Self::Capture(CaptureError::Cancelled))
    }
}

impl Classified for UnitError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Status(_) | Self::BackupId(_) => ErrorClass::Bug,
            Self::Api(error) => error.class(),
            Self::Access(_) => ErrorClass::InvalidSpec,
            Self::Capture(error) => error.class(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Status(_) | Self::BackupId(_) => "StatusMalformed",
            Self::Api(error) => error.reason(),
            Self::Access(error) => error.reason(),
            Self::Capture(error) => error.reason(),
        }
    }
}

impl Order {
    pub(super) fn of(
        backup: &RedisBackup,
        position: usize,
        attempt: i32,
    ) -> Result<Self, UnitError> {
        let missing = UnitError::Status;
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
            storage,
            backup_id,
            shard: u32::try_from(unit.index).map_err(|_| missing("a negative index"))?,
            attempt: u32::try_from(attempt).map_err(|_| missing("a negative attempt"))?,
            slots: slots_of(unit).ok_or(missing("slot ranges"))?,
            prefer,
            otherwise,
            compression: Compression::from_spec(&backup.spec.compression),
        })
    }

    pub(super) fn key(&self) -> String {
        let Self { shard, attempt, .. } = *self;
        let name = self.layout.shard_name(shard, attempt, self.compression);
        self.layout.key(&name)
    }
}

/// Another one for every claim: a unit that is handed back keeps its attempt, and may even come back to a replica of this name.
fn mark() -> String {
    format!("{:08x}", RandomState::new().hash_one(0_u8) >> 32)
}

/// Captures a unit. The fork is told at once, the end by the caller.
pub(super) async fn run(
    worker: &Worker,
    order: &Order,
    pods: &OnceLock<PodNames>,
    progress: &watch::Sender<CaptureProgress>,
    session: &Session<Running>,
    cancel: &CancellationToken,
) -> Result<Box<CapturedShard>, UnitError> {
    let preparing = prepare(worker, order, pods);
    let request = cancel
        .run_until_cancelled(Box::pin(preparing))
        .await
        .ok_or(CaptureError::Cancelled)??;
    let mut watched = progress.subscribe();
    let tell_the_fork = async {
        if watched
            .wait_for(|seen| seen.forked_at.is_some())
            .await
            .is_ok()
        {
            session.news.notify_one();
        }
        std::future::pending::<Infallible>().await
    };
    let captured = tokio::select! {
        result = Box::pin(capture_one(&request, order.otherwise, progress, cancel)) => result?,
        never = tell_the_fork => match never {},
    };
    Ok(Box::new(captured))
}

/// Captures from a node of the role that is preferred, or else of the other.
async fn capture_one(
    request: &CaptureRequest,
    otherwise: Option<SourceRole>,
    progress: &watch::Sender<CaptureProgress>,
    cancel: &CancellationToken,
) -> Result<CapturedShard, CaptureError> {
    let first = Box::pin(capture(request, progress, cancel)).await;
    match (first, otherwise) {
        (Err(CaptureError::NoSource(_)), Some(prefer)) => {
            let request = CaptureRequest {
                prefer,
                ..request.clone()
            };
            Box::pin(capture(&request, progress, cancel)).await
        }
        (result, _) => result,
    }
}

async fn prepare(
    worker: &Worker,
    order: &Order,
    pods: &OnceLock<PodNames>,
) -> Result<CaptureRequest, UnitError> {
    let client = &worker.runtime.client;
    let store = access::store(client, &order.namespace, &order.storage).await?;
    let names = access::pods(client, &order.namespace, &order.cluster).await?;
    let seeds = names.keys().copied().collect();
    pods.get_or_init(|| names);
    Ok(CaptureRequest {
        seeds,
        slots: order.slots.clone(),
        prefer: order.prefer,
        patience: SOURCE_PATIENCE,
        store,
        layout: order.layout.clone(),
        backup_id: order.backup_id.clone(),
        shard: order.shard,
        attempt: order.attempt,
        compression: order.compression,
        pool: worker.pool.clone(),
    })
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
        let key = || Order::of(&backup, 0, 1).unwrap().key();
        let (one, other) = (key(), key());
        assert!(one.contains("/shard-0000-a1-"), "{one}");
        assert!(one.ends_with(".rdb.gz"), "{one}");
        assert_ne!(one, other);
    }
}
