//! One call to the API server: bounded in time, counted, and its error classified.
//!
//! kube's client has no read timeout and retries 429, 503 and 504 for a long time: without a bound of our own a half-open
//! connection would hold a reconcile for ever.

use crate::{
    errors::{Classified, ErrorClass},
    runtime::metrics::{ApiCall, api_called},
};
use std::{
    fmt::Display,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// How long a read may take.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Between the tries of [`read_patiently`].
const PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(900),
    Duration::from_millis(2700),
];
/// How long a write may take.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

/// Calls of a process at the same time, besides those for leases, which wait for no other: each has a connection of its own, whose buffers
/// (some 400 KiB here) stay until it is closed, and the server has other clients.
static CALLS: Semaphore = Semaphore::const_new(32);

/// Why a call to the API server did not give what it was made for.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer in time.
    #[error("{what}: no answer from the API server within {after:?}")]
    Timeout {
        /// What was tried, for example `get Pod shop/cache-0-0`.
        what: String,
        /// The bound that was hit.
        after: Duration,
    },
    /// Another client wrote first (409).
    #[error("{what}: another client wrote at the same time: {message}")]
    Conflict {
        /// What was tried.
        what: String,
        /// The server's words.
        message: String,
    },
    /// An object of that name is there already (409 to a create).
    #[error("{what}: an object of that name exists already")]
    AlreadyExists {
        /// What was tried.
        what: String,
    },
    /// The object does not exist.
    #[error("{what}: not found")]
    NotFound {
        /// What was tried.
        what: String,
    },
    /// The API server does not accept the credentials (401).
    #[error("{what}: the API server does not accept the controller's credentials: {message}")]
    Unauthorized {
        /// What was tried.
        what: String,
        /// The server's words.
        message: String,
    },
    /// The controller's ServiceAccount lacks a right (403).
    #[error("{what}: the controller lacks the right: {message}")]
    Forbidden {
        /// What was tried.
        what: String,
        /// The server's words.
        message: String,
    },
    /// A ResourceQuota of the namespace is used up (403).
    #[error("{what}: refused by a ResourceQuota; raise it or ask for less: {message}")]
    QuotaExceeded {
        /// What was tried.
        what: String,
        /// The server's words: which quota, what was asked for, what is used and allowed.
        message: String,
    },
    /// The namespace is being deleted (403).
    #[error("{what}: the namespace is being deleted and takes no new objects")]
    NamespaceTerminating {
        /// What was tried.
        what: String,
    },
    /// An admission policy or webhook refuses the object (403), for example Pod Security.
    #[error("{what}: refused by an admission policy: {message}")]
    Denied {
        /// What was tried.
        what: String,
        /// The policy's words.
        message: String,
    },
    /// The server refuses a value (422), or the object is too large (413).
    #[error("{what}: refused by the API server: {message}")]
    Invalid {
        /// What was tried.
        what: String,
        /// The server's words: which field and why.
        message: String,
    },
    /// The server does not understand the request (400, 405, 406, 415): a mistake of the controller.
    #[error("{what}: the API server does not understand the request: {message}")]
    BadRequest {
        /// What was tried.
        what: String,
        /// The server's words.
        message: String,
    },
    /// An object of that name has another owner.
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
            Self::Timeout { .. }
            | Self::Unavailable { .. }
            | Self::NotFound { .. }
            | Self::AlreadyExists { .. }
            | Self::NamespaceTerminating { .. } => ErrorClass::Transient,
            Self::Conflict { .. } => ErrorClass::Conflict,
            Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::QuotaExceeded { .. }
            | Self::Denied { .. } => ErrorClass::Forbidden,
            Self::Foreign { .. } | Self::Invalid { .. } => ErrorClass::InvalidSpec,
            Self::BadRequest { .. } | Self::Malformed { .. } => ErrorClass::Bug,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "ApiTimeout",
            Self::Unavailable { .. } => "ApiUnavailable",
            Self::NotFound { .. } => "NotFound",
            Self::Conflict { .. } => "Conflict",
            Self::AlreadyExists { .. } => "AlreadyExists",
            Self::Unauthorized { .. } => "Unauthorized",
            Self::Forbidden { .. } => "Forbidden",
            Self::QuotaExceeded { .. } => "QuotaExceeded",
            Self::NamespaceTerminating { .. } => "NamespaceTerminating",
            Self::Denied { .. } => "DeniedByPolicy",
            Self::Foreign { .. } => "NameTaken",
            Self::Invalid { .. } => "RefusedByServer",
            Self::BadRequest { .. } => "BadRequest",
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
        match status.code {
            404 => Self::NotFound { what },
            409 if status.reason == "AlreadyExists" => Self::AlreadyExists { what },
            409 => Self::Conflict {
                what,
                message: status.message,
            },
            401 => Self::Unauthorized {
                what,
                message: status.message,
            },
            403 => Self::forbidden(what, status),
            413 | 422 => Self::Invalid {
                what,
                message: status.message,
            },
            400 | 405 | 406 | 415 => Self::BadRequest {
                what,
                message: status.message,
            },
            _ => Self::Unavailable {
                what,
                message: status.message,
            },
        }
    }

    /// Quota, namespace lifecycle, policies and rights all answer 403 "Forbidden". Only the namespace lifecycle has a cause of its own;
    /// the others differ in the words that kubernetes has used since these plugins exist.
    fn forbidden(what: String, status: kube::core::Status) -> Self {
        let causes = status.details.iter().flat_map(|details| &details.causes);
        if causes
            .into_iter()
            .any(|cause| cause.reason == "NamespaceTerminating")
        {
            return Self::NamespaceTerminating { what };
        }
        let message = status.message;
        if message.contains("exceeded quota") {
            return Self::QuotaExceeded { what, message };
        }
        if is_of_authorizer(&message) {
            return Self::Forbidden { what, message };
        }
        Self::Denied { what, message }
    }
}

/// Whether the authorizer refused: `… is forbidden: User "system:serviceaccount:…" cannot create resource "pods" …`; or RBAC: no account
/// hands on rights that it lacks. Policies have words of their own, which may say what a container "cannot" do.
fn is_of_authorizer(message: &str) -> bool {
    let user = message.split_once("forbidden: User \"");
    user.is_some_and(|(_, rest)| rest.contains("\" cannot "))
        || message.contains("is attempting to grant RBAC permissions not currently held")
}

/// A read: bounded by [`READ_TIMEOUT`], measured. `what` names it, for example `get Pod shop/cache-0-0`.
pub async fn read<T>(
    what: impl Display,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    in_turn(what, ApiCall::Read, READ_TIMEOUT, call).await
}

/// A read of something that may be absent: "not found" is `None`.
pub async fn read_optional<T>(
    what: impl Display,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<Option<T>, ApiError> {
    optional(read(what, call).await)
}

/// A read for work of which every attempt counts: a server that cannot answer now is asked again, for four seconds in all. kube's client
/// does the same for 429, 503 and 504, but not for a 500 or a broken connection.
pub async fn read_patiently<T, Call>(
    what: &str,
    mut call: impl FnMut() -> Call,
) -> Result<T, ApiError>
where
    Call: Future<Output = kube::Result<T>>,
{
    for pause in PAUSES {
        match read(what, call()).await {
            Err(ApiError::Unavailable { .. }) => tokio::time::sleep(pause).await,
            answer => return answer,
        }
    }
    read(what, call()).await
}

/// A write: bounded by [`WRITE_TIMEOUT`], measured.
pub async fn write<T>(
    what: impl Display,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    in_turn(what, ApiCall::Write, WRITE_TIMEOUT, call).await
}

/// "Not found" as `None`.
pub(super) fn optional<T>(answer: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(ApiError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A call that waits for its turn; its bound begins with that. First come, first served, and each before it is bounded too.
async fn in_turn<T>(
    what: impl Display,
    kind: ApiCall,
    limit: Duration,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    // It is never closed.
    let _turn = CALLS.acquire().await;
    bounded(what, kind, limit, call).await
}

/// A call with a bound of its own, measured.
pub(super) async fn bounded<T>(
    what: impl Display,
    kind: ApiCall,
    limit: Duration,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    let begun = Instant::now();
    let result = match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(ApiError::new(what, error)),
        Err(_) => Err(ApiError::Timeout {
            what: what.to_string(),
            after: limit,
        }),
    };
    let reason = result.as_ref().err().map(Classified::reason);
    api_called(kind, reason, begun.elapsed());
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn api_error(code: u16, reason: &str, message: &str) -> ApiError {
        let mut status = Status::failure(message, reason);
        status.code = code;
        ApiError::new("get Pod a/b", kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn statuses_have_classes() {
        let class = |code| api_error(code, "Reason", "forbidden: User \"a\" cannot get").class();
        assert_eq!(class(400), ErrorClass::Bug);
        assert_eq!(class(401), ErrorClass::Forbidden);
        assert_eq!(class(403), ErrorClass::Forbidden);
        assert_eq!(class(404), ErrorClass::Transient);
        assert_eq!(class(409), ErrorClass::Conflict);
        assert_eq!(class(422), ErrorClass::InvalidSpec);
        assert_eq!(class(429), ErrorClass::Transient);
        assert_eq!(class(500), ErrorClass::Transient);
    }

    #[tokio::test]
    async fn a_patient_read_outlives_refusals_of_the_moment() {
        let asked = |refusals: usize, code: u16| async move {
            let mut times = 0;
            let answer = read_patiently("get Pod a/b", || {
                times += 1;
                let mut status = Status::failure("", "InternalError");
                status.code = code;
                let refused = Err(kube::Error::Api(Box::new(status)));
                let answer = if times <= refusals { refused } else { Ok(()) };
                async { answer }
            });
            (answer.await.is_ok(), times)
        };
        assert_eq!(asked(2, 500).await, (true, 3));
        // What asking again does not change.
        assert_eq!(asked(1, 404).await, (false, 1));
        assert_eq!(asked(1, 403).await, (false, 1));
    }

    #[test]
    fn an_existing_object_is_no_conflict() {
        let error = api_error(409, "AlreadyExists", "pods \"b\" already exists");
        assert_eq!(error.class(), ErrorClass::Transient);
        assert_eq!(
            error.to_string(),
            "get Pod a/b: an object of that name exists already"
        );
    }

    #[test]
    fn refusals_with_403_are_distinguished() {
        // As answered by kube-apiserver.
        for (message, reason) in [
            (
                r#"pods "b" is forbidden: exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2"#,
                "QuotaExceeded",
            ),
            (
                r#"pods "b" is forbidden: User "system:serviceaccount:a:c" cannot create resource "pods" in API group "" in the namespace "a""#,
                "Forbidden",
            ),
            (
                r#"pods "b" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false"#,
                "DeniedByPolicy",
            ),
            (
                r#"admission webhook "policies.example.com" denied the request: container "redis" cannot be privileged"#,
                "DeniedByPolicy",
            ),
            (
                r#"admission webhook "policies.example.com" denied the request: User "team-a" cannot use this image"#,
                "DeniedByPolicy",
            ),
            (
                r#"rolebindings.rbac.authorization.k8s.io "b" is forbidden: user "system:serviceaccount:a:c" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held: {APIGroups:["x"], Resources:["y"], Verbs:["create"]}"#,
                "Forbidden",
            ),
        ] {
            let error = api_error(403, "Forbidden", message);
            assert_eq!(error.reason(), reason);
            assert_eq!(error.class(), ErrorClass::Forbidden);
            assert!(error.to_string().ends_with(message), "{error}");
        }
    }

    #[test]
    fn a_terminating_namespace_is_waited_out() {
        let status: Status = serde_json::from_value(serde_json::json!({
            "status": "Failure", "code": 403, "reason": "Forbidden",
            "message": r#"pods "b" is forbidden: unable to create new content in namespace a because it is being terminated"#,
            "details": {"name": "b", "kind": "pods", "causes": [
                {"reason": "NamespaceTerminating", "message": "namespace a is being terminated", "field": "metadata.namespace"}]},
        }))
        .unwrap();
        let error = ApiError::new("create Pod a/b", kube::Error::Api(Box::new(status)));
        assert_eq!(error.reason(), "NamespaceTerminating");
        assert_eq!(error.class(), ErrorClass::Transient);
    }

    #[test]
    fn messages_name_the_call_and_hold_no_debug_text() {
        assert_eq!(
            api_error(403, "Forbidden", "forbidden: User \"a\" cannot get").to_string(),
            "get Pod a/b: the controller lacks the right: forbidden: User \"a\" cannot get"
        );
    }

    #[tokio::test]
    async fn a_call_without_an_answer_ends() {
        let limit = Duration::from_millis(10);
        let error = bounded(
            "list Pods",
            ApiCall::Read,
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
