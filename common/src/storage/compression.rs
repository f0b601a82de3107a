//! How blocks are compressed, and the threads that do it.

use super::error::StorageError;
use serde::{Deserialize, Serialize};
use std::{num::NonZeroUsize, sync::Arc, thread};
use tokio::sync::Semaphore;

/// How the blocks of a shard are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Compression {
    /// As they are.
    None,
    /// Each block one gzip member (RFC 1952), so that the object is a plain `.gz` file.
    Gzip {
        /// 1 (fast) to 9 (small).
        level: u8,
    },
}

/// Level 1: on JSON-like records of 200 B one core compressed 115 MB/s to 0.28 of the size, at level 2 63 MB/s to 0.20, at
/// level 3 53 MB/s to 0.19 (flate2 with zlib-rs, busy machine of 2 cores, medians of 3). A Redis server writes about
/// 130 MB/s, so level 1 is what does not hold it up. To measure again:
/// `cargo run --release --package tests --example gzip_levels`.
impl Default for Compression {
    fn default() -> Self {
        Self::Gzip { level: 1 }
    }
}

impl Compression {
    /// End of the object's name.
    pub fn extension(self) -> &'static str {
        match self {
            Self::None => ".rdb",
            Self::Gzip { .. } => ".rdb.gz",
        }
    }

    /// What a custom resource asks for; levels outside 1 to 9 are moved to the nearest.
    pub fn from_spec(spec: &crds::Compression) -> Self {
        match spec.kind {
            crds::CompressionType::None => Self::None,
            crds::CompressionType::Gzip => Self::Gzip {
                level: u8::try_from(spec.level.clamp(1, 9)).unwrap_or(1),
            },
        }
    }
}

/// The bound on how many blocks are compressed, decompressed or hashed at the same time in this process. Cheap to clone;
/// all streams of a process share one, so that more streams do not mean more threads than cores.
#[derive(Clone, Debug)]
pub struct CompressionPool {
    permits: Arc<Semaphore>,
}

impl CompressionPool {
    /// A pool of this width.
    pub fn new(width: NonZeroUsize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(width.get())),
        }
    }

    /// A pool as wide as the cores that this process may use.
    pub fn of_machine() -> Self {
        Self::new(thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }

    /// Runs a piece of work of some milliseconds beside the async threads, in turn.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StorageError> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| StorageError::Worker)?;
        // The permit goes with the work: a caller that is cancelled does not let others in while it still runs.
        tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        })
        .await
        .map_err(|_| StorageError::Worker)
    }
}
