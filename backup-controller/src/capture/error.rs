//! Why a shard was not captured.

use crate::select::NoSource;
use common::{
    cluster::{node::NodeError, replication::ReplicationError, seeds::NoSeeds},
    errors::Recovery,
    rdb::{RdbError, checksum::ChecksumError},
    storage::StorageError,
};
use std::{net::SocketAddr, time::Duration};

/// Why a shard was not captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// No node can be read.
    #[error(transparent)]
    NoSource(#[from] NoSource),
    /// No node can be asked.
    #[error(transparent)]
    NoSeeds(#[from] NoSeeds),
    /// The shard has other slots now.
    #[error(
        "the shard with slots {wanted} has slots {found} now: slots were moved during the backup"
    )]
    SlotsMoved {
        /// Slots when the backup was planned.
        wanted: String,
        /// Slots now.
        found: String,
    },
    /// No node can be asked for the shard's primary.
    #[error("no node answers which primary has the shard's slots: {0}")]
    Node(#[source] NodeError),
    /// The stream broke or was refused.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// The server sends keep-alives and nothing else.
    #[error(
        "{address} has not {what} within {} minutes but is alive: check INFO persistence for a stuck BGSAVE or append-only rewrite",
        after.as_secs() / 60
    )]
    Late {
        /// Where the server listens.
        address: SocketAddr,
        /// What it has not done.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The stream is damaged.
    #[error(transparent)]
    Checksum(#[from] ChecksumError),
    /// The stream is no RDB.
    #[error(transparent)]
    NotRdb(#[from] RdbError),
    /// The stream ended before its header.
    #[error("the server sent an empty snapshot")]
    Empty,
    /// The store did not take it.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The index does not serialise.
    #[error("the index of the shard does not serialise: {0}")]
    Index(#[from] serde_json::Error),
    /// Cancelled from outside.
    #[error("the capture was stopped")]
    Cancelled,
}

impl CaptureError {
    /// Whether another attempt may succeed.
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Storage(error) => error.recovery(),
            Self::Index(_) | Self::Cancelled => Recovery::Never,
            Self::NoSource(_)
            | Self::NoSeeds(_)
            | Self::SlotsMoved { .. }
            | Self::Node(_)
            | Self::Replication(_)
            | Self::Late { .. }
            | Self::Checksum(_)
            | Self::NotRdb(_)
            | Self::Empty => Recovery::Soon,
        }
    }

    /// The class of the failure in CamelCase, for the status and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSource(_) | Self::NoSeeds(_) => "NoSource",
            Self::SlotsMoved { .. } => "SlotsMoved",
            Self::Node(error) => error.reason(),
            Self::Replication(error) => match error {
                ReplicationError::Dial(error) => error.reason(),
                ReplicationError::Io { .. } | ReplicationError::Closed { .. } => "SourceLost",
                ReplicationError::Timeout { .. } => "SourceSilent",
                ReplicationError::NoPrimaryLink { .. } => "SourceNotLinked",
                ReplicationError::Loading { .. } => "SourceLoading",
                ReplicationError::Forbidden { .. } => "SourceForbidden",
                ReplicationError::Refused { .. } | ReplicationError::Unexpected { .. } => {
                    "SourceRefused"
                }
            },
            Self::Late { .. } => "SnapshotLate",
            Self::Checksum(_) | Self::NotRdb(_) | Self::Empty => "StreamDamaged",
            Self::Storage(error) => error.reason(),
            Self::Index(_) => "IndexMalformed",
            Self::Cancelled => "Cancelled",
        }
    }
}
