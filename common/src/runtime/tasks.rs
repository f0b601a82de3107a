//! Supervised tasks: long work with a name, an owner and an end.

use crate::kubernetes::errors::Classified;
use tokio_util::sync::CancellationToken;

/// A set of named tasks: bounded, cancellable, joined at shutdown. Cheap to clone.
#[derive(Clone)]
pub struct Tasks {}

/// Why a task was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStarted {
    /// A task of that name runs.
    #[error("a task of that name is already running")]
    Running,
    /// The set is full.
    #[error("as many tasks as allowed are running")]
    Full,
    /// The process is ending.
    #[error("the process is shutting down")]
    ShuttingDown,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskEnd {
    /// It finished, or stopped because it was told to.
    Done,
    /// It returned an error.
    Failed {
        /// [`Classified::reason`].
        reason: &'static str,
        /// The error in words.
        message: String,
    },
    /// It panicked, or was aborted after it did not stop in time.
    Aborted,
}

impl Tasks {
    /// Starts a task. It is handed a token and has to end soon after that is cancelled.
    pub fn start<E, F>(
        &self,
        name: impl Into<String>,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> Result<(), NotStarted>
    where
        E: Classified,
        F: Future<Output = Result<(), E>> + Send + 'static,
    {
        todo!()
    }

    /// Whether a task of that name runs.
    pub fn is_running(&self, name: &str) -> bool {
        todo!()
    }

    /// Tells a task to stop. Whether there was one.
    pub fn cancel(&self, name: &str) -> bool {
        todo!()
    }

    /// Names of the running tasks.
    pub fn running(&self) -> Vec<String> {
        todo!()
    }

    /// How many more may be started.
    pub fn free(&self) -> usize {
        todo!()
    }
}
