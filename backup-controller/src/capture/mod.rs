//! Captures one shard: chooses the node, has it take a snapshot, streams the snapshot into storage, proves it.
//!
//! Knows nothing of Kubernetes: addresses in, objects out. Memory is that of one [`ShardWriter`] (52 MiB) and a table of slots.

mod error;
mod facts;
mod opening;
mod source;
mod walk;

pub use error::CaptureError;
pub use facts::{CaptureFacts, CaptureProgress, CapturedShard, IndexDocument};

use bytes::BytesMut;
use common::{
    cluster::{
        replication::{Fork, ReplicationStream},
        seeds::Seeds,
        slots::SlotSet,
    },
    storage::{
        BackupId, Compression, CompressionPool, Layout, ObjectStore, Sha256Digest, ShardIndex,
        ShardWriter, StoredObject, layout, manifest, upload::part_size_for,
    },
};
use crds::SourceRole;
use jiff::Timestamp;
use opening::open;
use source::SourceNode;
use std::time::Duration;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use walk::{Proof, Proven};

/// How long the removal of an object that is not needed any more may take.
const REMOVE_LIMIT: Duration = Duration::from_secs(5);
/// Length of the buffer for reads across the end of a block.
const EDGE: usize = 4096;

/// One shard to capture.
#[derive(Clone, Debug)]
pub struct CaptureRequest {
    /// Nodes of the cluster, any of them.
    pub seeds: Seeds,
    /// Slots of the shard: the node that is read has to belong to the primary of exactly these, or be it.
    pub slots: SlotSet,
    /// Which node is preferred.
    pub prefer: SourceRole,
    /// How long to look for a node that can be read.
    pub patience: Duration,
    /// Where the backup goes.
    pub store: ObjectStore,
    /// Names the objects that are written.
    pub layout: Layout,
    /// Identifies the backup in the index document.
    pub backup_id: BackupId,
    /// Number of the shard in the backup.
    pub shard: u32,
    /// Number of the attempt: part of the keys, as is the mark of the claim in `layout`, so that two never write the same.
    pub attempt: u32,
    /// How blocks are compressed.
    pub compression: Compression,
    /// The pool that compresses, shared by all captures of the process.
    pub pool: CompressionPool,
}

impl CaptureRequest {
    /// Key of the object that will be written.
    pub fn key(&self) -> String {
        self.layout.key(&self.object_name())
    }

    fn object_name(&self) -> String {
        let Self { shard, attempt, .. } = *self;
        self.layout.shard_name(shard, attempt, self.compression)
    }
}

/// Captures the shard. `progress` is kept up to date; the fork is reported immediately. Cancelled or failed, no unfinished upload stays
/// in the bucket; an object that was complete by then may.
pub async fn capture(
    request: &CaptureRequest,
    progress: &watch::Sender<CaptureProgress>,
    cancel: &CancellationToken,
) -> Result<CapturedShard, CaptureError> {
    let opening = open(request, progress);
    let (source, stream, forked_at) = cancel
        .run_until_cancelled(Box::pin(opening))
        .await
        .ok_or(CaptureError::Cancelled)??;
    let mut writer = ShardWriter::new(
        request.store.clone(),
        request.key(),
        request.compression,
        request.pool.clone(),
        Some(part_size_for(source.used_memory)),
    );
    let fork = stream.fork().clone();
    let storing = async {
        let proven = Box::pin(pump(request, stream, &mut writer, progress)).await?;
        let object = Box::pin(writer.complete()).await?;
        Ok::<_, CaptureError>((object, proven))
    };
    let stored = cancel.run_until_cancelled(storing).await;
    let stored = stored.unwrap_or(Err(CaptureError::Cancelled));
    let (object, proven) = match stored {
        Ok(stored) => stored,
        Err(error) => {
            // Waited for, some seconds at most: the process may end right after this.
            Box::pin(writer.abort()).await;
            return Err(error);
        }
    };
    // Its buffers are for another stream.
    drop(writer);
    let document = document(request, &source, &fork, forked_at, object, proven);
    progress.send_modify(|seen| seen.stored_bytes = document.index.stored_bytes);
    let indexed = cancel
        .run_until_cancelled(Box::pin(store_index(request, document)))
        .await
        .unwrap_or(Err(CaptureError::Cancelled));
    if indexed.is_err() {
        // No manifest will name the object: another attempt writes one of another name.
        let removed = timeout(REMOVE_LIMIT, Box::pin(request.store.delete(&request.key()))).await;
        if !matches!(removed, Ok(Ok(()))) {
            tracing::warn!(
                key = request.key(),
                "an object without an index stays behind"
            );
        }
    }
    indexed
}

/// Moves the snapshot into the writer: socket to block buffer without a copy, checked and counted on the way.
async fn pump(
    request: &CaptureRequest,
    mut stream: ReplicationStream,
    writer: &mut ShardWriter,
    progress: &watch::Sender<CaptureProgress>,
) -> Result<Proven, CaptureError> {
    let mut proof = Proof::new(request.slots.clone());
    let mut edge = BytesMut::with_capacity(EDGE);
    loop {
        // The last bytes of a block are read beside it: reading into them would make its buffer grow.
        let at_edge = writer.room() < ReplicationStream::MIN_CAPACITY;
        let piece = if at_edge {
            edge.clear();
            stream.read(&mut edge).await?;
            edge.as_ref()
        } else {
            let buffer = writer.buffer();
            let before = buffer.len();
            stream.read(buffer).await?;
            buffer.get(before..).unwrap_or_default()
        };
        if piece.is_empty() {
            break;
        }
        proof.feed(piece)?;
        for (offset, db) in proof.walk.first_records() {
            writer.record_begins(offset, db);
        }
        if at_edge {
            writer.write(&edge).await?;
        } else {
            writer.commit().await?;
        }
        progress.send_modify(|seen| {
            seen.raw_bytes = writer.raw_bytes();
            seen.stored_bytes = writer.stored_bytes();
            seen.keys = proof.walk.keys();
        });
    }
    proof.finish()
}

fn document(
    request: &CaptureRequest,
    source: &SourceNode,
    fork: &Fork,
    forked_at: Timestamp,
    object: StoredObject,
    proven: Proven,
) -> IndexDocument {
    let Proven {
        header,
        counted,
        crc64,
    } = proven;
    IndexDocument {
        index: ShardIndex {
            schema: layout::SCHEMA,
            backup_id: request.backup_id.clone(),
            shard: request.shard,
            object: request.object_name(),
            compression: request.compression,
            raw_bytes: object.raw_bytes,
            stored_bytes: object.stored_bytes,
            sha256: object.sha256,
            flavour: walk::flavour(header).to_owned(),
            rdb_version: u32::from(header.version),
            blocks: object.blocks,
            slots: counted.slots,
        },
        capture: CaptureFacts {
            node_id: source.choice.id.to_string(),
            role: match source.choice.role {
                SourceRole::Replica => manifest::CapturedRole::Replica,
                SourceRole::Primary => manifest::CapturedRole::Primary,
            },
            crc64,
            replid: fork.replication_id.clone(),
            offset: u64::try_from(fork.offset).unwrap_or_default(),
            forked_at,
            server_version: source.server.version.clone(),
            functions: counted.functions,
            foreign_keys: counted.foreign_keys,
        },
    }
}

async fn store_index(
    request: &CaptureRequest,
    document: IndexDocument,
) -> Result<CapturedShard, CaptureError> {
    let index_key = request
        .layout
        .key(&request.layout.index_name(request.shard, request.attempt));
    let text = serde_json::to_vec(&document)?;
    let index_sha256 = Sha256Digest::of(&text);
    request
        .store
        .put(&index_key, text.into(), "application/json")
        .await?;
    Ok(CapturedShard {
        key: request.key(),
        index_key,
        index_sha256,
        document,
    })
}
