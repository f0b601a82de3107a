//! A backup in storage: proven before it is restored, and read again by every replica that works on it.

use crate::{
    access::AccessError,
    plan::{Examined, ManifestName, Origin},
};
use common::storage::{Layout, Location, Manifest, ObjectStore, ShardIndex, ShardRecord, layout};
use futures::{StreamExt, TryStreamExt, stream};
use std::sync::Arc;

/// Documents read at the same time.
const PARALLEL_READS: usize = 8;

/// A backup whose manifest is the one that is meant.
pub struct Source {
    store: ObjectStore,
    layout: Layout,
    manifest: Manifest,
    sha256: String,
}

impl Source {
    /// Reads and proves the manifest.
    pub async fn open(store: ObjectStore, origin: &Origin) -> Result<Self, AccessError> {
        let layout = layout_of(store.location(), &origin.manifest);
        let (manifest, sha256) = store.read_manifest(&layout).await?;
        let sha256 = sha256.to_string();
        if let Some(expected) = &origin.sha256
            && *expected != sha256
        {
            return Err(AccessError::OtherManifest {
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

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The bucket.
    pub fn store(&self) -> &ObjectStore {
        &self.store
    }

    /// Key of a shard's object.
    pub fn key(&self, record: &ShardRecord) -> String {
        self.layout.key(&record.object)
    }

    /// One shard and its index, which is proven to be the manifest's.
    pub async fn shard(&self, number: i32) -> Result<(&ShardRecord, ShardIndex), AccessError> {
        let position = usize::try_from(number).ok();
        let record = position.and_then(|position| self.manifest.shards.get(position));
        let record = record.ok_or(AccessError::NoShard(number))?;
        let index = self.store.read_index(&self.layout, record).await?;
        Ok((record, index))
    }

    /// Every index, in the order of the shards.
    pub async fn indexes(&self) -> Result<Vec<ShardIndex>, AccessError> {
        let read = async |record| Ok(self.store.read_index(&self.layout, record).await?);
        let reads: Vec<_> = self.manifest.shards.iter().map(read).collect();
        let reads = stream::iter(reads).buffered(PARALLEL_READS);
        reads.try_collect().await
    }

    /// Proves every index, and that every object is there in full length.
    pub async fn examine(&self, origin: &Origin) -> Result<Arc<Examined>, AccessError> {
        let indexes = self.indexes().await?;
        let check = |record| self.check_length(record);
        let checks: Vec<_> = self.manifest.shards.iter().map(check).collect();
        let checks = stream::iter(checks).buffer_unordered(PARALLEL_READS);
        checks.try_collect::<()>().await?;
        let manifest = &self.manifest;
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

    async fn check_length(&self, record: &ShardRecord) -> Result<(), AccessError> {
        let key = self.key(record);
        let found = self.store.head(&key).await?.map_or(0, |info| info.bytes);
        if found == record.stored_bytes {
            return Ok(());
        }
        Err(AccessError::Incomplete {
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

/// A whole key stands below the location's prefix as well, unless somebody has changed the prefix since.
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
