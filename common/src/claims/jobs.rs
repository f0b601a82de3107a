//! Jobs: long work beside the reconciles. One reconcile starts it, a later one reads how it ended.

use super::permits::{Permits, Quota};
use crate::{
    kubernetes::call::ApiError,
    runtime::{
        Runtime,
        tasks::{NotStarted, Tasks},
    },
};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long a transient failure is remembered before the work may start again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFailure {
    /// CamelCase.
    pub reason: &'static str,
    /// Names the object, the cause and the cure.
    pub message: String,
    /// Whether the same job may succeed later.
    pub transient: bool,
}

/// How a job ended.
pub type JobResult<T> = Result<T, JobFailure>;

/// What is remembered of one kind of job of one object.
#[derive(Clone, Debug)]
pub struct JobRecord<T>(Option<(JobResult<T>, Instant)>);

impl<T> Default for JobRecord<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Clone> JobRecord<T> {
    /// The job has ended. `None`: it was cancelled because the process ends or another replica leads.
    pub fn set(&mut self, ended: Option<JobResult<T>>, now: Instant) {
        let result = ended.unwrap_or_else(|| {
            Err(JobFailure {
                reason: "Cancelled",
                message: "the controller is shutting down or another replica leads".to_owned(),
                transient: true,
            })
        });
        self.0 = Some((result, now));
    }

    /// How it ended; `None` while it has not. A transient failure is forgotten after some seconds, so that the work starts again.
    pub fn recall(&mut self, now: Instant) -> Option<JobResult<T>> {
        let expired = self.0.as_ref().is_some_and(|(result, since)| {
            result.as_ref().is_err_and(|failure| failure.transient)
                && now.duration_since(*since) >= RETRY_AFTER
        });
        if expired {
            self.0 = None;
        }
        self.0.as_ref().map(|(result, _)| result.clone())
    }
}

/// Supervised jobs, bounded in all and in each namespace.
pub struct Jobs {
    tasks: Tasks,
    permits: Permits,
}

impl Jobs {
    /// None runs yet.
    pub fn new(runtime: &Runtime, quota: Quota) -> Self {
        Self::of(runtime.tasks(quota.all, |_, _| {}), quota)
    }

    fn of(tasks: Tasks, quota: Quota) -> Self {
        Self {
            tasks,
            permits: Permits::new(quota),
        }
    }

    /// Whether a job of that name runs.
    pub fn is_running(&self, name: &str) -> bool {
        self.tasks.is_running(name)
    }

    /// Starts a job on behalf of a namespace. It has to end soon after its token is cancelled.
    pub fn start<F>(
        &self,
        namespace: &str,
        name: String,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> Result<(), NotStarted>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let permit = self.permits.try_acquire(namespace);
        let permit = permit.ok_or(NotStarted::Full)?;
        self.tasks.start(name, |end| {
            let work = work(end);
            async move {
                work.await;
                drop(permit);
                Ok::<(), ApiError>(())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Program, metrics::Metrics};
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
        sync::oneshot,
        time::timeout,
    };

    #[test]
    fn transient_failures_are_forgotten_and_others_kept() {
        let mut record = JobRecord::<()>::default();
        let start = Instant::now();
        let mut failure = JobFailure {
            reason: "R",
            message: String::new(),
            transient: true,
        };
        assert!(record.recall(start).is_none());
        record.set(Some(Err(failure.clone())), start);
        assert!(record.recall(start).is_some());
        assert!(record.recall(start + RETRY_AFTER).is_none());
        failure.transient = false;
        record.set(Some(Err(failure)), start);
        assert!(record.recall(start + 2 * RETRY_AFTER).is_some());
    }

    #[test]
    fn cancelled_jobs_start_again() {
        let mut record = JobRecord::<()>::default();
        let start = Instant::now();
        record.set(None, start);
        assert!(record.recall(start + RETRY_AFTER).is_none());
    }

    #[tokio::test]
    async fn a_hanging_endpoint_of_one_namespace_delays_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap();
        let metrics = Metrics::new(Program {
            name: "test",
            version: "0",
        });
        let quota = Quota {
            all: 5,
            one_namespace: 4,
        };
        let end = CancellationToken::new();
        let tasks = Tasks::new(quota.all, end.clone(), metrics, |_, _| {});
        let jobs = Jobs::of(tasks, quota);
        let hang = move |end: CancellationToken| async move {
            // Connects, and waits for an answer that never comes.
            let mut stream = TcpStream::connect(endpoint).await.unwrap();
            let mut answer = [0];
            let answered = end.run_until_cancelled(stream.read(&mut answer)).await;
            assert!(answered.is_none());
        };
        let started = (0..9).map(|number| jobs.start("a", format!("probe a{number}"), hang));
        assert_eq!(started.flatten().count(), 4);
        let (send, done) = oneshot::channel();
        let quick = |_: CancellationToken| async move { send.send(()).unwrap() };
        jobs.start("b", "probe b".to_owned(), quick).unwrap();
        timeout(Duration::from_secs(5), done)
            .await
            .unwrap()
            .unwrap();
        assert!(jobs.is_running("probe a0"));
        end.cancel();
        assert!(jobs.tasks.join(Duration::from_secs(5)).await.is_empty());
    }
}
