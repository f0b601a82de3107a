//! Writes the manifest, the commit point of a backup: after every shard, from the shards' own index documents.

use crate::{capture::IndexDocument, plan::Published};
use common::cluster::slots::{SlotError, SlotRange};
use common::errors::Recovery;
use common::storage::{
    BackupId, Compression, Layout, Manifest, ObjectStore, Sha256Digest, ShardRecord, StorageError,
    digest::BadDigest,
    layout,
    manifest::{ManifestError, Totals},
};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;

/// Index documents read at the same time.
const PARALLEL_READS: usize = 4;
/// The largest index document that is read: a shard of 3 TB.
const LARGEST_INDEX: u64 = 64 << 20;
/// The largest manifest that is read: far more than 500 shards need.
const LARGEST_MANIFEST: u64 = 16 << 20;

/// A backup whose shards are all stored.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    /// The bucket with the shards' objects; the manifest goes there too.
    pub store: ObjectStore,
    /// Keys of the backup.
    pub layout: Layout,
    /// Identifies the backup in the manifest.
    pub backup_id: BackupId,
    /// Namespace of the cluster.
    pub namespace: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Uid of the cluster.
    pub cluster_uid: String,
    /// When the backup began.
    pub created_at: Timestamp,
    /// Hash of the slot map.
    pub topology_hash: String,
    /// How the shards are stored.
    pub compression: Compression,
    /// The shards in order.
    pub units: Vec<StoredUnit>,
}

/// A shard that is stored, as the status knows it.
#[derive(Clone, Debug)]
pub struct StoredUnit {
    /// Number of the shard.
    pub shard: u32,
    /// Its slots, for example `0-5460`.
    pub slots: Vec<String>,
    /// Key of its index document.
    pub index_key: String,
    /// SHA-256 of its index document, hex.
    pub index_sha256: String,
}

/// Why the manifest was not written.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A request to the store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The shards are no complete backup.
    #[error("the stored shards are no complete backup: {0}")]
    Incomplete(#[from] ManifestError),
    /// An index document is not what was stored.
    #[error("{key} is not the index that was stored for shard {shard}: {what}")]
    Index {
        /// Number of the shard.
        shard: u32,
        /// Key of the document.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// A digest in the status.
    #[error("the status holds a malformed checksum: {0}")]
    Digest(#[from] BadDigest),
    /// Slots in the status.
    #[error("the status holds malformed slots: {0}")]
    Slots(#[from] SlotError),
    /// JSON.
    #[error("the manifest does not serialise: {0}")]
    Json(#[from] serde_json::Error),
}

impl PublishError {
    /// CamelCase.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Storage(error) => error.reason(),
            Self::Incomplete(_) => "BackupIncomplete",
            Self::Index { .. } => "IndexDamaged",
            Self::Digest(_) | Self::Slots(_) | Self::Json(_) => "StatusMalformed",
        }
    }

    /// Whether it may succeed when it is tried again.
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Storage(error) => error.recovery(),
            Self::Incomplete(_)
            | Self::Index { .. }
            | Self::Digest(_)
            | Self::Slots(_)
            | Self::Json(_) => Recovery::Never,
        }
    }
}

/// Writes the manifest, unless it is there already: then an earlier planner died after writing it.
pub async fn publish(request: &PublishRequest) -> Result<Published, PublishError> {
    let key = request.layout.manifest();
    if request.store.head(&key).await?.is_some() {
        let text = request.store.get(&key, LARGEST_MANIFEST).await?;
        let found: Manifest = serde_json::from_slice(&text)?;
        found.validate()?;
        return Ok(published(&found, key, &text));
    }
    let mut shards: Vec<_> = stream::iter(request.units.clone())
        .map(|unit| read(request, unit))
        .buffer_unordered(PARALLEL_READS)
        .try_collect()
        .await?;
    shards.sort_by_key(|shard: &Shard| shard.record.index);
    let manifest = assemble(request, &shards, Timestamp::now());
    manifest.validate()?;
    let text = serde_json::to_vec_pretty(&manifest)?;
    let result = published(&manifest, key.clone(), &text);
    request
        .store
        .put(&key, text.into(), "application/json")
        .await?;
    Ok(result)
}

fn published(manifest: &Manifest, key: String, text: &[u8]) -> Published {
    Published {
        manifest_key: key,
        manifest_sha256: Sha256Digest::of(text).to_string(),
        skew_ms: i64::try_from(manifest.snapshot_skew_ms).unwrap_or(i64::MAX),
        rdb_version: i32::try_from(manifest.rdb_version).unwrap_or(i32::MAX),
    }
}

/// A shard as its index document tells it.
struct Shard {
    record: ShardRecord,
    flavour: String,
    rdb_version: u32,
    server_version: String,
    functions: Option<u64>,
}

/// Reads the index document of a shard and proves that it is the one that was stored.
async fn read(request: &PublishRequest, unit: StoredUnit) -> Result<Shard, PublishError> {
    let text = request.store.get(&unit.index_key, LARGEST_INDEX).await?;
    let wrong = |what: String| PublishError::Index {
        shard: unit.shard,
        key: unit.index_key.clone(),
        what,
    };
    let expected: Sha256Digest = unit.index_sha256.parse()?;
    let found = Sha256Digest::of(&text);
    if found != expected {
        return Err(wrong("its SHA-256 is another".to_owned()));
    }
    let document: IndexDocument =
        serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let slots: Result<Vec<SlotRange>, _> = unit.slots.iter().map(|range| range.parse()).collect();
    let root = request.layout.root();
    let index_object = unit.index_key.strip_prefix(root).unwrap_or(&unit.index_key);
    let IndexDocument { index, capture } = document;
    let record = ShardRecord {
        index: unit.shard,
        node_id: capture.node_id,
        role: capture.role,
        slots: slots?,
        object: index.object.clone(),
        index_object: index_object.to_owned(),
        index_sha256: expected,
        stored_bytes: index.stored_bytes,
        raw_bytes: index.raw_bytes,
        keys: index.keys(),
        expires: index.expires(),
        sha256: index.sha256,
        crc64: capture.crc64,
        replid: capture.replid,
        offset: capture.offset,
        forked_at: capture.forked_at,
    };
    record.check_index(&index, found)?;
    Ok(Shard {
        record,
        flavour: index.flavour,
        rdb_version: index.rdb_version,
        server_version: capture.server_version,
        functions: capture.functions,
    })
}

/// The manifest over these shards.
fn assemble(request: &PublishRequest, shards: &[Shard], now: Timestamp) -> Manifest {
    let first_of =
        |part: fn(&Shard) -> &str| shards.first().map(part).unwrap_or_default().to_owned();
    let mut versions: Vec<_> = shards
        .iter()
        .map(|shard| shard.server_version.as_str())
        .collect();
    versions.sort_unstable();
    versions.dedup();
    let forks = || shards.iter().map(|shard| shard.record.forked_at);
    let skew = forks().max().zip(forks().min()).map_or(0, |(last, first)| {
        u64::try_from(last.duration_since(first).as_millis()).unwrap_or_default()
    });
    let records: Vec<_> = shards.iter().map(|shard| shard.record.clone()).collect();
    Manifest {
        schema: layout::SCHEMA,
        backup_id: request.backup_id.clone(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        namespace: request.namespace.clone(),
        cluster: request.cluster.clone(),
        cluster_uid: request.cluster_uid.clone(),
        created_at: request.created_at,
        finished_at: now,
        flavour: first_of(|shard| &shard.flavour),
        redis_version: versions.join(", "),
        rdb_version: shards
            .iter()
            .map(|shard| shard.rdb_version)
            .max()
            .unwrap_or(0),
        topology_hash: request.topology_hash.clone(),
        snapshot_skew_ms: skew,
        compression: request.compression,
        // Every shard of a cluster holds the same libraries.
        functions: shards
            .iter()
            .map(|shard| shard.functions)
            .try_fold(0, |most, count| count.map(|count| count.max(most))),
        totals: Totals::of(&records),
        shards: records,
    }
}
