//! Long work beside the passes: publishing, deleting, sweeping. Each runs as a supervised task, leaves its outcome in the
//! planner's memory and wakes its backup; nobody waits for a sweep.

use super::{Planner, PlannerError};
use crate::{
    artifacts,
    memory::Memory,
    plan::Published,
    publish::{PublishRequest, StoredUnit, publish},
};
use common::{
    access::{self, AccessError},
    kubernetes::{
        background::{Background, Trouble},
        wake::Wake,
    },
    runtime::tasks::Tasks,
    storage::{BackupId, Compression, Layout, Location, StorageError},
};
use crds::{RedisBackup, S3Location};
use jiff::Timestamp;
use kube::{Client, ResourceExt};
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Pauses between the tries of a sweep.
const SWEEP_PAUSES: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(20),
    Duration::from_mins(1),
    Duration::from_mins(3),
];

impl Planner {
    /// Looks whether the bucket takes what will be written: better now than after a fork.
    pub(super) fn begin_probe(&self, backup: &RedisBackup, storage: &S3Location) {
        let uid = backup.uid().unwrap_or_default();
        let name = format!("probe {uid}");
        if self.jobs.is_running(&name) {
            return;
        }
        let (memory, wake, client) = self.tools();
        let (namespace, object) = (backup.namespace().unwrap_or_default(), backup.name_any());
        let (storage, cluster) = (storage.clone(), backup.spec.cluster_ref.name.clone());
        memory.probing(&uid, Background::Running);
        self.begin(name, move |end| async move {
            let probing = async {
                let store = access::store(&client, &namespace, &storage).await?;
                let root = Layout::at(store.location(), &format!("{namespace}/{cluster}"));
                let probed = store.probe(root.root()).await;
                probed.map_err(|error| Trouble::from(AccessError::from(error)))
            };
            let done = end.run_until_cancelled(Box::pin(probing)).await;
            memory.probing(&uid, Background::ended(done));
            wake.object(&namespace, &object);
        });
    }

    /// Writes the manifest.
    pub(super) fn begin_publishing(&self, backup: &RedisBackup) -> Result<(), PlannerError> {
        let uid = backup.uid().unwrap_or_default();
        let name = format!("publish {uid}");
        if self.jobs.is_running(&name) {
            return Ok(());
        }
        let place = Place::of(backup)?;
        let (memory, wake, client) = self.tools();
        let backup = backup.clone();
        memory.publishing(&uid, Background::Running);
        self.begin(name, move |end| async move {
            let publishing = Box::pin(publish_now(&client, &place, &backup));
            let done = end.run_until_cancelled(publishing).await;
            memory.publishing(&uid, Background::ended(done));
            wake.object(&place.namespace, &backup.name_any());
        });
        Ok(())
    }

    /// Deletes what the backup has stored.
    pub(super) fn begin_deletion(&self, backup: &RedisBackup) -> Result<(), PlannerError> {
        let uid = backup.uid().unwrap_or_default();
        let name = format!("delete {uid}");
        if self.jobs.is_running(&name) {
            return Ok(());
        }
        let place = Place::of(backup)?;
        let (memory, wake, client) = self.tools();
        let object = backup.name_any();
        memory.deletion(&uid, Background::Running);
        self.begin(name, move |end| async move {
            let deleting = async {
                let store = access::store(&client, &place.namespace, &place.storage).await;
                let store = store.map_err(for_deletion)?;
                let deleted = artifacts::delete(&store, &place.layout()?).await;
                deleted.map_err(|error| Trouble::from(AccessError::from(error)))
            };
            let done = end.run_until_cancelled(Box::pin(deleting)).await;
            memory.deletion(&uid, Background::ended(done));
            wake.object(&place.namespace, &object);
        });
        Ok(())
    }

    /// Aborts the uploads that lost attempts have left: of one key, or all of the backup's. Tried again for some minutes; what
    /// is left then is the next sweep's, or that of the store's own rules.
    pub(super) fn begin_sweep(
        &self,
        backup: &RedisBackup,
        key: Option<String>,
    ) -> Result<(), PlannerError> {
        let place = Place::of(backup)?;
        let client = self.runtime.client.clone();
        let what = key.as_ref().unwrap_or(&place.backup_id);
        let name = format!("abort uploads of {what}");
        start(&self.sweeps, name, move |end| async move {
            let sweeping = sweep(&client, &place, key.as_deref());
            end.run_until_cancelled(Box::pin(sweeping)).await;
        });
        Ok(())
    }

    fn tools(&self) -> (Memory, Wake<RedisBackup>, Client) {
        (
            self.memory.clone(),
            self.wake.clone(),
            self.runtime.client.clone(),
        )
    }

    /// Starts a job. One that is not started is asked for again by a later pass.
    fn begin<F>(&self, name: String, work: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        start(&self.jobs, name, work);
    }
}

fn start<F>(tasks: &Tasks, name: String, work: impl FnOnce(CancellationToken) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let started = tasks.start(name, |end| {
        let work = work(end);
        async move {
            work.await;
            Ok::<(), PlannerError>(())
        }
    });
    if let Err(error) = started {
        tracing::debug!(%error, "a job was not started");
    }
}

/// Aborts unfinished uploads of a key, or of everything below the backup's root; ends when that is done or in vain.
async fn sweep(client: &Client, place: &Place, key: Option<&str>) {
    let mut pauses = SWEEP_PAUSES.into_iter();
    while let Err(trouble) = Box::pin(abort_uploads(client, place, key)).await {
        let pause = pauses.next().filter(|_| trouble.transient);
        let (reason, again) = (trouble.reason, pause.is_some());
        tracing::warn!(
            reason,
            again,
            "unfinished uploads stay behind: {}",
            trouble.message
        );
        let Some(pause) = pause else { return };
        sleep(pause).await;
    }
}

async fn abort_uploads(client: &Client, place: &Place, key: Option<&str>) -> Result<(), Trouble> {
    let store = access::store(client, &place.namespace, &place.storage).await?;
    let layout = place.layout()?;
    let aborted = artifacts::abort(&store, key.unwrap_or(layout.root())).await;
    aborted.map_err(|error| Trouble::from(AccessError::from(error)))
}

/// A Secret that is gone does not come back for a deletion: its namespace is probably on its way out as well.
fn for_deletion(error: AccessError) -> Trouble {
    let gone = matches!(error, AccessError::NoSecret { .. });
    let trouble = Trouble::from(error);
    Trouble {
        transient: trouble.transient && !gone,
        ..trouble
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

    fn layout(&self) -> Result<Layout, Trouble> {
        let location = Location::from_spec(&self.storage)
            .map_err(|error| Trouble::from(AccessError::from(StorageError::from(error))))?;
        let id: BackupId = self.backup_id.parse().map_err(|error| Trouble {
            reason: "StatusMalformed",
            message: format!("{error}"),
            transient: false,
        })?;
        Ok(Layout::new(&location, &self.namespace, &self.cluster, &id))
    }
}

async fn publish_now(
    client: &Client,
    place: &Place,
    backup: &RedisBackup,
) -> Result<Published, Trouble> {
    let store = access::store(client, &place.namespace, &place.storage).await?;
    let status = backup.status.clone().unwrap_or_default();
    let malformed = |message: String| Trouble {
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
    publish(&request).await.map_err(|error| Trouble {
        reason: error.reason(),
        message: error.to_string(),
        transient: error.is_transient(),
    })
}
