//! Why the users of a cluster cannot be read or written.

use crate::secrets::SecretError;
use common::kubernetes::errors::{Classified, ErrorClass};

/// Why the users of a cluster cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// A Secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
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
            Self::Secret(error) => error.class(),
            Self::Random(_) => ErrorClass::Transient,
            Self::State(_) => ErrorClass::Bug,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Secret(error) => error.reason(),
            Self::Random(_) | Self::State(_) => "UsersNotWritten",
        }
    }
}
