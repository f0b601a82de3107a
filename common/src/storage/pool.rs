//! The threads that compress, decompress and hash.

use std::{num::NonZeroUsize, sync::Arc, thread};
use tokio::sync::Semaphore;

/// The work did not finish: the process is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a compression task was cancelled")]
pub struct WorkCancelled;

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

    /// Runs a piece of work of some milliseconds on a blocking thread, in the order of the calls.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkCancelled> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| WorkCancelled)?;
        // The permit goes with the work: if the caller is cancelled, the work still runs and still counts.
        tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        })
        .await
        .map_err(|_| WorkCancelled)
    }
}
