//! Jobs of a backup: the probe of its storage, the manifest, the deletion; and sweeps, whose result is not waited for.

use super::BackupPlanner;
use crate::{
    artifacts,
    plan::Published,
    publish::{PublishRequest, StoredUnit, publish},
};
use common::{
    access::{AccessError, Buckets},
    claims::{
        jobs::{JobFailure, JobRecord, JobResult, Jobs},
        planner::PlannerError,
    },
    errors::Recovery,
    kubernetes::leases::Leadership,
    storage::{BackupId, Compression, Layout, Location, StorageError},
};
use crds::{RedisBackup, S3Location};
use jiff::Timestamp;
use kube::ResourceExt;
use std::time::Duration;
use tokio::time::sleep;

/// Pauses between the tries of a sweep.
const SWEEP_PAUSES: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(20),
    Duration::from_mins(1),
    Duration::from_mins(3),
];

/// How the jobs of one backup ended.
#[derive(Default)]
pub struct BackupJobs {
    pub(super) probe: JobRecord<()>,
    pub(super) publication: JobRecord<Published>,
    pub(super) deletion: JobRecord<()>,
}

/// Checks that the bucket takes what will be written: better now than after a fork.
pub(super) fn start_probe(
    planner: &BackupPlanner,
    buckets: Buckets,
    backup: &RedisBackup,
    storage: &S3Location,
) {
    let (namespace, storage) = (backup.namespace().unwrap_or_default(), storage.clone());
    let cluster = backup.spec.cluster_ref.name.clone();
    let probing = async move {
        let store = buckets.open(&namespace, &storage).await?;
        let root = Layout::at(store.location(), &format!("{namespace}/{cluster}"));
        let probed = store.probe(root.root()).await;
        Ok(probed.map_err(AccessError::from)?)
    };
    planner.start_job("probe", backup, probing, |jobs| &mut jobs.probe);
}

/// Writes the manifest.
pub(super) fn start_publication(
    planner: &BackupPlanner,
    buckets: Buckets,
    backup: &RedisBackup,
) -> Result<(), PlannerError> {
    let artifacts = Artifacts::of(backup)?;
    let status = backup.clone();
    let publishing = async move { publish_now(&buckets, &artifacts, &status).await };
    planner.start_job("publish", backup, publishing, |jobs| &mut jobs.publication);
    Ok(())
}

/// Deletes what the backup has stored.
pub(super) fn start_deletion(
    planner: &BackupPlanner,
    buckets: Buckets,
    backup: &RedisBackup,
) -> Result<(), PlannerError> {
    let artifacts = Artifacts::of(backup)?;
    let deleting = async move {
        let store = buckets.open(&artifacts.namespace, &artifacts.storage).await;
        let store = store.map_err(for_deletion)?;
        let deleted = artifacts::delete(&store, &artifacts.layout()?).await;
        Ok(deleted.map_err(AccessError::from)?)
    };
    planner.start_job("delete", backup, deleting, |jobs| &mut jobs.deletion);
    Ok(())
}

/// Aborts the uploads that lost attempts have left: of one key, or all of the backup's. Tried again for some minutes, while this replica
/// leads; what is left then is left to the next sweep, or to a rule of the bucket.
pub(super) fn start_sweep(
    buckets: Buckets,
    sweeps: &Jobs,
    leadership: &Leadership,
    backup: &RedisBackup,
    key: Option<&String>,
) -> Result<(), PlannerError> {
    let (artifacts, key) = (Artifacts::of(backup)?, key.cloned());
    let namespace = artifacts.namespace.clone();
    let name = format!(
        "abort uploads of {}",
        key.as_ref().unwrap_or(&artifacts.backup_id)
    );
    let leadership = leadership.clone();
    let started = sweeps.start(&namespace, name, |end| async move {
        let sweeping = Box::pin(sweep(&buckets, &artifacts, key.as_deref()));
        let leading = leadership.while_leading(sweeping);
        end.run_until_cancelled(Box::pin(leading)).await;
    });
    if let Err(error) = started {
        tracing::debug!(%error, namespace, "a sweep was not started");
    }
    Ok(())
}

/// Aborts unfinished uploads of a key, or of everything below the backup's root, until that is done or its tries are used up.
async fn sweep(buckets: &Buckets, artifacts: &Artifacts, key: Option<&str>) {
    let mut pauses = SWEEP_PAUSES.into_iter();
    while let Err(failure) = Box::pin(abort_uploads(buckets, artifacts, key)).await {
        let pause = pauses.next().filter(|_| failure.transient);
        let (reason, again) = (failure.reason, pause.is_some());
        tracing::warn!(
            reason,
            again,
            "unfinished uploads are left behind: {}",
            failure.message
        );
        let Some(pause) = pause else { return };
        sleep(pause).await;
    }
}

async fn abort_uploads(
    buckets: &Buckets,
    artifacts: &Artifacts,
    key: Option<&str>,
) -> JobResult<()> {
    let store = buckets
        .open(&artifacts.namespace, &artifacts.storage)
        .await?;
    let layout = artifacts.layout()?;
    let aborted = artifacts::abort(&store, key.unwrap_or(layout.root())).await;
    Ok(aborted.map_err(AccessError::from)?)
}

/// A Secret that is missing is not waited for by a deletion: its namespace is probably being deleted too.
fn for_deletion(error: AccessError) -> JobFailure {
    let missing = matches!(error, AccessError::NoSecret { .. });
    let failure = JobFailure::from(error);
    JobFailure {
        transient: failure.transient && !missing,
        ..failure
    }
}

/// Where the artifacts of an accepted backup are.
struct Artifacts {
    namespace: String,
    cluster: String,
    storage: S3Location,
    backup_id: String,
}

impl Artifacts {
    fn of(backup: &RedisBackup) -> Result<Self, PlannerError> {
        let missing = |what: &str| PlannerError::Malformed(format!("the status has no {what}"));
        let status = backup.status.as_ref().ok_or_else(|| missing("fields"))?;
        let storage = status.storage.clone().ok_or_else(|| missing("storage"))?;
        let backup_id = status
            .backup_id
            .clone()
            .ok_or_else(|| missing("backupId"))?;
        Ok(Self {
            namespace: backup.namespace().unwrap_or_default(),
            cluster: backup.spec.cluster_ref.name.clone(),
            storage,
            backup_id,
        })
    }

    fn layout(&self) -> JobResult<Layout> {
        let location = Location::from_spec(&self.storage).map_err(StorageError::from);
        let location = location.map_err(AccessError::from)?;
        let id = self.id()?;
        Ok(Layout::new(&location, &self.namespace, &self.cluster, &id))
    }

    fn id(&self) -> JobResult<BackupId> {
        self.backup_id
            .parse()
            .map_err(|error| malformed(format!("{error}")))
    }
}

fn malformed(message: String) -> JobFailure {
    JobFailure {
        reason: "StatusMalformed",
        message,
        transient: false,
    }
}

async fn publish_now(
    buckets: &Buckets,
    artifacts: &Artifacts,
    backup: &RedisBackup,
) -> JobResult<Published> {
    let store = buckets
        .open(&artifacts.namespace, &artifacts.storage)
        .await?;
    let status = backup.status.clone().unwrap_or_default();
    let units = status.shards.iter().map(|unit| {
        Some(StoredUnit {
            shard: u32::try_from(unit.index).ok()?,
            slots: unit.slot_ranges.clone(),
            index_key: unit.index_key.clone()?,
            index_sha256: unit.index_sha256.clone()?,
        })
    });
    let units: Option<Vec<_>> = units.collect();
    let request = PublishRequest {
        store,
        layout: artifacts.layout()?,
        backup_id: artifacts.id()?,
        namespace: artifacts.namespace.clone(),
        cluster: artifacts.cluster.clone(),
        cluster_uid: status.cluster_uid.unwrap_or_default(),
        created_at: status.start_time.map_or_else(Timestamp::now, |time| time.0),
        topology_hash: status.topology_hash.unwrap_or_default(),
        compression: Compression::from_spec(&backup.spec.compression),
        units: units
            .ok_or_else(|| malformed("a stored shard has no index in the status".to_owned()))?,
    };
    publish(&request).await.map_err(|error| JobFailure {
        reason: error.reason(),
        message: error.to_string(),
        transient: error.recovery() == Recovery::Soon,
    })
}
