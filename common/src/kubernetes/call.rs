//! One call to the API server: bounded in time, counted, and its error classified.
//!
//! kube's client has no read timeout and retries 429, 503 and 504 for a long time: without a bound of our own a half-open
//! connection would hold a reconcile for ever.

use super::errors::{Classified, ErrorClass};
use std::{
    fmt::Display,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How long a read may take.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a write may take.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

static READS: AtomicU64 = AtomicU64::new(0);
static WRITES: AtomicU64 = AtomicU64::new(0);

/// Reads and writes made by this process since it started (watches are not counted).
pub fn counts() -> (u64, u64) {
    (
        READS.load(Ordering::Relaxed),
        WRITES.load(Ordering::Relaxed),
    )
}

/// Why a call to the API server did not give what it was made for.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer in time.
    #[error("{what}: no answer from the API server within {} s", after.as_secs())]
    Timeout {
        /// What was tried, for example `get Pod shop/cache-0-0`.
        what: String,
        /// The bound that was hit.
        after: Duration,
    },
    /// Somebody else wrote first (409), or the object exists already.
    #[error("{what}: somebody else wrote at the same time: {message}")]
    Conflict {
        /// What was tried.
        what: String,
        /// The server's words.
        message: String,
    },
    /// The object does not exist.
    #[error("{what}: not found")]
    NotFound {
        /// What was tried.
        what: String,
    },
    /// The controller's ServiceAccount lacks a right.
    #[error("{what}: the controller lacks the right: {message}")]
    Forbidden {
        /// What was tried.
        what: String,
        /// The server's words.
        message: String,
    },
    /// The server refuses the content (400, 422).
    #[error("{what}: refused by the API server: {message}")]
    Invalid {
        /// What was tried.
        what: String,
        /// The server's words.
        message: String,
    },
    /// An object of that name belongs to somebody else.
    #[error("{what}: an object of that name exists and is not ours ({owner}): delete or rename it")]
    Foreign {
        /// What was tried.
        what: String,
        /// Whose it is.
        owner: String,
    },
    /// The server cannot answer now (429, 5xx) or cannot be reached.
    #[error("{what}: the API server cannot answer now: {message}")]
    Unavailable {
        /// What was tried.
        what: String,
        /// The server's or the network's words.
        message: String,
    },
    /// What we sent or got does not serialise.
    #[error("{what}: not the JSON that was expected: {message}")]
    Malformed {
        /// What was tried.
        what: String,
        /// What is wrong.
        message: String,
    },
}

impl Classified for ApiError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Timeout { .. } | Self::Unavailable { .. } | Self::NotFound { .. } => {
                ErrorClass::Transient
            }
            Self::Conflict { .. } => ErrorClass::Conflict,
            Self::Forbidden { .. } => ErrorClass::Forbidden,
            Self::Foreign { .. } => ErrorClass::InvalidSpec,
            Self::Invalid { .. } | Self::Malformed { .. } => ErrorClass::Bug,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "ApiTimeout",
            Self::Unavailable { .. } => "ApiUnavailable",
            Self::NotFound { .. } => "NotFound",
            Self::Conflict { .. } => "Conflict",
            Self::Forbidden { .. } => "Forbidden",
            Self::Foreign { .. } => "NameTaken",
            Self::Invalid { .. } => "RefusedByServer",
            Self::Malformed { .. } => "Malformed",
        }
    }
}

impl ApiError {
    /// Names the call and sorts the cause.
    pub fn new(what: impl Display, error: kube::Error) -> Self {
        let what = what.to_string();
        if let kube::Error::Api(status) = error {
            return Self::from_status(what, *status);
        }
        let message = error.to_string();
        if let kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) = error {
            return Self::Malformed { what, message };
        }
        // What is left is between us and the server: connection, TLS, credentials.
        Self::Unavailable { what, message }
    }

    fn from_status(what: String, status: kube::core::Status) -> Self {
        let message = status.message;
        match status.code {
            404 => Self::NotFound { what },
            409 => Self::Conflict { what, message },
            401 | 403 => Self::Forbidden { what, message },
            400 | 405 | 406 | 413 | 415 | 422 => Self::Invalid { what, message },
            _ => Self::Unavailable { what, message },
        }
    }
}

/// A read: bounded by [`READ_TIMEOUT`], counted. `what` names it, for example `get Pod shop/cache-0-0`.
pub async fn read<T>(
    what: impl Display,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    READS.fetch_add(1, Ordering::Relaxed);
    bounded(what, READ_TIMEOUT, call).await
}

/// A read of something that may be absent: "not found" is `None`.
pub async fn read_optional<T>(
    what: impl Display,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<Option<T>, ApiError> {
    match read(what, call).await {
        Ok(found) => Ok(Some(found)),
        Err(ApiError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A write: bounded by [`WRITE_TIMEOUT`], counted.
pub async fn write<T>(
    what: impl Display,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    WRITES.fetch_add(1, Ordering::Relaxed);
    bounded(what, WRITE_TIMEOUT, call).await
}

async fn bounded<T>(
    what: impl Display,
    limit: Duration,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(ApiError::new(what, error)),
        Err(_) => Err(ApiError::Timeout {
            what: what.to_string(),
            after: limit,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn api_error(code: u16) -> ApiError {
        let mut status = Status::failure("words of the server", "Reason");
        status.code = code;
        ApiError::new("get Pod a/b", kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn statuses_have_classes() {
        let class = |code| api_error(code).class();
        assert_eq!(class(404), ErrorClass::Transient);
        assert_eq!(class(409), ErrorClass::Conflict);
        assert_eq!(class(403), ErrorClass::Forbidden);
        assert_eq!(class(422), ErrorClass::Bug);
        assert_eq!(class(429), ErrorClass::Transient);
        assert_eq!(class(500), ErrorClass::Transient);
    }

    #[test]
    fn messages_name_the_call_and_hold_no_debug_text() {
        assert_eq!(
            api_error(403).to_string(),
            "get Pod a/b: the controller lacks the right: words of the server"
        );
    }

    #[tokio::test]
    async fn a_call_without_an_answer_ends() {
        let limit = Duration::from_millis(10);
        let error = bounded(
            "list Pods",
            limit,
            std::future::pending::<kube::Result<()>>(),
        )
        .await
        .unwrap_err();
        assert!(matches!(error, ApiError::Timeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn absent_is_none() {
        let mut status = Status::failure("", "NotFound");
        status.code = 404;
        let answer = read_optional::<()>("get", async { Err(kube::Error::Api(Box::new(status))) });
        assert!(answer.await.unwrap().is_none());
    }
}
