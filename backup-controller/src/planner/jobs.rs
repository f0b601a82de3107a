//! Long work beside the passes: publishing, deleting, aborting. Each runs as a supervised task, leaves its outcome in the
//! planner's memory and wakes its backup.

use super::{Planner, PlannerError};
use crate::{
    access::{self, AccessError},
    artifacts,
    plan::{Background, Published, StorageTrouble},
    publish::{PublishRequest, StoredUnit, publish},
};
use common::storage::{BackupId, Compression, Layout, Location, StorageError};
use crds::{RedisBackup, S3Location};
use jiff::Timestamp;
use kube::ResourceExt;

impl Planner {
    pub(super) fn begin_abort(&self, backup: &RedisBackup, key: String) {
        let Some(place) = Place::of(backup) else {
            return;
        };
        let client = self.runtime.client.clone();
        let started = self
            .jobs
            .start(format!("abort uploads of {key}"), move |end| async move {
                let aborting = async {
                    let store = access::store(&client, &place.namespace, &place.storage).await?;
                    artifacts::abort(&store, &key)
                        .await
                        .map_err(AccessError::from)
                };
                if let Some(Err(error)) = end.run_until_cancelled(Box::pin(aborting)).await {
                    tracing::warn!(%error, key, "an unfinished upload was not aborted");
                }
                Ok::<(), PlannerError>(())
            });
        if let Err(error) = started {
            tracing::debug!(%error, "the abort of an upload was not started");
        }
    }

    pub(super) fn begin_publishing(&self, backup: &RedisBackup) -> Result<(), PlannerError> {
        let uid = backup.uid().unwrap_or_default();
        let name = format!("publish {uid}");
        if self.jobs.is_running(&name) {
            return Ok(());
        }
        let place =
            Place::of(backup).ok_or_else(|| PlannerError::Malformed("no storage".to_owned()))?;
        let (memory, wake, client) = (
            self.memory.clone(),
            self.wake.clone(),
            self.runtime.client.clone(),
        );
        let backup = backup.clone();
        memory.publishing(&uid, Background::Running);
        let started = self.jobs.start(name, move |end| async move {
            let done = end
                .run_until_cancelled(Box::pin(publish_now(&client, &place, &backup)))
                .await;
            memory.publishing(&uid, finished(done));
            wake.object(&place.namespace, &backup.name_any());
            Ok::<(), PlannerError>(())
        });
        started.or_else(|error| {
            tracing::debug!(%error, "publishing was not started");
            Ok(())
        })
    }

    pub(super) fn begin_deletion(&self, backup: &RedisBackup) -> Result<(), PlannerError> {
        let uid = backup.uid().unwrap_or_default();
        let name = format!("delete {uid}");
        if self.jobs.is_running(&name) {
            return Ok(());
        }
        let place =
            Place::of(backup).ok_or_else(|| PlannerError::Malformed("no storage".to_owned()))?;
        let (memory, wake, client) = (
            self.memory.clone(),
            self.wake.clone(),
            self.runtime.client.clone(),
        );
        let object = backup.name_any();
        memory.deletion(&uid, Background::Running);
        let started = self.jobs.start(name, move |end| async move {
            let deleting = async {
                let store = access::store(&client, &place.namespace, &place.storage).await;
                let store = store.map_err(for_deletion)?;
                let layout = place.layout()?;
                artifacts::delete(&store, &layout)
                    .await
                    .map_err(|error| AccessError::from(error).into())
            };
            let done = end.run_until_cancelled(Box::pin(deleting)).await;
            memory.deletion(&uid, finished(done));
            wake.object(&place.namespace, &object);
            Ok::<(), PlannerError>(())
        });
        started.or_else(|error| {
            tracing::debug!(%error, "the deletion was not started");
            Ok(())
        })
    }
}

/// A Secret that is gone does not come back for a deletion: its namespace is probably on its way out as well.
fn for_deletion(error: AccessError) -> StorageTrouble {
    let gone = matches!(error, AccessError::NoSecret { .. });
    let trouble = StorageTrouble::from(error);
    StorageTrouble {
        transient: trouble.transient && !gone,
        ..trouble
    }
}

/// Cancelled work is begun again by the next leader.
fn finished<T>(done: Option<Result<T, StorageTrouble>>) -> Background<T> {
    match done {
        Some(Ok(value)) => Background::Done(value),
        Some(Err(trouble)) => Background::Failed(trouble),
        None => Background::Failed(StorageTrouble {
            reason: "Cancelled",
            message: "the controller is shutting down".to_owned(),
            transient: true,
        }),
    }
}

/// Where an accepted backup is.
struct Place {
    namespace: String,
    cluster: String,
    storage: S3Location,
    backup_id: String,
}

impl Place {
    fn of(backup: &RedisBackup) -> Option<Self> {
        let status = backup.status.as_ref()?;
        Some(Self {
            namespace: backup.namespace()?,
            cluster: backup.spec.cluster_ref.name.clone(),
            storage: status.storage.clone()?,
            backup_id: status.backup_id.clone()?,
        })
    }

    fn layout(&self) -> Result<Layout, StorageTrouble> {
        let location = Location::from_spec(&self.storage)
            .map_err(|error| StorageTrouble::from(AccessError::from(StorageError::from(error))))?;
        let id: BackupId = self.backup_id.parse().map_err(|error| StorageTrouble {
            reason: "StatusMalformed",
            message: format!("{error}"),
            transient: false,
        })?;
        Ok(Layout::new(&location, &self.namespace, &self.cluster, &id))
    }
}

async fn publish_now(
    client: &kube::Client,
    place: &Place,
    backup: &RedisBackup,
) -> Result<Published, StorageTrouble> {
    let store = access::store(client, &place.namespace, &place.storage).await?;
    let status = backup.status.clone().unwrap_or_default();
    let malformed = |message: String| StorageTrouble {
        reason: "StatusMalformed",
        message,
        transient: false,
    };
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
        layout: place.layout()?,
        backup_id: place
            .backup_id
            .parse()
            .map_err(|error| malformed(format!("{error}")))?,
        namespace: place.namespace.clone(),
        cluster: place.cluster.clone(),
        cluster_uid: status.cluster_uid.unwrap_or_default(),
        created_at: status.started_at.map_or_else(Timestamp::now, |time| time.0),
        topology_hash: status.topology_hash.unwrap_or_default(),
        compression: Compression::from_spec(&backup.spec.compression),
        units: units
            .ok_or_else(|| malformed("a stored shard has no index in the status".to_owned()))?,
    };
    publish(&request).await.map_err(|error| StorageTrouble {
        reason: error.reason(),
        message: error.to_string(),
        transient: error.is_transient(),
    })
}
