//! One retry policy for all requests: the client's own retries are off.

use super::error::StorageError;
use crate::errors::Recovery;
use backon::{BackoffBuilder, ExponentialBuilder};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// How long the tries of one request may last altogether. Below the 60 s (`repl-timeout`) after which a Redis server drops
/// a reader that makes no progress, with room for what happens between two reads.
const LIMIT: Duration = Duration::from_secs(45);

/// How often and how long a request is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retry {
    /// All tries and pauses together.
    pub(crate) limit: Duration,
    /// Pause after the first failure; each one after it is twice as long, with jitter.
    pub(crate) first_pause: Duration,
    /// The longest pause.
    pub(crate) longest_pause: Duration,
    /// Tries after the first one.
    pub(crate) times: usize,
}

/// For completions: two tries of five minutes, with a HEAD of the object after each. No data source is held by then, and
/// giving up would cost a complete shard.
pub(crate) const COMPLETION: Retry = Retry {
    limit: Duration::from_mins(11),
    first_pause: Duration::from_millis(200),
    longest_pause: Duration::from_secs(20),
    times: 30,
};

/// For every other request: about 20 s of pauses.
pub(crate) const STANDARD: Retry = Retry {
    limit: LIMIT,
    first_pause: Duration::from_millis(200),
    longest_pause: Duration::from_secs(4),
    times: 7,
};

/// Tries until one succeeds, an error is permanent, the tries are used up or the limit is reached. `out_of_time` makes the
/// error of the last case from the error of the last try.
pub(crate) async fn retrying<T, Attempt>(
    policy: Retry,
    out_of_time: impl FnOnce(Option<StorageError>) -> StorageError,
    mut attempt: impl FnMut() -> Attempt,
) -> Result<T, StorageError>
where
    Attempt: Future<Output = Result<T, StorageError>>,
{
    let deadline = Instant::now() + policy.limit;
    let mut pauses = ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(policy.first_pause)
        .with_max_delay(policy.longest_pause)
        .with_max_times(policy.times)
        .build();
    let mut last = None;
    loop {
        // Boxed, because the futures of the S3 client are large and deep, and would become part of every future that waits for
        // storage.
        let error = match timeout_at(deadline, Box::pin(attempt())).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if error.recovery() == Recovery::Soon => error,
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(out_of_time(last)),
        };
        match pauses.next() {
            Some(pause) if Instant::now() + pause < deadline => {
                tracing::debug!(%error, pause_ms = pause.as_millis(), "storage request failed, trying again");
                last = Some(error);
                sleep(pause).await;
            }
            Some(_) => return Err(out_of_time(Some(error))),
            None => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{
        cause::S3Cause, error::S3Path, operation::S3Operation, pool::WorkCancelled,
    };
    use std::cell::Cell;

    fn failure(cause: S3Cause) -> StorageError {
        let path = S3Path {
            bucket: "bucket".to_owned(),
            key: "key".to_owned(),
            endpoint: None,
        };
        StorageError::Request {
            operation: S3Operation::Write,
            path: Box::new(path),
            cause,
            detail: String::new(),
        }
    }

    const QUICK: Retry = Retry {
        limit: Duration::from_millis(500),
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(2),
        times: 7,
    };

    async fn tries(outcomes: &[Result<(), S3Cause>]) -> (usize, Result<(), StorageError>) {
        let count = Cell::new(0);
        let result = retrying(QUICK, Option::unwrap, || {
            let outcome = outcomes[count.get().min(outcomes.len() - 1)];
            count.set(count.get() + 1);
            async move { outcome.map_err(failure) }
        })
        .await;
        (count.get(), result)
    }

    #[tokio::test]
    async fn transient_errors_are_tried_again_and_permanent_ones_not() {
        let (count, result) =
            tries(&[Err(S3Cause::Throttled), Err(S3Cause::Timeout), Ok(())]).await;
        assert!(result.is_ok());
        assert_eq!(count, 3);
        let (count, result) = tries(&[Err(S3Cause::NoSuchBucket)]).await;
        assert_eq!(result.unwrap_err().cause(), Some(S3Cause::NoSuchBucket));
        assert_eq!(count, 1);
        let (count, result) = tries(&[Err(S3Cause::ServerFault)]).await;
        assert_eq!(result.unwrap_err().cause(), Some(S3Cause::ServerFault));
        assert_eq!(count, 8);
    }

    #[tokio::test]
    async fn a_try_that_never_ends_is_cut_at_the_limit() {
        let start = Instant::now();
        let cut = |last: Option<StorageError>| {
            assert!(last.is_none());
            WorkCancelled.into()
        };
        let result: Result<(), _> = retrying(QUICK, cut, std::future::pending).await;
        assert!(matches!(result, Err(StorageError::Cancelled(_))));
        assert!(start.elapsed() >= QUICK.limit);
    }
}
