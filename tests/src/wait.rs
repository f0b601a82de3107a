//! Waiting for conditions: the one poll loop of the suites.

use crate::kubectl_error::KubectlError;
use anyhow::{Context, Error, Result, bail};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a condition may take unless the caller says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(30);

const INTERVAL: Duration = Duration::from_millis(20);

/// What one look at a condition returns: `bool`, or an `Option` of what is waited for.
pub trait Observation {
    /// What the wait returns.
    type Value;

    /// `None` while the condition does not hold.
    fn into_value(self) -> Option<Self::Value>;
}

impl Observation for bool {
    type Value = ();

    fn into_value(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Observation for Option<T> {
    type Value = T;

    fn into_value(self) -> Option<T> {
        self
    }
}

/// Waits until the condition holds, for at most [`PATIENCE`].
pub async fn eventually<O: Observation>(
    what: &str,
    look: impl AsyncFnMut() -> Result<O>,
) -> Result<O::Value> {
    within(PATIENCE, what, look).await
}

/// Waits until the condition holds, for at most `limit`. An error that waiting cannot cure ends the wait.
pub async fn within<O: Observation>(
    limit: Duration,
    what: &str,
    look: impl AsyncFnMut() -> Result<O>,
) -> Result<O::Value> {
    at_intervals(INTERVAL, limit, what, look).await
}

/// The same, for looks that cost more than a request.
pub async fn at_intervals<O: Observation>(
    interval: Duration,
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<O>,
) -> Result<O::Value> {
    let deadline = Instant::now() + limit;
    loop {
        match look().await {
            Ok(observation) => {
                if let Some(value) = observation.into_value() {
                    return Ok(value);
                }
                if Instant::now() >= deadline {
                    bail!("waited {limit:?} until {what}");
                }
            }
            Err(error) if Instant::now() >= deadline || !may_pass(&error) => {
                return Err(error).with_context(|| format!("while waiting until {what}"));
            }
            Err(_) => {}
        }
        sleep(interval).await;
    }
}

/// Whether a server that starts, is busy, or does not know an object yet explains the error.
fn may_pass(error: &Error) -> bool {
    if let Some(error) = error.downcast_ref::<KubectlError>() {
        return !error.is_permanent();
    }
    error.chain().any(|cause| {
        if let Some(error) = cause.downcast_ref::<redis::RedisError>() {
            let code = error.code().unwrap_or_default();
            return error.is_io_error()
                || error.is_timeout()
                || error.is_cluster_error()
                || ["BUSY", "LOADING", "MASTERDOWN"].contains(&code);
        }
        match cause.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => {
                matches!(status.code, 404 | 409 | 429) || status.code >= 500
            }
            Some(kube::Error::HyperError(_) | kube::Error::Service(_)) => true,
            _ => cause.is::<std::io::Error>() || cause.is::<tokio::time::error::Elapsed>(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;
    use std::io;

    #[tokio::test]
    async fn permanent_errors_end_the_wait_at_once() {
        let mut looks = 0;
        let waited: Result<()> = eventually("it holds", async || {
            looks += 1;
            Err::<bool, _>(anyhow!("no such field"))
        })
        .await;
        assert_eq!(looks, 1);
        let text = format!("{:#}", waited.unwrap_err());
        assert_eq!(text, "while waiting until it holds: no such field");
    }

    #[tokio::test]
    async fn what_kubectl_will_never_do_ends_the_wait() {
        for (printed, looks_before_the_end) in [
            (
                "error: the server doesn't have a resource type \"redises\"",
                1,
            ),
            (
                "Error from server (NotFound): pods \"shop-0-0\" not found",
                3,
            ),
        ] {
            let mut looks = 0;
            let waited: Result<()> = eventually("it holds", async || {
                looks += 1;
                if looks == 3 {
                    return Ok(true);
                }
                let error = KubectlError::Failed {
                    arguments: "get redises".into(),
                    printed: printed.into(),
                };
                Err(error).context("a look")
            })
            .await;
            assert_eq!(looks, looks_before_the_end, "{waited:?}");
            assert_eq!(waited.is_ok(), looks_before_the_end == 3, "{waited:?}");
        }
    }

    #[tokio::test]
    async fn refused_connections_are_tried_again() {
        let mut looks = 0;
        let found = eventually("it answers", async || {
            looks += 1;
            if looks < 3 {
                Err(io::Error::from(io::ErrorKind::ConnectionRefused))?;
            }
            Ok(Some(looks))
        });
        assert_eq!(found.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_condition_that_never_holds_is_named() {
        let limit = Duration::from_millis(50);
        let waited = within(limit, "it holds", async || Ok(false)).await;
        let text = waited.unwrap_err().to_string();
        assert_eq!(text, "waited 50ms until it holds");
    }
}
