//! Why a replay stops.

use super::{
    reply_action::{Refusal, RetryReason},
    value_limit::ValueLimit,
};
use common::{
    cluster::{node::NodeError, seeds::NoSeeds, slots::Slot},
    errors::Recovery,
    rdb::RdbError,
    storage::StorageError,
};
use std::{net::SocketAddr, time::Duration};

/// Why a replay stops.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The backup cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The backup's records cannot be read.
    #[error("shard {shard} of the backup cannot be decoded: {source}")]
    Records {
        /// Index of the shard in the backup.
        shard: u32,
        /// What the record reader refuses.
        source: RdbError,
    },
    /// The stream stops before its end.
    #[error("shard {shard} of the backup ends in the middle of a record: use another backup")]
    Truncated {
        /// Index of the shard in the backup.
        shard: u32,
    },
    /// A value that is not taken.
    #[error(
        "the value of key {key} (slot {slot}, block {block} of the backup) is longer than {longest}"
    )]
    TooLong {
        /// The key, escaped and shortened.
        key: String,
        /// Slot of the key.
        slot: Slot,
        /// The block in which it starts.
        block: u64,
        /// Most bytes of one value.
        longest: ValueLimit,
    },
    /// A key in another database.
    #[error(
        "the backup has keys in database {db}, but a cluster has only database 0: restore into a server that is no cluster"
    )]
    Database {
        /// Number of the database, not 0.
        db: u32,
    },
    /// Data that RESTORE cannot carry.
    #[error("the backup holds {what}, which cannot be restored key by key")]
    Unsupported {
        /// The kind of data, for example modules.
        what: &'static str,
    },
    /// The target cannot be asked.
    #[error("the target cannot be read: {0}")]
    NoSeeds(#[from] NoSeeds),
    /// No primaries.
    #[error("no node of the target knows a primary with slots")]
    NoPrimaries,
    /// A node cannot be asked.
    #[error(transparent)]
    Node(NodeError),
    /// Two libraries of one name.
    #[error(
        "node {node} has a function library {library:?} with other code than the backup: delete it there, or restore into a new cluster"
    )]
    FunctionConflict {
        /// Where the primary listens.
        node: SocketAddr,
        /// Name of the library.
        library: String,
    },
    /// A node refuses a key for good.
    #[error("node {node} refuses a key of slot {slot} (block {block} of the backup): {refusal}")]
    Refused {
        /// Where the primary listens.
        node: SocketAddr,
        /// The slot of the first key it refused.
        slot: Slot,
        /// The block that holds the key.
        block: u64,
        /// What the primary says no to.
        refusal: Refusal,
    },
    /// No key could be written for too long.
    #[error(
        "no key could be written for {} s: {reason} (node {node}{})", patience.as_secs(),
        failure.as_ref().map(|failure| format!(", {failure}")).unwrap_or_default()
    )]
    Unavailable {
        /// How long it was tried.
        patience: Duration,
        /// What the last try ended with.
        reason: RetryReason,
        /// The node that was tried.
        node: SocketAddr,
        /// What ended the last connection.
        failure: Option<String>,
    },
}

/// Characters of a key that a message shows.
const SHOWN: usize = 100;

impl ReplayError {
    pub(super) fn too_long(key: &[u8], block: u64, longest: ValueLimit) -> Self {
        let escaped = key.escape_ascii().to_string();
        let shown: String = escaped.chars().take(SHOWN).collect();
        let more = if shown.len() < escaped.len() {
            "…"
        } else {
            ""
        };
        Self::TooLong {
            key: format!("\"{shown}{more}\""),
            slot: Slot::of_key(key),
            block,
            longest,
        }
    }

    /// Whether another attempt may succeed.
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Storage(error) => error.recovery(),
            Self::Records { .. }
            | Self::Truncated { .. }
            | Self::TooLong { .. }
            | Self::Database { .. }
            | Self::Unsupported { .. }
            | Self::FunctionConflict { .. } => Recovery::Never,
            Self::NoSeeds(_) | Self::NoPrimaries | Self::Node(_) | Self::Unavailable { .. } => {
                Recovery::Soon
            }
            Self::Refused { refusal, .. } => match refusal {
                Refusal::ReadOnly => Recovery::Soon,
                Refusal::OutOfMemory
                | Refusal::NotPermitted(_)
                | Refusal::Payload(_)
                | Refusal::Other(_) => Recovery::Never,
            },
        }
    }

    /// One CamelCase word for conditions, Events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Storage(error) => error.reason(),
            Self::Records { source, .. } => match source {
                RdbError::UnknownType { .. } => "UnknownType",
                RdbError::NotRdb(_) | RdbError::Malformed { .. } => "DamagedRecords",
            },
            Self::Truncated { .. } => "DamagedRecords",
            Self::TooLong { .. } => "ValueTooLong",
            Self::Database { .. } => "SeveralDatabases",
            Self::Unsupported { .. } => "UnsupportedData",
            Self::FunctionConflict { .. } => "FunctionConflict",
            Self::NoSeeds(_) => "TargetNotSettled",
            Self::NoPrimaries => "NoPrimaries",
            Self::Node(error) => error.reason(),
            Self::Unavailable { .. } => "TargetUnavailable",
            Self::Refused { refusal, .. } => match refusal {
                Refusal::OutOfMemory => "TargetOutOfMemory",
                Refusal::ReadOnly => "TargetReadOnly",
                Refusal::NotPermitted(_) => "TargetNotPermitted",
                Refusal::Payload(_) => "PayloadRefused",
                Refusal::Other(_) => "TargetRefused",
            },
        }
    }
}
