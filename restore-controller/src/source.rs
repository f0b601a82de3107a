//! A backup in storage: proven before it is restored, and read again by every replica that works on it.

use crate::{
    plan::{Examined, ManifestName, Origin, Verified},
    replay::{ReplayError, walk},
    verify::{Expectation, Expired},
};
use common::{
    access::AccessError,
    claims::{
        jobs::JobFailure,
        permits::{Permits, Quota},
    },
    cluster::slots::{Slot, SlotSet},
    errors::Recovery,
    rdb::Key,
    storage::{
        CompressionPool, Layout, Location, Manifest, ObjectStore, ShardIndex, ShardRecord,
        StorageError, layout,
    },
};
use futures::{StreamExt, TryStreamExt, stream};
use std::sync::Arc;

/// Documents read at the same time.
const PARALLEL_READS: usize = 8;

/// Why a backup cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The bucket cannot be opened.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A request failed, or a document is damaged.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The manifest is another than the one that was proven.
    #[error(
        "{key} in bucket {bucket} has SHA-256 {found}, expected {expected}: the manifest was replaced; restore another backup"
    )]
    OtherManifest {
        /// Name of the bucket.
        bucket: String,
        /// Key of the manifest.
        key: String,
        /// What was vouched for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// An object is not there in full length.
    #[error(
        "the backup is incomplete: {key} in bucket {bucket} has {found} bytes instead of {expected}; restore another backup"
    )]
    Incomplete {
        /// Name of the bucket.
        bucket: String,
        /// Key of the object.
        key: String,
        /// Its length as the manifest says.
        expected: u64,
        /// Its length; 0 if there is none.
        found: u64,
    },
    /// A shard holds what cannot be restored.
    #[error(transparent)]
    Records(#[from] ReplayError),
    /// The status names a shard that the manifest lacks.
    #[error("the manifest has no shard {0}")]
    NoShard(i32),
}

impl SourceError {
    /// CamelCase.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Access(error) => error.reason(),
            Self::Storage(error) => error.reason(),
            Self::OtherManifest { .. } => "ManifestReplaced",
            Self::Incomplete { .. } => "BackupIncomplete",
            Self::Records(error) => error.reason(),
            Self::NoShard(_) => "StatusMalformed",
        }
    }

    /// Whether the backup may be read when it is tried again.
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Access(error) => error.recovery(),
            Self::Storage(error) => error.recovery(),
            Self::Records(error) => error.recovery(),
            Self::OtherManifest { .. } | Self::Incomplete { .. } | Self::NoShard(_) => {
                Recovery::Never
            }
        }
    }
}

impl From<SourceError> for JobFailure {
    fn from(error: SourceError) -> Self {
        Self {
            reason: error.reason(),
            message: error.to_string(),
            transient: error.recovery() == Recovery::Soon,
        }
    }
}

/// Whole shards that are read beside the replays at the same time: each holds several blocks. One namespace reads one, so that its slow
/// store does not delay the others.
const WALKS: Quota = Quota {
    all: 3,
    one_namespace: 1,
};

/// Reads whole shards beside the replays.
#[derive(Clone)]
pub struct Walks {
    pool: CompressionPool,
    permits: Permits,
    namespace: String,
}

impl Default for Walks {
    fn default() -> Self {
        Self {
            pool: CompressionPool::of_machine(),
            permits: Permits::new(WALKS),
            namespace: String::new(),
        }
    }
}

impl Walks {
    /// Those on behalf of a namespace.
    #[must_use]
    pub fn of(&self, namespace: &str) -> Self {
        let namespace = namespace.to_owned();
        Self {
            namespace,
            ..self.clone()
        }
    }
}

/// A backup whose manifest is the one that is meant.
pub struct Source {
    store: ObjectStore,
    layout: Layout,
    manifest: Manifest,
    sha256: String,
}

impl Source {
    /// Reads and proves the manifest.
    pub async fn open(store: ObjectStore, origin: &Origin) -> Result<Self, SourceError> {
        let layout = layout_of(store.location(), &origin.manifest);
        let (manifest, sha256) = store.read_manifest(&layout).await?;
        let sha256 = sha256.to_string();
        if let Some(expected) = &origin.sha256
            && *expected != sha256
        {
            return Err(SourceError::OtherManifest {
                bucket: store.location().bucket().to_owned(),
                key: layout.manifest(),
                expected: expected.clone(),
                found: sha256,
            });
        }
        Ok(Self {
            store,
            layout,
            manifest,
            sha256,
        })
    }

    /// What the manifest says, after it was proven.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// For reading the objects that the manifest lists.
    pub fn store(&self) -> &ObjectStore {
        &self.store
    }

    /// Key of a shard's object.
    pub fn key(&self, record: &ShardRecord) -> String {
        self.layout.key(&record.object)
    }

    /// One shard and its index, which is proven to be the manifest's.
    pub async fn shard(&self, number: i32) -> Result<(&ShardRecord, ShardIndex), SourceError> {
        let position = usize::try_from(number).ok();
        let record = position.and_then(|position| self.manifest.shards.get(position));
        let record = record.ok_or(SourceError::NoShard(number))?;
        let index = self.store.read_index(&self.layout, record).await?;
        Ok((record, index))
    }

    /// Every index, in the order of the shards.
    pub async fn indexes(&self) -> Result<Vec<ShardIndex>, SourceError> {
        let read = async |record| Ok(self.store.read_index(&self.layout, record).await?);
        let reads: Vec<_> = self.manifest.shards.iter().map(read).collect();
        let reads = stream::iter(reads).buffered(PARALLEL_READS);
        reads.try_collect().await
    }

    /// Proves every index, that every object is there in full length, and that what the backup could not count can be read
    /// all the same: such a shard is read to its end, so that nothing is written of a backup that cannot be restored.
    pub async fn examine(
        &self,
        origin: &Origin,
        walks: &Walks,
    ) -> Result<Arc<Examined>, SourceError> {
        let indexes = self.indexes().await?;
        let check = |record| self.check_length(record);
        let checks: Vec<_> = self.manifest.shards.iter().map(check).collect();
        let checks = stream::iter(checks).buffer_unordered(PARALLEL_READS);
        checks.try_collect::<()>().await?;
        let manifest = &self.manifest;
        for (record, index) in manifest.shards.iter().zip(&indexes) {
            if index.slots.is_none() {
                self.walk(record, index, walks, |_| {}).await?;
            }
        }
        Ok(Arc::new(Examined {
            storage: origin.storage.clone(),
            manifest_key: self.layout.manifest(),
            manifest_sha256: self.sha256.clone(),
            backup_id: manifest.backup_id.to_string(),
            server: server(manifest),
            rdb_version: manifest.rdb_version,
            keys: manifest.totals.keys,
            blocks: indexes.iter().map(|i| i.blocks.len() as u64).collect(),
        }))
    }

    /// Compares what was counted in the target, slot by slot, with what the backup holds. `now_ms` is the time after the
    /// counting. Where keys are missing that may have expired by then, the shard is read again and they are counted.
    pub async fn compare(
        &self,
        counted: &[(Slot, u64)],
        now_ms: i64,
        walks: &Walks,
    ) -> Result<Verified, SourceError> {
        let indexes = self.indexes().await?;
        let shards = self.manifest.shards.iter();
        let owned: Vec<SlotSet> = shards.map(|s| s.slots.iter().copied().collect()).collect();
        let Some(expectation) = Expectation::of(indexes.iter().zip(&owned)) else {
            return Ok(Verified::NotCounted {
                actual: counted.iter().map(|(_, keys)| keys).sum(),
            });
        };
        let mut expired = Expired::by(now_ms);
        let doubtful = expectation.doubtful(counted, now_ms);
        for ((record, index), owned) in self.manifest.shards.iter().zip(&indexes).zip(&owned) {
            let wanted = doubtful.intersection(owned);
            if !wanted.is_empty() {
                let count = |key: &Key<'_>| expired.count(key.key, key.expire_ms, &wanted);
                self.walk(record, index, walks, count).await?;
            }
        }
        Ok(Verified::Compared(expectation.compare(counted, &expired)))
    }

    /// Shows every key of a shard.
    async fn walk(
        &self,
        record: &ShardRecord,
        index: &ShardIndex,
        walks: &Walks,
        on_key: impl FnMut(&Key<'_>) + Send,
    ) -> Result<(), SourceError> {
        let _permit = walks.permits.acquire(&walks.namespace).await;
        let (store, index) = (self.store.clone(), Arc::new(index.clone()));
        Ok(walk(store, walks.pool.clone(), self.key(record), index, on_key).await?)
    }

    async fn check_length(&self, record: &ShardRecord) -> Result<(), SourceError> {
        let key = self.key(record);
        let found = self.store.head(&key).await?.map_or(0, |info| info.bytes);
        if found == record.stored_bytes {
            return Ok(());
        }
        Err(SourceError::Incomplete {
            bucket: self.store.location().bucket().to_owned(),
            key,
            expected: record.stored_bytes,
            found,
        })
    }
}

/// What was backed up, for example "Redis 7.0.15".
fn server(manifest: &Manifest) -> String {
    let version = manifest.redis_version.trim();
    if version.starts_with(|first: char| first.is_ascii_digit()) {
        let family = if manifest.flavour == "valkey" {
            "Valkey"
        } else {
            "Redis"
        };
        return format!("{family} {version}");
    }
    version.to_owned()
}

/// A whole key stands below the location's prefix as well, unless the prefix has been changed since.
fn layout_of(location: &Location, manifest: &ManifestName) -> Layout {
    match manifest {
        ManifestName::Path(path) => Layout::at(location, path),
        ManifestName::Key(key) => {
            let prefix = format!("{}/", location.prefix());
            let below = key.strip_prefix(&prefix).unwrap_or(key);
            Layout::at(location, below.trim_end_matches(layout::MANIFEST))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::S3Location;

    #[test]
    fn keys_and_paths_lead_to_the_same_place() {
        for prefix in [None, Some("team-a/redis".to_owned())] {
            let spec = S3Location {
                bucket: "backups".into(),
                prefix,
                ..S3Location::default()
            };
            let location = Location::from_spec(&spec).unwrap();
            let path = ManifestName::Path("ns/c/20261121t003000z-3f9c2a10".into());
            let by_path = layout_of(&location, &path);
            let by_key = layout_of(&location, &ManifestName::Key(by_path.manifest()));
            assert_eq!(by_path, by_key);
        }
    }
}
