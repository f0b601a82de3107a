//! What is known of a shard once it is stored.

use common::storage::{Sha256Digest, ShardIndex, manifest::CapturedRole};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How a shard's object came about: kept in its index document, because the one who writes the manifest is often not the one
/// who captured the shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaptureFacts {
    /// Id of the node that was read.
    pub node_id: String,
    /// What the node was.
    pub role: CapturedRole,
    /// CRC-64 at the end of the stream, 16 hex digits, or `disabled` by the server's configuration.
    pub crc64: String,
    /// Replication id of the snapshot.
    pub replid: String,
    /// Replication offset of the snapshot.
    pub offset: u64,
    /// When the snapshot was taken, as the reader saw it.
    pub forked_at: Timestamp,
    /// Version of the server.
    pub server_version: String,
    /// Libraries of functions, if every record could be walked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub functions: Option<u64>,
    /// Keys in slots that the shard does not own, left by an aborted move; counted, not left out.
    #[serde(default)]
    pub foreign_keys: u64,
}

/// The index document of a shard: the block table and counts that a restore reads, and how they came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexDocument {
    /// Block table and counts.
    #[serde(flatten)]
    pub index: ShardIndex,
    /// How the object came about.
    pub capture: CaptureFacts,
}

/// A stored shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedShard {
    /// Key of the object.
    pub key: String,
    /// Key of the index document.
    pub index_key: String,
    /// SHA-256 of the index document.
    pub index_sha256: Sha256Digest,
    /// What the index document says.
    pub document: IndexDocument,
}

/// How far a capture is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureProgress {
    /// The node that is read, once it is chosen.
    pub source: Option<crate::select::Choice>,
    /// When the server took its snapshot.
    pub forked_at: Option<Timestamp>,
    /// Bytes received.
    pub raw_bytes: u64,
    /// Bytes the store has taken.
    pub stored_bytes: u64,
    /// Keys counted; `None` once that is not possible any more.
    pub keys: Option<u64>,
}
