//! Supervised tasks: long work with a name, an owner and an end.

use super::metrics::Metrics;
use crate::errors::Classified;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::task::AbortHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

/// A set of named tasks: bounded, cancellable, joined at shutdown. Cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    shared: Arc<Shared>,
}

struct Shared {
    limit: usize,
    end: CancellationToken,
    running: Mutex<HashMap<String, Entry>>,
    tracker: TaskTracker,
    ended: Box<Ended>,
    metrics: Metrics,
}

type Ended = dyn Fn(&str, &TaskEnd) + Send + Sync;

struct Entry {
    cancel: CancellationToken,
    abort: AbortHandle,
}

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
    /// It finished, or stopped because it was cancelled.
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
    /// An empty set. `end` cancels every task; `ended` is called after each, when it no longer counts as running.
    pub fn new(
        limit: usize,
        end: CancellationToken,
        metrics: Metrics,
        ended: impl Fn(&str, &TaskEnd) + Send + Sync + 'static,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                limit,
                end,
                running: Mutex::default(),
                tracker: TaskTracker::new(),
                ended: Box::new(ended),
                metrics,
            }),
        }
    }

    /// Starts a task. It is handed a token and has to end soon after that is cancelled. Its span is inside the caller's: what a reconcile
    /// starts logs the kind, namespace and name of the object.
    pub fn start<E, F>(
        &self,
        name: impl Into<String>,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> Result<(), NotStarted>
    where
        E: Classified,
        F: Future<Output = Result<(), E>> + Send + 'static,
    {
        let name = name.into();
        let cancel = self.shared.end.child_token();
        let mut running = self.shared.lock();
        if self.shared.end.is_cancelled() {
            return Err(NotStarted::ShuttingDown);
        }
        if running.contains_key(&name) {
            return Err(NotStarted::Running);
        }
        if running.len() >= self.shared.limit {
            return Err(NotStarted::Full);
        }
        // The supervisor takes the entry away under this same lock, so it cannot be gone before it is there.
        let span = tracing::info_span!("task", task = name);
        let task = tokio::spawn(work(cancel.clone()).instrument(span));
        let abort = task.abort_handle();
        running.insert(name.clone(), Entry { cancel, abort });
        self.shared.metrics.task_started();
        let shared = Arc::clone(&self.shared);
        self.shared.tracker.spawn(async move {
            let end = match task.await {
                Ok(Ok(())) => TaskEnd::Done,
                Ok(Err(error)) => TaskEnd::Failed {
                    reason: error.reason(),
                    message: super::telemetry::chain(&error),
                },
                Err(_) => TaskEnd::Aborted,
            };
            shared.finish(&name, &end);
        });
        Ok(())
    }

    /// Whether a task of that name runs.
    pub fn is_running(&self, name: &str) -> bool {
        self.shared.lock().contains_key(name)
    }

    /// Cancels a task. Whether there was one.
    pub fn cancel(&self, name: &str) -> bool {
        let running = self.shared.lock();
        let entry = running.get(name);
        if let Some(entry) = entry {
            entry.cancel.cancel();
        }
        entry.is_some()
    }

    /// Names of the running tasks, sorted.
    pub fn running(&self) -> Vec<String> {
        let mut names: Vec<String> = self.shared.lock().keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// How many more may be started.
    pub fn free(&self) -> usize {
        self.shared.limit.saturating_sub(self.shared.lock().len())
    }

    /// Waits until every task has ended, after `end` was cancelled; aborts those that have not by the deadline and names them.
    pub async fn join(&self, deadline: Duration) -> Vec<String> {
        self.shared.tracker.close();
        if tokio::time::timeout(deadline, self.shared.tracker.wait())
            .await
            .is_ok()
        {
            return Vec::new();
        }
        let late = self.running();
        for entry in self.shared.lock().values() {
            entry.abort.abort();
        }
        // Aborting takes effect at a task's next await: bounded all the same.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.shared.tracker.wait()).await;
        late
    }
}

impl Shared {
    fn finish(&self, name: &str, end: &TaskEnd) {
        self.lock().remove(name);
        match end {
            TaskEnd::Done => tracing::debug!(task = name, "task ended"),
            TaskEnd::Failed { reason, message } => {
                tracing::warn!(task = name, reason, error = message, "task failed");
            }
            TaskEnd::Aborted => tracing::error!(task = name, "task panicked or was aborted"),
        }
        self.metrics.task_ended(match end {
            TaskEnd::Done => "done",
            TaskEnd::Failed { .. } => "failed",
            TaskEnd::Aborted => "aborted",
        });
        (self.ended)(name, end);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{errors::ErrorClass, runtime::Program};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    #[derive(Debug, thiserror::Error)]
    #[error("broken pipe")]
    struct Broken;
    impl Classified for Broken {
        fn class(&self) -> ErrorClass {
            ErrorClass::Transient
        }
        fn reason(&self) -> &'static str {
            "Broken"
        }
    }

    fn tasks(
        limit: usize,
    ) -> (
        Tasks,
        CancellationToken,
        UnboundedReceiver<(String, TaskEnd)>,
    ) {
        let (sender, receiver) = unbounded_channel();
        let end = CancellationToken::new();
        let metrics = Metrics::new(Program {
            name: "test",
            version: "0",
        });
        let tasks = Tasks::new(limit, end.clone(), metrics, move |name, end| {
            let _ = sender.send((name.to_string(), end.clone()));
        });
        (tasks, end, receiver)
    }

    async fn until_cancelled(token: CancellationToken) -> Result<(), Broken> {
        token.cancelled().await;
        Ok(())
    }

    #[tokio::test]
    async fn names_are_unique_and_numbers_bounded() {
        let (tasks, _end, mut ends) = tasks(2);
        tasks.start("a", until_cancelled).unwrap();
        assert_eq!(tasks.start("a", until_cancelled), Err(NotStarted::Running));
        tasks.start("b", until_cancelled).unwrap();
        assert_eq!(tasks.start("c", until_cancelled), Err(NotStarted::Full));
        assert_eq!(tasks.running(), ["a", "b"]);
        assert!(tasks.cancel("a"));
        assert_eq!(ends.recv().await.unwrap(), ("a".to_string(), TaskEnd::Done));
        assert!(!tasks.is_running("a"));
        assert_eq!(tasks.free(), 1);
        tasks.start("a", until_cancelled).unwrap();
    }

    #[tokio::test]
    async fn failures_and_panics_are_reported() {
        let (tasks, _end, mut ends) = tasks(2);
        tasks.start("fails", |_| async { Err(Broken) }).unwrap();
        let failed = TaskEnd::Failed {
            reason: "Broken",
            message: "broken pipe".to_string(),
        };
        assert_eq!(ends.recv().await.unwrap(), ("fails".to_string(), failed));
        tasks
            .start("panics", |_| async {
                tokio::task::yield_now().await;
                assert!(std::env::args().count() == usize::MAX, "on purpose");
                Ok::<(), Broken>(())
            })
            .unwrap();
        assert_eq!(
            ends.recv().await.unwrap(),
            ("panics".to_string(), TaskEnd::Aborted)
        );
        assert_eq!(tasks.free(), 2);
    }

    #[tokio::test]
    async fn the_end_is_waited_for_and_enforced() {
        let (tasks, end, _ends) = tasks(2);
        tasks.start("good", until_cancelled).unwrap();
        tasks
            .start("stubborn", |_| async {
                std::future::pending::<()>().await;
                Ok::<(), Broken>(())
            })
            .unwrap();
        end.cancel();
        assert_eq!(
            tasks.start("late", until_cancelled),
            Err(NotStarted::ShuttingDown)
        );
        assert_eq!(tasks.join(Duration::from_millis(100)).await, ["stubborn"]);
        assert!(tasks.running().is_empty());
    }
}
