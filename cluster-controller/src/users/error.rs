//! Why the users of a cluster cannot be read or written.

use common::kubernetes::{
    call::ApiError,
    errors::{Classified, ErrorClass},
};

/// Why the users of a cluster cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The name of a Secret is not free.
    #[error(
        "Secret {secret} exists and is not of RedisCluster {cluster}, which needs the name for passwords of its own: delete it, or rename the cluster"
    )]
    Taken {
        /// Name of the Secret that is in the way.
        secret: String,
        /// Name of the RedisCluster that needs it.
        cluster: String,
    },
    /// No password can be made.
    #[error("the operating system gives no random numbers: {0}")]
    Random(getrandom::Error),
    /// The users do not serialise.
    #[error("the users cannot be written as JSON: {0}")]
    State(serde_json::Error),
}

impl Classified for UsersError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Api(error) => error.class(),
            Self::Taken { .. } => ErrorClass::InvalidSpec,
            Self::Random(_) => ErrorClass::Transient,
            Self::State(_) => ErrorClass::Bug,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => error.reason(),
            Self::Taken { .. } => "SecretTaken",
            Self::Random(_) | Self::State(_) => "UsersNotWritten",
        }
    }
}
